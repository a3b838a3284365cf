"""The ablations' table: what one setting of UniME-V2 is worth, beside the paper's tables of the same.

    ablations.csv   one row a setting: block, row, source, then the means of MMEB's layout and of the caption benchmarks (percent)
    ablations.md    the same to read, a block a table

A row of this run is an embedder that differs in something from the run's own of the same loss; which block it stands in follows from what
differs.  The run's own row stands in every block: UniME-V2's, and among mining rules that with the one-hot target, as rules without a judge
give no scores to learn from.  Published rows stand only under means that this run has over exactly the paper's tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from unime.artifacts import ArtifactError
from unime.config import Rule, Variant, settings_of
from unime.config.training import Optimizer
from unime.evaluate.tasks import CAPTIONS, MODELS, column, columns_of, is_mmeb, is_papers
from unime.report.published import ABLATIONS
from unime.report.table import METRIC, csv_text, grid, percent

HEADINGS = {"overall": "MMEB", **CAPTIONS}
BLOCKS = {
    "components": "Components",
    "loss": "Loss",
    "judge": "Judge",
    "mining": "Mining rule (one-hot target)",
    "negatives": "Negatives a query (k)",
    "tau": "Temperature",
    "other": "Several at once",
}
COMPONENTS = ("in_batch", "hard_negatives", "unime_v2")
SAME = ("micro", "checkpoint")
"""Settings that change no result."""


class Row(NamedTuple):
    """`means` are shares in [0, 1] by column, absent where there is no figure."""

    block: str
    name: str
    source: str
    means: dict[str, float]


class Base(NamedTuple):
    """What variants differ from: the run's mine.source, its sections train.<loss> by loss, and mine.rules."""

    source: str
    train: Mapping[str, Optimizer]
    rules: Mapping[str, Rule]


def build(
    main: pl.DataFrame,
    variants: Mapping[str, pl.DataFrame],
    settings: Mapping[str, Variant],
    base: Base,
    tasks: Sequence[str],
    captions: Sequence[str],
) -> list[Row]:
    """Rows in the blocks' order.  `main` and each of `variants` are SCORES of all tasks; `settings` says what each variant is.  Raises
    ArtifactError where a model lacks a task."""
    own = {model: means(main.filter(pl.col("model") == model), tasks, captions, MODELS[model]) for model in COMPONENTS}
    comparable = [group for group in HEADINGS if is_published(group, tasks, captions)]
    found: dict[str, list[Row]] = {block: [] for block in BLOCKS}
    for name, scores in variants.items():
        block = block_of(settings[name], base)
        found[block].append(Row(block, label(settings[name], base), "this run", means(scores, tasks, captions, name)))
    rows = [Row("components", MODELS[model], "this run", own[model]) for model in COMPONENTS]
    for block, some in found.items():
        if some and block != "components":
            keys = {key for name in variants if block_of(settings[name], base) == block for key in differences(settings[name], base)}
            model = "hard_negatives" if block == "mining" else "unime_v2"
            rows.append(Row(block, own_label(block, sorted(keys), base), "this run", own[model]))
        rows += some
    blocks = {row.block for row in rows}
    for block, name, figures in ABLATIONS:
        if block in blocks and (shown := {group: figures[group] / 100 for group in comparable}):
            rows.append(Row(block, name, "published", shown))
    return sorted(rows, key=lambda row: list(BLOCKS).index(row.block))


def differences(variant: Variant, base: Base) -> dict[str, Any]:
    """What of a variant is not as in the run's own embedder of its loss: `source` (which in-batch training does not read) and settings."""
    run = base.train[variant.loss]
    found: dict[str, Any] = {}
    if variant.loss != "in_batch" and variant.source != base.source:
        found["source"] = variant.source
    for key, value in settings_of(variant, run):
        if key not in SAME and value != getattr(run, key):
            found[key] = value
    return found


def block_of(variant: Variant, base: Base) -> str:
    """The block that a variant belongs to."""
    keys = list(differences(variant, base))
    if keys == ["source"] and variant.source in base.rules:
        return "mining"
    if variant.loss != "unime_v2":
        return "components"
    if len(keys) != 1:
        return "other"
    shape = set(type(base.train["unime_v2"]).model_fields) - set(Optimizer.model_fields)  # of the loss itself
    blocks = {**dict.fromkeys(shape, "loss"), "source": "judge", "negatives": "negatives", "tau": "tau"}
    return blocks.get(keys[0], "other")


def label(variant: Variant, base: Base) -> str:
    """`k = 4`, `in-batch (VLM2Vec), batch = 80`: the loss where it is not UniME-V2's, and what differs."""
    block, found = block_of(variant, base), differences(variant, base)
    loss = [MODELS[variant.loss]] if block == "components" else []
    return ", ".join([*loss, *(_shown(key, value, base) for key, value in _ordered(found))]) or "as the run"


def own_label(block: str, keys: Iterable[str], base: Base) -> str:
    """The run's own row of a block, whose variants differ in `keys`."""
    if block == "other":
        return "as the run"
    own = {key: base.source if key == "source" else getattr(base.train["unime_v2"], key) for key in keys}
    return ", ".join(_shown(key, value, base) for key, value in _ordered(own))


def _ordered(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    first = ("source", "negatives", "tau")
    return sorted(settings.items(), key=lambda one: (first.index(one[0]) if one[0] in first else len(first), one[0]))


def _shown(key: str, value: Any, base: Base) -> str:
    if key == "source":
        if value in base.rules:
            return described(base.rules[value])
        return "judged by the run's judge" if value == base.source else f"judged by {value}"
    name = "k" if key == "negatives" else key
    return f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"


def described(rule: Rule) -> str:
    """A mining rule in words: `below 0.95 x the positive's similarity`."""
    words = {
        "random": "random candidates",
        "top_k": "the most similar, no filter",
        "margin": f"below the positive's similarity - {rule.margin}",
        "percent": f"below {rule.share} x the positive's similarity",
    }[rule.rule]
    return words if rule.interval is None else f"{words}, interval {rule.interval}"


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
