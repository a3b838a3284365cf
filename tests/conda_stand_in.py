"""A stand-in for conda, for machines that reach no channel: environments out of venv and pip, from the pins of the file and nothing else.

usage: python tests/conda_stand_in.py install FOLDER     makes FOLDER/bin/conda and FOLDER/bin/activate

It answers what Snakemake asks of conda 24.7 or later, and refuses everything else.  What it cannot show is that a channel has the python
and the pip that a file names: the python is the one that runs it, which must have the version of the file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ACTIVATE = """\
# source activate PREFIX
export CONDA_PREFIX="$1"
export PATH="$1/bin:$PATH"
"""


def install(folder: Path) -> None:
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(ACTIVATE)
    (binaries / "conda").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    (binaries / "conda").chmod(0o755)


def create(file: Path, prefix: Path) -> None:
    """An environment with the file's packages and what they need; whole or not at all."""
    found = yaml.safe_load(file.read_text())
    asked = dict(line.split("=") for line in found["dependencies"] if isinstance(line, str))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if asked["python"] != version:
        raise SystemExit(f"{file}: python {asked['python']} is asked for, this stand-in has {version}")
    pins = next(line["pip"] for line in found["dependencies"] if isinstance(line, dict))
    try:
        subprocess.run([sys.executable, "-m", "venv", prefix], check=True)
        pip = [prefix / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, f"pip=={asked['pip']}"], check=True)
        subprocess.run([*pip, *pins], check=True)
    except BaseException:
        shutil.rmtree(prefix, ignore_errors=True)
        raise


def main(arguments: list[str]) -> int:
    match arguments:
        case ["install", folder]:
            install(Path(folder).resolve())
        case ["--version"]:
            print("conda 24.7.1")
        case ["info", "--json"]:
            print(json.dumps({"conda_prefix": str(Path(shutil.which("conda") or "").resolve().parent.parent), "platform": "linux-64"}))
        case ["config", "--get", "channel_priority", "--json"]:
            print(json.dumps({"get": {"channel_priority": "strict"}}))
        case ["env", "create", "--quiet", "--no-default-packages", "--file", file, "--prefix", prefix]:
            create(Path(file), Path(prefix))
        case ["clean", "-y", *_]:  # packages that were downloaded: pip keeps its own
            pass
        case _:
            print(f"conda's stand-in does not know: conda {' '.join(arguments)}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
