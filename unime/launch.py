"""Several processes for one training: torchrun on this machine, or one torchrun on each node of a SLURM job.

The process that was asked for the stage stays its only owner.  It checks inputs and configuration, starts the others, waits for them,
checks again and renames what they wrote; so whatever ends one of them, or it, leaves no output.  The others are told by an environment
variable where to write, and run the door's own function, nothing else:

    python -m unime train_unime_v2                    the owner: lock, digest, scratch folder, temporary names
      [srun --nodes=N --ntasks-per-node=1]            above one node: inside the SLURM job that the owner runs in
        python -m unime.launch N G ...                on each node: where to meet, then torchrun
          python -m unime train_unime_v2              G processes: the training

How a batch is dealt over them, and why any number of them gives the same result, is in `unime.train.loop`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from unime import devices
from unime.job import Job, StageError

WORKER = "UNIME_WORKER"
"""Environment variable of a worker: what `run` hands to it, as JSON."""

TORCHRUN = "UNIME_TORCHRUN"
"""Environment variable of a worker: the process number of the torchrun that starts it."""

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends."""

PATIENCE = 45
"""Seconds that workers have to end once they were asked to: torchrun gives its own 30 before it kills them."""


def end_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have Linux send this process a signal when its parent, the process `parent`, ends, or now if it has ended already; elsewhere nothing
    is done.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before Linux was asked to watch it, and will send nothing
        os.kill(os.getpid(), number)


def end_with_dvc() -> None:
    """End this stage when DVC, which started it, ends; at once if it has ended already.

    DVC alone can record what the stage makes.  Where DVC is killed, a stage that went on would compute for nothing and keep the next run
    waiting; one that ends leaves its finished parts to it.  DVC starts a shell, and `exec` in dvc.yaml has this process take the shell's
    place, so that its parent is DVC itself.  A process whose parent has ended gets one of another session: init, or a service manager.
    """
    parent = os.getppid()
    try:
        session = os.getsid(parent)
    except OSError:  # it ended a moment ago
        session = 0
    if session != os.getsid(0):
        os.kill(os.getpid(), signal.SIGTERM)
    end_with_parent(parent)


@contextmanager
def ended_politely() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that temporary files go on the way out; a worker forked from here just ends."""
    owner = os.getpid()

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            os._exit(128 + number)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Processes(NamedTuple):
    """`each` processes on each of `nodes` machines, one a GPU where `gpus`."""

    nodes: int
    each: int
    parallel: str
    gpus: bool = True

    @property
    def several(self) -> bool:
        return self.nodes * self.each > 1

    @classmethod
    def of(cls, config: Any) -> Processes:
        """Of the sections `train` and `models`."""
        train = config.train
        return cls(train.nodes, train.gpus_per_node, train.parallel, config.models.device != "cpu")


ONE = Processes(1, 1, "ddp")


class Given(NamedTuple):
    """What a worker is told."""

    rank: int
    threads: int
    scratch: Path
    parallel: str
    outputs: list[Path]
    answer: Path

    def tell(self, summary: str) -> None:
        self.answer.write_text(summary, encoding="utf-8")


def is_worker() -> bool:
    return WORKER in os.environ


def given() -> Given:
    """This worker's part; its rank is torchrun's, and it ends with torchrun, also while it waits for others inside the driver."""
    end_with_parent(int(os.environ[TORCHRUN]), signal.SIGKILL)
    told = json.loads(os.environ[WORKER])
    outputs = [Path(path) for path in told["outputs"]]
    return Given(int(os.environ["RANK"]), told["threads"], Path(told["scratch"]), told["parallel"], outputs, Path(told["answer"]))


def run(processes: Processes, stage: str, item: str | None, config_path: Path, job: Job, outputs: list[Path]) -> str:
    """Let `processes` run the stage's door, which writes `outputs`; returns its summary.

    Raises StageError where one of them fails, or where there are not enough nodes.  None outlives this call, nor this process.
    """
    threads = max(1, job.threads // processes.each)
    if processes.gpus:
        devices.claim(processes.each)
    answer = job.scratch / "summary.txt"
    told = {
        "threads": threads,
        "scratch": str(job.scratch),
        "parallel": processes.parallel,
        "outputs": [str(path) for path in outputs],
        "answer": str(answer),
    }
    environment = {**os.environ, WORKER: json.dumps(told), "UNIME_THREADS": str(threads)}
    asked = [stage, *([item] if item else []), "--config", str(config_path)]
    command = [*_on_nodes(processes), sys.executable, "-m", __name__, str(processes.nodes), str(processes.each), *asked]
    job.log.info("%d processes on %d nodes: %s", processes.nodes * processes.each, processes.nodes, " ".join(command))
    owner = os.getpid()

    def end_with_owner() -> None:
        """Between fork and exec: have Linux send SIGTERM when the owner ends, also by kill -9; torchrun and srun pass it on."""
        end_with_parent(owner)

    worker = subprocess.Popen(command, env=environment, preexec_fn=end_with_owner)
    try:
        code = worker.wait()
    finally:
        _end(worker)
    if code or not answer.exists():
        raise StageError(f"{stage}: a process of this training ended with exit code {code}; logs/{stage}*.process-*.log say why")
    summary = answer.read_text(encoding="utf-8")
    answer.unlink()
    return summary


def _on_nodes(processes: Processes) -> list[str]:
    """What starts one command on each node.  Raises StageError outside a SLURM job; srun fails in one of fewer nodes."""
    if processes.nodes == 1:
        return []
    if not shutil.which("srun") or "SLURM_JOB_ID" not in os.environ:
        raise StageError(
            f"train.nodes is {processes.nodes}, but this is no SLURM job; run `snakemake --profile workflow/profiles/slurm`, or set "
            "train.nodes to 1"
        )
    count = str(processes.nodes)
    return ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpu-bind=none"]


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is not None:
        return
    worker.terminate()
    try:
        worker.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def meeting(nodes: int, environment: dict[str, str]) -> list[str]:
    """torchrun's options that say where its processes meet: one node alone, or the nodes of a SLURM step at its first."""
    if nodes == 1:
        return ["--standalone"]
    port = 20000 + (int(environment["SLURM_JOB_ID"]) * 64 + int(environment["SLURM_STEP_ID"])) % 20000
    host = first(environment["SLURM_STEP_NODELIST"])
    return [f"--node-rank={environment['SLURM_NODEID']}", f"--master-addr={host}", f"--master-port={port}"]


def first(hosts: str) -> str:
    """The first host of a list in SLURM's notation: `gpu[07-09,12],big1` -> `gpu07`."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", hosts)
    if not found:
        raise StageError(f"SLURM_STEP_NODELIST={hosts!r} names no host")
    return found[1] + (found[2] or "") + (found[3] or "")


def main(nodes: str, each: str, *asked: str) -> None:
    where = meeting(int(nodes), dict(os.environ))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={each}", "--max-restarts=0", *where]
    os.environ[TORCHRUN] = str(os.getpid())  # torchrun takes this process's place and keeps its number
    os.execv(sys.executable, [*command, "-m", "unime", *asked])


if __name__ == "__main__":
    main(*sys.argv[1:])
