"""What the nano MLLM is taught, how lessons are packed, and that its training resumes and divides to the same weights."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

from unime import prompts
from unime.lanes import ONE
from unime.nano import kinds, lessons, makers, packing, plan, pretrain, scenes
from unime.nano import model as nano_model


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
    hidden = packing.hidden(model, batch)
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
    settings = config.nano.pretrain.model_copy(update={"steps": 4, "groups": 3, "warmup": 2, "checkpoint": 2, "refining_steps": 0})
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
    settings = config.nano.pretrain.model_copy(update={"steps": 2, "refining_steps": 1, "groups": 3, "warmup": 1})
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
    total, no = whole["weights"].sum(), tokenizer.convert_tokens_to_ids(prompts.NO)
    assert len(parts) == 2 and sum(part["weights"].sum() for part in parts) == pytest.approx(float(total))
    parameters, found = list(model.parameters()), []
    for batches in ([whole], parts):
        model.zero_grad()
        loss = ONE.accumulate(lambda batch: pretrain.loss_of(model, batch, total, no), batches, parameters)
        found.append((loss, [parameter.grad.clone() for parameter in parameters]))
    (loss, expected), (loss_of_parts, gradient) = found
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for part, one in zip(gradient, expected, strict=True):
        assert (part - one).norm() <= 1e-4 * one.norm() and one.norm() > 0
    assert parts[0]["input_ids"].numel() < 0.8 * whole["input_ids"].numel(), "the step was not divided"
    model.zero_grad()
