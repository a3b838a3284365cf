"""The workflow on a real SLURM cluster of two nodes: the same table, and everything that can end a job or the run is recovered from.

The cluster (tests/slurm_cluster.sh) is a real slurmctld with two slurmd on this host; it wants root and Debian's packages.  Both nodes
share this machine's cores and its file system.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from checkouts import ENVIRONMENT, ROOT, SLOW, narrow, run_once, sh, working_tree
from test_processes import losses, weights

CLUSTER = ROOT / "tests/slurm_cluster.sh"
RUN = (
    "python -m snakemake --profile workflow/profiles/slurm --latency-wait 10 --slurm-init-seconds-before-status-checks 5 "
    "--seconds-between-status-checks 2"
)
"""The profile, with shorter waits: the cluster is on this host."""

LIMIT = 900
"""Seconds after which a run is taken to wait for ever."""

pytestmark = [
    pytest.mark.slurm,
    *SLOW[1:],
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("apt-get"), reason="a SLURM cluster on this host wants root and Debian"),
    pytest.mark.skipif(not find_spec("snakemake_executor_plugin_slurm"), reason="pip install -e '.[slurm]'"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="unime-slurm-"))
    folder.chmod(0o755)  # munged's socket must be within everybody's reach, and pytest's own folders are not
    options = ["-d", str(folder), "--nodes", "2", "--cpus", "2", "--mem", "8000"]
    before = dict(ENVIRONMENT)
    try:
        started = subprocess.run([CLUSTER, "start", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert started.returncode == 0, started.stdout
        ENVIRONMENT["SLURM_CONF"] = str(folder / "etc/slurm.conf")
        yield
    finally:
        ENVIRONMENT.clear()
        ENVIRONMENT.update(before)
        subprocess.run([CLUSTER, "stop", "-d", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose run, on this machine alone, is complete."""
    return run_once("narrow", narrow(), tmp_path_factory)


def copy(finished: Path, folder: Path, *forgotten: str) -> Path:
    """The finished checkout, in which these stages have never run."""
    shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns("runs", ".snakemake", "logs"))
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    for stage in forgotten:
        for out in lock["stages"].pop(stage)["outs"]:
            shutil.rmtree(folder / out["path"])
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    return folder


def start(folder: Path, target: str = "all") -> subprocess.Popen[str]:
    with (folder / "screen.txt").open("a") as screen:
        return subprocess.Popen(f"exec {RUN} {target}", shell=True, cwd=folder, env=ENVIRONMENT, stdout=screen, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen[str], folder: Path, code: int = 0) -> str:
    assert process.wait(LIMIT) == code, (folder / "screen.txt").read_text()[-6000:]
    return (folder / "screen.txt").read_text()


def until(there: Callable[[], object], process: subprocess.Popen[str] | None = None) -> object:
    """Wait until something holds, while a process runs."""
    limit = time.monotonic() + LIMIT
    while not (found := there()):
        assert time.monotonic() < limit and (process is None or process.poll() is None)
        time.sleep(0.2)
    return found


def queue(state: str = "PD,R,CG") -> list[str]:
    """Jobs in these states, as `<id> <rule and wildcards>`."""
    return sh(f"squeue -h -t {state} -o '%i %k'", ROOT).splitlines()


def running(rule: str) -> list[str]:
    """Ids of running jobs of a rule."""
    return [line.split()[0] for line in queue("R") if re.search(rf" rule_{rule}(_wildcards_.*)?$", line)]


def states(state: str, rule: str) -> list[str]:
    """Jobs of a rule that SLURM has seen end in this state."""
    return [line for line in sh("squeue -h -t all -o '%T %k'", ROOT).splitlines() if re.match(rf"{state} .*rule_{rule}(_|$)", line)]


def shares(folder: Path, stage: str) -> int:
    """Scratch files that lie there of a stage."""
    return len([path for path in (folder / "scratch").glob(f"{stage}/*/*") if path.is_file()])


def test_two_nodes_make_the_local_table_to_the_byte_whatever_ends_jobs_and_runs(cluster, finished, tmp_path):
    """From nothing to the table, with the main process ended twice, and one job each out of memory, over its time, and cancelled."""
    values = narrow()
    values["jobs"] |= {"parts": {"embed_train": 2, "judge": 2}, "minutes": {"default": 30, "train_reranker": 1}}
    values["jobs"]["memory"] = {"default": 1500, "judge": 400}  # half of what it takes
    folder = working_tree(tmp_path / "cluster", values)
    sh("git init -q", folder)

    process = start(folder)
    until(lambda: shares(folder, "train_in_batch"), process)
    process.send_signal(signal.SIGINT)
    process.wait(LIMIT)
    until(lambda: not queue())
    assert not (folder / "results/train/in_batch").exists()

    process = start(folder)
    until(lambda: states("TIMEOUT", "train_reranker"), process)
    log = folder / "logs/train_reranker.log"
    until(lambda: log.exists() and "resumed after step" in log.read_text(), process)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)
    assert running("train_reranker"), "nobody has cancelled it"
    assert "DVC is at work in this checkout" in sh(RUN, folder, code=1)
    sh(recovery(), folder)
    until(lambda: not queue())
    assert not (folder / "results/train/reranker").exists()

    process = start(folder)
    (first, *_) = until(lambda: running("evaluate"), process)
    sh(f"scancel {first}", folder)
    said = ended(process, folder)
    for name in ("mmeb_table.csv", "crossmodal_table.csv", "report.html"):
        assert (folder / "results" / name).read_bytes() == (finished / "results" / name).read_bytes(), name
    told = [path.read_text() for path in (folder / ".snakemake/slurm_logs/rule_judge_part").rglob("*.log")]
    assert any("exceeded memory limit" in text for text in told) and states("CANCELLED", "evaluate") and not queue()
    assert {"node1", "node2"} <= set(sh("squeue -h -t all -o %N", ROOT).split())
    assert "resumed after step" in log.read_text(), "what was trained before counts"
    for name, parts in (("judge.NanoColor", 2), ("embed_train.NanoColor", 2)):
        assert len(list((folder / "logs/dvc").glob(f"{name}.*-of-{parts}.log"))) == parts
    assert "judge: " not in (folder / "logs/judge.NanoColor.log").read_text(), "the parts made all shards"
    assert not [path for path in (folder / "scratch").glob("*/*/*") if path.is_file()] and "jobs (steps)" not in said
    assert "Nothing to be done" in sh(RUN, folder)


def test_two_nodes_train_what_one_process_does(cluster, finished, tmp_path):
    folder = copy(finished, tmp_path / "nodes", "train_unime_v2")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["train"] |= {"nodes": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    ended(start(folder, "results/train/unime_v2"), folder)
    log = (folder / "logs/train_unime_v2.log").read_text()
    assert "2 processes on 2 nodes: srun --nodes=2" in log
    one, two = (losses(place / "results/train/unime_v2") for place in (finished, folder))
    assert len(one) == 6 and one.std() > 1e-3 and abs(one - two).max() < 1e-4 * abs(one).max()
    assert abs(weights(finished / "results/train/unime_v2") - weights(folder / "results/train/unime_v2")).max() < 1e-3


def recovery() -> str:
    """The command of docs/slurm.md that ends stray jobs."""
    (found,) = re.findall(r"^squeue --me .*scancel.*$", (ROOT / "docs/slurm.md").read_text(), flags=re.M)
    return found


def test_a_stray_job_of_another_configuration_leaves_nothing(cluster, finished, tmp_path):
    """The main process is killed and the configuration changed while the old job trains: it fails at its end, and the next run is new."""
    folder = copy(finished, tmp_path / "stray", "train_reranker")
    process = start(folder, "results/train/reranker")
    until(lambda: shares(folder, "train_reranker"))
    (stray,) = running("train_reranker")
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["train"]["reranker"] |= {"steps": 10}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    until(lambda: not queue())
    assert sh(f"squeue -h -t all -j {stray} -o %T", ROOT).strip() == "FAILED"
    assert "changed while train_reranker was running" in (folder / "logs/dvc/train_reranker.log").read_text()
    assert not list((folder / "results/train").glob("*reranker*"))
    ended(start(folder, "results/train/reranker"), folder)
    assert len(losses(folder / "results/train/reranker")) == 10 and not queue()
    assert "Nothing to be done" in sh(f"{RUN} results/train/reranker", folder)
