"""unime/door.py: an artifact is whole, true to what it was made from, and a killed run goes on from what it had."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from unime import config, digests, door
from unime.door import Door
from unime.witness import Witness

ROOT = Path(__file__).resolve().parent.parent
CODE = [Path("unime/door.py")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the default config.yaml."""
    shutil.copy(ROOT / "config.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the library in which the suite is small: less than a second of work."""
    shutil.copytree(ROOT / "unime", tmp_path / "unime", ignore=shutil.ignore_patterns("__pycache__"))
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["nano"]["suite"] |= {"train_rows": 20, "eval_rows": 20, "candidates": 10}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def made(run: Callable[..., str], **more: object) -> Door:
    return Door(sections=("mine",), inputs=("in",), outputs=("out/table",), run=run, **more)  # type: ignore[arg-type]


def enter(it: Door, item: str | None = None) -> str:
    return door.enter("toy", it, item, Path("config.yaml"), CODE)


def write(config_view: config.View, job: object, inputs: list[Path], outputs: list[Path]) -> str:
    outputs[0].write_text(f"{inputs[0].read_text()} {config_view.mine.beta}")
    return "one table"


def start(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    """The stage's process, stopped in the middle of its work."""
    log = checkout / "logs/suite.log"
    log.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "unime", "suite", *arguments], cwd=checkout, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 30
    while not list((checkout / "data").glob(".nano.*.tmp")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    return process


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "unime", *arguments], cwd=checkout, capture_output=True, text=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The order of things


def test_one_line_says_what_was_made_and_nothing_else_is_left(here: Path) -> None:
    Path("in").write_text("a")
    assert enter(made(write)) == "made out/table: one table"
    assert Path("out/table").read_text() == "a 0.01"
    assert os.listdir("out") == ["table"] and os.listdir("scratch") == ["locks"]
    assert "one table" in Path("logs/toy.log").read_text()


def test_progress_is_found_again_if_and_only_if_nothing_has_changed(here: Path) -> None:
    seen: list[tuple[Path, bool]] = []

    def stumble(config_view: config.View, job: door.Job, inputs: list[Path], outputs: list[Path]) -> str:
        seen.append((job.scratch, (job.scratch / "part").exists()))
        (job.scratch / "part").write_text("done")
        raise ValueError("stumbled")

    def again() -> None:
        with pytest.raises(ValueError, match="stumbled"):
            enter(made(stumble))

    Path("in").mkdir()
    Path("in/a").write_text("a")
    again()
    again()
    Path("in/a").write_text("b")
    again()
    text = Path("config.yaml").read_text()
    Path("config.yaml").write_text(text.replace("beta: 0.01", "beta: 0.02"))
    again()
    Path("config.yaml").write_text(text.replace("lr: 0.002", "lr: 0.003"))  # not this door's business
    Path("in/a").write_text("a")
    Path("in/.snakemake_timestamp").touch()  # not part of the artifact
    os.utime("in/a", (0, 0))
    again()
    assert [found for _, found in seen] == [False, True, False, False, True]
    assert seen[0][0] == seen[1][0] == seen[4][0] and len({scratch for scratch, _ in seen}) == 3
    enter(made(lambda view, job, inputs, outputs: outputs[0].touch() or "whole"))
    assert "\t4 runs\t" in Path("logs/costs/toy.tsv").read_text(), "those three count whose scratch folder this run has found"
    assert os.listdir("scratch") == ["locks"]


def records() -> list[Path]:
    """The remembered digests, without their locks."""
    return [path for path in digests.FOLDER.iterdir() if path.suffix != ".lock"]


def age(path: Path) -> None:
    """Wait until the file's last change lies further back than digests.SETTLED."""
    while time.time_ns() - path.stat().st_ctime_ns <= digests.SETTLED:
        time.sleep(0.05)


def rewritten(path: Path, start: int, data: bytes) -> None:
    """Other bytes in the place of these, the file's size, inode and time of last write as before."""
    found = path.stat()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("start", [0, (1 << 20) + 17, (2 << 20) - 1])
def test_one_changed_byte_of_a_large_input_is_another_digest_though_size_and_times_are_as_before(
    here: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    monkeypatch.setattr(digests, "SETTLED", 10**8)
    large = Path("in")
    large.write_bytes(bytes(2 << 20))
    age(large)
    before = digests.sha256(large)
    assert records(), "it is remembered"
    rewritten(large, start, b"x")
    assert digests.sha256(large) == hashlib.sha256(large.read_bytes()).hexdigest() != before


def test_a_large_input_is_hashed_once_and_again_where_its_record_is_damaged(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED", 10**8)
    reads: list[str] = []
    whole = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: reads.append(file.name) or whole(file, kind))
    large = Path("in")
    large.write_bytes(bytes(2 << 20))
    age(large)
    assert digests.sha256(large) == digests.sha256(large) and len(reads) == 1
    (record,) = records()
    for damage in ("", "{", "[]", '{"stamp": 1}'):
        record.write_text(damage)
        assert digests.sha256(large) == whole_digest(large)
    assert len(reads) == 5


def test_a_large_input_that_was_just_written_is_not_remembered(here: Path) -> None:
    large = Path("in")
    large.write_bytes(bytes(2 << 20))
    assert digests.sha256(large) == whole_digest(large) and not records()


def whole_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_scratch_name_is_another_where_a_large_input_changes_in_one_byte(here: Path) -> None:
    large = Path("in")
    large.write_bytes(bytes(2 << 20))
    first = Witness("x", {}, lambda: "", "config", [large]).digest
    rewritten(large, (1 << 20) + 17, b"x")
    assert Witness("x", {}, lambda: "", "config", [large]).digest != first


def test_a_failed_run_keeps_the_output_of_the_last_good_one(here: Path) -> None:
    Path("in").write_text("a")
    enter(made(write))

    def fails(view: object, job: object, inputs: list[Path], outputs: list[Path]) -> str:
        outputs[0].write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        enter(made(fails))
    assert Path("out/table").read_text() == "a 0.01" and os.listdir("out") == ["table"]


def test_an_output_that_was_not_written_is_an_error(here: Path) -> None:
    Path("in").write_text("a")
    with pytest.raises(door.StageError, match="out/table was not written"):
        enter(made(lambda view, job, inputs, outputs: "nothing"))


def test_a_door_cannot_read_what_it_does_not_declare(here: Path) -> None:
    Path("in").write_text("a")
    with pytest.raises(AttributeError, match="does not declare the section 'judge'"):
        enter(made(lambda view, job, inputs, outputs: str(view.judge.mode)))


def test_a_missing_input_is_named_with_the_way_to_make_it(here: Path) -> None:
    with pytest.raises(door.StageError, match="in: no such input; `snakemake` makes it"):
        enter(made(write))


def test_folders_of_tasks_no_longer_asked_for_are_swept(here: Path) -> None:
    tasks = config.load("config.yaml").evaluate.tasks
    for name in (tasks[0], "Gone"):
        (Path("in") / name).mkdir(parents=True)
    sections, sweep = ("evaluate.tasks",), {"in": "evaluate.tasks"}
    enter(Door(sections, ("in",), ("out",), lambda view, job, inputs, outputs: outputs[0].touch() or "swept", sweep=sweep))
    assert os.listdir("in") == [tasks[0]]


def test_items_are_checked_against_the_configuration(here: Path) -> None:
    Path("in").write_text("a")
    it = Door(sections=("mine",), inputs=("in",), outputs=("out/{item}",), run=write, items="evaluate.tasks")
    assert enter(it, "NanoObject") == "made out/NanoObject: one table"
    with pytest.raises(door.StageError, match="'NanoObjekt' is not in evaluate.tasks; nearest: 'NanoObject'"):
        enter(it, "NanoObjekt")
    with pytest.raises(door.StageError, match="runs once per item"):
        enter(it)
    with pytest.raises(door.StageError, match="takes no item"):
        enter(made(write), "NanoObject")


def test_items_of_a_mapping_have_a_name_and_a_value_and_know_their_own_part_only(here: Path) -> None:
    values = yaml.safe_load(Path("config.yaml").read_text())
    values["judge"]["models"]["other"] = {"model": "in", "mode": "exact"}
    Path("config.yaml").write_text(yaml.safe_dump(values))
    Path("in").write_text("a")

    def run(view: config.View, job: door.Job, inputs: list[Path], outputs: list[Path]) -> str:
        with pytest.raises(AttributeError, match="does not declare the section 'nano-published'"):
            _ = view.judge.models["nano-published"]
        outputs[0].write_text(str(inputs[0]))
        return view.judge.models[job.item].mode

    it = Door(("judge.models.{key}",), ("{item.model}",), ("out/{key}",), run, items="judge.models")
    assert enter(it, "other") == "made out/other: exact" and Path("out/other").read_text() == "in"
    with pytest.raises(door.StageError, match="'othr' is not in judge.models; nearest: 'other'"):
        enter(it, "othr")
    empty = Door(("fetch.models.{key}",), (), ("out/{key}",), run, items="fetch.models")
    with pytest.raises(door.StageError, match="fetch.models is empty: there is nothing for toy to do"):
        enter(empty, "any")


def test_only_a_stage_that_fetches_may_go_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    door.environment(1, online=True)
    assert "HF_HUB_OFFLINE" not in os.environ and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    door.environment(1)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_threads_come_from_the_scheduler_else_from_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    it = made(write, threads=2)
    monkeypatch.delenv("UNIME_THREADS", raising=False)
    assert door.threads(it) == 2
    monkeypatch.setenv("UNIME_THREADS", "5")
    assert door.threads(it) == 5
    monkeypatch.setenv("UNIME_THREADS", "none")
    with pytest.raises(door.StageError, match="'none'"):
        door.threads(it)


def test_an_input_or_parameter_that_changes_meanwhile_spoils_the_run_a_touch_does_not(here: Path) -> None:
    def meddle(change: Callable[[], object]) -> Callable[..., str]:
        def work(view: config.View, job: object, inputs: list[Path], outputs: list[Path]) -> str:
            change()
            return write(view, job, inputs, outputs)

        return work

    Path("in").write_text("a")
    enter(made(meddle(lambda: os.utime("in", (0, 0)))))
    with pytest.raises(door.StageError, match="^in changed while toy was running"):
        enter(made(meddle(lambda: Path("in").write_text("b"))))
    good = Path("config.yaml").read_text()
    with pytest.raises(door.StageError, match=r"config.yaml \(mine\) changed"):
        enter(made(meddle(lambda: Path("config.yaml").write_text(good.replace("beta: 0.01", "beta: 0.02")))))
    with pytest.raises(door.StageError, match=r"config.yaml \(mine\) \(no longer valid\) changed"):
        enter(made(meddle(lambda: Path("config.yaml").write_text("mine:"))))
    Path("config.yaml").write_text(good)
    enter(made(meddle(lambda: Path("config.yaml").write_text(good.replace("lr: 0.002", "lr: 0.003")))))


# The real command line


def test_help_lists_every_stage_in_data_flow_order() -> None:
    text = run(ROOT, "--help").stdout
    listed, tools = ([line.split()[0] for line in part.strip().splitlines()] for part in text.partition("stages:")[2].split("tools:"))
    flow = ["suite", "data_train", "filter_train", "retrieve", "judge", "mine"]
    assert [stage for stage in listed if stage in flow] == flow
    assert listed.index("train_reranker") < listed.index("evaluate") < listed.index("report") and len(listed) == len(set(listed)) == 36
    assert listed.index("fetch_train") < listed.index("data_train") and tools == ["example", "plan", "rows", "search"]


def test_an_unknown_stage_is_answered_with_the_nearest_name() -> None:
    done = run(ROOT, "jugde")
    assert done.returncode == 2 and done.stderr.strip() == "error: no stage 'jugde'; nearest: 'judge'"


def test_a_wrong_configuration_is_refused_before_anything_runs(checkout: Path) -> None:
    (checkout / "other.yaml").write_text((checkout / "config.yaml").read_text().replace("beta:", "betta:"))
    done = run(checkout, "suite", "--config", "other.yaml")
    assert done.returncode == 2 and "mine.betta: unknown key (nearest: 'beta')" in done.stderr and "Traceback" not in done.stderr
    assert not (checkout / "data").exists()


def test_a_module_edited_while_a_stage_runs_spoils_the_run(checkout: Path) -> None:
    process = start(checkout)
    with (checkout / "unime/artifacts.py").open("a") as file:
        file.write("# edited\n")
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert err.startswith("error: unime/artifacts.py changed while suite was running: its output is thrown away and not recorded")
    assert os.listdir(checkout / "data") == []
    assert run(checkout, "suite").stdout.startswith("made data/nano: 11 training sets of 220 rows")


def test_a_kill_leaves_the_last_good_output_and_the_next_run_cleans_up(checkout: Path) -> None:
    assert run(checkout, "suite").returncode == 0
    good = content(checkout / "data/nano")
    text = (checkout / "config.yaml").read_text()
    (checkout / "config.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    process = start(checkout)
    process.kill()
    process.communicate()
    left = sorted(os.listdir(checkout / "data"))
    assert len(left) == 2 and left[0].endswith(".tmp") and content(checkout / "data/nano") == good != {}
    assert run(checkout, "suite").returncode == 0
    assert os.listdir(checkout / "data") == ["nano"] and content(checkout / "data/nano") != good


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_stage_takes_its_temporary_files_along(checkout: Path, number: signal.Signals, code: int) -> None:
    process = start(checkout)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == code and os.listdir(checkout / "data") == []


def test_a_stage_ends_with_the_process_that_started_it_and_the_next_one_waits_for_that(checkout: Path) -> None:
    command = [sys.executable, "-m", "unime", "suite"]
    starter = f"import subprocess; child = subprocess.Popen({command!r}); print(child.pid, flush=True); child.wait()"
    environment = {**os.environ, "DVC_STAGE": "suite"}
    parent = subprocess.Popen([sys.executable, "-c", starter], cwd=checkout, env=environment, text=True, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until = time.monotonic() + 30
    while not list((checkout / "data").glob(".nano.*.tmp")):
        assert parent.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    second = subprocess.Popen(command, cwd=checkout, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.5)
    assert second.poll() is None, "it waits"
    os.kill(child, signal.SIGCONT)
    out, err = second.communicate(timeout=60)
    assert out.startswith("made data/nano") and err == ""
    assert not list((checkout / "data").glob(".nano.*.tmp")) and "\0" not in (checkout / "logs/suite.log").read_text()


def test_two_processes_do_not_make_the_same_stage(checkout: Path) -> None:
    process = start(checkout)
    second = run(checkout, "suite")
    assert second.returncode == 1 and f"suite is being made by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGCONT)
    assert process.communicate()[0].startswith("made data/nano")
