"""docs/own-data.md, followed word by word."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from checkouts import ROOT, SLOW, sh, working_tree

from unime import artifacts, config

TEXT = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")


def test_the_configuration_for_own_data_is_valid_and_asks_for_no_benchmark() -> None:
    found = config.load(ROOT / "presets/own-data.yaml")
    assert found.data.train_sets == found.evaluate.tasks == ["pictures"] and found.data.root == "data/own"
    assert not (found.evaluate.crossmodal or found.fetch.train_sets or found.fetch.models or found.ablations.embedders)


@pytest.mark.slow
@SLOW[1]
def test_the_how_to_ends_with_mined_negatives_an_embedder_and_a_search(tmp_path: Path) -> None:
    folder = working_tree(tmp_path / "clone", yaml.safe_load((ROOT / "config.yaml").read_text()))
    text = (folder / "presets/own-data.yaml").read_text()  # trainings that the how-to shows nothing of are cut short
    for old, new in (("hard_negatives: {steps: 300, ", "hard_negatives: {steps: 40, "), ("    steps: 40\n", "    steps: 5\n")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "presets/own-data.yaml").write_text(text)
    sh("git init -q && git add -A && git -c user.name=test -c user.email=test@example.org commit -qm start", folder)
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) == 5
    said = [sh(block, folder) for block in blocks]
    assert "200 images with captions" in said[0] and "163 rows" in said[1]
    mined = artifacts.read_table(folder / "results/mine/judge/pictures/mined.parquet", artifacts.MINED)
    assert len(mined) == 163 and set(mined["negatives"].list.len()) == {10}
    assert "shape: (30, 4)" in said[3]
    assert (folder / "results/export/unime_v2/model.safetensors").exists()
    head, *rows = said[4].splitlines()
    assert head.split() == ["rank", "cosine", "candidate"] and len(rows) == 5
    assert all("data/own/train/pictures/images.zip/" in row for row in rows)
    table = pl.read_csv(folder / "results/mmeb_table.csv")
    trained, base = (table.filter(pl.col("model") == name)["pictures"][0] for name in ("UniME-V2", "base zero-shot"))
    assert trained > base + 20
    assert "Nothing to be done" in sh("snakemake", folder)
