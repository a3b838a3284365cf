"""Steps and batches follow the number of training rows, and a batch that is larger than the table is refused before anything runs."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from checkouts import ROOT, Checkout, new_checkout
from training import files, train, view_of, write_data

from unime import artifacts, config
from unime.__main__ import main
from unime.config import ConfigError
from unime.config.training import Epochs, UpTo
from unime.data import sets
from unime.data.images import Decoding
from unime.job import Job
from unime.plan import fits
from unime.report import protocol

KINDS = ("in_batch", "hard_negatives", "unime_v2", "reranker")
EPOCHS = {"epochs": 4, "min": 10, "max": 50}


def values() -> dict:
    """The preset for own data, with small batches that are plain numbers."""
    found = yaml.safe_load((ROOT / "presets/own-data.yaml").read_text(encoding="utf-8"))
    for kind in KINDS:
        found["train"][kind] |= {"steps": 20, "batch": 4, "warmup": 1}
    return found


def write_rows(root: Path, count: int, name: str = "pictures") -> None:
    for part in ("train", "eval"):
        folder = root / part / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"query_text": f"question {number}", "positive_text": f"answer {number}"} for number in range(count)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tables(folder: Path, root: Path, name: str = "pictures") -> None:
    """What data_train makes of the rows, where filter_train would leave it."""
    job = Job(None, 1, folder / "scratch", logging.getLogger("test"))
    items, pairs, _, labels = sets.read_train(str(root), name, "original", 1000, 1, Decoding(10**6), "skip", job)
    for file, table, schema in (("items", items, artifacts.ITEMS), ("pairs", pairs, artifacts.PAIRS), ("labels", labels, artifacts.LABELS)):
        artifacts.write_table(table, folder / f"results/data/train/{name}/{file}.parquet", schema)


# The settings


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "warmup"),
    [(1, 1, 10, 1), (10, 10, 10, 1), (63, 63, 10, 1), (64, 64, 10, 1), (480, 64, 30, 3), (800, 64, 50, 5), (10**6, 64, 50, 5)],
)
def test_steps_and_batch_follow_the_rows_within_their_bounds(rows: int, batch: int, steps: int, warmup: int) -> None:
    whole = values()
    for kind in KINDS:
        whole["train"][kind] |= {"steps": EPOCHS, "batch": {"max": 64}, "warmup": 0.1}
    for kind in KINDS:
        settings = getattr(config.parse(whole).train, kind)
        assert settings.follows_rows and isinstance(settings.steps, Epochs) and isinstance(settings.batch, UpTo)
        found = settings.resolved(rows)
        assert (found.batch, found.steps, found.warmup) == (batch, steps, warmup) and not found.follows_rows
        assert found.resolved(7) == found, "plain numbers stay as they are"


def test_plain_numbers_are_what_they_were() -> None:
    settings = config.load(ROOT / "config.yaml").train
    for kind in KINDS:
        own = getattr(settings, kind)
        assert not own.follows_rows and own.resolved(3) == own
        assert (type(own.steps), type(own.batch), type(own.warmup)) == (int, int, int)


@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [
        ("steps", {"epochs": 4, "min": 10}, "train.in_batch.steps.max: missing"),
        ("steps", {**EPOCHS, "min": 60}, "train.in_batch.steps: min 60 must be at most max 50"),
        ("steps", {**EPOCHS, "epochs": 0.0}, "train.in_batch.steps.epochs: 0.0"),
        ("steps", {**EPOCHS, "least": 3}, "train.in_batch.steps.least: unknown key"),
        ("steps", {**EPOCHS, "min": 1}, "train.in_batch: warmup 1 must be below steps 1"),
        ("steps", 2.5, "train.in_batch.steps: 2.5"),
        ("steps", "auto", "train.in_batch.steps: 'auto'"),
        ("steps", None, "train.in_batch.steps: None"),
        ("batch", {"max": 1}, "train.in_batch: batch.max 1 must be 2 or more"),
        ("batch", {"most": 8}, "train.in_batch.batch.most: unknown key"),
        ("batch", {"max": 0}, "train.in_batch.batch.max: 0"),
        ("batch", True, "train.in_batch.batch: True"),
        ("batch", [8], "train.in_batch.batch: [8]"),
        ("warmup", 1.0, "train.in_batch.warmup: 1.0"),
        ("warmup", -0.1, "train.in_batch.warmup: -0.1"),
        ("warmup", float("nan"), "train.in_batch.warmup: nan"),
        ("warmup", {}, "train.in_batch.warmup: {}"),
    ],
)
def test_a_wrong_form_is_refused_with_its_key(key: str, wrong: object, said: str) -> None:
    whole = values()
    whole["train"]["in_batch"][key] = wrong
    with pytest.raises(ConfigError) as raised:
        config.parse(whole)
    assert said in str(raised.value) and "form: " not in str(raised.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, pairs=24)
    return folder


@pytest.mark.parametrize("kind", ["in_batch", "unime_v2", "reranker"])
def test_a_training_that_follows_its_rows_is_the_one_with_these_numbers(kind: str, data: Path, nano: Path, tmp_path: Path) -> None:
    forms = {
        "rows": {"steps": {"epochs": 1.2, "min": 2, "max": 9}, "batch": {"max": 10}, "warmup": 0.3, "checkpoint": 50},
        "numbers": {"steps": 3, "batch": 10, "warmup": 1, "checkpoint": 50},
        "all rows": {"steps": {"epochs": 1.0, "min": 2, "max": 9}, "batch": {"max": 500}, "warmup": 1, "checkpoint": 50},
    }
    made = {}
    for name, changes in forms.items():
        train(kind, data, nano, tmp_path / name, tmp_path / f"scratch {name}", **changes)
        made[name] = files(tmp_path / name)
    assert made["rows"]["adapter_model.safetensors"] == made["numbers"]["adapter_model.safetensors"]
    assert made["rows"]["log.csv"] == made["numbers"]["log.csv"]
    card = (tmp_path / "rows/README.md").read_text()
    assert "| steps | 3 |" in card and "| queries in a step | 10 (batch: up to 10; steps: 1.2 epochs, 2 to 9 steps) |" in card
    assert "queries in a step" not in (tmp_path / "numbers/README.md").read_text()
    assert "| queries in a step | 24 (" in (tmp_path / "all rows/README.md").read_text()
    if kind != "reranker":
        negatives = view_of(kind, data, nano).train[kind].negatives if kind != "in_batch" else 0
        found = {name: protocol.Training.read(tmp_path / name / "log.csv", negatives) for name in made}
        assert [tuple(one) for one in found.values()] == [(3, 10, 2 + negatives)] * 2 + [(2, 24, 2 + negatives)]


# Refused before anything runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_above_the_rows_is_told_with_key_value_bound_and_remedy(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = values()
    whole["train"][kind]["batch"] = 41
    write_rows(Path("data/own"), 40)
    found = fits.problems(config.parse(whole))
    assert list(found) == [f"train_{kind}"]
    said = found[f"train_{kind}"]
    assert f"train.{kind}.batch is 41" in said and "40 rows at most" in said and "data/own" in said and "{max: 41}" in said
    for right in (40, {"max": 41}):
        whole["train"][kind]["batch"] = right
        assert fits.problems(config.parse(whole)) == {}


def test_rows_of_all_sets_are_added_up_each_within_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = values()
    whole["data"]["train_sets"] = ["a", "b"]
    whole["train"]["unime_v2"]["batch"] = 36
    write_rows(Path("data/own"), 20, "a")
    assert fits.problems(config.parse(whole)) == {}, "the rows of b are not known"
    write_rows(Path("data/own"), 15, "b")
    assert "35 rows" in fits.problems(config.parse(whole))["train_unime_v2"]
    whole["data"]["cap"] = 16
    assert "31 rows" in fits.problems(config.parse(whole))["train_unime_v2"]
    whole["train"]["unime_v2"]["batch"] = 31
    assert fits.problems(config.parse(whole)) == {}


def test_an_ablation_is_counted_too_and_its_own_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = values()
    whole["ablations"]["embedders"] = {
        "large": {"loss": "in_batch", "source": "judge", "batch": 41},
        "as-the-run": {"loss": "in_batch", "source": "judge"},
    }
    write_rows(Path("data/own"), 40)
    found = fits.problems(config.parse(whole))
    assert list(found) == ["ablation_train@large"] and "ablations.embedders.large.batch is 41" in found["ablation_train@large"]
    assert fits.of_the_run(found) == {}, "nobody has asked for it"


def test_every_format_is_counted_and_damaged_files_are_left_to_their_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = values()
    whole["train"]["in_batch"]["batch"] = 41
    folder = Path("data/own/train/pictures")
    folder.mkdir(parents=True)
    parsed = config.parse(whole)
    assert fits.problems(parsed) == {}, "nothing is there"
    table = pl.DataFrame({"query_text": [f"question {number}" for number in range(40)], "positive_text": ["answer"] * 40})
    table.write_parquet(folder / "rows.parquet")
    assert "40 rows" in fits.problems(parsed)["train_in_batch"]
    (folder / "more.jsonl").write_text('{"query_text": "q", "positive_text": "p"}\n\nnot JSON, and still a row at most\n')
    assert fits.problems(parsed) == {}, "40 and 2 are enough"
    (folder / "rows.parquet").write_bytes(b"damaged")
    assert fits.problems(parsed) == {}


def test_the_suite_is_counted_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert fits.problems(config.parse(whole)) == {}
    rows = whole["nano"]["suite"]["train_rows"] * len(whole["data"]["train_sets"])
    whole["train"]["reranker"]["batch"] = rows + 1
    assert f"{rows:,} rows" in fits.problems(config.parse(whole))["train_reranker"]


def test_tables_that_are_there_are_shorter_than_their_files_and_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = values()
    whole["train"]["in_batch"]["batch"] = 41
    write_rows(Path("data/own"), 40)
    file = Path("data/own/train/pictures/rows.jsonl")
    file.write_text(file.read_text() + '{"query_text": "wrong row"}\n' * 5)
    parsed = config.parse(whole)
    assert fits.problems(parsed) == {}, "45 lines"
    write_tables(tmp_path, Path("data/own"))
    assert "40 rows at most, counted in results/data/train" in fits.problems(parsed)["train_in_batch"]
    assert fits.problems(parsed, read=False) == {}, "tables of other rows than those that are there now"


def test_the_plan_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    whole = values()
    whole["train"]["unime_v2"]["batch"] = 41
    write_rows(Path("data/own"), 40)
    Path("config.yaml").write_text(yaml.safe_dump(whole))
    assert main(["plan", "--no-calibrate"]) == 1
    assert "train.unime_v2.batch is 41" in capsys.readouterr().err
    whole["train"]["unime_v2"] |= {"batch": {"max": 41}, "steps": EPOCHS}
    Path("config.yaml").write_text(yaml.safe_dump(whole))
    assert main(["plan", "--no-calibrate"]) == 0
    said = capsys.readouterr().out
    assert "train.unime_v2 on at most 40 rows: 10 steps of 40 queries (steps: 4 epochs, 10 to 50 steps; batch: up to 41)" in said
    assert f"{10 * 40 * 10:,}" in said, "items of the plan: 10 steps of 40 queries with a positive and 8 negatives each"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = new_checkout(tmp_path_factory.mktemp("rows") / "checkout", values())
    write_rows(made.root / "data/own", 40)
    return made


@pytest.mark.parametrize("kind", ["in_batch", "unime_v2", "reranker"])
def test_a_dry_run_refuses_it(kind: str, checkout: Checkout) -> None:
    before = checkout.sh("snakemake -n")
    assert "train_reranker" in before
    checkout.configure(f"train.{kind}.batch", 41)
    said = checkout.sh("snakemake -n", code=1)
    assert f"error: train.{kind}.batch is 41" in said and "40 rows at most" in said and "Traceback" not in said
    assert not (checkout.root / "results").exists()
    if kind == "in_batch":
        assert "filter_train" in checkout.sh("snakemake -n results/data/train"), "what does not train may run"
    checkout.configure(f"train.{kind}.batch", 4)


def test_usable_rows_that_are_too_few_stop_the_first_model_and_not_the_last(checkout: Checkout) -> None:
    folder = checkout.copy(checkout.root.with_name("few"))
    file = folder.root / "data/own/train/pictures/rows.jsonl"
    file.write_text(file.read_text() + '{"query_text": "wrong row"}\n' * 5)
    folder.configure("train.unime_v2.batch", 41)
    folder.sh("snakemake -n")
    said = folder.sh("snakemake --cores 2", code=1)
    assert "train.unime_v2.batch is 41" in said and "counted in results/data/train" in said
    assert not (folder.root / "results/train").exists() and not list((folder.root / "results").glob("judge*"))
    folder.configure("train.unime_v2.batch", {"max": 41})
    folder.sh("snakemake -n")
    shutil.rmtree(folder.root)
