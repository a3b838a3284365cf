"""docs/own-data.md, followed word by word."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from checkouts import ROOT, SLOW, sh, working_tree
from PIL import Image

from unime import artifacts, config
from unime.nano import makers, scenes

TEXT = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")


def test_the_configuration_for_own_data_is_valid_and_asks_for_no_benchmark() -> None:
    found = config.load(ROOT / "presets/own-data.yaml")
    assert found.data.train_sets == found.evaluate.tasks == ["pictures"] and found.data.root == "data/own"
    assert not (found.evaluate.crossmodal or found.fetch.train_sets or found.fetch.models or found.ablations.embedders)


def test_the_tutorial_says_what_the_nano_model_knows_before_anything_else_is_run() -> None:
    first, rest = TEXT.split("## 2. Rows")
    assert all(word in first for word in ("coloured shapes", "photograph", "warning:", "eight colours", "six shapes", "two sizes"))
    assert (len(scenes.COLORS), len(scenes.SHAPES), len(scenes.SIZES), len(scenes.PLACES)) == (8, 6, 2, 4), "what step 1 says of it"
    assert "(data.md)" in rest and "presets/own-data-qwen2vl-2b.yaml" in rest


def blocks() -> list[str]:
    """The tutorial's commands, in their order; those of its last section need weights that are downloaded."""
    return re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)


def clone(tmp_path: Path) -> Path:
    """A fresh checkout."""
    folder = working_tree(tmp_path / "clone", yaml.safe_load((ROOT / "config.yaml").read_text()))
    sh("git init -q && git add -A && git -c user.name=test -c user.email=test@example.org commit -qm start", folder)
    return folder


@pytest.mark.slow
@SLOW[1]
def test_the_tutorial_on_generated_pictures_ends_without_a_warning(tmp_path: Path) -> None:
    """Word by word, with the preset as it is."""
    folder = clone(tmp_path)
    assert len(blocks()) == 7
    example, rows, plan, run, table, search, other = [sh(block, folder) for block in blocks()]
    assert "200 images with captions" in example
    training, held = (int(count) for count in re.findall(r"\((\d+) rows\)", rows))
    assert training + held == 200 and held >= 20
    steps = max(100, round(12 * training / 16))
    assert f"train.unime_v2 on at most {training} rows: {steps} steps of 16 queries" in plan and f"{steps * 16 * 10:,}" in plan
    assert "warning" not in run.lower()
    assert artifacts.read_json(folder / "results/warnings.json") == {"warnings": []}
    page = (folder / "results/report.html").read_text(encoding="utf-8")
    assert 'id="warnings"' not in page and "Which model" in page
    assert "pictures: " in run and "has the highest figure" in run
    cards = [*folder.glob("results/train/*/README.md"), *folder.glob("results/export/*/README.md")]
    assert len(cards) == 8 and not any("## Warnings" in card.read_text() for card in cards)
    mined = artifacts.read_table(folder / "results/mine/judge/pictures/mined.parquet", artifacts.MINED)
    assert len(mined) == training and set(mined["negatives"].list.len()) == {10}
    assert "shape: (30, 4)" in table
    for said in (search, other):
        head, *found = said.splitlines()
        assert head.split() == ["rank", "cosine", "candidate"] and len(found) == 5
        assert all("data/own/train/pictures/images.zip/" in row for row in found)
    assert search != other, "another model"
    figures = pl.read_csv(folder / "results/mmeb_table.csv")
    trained, base = (figures.filter(pl.col("model") == name)["pictures"][0] for name in ("UniME-V2", "base zero-shot"))
    assert trained > base + 20
    for name in ("in_batch", "hard_negatives", "unime_v2"):
        merged = sh(blocks()[5].replace("export/unime_v2", f"export/{name}"), folder)
        adapter = sh(blocks()[5].replace("export/unime_v2", f"train/{name}"), folder)
        assert [row.split()[-1] for row in merged.splitlines()] == [row.split()[-1] for row in adapter.splitlines()], name
    reranker = sh(blocks()[5].replace("export/unime_v2", "export/reranker"), folder, code=1)
    assert "a reranker reads a query with its candidates and gives no vectors" in reranker
    assert "Nothing to be done" in sh("snakemake", folder)


def write_noise(folder: Path, count: int) -> None:
    """Pictures of random pixels, with captions that are true of nothing in them."""
    rng, captions = np.random.default_rng(0), {}
    while len(captions) < count:
        captions[makers.say(scenes.draw_scene(rng, "train"))] = None
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(caption + "\n", encoding="utf-8")


@pytest.mark.slow
@SLOW[1]
def test_the_tutorial_on_noise_ends_with_warnings(tmp_path: Path) -> None:
    """The same commands on pictures that the nano model cannot read; trainings are cut short, as their length is not what is warned of."""
    folder = clone(tmp_path)
    preset = folder / "presets/own-data.yaml"
    text, count = re.subn(r"steps: \{epochs[^}]*\}", "steps: 20", preset.read_text(encoding="utf-8"))
    assert count == 4
    preset.write_text(text, encoding="utf-8")
    write_noise(folder / "pictures", 120)
    said = [sh(block, folder) for block in blocks()[1:]]
    run = said[2]
    shown = artifacts.read_json(folder / "results/warnings.json")["warnings"]
    assert any("the judge" in one for one in shown)
    for one in shown:
        assert f"warning: {one}" in run, "on the screen"
    page = (folder / "results/report.html").read_text(encoding="utf-8")
    assert page.index('id="warnings"') < page.index('id="results"'), "on top of the report"
    for name in ("unime_v2", "hard_negatives", "in_batch", "reranker"):
        assert "## Warnings" in (folder / f"results/export/{name}/README.md").read_text(encoding="utf-8"), name
    assert len(said[4].splitlines()) == 6, "a search finds something all the same"
