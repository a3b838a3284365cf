"""A stage ends with the DVC that started it, whichever shell DVC starts it with, and also where DVC has ended before the stage looks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from checkouts import ENVIRONMENT, ROOT, Checkout, new_checkout

FORKS = "trap 'true' EXIT\n"
"""With a trap set, bash waits for its last command instead of being replaced by it."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose first stage takes minutes."""
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["nano"]["suite"]["train_rows"] = 100_000
    made = new_checkout(tmp_path_factory.mktemp("ends") / "checkout", values)
    (made.root / "forks.sh").write_text(FORKS)
    return made


def stages(root: Path) -> list[psutil.Process]:
    """The processes that make a stage of this checkout."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(root) and process.cmdline()[1:3] == ["-m", "unime"]:
                found.append(process)
    return found


def until(holds: Callable[[], object], seconds: float) -> bool:
    """Whether something holds within so many seconds."""
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


COMMANDS = {"dvc": "-m dvc repro suite", "a job": "workflow/repro.py suite"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_stage_ends_with_dvc_whose_shell_does_not_replace_itself(checkout: Checkout, shell: str, command: str) -> None:
    where = shutil.which(shell)
    if where is None:
        pytest.skip(f"no {shell} here")
    environment = {**ENVIRONMENT, "SHELL": where, "BASH_ENV": str(checkout.root / "forks.sh")}
    dvc = subprocess.Popen([sys.executable, *COMMANDS[command].split()], cwd=checkout.root, env=environment, stdout=subprocess.DEVNULL)
    try:
        assert until(lambda: list((checkout.root / "data").glob(".nano.*.tmp")), 60) and len(stages(checkout.root)) == 1
        dvc.kill()
        dvc.wait()
        assert until(lambda: not stages(checkout.root), 20), "it goes on without DVC"
    finally:
        dvc.kill()
        for left in stages(checkout.root):
            left.kill()
        shutil.rmtree(checkout.root / "data", ignore_errors=True)


CHILD = """
import sys
sys.stdin.read()
from unime import launch
print("asks", flush=True)
{call}
print("goes on", flush=True)
"""

STARTER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {child!r}], stdin=0, stdout=1)
print("started", flush=True)
if {stays}:
    sys.stdout.close()
    os.wait()
"""


def said_by_a_child(call: str, stays: bool) -> list[str]:
    """What a process says that makes this call after its parent has ended, or while the parent waits for it."""
    starter = STARTER.format(child=CHILD.format(call=call), stays=stays)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", starter],
        cwd=ROOT,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # as a terminal or a job of a cluster has one
    )
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdout.readline()  # the child has started
    if not stays:
        assert parent.wait(30) == 0
    parent.stdin.close()  # now the child goes on
    said = parent.stdout.read()
    parent.wait(30)
    return said.split("\n")[:-1]


def test_a_stage_whose_dvc_ended_while_it_was_starting_ends_at_once() -> None:
    assert said_by_a_child("launch.end_with_dvc()", stays=True) == ["asks", "goes on"]
    assert said_by_a_child("launch.end_with_dvc()", stays=False) == ["asks"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_whose_parent_ended_before_it_asked_ends_at_once(number: signal.Signals) -> None:
    """The parent's number was told to it, as torchrun's and the stage's owner's are."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    call = f"import signal, os; launch.end_with_parent({{}}, signal.Signals({number.value}))"
    assert said_by_a_child(call.format("os.getppid()"), stays=True) == ["asks", "goes on"]
    assert said_by_a_child(call.format(gone.pid), stays=True) == ["asks"]
