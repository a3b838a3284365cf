"""Which model to take: figures and standard errors in closed form, and sentences that claim no more than these show."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from unime import artifacts
from unime.evaluate.tasks import EMBEDDERS, MODELS, RERANKER
from unime.report import choice, html

N = 100


def right(*counts: int, n: int = N) -> dict[str, np.ndarray]:
    """Each model (in the table's order) answers the first so many of n queries."""
    return {model: np.arange(n) < count for model, count in zip(MODELS, counts, strict=True)}


def predictions(name: str, found: dict[str, np.ndarray]) -> pl.DataFrame:
    rows = []
    for model, correct in found.items():
        for row in reversed(range(len(correct))):  # the order of the file does not matter
            rows.append((name, model, row, f"q{row}", "p", "r", bool(correct[row]), ["p"]))
    return pl.DataFrame(rows, schema=artifacts.PREDICTIONS, orient="row")


def test_errors_are_those_of_a_share_and_of_a_paired_difference() -> None:
    found = choice.standings([right(10, 20, 30, 50, 60)])
    assert [one.model for one in found] == list(reversed(MODELS))
    best, second = found[:2]
    assert (best.value, best.behind, best.behind_error, best.apart) == (0.6, 0.0, 0.0, False)
    assert best.error == pytest.approx(math.sqrt(0.6 * 0.4 / N))
    # ten of a hundred queries differ, all in favour of the best: variance of the differences p (1 - p) n / (n - 1)
    assert second.behind == pytest.approx(0.1)
    assert second.behind_error == pytest.approx(math.sqrt(0.1 * 0.9 / (N - 1)))
    assert second.apart
    unpaired = math.sqrt(0.5 * 0.5 / N + 0.6 * 0.4 / N)
    assert second.behind_error < unpaired / 2


def test_rows_that_differ_on_other_queries_are_less_apart_than_their_figures() -> None:
    one, other = np.arange(N) < 55, np.arange(N) >= 55
    found = choice.standings([{**right(1, 1, 1, 1, 1), "unime_v2": one, "hard_negatives": other}])
    assert [(each.model, each.apart) for each in found[:2]] == [("unime_v2", False), ("hard_negatives", False)]
    differences = np.where(one, 1.0, -1.0)
    assert found[1].behind == pytest.approx(0.1) and found[1].behind_error == pytest.approx(differences.std(ddof=1) / 10)


def test_simulated_equal_rows_are_called_apart_in_about_one_of_twenty_tasks() -> None:
    rng, apart = np.random.default_rng(0), 0
    for _ in range(2000):
        found = {model: np.zeros(200, bool) for model in MODELS}
        found["in_batch"], found["unime_v2"] = rng.random(200) < 0.4, rng.random(200) < 0.4
        apart += choice.standings([found], ("in_batch", "unime_v2"))[1].apart
    assert 0.03 < apart / 2000 < 0.07


def test_a_mean_over_tasks_weighs_them_alike() -> None:
    small, large = right(0, 0, 10, 20, 20, n=40), right(0, 0, 90, 100, 100, n=400)
    found = {one.model: one for one in choice.standings([small, large])}
    assert found["unime_v2"].value == pytest.approx((20 / 40 + 100 / 400) / 2)
    assert found["unime_v2"].error == pytest.approx(math.sqrt(0.5 * 0.5 / 40 + 0.25 * 0.75 / 400) / 2)
    assert found["hard_negatives"].behind == pytest.approx((0.25 + 0.025) / 2)
    variance = 0.25 * 0.75 / 39 + 0.025 * 0.975 / 399
    assert found["hard_negatives"].behind_error == pytest.approx(math.sqrt(variance) / 2)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((10, 20, 30, 40, 60), "UniME-V2 + reranker has the highest figure and is ahead of every other one by more than two"),
        (
            (10, 20, 30, 58, 60),
            "but UniME-V2 is within two standard errors of it: no winner among these. It is ahead of the others by more",
        ),
        ((10, 20, 59, 58, 60), "hard negatives and UniME-V2 are within"),
        ((60, 60, 60, 60, 60), "base zero-shot has the highest figure, but in-batch (VLM2Vec), hard negatives, UniME-V2 and UniME-V2 + "),
        ((0, 0, 0, 0, 0), "no winner among these."),
        ((0, 0, 0, 100, 0), "UniME-V2 has the highest figure and is ahead of every other one by more"),
    ],
)
def test_a_sentence_claims_no_more_than_the_errors_show(counts: tuple[int, ...], said: str) -> None:
    told = choice.verdict(choice.standings([right(*counts)]), N)
    assert said in told and "winner" not in told.replace("no winner", "")


@pytest.mark.parametrize("n", [1, 2, 19])
def test_few_queries_decide_nothing(n: int) -> None:
    told = choice.verdict(choice.standings([right(0, 0, 0, n, 0, n=n)]), n)
    assert f"{n} queries are too few" in told and "ahead" not in told
    text = choice.section({"pictures": right(0, 0, 0, n, 0, n=n)})
    assert "two standard errors |" not in text


def test_the_section_names_rows_folders_and_the_best_embedder_alone() -> None:
    text = choice.section({"my_pictures": right(10, 20, 30, 40, 60)})
    assert f"my_pictures ({N} queries)" in text and "60.0 +- 4.9" in text and "20.0 +- 4.0" in text
    assert "Of the embedders alone: UniME-V2 has the highest figure" in text
    assert all(f"`{key}`" in text for key in EMBEDDERS[1:]) and "Mean of your" not in text
    assert "Of the embedders alone" not in choice.section({"a": right(10, 20, 30, 60, 40)})
    several = choice.section({"a": right(10, 20, 30, 40, 60), "b": right(60, 20, 30, 40, 10)})
    assert "Mean of your 2 tasks" in several and several.count(MODELS[RERANKER]) > 3
    assert choice.section({}) == "" and "<table>" in html.render(text)


def test_own_tasks_alone_are_told_of_and_answers_come_in_the_order_of_rows() -> None:
    assert choice.own_tasks(["NanoColor", "pictures", "MSCOCO_t2i", "shop"]) == ["pictures", "shop"]
    found = right(10, 20, 30, 40, 60)
    table = pl.concat([predictions("pictures", found), predictions("shop", right(0, 0, 0, 0, 0))])
    read = choice.answers(table, "pictures")
    assert list(read) == list(MODELS)
    for model, correct in read.items():
        assert correct.tolist() == found[model].tolist(), model


def test_a_line_for_the_terminal_has_figure_error_and_queries() -> None:
    (line,) = choice.lines({"pictures": right(10, 20, 30, 40, 60)})
    assert line.startswith("pictures: UniME-V2 + reranker has the highest figure") and line.endswith("(60.0 +- 4.9, 100 queries)")
