"""What a stage has cost over all runs that it took: one that was killed counts with what it spent, and the next one goes on from there.

Snakemake's files in logs/benchmarks hold the last run of a job alone.  Here each run of a stage notes its time under the digest that names
its scratch folder, which stays the same as long as inputs, code and parameters do: so exactly those runs are added up whose work is in the
result.  When the stage is made, the runs and their sum are written to logs/costs/<stage>.tsv.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import NamedTuple

BEAT = 5.0
"""Seconds between two notes: as much of a killed run may be lost."""


class Spent(NamedTuple):
    """One run: when it began, where, its seconds by the clock and on CPUs (of its own process and of those that it waited for)."""

    begun: str
    host: str
    run: str
    seconds: float
    cpu_seconds: float
    ended: bool


class Attempt:
    """This run's note, renewed every BEAT seconds until `end`; `run` is the stage with its part, if it is one of several."""

    def __init__(self, stage: str, digest: str, run: str) -> None:
        self._folder = Path("logs/costs/runs") / stage / digest
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run, self._start = run, time.monotonic()
        self._begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._file = self._folder / f"{time.time_ns()}.{os.uname().nodename}.{os.getpid()}.json"
        self._over = threading.Event()
        self._note(ended=False)
        self._thread = threading.Thread(target=self._beat, daemon=True)  # it holds no lock that a forked child could miss
        self._thread.start()

    def end(self) -> None:
        """Note the run's end, whether it went well or not."""
        self._over.set()
        self._thread.join()
        if self._folder.exists():
            self._note(ended=True)

    def told(self) -> str:
        """`41.2 s`, or with several runs their sum; a line each and the sum go to the stage's table, and the notes are removed."""
        self.end()
        runs = [Spent(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(self._folder.glob("*.json"))]
        seconds, cpu_seconds = sum(one.seconds for one in runs), sum(one.cpu_seconds for one in runs)
        lines = ["\t".join(Spent._fields)]
        lines += ["\t".join(map(str, one)) for one in runs]
        lines.append(f"all\t\t{len(runs)} runs\t{seconds:.1f}\t{cpu_seconds:.1f}\t")
        table = Path("logs/costs") / f"{self._folder.parent.name.replace('@', '.')}.tsv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.rmtree(self._folder.parent)
        return f"{seconds:.1f} s" if len(runs) == 1 else f"{seconds:.1f} s in {len(runs)} runs"

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._note(ended=False)

    def _note(self, ended: bool) -> None:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu_seconds = sum(one.ru_utime + one.ru_stime for one in used)
        seconds = time.monotonic() - self._start
        spent = Spent(self._begun, os.uname().nodename, self._run, round(seconds, 1), round(cpu_seconds, 1), ended)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(spent._asdict()), encoding="utf-8")
        os.replace(temporary, self._file)
