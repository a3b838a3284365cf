"""Every rule in an environment of its own, built from its file's pins: `snakemake --use-conda` with a stand-in for conda.

Not built here: `judge-vllm` (gigabytes; its tests have an environment of their own, tests/vllm_env.sh) and the GPU's `search-gpu`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from checkouts import ENVIRONMENT, ROOT, SLOW, bytes_of, narrow, run_once, sh, working_tree

from unime.__main__ import code_of

pytestmark = SLOW
USED = {"data", "torch", "judge-transformers", "report"}
"""Environments of the default configuration's rules."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a shell whose conda is the stand-in."""
    folder = tmp_path_factory.mktemp("conda") / "base"
    subprocess.run([sys.executable, ROOT / "tests/conda_stand_in.py", "install", folder], check=True)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}"}


def test_every_rule_runs_with_only_what_its_environment_lists_and_a_second_clean_run_gives_the_same_bytes(
    stand_in, tmp_path, tmp_path_factory, monkeypatch
):
    alone, folder = run_once("narrow", narrow(), tmp_path_factory), working_tree(tmp_path / "conda", narrow())
    for name, value in stand_in.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    sh("git init -q && python -m snakemake --cores all --use-conda", folder)
    for name in ("mmeb_table.csv", "crossmodal_table.csv", "report.html", "metrics.json"):
        assert (folder / "results" / name).read_bytes() == (alone / "results" / name).read_bytes(), name
    for name in ("data", "embed", "retrieve", "judge", "mine", "train", "evaluate"):
        found = bytes_of(folder / "results" / name)
        assert found and found == bytes_of(alone / "results" / name), name

    files = {(ROOT / "envs" / f"{name}.yaml").read_text(): name for name in USED}
    built = {str(file.with_suffix("")): files[file.read_text()] for file in (folder / ".snakemake/conda").glob("*_.yaml")}
    assert sorted(built.values()) == sorted(USED)
    stages = {name: one.get("do", one) for name, one in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].items()}
    ran = set()
    for log in (folder / "logs").glob("*.log"):
        stage = log.name.split(".")[0]
        (prefix,) = re.findall(r"start, .*, python (\S+),", log.read_text())
        wanted = next(dep for dep in stages[stage]["deps"] if dep.startswith("envs/")).replace("${judge.backend}", "transformers")
        assert f"envs/{built[prefix]}.yaml" == wanted, stage
        ran.add(stage)
    assert ran >= {"suite", "nano_mllm", "data_train", "train_in_batch", "embed_train", "retrieve", "judge", "mine", "evaluate", "report"}
    for prefix, name in built.items():
        there = {one["name"].lower() for one in json.loads(sh(f"{prefix}/bin/python -m pip list --format json", folder))}
        assert not there & {"snakemake", "dvc", "unime", "pytest"}
        assert ("torch" in there) == (name in ("torch", "judge-transformers")) and ("matplotlib" in there) == (name == "report")
    assert "Nothing to be done" in sh("python -m snakemake --cores all --use-conda", folder)
    assert "Nothing to be done" in sh("python -m snakemake --cores all", folder), "with and without conda it is one run"


@pytest.mark.parametrize(("name", "stage"), [("fetch", "fetch_train"), ("judge-openai", None)])
def test_environments_that_the_default_does_not_use_load_their_code(stand_in, tmp_path, name, stage):
    prefix = tmp_path / name
    file = ROOT / "envs" / f"{name}.yaml"
    command = f"conda env create --quiet --no-default-packages --file {file} --prefix {prefix}"
    subprocess.run(command, shell=True, check=True, env=ENVIRONMENT | stand_in)
    modules = (
        [".".join(path.with_suffix("").parts) for path in code_of(stage)] if stage else ["unime.judge.openai_backend", "unime.doors.judge"]
    )
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name.removesuffix('.__init__'))"
    modules = [module for module in modules if not module.endswith("__main__")]
    done = subprocess.run([prefix / "bin/python", "-c", script, *modules], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
