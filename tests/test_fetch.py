"""Published data and weights come whole and checked, or not at all; what was fetched is not fetched again; own copies take its place."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import polars as pl
import pytest
from hub_server import BLOCK, Hub, running
from huggingface_hub import constants
from safetensors.numpy import save

from unime.fetch import download, need, run, select, sources
from unime.fetch import hub as hub_module
from unime.fetch.hub import Hosts
from unime.fetch.need import FetchError, Part, Request, Want

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The real client, online, with no token, no proxy, no home, and no patience to speak of."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(hub_module, "PAUSE", 0.01)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()
    assert not (tmp_path / "home").exists()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as server:
        yield server


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def parquet(rows: int = 3) -> bytes:
    out = io.BytesIO()
    pl.DataFrame({"qry": [f"q{row}" for row in range(rows)]}).write_parquet(out)
    return out.getvalue()


def archive(size: int = 5000, seed: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("images/a.jpg", noise(size // 2, seed))
        file.writestr("images/b.jpg", noise(size // 2, seed + 1))
    return out.getvalue()


def weights(seed: int = 0) -> bytes:
    return save({"w": np.random.default_rng(seed).normal(size=(64, 8)).astype(np.float32)})


def mmeb_train(archive_size: int = 5000) -> dict[str, bytes]:
    files = {".gitattributes": b"*.zip lfs\n", "README.md": b"# MMEB\n"}
    for seed, name in enumerate(("A-OKVQA", "CIRR", "ImageNet_1K")):
        files |= {f"{name}/{stem}-00000-of-00001.parquet": parquet(3 + seed) for stem in ("original", "diverse_instruction", "train")}
        files[f"images_zip/{name}.zip"] = archive(archive_size, 10 * seed)
    return files


def track(iterable: Any, total: int | None = None, label: str = "") -> Any:
    return iterable


def fetch(request: Request, out: Path, hub: Hub | None = None, **settings: Any) -> dict[str, Any]:
    url = hub.url if hub else "http://127.0.0.1:9"
    given = {"scratch": out.parent / "scratch", "track": track, "log": logging.getLogger("unime")} | settings
    return run.fetch(request, out, hosts=Hosts(url, url, f"{url}/raw"), **given)


def under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def is_refused(request: Request, out: Path, hub: Hub | None, *parts: str, **settings: Any) -> str:
    """The one message of a fetch that fails; it has the given parts and both remedies, and nothing is left at `out`."""
    with pytest.raises(FetchError) as raised:
        fetch(request, out, hub, **settings)
    said = str(raised.value)
    for part in (*parts, "Missing: ", "connection to", f"<folder>/{request.parts[0].repository}/", "fetch.copies"):
        assert part in said, f"{part!r} is not in: {said}"
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))
    return said


# What is fetched


def test_a_training_set_comes_whole_and_alone_with_a_record_of_what_it_is(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = mmeb_train()
    hub.add("TIGER-Lab/MMEB-train", files, COMMIT)
    with caplog.at_level(logging.INFO, "unime"):
        record = fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    wanted = {"original-00000-of-00001.parquet": "CIRR/original-00000-of-00001.parquet", "images.zip": "images_zip/CIRR.zip"}
    there = under(tmp_path / "CIRR")
    assert json.loads(there.pop("source.json")) == record
    assert there == {name: files[path] for name, path in wanted.items()} and len(there) == 2
    assert {one.path for one in hub.asked} == set(wanted.values())
    assert {one.path: one.origin for one in hub.asked}["images_zip/CIRR.zip"] == "cdn"  # large files are elsewhere
    assert f"main is commit {COMMIT} now" in caplog.text and COMMIT in run.summary(record)
    (part,) = record["parts"]
    described = [(file["path"], file["from"], file["size"], file["sha256"]) for file in part.pop("files")]
    assert described == [(name, wanted[name], len(there[name]), hashlib.sha256(there[name]).hexdigest()) for name in sorted(wanted)]
    assert record["source"] == "mmeb_train" and part == {
        "repository": "TIGER-Lab/MMEB-train",
        "commit": COMMIT,
        "licence": "apache-2.0",
    }


def test_a_commit_is_taken_at_its_word_and_two_fetches_leave_the_same_bytes(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("TIGER-Lab/MMEB-train", mmeb_train(), COMMIT)
    for place in ("first", "second"):
        fetch(sources.mmeb_train("CIRR", revision=COMMIT), tmp_path / place / "CIRR", hub)
    assert under(tmp_path / "first/CIRR") == under(tmp_path / "second/CIRR") and len(under(tmp_path / "first/CIRR")) == 3
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_tasks_share_one_archive_and_keep_their_folders(hub: Hub, tmp_path: Path) -> None:
    files = {f"{task}/test-00000-of-00001.parquet": parquet() for task in ("GQA", "CIRR", "OVEN")} | {"images.zip": archive()}
    hub.add("TIGER-Lab/MMEB-eval", files)
    fetch(sources.mmeb_eval(["GQA", "OVEN"]), tmp_path / "eval", hub)
    names = {"GQA/test-00000-of-00001.parquet", "OVEN/test-00000-of-00001.parquet", "images.zip", "source.json"}
    assert set(under(tmp_path / "eval")) == names
    fetch(sources.mmeb_eval(["CIRR"], images=False), tmp_path / "other", hub)
    assert set(under(tmp_path / "other")) == {"CIRR/test-00000-of-00001.parquet", "source.json"}


def test_of_a_model_come_weights_and_texts_never_pickles_or_code(hub: Hub, tmp_path: Path) -> None:
    wanted = {"config.json": b"{}", "model-00001-of-00002.safetensors": weights(), "model-00002-of-00002.safetensors": weights(1)}
    wanted |= {"chat_template.jinja": b"{{ x }}", "merges.txt": b"a b\n", "model.safetensors.index.json": b'{"weight_map": {}}'}
    never = {
        "pytorch_model.bin": noise(50),
        "modeling_x.py": b"1",
        "x.pth": b"1",
        "eval/scores.json": b"{}",
        "a.pt": b"1",
        "README.md": b"x",
    }
    hub.add("owner/model", wanted | never, kind="model", licence="mit")
    record = fetch(sources.model("owner/model"), tmp_path / "model", hub)
    assert set(under(tmp_path / "model")) == {*wanted, "source.json"} and {one.path for one in hub.asked} == set(wanted)
    assert record["parts"][0]["licence"] == "mit"  # what its card says


def test_an_adapter_is_fetched_from_its_folder(hub: Hub, tmp_path: Path) -> None:
    files = {"lora/adapter_model.safetensors": weights(), "lora/adapter_config.json": b"{}", "config.json": b"{}"}
    hub.add("owner/adapter", files, kind="model")
    fetch(sources.model("owner/adapter", folder="lora/"), tmp_path / "adapter", hub)
    assert set(under(tmp_path / "adapter")) == {"adapter_model.safetensors", "adapter_config.json", "source.json"}


@pytest.mark.parametrize(
    "benchmark, files", [("flickr30k", ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]), ("urban1k", ["Urban1k.zip"])]
)
def test_cross_modal_benchmarks_come_from_the_hub(benchmark: str, files: list[str], hub: Hub, tmp_path: Path) -> None:
    hub.add("royokong/flickr30k_test", {f"data/test-0000{i}-of-00002.parquet": parquet(2 + i) for i in (0, 1)})
    hub.add("BeichenZhang/Urban1k", {"Urban1k.zip": archive()}, sources.SOURCES["urban1k"].revision)
    fetch(sources.crossmodal(benchmark), tmp_path / benchmark, hub)
    assert set(under(tmp_path / benchmark)) == {*files, "source.json"}


def sugar_crepe(hub: Hub) -> Request:
    """SugarCrepe with its images on the test's own server."""
    hub.add(
        "RAIVNLab/sugar-crepe",
        {f"data/{name}.json": b'{"0": {}}\n' for name in sources.SUGAR_CREPE} | {"main.py": b"1"},
        COMMIT,
        kind="github",
    )
    hub.web["/zips/val2017.zip"] = archive(3 << 20)
    lists, images = sources.crossmodal("sugar_crepe").parts
    (archived,) = images.wants
    assert len(archived.sha) == 64 and images.url.startswith("https://")
    here = replace(images, url=f"{hub.url}/zips/", wants=(replace(archived, sha=""),))
    return Request("sugar_crepe", (lists, here))


def test_sugar_crepe_comes_from_github_and_a_plain_server_and_goes_on_too(hub: Hub, tmp_path: Path) -> None:
    request = sugar_crepe(hub)
    hub.cut["/zips/val2017.zip"] = [1 << 20]
    record = fetch(request, tmp_path / "sugar_crepe", hub)
    assert set(under(tmp_path / "sugar_crepe")) == {*(f"{name}.json" for name in sources.SUGAR_CREPE), "val2017.zip", "source.json"}
    assert hub.starts("/zips/val2017.zip") == [0, 1 << 20]
    lists, images = record["parts"]
    assert lists["commit"] == COMMIT and images["commit"] is None and images["files"][0]["size"] == len(hub.web["/zips/val2017.zip"])


def test_a_plain_archive_that_is_no_archive_is_refused(hub: Hub, tmp_path: Path) -> None:
    request = sugar_crepe(hub)
    hub.web["/zips/val2017.zip"] = archive(1 << 16)[:-100]  # its length is the one that the server says
    with pytest.raises(FetchError, match="val2017.zip came wrong: not a whole zip file"):
        fetch(request, tmp_path / "sugar_crepe", hub)
    hub.web["/zips/val2017.zip"] = archive(1 << 16)  # whole, but not the one whose hash the registry has
    lists, images = request.parts
    pinned = replace(images, wants=sources.crossmodal("sugar_crepe").parts[1].wants)
    with pytest.raises(FetchError, match="val2017.zip came wrong: its hash is .* 4f7e2ccb2866... is right"):
        fetch(Request("sugar_crepe", (lists, pinned)), tmp_path / "sugar_crepe", hub)
    lay(tmp_path / "copies/images.cocodataset.org/zips", {"val2017.zip": archive()})
    with pytest.raises(FetchError, match="own copies: .*val2017.zip: its hash is .* 4f7e2ccb2866... is right"):
        fetch(Request("sugar_crepe", (pinned,)), tmp_path / "sugar_crepe", hub, copies=tmp_path / "copies")
    assert not (tmp_path / "sugar_crepe").exists()


def test_published_scores_are_one_file_a_judge(hub: Hub, tmp_path: Path) -> None:
    hub.add("TianchengGu/UniME-V2-Training-Datasets", {f"train_data_{judge}_scores.json": b"[1]\n" for judge in sources.JUDGES})
    fetch(sources.published_scores("InternVL3_8B"), tmp_path / "scores", hub)
    assert set(under(tmp_path / "scores")) == {"train_data_InternVL3_8B_scores.json", "source.json"}
    with pytest.raises(FetchError, match="'Qwen'.*published are Qwen25VL_7B"):
        sources.published_scores("Qwen")


# Broken connections and killed runs


def test_a_broken_connection_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    files = mmeb_train(3 << 20)
    hub.add("TIGER-Lab/MMEB-train", files)
    path = "images_zip/CIRR.zip"
    hub.cut[path] = [1 << 20, 1 << 19]
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert (tmp_path / "CIRR/images.zip").read_bytes() == files[path]
    assert hub.starts(path) == [0, 1 << 20, (1 << 20) + (1 << 19)] and hub.sent[path] == len(files[path])


def test_an_answer_that_does_not_say_its_length_goes_on_too(hub: Hub, tmp_path: Path) -> None:
    files = mmeb_train(1 << 20)
    hub.add("TIGER-Lab/MMEB-train", files)
    hub.cut["images_zip/CIRR.zip"], hub.no_length = [1 << 19], True
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert (tmp_path / "CIRR/images.zip").read_bytes() == files["images_zip/CIRR.zip"]
    assert hub.starts("images_zip/CIRR.zip") == [0, 1 << 19]


def test_a_server_that_knows_no_ranges_is_asked_for_all_again(hub: Hub, tmp_path: Path) -> None:
    files = mmeb_train(1 << 20)
    hub.add("TIGER-Lab/MMEB-train", files)
    hub.cut["images_zip/CIRR.zip"], hub.no_range = [1 << 19], True
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert (tmp_path / "CIRR/images.zip").read_bytes() == files["images_zip/CIRR.zip"]
    assert hub.sent["images_zip/CIRR.zip"] == len(files["images_zip/CIRR.zip"]) + (1 << 19)


def test_a_busy_server_is_given_time(hub: Hub, tmp_path: Path) -> None:
    hub.add("TIGER-Lab/MMEB-train", mmeb_train())
    hub.busy |= {"images_zip/CIRR.zip": 3, "listing": 2}
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert len(hub.starts("images_zip/CIRR.zip")) == 4


def test_a_server_that_stays_busy_is_given_up_and_what_came_is_kept(hub: Hub, tmp_path: Path) -> None:
    files = mmeb_train(1 << 20)
    hub.add("TIGER-Lab/MMEB-train", files)
    hub.busy["images_zip/CIRR.zip"] = 10**6
    is_refused(
        sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub, "answers 503", "6 attempts in a row", "images_zip/CIRR.zip"
    )
    hub.busy.clear()
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert len(hub.starts("CIRR/original-00000-of-00001.parquet")) == 1


def test_a_killed_run_goes_on_and_fetches_no_whole_file_again(hub: Hub, tmp_path: Path) -> None:
    files = mmeb_train(4 << 20)
    hub.add("TIGER-Lab/MMEB-train", files, COMMIT)
    path, small = "images_zip/CIRR.zip", "CIRR/original-00000-of-00001.parquet"
    hub.slow[path] = 0.01
    script = f"""
import logging
from pathlib import Path
from unime.fetch import run, sources
run.fetch(sources.mmeb_train("CIRR", revision="main"), Path({str(tmp_path / "CIRR")!r}), scratch=Path({str(tmp_path / "scratch")!r}),
          track=lambda it, total, label: it, log=logging.getLogger("unime"))
"""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "scratch/fetch/TIGER-Lab--MMEB-train" / COMMIT / (path + ".part")
    begun = time.monotonic()
    while not (part.exists() and part.stat().st_size > 1 << 20 and part.with_name("x").parent.parent.joinpath(small).exists()):
        assert killed.poll() is None and time.monotonic() - begun < 20, killed.stderr.read() if killed.stderr else ""
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = part.stat().st_size
    assert not (tmp_path / "CIRR").exists() and 1 << 20 < kept < len(files[path]) and not (tmp_path / "hf").exists()
    hub.slow.clear()
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert (tmp_path / "CIRR/images.zip").read_bytes() == files[path]
    assert hub.starts(path) == [0, kept] and hub.starts(small) == [0]


def test_a_beginning_that_is_wrong_is_thrown_away_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    files = mmeb_train()
    hub.add("TIGER-Lab/MMEB-train", files, COMMIT)
    part = tmp_path / "scratch/fetch/TIGER-Lab--MMEB-train" / COMMIT / "images_zip/CIRR.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert hub.starts("images_zip/CIRR.zip") == [1000, 0] and (tmp_path / "CIRR/images.zip").read_bytes() == files["images_zip/CIRR.zip"]


def test_progress_is_told_in_mebibytes_and_files_come_side_by_side(hub: Hub, tmp_path: Path) -> None:
    files = {f"a/original-0000{i}-of-00004.parquet": b"PAR1" + noise(1 << 20, i) + b"\0\0\0\0PAR1" for i in range(4)}
    hub.add("owner/data", files)
    for path in files:
        hub.slow[path] = 0.01  # 64 blocks a file: 0.64 s each, one after the other 2.6 s
    seen: list[Any] = []

    def telling(iterable: Any, total: int, label: str) -> Any:
        for step in iterable:
            seen.append((step, total, label))
            yield step

    part = Part("owner/data", "dataset", "main", "mit", (Want("a/original-*.parquet"),))
    start = time.monotonic()
    fetch(Request("own", (part,)), tmp_path / "data", hub, track=telling)
    assert time.monotonic() - start < 2.0
    assert seen == [(step, 5, "own: MiB of owner/data") for step in range(1, 5)]  # 4 MiB and 48 bytes


def test_an_end_from_outside_leaves_no_thread_and_no_folder(hub: Hub, tmp_path: Path) -> None:
    hub.add("TIGER-Lab/MMEB-train", mmeb_train(8 << 20))
    hub.slow["images_zip/CIRR.zip"] = 0.005

    def ended(iterable: Any, total: int, label: str) -> Any:
        for _ in iterable:
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt) as raised:  # its traceback keeps every frame alive
        fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub, track=ended)
    sent = hub.sent["images_zip/CIRR.zip"]
    time.sleep(0.3)
    assert 1 << 20 <= sent < 4 << 20 and hub.sent["images_zip/CIRR.zip"] - sent <= 2 * BLOCK
    assert raised.traceback and not (tmp_path / "CIRR").exists()


# Refusals


def test_bytes_other_than_the_published_ones_are_refused(hub: Hub, tmp_path: Path) -> None:
    files = mmeb_train()
    hub.add("TIGER-Lab/MMEB-train", files)
    request = sources.mmeb_train("CIRR", revision="main")
    for path in ("images_zip/CIRR.zip", "CIRR/original-00000-of-00001.parquet"):  # a SHA-256, git's own hash
        hub.wrong = {path}
        assert (len(files[path]) > 1000) == path.endswith(".zip")
        scratch = tmp_path / path.replace("/", "-")
        is_refused(request, tmp_path / "CIRR", hub, f"{path} came wrong: its hash is", "is right", scratch=scratch)
    hub.wrong, hub.longer = set(), {"images_zip/CIRR.zip"}
    is_refused(request, tmp_path / "CIRR", hub, f"the server has {len(files['images_zip/CIRR.zip']) + 4} bytes of it, the repository says")
    hub.longer = set()
    fetch(request, tmp_path / "CIRR", hub)  # nothing wrong was kept


def test_offline_is_said_before_anything_is_asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    is_refused(
        sources.mmeb_train("DocVQA"), tmp_path / "x", hub, "HF_HUB_OFFLINE", "DocVQA/original-*.parquet", "about 12.9 GB", "HF_TOKEN"
    )
    assert not hub.calls


def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    is_refused(sources.mmeb_train("CIRR"), tmp_path / "x", None, "http://127.0.0.1:9 cannot be reached", "about 281 MB")
    is_refused(sources.mmeb_train("WebQA"), tmp_path / "x", None, "images_zip/WebQA.zip (about 10 MB and 0.3 to 13 GB)")


def test_a_page_that_is_no_listing_is_told_from_one(hub: Hub, tmp_path: Path) -> None:
    hub.web["/api/datasets/TIGER-Lab/MMEB-train/revision/main"] = b"<html>Please log in</html>"
    is_refused(sources.mmeb_train("CIRR", revision="main"), tmp_path / "x", hub, "a page that asks to log in?")


def test_a_repository_that_is_private_or_not_there_is_refused(hub: Hub, tmp_path: Path) -> None:
    is_refused(
        sources.model("owner/none"),
        tmp_path / "x",
        hub,
        "owner/none: there is no such model repository, it is private",
        "401",
        "size not known",
    )
    is_refused(sources.crossmodal("sugar_crepe"), tmp_path / "x", hub, "there is no such github repository", "404")
    with pytest.raises(FetchError, match="'no-owner' is not the name of a repository"):
        sources.model("no-owner")


def test_a_revision_that_is_not_there_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.add("TIGER-Lab/MMEB-train", mmeb_train())
    is_refused(sources.mmeb_train("CIRR", revision="v9"), tmp_path / "x", hub, "it has no revision 'v9'")


@pytest.mark.parametrize("token", ["", "hf_secret"])
def test_a_gated_repository_says_where_to_ask(token: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/gated", {"config.json": b"{}", "model.safetensors": weights()}, kind="model", gated=True)
    monkeypatch.setenv("HF_TOKEN", token)
    is_refused(
        sources.model("owner/gated"), tmp_path / "x", hub, f"gated: its owner gives access on request at {hub.url}/owner/gated", "HF_TOKEN"
    )


def test_a_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    request = sugar_crepe(hub)
    hub.add("TIGER-Lab/MMEB-train", mmeb_train())
    fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "CIRR", hub)
    assert hub.tokens == {("hub", "Bearer hf_secret"), ("cdn", "")}
    hub.tokens.clear()
    fetch(request, tmp_path / "sugar_crepe", hub)
    assert hub.tokens == {("hub", "")}  # the test's GitHub and plain server


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(hub: Hub, tmp_path: Path) -> None:
    hub.add("TIGER-Lab/MMEB-train", mmeb_train(), COMMIT)
    request = sources.mmeb_train("ImageNet-1K", revision="main")
    nearest = ("nearest: 'ImageNet_1K/original-00000-of-00001.parquet'", "nearest: 'images_zip/ImageNet_1K.zip'")
    is_refused(
        request,
        tmp_path / "x",
        hub,
        f"it does not hold at commit {COMMIT} all that is asked for",
        "ImageNet-1K/original-*.parquet",
        *nearest,
    )
    assert not hub.asked


def test_a_numbered_file_is_wanted_with_its_siblings(hub: Hub, tmp_path: Path) -> None:
    hub.add(
        "owner/model",
        {"config.json": b"{}", "model-00001-of-00003.safetensors": weights(), "model-00003-of-00003.safetensors": weights()},
        kind="model",
    )
    is_refused(
        sources.model("owner/model"), tmp_path / "x", hub, "model-00002-of-00003.safetensors (beside model-00001-of-00003.safetensors)"
    )
    assert select.siblings("a/test-00000-of-00002.parquet") == ["a/test-00000-of-00002.parquet", "a/test-00001-of-00002.parquet"]
    assert select.siblings("m-00002-of-00002.safetensors") == ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    assert select.siblings("config.json") == []
    part = sources.crossmodal("coco").parts[0]
    hashed = [f"data/test-0000{number}-of-00002-{number}f8b2.parquet" for number in (0, 1)]
    assert [one.file.path for one in select.choose(part, {path: select.File(path) for path in hashed})] == hashed
    with pytest.raises(select.Absent, match="test-00001-of-00002.*beside data/test-00000-of-00002-0f8b2.parquet"):
        select.choose(part, {hashed[0]: select.File(hashed[0])})


def test_a_star_stays_within_one_name_and_means_no_pickle_and_no_code() -> None:
    paths = ["a/b.json", "a/b/c.json", "a", "a/model.bin", "a/model.py", "b/b.json", "a/weights.pt"]
    assert select.matching("a/*", paths) == ["a/b.json"] and select.matching("*/*.json", paths) == ["a/b.json", "b/b.json"]
    assert select.matching("a/*/*", paths) == ["a/b/c.json"]


def test_a_model_that_is_only_pickled_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/adapter", {"adapter_config.json": b"{}", "adapter_model.bin": noise(99)}, kind="model")
    is_refused(sources.model("owner/adapter"), tmp_path / "x", hub, "adapter_model.bin, a pickle", "name a revision that has safetensors")
    assert not hub.asked


def test_a_disk_that_is_too_small_is_found_before_anything_comes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = mmeb_train(1 << 20)
    hub.add("TIGER-Lab/MMEB-train", files)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: usage._replace(free=run.MARGIN + (1 << 19)))
    request = sources.mmeb_train("CIRR", revision="main")
    is_refused(
        request, tmp_path / "CIRR", hub, "269 MB free, 269 MB are needed: free 525 kB", "1.05 MB of 1.05 MB", str(tmp_path / "scratch")
    )
    assert not hub.asked
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: usage._replace(free=run.MARGIN + len(files["images_zip/CIRR.zip"]) + 10**4))
    fetch(request, tmp_path / "CIRR", hub)


# Own copies

CIRR = {"CIRR/original-00000-of-00001.parquet": parquet(), "images_zip/CIRR.zip": archive()}
REQUEST = sources.mmeb_train("CIRR", revision=COMMIT)


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def cache(copies: Path, files: dict[str, bytes], commit: str = COMMIT, repository: str = "datasets--TIGER-Lab--MMEB-train") -> Path:
    """A repository as huggingface_hub's cache has it: blobs named by their hash, snapshots of links."""
    for path, data in files.items():
        blob = copies / repository / "blobs" / hashlib.sha256(data).hexdigest()
        lay(blob.parent, {blob.name: data})
        link = copies / repository / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return copies / repository


def test_own_copies_are_linked_and_nothing_is_asked(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = lay(tmp_path / "copies/TIGER-Lab/MMEB-train", CIRR)
    record = fetch(REQUEST, tmp_path / "CIRR", hub, copies=tmp_path / "copies")
    assert not hub.calls and (tmp_path / "CIRR/images.zip").samefile(folder / "images_zip/CIRR.zip")
    assert not (tmp_path / "CIRR/images.zip").is_symlink()
    (part,) = record["parts"]
    assert part["commit"] is None and "which commit it is" in caplog.text
    assert [file["sha256"] for file in part["files"]] == [hashlib.sha256(CIRR[file["from"]]).hexdigest() for file in part["files"]]
    assert len(part["files"]) == 2 and str(tmp_path) not in json.dumps(record)


def test_own_copies_on_another_disk_are_shown_by_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay(tmp_path / "copies/TIGER-Lab/MMEB-train", CIRR)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(run.os, "link", refuse)
    fetch(REQUEST, tmp_path / "CIRR", copies=tmp_path / "copies")
    assert (tmp_path / "CIRR/images.zip").is_symlink() and (tmp_path / "CIRR/images.zip").samefile(folder / "images_zip/CIRR.zip")


def test_a_fetched_file_is_moved_where_it_cannot_be_linked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("TIGER-Lab/MMEB-train", CIRR, COMMIT)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(run.os, "link", refuse)
    fetch(REQUEST, tmp_path / "CIRR", hub)
    assert not (tmp_path / "CIRR/images.zip").is_symlink() and (tmp_path / "CIRR/images.zip").read_bytes() == CIRR["images_zip/CIRR.zip"]


def test_the_cache_of_hugging_face_is_an_own_copy_whose_commit_and_hashes_are_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache(tmp_path / "copies", CIRR)
    record = fetch(REQUEST, tmp_path / "CIRR", copies=tmp_path / "copies")
    assert record["parts"][0]["commit"] == COMMIT and not [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert not (tmp_path / "CIRR/images.zip").is_symlink()  # a link to the blob, not to the cache's link
    blob = next((tmp_path / "copies/datasets--TIGER-Lab--MMEB-train/blobs").glob(hashlib.sha256(CIRR["images_zip/CIRR.zip"]).hexdigest()))
    blob.write_bytes(bytes([blob.read_bytes()[0]]) + b"K" + blob.read_bytes()[2:40] + b"?" + blob.read_bytes()[41:])
    with pytest.raises(FetchError, match=r"own copies: .*images_zip/CIRR.zip: its hash is"):
        fetch(REQUEST, tmp_path / "other", copies=tmp_path / "copies")


def test_of_several_cached_commits_the_one_asked_for_is_taken(tmp_path: Path) -> None:
    other = "d" * 40
    folder = cache(tmp_path / "copies", CIRR)
    cache(tmp_path / "copies", CIRR | {"images_zip/CIRR.zip": archive(seed=9)}, other)
    record = fetch(REQUEST, tmp_path / "first", copies=tmp_path / "copies")
    assert record["parts"][0]["commit"] == COMMIT
    with pytest.raises(FetchError, match=f"several commits \\({COMMIT}, {other}\\)"):
        fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "x", copies=tmp_path / "copies")
    lay(folder, {"refs/main": other.encode()})
    record = fetch(sources.mmeb_train("CIRR", revision="main"), tmp_path / "second", copies=tmp_path / "copies")
    assert record["parts"][0]["commit"] == other
    assert (tmp_path / "second/images.zip").read_bytes() != (tmp_path / "first/images.zip").read_bytes()


def test_what_hf_download_leaves_in_a_folder_is_known_by_commit_and_hash(hub: Hub, tmp_path: Path) -> None:
    hub.add("TIGER-Lab/MMEB-train", CIRR, COMMIT)
    folder = tmp_path / "copies/TIGER-Lab/MMEB-train"
    api = huggingface_hub.HfApi(endpoint=hub.url)
    for path in CIRR:  # the real client's own records
        api.hf_hub_download(
            "TIGER-Lab/MMEB-train", path, repo_type="dataset", revision=COMMIT, local_dir=folder, cache_dir=tmp_path / "cache"
        )
    record = fetch(REQUEST, tmp_path / "CIRR", copies=tmp_path / "copies")
    assert record["parts"][0]["commit"] == COMMIT
    (folder / "images_zip/CIRR.zip").write_bytes(archive(seed=3))
    with pytest.raises(FetchError, match="images_zip/CIRR.zip: its hash is"):
        fetch(REQUEST, tmp_path / "other", copies=tmp_path / "copies")
    with pytest.raises(FetchError, match=f"at commit {COMMIT}, asked for is {'e' * 40}"):
        fetch(sources.mmeb_train("CIRR", revision="e" * 40), tmp_path / "x", copies=tmp_path / "copies")


@pytest.mark.parametrize("kind", ["SHA256SUMS", "source.json"])
def test_sums_beside_own_copies_are_compared(kind: str, tmp_path: Path) -> None:
    folder = lay(tmp_path / "copies/TIGER-Lab/MMEB-train", CIRR)
    sums = {path: hashlib.sha256(data).hexdigest() for path, data in CIRR.items()}
    if kind == "SHA256SUMS":
        text = "".join(f"{sha}  ./{path}\n" for path, sha in sums.items())
    else:
        files = [{"path": "x", "from": path, "size": len(CIRR[path]), "sha256": sha} for path, sha in sums.items()]
        text = json.dumps({"source": "mmeb_train", "parts": [{"repository": "TIGER-Lab/MMEB-train", "commit": COMMIT, "files": files}]})
    lay(folder, {kind: text.encode()})
    record = fetch(REQUEST, tmp_path / "CIRR", copies=tmp_path / "copies")
    assert record["parts"][0]["commit"] == (COMMIT if kind == "source.json" else None)
    lay(folder, {"images_zip/CIRR.zip": archive(seed=5)})  # whole, but another
    with pytest.raises(FetchError, match="images_zip/CIRR.zip: (its hash is|.* bytes, .* are right)"):
        fetch(REQUEST, tmp_path / "other", copies=tmp_path / "copies")


def test_own_copies_that_are_not_whole_are_named_all_at_once(tmp_path: Path) -> None:
    whole = {"a.zip": archive(), "b.parquet": parquet(), "c.safetensors": weights(), "d.json": b'{"a": 1}', "e.txt": b"text"}
    cut = {name: data[:-1] for name, data in whole.items()} | {
        "e.txt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    }
    request = Request("own", (Part("owner/data", "dataset", "main", "mit", tuple(Want(name) for name in whole)),))
    folder = lay(tmp_path / "copies/owner/data", whole)
    fetch(request, tmp_path / "whole", copies=tmp_path / "copies")
    lay(folder, cut)
    with pytest.raises(FetchError) as raised:
        fetch(request, tmp_path / "cut", copies=tmp_path / "copies")
    for said in (
        "a.zip: not a whole zip",
        "b.parquet: not a whole parquet",
        "c.safetensors: not a whole safetensors",
        "d.json: not a whole JSON",
    ):
        assert said in str(raised.value)
    assert "e.txt: a Git LFS pointer" in str(raised.value) and not (tmp_path / "cut").exists()
    for name in ("a.zip", "b.parquet", "c.safetensors", "d.json"):  # nothing at all, and the start alone
        for size in (0, 3, 20):
            lay(folder, whole | {name: cut[name][:size]})
            with pytest.raises(FetchError, match=f"{name}: not a whole"):
                fetch(request, tmp_path / "cut", copies=tmp_path / "copies")


def test_own_copies_that_have_some_of_it_are_refused_and_those_that_have_none_are_passed_by(hub: Hub, tmp_path: Path) -> None:
    hub.add("TIGER-Lab/MMEB-train", mmeb_train(), COMMIT)
    lay(tmp_path / "copies/TIGER-Lab/MMEB-train", {"images_zip/CIRR.zip": archive()})
    with pytest.raises(FetchError, match=r"some of what is asked for.*missing there: CIRR/original-\*.parquet"):
        fetch(REQUEST, tmp_path / "CIRR", hub, copies=tmp_path / "copies")
    for other in ("d" * 40, "e" * 40):  # whatever commits they are at
        cache(tmp_path / "cached", CIRR, other)
    for number, folder in enumerate(("copies", "cached"), start=1):
        record = fetch(sources.mmeb_train("A-OKVQA", revision=COMMIT), tmp_path / f"out-{folder}/A-OKVQA", hub, copies=tmp_path / folder)
        assert record["parts"][0]["commit"] == COMMIT and len(hub.asked) == 2 * number
    with pytest.raises(FetchError, match="fetch.copies: .*nowhere is not a folder"):
        fetch(REQUEST, tmp_path / "x", hub, copies=tmp_path / "nowhere")


def test_what_is_published_nowhere_comes_from_own_copies_beside_the_download(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "share-captioner_coco_lcs_sam_1246k_1107.json"
    hub.add("Lin-Chen/ShareGPT4V", {name: b"[{}]"})
    fetch(sources.crossmodal("sharegpt4v"), tmp_path / "without", hub)
    assert set(under(tmp_path / "without")) == {name, "source.json"} and "<fetch.copies>/Lin-Chen/ShareGPT4V/*.zip" in caplog.text
    folder = lay(tmp_path / "copies/Lin-Chen/ShareGPT4V", {"images.zip": archive()})
    record = fetch(sources.crossmodal("sharegpt4v"), tmp_path / "with", hub, copies=tmp_path / "copies")
    assert set(under(tmp_path / "with")) == {name, "images.zip", "source.json"}
    assert (tmp_path / "with/images.zip").samefile(folder / "images.zip") and len(record["parts"][0]["files"]) == 2


# The registry


def test_the_document_of_sources_holds_the_registry() -> None:
    text = (ROOT / "docs/sources.md").read_text(encoding="utf-8")
    assert sources.table() in text, (
        "run: python -c 'from unime.fetch import sources; print(sources.table())' and put it into docs/sources.md"
    )
    for it in (*sources.SOURCES.values(), *sources.MODELS.values()):
        assert it.repository in text and it.licence in text


def test_sizes_are_readable() -> None:
    assert [need.readable(size) for size in (12, 1200, 80_586_923, 12_900_000_000)] == ["12 bytes", "1.2 kB", "80.6 MB", "12.9 GB"]


# What is there already


def test_an_earlier_fetch_is_used_again_file_by_file(hub: Hub, tmp_path: Path) -> None:
    """Another task asked for costs that task, not the archive of all; a damaged file is fetched anew; another commit takes nothing."""
    files = {f"{task}/test-00000-of-00001.parquet": parquet() for task in ("GQA", "OVEN")} | {"images.zip": archive()}
    hub.add("TIGER-Lab/MMEB-eval", files)
    out = tmp_path / "eval"
    fetch(sources.mmeb_eval(["GQA"]), out, hub)
    hub.asked.clear()
    fetch(sources.mmeb_eval(["GQA", "OVEN"]), tmp_path / "again", hub, before=out, scratch=tmp_path / "other")
    assert {one.path for one in hub.asked} == {"OVEN/test-00000-of-00001.parquet"}
    assert (tmp_path / "again/images.zip").read_bytes() == files["images.zip"]
    damaged = bytearray(files["images.zip"])
    damaged[100] ^= 1
    (out / "images.zip").unlink()
    (out / "images.zip").write_bytes(damaged)
    hub.asked.clear()
    fetch(sources.mmeb_eval(["GQA"]), tmp_path / "mended", hub, before=out, scratch=tmp_path / "third")
    assert {one.path for one in hub.asked} == {"images.zip"} and (tmp_path / "mended/images.zip").read_bytes() == files["images.zip"]
    hub.add("TIGER-Lab/MMEB-eval", files, "b" * 40)
    hub.asked.clear()
    fetch(sources.mmeb_eval(["GQA"]), tmp_path / "newer", hub, before=tmp_path / "again", scratch=tmp_path / "fourth")
    assert {one.path for one in hub.asked} == {"GQA/test-00000-of-00001.parquet", "images.zip"}


def test_what_was_not_fetched_is_not_taken_for_it_and_not_lost(hub: Hub, tmp_path: Path) -> None:
    hub.add("TIGER-Lab/MMEB-train", CIRR, COMMIT)
    out = tmp_path / "CIRR"
    fetch(REQUEST, out, hub)
    (out / "mine.jsonl").write_text("{}")
    with pytest.raises(FetchError, match=r"CIRR: mine.jsonl was not fetched, and would be lost; move it elsewhere"):
        fetch(REQUEST, tmp_path / "new", hub, before=out, scratch=tmp_path / "other")
    own = tmp_path / "own"
    own.mkdir()
    (own / "model.safetensors").write_bytes(weights())
    with pytest.raises(FetchError, match="own: model.safetensors was not fetched"):
        fetch(REQUEST, tmp_path / "new", hub, before=own, scratch=tmp_path / "other")
    assert (out / "mine.jsonl").exists() and (own / "model.safetensors").exists() and not (tmp_path / "new").exists()


def test_of_an_adapters_repository_merged_weights_are_left_out(hub: Hub, tmp_path: Path) -> None:
    both = {"adapter_model.safetensors": weights(), "adapter_config.json": b"{}", "config.json": b"{}"}
    both |= {f"model-0000{number}-of-00002.safetensors": weights(number) for number in (1, 2)}
    hub.add("TIGER-Lab/VLM2Vec-Qwen2VL-7B", both, kind="model")
    fetch(sources.model("TIGER-Lab/VLM2Vec-Qwen2VL-7B"), tmp_path / "adapter", hub)
    assert under(tmp_path / "adapter").keys() == {"adapter_model.safetensors", "adapter_config.json", "source.json"}
    del both["adapter_model.safetensors"]
    hub.add("TIGER-Lab/VLM2Vec-Qwen2VL-7B", both | {"adapter_model.bin": b"pickle"}, kind="model")
    is_refused(sources.model("TIGER-Lab/VLM2Vec-Qwen2VL-7B"), tmp_path / "none", hub, "adapter_model.safetensors")
