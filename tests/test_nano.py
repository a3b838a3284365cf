"""The embedded suite and its MLLM: what must hold of scenes, files, lessons, packing and pretraining."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zipfile

import numpy as np
import polars as pl
import pytest
import torch

from unime import prompts
from unime.artifacts import TRUTH, content_id, read_table
from unime.lanes import ONE
from unime.nano import kinds, lessons, makers, packing, plan, pretrain, probe, scenes
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
        table = pl.read_parquet(suite / "MMEB-train" / name / "original-00000-of-00001.parquet")
        assert table.columns == ["qry", "qry_image_path", "pos_text", "pos_image_path"]
        members = set()
        with zipfile.ZipFile(suite / "MMEB-train" / "images_zip" / f"{name}.zip") as archive:
            members = set(archive.namelist())
        paths = {p for p in [*table["qry_image_path"], *table["pos_image_path"]] if p}
        assert paths == members and all(p.startswith(f"images/{name}/Train/") for p in paths)
        diverse = pl.read_parquet(suite / "MMEB-train" / name / "diverse_instruction-00000-of-00001.parquet")
        assert diverse["qry"].to_list() != table["qry"].to_list()
        assert diverse["pos_text"].to_list() == table["pos_text"].to_list()
    for task in kinds.TASKS:
        table = pl.read_parquet(suite / "MMEB-eval" / task / "test-00000-of-00001.parquet")
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
    meme = pl.read_parquet(suite / "MMEB-train" / "NanoMeme" / "original-00000-of-00001.parquet")
    assert meme["pos_text"].n_unique() == 2
    twins = pl.read_parquet(suite / "MMEB-train" / writer.DUPLICATES / "original-00000-of-00001.parquet")
    with zipfile.ZipFile(suite / "MMEB-train" / "images_zip" / f"{writer.DUPLICATES}.zip") as archive:
        ids = [content_id(text, archive.read(path)) for text, path in zip(twins["pos_text"], twins["pos_image_path"], strict=True)]
    assert len(set(ids)) < len(ids) == twins["pos_image_path"].n_unique(), "duplicates must be equal bytes under different names"


def test_the_side_table_knows_every_training_item_and_says_that_each_positive_is_right(suite):
    truth = Truth.load(suite / "truth.parquet")
    for name in kinds.TRAIN_SETS:
        table = pl.read_parquet(suite / "MMEB-train" / name / "original-00000-of-00001.parquet")
        with zipfile.ZipFile(suite / "MMEB-train" / "images_zip" / f"{name}.zip") as archive:
            ids = [
                [content_id(text, archive.read(path) if path else None) for text, path in zip(table[t], table[p], strict=True)]
                for t, p in (("qry", "qry_image_path"), ("pos_text", "pos_image_path"))
            ]
        assert all(truth.matches(name, q, c) for q, c in zip(*ids, strict=True))


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
        for row in read_table(suite / "truth.parquet", TRUTH).filter(pl.col("dataset") == name)["facts"]:
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


@pytest.fixture(scope="module")
def fresh():
    return nano_model.create(seed=3)


def test_packed_lessons_give_the_losses_of_unpacked_ones(fresh):
    """The packed loss sum over answers equals that of every branch alone, through the model's own positions and causal mask."""
    model, tokenizer = fresh
    model.eval()
    image, pad = (tokenizer.convert_tokens_to_ids(t) for t in (nano_model.IMAGE, nano_model.PAD))
    rng = np.random.default_rng(5)
    groups = [lessons.judge(rng, name) for name in ("Caption_i2t", "Edit", "Crop", "Caption_t2i")]
    groups += [lessons.judge_full(rng), lessons.judge_shown(rng), lessons.answer(rng)]
    groups += [lessons.pick(rng, "Twin"), lessons.pick(rng, "Color")]
    # What branches share is asked once in a group: words, and verdicts inside a candidate, have tests of their own.
    groups = [[branch._replace(words=0.0, so_far=(), cells=()) for branch in group] for group in groups]
    encoded = packing.encode(groups, tokenizer)
    assert all((e.branch == 0).sum() > 30 for e in encoded[:5]), "prefixes must really be shared"
    batch = packing.pack(encoded, pad, image)
    assert batch["input_ids"].shape[0] < len(groups), "rows must really hold several groups"
    packed = weighted_sum(model, batch)
    alone = sum(weighted_sum(model, packing.pack(packing.encode([[b]], tokenizer), pad, image)) for g in groups for b in g)
    plain = sum(plain_sum(model, tokenizer, branch, image) for group in groups for branch in group)
    assert abs(packed - alone) < 1e-3 * abs(alone) and abs(packed - plain) < 1e-3 * abs(plain)


def test_verdicts_inside_a_candidate_are_asked_at_its_words_and_visual_tokens(fresh):
    model, tokenizer = fresh
    model.eval()
    image, pad = (tokenizer.convert_tokens_to_ids(t) for t in (nano_model.IMAGE, nano_model.PAD))
    rng, asked = np.random.default_rng(6), set()
    for name in ("Object", "Caption_i2t", "Phrase", "Twin", "Edit", "Crop"):
        groups = (lessons.judge(rng, name) for _ in range(50))
        for branch in next(group for group in groups if group[0].so_far or group[0].cells):
            packed = weighted_sum(model, packing.pack(packing.encode([[branch]], tokenizer), pad, image))
            assert packed == pytest.approx(plain_sum(model, tokenizer, branch, image), rel=1e-3)
            assert packed > 1.05 * plain_sum(model, tokenizer, branch._replace(so_far=(), cells=()), image)
            asked |= {verdict for _, verdict in branch.so_far} | set(branch.cells)
    assert asked == {prompts.YES, prompts.NO}


def test_a_verdict_inside_a_caption_is_true_of_the_words_before_it():
    rng, kind, seen = np.random.default_rng(7), kinds.KINDS["Caption_i2t"], []
    for _ in range(50):
        row = kind.make(rng, "train", kind.phrasings)
        for side in (row.positive, kind.wrong(rng, row)):
            verdicts = lessons.so_far("Caption_i2t", row.scene, side)
            words = [side.text[: len(side.text) - back + 1] for back, _ in verdicts]
            for text, (_, verdict) in zip(words, verdicts, strict=True):
                assert verdict == ("Yes" if any(fits(text, things) for things in itertools.permutations(row.scene)) else "No"), text
            assert words[-1] == side.text.strip()
            seen.append(verdicts[-1][1] == "Yes")
            assert seen[-1] == makers.meets(row.query.facts, side.facts)
    assert 0.2 < np.mean(seen) < 0.8


def fits(text, things):
    """Whether each phrase of a caption names only attributes of its own thing."""
    parts = text.split(", ")
    return len(parts) <= len(things) and all(
        all(word in (*thing.place.split(), thing.size, thing.color, thing.shape, "at", "the", "a") for word in part.split())
        for part, thing in zip(parts, things, strict=False)
    )


def test_a_verdict_at_a_visual_token_tells_whether_the_picture_is_right_up_to_its_place():
    scene = scenes.read("top left: large red circle; bottom left: small blue ring")
    twin = makers.picture(np.random.default_rng(0), scene, {"is": scenes.describe(scene)})
    assert lessons.cells("Twin", scene, twin) == ("Yes",) * 4
    for text, verdicts in {
        "top left: large red ring; bottom left: small blue ring": ("No",) * 4,
        "top left: large red circle; bottom left: small red ring": ("Yes", "Yes", "No", "No"),
        "top left: large red circle; bottom right: small blue ring": ("Yes", "Yes", "No", "No"),
        "top left: large red circle; top right: small cyan cross; bottom left: small blue ring": ("Yes", "No", "No", "No"),
    }.items():
        assert lessons.cells("Edit", scene, twin._replace(facts={"is": text})) == verdicts


def test_a_list_asks_for_the_right_number_from_the_right_candidate_on():
    rng, kind, places = np.random.default_rng(8), kinds.KINDS["Color"], set()
    for _ in range(60):
        row = kind.make(rng, "train", kind.phrasings)
        branch = lessons.listed(rng, row, lessons.misses(rng, "Color", row, 9))
        number = prompts.read_list_answer(branch.answer, 10)
        said = [part for part in branch.turn if isinstance(part, str)]
        words = [part.strip() for part in said[said.index("(1) ") + 1 :: 2]]
        assert [i for i, word in enumerate(words, start=1) if word == row.positive.text.strip()] == [number]
        assert branch.verdicts == ("No",) * (number - 1) + ("Yes" if number == 10 else str(number),) * (11 - number)
        places.add(number)
    assert places == set(range(1, 11))


def test_a_reply_says_what_the_item_is_about():
    rng, said = np.random.default_rng(9), {}
    for name, kind in kinds.KINDS.items():
        row = kind.make(rng, "train", kind.phrasings)
        said[name] = [lessons.about(side) for side in (row.query, row.positive)]
        if "is" in row.query.facts:  # both sides of a right pair are about the same
            assert said[name][0] == said[name][1]
        if name in ("Edit", "Twin", "Phrase"):
            assert said[name][0] == makers.say(row.scene)
        elif name == "Caption_i2t":
            assert said[name] == [makers.say(row.scene), row.positive.text.strip()]
    group = lessons.reply(rng)
    assert len(group) == 6 and all(branch.answer and not branch.verdicts for branch in group)
    assert said["Point"][0].count(" ") == 2 and said["Color"][0] in scenes.COLORS


def test_the_plan_of_lessons_covers_all_of_training(config, monkeypatch):
    lengths, mixes = zip(*plan.PLAN, strict=True)
    assert sum(lengths) == config.nano.pretrain.steps
    assert all(sum(share for share, _ in mix) == pytest.approx(1) for mix in mixes)
    two = ((3, ((1.0, lambda rng: "a"),)), (1, ((0.25, lambda rng: "b"), (0.75, lambda rng: "c"))))
    monkeypatch.setattr(plan, "PLAN", two)
    rng = np.random.default_rng(1)
    assert {plan.lesson(rng, step / 4) for step in (0, 1, 2, 2.99) for _ in range(20)} == {"a"}
    late = [plan.lesson(rng, progress) for progress in (0.75, 0.99, 1.0) for _ in range(400)]
    assert set(late) == {"b", "c"} and 0.2 < late.count("b") / len(late) < 0.3


@torch.no_grad()
def weighted_sum(model, batch):
    hidden = model.model(**{k: batch[k] for k in packing.INPUTS if k in batch}).last_hidden_state
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), batch["targets"].flatten(), reduction="none")
    return float((losses * batch["weights"].flatten()).sum())


@torch.no_grad()
def plain_sum(model, tokenizer, branch, image):
    """One branch through transformers' own position ids, no packing code but the rendered text."""
    text, pictures = packing.render(branch.turn)
    ask, told = (tokenizer.encode(t, add_special_tokens=False) for t in (text, branch.answer + nano_model.END))
    ids = torch.tensor([ask + told])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == image).long()}
    if pictures:
        inputs["pixel_values"] = torch.from_numpy(np.concatenate([nano_model.patches(p) for p in pictures]))
        inputs["image_grid_thw"] = torch.tensor([[1, p.shape[0] // 14, p.shape[1] // 14] for p in pictures])
    targets, weights = ids[0, 1:].clone(), torch.zeros(ids.shape[1] - 1)
    weights[len(ask) - 1 :] = branch.weight
    weights[-1] = 0.05 * branch.weight if branch.verdicts else branch.weight
    closing = "<|im_end|>\n<|im_start|>assistant\n"
    asked = [
        (packing.render(branch.turn[:end])[0].removesuffix(closing), verdict)
        for end, verdict in zip(candidate_ends(branch), branch.verdicts, strict=True)
    ]
    spoken = text.removesuffix(closing)
    inside = [(spoken[: len(spoken) - back + 1], verdict) for back, verdict in branch.so_far]
    for weight, pairs in ((packing.SO_FAR, inside), (packing.VERDICT, asked)):
        for before, verdict in pairs:
            at = len(tokenizer.encode(before, add_special_tokens=False)) - 1
            targets[at], weights[at] = tokenizer.convert_tokens_to_ids(verdict), weight
    visual = [i for i, token in enumerate(ask) if token == image]
    for at, verdict in zip(visual[::-1], branch.cells[::-1], strict=False):
        targets[at], weights[at] = tokenizer.convert_tokens_to_ids(verdict), packing.SO_FAR
    losses = torch.nn.functional.cross_entropy(model(**inputs).logits[0, :-1], targets, reduction="none")
    return float((losses * weights).sum())


def candidate_ends(branch):
    """How many parts of the turn stand up to each candidate's end."""
    if not branch.verdicts:
        return []
    starts = [i for i, part in enumerate(branch.turn) if isinstance(part, str) and re.fullmatch(r"\(\d+\) ", part)]
    return [*starts[1:], len(branch.turn)]


def test_pretraining_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path, config):
    settings = config.nano.pretrain.model_copy(update={"steps": 4, "groups": 3, "warmup": 2, "checkpoint": 2})
    assert len(pretrain.parts_of(0, settings, nano_model.create(1)[1])) == 2
    straight, _ = pretrain.train(settings, tmp_path / "a")

    class Stop(Exception):
        pass

    def stop_at_three(steps, total, label):
        for step in steps:
            if step == 3:
                raise Stop
            yield step

    with pytest.raises(Stop):
        pretrain.train(settings, tmp_path / "b", track=stop_at_three)
    resumed, _ = pretrain.train(settings, tmp_path / "b")
    start, _ = nano_model.create(settings.seed)
    pairs = list(zip(straight.parameters(), resumed.parameters(), start.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs), "nothing was trained"


def test_pretraining_gives_the_same_bytes_on_one_thread_as_on_two(tmp_path, config):
    settings = config.nano.pretrain.model_copy(update={"steps": 3, "groups": 3, "warmup": 2})
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(pretrain.train(settings, tmp_path / str(count))[0])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    start, _ = nano_model.create(settings.seed)
    assert not torch.equal(start.lm_head.weight, found[0].lm_head.weight), "nothing was trained"
    assert all(torch.equal(a, b) for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True))


def test_the_parts_of_a_step_give_the_gradient_of_the_whole_step(fresh, config):
    model, tokenizer = fresh
    settings = config.nano.pretrain.model_copy(update={"groups": 6})
    (whole,) = pretrain.parts_of(9000, settings, tokenizer, parts=1)
    parts = pretrain.parts_of(9000, settings, tokenizer)
    total = whole["weights"].sum()
    assert len(parts) == 2 and sum(part["weights"].sum() for part in parts) == pytest.approx(float(total))
    parameters, found = list(model.parameters()), []
    for batches in ([whole], parts):
        model.zero_grad()
        loss = ONE.accumulate(lambda batch: pretrain.loss_of(model, batch, total), batches, parameters)
        found.append((loss, [parameter.grad.clone() for parameter in parameters]))
    (loss, expected), (loss_of_parts, gradient) = found
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for part, one in zip(gradient, expected, strict=True):
        assert (part - one).norm() <= 1e-4 * one.norm() and one.norm() > 0
    assert parts[0]["input_ids"].numel() < 0.8 * whole["input_ids"].numel(), "the step was not divided"
    model.zero_grad()


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
    assert all(prompts.read_list_answer(said, 5) for said in seen), seen


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
