"""The whole pipeline on a tiny suite, in a checkout of its own: the table, the same bytes again, kill -9 anywhere."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest
import yaml
from checkouts import ENVIRONMENT, ROOT, SLOW, bytes_of, narrow, run_once, sh, small, working_tree
from hub_server import running

from unime import artifacts, backbones
from unime import config as config_module
from unime.data.images import Decoding
from unime.data.items import Content, Items
from unime.evaluate.tasks import TASKS as MMEB

TASKS = ["NanoColor", "NanoObject-Held", "NanoAskPlace", "NanoCaption_i2t", "NanoCaption-Held_t2i", "NanoCrop"]
CAPTIONS = ["NanoScenes_i2t", "NanoScenes_t2i", "NanoCrepe_swap"]
ROWS = ["base zero-shot", "in-batch (VLM2Vec)", "hard negatives", "UniME-V2", "UniME-V2 + reranker"]

pytestmark = SLOW


def wide() -> dict:
    """The repository's configuration, seconds a stage: something of every kind of task."""
    training = {"steps": 6, "batch": 16, "micro": 8, "warmup": 1, "checkpoint": 2}
    sets = ["NanoColor", "NanoCaption_i2t", "NanoCaption_t2i", "NanoCrop"]
    values = small({"train_rows": 16, "eval_rows": 8, "candidates": 12}, training, sets, TASKS, CAPTIONS)
    values["judge"]["shard"], values["embed"]["shard"] = 4, 64
    return values


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A checkout in which `snakemake --cores all` has run to the end."""
    return run_once("wide", wide(), tmp_path_factory)


def test_one_command_makes_the_table_with_its_rows_and_columns_in_order(finished):
    table = pl.read_csv(finished / "results/mmeb_table.csv")
    assert table["model"].to_list() == ROWS and set(table["source"]) == {"this run"}
    means = ["classification", "vqa", "retrieval", "grounding", "ind", "ood", "overall"]
    assert table.columns == ["model", "source", *means, "difference", *TASKS]
    assert all(0 <= value <= 100 for name in TASKS for value in table[name])
    assert table["overall"].to_list() == pytest.approx([sum(row) / len(row) for row in table.select(TASKS).iter_rows()], abs=0.011)
    for name in ("mmeb_table.md", "report.html", "metrics.json"):
        assert (finished / "results" / name).stat().st_size > 100
    assert len(list((finished / "results/charts").glob("*.svg"))) == 4
    assert json.loads((finished / "results/metrics.json").read_text())


@pytest.mark.parametrize(
    ("stage", "out"),
    [
        ("judge NanoCaption_t2i", "results/judge/NanoCaption_t2i"),
        ("train_in_batch", "results/train/in_batch"),
        ("train_unime_v2", "results/train/unime_v2"),
        ("train_reranker", "results/train/reranker"),
        ("evaluate NanoCaption_i2t", "results/evaluate/NanoCaption_i2t"),
    ],
)
def test_kill_9_in_the_middle_then_the_same_command_gives_the_same_bytes(finished, tmp_path, stage, out):
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns("cache", ".snakemake"))
    shutil.rmtree(folder / out)
    scratch = folder / "scratch" / stage.replace(" ", "@")
    assert not scratch.exists() or not any(scratch.rglob("*")), "scratch goes when a stage is whole"
    process = subprocess.Popen(
        f"exec python -m unime {stage}", shell=True, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    give_up = time.monotonic() + 240
    while not kept(scratch) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the stage ended before it could be killed"
    assert kept(scratch) and not (folder / out).exists()
    sh(f"python -m unime {stage}", folder)
    assert bytes_of(folder / out) == bytes_of(finished / out)


def kept(scratch: Path) -> list[Path]:
    """Whole files of progress: not the lock, not a temporary name."""
    return [p for p in scratch.rglob("*") if p.is_file() and p.stat().st_size and not p.name.startswith(".") and p.suffix != ".lock"]


def published(folder: Path) -> list[dict]:
    """The run's mined negatives as UniME-V2's published rows: texts, image paths, scores."""
    rows = []
    for place in sorted((folder / "results/mine/judge").iterdir()):
        items = artifacts.read_table(folder / "results/data/train" / place.name / "items.parquet", artifacts.ITEMS)
        shown = {id: [text, member] for id, text, member in items.select("id", "text", "member").iter_rows()}
        for row in artifacts.read_table(place / "mined.parquet", artifacts.MINED).iter_rows(named=True):
            sides = dict(
                zip(("query_text", "query_image", "pos_text", "pos_image"), shown[row["query"]] + shown[row["positive"]], strict=True)
            )
            negatives = {"hard_negatives": [shown[id] for id in row["negatives"]], "hard_negatives_scores": row["scores"]}
            rows.append(sides | {"query_pos_scores": row["sigma"]} | negatives)
    return rows


def test_published_scores_take_the_place_of_the_judge_and_train_the_same_embedder(finished, tmp_path):
    """Fetched from the user's copies, imported, trained on: the same negatives and scores give the same weights, to the byte."""
    folder = tmp_path / "imported"
    shutil.copytree(finished, folder, symlinks=True)
    copies = tmp_path / "copies/TianchengGu/UniME-V2-Training-Datasets"
    copies.mkdir(parents=True)
    (copies / "train_data_Qwen25VL_7B_scores.json").write_text(json.dumps(published(folder)))
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["fetch"] |= {"copies": str(tmp_path / "copies"), "scores": {"published": "Qwen25VL_7B"}}
    values["mine"]["source"] = "published"
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    before = {row: (folder / f"results/train/{row}/adapter_model.safetensors").read_bytes() for row in ("unime_v2", "hard_negatives")}
    wanted = "results/train/unime_v2 results/train/hard_negatives results/mining_report/published results/config.json"
    made = re.findall(r"^stage (\S+)", sh(f"python -m snakemake --cores all {wanted}", folder), flags=re.M)
    assert {"fetch_scores@published", "import_scores@published", "train_unime_v2"} <= set(made)
    planned = sh("python -m snakemake -n", folder)
    assert "rule report:" in planned and not re.search(r"^rule (judge|retrieve|mine):", planned, flags=re.M)
    assert not [stage for stage in made if stage.startswith(("judge", "retrieve", "mine@"))], "nothing is judged"
    for row, weights in before.items():
        assert (folder / f"results/train/{row}/adapter_model.safetensors").read_bytes() == weights
    assert "as published" in (folder / "results/mining_report/published/mining.md").read_text()
    echo = json.loads((folder / "results/config.json").read_text())
    assert echo["config"]["mine"]["source"] == "published"


def test_the_ablations_are_made_on_request_and_start_from_the_run(finished, tmp_path):
    folder = tmp_path / "ablated"
    shutil.copytree(finished, folder, symlinks=True)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["ablations"]["embedders"] = {
        "judge": {"loss": "unime_v2", "source": "nano-published", "negatives": 8, "tau": 0.02},
        "same": {"loss": "unime_v2", "source": "judge", "negatives": 8, "tau": 0.02},
        "k-4": {"loss": "unime_v2", "source": "judge", "negatives": 4, "tau": 0.02},
    }
    values["ablations"]["embedders"] |= {"tau": {"loss": "unime_v2", "source": "judge", "negatives": 8, "tau": 0.5}}
    values["ablations"]["embedders"] |= {
        "rule": {"loss": "hard_negatives", "source": "percent"},
        "in-batch": {"loss": "in_batch", "source": "judge"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    sh("python -m snakemake --cores all results/ablations.csv", folder)
    table = pl.read_csv(folder / "results/ablations.csv")
    assert table["block"].unique(maintain_order=True).to_list() == ["components", "judge", "mining", "negatives", "tau", "other"]
    assert set(table["source"]) == {"this run"} and table.filter(pl.col("block") == "other")["row"].to_list() == ["as the run"] * 2
    run = pl.read_csv(folder / "results/mmeb_table.csv").filter(pl.col("model") == "UniME-V2")["overall"][0]
    assert set(table.filter(pl.col("block") == "other")["overall"]) == {run}, "nothing changed gives the run's own figures"
    weights = [
        (folder / f"results/ablations/train/{name}/adapter_model.safetensors").read_bytes() for name in ("same", "k-4", "tau", "judge")
    ]
    assert len(set(weights)) == 4
    assert weights[0] == (folder / "results/train/unime_v2/adapter_model.safetensors").read_bytes()
    in_batch = folder / "results/ablations/train/in-batch/adapter_model.safetensors"
    assert in_batch.read_bytes() == (folder / "results/train/in_batch/adapter_model.safetensors").read_bytes()
    assert len(list((folder / "results/mine/percent").glob("*/mined.parquet"))) == len(values["data"]["train_sets"])
    assert "Nothing to be done" in sh("snakemake -n results/ablations.csv", folder)
    stale = {line.rstrip(":") for line in sh("dvc status ablations/dvc.yaml dvc.yaml", folder).splitlines() if line[:1].strip()}
    unasked = {"settings", "ablations/dvc.yaml:judge_agreement@nano-published"}
    unasked |= {f"ablations/dvc.yaml:mine_rule@{name}" for name in values["mine"]["rules"] if name != "percent"}
    assert stale - {"Data and pipelines are up to date."} <= unasked, stale


def test_the_export_opens_in_plain_transformers_and_embeds_as_the_run_did(finished):
    """The merged folder ranks a task's candidates as the evaluation did with the adapter."""
    folder = finished / "results/export/unime_v2"
    from transformers import AutoModelForImageTextToText

    assert AutoModelForImageTextToText.from_pretrained(folder).config.model_type == "qwen2_vl"
    values = config_module.load(finished / "config.yaml")
    backbone = backbones.load(folder, models=values.models)
    data = finished / "results/data/eval/NanoCaption-Held_t2i"  # queries are texts
    task = artifacts.read_table(data / "queries.parquet", artifacts.TASKS)
    ids = sorted(set(task["query"]))
    texts = [Content(text, None) for id in ids for text in [Items.open(data, Decoding(10**6)).text(id)]]
    adapted = backbones.load(
        values.models.base if Path(values.models.base).is_absolute() else finished / values.models.base,
        adapter=finished / "results/train/unime_v2",
        models=values.models,
    )
    found, wanted = (one.embed(one.collate([one.item_prompt(text) for text in texts])).detach() for one in (backbone, adapted))
    assert (found - wanted).abs().max() < 1e-5 and found.std(dim=0).max() > 1e-3


def test_the_same_data_and_weights_fetched_from_a_hub_give_the_same_table(tmp_path, tmp_path_factory, monkeypatch):
    """A preset's way, from an empty checkout: sets, tasks, captions and weights come from a server that speaks the Hub's protocol."""
    finished = run_once("narrow", narrow(), tmp_path_factory)
    raw, values = finished / "data/nano", yaml.safe_load((finished / "config.yaml").read_text())
    sets = values["data"]["train_sets"]
    train = {f"{name}/original-00000-of-00001.parquet": raw / "train" / name / "original-00000-of-00001.parquet" for name in sets}
    train |= {f"images_zip/{name}.zip": raw / "train" / name / "images.zip" for name in sets}
    own = values["evaluate"]["tasks"]
    names = dict(zip(own, (name for name, task in MMEB.items() if task.suite == "mmeb"), strict=False))  # what is fetched is MMEB's
    tasks = {f"{new}/test-00000-of-00001.parquet": raw / "eval" / name / "test-00000-of-00001.parquet" for name, new in names.items()}
    scenes = {
        f"data/test-0000{number}.parquet": file for number, file in enumerate(sorted((raw / "crossmodal/NanoScenes").glob("*.parquet")))
    }
    model = {file.name: file for file in sorted((ROOT / "assets/nano-mllm").iterdir())}
    values["data"]["root"] = "data/fetched"
    values["fetch"] |= {"train_sets": sets, "eval": ["MMEB-eval"], "crossmodal": ["Flickr30K"]}
    values["fetch"]["models"] = {"mine": {"repo": "owner/nano", "revision": "main"}}
    values["fetch"]["revisions"]["MMEB-train"] = "main"
    values["models"] |= dict.fromkeys(("base", "judge", "reranker"), "models/mine")
    values["embed"]["model"], values["export"] = "models/mine", {"unime_v2": "models/mine"}
    values["evaluate"]["tasks"], values["evaluate"]["crossmodal"] = list(names.values()), ["Flickr30K_i2t"]
    values["ablations"] = {"embedders": {}}
    folder = working_tree(tmp_path / "fetched", values)
    with running() as hub:
        for name, files, more in (
            ("TIGER-Lab/MMEB-train", train, {}),
            ("TIGER-Lab/MMEB-eval", tasks | {"images.zip": raw / "eval/images.zip"}, {}),
            ("royokong/flickr30k_test", scenes, {}),
            ("owner/nano", model, {"kind": "model"}),
        ):
            hub.add(name, {path: file.read_bytes() for path, file in files.items()}, **more)
        for name in ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setitem(ENVIRONMENT, name, "")
        monkeypatch.setitem(ENVIRONMENT, "HF_ENDPOINT", hub.url)
        monkeypatch.setitem(ENVIRONMENT, "HF_HOME", str(tmp_path / "home"))
        sh("git init -q && python -m snakemake --cores all", folder)
        fetched = len(hub.asked)
        assert "Nothing to be done" in sh("python -m snakemake", folder) and len(hub.asked) == fetched
        commits = {repository.commit for repository in hub.repositories.values()}
    tables = [pl.read_csv(place / "results/mmeb_table.csv").filter(pl.col("source") == "this run") for place in (finished, folder)]
    rows = [table.select("model", "overall", *columns).rows() for table, columns in zip(tables, (own, names.values()), strict=True)]
    assert len(rows[0]) == len(ROWS) and rows[0] == rows[1]
    captions = [pl.read_csv(place / "results/crossmodal_table.csv") for place in (finished, folder)]
    found = captions[1].filter(pl.col("source") == "this run")["Flickr30K_i2t"]
    assert found.to_list() == captions[0]["NanoScenes_i2t"].to_list()
    echo = json.dumps(json.loads((folder / "results/config.json").read_text())["sources"])
    assert all(commit in echo for commit in commits), "every revision is named"
