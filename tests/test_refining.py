"""The second part of the nano MLLM's training: degrees of truth, judging in degrees, and items told from their last token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unime import prompts
from unime.nano import degrees, kinds, lessons, makers, packing, pretrain, refining, scenes
from unime.nano import model as nano_model


@pytest.fixture(scope="module")
def fresh():
    return nano_model.create(seed=3)


def candidates(rng, kind, row):
    """A right candidate, near misses, and right answers to other queries."""
    others = [kind.make(rng, "train", kind.phrasings).positive for _ in range(4)]
    return [row.positive, *(kind.wrong(rng, row) for _ in range(4)), *others]


@pytest.mark.parametrize("name", kinds.KINDS)
def test_the_degree_is_one_exactly_for_candidates_that_meet_the_query(name):
    rng, kind, seen = np.random.default_rng(1), kinds.KINDS[name], set()
    for _ in range(60):
        row = kind.make(rng, "train", kind.phrasings)
        for side in candidates(rng, kind, row):
            degree = degrees.degree(row.query.facts, side.facts)
            assert 0 <= degree <= 1
            assert (degree == 1) == makers.meets(row.query.facts, side.facts)
            seen.add(degree == 1)
    assert seen == {True, False}


def test_the_degree_is_the_share_of_claims_that_hold():
    scene = {"scene": [["top left", "large", "red", "circle"], ["bottom right", "small", "blue", "cross"]]}

    def of(*caption):
        return degrees.degree(scene, {"caption": [list(thing) for thing in caption]})

    assert of(("top left", "large", "red", "circle")) == 1
    assert of(("", "", "red", "circle")) == 1
    assert of(("top left", "small", "red", "circle")) == pytest.approx(3 / 4)
    assert of(("", "", "green", "circle")) == pytest.approx(1 / 2)
    assert of(("", "", "orange", "circle")) == pytest.approx(3 / 4), "orange is half of red"
    assert of(("top right", "large", "red", "circle")) == pytest.approx(7 / 8), "the top right is half of the top left"
    assert of(("", "", "red", "circle"), ("", "", "red", "circle")) == pytest.approx(2 / 4), "two named things are two things"
    both = ("top left", "large", "red", "circle"), ("bottom right", "small", "blue", "ring")
    assert of(*both) == pytest.approx(7 / 8)


def test_scenes_labels_and_words_agree_in_part():
    def of(wanted, offered):
        return degrees.degree({"is": wanted}, {"is": offered})

    assert of("large red circle", "large red cross") == pytest.approx(2 / 3)
    assert of("red", "orange") == degrees.LIKENESS and of("red", "cyan") == 0
    assert of("yes", "no") == 0 and of("one", "two") == degrees.LIKENESS and of("one", "three") == 0
    assert of("top left", "top right") == pytest.approx(1 / 2) and of("top left", "bottom right") == 0
    scene = "top left: large red circle; bottom right: small blue cross"
    assert of(scene, "top left: large red circle") == pytest.approx(1 / 2), "a thing that is absent agrees in nothing"
    assert of(scene, "top left: large red circle; bottom right: large blue cross") == pytest.approx(7 / 8)
    assert of("top left: large red circle", scene) == pytest.approx(1 / 2)


def test_belief_rises_with_the_degree_from_a_slip_to_all_but_a_slip():
    values = [degrees.belief(degree) for degree in np.linspace(0, 1, 11)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(degrees.SLIP) and values[-1] == pytest.approx(1 - degrees.SLIP)


def test_a_judged_group_holds_candidates_of_many_degrees_with_their_beliefs():
    rng, beliefs = np.random.default_rng(2), []
    for _ in range(100):
        group = refining.weigh(rng)
        assert len(group) == 2 + refining.NEAR + refining.FARTHER + refining.OTHER
        beliefs.append([branch.belief for branch in group])
    values = np.array(beliefs)
    certain = degrees.belief(1.0)
    assert ((values >= certain - 1e-9).sum(axis=1) >= 2).all()
    assert np.mean((values > 0.1) & (values < 0.9)) > 0.3, "most misses must be right in part"


def test_a_belief_asks_for_yes_and_no_in_its_proportion(fresh):
    """The loss of a branch with a belief is the mean of its losses with answer Yes and with answer No, weighted by the belief."""
    model, tokenizer = fresh
    no = tokenizer.convert_tokens_to_ids(prompts.NO)
    branch = refining.weigh(np.random.default_rng(3))[0]
    sure = {word: branch._replace(answer=word, verdicts=(word,), belief=None) for word in (prompts.YES, prompts.NO)}

    def loss(one):
        batch = packing.pack(packing.encode([[one]], tokenizer), *special(tokenizer))
        return float(pretrain.loss_of(model, batch, torch.tensor(1.0), no).detach())

    yes_loss, no_loss = loss(sure[prompts.YES]), loss(sure[prompts.NO])
    assert abs(yes_loss - no_loss) > 1e-2
    for belief in (0.0, 0.3, 1.0):
        # The end token after the answer follows Yes in the branch with a belief; its small weight is the only difference.
        mixed = belief * yes_loss + (1 - belief) * no_loss
        assert loss(branch._replace(belief=belief)) == pytest.approx(mixed, abs=0.06)


def special(tokenizer):
    return tuple(tokenizer.convert_tokens_to_ids(token) for token in (nano_model.PAD, nano_model.IMAGE))


def test_an_item_is_shown_as_the_embedder_shows_it(fresh):
    """Raw text with bare image tokens and positions in one dimension; the words are asked for at its last token."""
    _, tokenizer = fresh
    rng, shown = np.random.default_rng(4), 0
    while shown < 5:
        group = refining.tell(rng)
        turn = group[0].turn
        pictures = [part for part in turn if not isinstance(part, str)]
        if not pictures:
            continue
        shown += 1
        (encoded,) = packing.encode([group[:1]], tokenizer)
        text = "".join(part if isinstance(part, str) else nano_model.IMAGE * packing.visual_tokens(part) for part in turn)
        ids = tokenizer.encode(text, add_special_tokens=False)
        answer = tokenizer.encode(group[0].answer, add_special_tokens=False)
        assert encoded.tokens.tolist() == [*ids, *answer, tokenizer.convert_tokens_to_ids(nano_model.END)]
        assert (encoded.positions == np.arange(len(encoded.tokens))).all()
        assert encoded.weights[len(ids) - 1] == np.float32(group[0].weight) and not encoded.weights[: len(ids) - 1].any()


@torch.no_grad()
def test_a_caption_told_by_the_end_sees_the_last_token_of_its_item_only(fresh):
    model, tokenizer = fresh
    model.eval()
    pad, image = special(tokenizer)
    scene = scenes.read("top left: large red circle")
    turn = lessons.side_parts(makers.picture(np.random.default_rng(5), scene, {"is": scenes.describe(scene)}))
    item = len(tokenizer.encode(packing.render_item(turn)[0], add_special_tokens=False))
    seen, states = {}, {}
    for by_end in (True, False):
        branch = lessons.Branch(turn, "a large red circle", 0.3, 0.0, item=True, by_end=by_end)
        batch = packing.pack(packing.encode([[branch]], tokenizer), pad, image)
        allowed = batch["attention_mask"][0, 0] == 0
        seen[by_end] = set(allowed[item:, :item].sum(dim=1).tolist())
        assert allowed[item:, item - 1].all(), "the item's last token is always seen"
        states[by_end] = packing.hidden(model, batch)[0, item:]
    assert seen == {True: {1}, False: {item}}
    assert not torch.allclose(states[True], states[False], atol=1e-3)


def test_lists_are_short_and_most_of_them_show_pictures_or_sentences():
    rng, sizes, pictures = np.random.default_rng(6), set(), 0
    for _ in range(200):
        (branch,) = refining.read_list(rng)
        sizes.add(len(branch.verdicts))
        pictures += sum(not isinstance(part, str) for part in branch.turn) > 1
    assert sizes == set(range(2, refining.MOST + 1))
    assert pictures > 60


def test_the_second_part_draws_its_lessons_by_their_shares():
    assert sum(share for share, _ in refining.PLAN) == pytest.approx(1)
    rng = np.random.default_rng(7)
    groups = [refining.lesson(rng) for _ in range(300)]
    weighed = sum(group[0].belief is not None for group in groups)
    told = sum(group[0].item for group in groups)
    assert 0.2 < weighed / len(groups) < 0.45 and 0.1 < told / len(groups) < 0.3
