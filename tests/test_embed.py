"""Embedding in batches and shards equals embedding one item at a time, and a killed run goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from published import job, read_sets

from unime import artifacts, backbones, shards
from unime.data.images import Decoding
from unime.data.items import Items
from unime.embed import embed


@pytest.fixture(scope="module")
def items(suite: Path, config, tmp_path_factory) -> Items:
    folder = tmp_path_factory.mktemp("items")
    names = ["NanoColor", "NanoCaption_t2i", "NanoEdit"]
    return Items(read_sets(suite, names, "original", 12, 0, Decoding.of(config.data), "fail", job(folder))[0], Decoding(10**6))


@pytest.fixture(scope="module")
def backbone(nano: Path, config) -> backbones.Backbone:
    return backbones.load(nano, models=config.models)


def run(items: Items, backbone, scratch: Path, ids: list[str] | None = None, tokens: int = 400, shard: int = 10):
    quiet = job(scratch).track
    return embed(items.ids if ids is None else ids, items, backbone, batch_tokens=tokens, shard=shard, scratch=scratch, track=quiet)


def test_batches_equal_one_item_at_a_time(items: Items, backbone, tmp_path: Path):
    ids, vectors = run(items, backbone, tmp_path)
    assert ids == sorted(items.ids) and vectors.dtype == np.float32 and vectors.shape == (len(ids), 128)
    assert sum(items.has_image(id) for id in ids) > 10 and sum(not items.has_image(id) for id in ids) > 10
    with torch.inference_mode():
        alone = [backbone.embed(backbone.collate([backbone.item_prompt(items[id])])).numpy()[0] for id in ids]
    assert np.abs(vectors - np.stack(alone)).max() < 1e-5
    assert np.abs(vectors - vectors[0]).max() > 1e-3  # it does not compare one vector with itself
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_each_distinct_item_is_embedded_once_and_batches_hold_the_budget(items: Items, backbone, tmp_path: Path, monkeypatch):
    shapes = []
    whole = backbone.embed
    monkeypatch.setattr(
        backbone, "embed", lambda batch: (shapes.append((batch["input_ids"].shape, "image_grid_thw" in batch)), whole(batch))[1]
    )
    ids, _ = run(items, backbone, tmp_path, items.ids * 3, tokens=300)
    assert sum(shape[0] for shape, _ in shapes) == len(items.ids) == len(ids)
    assert all(rows * length <= 300 or rows == 1 for (rows, length), _ in shapes)
    assert any(rows > 1 for (rows, _), _ in shapes)
    assert sum(shape[0] for shape, images in shapes if images) == sum(items.has_image(id) for id in ids)  # texts are not among images


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(items: Items, backbone, tmp_path: Path, monkeypatch):
    ids, vectors = run(items, backbone, tmp_path / "whole")
    calls = []
    whole = backbone.embed

    def dies(batch):
        calls.append(len(batch["input_ids"]))
        if sum(calls) > 25:
            raise KeyboardInterrupt
        return whole(batch)

    monkeypatch.setattr(backbone, "embed", dies)
    with pytest.raises(KeyboardInterrupt):
        run(items, backbone, tmp_path / "cut")
    monkeypatch.setattr(backbone, "embed", whole)
    finished = sorted((tmp_path / "cut").glob("embed-*"))
    assert 0 < len(finished) < len(items.ids) / 10
    stamps = [place.stat().st_mtime_ns for place in finished]
    again, found = run(items, backbone, tmp_path / "cut")
    assert again == ids and found.tobytes() == vectors.tobytes()
    assert [place.stat().st_mtime_ns for place in finished] == stamps  # they were read, not made again


def test_the_number_of_threads_does_not_change_a_bit(items: Items, backbone, tmp_path: Path):
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(items, backbone, tmp_path / str(threads))[1])
            assert torch.get_num_threads() == threads
        assert found[0].tobytes() == found[1].tobytes()
    finally:
        torch.set_num_threads(before)


def test_a_vector_that_is_not_finite_names_its_item(items: Items, backbone, tmp_path: Path, monkeypatch):
    whole = backbone.embed
    monkeypatch.setattr(backbone, "embed", lambda batch: whole(batch) * float("nan"))
    with pytest.raises(ValueError, match=r"the vector of item [0-9a-f]{32} is not finite"):
        run(items, backbone, tmp_path)


def test_shards_of_another_run_are_refused(items: Items, backbone, tmp_path: Path):
    run(items, backbone, tmp_path, items.ids[:20])
    with pytest.raises(artifacts.ArtifactError, match="hold other items"):
        run(items, backbone, tmp_path, items.ids[1:21])
    with pytest.raises(ValueError, match="no items to embed"):
        run(items, backbone, tmp_path / "none", [])


def test_a_prompt_that_is_too_long_names_its_item(items: Items, nano: Path, config, tmp_path: Path):
    short = backbones.load(nano, models=config.models.model_copy(update={"max_length": 8}))
    with pytest.raises(ValueError, match=r"item [0-9a-f]{32}: .* models.max_length"):
        run(items, short, tmp_path)


def test_batches_are_longest_first_and_within_the_budget():
    lengths = [5, 9, 2, 9, 30, 1]
    found = shards.batches(lengths, 20)
    assert found == [[4], [1, 3], [0, 2, 5]]
    assert sorted(sum(found, [])) == list(range(6)) and shards.batches([], 20) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_spread_keeps_the_order_and_passes_errors_on(threads: int):
    assert list(shards.spread(range(50), lambda n: n * n, threads)) == [n * n for n in range(50)]

    def work(n: int) -> int:
        if n == 7:
            raise ValueError("seven")
        return n

    found = []
    with pytest.raises(ValueError, match="seven"):
        for n in shards.spread(range(50), work, threads):
            found.append(n)
    assert found == list(range(7))
