"""What a training step reads: groups of like length, items seen once, the reranker's three sequences."""

from __future__ import annotations

import threading

import numpy as np
import polars as pl
import pytest
import torch
from training import accumulator, table_of, view_of, write_data

from unime import backbones, prompts
from unime.data.archives import BadImage
from unime.data.images import Decoding
from unime.data.items import Items
from unime.train import reranker
from unime.train.data import Shown, groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


def test_groups_hold_every_sequence_once_and_save_tokens():
    rng = np.random.default_rng(0)
    for lengths, most in (
        ([5], None),
        ([], None),
        ([3, 3, 3], 2),
        (rng.integers(1, 60, 200).tolist(), None),
        (rng.integers(1, 60, 90).tolist(), 16),
    ):
        found = groups(lengths, 64, most)
        assert sorted(i for group in found for i in group) == list(range(len(lengths)))
        assert most is None or all(len(group) <= most for group in found)
    padded = lambda found: sum(max(lengths[i] for i in g) * len(g) + 64 for g in found)  # noqa: E731
    lengths = rng.integers(1, 60, 200).tolist()
    assert padded(groups(lengths, 64)) < 0.7 * padded([list(range(200))])
    assert groups(lengths, 64) == groups(lengths, 64) and len(groups(lengths, 10**6)) == 1


def test_passes_keep_to_a_budget_of_tokens():
    lengths = [*np.random.default_rng(1).integers(1, 60, 200).tolist(), 500]
    found = groups(lengths, 64, budget=300)
    assert sorted(i for group in found for i in group) == list(range(201))
    sizes = [len(group) * max(lengths[i] for i in group) for group in found]
    assert max(sizes) == 500 and sorted(sizes)[-2] <= 300 and len(found) > len(groups(lengths, 64))


def test_several_items_at_once_are_each_item(folder, nano, monkeypatch):
    """Also where they do not fit what is kept, and some are kept already."""
    from unime.train import data

    monkeypatch.setattr(data, "LOOKED", 3)
    backbone, items = backbones.load(nano, models=view_of("unime_v2", folder, nano).models), Items.open(folder, Decoding(10**6))
    ids = ["q03", "c01", "q00", "q01", "q03", "q02", "q05", "q04"]
    plain = {id: Shown(backbone, items).content(id) for id in ids}
    shown = Shown(backbone, items, limit=2000)
    shown.content("q01")
    found = shown.contents(ids)
    assert list(found) == list(dict.fromkeys(ids)) and shown.used <= 2000
    for id, content in found.items():
        assert content.text == plain[id].text and (content.image is None) == (plain[id].image is None)
        assert content.image is None or torch.equal(content.image.features, plain[id].image.features)


def test_shown_items_are_kept_up_to_their_limit(folder, nano):
    view = view_of("unime_v2", folder, nano)
    backbone = backbones.load(nano, models=view.models)
    calls, see_all = [], backbone.see_all
    backbone.see_all = lambda images: calls.extend(images) or see_all(images)
    shown = Shown(backbone, Items.open(folder, Decoding(10**6)), limit=6000)
    first = shown.content("q01").image.features
    assert shown.content("q01").image.features is first and len(calls) == 1
    for number in range(10):
        shown.content(f"q{number:02}")
    assert shown.used <= 6000 and len(calls) >= 10
    assert torch.equal(shown.content("q01").image.features, first)
    assert shown.content("c01").image is None


def test_images_of_a_coming_step_are_decoded_ahead_and_are_the_same(folder, nano, monkeypatch):
    from unime.train import data

    monkeypatch.setattr(data, "WAITING", 3)
    items = Items.open(folder, Decoding(10**6))
    backbone = backbones.load(nano, models=view_of("unime_v2", folder, nano).models)
    decoded, here = [], threading.get_ident()
    monkeypatch.setattr(Items, "__getitem__", _noted(Items.__getitem__, decoded))
    plain, shown = Shown(backbone, items), Shown(backbone, items, limit=1)
    ids = [id for id in items.ids if items.has_image(id)][:8]
    wanted = [plain.content(id).image.features for id in ids]
    assert {thread for _, thread in decoded} == {here} and len(ids) == 8
    decoded.clear()
    shown.ahead([*ids, *(id for id in items.ids if not items.has_image(id))])
    for id, features in zip(ids, wanted, strict=True):
        assert len(shown._begun) <= 3 and torch.equal(shown.content(id).image.features, features)
    assert sorted(id for id, _ in decoded) == sorted(ids) and here not in {thread for _, thread in decoded}
    assert not shown._begun and not shown._coming


def test_an_image_that_cannot_be_read_ahead_is_an_error_where_it_is_asked_for(folder, nano, monkeypatch):
    shown = Shown(backbones.load(nano, models=view_of("unime_v2", folder, nano).models), items := Items.open(folder, Decoding(10**6)))
    bad, good = [id for id in items.ids if items.has_image(id)][:2]
    monkeypatch.setattr(
        items, "_members", [("gone.png" if id == bad else member) for id, member in zip(items.ids, items._members, strict=True)]
    )
    shown.ahead([bad, good])
    assert shown.content(good).image.features is not None
    with pytest.raises(BadImage, match="gone.png"):
        shown.content(bad)


def _noted(read, decoded: list):
    def noted(self, id: str):
        decoded.append((id, threading.get_ident()))
        return read(self, id)

    return noted


def test_what_is_read_ahead_is_read_once_in_whatever_order_it_is_asked_for(folder, nano, monkeypatch):
    """More images than may wait: else those that were asked for first would keep the others from ever being read ahead."""
    from unime.train import data

    monkeypatch.setattr(data, "WAITING", 3)
    items, decoded = Items.open(folder, Decoding(10**6)), []
    monkeypatch.setattr(Items, "__getitem__", _noted(Items.__getitem__, decoded))
    shown = Shown(backbones.load(nano, models=view_of("unime_v2", folder, nano).models), items)
    pictures = [id for id in items.ids if items.has_image(id)]
    first, second = pictures[:10][::-1], pictures[10:20]
    shown.ahead([*first, *second])
    shown.contents(sorted(first))
    assert {id for id in shown._begun} <= set(second) and len(shown._begun) == 3
    shown.contents(second)
    assert not shown._begun and not shown._coming
    assert sorted(id for id, _ in decoded) == sorted([*first, *second])


def test_inputs_are_made_once_and_go_with_their_items(folder, nano, monkeypatch):
    backbone, items = backbones.load(nano, models=view_of("unime_v2", folder, nano).models), Items.open(folder, Decoding(10**6))
    made, encode = [], backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda prompt: made.append(prompt) or encode(prompt))
    shown, ids = Shown(backbone, items), ["q00", "c01", "c02", "q00"]
    first, again = shown.encoded(ids), shown.encoded(ids[::-1])
    assert len(made) == 3 and [id(one) for one in again] == [id(one) for one in (first[0], first[2], first[1])]
    small = Shown(backbone, items, limit=1)
    for one, other in zip(first, small.encoded(ids), strict=True):
        assert one.ids.tolist() == other.ids.tolist() and len(one.pictures) == len(other.pictures)
    assert len(small._kept) == len(small._inputs) == 1


def test_too_long_items_are_named(folder, nano):
    view = view_of("unime_v2", folder, nano)
    backbone = backbones.load(nano, models=view.models.model_copy(update={"max_length": 2}))
    with pytest.raises(ValueError, match="item q00: a prompt of"):
        Shown(backbone, Items.open(folder, Decoding(10**6))).encoded(["q00"])


# The reranker's sequences


def test_hardest_negatives_are_distinct_kept_first_by_score():
    reasons = ["kept", "kept", "kept", "repeated", "fallback"]
    assert reranker.hardest(["a", "b", "c", "b", "d"], [0.2, 0.5, 0.5, 0.5, 1.0], reasons) == ["b", "c", "a", "d"]


def test_first_negatives_are_distinct_in_mined_order_whatever_their_scores():
    mined = ["a", "b", "a", "c"], [0.2, 0.5, 0.2, 1.0], ["kept", "kept", "repeated", "fallback"]
    assert reranker.ordered("hardest", *mined) == reranker.hardest(*mined) == ["b", "a", "c"]
    assert reranker.ordered("first", *mined) == ["a", "b", "c"]


@pytest.mark.parametrize(("pair_negative", "list_order"), [("hardest", "first"), ("first", "hardest"), ("first", "first")])
def test_the_pairs_negative_and_the_lists_order_are_chosen_apart(pair_negative, list_order, folder, nano):
    rules = {"pair_negative": pair_negative, "list_order": list_order}
    _, answers = accumulator("reranker", folder, nano, **rules, list_negatives=5, list_fixed=True)
    differ = 0
    for row, (mined, scores, reasons) in enumerate(table_of(folder, "reranker").select("negatives", "scores", "reasons").iter_rows()):
        _, no, ranked = answers.turns(row, 0)
        by = {"hardest": reranker.hardest(mined, scores, reasons), "first": list(dict.fromkeys(mined))}
        differ += by["hardest"][0] != by["first"][0] and by["hardest"][:5] != by["first"][:5]
        assert no.candidates == (by[pair_negative][0],)
        positive = answers.rows[row].positive
        assert [id for id in ranked.candidates if id != positive] == by[list_order][:5] and positive in ranked.candidates
    assert differ > 12, "rules that agree would prove nothing"


@pytest.mark.parametrize("pair_negative", ["hardest", "first"])
@pytest.mark.parametrize("list_order", ["hardest", "first"])
def test_negatives_without_scores_are_refused_only_where_the_hardest_are_asked_for(pair_negative, list_order, folder, nano):
    _, judged = accumulator("reranker", folder, nano, pair_negative=pair_negative, list_order=list_order)
    table = table_of(folder, "reranker")
    unscored = table.with_columns(
        sigma=pl.lit(None, dtype=pl.Float64),
        scores=pl.col("scores").list.eval(pl.when(pl.element() > 2).then(pl.element())),  # no score is above 2: all become null
    )
    assert unscored["scores"].list.drop_nulls().list.len().sum() == 0 and unscored.schema == table.schema
    parts = judged.shown, unscored, judged.settings, judged.seed, judged.accelerator
    if "hardest" in (pair_negative, list_order):
        with pytest.raises(ValueError, match="no scores.*set both train.reranker.pair_negative and list_order to first"):
            reranker.Answers(*parts)
        return
    turns = reranker.Answers(*parts).turns
    assert [turns(row, 0) for row in range(len(table))] == [judged.turns(row, 0) for row in range(len(table))]


def test_every_query_gives_a_yes_a_no_and_a_list():
    negatives = ["n1", "n2", "n3", "n4", "n5"]
    places, counts = [], []
    for number in range(3000):
        yes, no, ranked = reranker.sequences("q", "p", "n1", negatives, np.random.default_rng(number), 4, fixed=False)
        assert (yes.candidates, yes.answer, no.candidates, no.answer) == (("p",), "Yes", ("n1",), "No")
        place = ranked.candidates.index("p")
        assert ranked.answer == prompts.list_answer(place + 1) and ranked.listwise and not yes.listwise
        assert [c for c in ranked.candidates if c != "p"] == negatives[: len(ranked.candidates) - 1]
        places.append((len(ranked.candidates) - 1, place))
        counts.append(len(ranked.candidates) - 1)
        assert yes.weight + no.weight == ranked.weight == 1.0
    for count in (1, 2, 3, 4):  # x is uniform on 1..4 and the place on all its x + 1 places
        assert counts.count(count) / 3000 == pytest.approx(0.25, abs=0.04)
        for place in range(count + 1):
            assert places.count((count, place)) / counts.count(count) == pytest.approx(1 / (count + 1), abs=0.07)
    fixed = {len(reranker.sequences("q", "p", "n1", negatives, np.random.default_rng(n), 3, fixed=True)[2].candidates) for n in range(20)}
    assert fixed == {4}
    assert len(reranker.sequences("q", "p", "n1", ["n1"], np.random.default_rng(0), 4, fixed=True)[2].candidates) == 2


def test_lists_are_drawn_from_seed_epoch_and_pair(folder, nano):
    _, answers = accumulator("reranker", folder, nano)
    drawn = {epoch: [answers.turns(row, epoch)[2] for row in range(24)] for epoch in (0, 1)}
    assert drawn[0] != drawn[1] and drawn[0] == [answers.turns(row, 0)[2] for row in range(24)]
    answers.rows.reverse()  # the table's order plays no part
    assert [answers.turns(row, 0)[2] for row in range(24)] == drawn[0][::-1]


def test_reranker_prompts_are_the_judges_and_the_lists(folder, nano):
    _, answers = accumulator("reranker", folder, nano)
    yes, no, ranked = answers.turns(0, 0)
    assert answers.settings.prompt == "unime"
    assert prompts.JUDGE in answers.prompt(yes).text and prompts.LISTWISE in answers.prompt(ranked).text
    for number, id in enumerate(ranked.candidates, start=1):
        assert f"({number}) {answers.shown.items.text(id)}" in answers.prompt(ranked).text
    assert len(answers.prompt(no).images) == 1


def test_a_pair_without_negatives_is_named(folder, nano):
    table = table_of(folder, "reranker").with_columns(negatives=pl.lit([], dtype=pl.List(pl.String)))
    with pytest.raises(ValueError, match=f"pair {table['pair'][0]}: no mined negative"):
        reranker.Answers(Shown(None, None), table, view_of("reranker", folder, nano).train.reranker, 0, None)
