"""What a room is told about the run it is part of: which item, how many threads, where progress may be kept, where to log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

QUIET = 30.0
"""Seconds between two progress lines in the log."""


@dataclass(frozen=True)
class Job:
    """One run of one stage.

    `item` is the task of a stage that runs once per task, else None.  `scratch` is a folder of this run's own, keyed by its inputs,
    code and parameters: finished parts that lie there are valid for a rerun after a kill, and go when the stage is whole.
    """

    item: str | None
    threads: int
    scratch: Path
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unime"))

    def track(self, iterable: Iterable[T], total: int | None = None, label: str = "") -> Iterator[T]:
        """Pass the items on: a progress bar on a terminal, elsewhere a line in the log now and then."""
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            yield from track(iterable, label, total=total, console=Console(stderr=True), transient=True)
            return
        start = last = time.monotonic()
        for done, item in enumerate(iterable, start=1):
            yield item
            if (now := time.monotonic()) - last >= QUIET:
                last = now
                self.log.info("%s: %d of %s, %.0f s", label, done, "?" if total is None else total, now - start)
