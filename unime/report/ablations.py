"""The ablations' table: what one setting of UniME-V2 is worth, beside the paper's tables of the same.

    ablations.csv   one row a setting: block, row, source, then the means of MMEB's layout and of the caption benchmarks (percent)
    ablations.md    the same to read, a block a table

A row of this run differs from the run itself in one thing; the run itself stands in every block.  Published rows stand only under means
that this run has over exactly the paper's tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from unime.artifacts import ArtifactError
from unime.config import Variant
from unime.evaluate.tasks import CAPTIONS, MODELS, column, columns_of, is_mmeb, is_papers
from unime.report.published import ABLATIONS
from unime.report.table import METRIC, csv_text, grid, percent

HEADINGS = {"overall": "MMEB", **CAPTIONS}
BLOCKS = {
    "components": "Components",
    "judge": "Judge",
    "negatives": "Negatives a query (k)",
    "tau": "Temperature",
    "other": "Several at once",
}
COMPONENTS = ("in_batch", "hard_negatives", "unime_v2")


class Row(NamedTuple):
    """`means` are shares in [0, 1] by column, absent where there is no figure."""

    block: str
    name: str
    source: str
    means: dict[str, float]


def build(
    main: pl.DataFrame,
    variants: Mapping[str, pl.DataFrame],
    settings: Mapping[str, Variant],
    base: Variant,
    tasks: Sequence[str],
    captions: Sequence[str],
) -> list[Row]:
    """Rows in the blocks' order.  `main` and each of `variants` are SCORES of all tasks; `settings` says what each variant changed of
    `base`, which is the run's own.  Raises ArtifactError where a model lacks a task."""
    own = {model: means(main.filter(pl.col("model") == model), tasks, captions, MODELS[model]) for model in COMPONENTS}
    comparable = [group for group in HEADINGS if is_published(group, tasks, captions)]
    rows = [Row("components", MODELS[model], "this run", own[model]) for model in COMPONENTS]
    found: dict[str, list[Row]] = {block: [] for block in BLOCKS}
    for name, scores in variants.items():
        block, _ = changed(settings[name], base)
        found[block].append(Row(block, label(settings[name], base), "this run", means(scores, tasks, captions, name)))
    for block, some in found.items():
        if some:
            rows += [Row(block, label(base, base, block), "this run", own["unime_v2"]), *some]
    blocks = {row.block for row in rows}
    for block, name, figures in ABLATIONS:
        if block in blocks and (shown := {group: figures[group] / 100 for group in comparable}):
            rows.append(Row(block, name, "published", shown))
    return sorted(rows, key=lambda row: list(BLOCKS).index(row.block))


def changed(variant: Variant, base: Variant) -> tuple[str, list[str]]:
    """The block that a variant belongs to, and the settings that it changes."""
    names = {"source": "judge", "negatives": "negatives", "tau": "tau"}
    others = [block for key, block in names.items() if getattr(variant, key) != getattr(base, key)]
    return (others[0] if len(others) == 1 else "other"), others


def label(variant: Variant, base: Variant, block: str | None = None) -> str:
    """`k = 4`, `tau = 0.01`, `negatives of X`; what is as in the base is not said, unless it is the base's row in a block."""
    shown = [block] if block is not None else changed(variant, base)[1]
    judge = "the run's judge" if variant.source == base.source else variant.source
    texts = {"judge": f"judged by {judge}", "negatives": f"k = {variant.negatives}", "tau": f"tau = {variant.tau:g}"}
    return ", ".join(texts[name] for name in texts if name in shown) or "as the run"


def means(scores: pl.DataFrame, tasks: Sequence[str], captions: Sequence[str], who: str) -> dict[str, float]:
    """Means of one model's SCORES over the tasks of each column that has any.  Raises ArtifactError naming a task without a figure."""
    figure = {(name, metric): value for name, metric, value in scores.select("task", "metric", "value").iter_rows()}
    wanted = {"overall": [(name, METRIC) for name in tasks]}
    wanted |= {group: [(name, column(name).metric) for name in columns_of(group, captions)] for group in CAPTIONS}
    for name, metric in [one for some in wanted.values() for one in some]:
        if (name, metric) not in figure:
            raise ArtifactError(f"{name} has no {metric} of {who}; run its evaluation again")
    return {group: sum(figure[one] for one in some) / len(some) for group, some in wanted.items() if some}


def is_published(group: str, tasks: Sequence[str], captions: Sequence[str]) -> bool:
    """Whether this run's mean in a column is over exactly the paper's tasks."""
    return is_mmeb("overall", tasks) if group == "overall" else is_papers(group, captions)


def to_csv(rows: Sequence[Row]) -> str:
    cells = [[row.block, row.name, row.source, *(percent(row.means.get(group)) for group in HEADINGS)] for row in rows]
    return csv_text(["block", "row", "source", *HEADINGS], cells)


def to_markdown(rows: Sequence[Row]) -> str:
    """A block a table of the paper: overall Precision@1 of MMEB's layout, means of the caption groups."""
    lines = ["# Ablations of UniME-V2 (%)", ""]
    for block, title in BLOCKS.items():
        if some := [row for row in rows if row.block == block]:
            cells = [[row.name, row.source, *(percent(row.means.get(group)) for group in HEADINGS)] for row in some]
            lines += [f"## {title}", "", *grid(["row", "source", *HEADINGS.values()], cells, text=2), ""]
    return "\n".join(lines)


def to_text(rows: Sequence[Row]) -> list[str]:
    """Lines for a terminal."""
    width = max(len(row.name) for row in rows)
    head = f"{'':12}{'':{width}}  " + "  ".join(f"{title[:8]:>8}" for title in HEADINGS.values())
    return [head] + [
        f"{row.block:12}{row.name:{width}}  " + "  ".join(f"{percent(row.means.get(group)):>8}" for group in HEADINGS)
        for row in rows
        if row.source == "this run"
    ]
