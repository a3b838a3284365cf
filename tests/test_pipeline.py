"""The whole pipeline on a tiny suite, in a checkout of its own: the table, the same bytes again, kill -9 anywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest
from checkouts import ENVIRONMENT, SLOW, sh, small, working_tree

TASKS = ["NanoColor", "NanoObject-Held", "NanoAskPlace", "NanoCaption_i2t", "NanoCaption-Held_t2i", "NanoCrop"]
ROWS = ["base zero-shot", "in-batch (VLM2Vec)", "hard negatives", "UniME-V2", "UniME-V2 + reranker"]

pytestmark = SLOW


def checkout(folder: Path) -> Path:
    """This working tree in `folder`, seconds a stage."""
    training = {"steps": 6, "batch": 16, "micro": 8, "warmup": 1, "checkpoint": 2}
    sets = ["NanoColor", "NanoCaption_i2t", "NanoCaption_t2i", "NanoCrop"]
    values = small({"train_rows": 16, "eval_rows": 8, "candidates": 12}, training, sets, TASKS)
    values["judge"]["shard"], values["embed"]["shard"] = 4, 64
    return working_tree(folder, values)


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in (".snakemake_timestamp", ".gitignore")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A checkout in which `snakemake --cores all` has run to the end."""
    folder = checkout(tmp_path_factory.mktemp("pipeline") / "one")
    sh("git init -q && python -m snakemake --cores all", folder)
    return folder


def test_one_command_makes_the_table_with_its_rows_and_columns_in_order(finished):
    table = pl.read_csv(finished / "results/mmeb_table.csv")
    assert table["model"].to_list() == ROWS and set(table["source"]) == {"this run"}
    means = ["classification", "vqa", "retrieval", "grounding", "ind", "ood", "overall"]
    assert table.columns == ["model", "source", *means, *TASKS]
    assert all(0 <= value <= 100 for name in TASKS for value in table[name])
    assert table["overall"].to_list() == pytest.approx([sum(row) / len(row) for row in table.select(TASKS).iter_rows()], abs=0.011)
    for name in ("mmeb_table.md", "report.html", "metrics.json"):
        assert (finished / "results" / name).stat().st_size > 100
    assert len(list((finished / "results/charts").glob("*.svg"))) == 4
    assert json.loads((finished / "results/metrics.json").read_text())


def test_two_clean_runs_give_the_same_bytes(finished, tmp_path):
    other = checkout(tmp_path / "two")
    sh("git init -q && python -m snakemake --cores all", other)
    for name in ("results/mine", "results/judge", "results/train", "results/evaluate"):
        assert bytes_of(finished / name) == bytes_of(other / name), name
    for name in ("mmeb_table.csv", "metrics.json", "report.html"):
        assert (finished / "results" / name).read_bytes() == (other / "results" / name).read_bytes(), name


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
