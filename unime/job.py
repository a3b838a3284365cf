"""What a room is told about the run it is part of: which item, how many threads, where progress may be kept, where to log."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class StageError(RuntimeError):
    """A run that cannot begin or must not count; the message names the reason and the remedy."""


class Part(NamedTuple):
    """One of several runs that share a stage's shards: `number` (from 1) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Of "2-of-8".  Raises ValueError for anything else."""
        found = re.fullmatch(r"([1-9]\d*)-of-([1-9]\d*)", text)
        if not found or int(found[1]) > int(found[2]):
            raise ValueError(f"{text!r} is no part; write e.g. 2-of-8, from 1-of-8 to 8-of-8")
        return cls(int(found[1]), int(found[2]))


class PartMade(Exception):
    """A run of one part has made its shards: there is no whole to put together yet.  Its text says how many."""


QUIET = 30.0
"""Seconds between two progress lines in the log."""


@dataclass(frozen=True)
class Job:
    """One run of one stage.

    `item` is the task of a stage that runs once per task, else None.  `scratch` is a folder of this run's own, keyed by its inputs,
    code and parameters: finished parts that lie there are valid for a rerun after a kill, and go when the stage is whole.  With a
    `part` the run makes only its share of the stage's shards, and leaves them there.
    `parallel` is the config's train.parallel, for a run that several processes share; `silent` ones of them show no progress.
    """

    item: str | None
    threads: int
    scratch: Path
    part: Part | None = None
    parallel: str = "ddp"
    silent: bool = False
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unime"))

    def track(self, iterable: Iterable[T], total: int | None = None, label: str = "") -> Iterator[T]:
        """Pass the items on: a progress bar on a terminal, elsewhere a line in the log now and then."""
        if self.silent:
            yield from iterable
            return
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import track

            yield from track(iterable, escape(label), total=total, console=Console(stderr=True), transient=True)
            return
        start = last = time.monotonic()
        for done, item in enumerate(iterable, start=1):
            yield item
            if (now := time.monotonic()) - last >= QUIET:
                last = now
                self.log.info("%s: %d of %s, %.0f s", label, done, "?" if total is None else total, now - start)
