"""Tokens of the reranker in evaluation: what it reads of a query and its best candidates, in each mode (`unime.evaluate.rerank`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unime import artifacts, prompts
from unime.evaluate import rerank
from unime.judge import Question
from unime.plan import counts
from unime.plan.tokens import Load, Sizes, drawn, ending, of_questions

UNCUT = 1 << 40
"""Tokens of a forward pass that holds any query with its candidates."""


class Asked(NamedTuple):
    """What the reranker is asked in one task or column: how many queries, the mode in which it reads, and some lists (query, candidates
    shown)."""

    queries: int
    mode: str
    lists: list[tuple[str, list[str]]]


def of_config(config: Any, names: Sequence[str], root: Path, most: int) -> list[Asked]:
    """What the reranker is asked in each of these tasks or columns, whose tables are below `root`, up to `most` lists of each."""
    modes, found = counts.reading(config, names), []
    for one in counts.tasks(config, names, root):
        lists = of_folder(root / one.name, most, config.evaluate.rerank)
        found.append(Asked(one.queries, modes[one.name], lists))
    return found


def of_folder(folder: Path, most: int, keep: int) -> list[tuple[str, list[str]]]:
    """Of up to `most` queries of a task or column the query and `keep` candidates (fewer where there are fewer), drawn."""
    pooled = (folder / "pool.parquet").exists()
    table = artifacts.read_table(folder / "queries.parquet", artifacts.CAPTION_QUERIES if pooled else artifacts.TASKS)
    pool = artifacts.read_table(folder / "pool.parquet", artifacts.POOL)["id"].to_list() if pooled else []
    rng, found = np.random.default_rng(0), []
    for row in drawn(range(len(table)), most):
        query, own = table["query"][row], list(dict.fromkeys(table["candidates"][row])) or pool
        found.append((query, [own[place] for place in rng.permutation(len(own))[:keep]]))
    return found


def of_lists(sizes: Sizes, asked: Iterable[Asked], form: str) -> Load:
    """Tokens of all queries of these tasks or columns, from their lists that were drawn; `form` is a name of `prompts.FORMATS`."""
    by_mode: dict[str, float] = defaultdict(float)
    sample = 0
    for one in asked:
        found = [read(sizes, query, shown, one.mode, form) for query, shown in one.lists]
        by_mode[one.mode] += one.queries * float(np.mean(found or [0]))
        sample += len(found)
    return Load(sum(by_mode.values()), sample=sample, by_mode=dict(by_mode))


def read(sizes: Sizes, query: str, shown: Sequence[str], mode: str, form: str) -> int:
    """Tokens that the reranker reads of a query and its shown candidates, in a mode of evaluate.rerank_mode and a prompt format.

    `pairwise`: a prompt a candidate, whose common beginning (instruction and query) is read once.  `likelihood`: the list's prompt and
    all its answers.  `generate`: the list's prompt and one answer, the longest; a model that is not trained to may write more.
    """
    if mode == "pairwise":
        question = Question(query, tuple(dict.fromkeys(shown)))
        packed, _ = of_questions([question], sizes, UNCUT, form)
        return packed
    backbone = sizes.backbone
    content = sizes.content(query)
    candidates = [sizes.content(id) for id in shown]
    listed = backbone.length(rerank.prompt(backbone, content, candidates, form))
    answers = [ending(backbone, prompts.list_answer(number)) for number in range(1, len(shown) + 1)]
    return listed + (max(answers) if mode == "generate" else sum(answers))


def assumed(config: Any, names: Sequence[str], root: Path, instruction: int, size: int) -> Load:
    """Tokens of these tasks or columns where an item has `size` tokens and a prompt's own words `instruction`; answers are left out."""
    modes = counts.reading(config, names)
    by_mode: dict[str, float] = defaultdict(float)
    for one in counts.tasks(config, names, root):
        most = 2 if counts.compositional(config, one.name) else config.evaluate.rerank
        shown = min(most, config.evaluate.rerank)
        by_mode[modes[one.name]] += one.queries * (instruction + (1 + shown) * size)  # candidates alone share what stands before them
    return Load(sum(by_mode.values()), by_mode=dict(by_mode))
