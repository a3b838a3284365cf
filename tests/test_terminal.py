"""What the command line says: one line for a wrong input, on any terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkouts import ROOT

from unime.job import Job

ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def unime(folder: Path, *arguments: str, ascii_only: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unime", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(ASCII if ascii_only else {})}
    encoding = "ascii" if ascii_only else "utf-8"
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding=encoding, timeout=120)


@pytest.fixture
def here(tmp_path: Path, config) -> Path:
    values = config.model_dump(mode="json")
    values["data"] |= {"root": "own", "train_sets": ["S"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no picture")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped/items.parquet")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/items.parquet").write_bytes(b"PAR1")
    return tmp_path


WRONG = [
    (("rows", "none", "S"), "none: no such folder"),
    (("rows", "file", "S"), "file: in no known format"),
    (("rows", "folder", "../S"), "'../S' is no name of a set"),
    (("rows", "folder", "S"), "folder: no images"),
    (("rows", "folder", "S", "--held", "1"), "--held 1.0: a share from 0 to below 1 is needed"),
    (("example", "file"), "file: Not a directory"),
    (("example", "new", "--images", "0"), "--images 0: 1 or more are needed"),
    (("example", "new", "--images", "3", "--seed", "-1"), "--seed -1: 0 or more is needed"),
    (("search", "none", "folder", "--query", "x"), "folder/items.parquet: no such file"),
    (("search", "none", "torn", "--query", "x"), "torn/items.parquet: cannot be read"),
    (("search", "none", "piped", "--query", "x"), "piped/items.parquet: not a file but a folder, FIFO or device"),
    (("search", "none", "torn"), "nothing to search for"),
    (("search", "none", "torn", "--image", "folder"), "--image folder: no such file"),
    (("search", "none", "torn", "--query", "x", "--top", "0"), "--top 0: 1 or more"),
    (("plan", "--no-calibrate", "--json", "folder"), "--json folder: a folder; name a file"),
    (("plan", "--no-calibrate", "--json", "pipe"), "--json pipe: a pipe or a device"),
    (("plan", "--calibrate", "nan"), "--calibrate nan: more than 0 seconds"),
    (("plan", "--calibrate", "inf"), "--calibrate inf: more than 0 seconds"),
    (("plan", "--config", "none.yaml"), "none.yaml: no such file"),
    (("data_train", "T"), "'T' is not in data.train_sets"),
    (("data_train", "S"), "own/train: no such input"),
    (("nothing",), "no stage 'nothing'"),
]


@pytest.mark.parametrize(("arguments", "reason"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_a_wrong_input_is_one_line(here: Path, arguments: tuple[str, ...], reason: str) -> None:
    done = unime(here, *arguments)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {reason}"), done.stderr


def test_an_interrupt_before_a_command_has_begun_is_no_traceback(here: Path) -> None:
    code = (
        "import pkgutil, runpy, sys\n"
        "def interrupted(path): raise KeyboardInterrupt\n"
        "pkgutil.iter_modules, sys.argv = interrupted, ['unime', '--help']\n"
        "runpy.run_module('unime', run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_plan_is_written_to_the_file_behind_a_link(here: Path) -> None:
    (here / "plan.json").symlink_to(here / "folder/plan.json")
    for _ in range(2):  # where the file is not there yet, and where it is
        done = unime(here, "plan", "--no-calibrate", "--json", "plan.json")
        assert done.returncode == 0, done.stderr
        assert (here / "plan.json").is_symlink() and json.loads((here / "folder/plan.json").read_text())


def test_a_reader_that_has_gone_is_no_failure_and_no_message(here: Path) -> None:
    """As in `... | head -0`: standard output is a pipe that nobody reads any more."""
    for arguments in (("plan", "--no-calibrate"), ("example", "new", "--images", "2")):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "unime", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=here, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
        os.close(write)
        assert done.returncode == 0 and done.stderr == ""
    assert len(list((here / "new").iterdir())) == 4


def test_what_nobody_foresaw_is_a_line_too_and_kept_in_full(here: Path) -> None:
    (here / "broken.py").write_text("from unime.tools import rows\n\ndef run(*_):\n    raise KeyError('a bug')\n\nrows.run = run\n")
    command = "import sys, broken; from unime.__main__ import main; sys.exit(main(['rows', 'folder', 'S']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(here)])}
    done = subprocess.run([sys.executable, "-c", command], cwd=here, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == "error: KeyError: 'a bug' (more in logs/rows.log)\n"
    assert "Traceback" in (here / "logs/rows.log").read_text() and "broken.py" in (here / "logs/rows.log").read_text()


OWN = "caf\u00e9 \u65e5\u672c"


@pytest.fixture
def foreign(here: Path) -> Path:
    """A folder of rows whose words no ASCII terminal has."""
    folder = here / "own/train/S"
    folder.mkdir(parents=True)
    rows = [{"query_text": f"{OWN} {number}", "positive_text": f"{OWN} answer {number}"} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return here


def damage(folder: Path) -> None:
    (folder / "own/train/S/rows.jsonl").unlink()
    (folder / f"own/train/S/{OWN}.jsonl").write_text('{"query_text": "q"}\n', encoding="utf-8")


PLAIN: list[tuple[tuple[str, ...], Callable[[Path], None], int, str]] = [
    (("--help",), lambda folder: None, 0, "stages:"),
    (("data_train", "S"), lambda folder: None, 0, "made results/rows/train/S: 40 pairs"),
    (("data_train", "S"), damage, 1, "jsonl: no usable row of 1"),
    (("data_train", OWN), lambda folder: None, 1, "error: 'caf"),
    (("plan", "--no-calibrate"), lambda folder: None, 0, "at most"),
    (("rows", OWN, "S"), lambda folder: None, 1, "error: caf"),
]


@pytest.mark.parametrize(("arguments", "prepare", "code", "said"), PLAIN, ids=[" ".join(case[0]) + case[3] for case in PLAIN])
def test_all_commands_speak_on_an_ascii_terminal(foreign: Path, arguments, prepare, code: int, said: str) -> None:
    prepare(foreign)
    done = unime(foreign, *arguments, ascii_only=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr and "UnicodeEncodeError" not in done.stderr + done.stdout


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_works_on_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(written, encoding="ascii", errors="backslashreplace", write_through=True))
    monkeypatch.setenv("TERM", "xterm")
    job = Job(None, 1, tmp_path, log=logging.getLogger("test"))
    assert list(job.track(range(3), label=f"{OWN} [bold]x[/nothing]: images")) == [0, 1, 2]
    shown = written.getvalue().decode("ascii")
    assert "caf\\xe9" in shown and "[bold]x[/nothing]" in shown
