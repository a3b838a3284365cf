"""A hundred wrong configurations: each is refused with the key (or the line) that is wrong, by every way in, before anything is made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from checkouts import ENVIRONMENT, ROOT, new_checkout

from unime import config
from unime.__main__ import main

GOOD = (ROOT / "config.yaml").read_text(encoding="utf-8")


class Wrong(NamedTuple):
    """A configuration file that is to be refused, and what the message must have in it."""

    name: str
    make: Callable[[Path], object]
    said: str


def value(key: str, wrong: object, said: str = "") -> Wrong:
    """One value of the repository's configuration changed; the message names its key."""

    def make(path: Path) -> None:
        values = yaml.safe_load(GOOD)
        *above, last = key.split(".")
        section = values
        for part in above:
            section = section[part]
        section[last] = wrong
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    shown = str(wrong)
    return Wrong(f"{key} {shown[-30:]}", make, said or key)


def without(key: str, said: str = "") -> Wrong:
    def make(path: Path) -> None:
        values = yaml.safe_load(GOOD)
        *above, last = key.split(".")
        section = values
        for part in above:
            section = section[part]
        del section[last]
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    return Wrong(f"without {key}", make, said or key)


def written(name: str, old: str, new: str, said: str) -> Wrong:
    """A piece of the repository's configuration written in another way."""
    assert old in GOOD, old
    return Wrong(name, lambda path: path.write_text(GOOD.replace(old, new, 1), encoding="utf-8"), said)


def content(name: str, data: bytes, said: str) -> Wrong:
    return Wrong(name, lambda path: path.write_bytes(data), said)


def aliases(levels: int) -> str:
    """A list that is twice as long at each level, behind aliases."""
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [*a{level - 1}, *a{level - 1}]")
    return "\n".join(lines) + "\n"


INFINITE, NEITHER = float("inf"), float("nan")

FILES = [
    content("nothing", b"", "is empty"),
    content("comments only", b"# seed: 42\n", "is empty"),
    content("a list", b"- seed\n", "a mapping of sections is needed"),
    content("a number", b"42\n", "a mapping of sections is needed"),
    content("UTF-16", GOOD.encode("utf-16"), "is not UTF-8"),
    content("Latin-1", GOOD.replace("seed: 42", "seed: 42 # größer").encode("latin-1"), "is not UTF-8"),
    content("a NUL byte", GOOD.encode() + b"\0\n", "is not YAML"),
    content("an open bracket", GOOD.encode() + b"more: [1, 2\n", "is not YAML"),
    content("a tab for indentation", b"nano:\n\tsuite: 1\n", "is not YAML"),
    content("two documents", GOOD.encode() + b"---\nseed: 1\n", "is not YAML"),
    content("a Python object", GOOD.encode() + b"more: !!python/object/apply:os.system [true]\n", "is not YAML"),
    content("an alias of nothing", GOOD.encode() + b"more: *nothing\n", "is not YAML"),
    content("a date that is none", GOOD.replace("seed: 42", "seed: 2020-13-45").encode(), "quote it if it is text"),
    content("3,000 lists in each other", b"seed: " + b"[" * 3000 + b"]" * 3000 + b"\n", "nested"),
    content("30 mappings in each other", b"".join(b" " * level + b"a:\n" for level in range(30)), "20 are allowed"),
    content("aliases that double 40 times", aliases(40).encode(), "values, aliases written out"),
    content("a list that holds itself", b"seed: &a [*a]\n", "holds itself"),
    content("two megabytes", b"# " + b"x" * (2 << 20), "bytes"),
    Wrong("a folder", lambda path: path.mkdir(), "is a folder"),
    Wrong("no file", lambda path: None, "no such file"),
    written("a key twice", "seed: 42 ", "seed: 41\nseed: 42 ", "the key 'seed' is given twice, first in line"),
    written("a section twice", "mine:\n", "mine: {}\nmine:\n", "the key 'mine' is given twice"),
    written(
        "a nested key twice",
        "  dtype: float32               # float32 |",
        "  dtype: float16\n  dtype: float32 # |",
        "'dtype' is given twice",
    ),
]

NUMBERS = [
    value("seed", 10**39),
    value("seed", -1),
    value("seed", "42"),
    value("seed", 4.0),
    value("seed", True),
    value("seed", None),
    value("nano.suite.train_rows", 0),
    value("nano.suite.candidates", 1),
    value("nano.suite.wrong_labels", 1.0),
    value("nano.suite.wrong_labels", NEITHER),
    value("nano.pretrain.lr", INFINITE),
    value("nano.pretrain.lr", 1e300),
    value("data.cap", 2**63),
    value("data.max_pixels", 0),
    value("models.max_length", 0),
    value("models.max_length", 1e4),
    value("embed.image_size", -28),
    value("embed.image_size", 10**9),
    value("retrieve.k", 0),
    value("retrieve.delta", 1.5),
    value("retrieve.delta", NEITHER),
    value("judge.image_size", 10**6),
    value("judge.vllm.gpu_memory_utilization", 0.0),
    value("judge.vllm.cache_gib", INFINITE),
    value("judge.openai.top_logprobs", 21),
    value("judge.openai.timeout", INFINITE),
    value("judge.openai.rate", NEITHER),
    value("mine.beta", -0.1),
    value("mine.beta", INFINITE),
    value("mine.interval", 51),
    value("mine.negatives", 51),
    value("train.lora.rank", 0),
    value("train.lora.dropout", 1.0),
    value("train.in_batch.tau", INFINITE),
    value("train.in_batch.tau", 1e-300),
    value("train.in_batch.tau", 0.0),
    value("train.in_batch.lr", "1e-4"),
    value("train.in_batch.batch", 1),
    value("train.unime_v2.lr", INFINITE),
    value("train.unime_v2.tau", NEITHER),
    value("train.unime_v2.smoothing", -1e-8),
    value("train.unime_v2.negatives", 11),
    value("train.hard_negatives.warmup", 360, "train.hard_negatives"),
    value("train.reranker.list_negatives", 11),
    value("train.reranker.max_tokens", 3),
    value("train.nodes", 10**6),
    value("evaluate.rerank", 1),
    value("evaluate.rerank", 10**6),
    value("jobs.longest", 10, "minutes"),
]

NAMES = [
    value("models.judge", ""),
    value("models.base", "shared/../models/nano-mllm", "models.base: 'shared/../models/nano-mllm' has a part '..'"),
    value("models.base", "../../.."),
    value("models.base", "models//nano-mllm"),
    value("models.reranker", "models/nano-mllm/"),
    value("models.reranker", "./models/nano-mllm"),
    value("models.judge", "models/$(touch pwned)"),
    value("models.judge", "models/{set}"),
    value("models.judge", "models/" + "x" * 300),
    value("embed.model", "~/models"),
    value("embed.adapter", "results/train/../train/in_batch"),
    value("data.root", ""),
    value("data.root", "data/nano/"),
    value("data.root", "results"),
    value("data.root", "..", "data.root: '..' has a part '..'"),
    value("data.root", "data/a\nb", "a control character would break the lines"),
    value("data.root", "s3://bucket/data"),
    value("data.root", "s3:data", "which DVC reads as the address of a server"),
    value("data.root", "data/*", "takes it for a pattern"),
    value("models.base", "$HOME/models", "write the path itself"),
    value("models.base", "models/weights.dvc", "one of DVC's own files"),
    value("models.base", " models/nano-mllm", "has a blank before or after it"),
    value("models.base", "models/" + "क" * 86, "names of up to 255 bytes"),
    value("models.base", "/models" * 300, "paths of up to 2,048 bytes"),
    value("fetch.copies", "a/../copies"),
    value("fetch.models", {"x": {"repo": "a/../b", "revision": "main"}}),
    value("fetch.models", {"x": {"repo": "a/b", "revision": "--upload-pack=touch"}}),
    value("fetch.train_sets", ["../../etc"]),
    value("data.train_sets", []),
    value("data.train_sets", ["/etc"]),
    value("data.train_sets", ["NanoColor", "NanoColor"]),
    value("data.train_sets", ["x" * 300]),
    value("data.train_sets", "NanoColor"),
    value("evaluate.tasks", ["NanoObject", "x; touch pwned"]),
    value("evaluate.tasks", ["$(touch pwned)"]),
    value("evaluate.tasks", [""]),
    value("evaluate.tasks", ["../x"]),
    value("evaluate.crossmodal", ["NanoScenes"]),
    value("judge.models", {"a.b": {"model": "models/nano-mllm", "mode": "exact"}}),
    value("judge.means", {"both": ["judge"]}),
    value("judge.openai.url", "127.0.0.1:8000/v1"),
    value("mine.source", "jugde"),
    value("mine.judgements", "/results/judge"),
    value("mine.rules", {"judge": {"rule": "random"}}),
    value("ablations.embedders", {"x": {"source": "judge"}}),
    value("ablations.embedders", {"x": {"source": "judge", "loss": "unime_v2", "tau": INFINITE}}),
    value("export", {"unime_v2": "models/other"}),
    value("models.attention", "flash_attention_2", "models"),
    value("judge.backend", "tranformers", "nearest: 'transformers'"),
    written("an unknown section", "jobs:", "job: {}\njobs:", "job: unknown key (nearest: 'jobs')"),
    written("an unknown key", "  beta: 0.01 ", "  betta: 0.01\n  beta: 0.01 ", "mine.betta: unknown key (nearest: 'beta')"),
    without("seed"),
    without("models.judge"),
    without("train.reranker.lora.rank"),
    without("fetch.revisions.COCO", "fetch: revisions lacks 'COCO'"),
    value("mine", [], "mine"),
    value("train.in_batch", None),
]

ALL = [*FILES, *NUMBERS, *NAMES]
EACH = pytest.mark.parametrize("wrong", ALL, ids=[wrong.name for wrong in ALL])
EVERY = int(os.environ.get("UNIME_TEST_EVERY", "8"))
SOME = pytest.mark.parametrize("wrong", ALL[::EVERY], ids=[wrong.name for wrong in ALL[::EVERY]])
"""Those that are tried with the tools themselves, which take seconds to start: every eighth, or as UNIME_TEST_EVERY says."""


def test_there_are_a_hundred_of_them_and_the_repository_own_is_right() -> None:
    assert len({wrong.name for wrong in ALL}) == len(ALL) >= 100
    config.parse(yaml.safe_load(GOOD))


@EACH
def test_the_command_line_refuses_it(
    wrong: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong.make(tmp_path / "config.yaml")
    before = sorted(os.listdir(tmp_path))
    assert main(["suite"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: config.yaml: ") and wrong.said in said.err, said.err
    assert len(said.err) < 3000 and "Traceback" not in said.err and not said.out
    assert sorted(os.listdir(tmp_path)) == before, "nothing is made"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git checkout of this working tree, without artifacts."""
    return new_checkout(tmp_path_factory.mktemp("wrong") / "checkout", yaml.safe_load(GOOD)).root


def tried(command: str, wrong: Wrong, checkout: Path) -> subprocess.CompletedProcess[str]:
    """What a command says in the checkout with this configuration; nothing is made there."""
    place = checkout / "config.yaml"
    try:
        place.unlink()
        wrong.make(place)
        done = subprocess.run(
            command, shell=True, cwd=checkout, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
    finally:
        if place.is_dir():
            place.rmdir()
        place.write_text(GOOD, encoding="utf-8")
    assert not (checkout / "data").exists() and not (checkout / "results").exists() and not (checkout / "pwned").exists()
    return done


@SOME
@pytest.mark.slow
def test_snakemake_refuses_it(wrong: Wrong, checkout: Path) -> None:
    done = tried("python -m snakemake -n", wrong, checkout)
    assert done.returncode != 0 and wrong.said in done.stdout, done.stdout
    assert "Traceback" not in done.stdout


@SOME
@pytest.mark.slow
def test_dvc_runs_nothing_with_it(wrong: Wrong, checkout: Path) -> None:
    """DVC reads the file by itself and names what it cannot read; of values it knows nothing, and the first stage refuses them."""
    if wrong.name.startswith("aliases"):
        pytest.skip("DVC writes aliases out, and is at it until memory ends")
    done = tried("python -m dvc repro report", wrong, checkout)
    assert done.returncode != 0, done.stdout
