"""workflow/repro.py, the job of every rule, on a toy of one stage: locks, remotes, late edits, failures after the command."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import sh
from dvc.utils.serialize import dump_yaml, load_yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

import lockfile  # noqa: E402
import repro  # noqa: E402

STAGE = """stages:
  make:
    cmd: echo ran >> ran.log && cp in out
    deps: [in]
    outs: [out]
"""
START = "import pathlib, sys\nsys.path.insert(0, {workflow!r})\nimport repro\nfrom dvc.stage import Stage, run\n"


class Toy:
    def __init__(self, root: Path):
        self.root = root
        root.mkdir()
        self.sh("dvc init -q --no-scm && dvc config core.analytics false")
        self.write("dvc.yaml", STAGE)
        self.write("in", "first\n")

    def sh(self, command: str, code: int = 0) -> str:
        return sh(command, self.root, code)

    def write(self, name: str, text: str) -> Path:
        (self.root / name).write_text(text)
        return self.root / name

    def job(self, code: int = 0) -> str:
        return self.sh(f"timeout 60 {sys.executable} '{ROOT / 'workflow/repro.py'}' make", code)

    def script(self, lines: str, code: int = 0) -> str:
        """The job with something of DVC's replaced before it starts."""
        start = START.format(workflow=str(ROOT / "workflow"))
        self.write("script.py", f"{start}{lines}\nsys.exit(repro.main('make'))\n")
        return self.sh("timeout 60 python script.py", code)

    def runs(self) -> int:
        """How often the command has run."""
        return len((self.root / "ran.log").read_text().split()) if (self.root / "ran.log").exists() else 0

    def forget(self) -> None:
        """As a clone: no cache, no output."""
        shutil.rmtree(self.root / ".dvc/cache", ignore_errors=True)
        (self.root / "out").unlink(missing_ok=True)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "a toy")


@pytest.fixture
def shared(toy: Toy, tmp_path: Path) -> Path:
    """A remote that has the stage's run."""
    toy.sh(f"dvc remote add -q -d there '{tmp_path / 'remote'}'")
    toy.job()
    toy.sh("dvc push -q --run-cache")
    assert toy.runs() == 1
    return tmp_path / "remote"


# what is recorded


def test_what_is_recorded_is_what_dvc_would_record(toy: Toy) -> None:
    toy.job()
    found = toy.write("kept", (toy.root / "dvc.lock").read_text()).read_text()
    (toy.root / "dvc.lock").unlink()
    toy.sh("dvc repro -q")
    assert found == (toy.root / "dvc.lock").read_text() and toy.runs() == 1


def test_a_stages_text_is_the_one_that_dvc_writes(tmp_path: Path) -> None:
    values = {"null": None, "tiny": 3e-5, "text": "1e5", "yes": True, "say": "yes", "list": [1, [2, "a: b"], {"c": []}], "é": "x " * 90}
    stages = {"judge@A-OKVQA": {"cmd": "python", "params": {"config.yaml": values}}, "mine": {"cmd": "b", "deps": [copy.deepcopy(values)]}}
    dump_yaml(tmp_path / "whole", {"schema": "2.0", "stages": stages})
    text = (tmp_path / "whole").read_text()
    assert text.partition("stages:\n")[2] == "".join(lockfile.written({name: stage}) for name, stage in stages.items())
    with lockfile.replaced(str(tmp_path / "whole")) as data:
        assert data["stages"].get("mine") == stages["mine"] and data["stages"].get("none", {}) == {}
        data["stages"].update({"mine": {"cmd": "c"}, "new": {"cmd": None}})
    assert load_yaml(tmp_path / "whole") == {"schema": "2.0", "stages": stages | {"mine": {"cmd": "c"}, "new": {"cmd": None}}}
    (tmp_path / "cut").write_text("schema: '2")
    with (
        pytest.raises(repro.DvcException, match="cut holds no stages.  If dvc.lock is damaged: `git checkout"),
        lockfile.replaced(str(tmp_path / "cut")),
    ):
        pass


EDIT = "pathlib.Path('in').write_text('second\\n')"


@pytest.mark.parametrize(
    ("moment", "lines"),
    [
        (
            "between the command and the comparison",
            f"old = run.cmd_run\ndef late(*a, **k):\n    old(*a, **k)\n    {EDIT}\nrun.cmd_run = late",
        ),
        ("after the comparison", f"old = Stage.save_outs\ndef late(*a, **k):\n    {EDIT}\n    old(*a, **k)\nStage.save_outs = late"),
    ],
)
def test_a_late_edit_is_never_recorded_with_the_earlier_output(toy: Toy, moment: str, lines: str) -> None:
    toy.script(lines, code=1 if "comparison" == moment.split()[-1] and "between" in moment else 0)
    assert "make" in toy.sh("dvc status") and "second" in (toy.root / "in").read_text()
    toy.job()
    assert (toy.root / "out").read_text() == "second\n" and toy.runs() == 2 and "up to date" in toy.sh("dvc status")


def test_a_failure_after_the_command_does_not_run_it_again(toy: Toy, shared: Path) -> None:
    toy.write("in", "second\n")
    full = "def full(*a, **k):\n    raise OSError(28, 'No space left on device')\nStage.save_outs = full"
    assert "No space left" in toy.script(full, code=1)
    assert toy.runs() == 2


# remotes


def test_what_a_remote_has_is_fetched_without_dvc_lock_too(toy: Toy, shared: Path) -> None:
    toy.forget()
    toy.job()
    toy.forget()
    (toy.root / "dvc.lock").unlink()
    toy.job()
    assert toy.runs() == 1 and (toy.root / "out").read_text() == "first\n"


def test_a_fetch_that_breaks_off_costs_a_computation_and_nothing_else(toy: Toy, shared: Path) -> None:
    (toy.root / "dvc.lock").unlink()
    toy.forget()
    broken = "def gone(*a, **k):\n    raise OSError('the line is down')\nLocalFileSystem.get_file = gone"
    broken = f"from dvc_objects.fs.local import LocalFileSystem\n{broken}"
    assert "the remote gave nothing for make (the line is down)" in toy.script(broken)
    assert toy.runs() == 2 and "didn't change" in toy.job() and "didn't change" in toy.sh("dvc repro")


def test_an_empty_run_cache_entry_does_not_stop_a_stage(toy: Toy) -> None:
    toy.job()
    for entry in (toy.root / ".dvc/cache/runs").glob("*/*/*"):
        entry.unlink()
    (toy.root / "out").unlink()
    (toy.root / "dvc.lock").unlink()
    toy.job()
    assert toy.runs() == 2


def test_a_damaged_file_of_a_remote_is_not_taken(toy: Toy, shared: Path) -> None:
    (file,) = [path for path in (shared / "files").rglob("*") if path.is_file()]
    os.chmod(file, 0o644)
    file.write_text("fjrst\n")
    toy.forget()
    toy.job()
    assert (toy.root / "out").read_text() == "first\n" and toy.runs() == 2


# locks


@pytest.mark.parametrize(
    "left",
    [
        '{"write": {"',  # cut off
        json.dumps({"write": {"{out}": {"pid": os.getpid(), "cmd": "dvc repro gone"}}}),  # its number is another's now
        json.dumps({"write": {"{out}": {"pid": 1, "cmd": "deadnode: repro.py make"}}}),  # a job of a node that is gone
        json.dumps({"read": {"{out}": [{"pid": 2**31 - 1, "cmd": ""}]}}),
    ],
    ids=["cut off", "another's number", "another node", "no such process"],
)
def test_what_the_killed_left_in_the_locks_stops_nobody(toy: Toy, left: str) -> None:
    toy.write(".dvc/tmp/rwlock", left.replace("{out}", str(toy.root / "out")))
    toy.job()
    assert toy.runs() == 1


def test_the_living_are_waited_for(toy: Toy) -> None:
    """A job on another node, as its lock file shows it; it ends after a while."""
    folder = toy.root / ".dvc/tmp"
    held = repro.sign(folder, "othernode", os.getpid())
    held.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl, time\nfile = open({str(held)!r}, 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\nprint()\ntime.sleep(4)",
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    info = {"pid": os.getpid(), "cmd": "othernode: repro.py make"}
    toy.write(".dvc/tmp/rwlock", json.dumps({"write": {str(toy.root / "out"): info}}))
    text = toy.job()
    holder.wait()
    assert "waiting: " in text and "othernode: repro.py make" in text and toy.runs() == 1
    assert not list(repro.sign(folder, "x", 0).parent.glob(f"{os.uname().nodename}.*"))
