"""What the tests share that run the whole pipeline in a checkout of their own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml

from unime import config as config_module

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}

SLOW = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "assets" / "nano-mllm" / "model.safetensors").exists(), reason="assets/nano-mllm has no weights in this checkout"
    ),
]


def sh(command: str, cwd: Path, code: int = 0) -> str:
    """What a command prints, its exit code checked."""
    done = subprocess.run(command, shell=True, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def small(suite: dict[str, int], training: dict[str, int], sets: list[str], tasks: list[str], captions: list[str]) -> dict:
    """The repository's configuration with these values of the suite and of every training, these training sets, tasks and caption tasks."""
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["nano"]["suite"] |= suite
    values["data"]["train_sets"], values["evaluate"]["tasks"] = sets, tasks
    values["evaluate"]["crossmodal"] = captions
    for name in ("in_batch", "hard_negatives", "unime_v2", "reranker"):
        values["train"][name] |= training
    config_module.parse(values)
    return values


def bytes_of(folder: Path) -> dict[str, str]:
    """Each file's SHA-256, but for what Snakemake and DVC leave beside outputs."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in (".snakemake_timestamp", ".gitignore")
    }


def narrow() -> dict:
    """A configuration with little of everything; its reranker alone trains for more than a minute."""
    training = {"steps": 6, "batch": 16, "micro": 8, "warmup": 1, "checkpoint": 2}
    suite = {"train_rows": 40, "eval_rows": 8, "candidates": 12}
    values = small(suite, training, ["NanoColor"], ["NanoColor", "NanoCaption_i2t"], ["NanoScenes_i2t"])
    values["judge"]["shard"], values["embed"]["shard"], values["export"] = 4, 32, {}
    values["train"]["reranker"] |= {"steps": 120, "batch": 16, "micro": 16, "checkpoint": 2}
    return values


def run_once(name: str, values: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git checkout with this configuration in which `snakemake --cores all` has run; to be copied, not changed.

    It is made once for all workers of a test run, and once for several test runs where UNIME_TEST_RUNS names a folder for them.
    """
    root = Path(os.environ.get("UNIME_TEST_RUNS") or tmp_path_factory.getbasetemp())
    if "PYTEST_XDIST_WORKER" in os.environ and "UNIME_TEST_RUNS" not in os.environ:
        root = root.parent  # each worker's own folder lies in the run's
    folder, whole = root / "once" / name, root / "once" / f"{name}.whole"
    folder.parent.mkdir(exist_ok=True)
    with whole.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            working_tree(folder, values)
            identity = "git config user.name test && git config user.email test@example.org"
            sh(f"git init -q && {identity} && git add -A && git commit -qm start && python -m snakemake --cores all", folder)
            whole.touch()
    return folder


def working_tree(folder: Path, values: dict) -> Path:
    """This working tree's tracked and new files in `folder`, with another configuration."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists() and name != "dvc.lock":
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


class Checkout:
    """A Git checkout, and what its tools say and do.

    What was truly computed is read from the stages' own logs: a stage that DVC skips or restores writes none.
    """

    def __init__(self, root: Path):
        self.root = root
        self.seen: dict[Path, int] = self._logs()

    def sh(self, command: str, code: int = 0) -> str:
        return sh(command, self.root, code)

    def start(self, command: str) -> subprocess.Popen[str]:
        """A command in the background, in a process group of its own."""
        return subprocess.Popen(
            command,
            shell=True,
            cwd=self.root,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def until(self, path: str, process: subprocess.Popen[str]) -> None:
        """Wait for a file that a running command writes."""
        limit = time.monotonic() + 120
        while not list(self.root.glob(path)):
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < limit, path
            time.sleep(0.02)

    def _logs(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (self.root / "logs").glob("*.log")}

    def computed(self) -> set[str]:
        """Stages whose command has run since this was last asked."""
        now = self._logs()
        found = {path.stem.replace(".", "@", 1) for path, stamp in now.items() if self.seen.get(path) != stamp}
        self.seen = now
        return found

    def plan(self, target: str = "") -> set[str]:
        return set(re.findall(r"output:.*?snakemake/done/(\S+)", self.sh(f"snakemake -n {target}")))

    def plan_dvc(self) -> set[str]:
        return set(re.findall(r"Running stage '(.*?)'", self.sh("dvc repro --dry --force-downstream")))

    def status(self) -> set[str]:
        return set(json.loads(self.sh("dvc status --json dvc.yaml")))  # without the ablations, which nobody has asked for

    def lock(self) -> dict[str, dict]:
        return load_yaml(self.root / "dvc.lock")["stages"]

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert text.count(old) == 1, (path, old)
        (self.root / path).write_text(text.replace(old, new))

    def configure(self, key: str, value: object) -> None:
        """Set one value of config.yaml."""
        values = yaml.safe_load((self.root / "config.yaml").read_text())
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
        config_module.parse(values)
        (self.root / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def copy(self, folder: Path) -> Checkout:
        shutil.copytree(self.root, folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
        return Checkout(folder)

    def clone(self, folder: Path, pull: bool = False) -> Checkout:
        """A Git clone of this checkout's committed state."""
        self.sh("git add -A && git commit -qm state --allow-empty")
        self.sh(f"git clone -q . '{folder}'")
        other = Checkout(folder)
        if pull:
            other.sh("dvc pull -q dvc.yaml")
        return other

    def assert_clean(self) -> None:
        """Both tools say that nothing is to be done."""
        assert self.status() == set() and "Nothing to be done" in self.sh("snakemake -n")

    def assert_idle(self) -> None:
        """Every tool says that nothing is to be done, in each of its ways, and does nothing."""
        self.assert_clean()
        assert self.plan_dvc() == set() and "Nothing to be done" in self.sh("snakemake")
        assert self.sh("dvc repro").count("didn't change, skipping") == len(self.sh("dvc stage list --name-only").split())
        assert self.computed() == set()


def new_checkout(folder: Path, values: dict) -> Checkout:
    """A Git checkout of this working tree, all of it committed, with this configuration; nothing has run."""
    working_tree(folder, values)
    made = Checkout(folder)
    made.sh("git init -q && git config user.name test && git config user.email test@example.org && git add -A && git commit -qm start")
    return made
