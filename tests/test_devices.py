"""GPUs of one box: each run takes free ones, none is taken twice, and they are free again when a run ends, however it ends."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unime import devices

HOLD = """
import sys
from pathlib import Path
from unime import devices
print(*devices.claim(int(sys.argv[1]), Path(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three GPUs, as the driver lists them."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    lines = "".join(f"GPU {number}: NVIDIA H100 (UUID: GPU-{number}abc)\n" for number in range(3))
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'".replace("\n", "\\n").replace("#!/bin/sh\\n", "#!/bin/sh\n"))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "locks"


def hold(count: int, locks: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(count), str(locks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout
    return process.stdout.readline().split()


def test_runs_side_by_side_take_gpus_of_their_own_and_a_killed_one_gives_its_back(box: Path):
    assert devices.visible() == ["0", "1", "2"]
    first, second = hold(1, box), hold(2, box)
    taken = said(first), said(second)
    assert sorted(taken[0] + taken[1]) == ["0", "1", "2"]
    third = hold(1, box)
    time.sleep(2 * devices.WAIT)
    assert third.poll() is None, "it waits"
    first.kill()
    assert said(third) == taken[0]
    for process in (second, third):
        process.communicate()


def test_two_that_wait_for_two_of_three_do_not_hold_one_each(box: Path):
    waiting = [hold(2, box) for _ in range(2)]
    while waiting:  # either may be first
        (stream, *_), _, _ = select.select([process.stdout for process in waiting], [], [], 60)
        (ready,) = [process for process in waiting if process.stdout is stream]
        waiting.remove(ready)
        assert len(said(ready)) == 2
        ready.communicate()


@pytest.mark.parametrize(("given", "count"), [("", 1), ("1", 1), ("GPU-5abc,GPU-6abc", 2), ("0,1", 4)])
def test_what_a_scheduler_has_given_is_left_as_it_is(given: str, count: int, box: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert devices.claim(count, box) == [one for one in given.split(",") if one]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given and not box.exists()


def test_without_a_driver_there_is_nothing_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.claim(1, tmp_path / "locks") == [] and "CUDA_VISIBLE_DEVICES" not in os.environ
