"""Ends what a killed process leaves: its children, and theirs, do not outlive it by more than a second.

vLLM's engine runs in processes of its own.  They notice when the one that started them ends, but not when it is killed (kill -9, out of
memory): they would stay, and so would their share of the GPU.  A guard is one more process, which remembers whom it has seen below the
one that started it, and ends them when its standard input closes, as it does in every kind of death.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys

LOOK = 0.5
"""Seconds between two looks at who is there."""


def start() -> subprocess.Popen[bytes]:
    """A guard over this process, in a session of its own, so that Ctrl-C does not end it first; keep what is returned."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, start_new_session=True)


def main() -> None:
    import psutil

    guard = psutil.Process()
    guarded, seen = guard.parent(), set()
    while guarded and not select.select([sys.stdin], [], [], LOOK)[0]:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen |= set(guarded.children(recursive=True)) - {guard}
    for process in seen:  # psutil knows them by number and time of birth: a number that another process has by now is left alone
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main()
