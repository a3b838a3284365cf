"""What the benchmarks share: ways that take turns, work in a process of its own, and the section that each writes.

A benchmark is a script with `run(rounds) -> Section`, and perhaps parts that run as children.  `python benchmarks/<name>.py [rounds]`
prints its section; `python benchmarks` runs all of them and puts their sections into RESULTS.md.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a checkout without installation


@dataclass(frozen=True)
class Section:
    """A heading, what was compared and checked, and a table.  `packages`: those whose versions matter."""

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    packages: Sequence[str] = ()

    def markdown(self, command: str) -> str:
        versions = "".join(f", {name} {version(name)}" for name in self.packages)
        lines = [f"## {self.title}", "", f"{datetime.now(UTC):%Y-%m-%d}, {machine()}{versions}. `{command}`: {self.text}", ""]
        lines += ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.rows)]) + "\n"


def machine() -> str:
    """Cores and their name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {name}"


def turns(ways: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every way in each of `rounds`, one after the other in each, after `warmup` rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warmup + rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if number >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(base: Sequence[float], other: Sequence[float]) -> str:
    """base / other round by round: median (least to most)."""
    found = [one / two for one, two in zip(base, other, strict=True)]
    shown = [f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in (statistics.median(found), min(found), max(found))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def peak() -> float:
    """The most memory that this process has held, in GiB.

    Linux's own count of the process; getrusage's also has what the process that started it held at that moment.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def child(file: str, part: str, *arguments: Any) -> dict[str, Any]:
    """What a part gives that runs in a process of its own, whose peak of memory is its own too."""
    command = [sys.executable, file, "--part", part, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main(run: Callable[..., Section], rounds: int, **parts: Callable[..., dict[str, Any]]) -> None:
    """The script's command line: `[rounds]`, or `--part NAME ARGUMENTS` in a child."""
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(parts[sys.argv[2]](*map(json.loads, sys.argv[3:]))))
        return
    given = int(sys.argv[1]) if len(sys.argv) > 1 else rounds
    print(run(given).markdown(f"python benchmarks/{Path(sys.argv[0]).name} {given}"))
