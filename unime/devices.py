"""Which GPUs of a machine a run takes, where nobody else has dealt them out.

SLURM gives a job its GPUs (CUDA_VISIBLE_DEVICES).  On one box Snakemake counts them (`--resources gpu=4`) but does not say which: there
the first that are free are taken, each by a lock that ends with the process that holds it, whatever ends it.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

WAIT = 1.0
"""Seconds between two looks for a free GPU."""

_held: list[IO[str]] = []


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return re.findall(r"^GPU (\d+):", listed, flags=re.M)


def claim(count: int, folder: Path | None = None) -> list[str]:
    """Take `count` GPUs of those visible and show this process no others; waits for free ones.

    Does nothing where no more than `count` are visible: they are this run's, or there are none.
    """
    here = visible()
    if count < 1 or len(here) <= count:
        return here
    folder = folder or Path(tempfile.gettempdir()) / f"unime-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        taken = []
        for name in here:
            lock = (folder / re.sub(r"\W", "_", name)).open("a")
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            taken.append((name, lock))
            if len(taken) == count:
                _held.extend(lock for _, lock in taken)
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(name for name, _ in taken)
                return [name for name, _ in taken]
        for _, lock in taken:  # too few: give them back, so that two that wait do not hold one each
            lock.close()
        time.sleep(WAIT)
