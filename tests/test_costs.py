"""A stage's cost is that of all runs whose work is in its result."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkouts import ROOT

from unime import costs

RUN = """
import sys, time
from unime import costs
costs.BEAT = 0.05
attempt = costs.Attempt("judge@S", sys.argv[1], "judge@S")
print("begun", flush=True)
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    pass
print(attempt.told())
"""


def start(folder: Path, digest: str, seconds: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, digest, str(seconds)]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def killed(folder: Path, digest: str, seconds: float) -> None:
    process = start(folder, digest, 60)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs/costs/judge.S.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_a_killed_run_counts_with_what_it_spent(tmp_path: Path) -> None:
    killed(tmp_path, "one", 1.0)
    said, _ = start(tmp_path, "one", 0.5).communicate(timeout=60)
    first, second, both = table(tmp_path)
    assert (first["ended"], second["ended"]) == ("False", "True")
    assert 0.8 <= float(first["seconds"]) and 0.4 <= float(second["seconds"]) and float(first["cpu_seconds"]) > 0
    assert float(both["seconds"]) == pytest.approx(float(first["seconds"]) + float(second["seconds"]), abs=0.06)
    assert said == f"{both['seconds']} s in 2 runs\n"
    assert not (tmp_path / "logs/costs/runs/judge@S").exists()


def test_a_run_for_another_result_does_not_count(tmp_path: Path) -> None:
    killed(tmp_path, "other inputs", 0.3)
    said, _ = start(tmp_path, "one", 0.2).communicate(timeout=60)
    assert len(table(tmp_path)) == 2 and "runs" not in said


def test_parts_count_with_the_run_that_puts_them_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = ["judge@S.1-of-2", "judge@S.2-of-2", "judge@S"]
    for number, run in enumerate(runs):
        monkeypatch.setattr(costs.os, "getpid", lambda number=number: number)  # each is a process of its own
        attempt = costs.Attempt("judge@S", "one", run)
        attempt.end()
    assert attempt.told().endswith(" in 3 runs")
    shown = [row["run"] for row in table(tmp_path)]
    assert sorted(shown[:3]) == sorted(runs) and shown[3] == "3 runs"
