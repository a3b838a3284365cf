"""The embedded suite and its MLLM: what must hold of scenes, files, lessons, packing and pretraining."""

from __future__ import annotations

import hashlib
import json
import zipfile

import numpy as np
import polars as pl
import pytest
import torch

from unime import prompts
from unime.artifacts import TRUTH, content_id, read_table
from unime.nano import kinds, lessons, makers, packing, probe, refining, scenes
from unime.nano import model as nano_model
from unime.nano import suite as writer
from unime.nano.truth import Truth


def digest_of(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- scenes -------------------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_training_never_shows_a_held_out_pair():
    rng = np.random.default_rng(0)
    drawn = {split: {scenes.draw_scene(rng, split) for _ in range(300)} for split in ("train", "test", "held")}
    assert not drawn["train"] & drawn["test"]
    assert not any(thing.held for split in ("train", "test") for scene in drawn[split] for thing in scene)
    assert all(any(thing.held for thing in scene) for scene in drawn["held"])


@pytest.mark.parametrize("attribute", list(scenes.ATTRIBUTES))
def test_a_change_touches_one_attribute_of_one_thing_and_brings_in_no_held_out_pair(attribute):
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = scenes.draw_scene(rng, "train")
        other = scenes.change(rng, scene, attribute)
        gone, new = set(scene) - set(other), set(other) - set(scene)
        assert len(gone) == len(new) == 1 and len(other) == len(scene)
        a, b = gone.pop(), new.pop()
        assert [f for f in a._fields if getattr(a, f) != getattr(b, f)] == [attribute]
        assert not b.held


def test_a_caption_is_shown_only_by_a_scene_that_has_each_named_thing():
    red = scenes.Thing("top left", "large", "red", "circle")
    blue = scenes.Thing("top right", "small", "blue", "circle")
    assert scenes.shows((red, blue), (scenes.Thing("", "", "blue", "circle"),))
    assert not scenes.shows((red,), (scenes.Thing("", "small", "red", "circle"),))
    # two named things are two things, in whatever order they are matched
    assert scenes.shows((red, blue), (scenes.Thing("", "", "red", "circle"), scenes.Thing("", "", "blue", "circle")))
    assert not scenes.shows((red,), (red, red))


# ---- suite --------------------------------------------------------------------------------------------------------------------


def test_the_suite_has_the_published_layout_and_columns(suite):
    for name in kinds.TRAIN_SETS:
        table = pl.read_parquet(suite / "train" / name / "original-00000-of-00001.parquet")
        assert table.columns == ["qry", "qry_image_path", "pos_text", "pos_image_path"]
        members = set()
        with zipfile.ZipFile(suite / "train" / name / "images.zip") as archive:
            members = set(archive.namelist())
        paths = {p for p in [*table["qry_image_path"], *table["pos_image_path"]] if p}
        assert paths == members and all(p.startswith(f"images/{name}/Train/") for p in paths)
        diverse = pl.read_parquet(suite / "train" / name / "diverse_instruction-00000-of-00001.parquet")
        assert diverse["qry"].to_list() != table["qry"].to_list()
        assert diverse["pos_text"].to_list() == table["pos_text"].to_list()
    for task in kinds.TASKS:
        table = pl.read_parquet(suite / "eval" / task / "test-00000-of-00001.parquet")
        words, lists = pl.String, pl.List(pl.String)
        assert table.schema == {"qry_text": words, "qry_img_path": words, "tgt_text": lists, "tgt_img_path": lists}
        assert (table["tgt_text"].list.len() == table["tgt_img_path"].list.len()).all()


def test_two_writes_are_byte_identical_and_a_larger_one_keeps_its_sets_apart(suite, tmp_path, config):
    settings = config.nano.suite.model_copy(update={"train_rows": 24, "eval_rows": 12, "candidates": 20})
    writer.write(tmp_path / "again", settings)
    assert digest_of(tmp_path / "again") == digest_of(suite)
    writer.write(tmp_path / "other", settings.model_copy(update={"seed": 8}))
    assert digest_of(tmp_path / "other") != digest_of(suite)


def test_one_set_has_two_candidates_and_one_has_true_duplicates(suite):
    meme = pl.read_parquet(suite / "train" / "NanoMeme" / "original-00000-of-00001.parquet")
    assert meme["pos_text"].n_unique() == 2
    twins = pl.read_parquet(suite / "train" / writer.DUPLICATES / "original-00000-of-00001.parquet")
    with zipfile.ZipFile(suite / "train" / writer.DUPLICATES / "images.zip") as archive:
        ids = [content_id(text, archive.read(path)) for text, path in zip(twins["pos_text"], twins["pos_image_path"], strict=True)]
    assert len(set(ids)) < len(ids) == twins["pos_image_path"].n_unique(), "duplicates must be equal bytes under different names"


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_side_table_knows_every_training_item_and_says_which_labels_are_wrong(share, config, tmp_path):
    settings = config.nano.suite.model_copy(update={"train_rows": 60, "eval_rows": 2, "candidates": 4, "wrong_labels": share})
    writer.write(tmp_path, settings)
    wrong = {name: np.mean([not right for right in labels(tmp_path, name)]) for name in kinds.TRAIN_SETS}
    assert np.mean(list(wrong.values())) == pytest.approx(share, abs=0.07)
    assert all((found > 0) == (share > 0) for found in wrong.values())


def labels(suite, name):
    """Whether each row's positive answers its query, by the side table of one training set."""
    truth = Truth.load(suite / "train" / name / "truth.parquet")
    table = pl.read_parquet(suite / "train" / name / "original-00000-of-00001.parquet")
    with zipfile.ZipFile(suite / "train" / name / "images.zip") as archive:
        query, candidate = (
            [content_id(text, archive.read(path) if path else None) for text, path in zip(table[texts], table[paths], strict=True)]
            for texts, paths in (("qry", "qry_image_path"), ("pos_text", "pos_image_path"))
        )
    return [truth.matches(name, q, c) for q, c in zip(query, candidate, strict=True)]


def test_evaluation_candidates_hold_exactly_one_right_answer_and_it_is_the_first(config, monkeypatch):
    for task, (kind_name, split) in kinds.TASKS.items():
        kind, rng = kinds.KINDS[kind_name], np.random.default_rng(3)
        rows = [kind.make(rng, split, kind.ood or kind.phrasings) for _ in range(10)]
        for row in rows:
            sides = writer._candidates(rng, kind, row, rows, 15)
            right = [makers.meets(row.query.facts, side.facts) for side in sides]
            assert right[0] and sum(right) == 1, task


def test_ood_tasks_show_what_training_never_showed(suite):
    trained = set()
    for name in kinds.TRAIN_SETS:
        for row in read_table(suite / "train" / name / "truth.parquet", TRUTH)["facts"]:
            trained.add(row)
    text = " ".join(json.dumps(json.loads(row)) for row in trained)
    held_labels = [f"{color} {shape}" for color, shape in scenes.HELD]
    assert not any(label in text for label in held_labels)
    for task, (kind_name, split) in kinds.TASKS.items():
        if split == "held":
            phrases = {p.split("{")[0] for p in kinds.KINDS[kind_name].ood}
            assert phrases and not phrases & {p.split("{")[0] for k in kinds.TRAIN_SETS.values() for p in kinds.KINDS[k].phrasings}, task


# ---- model --------------------------------------------------------------------------------------------------------------------


def test_the_folder_opens_with_plain_transformers_and_yes_and_no_are_single_tokens(nano):
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(nano)
    tokenizer = AutoTokenizer.from_pretrained(nano)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert all(len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in (prompts.YES, prompts.NO))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    rendered, _ = packing.render([np.zeros((28, 28, 3), np.uint8), "What?"])
    assert text == rendered


def test_fast_patches_equal_the_processor_of_transformers(nano):
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor, rng = Qwen2VLImageProcessorPil.from_pretrained(nano), np.random.default_rng(0)
    for side in (28, 56):
        picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        expected = processor(images=[Image.fromarray(picture)], return_tensors="np")
        assert expected["image_grid_thw"].tolist() == [[1, side // 14, side // 14]]
        np.testing.assert_allclose(nano_model.patches(picture), expected["pixel_values"], atol=1e-6)


def test_a_list_counts_as_read_where_greedy_generation_says_its_number(nano):
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(nano, dtype=torch.float32).eval()
    tokenizer, rng, seen = AutoTokenizer.from_pretrained(nano), np.random.default_rng(4), set()
    kind = kinds.KINDS["Object"]
    for _ in range(12):
        row = kind.make(rng, "test", kind.phrasings)
        branch = lessons.listed(rng, row, lessons.misses(rng, "Object", row, 4))
        text, pictures = packing.render(branch.turn)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        shown = {"pixel_values": torch.from_numpy(nano_model.patches(pictures[0]))}
        shown["image_grid_thw"] = torch.tensor([[1, *(length // nano_model.PATCH for length in pictures[0].shape[:2])]])
        kinds_of_token = (ids == tokenizer.convert_tokens_to_ids(nano_model.IMAGE)).long()
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds_of_token, **shown, max_new_tokens=8, do_sample=False
        )
        said = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        right = branch._replace(answer=said)
        assert probe._reads(model, tokenizer, right)
        assert probe._reads(model, tokenizer, branch) == (said == branch.answer)
        seen.add(said)
    assert all(prompts.read_list_answer(said, refining.MOST) for said in seen), seen


def test_auc_counts_ties_half():
    assert probe.auc(np.array([1.0, 2.0]), np.array([0.0, 0.5])) == 1.0
    assert probe.auc(np.array([1.0]), np.array([1.0])) == 0.5
    rng = np.random.default_rng(0)
    right, wrong = rng.integers(0, 5, 40), rng.integers(0, 5, 30)
    expected = np.mean([(r > w) + 0.5 * (r == w) for r in right for w in wrong])
    assert abs(probe.auc(right, wrong) - expected) < 1e-12


def test_a_near_miss_is_found_even_where_no_single_change_misses():
    """Two equal things and a caption of one of them: changing either leaves a right answer."""
    thing = scenes.Thing("top left", "large", "red", "circle")
    scene = scenes.scene_of([thing, thing._replace(place="top right")])
    caption = {"caption": [["", "large", "red", "circle"]]}
    row = makers.Row(makers.Side("x", None, caption), makers.Side("y", None, {"scene": [list(t) for t in scene]}), scene)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert not makers.meets(caption, makers.t2i_wrong(rng, row).facts)


@pytest.mark.parametrize("name", list(kinds.KINDS))
def test_every_kinds_near_miss_misses(name):
    kind, rng = kinds.KINDS[name], np.random.default_rng(4)
    for _ in range(40):
        row = kind.make(rng, "train", kind.phrasings)
        assert makers.meets(row.query.facts, row.positive.facts)
        assert not makers.meets(row.query.facts, kind.wrong(rng, row).facts)
