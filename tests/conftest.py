"""Shared pieces: a tiny suite in the published formats, a model folder, the repository's configuration."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

from unime import config as config_module

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "assets" / "nano-mllm"


@pytest.fixture(scope="session")
def config():
    return config_module.load(ROOT / "config.yaml")


@pytest.fixture(scope="session")
def suite(tmp_path_factory, config):
    """A suite of 24 rows a training set and 12 queries a task, written once for the whole test run."""
    from unime.nano import suite as writer

    folder = tmp_path_factory.mktemp("suite")
    settings = config.nano.suite.model_copy(update={"train_rows": 24, "eval_rows": 12, "candidates": 20})
    writer.write(folder, settings)
    return folder


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """The shipped nano MLLM; a folder with random weights in a checkout that has none."""
    if (SHIPPED / "model.safetensors").exists():
        return SHIPPED
    from unime.nano import model

    return model.build(tmp_path_factory.mktemp("nano"), seed=1)


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A family's small folder by its name, built once for the whole test run; copy it to change it."""
    import families

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = families.build(name, tmp_path_factory.mktemp("families") / name)
        return made[name]

    return folder
