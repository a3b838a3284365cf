"""Signs that a result means nothing: each bound with its reason, and the sentence that a stage's line, the report and the card show.

Nothing here stops a run.  A warning says what was seen, what it means and what helps.  The untrained base model is never warned of: it is
expected to be near chance.  No model and no table library: rules are on numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import polars as pl

SIGMA = 0.5
"""Mean score of the labelled positives.  Below it the judge answers No to them more often than Yes: it does not see what the labels say.
And as a candidate is dropped where it scores no less than the pair's positive, less beta, hardly any negative is left."""

JUDGED = 20
"""Positives and candidates of which a judge's mean scores are compared, at least: of fewer, single ones decide."""

FALLBACK = 0.25
"""Share of the mined rows that are random candidates, drawn where the judge left none.  From a quarter on, "hard negatives" is not what
the trained models have seen.  Small label sets have up to 0.18 of them with a good judge."""

STEPS = 20
"""Steps of a training whose loss is looked at, at least: the first and the last ten are compared, which must not be the same ones.

A reranker may begin with a model that answers well already: its loss then stays where it is, give or take noise, and nothing is wrong."""

EDGE = 10
"""Steps at either end whose mean loss is compared: single steps are noise."""

FALL = 0.001
"""Share of itself by which a loss must fall at some time: where all answers are one, dropout alone moves it in the last digits."""

ERRORS = 2.0
"""Standard errors above chance that a score must have (guessing reaches more in one of forty runs), and those by which a loss rises."""

LEAKED = 0.01
"""Share of a task's queries whose answer was trained on.  Fewer change its score by less than a point; public sets share a few rows."""


MISSING = 0.05
"""Share of a data set's rows or candidates that are left out.  With fewer a score moves by less than what one training's luck moves it."""


class Score(NamedTuple):
    """One model on one task: the share of `n` queries that it got right, and the share that guessing gets right."""

    value: float
    n: int
    chance: float


class Spread(NamedTuple):
    """Mean and variance of `n` scores."""

    mean: float
    variance: float
    n: int


def of_bins(counts: Sequence[int]) -> Spread:
    """Spread of a histogram of equal bins from 0 to 1, each score taken as the middle of its bin."""
    n = sum(counts)
    if n == 0:
        return Spread(math.nan, math.nan, 0)
    middles = [(k + 0.5) / len(counts) for k in range(len(counts))]
    mean = sum(count * middle for count, middle in zip(counts, middles, strict=True)) / n
    variance = sum(count * (middle - mean) ** 2 for count, middle in zip(counts, middles, strict=True)) / n
    return Spread(mean, variance, n)


def of_sigma(mean: float | None, what: str = "") -> list[str]:
    """The warning that a judge gives labelled positives low scores; `what` names the set or sets."""
    if mean is None or math.isnan(mean) or mean >= SIGMA:
        return []
    return [
        f"{what}the judge gives the labelled positives {mean:.3f} on average, below {SIGMA}: it says No to right answers, and its scores "
        "do not tell hard negatives from false ones; use a judge that can read these data (models.judge), or check the labels"
    ]


def of_gap(positives: Spread, candidates: Spread, what: str = "") -> list[str]:
    """The warning that a judge scores labelled positives no higher than the other candidates, give or take noise.

    Such a judge may say Yes to everything: the mean sigma is high then, and what is dropped as a false negative is drawn by lot.
    """
    if min(positives.n, candidates.n) < JUDGED:
        return []
    noise = math.sqrt(positives.variance / positives.n + candidates.variance / candidates.n)  # standard error of the difference
    if positives.mean - candidates.mean > ERRORS * noise:
        return []
    return [
        f"{what}the judge gives the labelled positives {positives.mean:.2f} on average and the other candidates {candidates.mean:.2f}: it "
        "does not tell right answers from others, so neither do its scores; use a judge that can read these data (models.judge), or check "
        "the labels"
    ]


def of_judged(table: pl.DataFrame, what: str = "") -> list[str]:
    """The warnings of a table JUDGEMENTS."""
    positive = table["positive"]
    own, others = _spread(table["score"].filter(positive)), _spread(table["score"].filter(~positive))
    return of_judge(own.mean, own, others, what)


def of_judge(sigma: float | None, positives: Spread, candidates: Spread, what: str = "") -> list[str]:
    """The warning of a judge's scores, one at most: low scores of the positives, or none that tell them from the other candidates."""
    return of_sigma(sigma, what) or of_gap(positives, candidates, what)


def _spread(scores: pl.Series) -> Spread:
    """The Spread of a column of scores; not a number where there are too few."""
    mean, variance = scores.mean(), scores.var()
    return Spread(
        math.nan if mean is None else float(mean),  # type: ignore[arg-type]
        math.nan if variance is None else float(variance),  # type: ignore[arg-type]
        len(scores),
    )


def of_fallback(fallback: int, rows: int, what: str = "") -> list[str]:
    """The warning that many of the mined negatives are random candidates."""
    if not rows or fallback / rows < FALLBACK:
        return []
    return [
        f"{what}{100 * fallback / rows:.0f} % of the mined negatives are random candidates (fallback), because the judge left none; from "
        f"{100 * FALLBACK:.0f} % on a training on hard negatives is not one; see the scores in the mining report, or raise retrieve.k"
    ]


def of_figures(one: Mapping[str, Any], what: str = "") -> list[str]:
    """The warnings of one set's figures in the mining report: its mean sigma, its two histograms, its fallback rows."""
    judged = of_judge(one["sigma"], of_bins(one["sigmas"]), of_bins(one["scores"]), what)
    return [*judged, *of_fallback(one["fallback"], one["rows"], what)]


def of_mined(table: pl.DataFrame, what: str = "") -> list[str]:
    """The warnings of a table MINED; of PAIRS, which has no scores, none.  `what` names the set or sets."""
    if "reasons" not in table.columns:
        return []
    sigma = table["sigma"].drop_nulls().drop_nans().mean()
    reasons = table["reasons"].list
    fallback = int(reasons.count_matches("fallback").sum())
    own = None if sigma is None else float(sigma)  # type: ignore[arg-type]
    return [*of_sigma(own, what), *of_fallback(fallback, int(reasons.len().sum()), what)]


def of_losses(losses: Sequence[float], what: str = "") -> list[str]:
    """The warning that a training's loss rises (by more than noise), or never falls (no ten steps in a row are below the first)."""
    if len(losses) < STEPS:
        return []
    begin, end = losses[:EDGE], losses[-EDGE:]
    first, last = statistics.fmean(begin), statistics.fmean(end)
    noise = math.sqrt((statistics.variance(begin) + statistics.variance(end)) / EDGE)  # standard error of the difference
    means = [statistics.fmean(losses[start : start + EDGE]) for start in range(1, len(losses) - EDGE + 1)]
    if last - first > ERRORS * noise:
        verb, remedy = "rises", "lower lr"
    elif min(means) >= (1 - FALL) * first:
        verb, remedy = "never falls", "try another lr"
    else:
        return []
    return [
        f"{what}the training loss {verb}: {first:.4f} in the first {EDGE} steps, {last:.4f} in the last; the model has learned nothing "
        f"that the loss measures; {remedy}, or check that the rows have different answers"
    ]


def at_chance(scores: Iterable[Score]) -> bool:
    """Whether the scores together are within ERRORS standard errors of what guessing gets."""
    seen = list(scores)
    right = sum(one.n * one.value for one in seen)
    guessed = sum(one.n * one.chance for one in seen)
    variance = sum(one.n * one.chance * (1 - one.chance) for one in seen)
    return right <= guessed + ERRORS * math.sqrt(variance)


def of_task(name: str, models: Mapping[str, Score]) -> list[str]:
    """The warning that every trained model (name -> score, the base model left out) only guesses in a task."""
    if not models or not all(at_chance([score]) for score in models.values()):
        return []
    shown = ", ".join(f"{model} {100 * score.value:.1f}" for model, score in models.items())
    chance, queries = next((100 * score.chance, score.n) for score in models.values())
    return [
        f"{name}: every trained model is within {ERRORS:.0f} standard errors of chance ({chance:.1f} %, {queries:,} queries): {shown}; "
        "this task tells nothing of the models"
    ]


def of_models(tasks: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """The warnings of trained models that only guess in all tasks (task -> model -> score) together."""
    models = list(dict.fromkeys(model for scores in tasks.values() for model in scores))
    found = []
    for model in models:
        own = [scores[model] for scores in tasks.values() if model in scores]
        if at_chance(own):
            where = "in the only task" if len(own) == 1 else f"over all {len(own)} tasks together"
            found.append(
                f"{model}: {where} within {ERRORS:.0f} standard errors of chance; the model has learned nothing that is measured here"
            )
    return found


def of_leaks(name: str, queries: int, pairs: int, images: int) -> list[str]:
    """The warnings that training rows hold a task's answers: of `queries` so many are training `pairs` together with their answer, and
    the answers of so many are training `images`."""
    found = []
    for count, what in (
        (pairs, "queries are training pairs together with their answer"),
        (images, "queries have an answer whose image is trained on"),
    ):
        if queries and count / queries >= LEAKED:
            found.append(
                f"{name}: {count:,} of {queries:,} {what} ({100 * count / queries:.0f} %), so its score is not one of unseen data; take "
                "these rows out of the training sets or of the task"
            )
    return found


def of_left_out(name: str, lost: int, rows: int, what: str = "rows") -> list[str]:
    """The warning that so many of a training set's or task's rows (or other things, `what`) are left out."""
    if not rows or lost / rows < MISSING:
        return []
    return [
        f"{name}: {lost:,} of {rows:,} {what} ({100 * lost / rows:.0f} %) are left out, so its figures are of another data set than the "
        "published one; the report's list of what is left out has each one's reason"
    ]


def said(summary: str, warnings: Iterable[str]) -> str:
    """A stage's summary with its warnings below it, a line each."""
    return "\n".join([summary, *(f"warning: {one}" for one in warnings)])


def section(warnings: Sequence[str]) -> str:
    """The warnings as a Markdown section of a card or a page; '' for none."""
    if not warnings:
        return ""
    return "## Warnings\n\n" + "\n".join(f"- {one}" for one in warnings) + "\n\n"
