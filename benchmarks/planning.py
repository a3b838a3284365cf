"""What the two tools cost when nothing is to be done, and what a job costs beside its command: python benchmarks/planning.py [rounds]

Two checkouts in a temporary folder: the default configuration, and the preset qwen2vl-2b (20 training sets, 36 + 11 evaluations), both
with the ablations' stages.  Every output is one small file, recorded with `dvc commit`: what is measured is the planning, not the
hashing of large files, which DVC does once a file.  The job is the stage that copies the nano MLLM, run by workflow/repro.py against
its bare command, a new parameter each time.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from dvc.repo import Repo

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}


def sh(command: str, cwd: Path) -> str:
    done = subprocess.run(command, shell=True, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def timed(command: str, cwd: Path) -> float:
    start = time.perf_counter()
    sh(command, cwd)
    return time.perf_counter() - start


def checkout(folder: Path, large: bool) -> int:
    """A checkout in which every stage counts as done; gives the number of stages."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    if large:
        shutil.copy(folder / "presets/qwen2vl-2b.yaml", folder / "config.yaml")
    sh("git init -q", folder)
    with Repo(folder) as repo:
        stages = repo.index.stages
        outs = [Path(out.fs_path) for stage in stages for out in stage.outs]
    for out in outs:
        if out == folder / "models/nano-mllm":  # as its stage makes it: it runs below, and must change nothing
            shutil.copytree(ROOT / "assets/nano-mllm", out)
        elif out.suffix:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(f"{out.name}\n")
        else:
            out.mkdir(parents=True, exist_ok=True)
            (out / "source.json").write_text(f"{out.name}\n")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    raw = folder / values["data"]["root"]
    for name in (*(f"train/{name}" for name in values["data"]["train_sets"]), "eval", "crossmodal"):
        (raw / name).mkdir(parents=True, exist_ok=True)
        (raw / name / "source.json").write_text(name)
    sh("dvc commit -q -f", folder)
    return len(stages)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for name, large in (("default configuration", False), ("preset qwen2vl-2b", True)):
            folder = Path(temporary) / name
            stages = checkout(folder, large)
            times: dict[str, list[float]] = {}
            config = yaml.safe_load((folder / "config.yaml").read_text())
            for number in range(rounds):
                if "Nothing to be done" not in sh("snakemake -n", folder) or "up to date" not in sh("dvc status", folder):
                    raise SystemExit(f"{folder}: something is stale; nothing to measure")
                for command in ("snakemake -n", "dvc status", "python workflow/repro.py report"):
                    times.setdefault(command, []).append(timed(command, folder))
                config["nano"]["pretrain"]["seed"] = 100 + number
                (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
                bare = timed("python -m unime nano_mllm", folder)
                job = timed("python workflow/repro.py nano_mllm", folder)
                times.setdefault("repro.py running a stage, without its command", []).append(job - bare)
                config["nano"]["pretrain"]["seed"] = 1100 + number
                (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
                planned = timed("snakemake -n models/nano-mllm", folder)
                once = timed("snakemake models/nano-mllm", folder)
                times.setdefault("a job under snakemake, without its command and the plan", []).append(once - planned - bare)
                sh("dvc commit -q -f settings", folder)  # it echoes every parameter
            lines = len((folder / "dvc.lock").read_text().splitlines())
            print(f"{name}: {stages} stages, {lines:,} lines of dvc.lock; seconds, median (min to max) of {rounds}")
            for what, found in times.items():
                print(f"  {what:56} {statistics.median(found):5.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
