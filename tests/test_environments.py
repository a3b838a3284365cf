"""Environment files, their locks, and the container recipes that are built from them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from checkouts import ENVIRONMENT, ROOT
from spython.main.parse.parsers import SingularityParser

FILES = sorted((ROOT / "envs").glob("*.yaml"))
LOCKS = sorted((ROOT / "envs/locks").glob("*.txt"))
PIN = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+]*$"
PINS = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string", "pattern": PIN}}
SCHEMA = {
    # what conda reads of such a file, with what this project asks for: python and pip by number, the rest pinned and from PyPI
    "type": "object",
    "required": ["channels", "dependencies"],
    "additionalProperties": False,
    "properties": {
        "channels": {"const": ["conda-forge", "nodefaults"]},
        "dependencies": {
            "type": "array",
            "minItems": 3,
            "maxItems": 3,
            "prefixItems": [
                {"type": "string", "pattern": r"^python=3\.\d+$"},
                {"type": "string", "pattern": r"^pip=\d+(\.\d+)+$"},
                {"type": "object", "required": ["pip"], "additionalProperties": False, "properties": {"pip": PINS}},
            ],
        },
    },
}


def pinned(path: Path) -> list[str]:
    """The packages of a lock."""
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_environment_file_passes_the_schema(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    text = path.read_text()
    values = yaml.safe_load(text)
    jsonschema.validate(values, SCHEMA)
    pins = values["dependencies"][-1]["pip"]
    assert pins == sorted(pins) and text.startswith("# "), "pins in order, and a first line that says what the environment is for"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("channels: [conda-forge, nodefaults]", "channels: [defaults]"),
        ("  - python=3.11\n", ""),
        ("python=3.11", "python"),
        ("numpy==2.4.6", "numpy>=2.4.6"),
        ("numpy==2.4.6", "numpy"),
        ("dependencies:", "prefix: /opt/one\ndependencies:"),
    ],
)
def test_the_schema_refuses_what_is_not_pinned(old: str, new: str) -> None:
    text = (ROOT / "envs/data.yaml").read_text()
    assert old in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text.replace(old, new)), SCHEMA)


def test_all_environments_have_one_python() -> None:
    assert len({yaml.safe_load(path.read_text())["dependencies"][0] for path in FILES}) == 1


def test_locks_hold_the_pins_of_their_environments(tmp_path: Path) -> None:
    names = {path.stem for path in FILES} | {"project", "project-gpu", "project-vllm"}
    assert {path.stem for path in LOCKS} == names
    for lock in LOCKS:
        lines = pinned(lock)
        assert lines == sorted(lines) and all(re.match(PIN, line) for line in lines), lock
        assert len({line.partition("==")[0] for line in lines}) == len(lines), lock
    command = [sys.executable, "workflow/lock.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr == ""

    for part in ("envs", "workflow"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "envs/data.yaml").write_text((tmp_path / "envs/data.yaml").read_text().replace("rich==15.0.0", "rich==15.0.1"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "envs/locks/data.txt lacks rich==15.0.1: python workflow/lock.py data\n")


def test_a_lock_with_torch_has_what_its_build_for_cuda_needs() -> None:
    """Resolved on a machine whose torch is the build for CPUs, a lock would pin a triton that PyPI's torch refuses."""
    with_torch = [lock for lock in LOCKS if any(line.startswith("torch==") for line in pinned(lock))]
    assert len(with_torch) == 6
    for lock in with_torch:
        names = {line.partition("==")[0] for line in pinned(lock)}
        assert {"triton", "nvidia-cudnn-cu13", "cuda-toolkit"} <= names and "+" not in lock.read_text(), lock
    assert len({line for lock in with_torch for line in pinned(lock) if line.startswith("triton==")}) == 1


def test_no_lock_has_two_packages_that_give_the_module_faiss() -> None:
    for lock in LOCKS:
        assert sum(line.startswith("faiss-") for line in pinned(lock)) <= 1, lock


# Containers.  They cannot be built here: their recipes are parsed and linted.


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([linter, ROOT / "containers/Dockerfile"], capture_output=True, text=True, check=True).stdout == ""
    (tmp_path / "Dockerfile").write_text((ROOT / "containers/Dockerfile").read_text().replace("--no-cache-dir ", ""))
    done = subprocess.run([linter, tmp_path / "Dockerfile"], capture_output=True, text=True, env=ENVIRONMENT | {"NO_COLOR": "1"})
    assert done.returncode == 1 and "DL3042" in done.stdout


def test_both_recipes_build_the_same_image_from_a_lock_that_is_there() -> None:
    texts = {name: (ROOT / "containers" / name).read_text() for name in ("Dockerfile", "unime.def")}
    steps = dict(re.findall(r"^([A-Z]+) (.+)$", re.sub(r"\\\n\s*", "", texts["Dockerfile"]), flags=re.M))
    runs = re.findall(r"^RUN (.+)$", re.sub(r"\\\n\s*", "", texts["Dockerfile"]), flags=re.M)
    apptainer = SingularityParser(str(ROOT / "containers/unime.def")).recipe["spython-base"]
    assert steps["FROM"] == apptainer.fromHeader and re.fullmatch(r"python:3\.11\.\d+-slim-\w+", steps["FROM"]), "the environments' python"
    assert [step for run in runs for step in run.replace("${LOCK}", "{{ LOCK }}").split(" && ")] == apptainer.install
    folder, pattern = re.search(r'"(/\S+)/(\S+)"$', runs[-1]).groups()
    assert steps["COPY"] == f"envs/locks/ {folder}/" and apptainer.files == [f"envs/locks {folder}"]
    for text in texts.values():
        named = re.findall(r"LOCK=(\S+)", text)
        assert set(named) == {"project", "project-gpu", "project-vllm"}
        assert all((ROOT / "envs/locks" / pattern.replace("${LOCK}", name)).is_file() for name in named)


def test_the_apptainer_recipe_has_the_sections_of_a_definition_file() -> None:
    text = (ROOT / "containers/unime.def").read_text()
    assert re.findall(r"^%(\w+)", text, flags=re.M) == ["arguments", "files", "post", "runscript"]
    assert set(re.findall(r"{{ (\w+) }}", text)) == set(re.findall(r"^    (\w+)=", text.split("%arguments")[1].split("%")[0], flags=re.M))
    script = text.split("%post")[1].split("%runscript")[0]
    shell = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, env=dict(os.environ))
    assert (shell.returncode, shell.stderr) == (0, "")
