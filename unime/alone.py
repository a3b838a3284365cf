"""One process at a time makes a stage."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from unime.job import Part, StageError

DYING = 60.0
"""Seconds that a stage may take to end after the process that started it was killed: it finishes the operation that it is at."""


def patience(part: Part | None) -> float:
    """Seconds to wait for another process that makes the same stage.

    DVC keeps jobs of a whole stage apart, so that one which meets another has met what a killed DVC left behind: it is about to end
    (launch.end_with_dvc).  Of parts DVC knows nothing: there the second one waits for the first, however long it takes.
    """
    if part is not None:
        return math.inf
    return DYING if "DVC_STAGE" in os.environ else 0.0


@contextmanager
def alone(name: str, seconds: float) -> Iterator[None]:
    """Hold the stage's lock.  A POSIX record lock: it dies with its process, however that ends, and forked workers do not inherit it."""
    path = Path("scratch") / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + seconds
    with path.open("a+") as lock:
        while not _locked(lock):
            if time.monotonic() >= limit:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise StageError(f"{name} is being made by {owner}; wait for it, or end that process, and run again")
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
