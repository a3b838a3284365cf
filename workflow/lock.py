"""Write envs/locks/<name>.txt: every package that an environment's pins bring with them, pinned too.

usage: python workflow/lock.py [--check] [NAME ...]      (names of envs/*.yaml, and of PROJECT; without a name all of them)

pip resolves the pins as it would install them from PyPI, whatever this machine's pip is set to (its torch may be a build without CUDA,
which needs other packages), and installs nothing (`--dry-run`).  --check only compares, without a network: each lock holds the pins of
its environment.  Run it after changing a pin, with the python of the environments, on Linux x86_64.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS, LOCKS = ROOT / "envs", ROOT / "envs/locks"
EXTRAS = ("deepspeed", "slurm")
PROJECT = {"project": ("", EXTRAS), "project-gpu": ("search-gpu", EXTRAS), "project-vllm": ("judge-vllm", ())}
"""Locks of one environment for all rules, as the container images have it: pyproject.toml's pins with these extras, and where an
environment is named, with its pins in place of those.  vLLM's numpy is too old for SLURM's plugin."""
HEAD = """\
# {source} with all that its pins need: python workflow/lock.py {name}
# Python {python} on Linux x86_64, from PyPI, whose torch is a build for CUDA that runs on a CPU too.
"""


def pins(name: str) -> list[str]:
    """The pip part of an environment file, or those of one of PROJECT."""
    if name in PROJECT:
        return project(*PROJECT[name])
    dependencies = yaml.safe_load((ENVIRONMENTS / f"{name}.yaml").read_text(encoding="utf-8"))["dependencies"]
    return next(line["pip"] for line in dependencies if isinstance(line, dict))


def project(over: str, extras: tuple[str, ...]) -> list[str]:
    """pyproject.toml's pins; those of the environment `over` in place of its own, and not two packages that give one module."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [*table["dependencies"], *(line for extra in extras for line in table["optional-dependencies"][extra])]
    named = {line.partition("==")[0]: line for line in [*found, *(pins(over) if over else [])]}
    if any(name.startswith("faiss-gpu") for name in named):
        del named["faiss-cpu"]
    return sorted(named.values())


def resolved(wanted: list[str]) -> list[str]:
    """What pip would install for these pins, as `name==version`.  Raises SystemExit with pip's words where they contradict each other."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--index-url", "https://pypi.org/simple"]
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONSTRAINT": ""}
    done = subprocess.run([*pip, "--report", "-", *wanted], capture_output=True, text=True, env=os.environ | own)
    if done.returncode:
        raise SystemExit(f"pip finds no packages for {' '.join(wanted)}:\n{done.stderr}")
    return sorted(pin(found["metadata"]) for found in json.loads(done.stdout)["install"])


def pin(package: dict[str, Any]) -> str:
    return f"{package['name'].lower().replace('_', '-')}=={package['version']}"


def held(name: str) -> list[str]:
    """The lines of a lock."""
    return [line for line in (LOCKS / f"{name}.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def main(arguments: list[str]) -> int:
    names = [one for one in arguments if one != "--check"] or [*sorted(file.stem for file in ENVIRONMENTS.glob("*.yaml")), *PROJECT]
    status = 0
    for name in names:
        if "--check" not in arguments:
            over, _ = PROJECT.get(name, (name, ()))
            files = ["pyproject.toml"] * (name in PROJECT) + [f"envs/{over}.yaml"] * bool(over)
            text = HEAD.format(name=name, source=" and ".join(files), python=f"{sys.version_info.major}.{sys.version_info.minor}")
            LOCKS.mkdir(exist_ok=True)
            (LOCKS / f"{name}.txt").write_text(text + "".join(f"{line}\n" for line in resolved(pins(name))), encoding="utf-8")
            print(f"envs/locks/{name}.txt: {len(held(name))} packages")
        elif lacking := sorted({one.lower().replace("_", "-") for one in pins(name)} - set(held(name))):
            print(f"envs/locks/{name}.txt lacks {lacking[0]}: python workflow/lock.py {name}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
