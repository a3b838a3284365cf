"""Tools beside the stages: example images, rows of one's own, search."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from checkouts import ROOT

from unime import artifacts
from unime import config as config_module
from unime.__main__ import main
from unime.backbones import export, load
from unime.config.types import LONGEST_NAME
from unime.data import sets
from unime.data.images import Decoding
from unime.job import Job
from unime.tools import rows
from unime.train import card


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config, nano: Path) -> Path:
    """A folder with 30 example images and a configuration whose data lie in it."""
    monkeypatch.chdir(tmp_path)
    values = config.model_dump(mode="json")
    values["data"]["root"] = "own"
    values["models"] |= {"device": "cpu"}
    Path("config.yaml").write_text(yaml.safe_dump(values))
    assert main(["example", "pictures", "--images", "30"]) == 0
    return tmp_path


def test_example_images_are_distinct_and_have_captions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, texts = sorted(Path("pictures").glob("*.png")), sorted(Path("pictures").glob("*.txt"))
    assert len(images) == len(texts) == 30 and len({path.read_text() for path in texts}) == 30
    assert main(["example", "pictures"]) == 1 and "pictures is not empty" in capsys.readouterr().err


def test_rows_of_a_folder_are_read_by_the_loader_and_split_by_name(here: Path) -> None:
    assert main(["rows", "pictures", "shapes", "--direction", "both", "--held", "0.3"]) == 0
    job = Job(None, 1, here / "scratch", logging.getLogger("test"))
    _, pairs, report, _ = sets.read_train("own", "shapes", "original", 1000, 1, Decoding(10**6), "fail", job)
    _, tasks, found = sets.read_eval("own", "shapes", Decoding(10**6), "fail", job)
    assert (
        len(pairs) + len(tasks) == 60
        and 4 <= len(tasks) <= 30
        and report["modalities"] == {"image+text -> text": len(pairs) // 2} | {"text -> image+text": len(pairs) // 2}
    )
    train, held = (set(zipfile.ZipFile(f"own/{room}/shapes/images.zip").namelist()) for room in ("train", "eval"))
    assert not train & held and len(train | held) == 30
    assert found["queries"] == len(tasks)


def test_captions_may_stand_in_one_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{path.stem}.png,{path.read_text().strip()!r}" for path in sorted(Path("pictures").glob("*.txt"))]
    for path in Path("pictures").glob("*.txt"):
        path.unlink()
    table = Path("pictures/captions.csv")
    table.write_text("\n".join(["image,caption", *(line.replace("'", '"') for line in lines)]) + "\n")
    assert main(["rows", "pictures", "shapes"]) == 0
    row = json.loads(Path("own/train/shapes/rows.jsonl").read_text().splitlines()[0])
    assert row["query_text"].startswith("Find me an everyday image that matches the given caption: at the ") and row["positive_image"]
    table.write_text(table.read_text() + "none.png,a ring\n")
    assert main(["rows", "pictures", "others"]) == 1 and "'none.png' is no image in pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda: Path("pictures/0003.txt").unlink(), "0003.png has no caption (1 of 30 images)"),
        (lambda: Path("pictures/0003.txt").write_text(" \n"), "0003.png has no caption"),
        (lambda: Path("pictures/captions.csv").write_text("file,caption\n"), "column 'image' is missing"),
        (lambda: Path("own/train/shapes").mkdir(parents=True), "own/train/shapes is there already"),
    ],
)
def test_what_cannot_become_rows_is_named(here: Path, capsys: pytest.CaptureFixture[str], damage, reason: str) -> None:
    damage()
    assert main(["rows", "pictures", "shapes"]) == 1 and reason in capsys.readouterr().err


def test_rows_that_are_interrupted_leave_nothing_so_the_same_command_works(here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In the task, when the training set is written already; by a signal, and by a full disk."""
    written = rows.write
    for problem, code, said in (
        (KeyboardInterrupt(), 130, "interrupted; run the same"),
        (OSError(28, "No space left", "x"), 1, "No space left"),
    ):

        def torn(place: Path, *rest, problem=problem) -> None:
            written(place, *rest)
            if "eval" in place.parts:
                raise problem

        monkeypatch.setattr(rows, "write", torn)
        assert main(["rows", "pictures", "shapes"]) == code and said in capsys.readouterr().err
        assert not [path for path in Path("own").rglob("*") if path.is_file()]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(["rows", "pictures", "shapes"]) == 0 and Path("own/train/shapes/rows.jsonl").exists()


def test_an_example_that_is_interrupted_leaves_nothing_so_the_same_command_works(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unime.nano import suite

    encode, drawn = suite.png_of, []

    def torn(image) -> bytes:
        drawn.append(image)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return encode(image)

    monkeypatch.setattr(suite, "png_of", torn)
    assert main(["example", "more", "--images", "9"]) == 130 and list(Path("more").iterdir()) == []
    assert main(["example", "more", "--images", "9"]) == 0 and len(list(Path("more").iterdir())) == 18


def test_a_name_too_long_for_the_configuration_is_refused_before_anything_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rows", "pictures", "s" * (LONGEST_NAME + 1)]) == 1
    assert f"has {LONGEST_NAME + 1} characters; the name of a set has {LONGEST_NAME} at most" in capsys.readouterr().err
    assert not Path("own").exists()
    assert main(["rows", "pictures", "s" * LONGEST_NAME]) == 0


def write_data(here: Path) -> None:
    """What a data stage makes of the example pictures."""
    assert main(["rows", "pictures", "all", "--held", "0"]) == 0
    job = Job(None, 1, here / "scratch", logging.getLogger("test"))
    items, pairs, _, _ = sets.read_train("own", "all", "original", 1000, 1, Decoding(10**6), "fail", job)
    artifacts.write_table(items, "data/items.parquet", artifacts.ITEMS)
    artifacts.write_table(pairs, "data/pairs.parquet", artifacts.PAIRS)


def test_search_ranks_the_candidates_of_a_set_by_cosine_and_keeps_their_vectors(
    here: Path, nano: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(here)
    capsys.readouterr()
    text = "<|image_1|>\nRepresent the given image.\n"
    assert main(["search", str(nano), "data", "--query", text, "--image", "pictures/0007.png", "--top", "3"]) == 0
    first = capsys.readouterr().out
    head, *rows = first.splitlines()
    assert head.split() == ["rank", "cosine", "candidate"] and len(rows) == 3
    assert rows[0].split()[:2] == ["1", "1.0000"] and rows[0].endswith("images.zip/0007.png"), "a candidate is most similar to itself"
    values = [float(row.split()[1]) for row in rows]
    assert values == sorted(values, reverse=True) and values[2] < 1
    kept = {path: path.stat().st_mtime_ns for path in Path("scratch/search").rglob("*") if path.is_file()}
    assert kept and main(["search", str(nano), "data", "--query", text, "--image", "pictures/0007.png", "--top", "3"]) == 0
    assert capsys.readouterr().out == first and kept == {path: path.stat().st_mtime_ns for path in kept}
    assert main(["search", str(nano), "data"]) == 1 and "nothing to search for" in capsys.readouterr().err


def train_adapter(nano: Path, folder: Path, kind: str = "in_batch") -> None:
    """An adapter on the nano model that differs from it, with its card."""
    values = config_module.load(ROOT / "config.yaml")
    backbone = load(nano, models=values.models, train=True)
    backbone.add_lora(values.train.lora, 1)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    folder.mkdir(parents=True)
    backbone.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").write_text(f"---\nlibrary_name: peft\n---\n\n# {kind}\n\n{card.ABOUT[kind]}\n")


def test_search_takes_every_trained_embedder_as_adapter_or_as_merged_weights(
    here: Path, nano: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(here)
    train_adapter(nano, here / "train/in_batch")
    models = config_module.load("config.yaml").models
    export.export(nano, here / "train/in_batch", here / "export/in_batch", models=models, card="# in_batch\n")
    capsys.readouterr()
    found = {}
    for model in (nano, Path("train/in_batch"), Path("export/in_batch")):
        assert main(["search", str(model), "data", "--query", "a small red square"]) == 0
        found[model.parent.name] = [row.split() for row in capsys.readouterr().out.splitlines()[1:]]
    base, adapter, merged = found.values()
    assert [row[0] for row in adapter] == list("12345")
    assert adapter != base, "the adapter is used"
    assert [row[-1] for row in adapter] == [row[-1] for row in merged]
    for one, other in zip(adapter, merged, strict=True):
        assert abs(float(one[1]) - float(other[1])) < 2e-4


def test_search_refuses_what_gives_no_vectors(here: Path, nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(here)
    train_adapter(nano, here / "train/reranker", "reranker")
    assert main(["search", "train/reranker", "data", "--query", "a"]) == 1
    assert "train/reranker: a reranker reads" in capsys.readouterr().err
    train_adapter(nano, here / "train/lost")
    file = here / "train/lost/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "models/elsewhere"}))
    assert main(["search", "train/lost", "data", "--query", "a"]) == 1
    assert "an adapter for 'models/elsewhere', and there is no such folder here" in capsys.readouterr().err
