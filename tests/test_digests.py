"""Processes that start together hash a large file once, and none waits for one that was killed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from checkouts import ROOT

from unime import digests

SIZE = 64 << 20

JOB = """
import hashlib, json, os, sys
from pathlib import Path
from unime import digests
whole = hashlib.file_digest
times = []
def counted(file, kind):
    times.append(file.name)
    return whole(file, kind)
hashlib.file_digest = counted
print("ready", flush=True)
sys.stdin.read()
digest = digests.sha256(Path(sys.argv[1]), Path(sys.argv[2]))
read = int(open("/proc/self/io").readline().split()[1])
print(json.dumps([digest, len(times), read]))
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    while time.time_ns() - path.stat().st_ctime_ns <= digests.SETTLED:
        time.sleep(0.05)
    return path


def jobs(count: int, large: Path, folder: Path) -> list[tuple[str, int, int]]:
    """What so many processes that begin at the same moment answer: the digest, the times that they hashed it, the bytes that they read."""
    command = [sys.executable, "-c", JOB, str(large), str(folder)]
    started = []
    for _ in range(count):
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for job in started:
        assert job.stdout is not None and job.stdout.readline() == "ready\n"
    for job in started:
        assert job.stdin is not None
        job.stdin.close()
    answers = []
    for job in started:
        assert job.stdout is not None
        answers.append(tuple(json.loads(job.stdout.read())))
        assert job.wait() == 0
    return answers


def test_of_six_jobs_that_start_together_one_reads_the_file(large: Path, tmp_path: Path) -> None:
    answers = jobs(6, large, tmp_path / "digests")
    right = hashlib.sha256(large.read_bytes()).hexdigest()
    assert [digest for digest, _, _ in answers] == [right] * 6
    assert sorted(times for _, times, _ in answers) == [0, 0, 0, 0, 0, 1]
    read = sorted(bytes_read for _, _, bytes_read in answers)
    assert read[-1] >= SIZE > sum(read[:-1])


def test_a_file_that_changes_while_jobs_wait_is_hashed_as_it_is_now(large: Path, tmp_path: Path) -> None:
    (before, *_) = jobs(1, large, tmp_path / "digests")
    with large.open("r+b") as file:
        file.write(b"other")
    answers = jobs(3, large, tmp_path / "digests")
    right = hashlib.sha256(large.read_bytes()).hexdigest()
    assert {digest for digest, _, _ in answers} == {right} != {before[0]}


def hold(place: Path, held: Event) -> None:
    with digests._alone(place):
        held.set()
        time.sleep(600)


def test_a_job_waits_for_the_one_that_hashes_and_goes_on_when_that_is_killed(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digests"
    digest = digests.sha256(large, folder)
    (record,) = [path for path in folder.iterdir() if path.suffix != ".lock"]
    record.unlink()  # nothing is remembered
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold, args=(record, held))
    holder.start()
    assert held.wait(60)
    command = [sys.executable, "-c", JOB, str(large), str(folder)]
    waiting = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert waiting.stdout is not None and waiting.stdout.readline() == "ready\n"
    time.sleep(1.5)
    assert waiting.poll() is None, "it waits"
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    answer, _ = waiting.communicate(timeout=60)
    assert json.loads(answer)[:2] == [digest, 1]
    holder.join()


def test_a_file_system_without_locks_costs_a_reading_and_nothing_else(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(large.read_bytes()).hexdigest()
    for problem in digests.WITHOUT_LOCKS:

        def refused(*_: object, problem: int = problem) -> None:
            raise OSError(problem, os.strerror(problem))

        monkeypatch.setattr(digests.fcntl, "flock", refused)
        assert digests.sha256(large, tmp_path / f"digests {problem}") == digest
