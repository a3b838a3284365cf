"""Which model to take: the rows of the table on a user's own tasks, with standard errors, and what these do not tell apart.

The standard error of a row is that of a share of n independent queries.  Two rows answer the same queries, so their difference is taken
query by query, and its standard error is that of a mean of n differences: far smaller than if the rows were independent.  A mean over
several tasks weighs each task alike, and its variance is that of such a sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from unime import markdown
from unime.evaluate.tasks import EMBEDDERS, MODELS, RERANKED, RERANKER, task

ERRORS = 2.0
"""Standard errors by which a row must be ahead: chance alone puts one of two equal rows so far ahead in one of twenty tasks."""

FEWEST = 20
"""Queries of a task, at least: of fewer, a standard error is itself too uncertain to compare with."""

Answers = Mapping[str, np.ndarray]
"""Of one task: model key -> (n,) bool, whether it answers each query right; the queries in one order for all models."""


class Standing(NamedTuple):
    """A row on some tasks, in shares: its figure, and by how much it is behind the best row, each with its standard error."""

    model: str
    value: float
    error: float
    behind: float
    behind_error: float

    @property
    def apart(self) -> bool:
        """Whether the best row is ahead of it by more than ERRORS standard errors."""
        return self.behind > ERRORS * self.behind_error


def own_tasks(names: Sequence[str]) -> list[str]:
    """Those of the tasks that are a user's own."""
    return [name for name in names if task(name).suite == "own"]


def answers(predictions: pl.DataFrame, name: str) -> Answers:
    """Which queries of a task each model answers right, out of PREDICTIONS."""
    rows = predictions.filter(pl.col("task") == name).sort("row")
    return {model: rows.filter(pl.col("model") == model)["correct"].to_numpy() for model in MODELS}


def standings(tasks: Sequence[Answers], models: Sequence[str] = tuple(MODELS)) -> list[Standing]:
    """These rows on the mean of the tasks, the best first; of rows with equal figures, the one that stands higher in the table."""
    values = {model: _mean([one[model].astype(float) for one in tasks]) for model in models}
    best = max(models, key=lambda model: values[model])  # the first of equal ones
    found = []
    for model in sorted(models, key=lambda model: (-values[model], list(models).index(model))):
        shares = [float(one[model].mean()) for one in tasks]
        variance = sum(share * (1 - share) / len(one[model]) for share, one in zip(shares, tasks, strict=True))
        differences = [one[best].astype(float) - one[model] for one in tasks]
        spread = sum(float(each.var(ddof=1)) / len(each) if len(each) > 1 else 0.0 for each in differences)
        errors = math.sqrt(variance) / len(tasks), math.sqrt(spread) / len(tasks)
        found.append(Standing(model, values[model], errors[0], _mean(differences), errors[1]))
    return found


def _mean(parts: Sequence[np.ndarray]) -> float:
    return sum(float(part.mean()) for part in parts) / len(parts)


def verdict(found: Sequence[Standing], queries: int) -> str:
    """One sentence on the best of these rows, which claims no more than the standard errors do; `queries` are the smallest task's."""
    best, *others = found
    name = MODELS[best.model]
    if queries < FEWEST:
        return f"{name} has the highest figure, but {queries} queries are too few to compare models; hold out {FEWEST} rows or more."
    near = [MODELS[one.model] for one in others if not one.apart]
    if not near:
        return f"{name} has the highest figure and is ahead of every other one by more than two standard errors."
    rest = " It is ahead of the others by more." if len(near) < len(others) else ""
    return f"{name} has the highest figure, but {_listed(near)} within two standard errors of it: no winner among these.{rest}"


def _listed(names: Sequence[str]) -> str:
    """`A is`, `A and B are`, `A, B and C are`."""
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{', '.join(names[:-1])} and {names[-1]} are"


def lines(tasks: Mapping[str, Answers]) -> list[str]:
    """A line a task for the terminal."""
    told = []
    for name, found in tasks.items():
        queries, rows = _fewest([found]), standings([found])
        figure = f"{_percent(rows[0].value)} +- {_percent(rows[0].error)}"
        told.append(f"{name}: {verdict(rows, queries)} ({figure}, {queries:,} queries)")
    return told


def section(tasks: Mapping[str, Answers]) -> str:
    """The report's section as Markdown, for the user's own tasks by name; '' where there are none."""
    if not tasks:
        return ""
    parts = [_block(markdown.escaped(name), [found]) for name, found in tasks.items()]
    if len(tasks) > 1:
        parts.append(_block(f"Mean of your {len(tasks)} tasks", list(tasks.values())))
    notes = (
        "Precision@1 in percent, each with its standard error. The difference to the best row is taken query by query, as all rows answer "
        "the same queries. Two standard errors are a bound for one comparison: the best of several rows is also a little lucky, queries "
        "that resemble each other count for less than their number, and training again with another `seed` would move the figures too."
    )
    take = (
        f"`python -m unime search` takes any of the embedders: `results/train/<name>`, or merged weights in `results/export/<name>` where "
        f"`export` in config.yaml names it ({', '.join(f'{MODELS[key]}: `{key}`' for key in EMBEDDERS[1:])}). The reranker reads "
        f"{MODELS[RERANKED]}'s best candidates and gives no vectors, so it cannot search."
    )
    return "\n".join([*parts, notes, "", take, ""])


def _block(title: str, tasks: Sequence[Answers]) -> str:
    """Heading, table and sentences of one task, or of the mean of several."""
    found, queries = standings(tasks), _fewest(tasks)
    rows = []
    for one in found:
        first = one is found[0]
        behind = "" if first else f"{_percent(one.behind)} +- {_percent(one.behind_error)}"
        apart = "" if first or queries < FEWEST else "more than two standard errors" if one.apart else "within two standard errors"
        rows.append([MODELS[one.model], f"{_percent(one.value)} +- {_percent(one.error)}", behind, apart])
    table = markdown.grid(["row", "Precision@1", "behind the best", ""], rows, [False, True, True, False])
    counted = f"{queries:,} queries" if len(tasks) == 1 else f"{queries:,} queries or more each"
    told = [verdict(found, queries)]
    if found[0].model == RERANKER:
        told.append(f"Of the embedders alone: {verdict(standings(tasks, EMBEDDERS), queries)}")
    return "\n".join([f"# {title} ({counted})", "", *told, "", *table, ""])


def _fewest(tasks: Sequence[Answers]) -> int:
    """Queries of the smallest of these tasks."""
    return min(len(one[EMBEDDERS[0]]) for one in tasks)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
