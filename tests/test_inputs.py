"""What lies below an input is a file that can be read and that DVC sees; anything else is named, with its reason and a remedy."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkouts import ROOT, sh

from unime import inputs
from unime.data import archives, stream
from unime.data.rows import DataError

ROWS = '{"query_text": "q", "positive_text": "t"}\n{"query_text": "q2", "positive_text": "t2"}\n'


def folder_of_rows(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "rows.jsonl").write_text(ROWS)
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """data/own/train with the set S, and a folder `outside` of data.root."""
    folder_of_rows(tmp_path / "outside")
    return folder_of_rows(tmp_path / "data/own/train/S").parent


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (lambda s: os.mkfifo(s / "x.png"), r"S/x\.png: a FIFO, not a file; .*remove it"),
    "FIFO behind a link": (lambda s: (os.mkfifo(s.parents[3] / "f"), (s / "x").symlink_to(s.parents[3] / "f")), r"S/x: a FIFO"),
    "socket": (lambda s: listening(s / "x.png"), r"S/x\.png: a socket, not a file"),
    "device": (lambda s: (s / "x.png").symlink_to("/dev/zero"), r"S/x\.png: a device, not a file"),
    "cycle": (lambda s: (s / "up").symlink_to(".."), r"S/up: a link to the folder .*/data/own/train; .*cp -rs"),
    "cycle of itself": (lambda s: (s / "x").symlink_to("x"), r"S/x: a link to x, which leads nowhere; .*remove the link"),
    "linked set": (lambda s: (s.parent / "T").symlink_to(s.parents[3] / "outside"), r"train/T: a link to the folder .*/outside; .*cp -rs"),
    "broken link": (lambda s: (s / "x.png").symlink_to("nowhere.png"), r"S/x\.png: a link to nowhere\.png, which leads nowhere"),
    "name": (lambda s: open(os.fsencode(s) + b"/\xff.png", "w").close(), r"xff\.png'?: its name is not UTF-8, .*rename it"),
    ".dvcignore": (lambda s: (s / ".dvcignore").touch(), r"S/\.dvcignore: DVC refuses .*remove it"),
    "repository": (lambda s: (s / "T/.dvc").mkdir(parents=True), r"S/T: a DVC repository of its own \(\.dvc\), .*remove its \.dvc"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_plain_file_is_named_with_reason_and_remedy(what: str, train: Path) -> None:
    assert inputs.problems(train) == []
    make, reason = WRONG[what]
    make(train / "S")
    (problem,) = inputs.problems(train)
    assert re.search(reason, problem), problem
    assert problem.isprintable()


def test_links_to_files_and_a_linked_root_are_inputs_like_any_other(train: Path, tmp_path: Path) -> None:
    (train / "S/more.jsonl").symlink_to(tmp_path / "outside/rows.jsonl")
    (tmp_path / "elsewhere").symlink_to(train, target_is_directory=True)
    assert inputs.problems(tmp_path / "elsewhere") == inputs.problems(train) == []
    assert inputs.problems(train / "S/more.jsonl") == [] and inputs.problems(tmp_path / "none") == []


def test_many_problems_are_counted_and_the_first_shown(train: Path) -> None:
    for number in range(9):
        (train / f"S/{number}").symlink_to("nowhere")
    lines = inputs.told(inputs.problems(train)).splitlines()
    assert len(lines) == inputs.SHOWN + 1 and "S/0: " in lines[0] and lines[-1] == "and 4 more such files or folders"


@pytest.mark.parametrize("root", ["data/own", 'my data; it\'s (a) "copy" & more #2', "-data"])
def test_the_remedy_for_a_linked_set_works_as_it_stands(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outside = folder_of_rows(tmp_path / f"outside {root}")
    folder_of_rows(outside / "images")
    train = folder_of_rows(Path(root) / "train/S").parent
    (train / "T").symlink_to(outside)
    (problem,) = inputs.problems(train)
    sh(re.search(r"\((rm .*)\)", problem)[1], tmp_path)
    assert inputs.problems(train) == [] and (train / "T/images/rows.jsonl").read_text() == ROWS


@pytest.mark.parametrize("path", ["S/rows.jsonl", "S"])
def test_a_file_or_folder_without_permission_is_named(path: str, train: Path) -> None:
    """As a user who is not root, to whom nothing is forbidden."""
    (train / path).chmod(0)
    lines = ["import os, sys", "from pathlib import Path", "from unime import inputs", "os.chdir(sys.argv[1])"]
    if os.geteuid() == 0:
        lines.append("os.setuid(65534)")  # nobody, who may not look into the folders above, but stands in this one
    lines.append("print(*inputs.problems(Path('.')), sep='\\n')")
    command = [sys.executable, "-c", "\n".join(lines), str(train)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{path}: no permission to \S+ \S+( folder)?; chmod u\+rx?\n", done.stdout), done.stdout


def own_config(folder: Path, root: str = "data/own") -> None:
    values = yaml.safe_load((ROOT / "presets/own-data.yaml").read_text())
    values["data"] |= {"root": root, "train_sets": ["S"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))


def stage(folder: Path, name: str = "data_train") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unime", name, "S"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("what", ["FIFO", "cycle", "linked set"])
def test_a_data_stage_names_it_and_writes_nothing(what: str, train: Path, tmp_path: Path) -> None:
    own_config(tmp_path)
    make, reason = WRONG[what]
    make(train / "S")
    done = stage(tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(rf"error: \S*{reason}.*\n", done.stderr), done.stderr
    assert not (tmp_path / "results/data/train/S").exists()


def test_rows_behind_links_to_files_are_read(train: Path, tmp_path: Path) -> None:
    own_config(tmp_path)
    (train / "S/rows.jsonl").unlink()
    (train / "S/rows.jsonl").symlink_to(tmp_path / "outside/rows.jsonl")
    done = stage(tmp_path)
    assert done.returncode == 0 and "2 pairs" in done.stdout, done.stderr


def test_a_fifo_in_a_place_that_no_stage_depends_on_is_refused_too(tmp_path: Path) -> None:
    """Archives of all sets may lie in data.root itself."""
    os.mkfifo(tmp_path / "images.zip")
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(archives.ArchiveError, match=r"images\.zip: not a file but a FIFO"):
        archives.archive(str(tmp_path / "images.zip"))
    for read in (stream.lines, stream.rows):
        with pytest.raises(DataError, match=r"rows\.jsonl: not a file but a folder, FIFO"):
            next(read(tmp_path / "rows.jsonl"))


STAGE = """stages:
  make:
    cmd: echo ran && cat data/own/train/*/rows.jsonl > out
    deps: [data/own/train]
    outs: [out]
"""


def test_dvc_sees_what_is_let_through_and_not_what_is_refused(train: Path, tmp_path: Path) -> None:
    """What unime/inputs.py says of DVC, with equal times of change, as copies have."""
    other = shutil.copytree(tmp_path / "outside", tmp_path / "other")
    (other / "rows.jsonl").write_text(ROWS.replace("q", "k"))
    shutil.copystat(tmp_path / "outside/rows.jsonl", other / "rows.jsonl")
    sh("dvc init -q --no-scm && dvc config core.analytics false", tmp_path)
    (tmp_path / "dvc.yaml").write_text(STAGE)

    def runs() -> bool:
        return "> echo ran" in sh("dvc repro", tmp_path)

    (train / "T").mkdir()
    link = train / "T/rows.jsonl"
    link.symlink_to(tmp_path / "outside/rows.jsonl")
    assert runs() and not runs()
    link.unlink()
    link.symlink_to(other / "rows.jsonl")
    assert runs(), "a link to another file is another input"
    shutil.copytree(tmp_path / "data", tmp_path / "moved", symlinks=True)
    (tmp_path / "moved/own/train/S/rows.jsonl").write_text("{}\n")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").symlink_to(tmp_path / "moved")
    assert runs(), "a link above the input leads to another input"
    shutil.rmtree(train / "T")
    (train / "T").symlink_to(tmp_path / "outside")
    assert inputs.problems(train) != []
    runs()
    (train / "T").unlink()
    (train / "T").symlink_to(other)
    assert not runs(), "DVC looks through links to folders now: unime/inputs.py need not refuse them"
