"""How many items, pairs and questions each stage will process: counted where the data stages have run, else a bound.

Bounds are of the rows under data.root, or where these are not there either, products of what the configuration and the published
benchmarks' cards say.  They are reached where no two rows share an item, which no real data set comes near.  No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from unime import artifacts
from unime.config import JUDGED
from unime.config.sections import NANO
from unime.data.benchmarks import PARTS
from unime.data.excluded import counts_of
from unime.evaluate.tasks import CROSSMODAL, EMBEDDERS, TASKS, column, rerank_mode
from unime.nano import kinds
from unime.plan import raw

TRAIN, EVAL = Path("results/data/train"), Path("results/data/eval")

MMEB = 1000
"""Queries of a task of MMEB-eval; the candidates of a query are as many, or fewer."""

CAPTIONS = {"Flickr30K": (1000, 5), "COCO": (5000, 5), "ShareGPT4V": (1000, 1), "Urban1K": (1000, 1)}
"""Images of a caption benchmark, and captions of an image."""

CREPE = {"SugarCrepe_replace": 3846, "SugarCrepe_swap": 912, "SugarCrepe_add": 2754}
"""Pairs of captions."""

SUITE_CAPTIONS = 5
"""Captions of an image of NanoScenes."""


TRAININGS = ("in_batch", "hard_negatives", "unime_v2", "reranker")
"""The configuration's trainings, by their section of train."""


class Set(NamedTuple):
    """A training set: its pairs, distinct items, queries and candidates; `counted`, or else bounds."""

    name: str
    pairs: int
    items: int
    queries: int
    pool: int
    counted: bool
    barred: np.ndarray | None = None  # (pairs,): how many of the pool each pair's query may not have as negatives


class Asked(NamedTuple):
    """A task or a column: its queries and its distinct items (queries and candidates together)."""

    name: str
    queries: int
    items: int
    counted: bool


class Work(NamedTuple):
    """A row of the plan.  `count` is None where nothing is known; `jobs` is how many processes share it."""

    stage: str
    what: str
    count: int | None
    counted: bool
    jobs: int = 1


def train_sets(config: Any, root: Path = TRAIN) -> list[Set]:
    """Every training set of the configuration.  Raises ArtifactError for a table that cannot be read."""
    own = [config.nano.suite.train_rows] if config.data.root == NANO else []
    found = []
    for name in config.data.train_sets:
        if (root / name / "pairs.parquet").exists():
            pairs = artifacts.read_table(root / name / "pairs.parquet", artifacts.PAIRS)
            items = artifacts.read_table(root / name / "items.parquet", artifacts.ITEMS)
            labels = artifacts.read_table(root / name / "labels.parquet", artifacts.LABELS)
            barred = counts_of(pairs, items, labels, config.retrieve.pool)
            found.append(Set(name, len(pairs), len(items), pairs["query"].n_unique(), pairs["positive"].n_unique(), True, barred))
        else:
            there = raw.training_rows(config.data, name)
            rows = own if there is None else [there]
            most = min([config.data.cap, *rows])
            found.append(Set(name, most, 2 * most, most, most, False))
    return found


def tasks(config: Any, names: Sequence[str], root: Path = EVAL) -> list[Asked]:
    """Those of the tasks and caption columns `names` of which something is known.  Raises ArtifactError as `train_sets`."""
    found = (_table(name, root / name) or _raw(config, name) or _bound(name, config.nano.suite) for name in names)
    return [one for one in found if one is not None]


def distinct(folder: Path) -> list[str]:
    """Ids of a task's or a column's queries and candidates, each once, sorted: what an embedder embeds."""
    if not (folder / "pool.parquet").exists():
        table = artifacts.read_table(folder / "queries.parquet", artifacts.TASKS)
        return _once(table["query"], table["candidates"].explode())
    table = artifacts.read_table(folder / "queries.parquet", artifacts.CAPTION_QUERIES)
    pool = artifacts.read_table(folder / "pool.parquet", artifacts.POOL)
    return _once(table["query"], table["candidates"].explode(), pool["id"])


def _once(*columns: pl.Series) -> list[str]:
    return pl.concat([column.cast(pl.String) for column in columns]).drop_nulls().unique().sort().to_list()


def _table(name: str, folder: Path) -> Asked | None:
    if not (folder / "queries.parquet").exists():
        return None
    schema = artifacts.CAPTION_QUERIES if (folder / "pool.parquet").exists() else artifacts.TASKS
    return Asked(name, len(artifacts.read_table(folder / "queries.parquet", schema)), len(distinct(folder)), True)


def _raw(config: Any, name: str) -> Asked | None:
    """What the files of a task hold that is not read yet; None for a caption column, and where there are none."""
    there = raw.task_rows(config.data, name) if name in config.evaluate.tasks else None
    return None if there is None else Asked(name, there.queries, there.items, False)


def _bound(name: str, suite: Any) -> Asked | None:
    """What the registry knows of a task or a column without its data; None for those of your own."""
    if name in TASKS and TASKS[name].suite == "mmeb":
        return Asked(name, MMEB, MMEB + MMEB * MMEB, False)
    if name in TASKS:
        labels, rows = len(kinds.KINDS[kinds.TASKS[name][0]].labels), suite.eval_rows
        return Asked(name, rows, rows + (labels or rows * suite.candidates), False)
    if name not in CROSSMODAL:
        return None
    benchmark, direction = name.rsplit("_", 1)
    if column(name).group == "compositional":
        rows = CREPE.get(name) or suite.eval_rows * len(PARTS[direction])
        return Asked(name, rows, 3 * rows, False)
    images, captions = CAPTIONS.get(benchmark) or (suite.eval_rows, SUITE_CAPTIONS)
    return Asked(name, images * (captions if direction == "t2i" else 1), images * (1 + captions), False)


def judged(one: Set, k: int) -> int:
    """Rows of JUDGEMENTS: each pair's positive and its hits."""
    return one.pairs + hits(one, k)


def hits(one: Set, k: int) -> int:
    """Rows of HITS: k candidates of each pair, or all that may be negatives of its query where these are fewer."""
    if one.barred is None:
        return one.pairs * max(0, min(k, one.pool - 1))
    return int(np.minimum(k, one.pool - one.barred).sum())


def work(config: Any, train: Path = TRAIN, evaluation: Path = EVAL, stale: Collection[str] | None = None) -> list[Work]:
    """The plan's rows, in the order that data flows; of the `stale` stages alone, where these are given.  Raises as `train_sets`."""
    sets = train_sets(config, train)
    rows = [*_training(config, sets), *_evaluating(config, evaluation)]
    if stale is not None:
        rows = [row for row in rows if not row.stage.startswith("train_") or row.stage in stale]
    return [*_mining(config, sets, stale), *rows]


def chosen(sets: Sequence[Set], stage: str, stale: Collection[str] | None) -> list[Set]:
    """The sets that a stage has still to work on: all of them, or those whose stage is among the `stale` ones."""
    return [one for one in sets if stale is None or f"{stage}@{one.name}" in stale]


def _mining(config: Any, sets: list[Set], stale: Collection[str] | None) -> list[Work]:
    if config.mine.source != JUDGED:  # published negatives: nothing is embedded, searched or judged
        return []
    k, unfiltered = config.retrieve.k, config.retrieve.delta is None and config.retrieve.index == "exact"
    kinds_of_work: dict[str, tuple[str, Callable[[Set], int]]] = {
        "embed_train": ("items", lambda one: one.items),
        "retrieve": ("queries x candidates", lambda one: one.queries * one.pool),
        "judge": ("judgements", lambda one: judged(one, k)),
        "mine": ("candidates sifted", lambda one: hits(one, k)),
    }
    rows = []
    for stage, (what, count) in kinds_of_work.items():
        asked = chosen(sets, stage, stale)
        exact = all(one.counted for one in asked) and (unfiltered or stage in ("embed_train", "retrieve"))
        if asked:
            rows.append(Work(stage, what, sum(map(count, asked)), exact, len(asked)))
    return rows


def _training(config: Any, sets: Sequence[Set]) -> list[Work]:
    """Exact before there are data where steps and batches are plain numbers; else of the rows that are known."""
    rows, counted = pairs_of(sets), all(one.counted for one in sets)
    found = []
    for kind in TRAININGS:
        own = getattr(config.train, kind)
        settings = own.resolved(rows)
        # The reranker answers three times a query; an embedder sees the query, its positive and its negatives.
        size = 3 if kind == "reranker" else 2 + getattr(own, "negatives", 0)
        what = "answers" if kind == "reranker" else "items"
        found.append(Work(f"train_{kind}", what, settings.steps * settings.batch * size, counted or not own.follows_rows))
    return found


def pairs_of(sets: Iterable[Set]) -> int:
    """Training rows of all sets together."""
    return sum(one.pairs for one in sets)


def lengths(config: Any, sets: Sequence[Set]) -> list[str]:
    """Notes on trainings whose steps or batch depend on the number of rows: what they come to."""
    rows = pairs_of(sets)
    known = f"{rows:,} rows" if all(one.counted for one in sets) else f"at most {rows:,} rows"
    found = []
    for kind in TRAININGS:
        own = getattr(config.train, kind)
        if own.follows_rows:
            settings = own.resolved(rows)
            found.append(
                f"train.{kind} on {known}: {settings.steps:,} steps of {settings.batch:,} queries (steps: {own.steps}; batch: {own.batch})"
            )
    return found


def _evaluating(config: Any, root: Path) -> Iterable[Work]:
    for stage, names in (("evaluate", config.evaluate.tasks), ("crossmodal", config.evaluate.crossmodal)):
        if not names:
            continue
        found = tasks(config, names, root)
        known, jobs = len(found) == len(names), len(names)
        exact = known and all(one.counted for one in found)
        items, lists = len(EMBEDDERS) * sum(one.items for one in found), sum(one.queries for one in found)
        yield Work(stage, f"items, {len(EMBEDDERS)} embedders", items if known else None, exact, jobs)
        yield Work(f"{stage}_reranker", _read(reading(config, names)), lists if known else None, exact, jobs)


def compositional(config: Any, name: str) -> bool:
    """Whether a task or column is one of captions in which an image has a true and a false one.  Raises ConfigError for a column that
    no registry knows."""
    return name in config.evaluate.crossmodal and column(name).group == "compositional"


def reading(config: Any, names: Sequence[str]) -> dict[str, str]:
    """The mode in which the reranker reads each of these tasks or columns, by its name.  Raises ConfigError as `compositional`."""
    return {name: rerank_mode(config.evaluate, compositional(config, name)) for name in names}


def _read(modes: Mapping[str, str]) -> str:
    """What the row of a reranker counts: queries, whose candidates are in one list, or each in a prompt of its own."""
    pairwise = [mode == "pairwise" for mode in modes.values()]
    if all(pairwise):
        return "queries, pairwise"
    return "queries, partly pairwise" if any(pairwise) else "queries, listwise"
