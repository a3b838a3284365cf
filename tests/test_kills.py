"""Killed at any moment, in any of its processes, the run that goes on ends with the files of one that was never touched."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from checkouts import ROOT, SLOW, Checkout, new_checkout, run_once, small

pytestmark = SLOW

KILLS = int(os.environ.get("UNIME_TEST_KILLS", "4"))
"""Kills of one run: each kind of victim once.  More of them come at further moments, and take about 20 seconds each."""

VICTIMS = ("everything", "snakemake", "job", "worker")
CARDS = {"export@unime_v2", "export@reranker"}  # they name the commit, which is another one in each checkout
OWN = "models/own"


def tiny(judge: str) -> dict:
    """The repository's configuration, seconds a stage, with this judge."""
    training = {"steps": 4, "batch": 4, "micro": 4, "warmup": 1, "checkpoint": 1}
    suite = {"train_rows": 24, "eval_rows": 4, "candidates": 6}
    values = small(suite, training, ["NanoColor", "NanoMeme"], ["NanoColor"], ["NanoScenes_i2t"])
    values["models"]["judge"] = judge
    values["judge"]["shard"], values["embed"]["shard"] = 2, 8
    return values


def made_by(checkout: Checkout) -> dict[str, dict]:
    """What dvc.lock records of every stage: the digests of all that it read and made."""
    return {stage: entry for stage, entry in checkout.lock().items() if stage not in CARDS}


def new(folder: Path, judge: str) -> Checkout:
    """A checkout in which nothing has run; a judge of its own is a copy of the nano MLLM."""
    if judge == OWN:
        shutil.copytree(ROOT / "assets/nano-mllm", folder / OWN)
    return new_checkout(folder, tiny(judge))


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The command's process and all that it has started, outermost first."""
    try:
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(process: subprocess.Popen[str], victim: str) -> list[str]:
    """SIGKILL to the victim among a run's processes, or to all where it is not there yet.  Gives the killed command lines."""
    found = family(process)
    marks = {"snakemake": "-m snakemake", "job": "workflow/repro.py", "worker": "-m unime"}
    chosen = [one for one in found if victim in marks and marks[victim] in line_of(one)]
    if victim == "snakemake":
        chosen = chosen[:1]  # its jobs go on without it
    chosen = chosen or found
    lines = [line_of(one) for one in chosen]
    for one in chosen:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    return lines


def ended(process: subprocess.Popen[str]) -> int:
    """Wait for what is left of a killed run; its exit code."""
    process.communicate(timeout=300)
    return process.returncode


def test_a_run_that_is_killed_again_and_again_ends_with_the_files_of_one_that_was_not(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = Checkout(run_once("a killed one", tiny("models/nano-mllm"), tmp_path_factory))
    run = new(tmp_path / "killed", "models/nano-mllm")
    moments = random.Random(18)
    killed: list[str] = []
    for number in range(KILLS):
        process = run.start("exec python -m snakemake --cores 2")
        time.sleep(moments.uniform(2.0, 10.0))
        if process.poll() is None:
            killed += kill(process, VICTIMS[number % len(VICTIMS)])
        ended(process)
    run.sh("python -m snakemake --cores 2")
    assert len(killed) >= KILLS // 2, "most kills met a run"
    assert made_by(run) == made_by(whole)
    run.assert_clean()


@pytest.mark.parametrize("victim", ["everything", "worker"])
def test_a_judge_whose_weights_change_between_a_kill_and_the_next_run_judges_all_again(tmp_path: Path, victim: str) -> None:
    run = new(tmp_path / "killed", OWN)
    weights = run.root / OWN / "model.safetensors"
    process = run.start("exec python -m snakemake --cores 1 results/judge/NanoColor")
    run.until("scratch/judge@NanoColor/*/judge-000002-of-*", process)
    kill(process, victim)
    ended(process)
    assert not (run.root / "results/judge/NanoColor").exists(), "it was killed before its end"
    size = weights.stat().st_size
    with weights.open("r+b") as file:  # in the middle of a large tensor, the size as it was
        file.seek(size // 2)
        file.write(bytes(4096))
    run.sh("python -m snakemake --cores 1 results/judge/NanoColor")

    other = new(tmp_path / "whole", OWN)
    shutil.copy(weights, other.root / OWN)
    other.sh("python -m snakemake --cores 1 results/judge/NanoColor")
    assert run.lock() == other.lock()
