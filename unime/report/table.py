"""The results table: Precision@1 of each model on each task, and the means that the paper reports.

    table.csv      one row a model: means, then every task, percent with two decimals; empty where there is no such figure
    table.md       the same to read, with n, the tie rule and what each row is
    metrics.json   model -> mean -> percent, flat enough for `dvc metrics diff`
    screen         the means, for a terminal of 80 columns

A mean is over those of its tasks that ran.  Published rows stand only under means for which this run had exactly MMEB's tasks: a
mean over other tasks is another quantity and is not put beside them.  For the same reason a row of this run has a `difference` to the
published row that it reproduces only where the overall mean is over MMEB's 36 tasks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from unime import markdown
from unime.artifacts import ArtifactError
from unime.config import ConfigError, nearest
from unime.evaluate.tasks import MEANS, META, MODELS, RERANKER, is_mmeb, members, task
from unime.report.published import PUBLISHED

METRIC = "precision@1"
DIFFERENCE = "difference"
HEADINGS = {**META, "grounding": "Grounding", "ind": "IND", "ood": "OOD", "overall": "Overall"}

TIES = {
    "content": "a candidate equal in content to the right one counts as right; any other candidate that ties for the best score makes "
    "the answer wrong, so a model that scores all alike earns nothing",
    "vlm2vec_v1": "as in VLM2Vec's first version, the first of the best in the list is the answer; the right one is listed first in MMEB, "
    "so ties earn",
    "vlm2vec_v2": "as in VLM2Vec's second version, the first of a sort is the answer, equals in arbitrary order, and it is right if it is "
    "equal to the right one",
    "unime_v2": "as in UniME-V2's public code, the first of a sort of the ten best is the answer, equals in arbitrary order, and it is "
    "right only in the right one's own place of the list: a repeat of the right one is wrong",
}
ROWS = {
    "zero_shot": "the base MLLM as it is, last token, no adapter",
    "in_batch": "LoRA on the base MLLM, in-batch InfoNCE (VLM2Vec's recipe); also the base embedder that finds hard negatives",
    "hard_negatives": "LoRA on the base MLLM, mined hard negatives, one-hot target",
    "unime_v2": "LoRA on the base MLLM, mined hard negatives, the judge's soft scores as target",
    "unime_v2_reranker": "UniME-V2's best candidates, put in order by the reranker",
}


@dataclass(frozen=True)
class Row:
    """One model: `means` and `tasks` are shares in [0, 1], absent where there is no figure.

    `difference`: overall of this run minus that of the published row it is compared with, in points; None where nothing is comparable.
    """

    model: str
    source: str
    means: dict[str, float]
    tasks: dict[str, float]
    difference: float | None = None


@dataclass(frozen=True)
class Table:
    rows: list[Row]
    tasks: list[str]
    n: dict[str, int]
    tie_rule: str
    compare: dict[str, str]
    protocol: str = ""
    """A sentence on how long each row was trained."""

    def differs(self) -> bool:
        """Whether some row has a difference."""
        return any(row.difference is not None for row in self.rows)

    def groups(self) -> list[str]:
        """The meta-tasks that have a task in this table."""
        return [meta for meta in META if members(meta, self.tasks)]


def check_compare(compare: Mapping[str, str]) -> None:
    """Raise ConfigError for an unknown model key or published row of `evaluate.compare`."""
    for model, row in compare.items():
        if model not in MODELS:
            raise ConfigError(f"evaluate.compare: {model!r} is no model of the table{nearest(model, list(MODELS))}")
        if row not in PUBLISHED:
            raise ConfigError(f"evaluate.compare.{model}: {row!r} is no published row{nearest(row, list(PUBLISHED))}")


def build(scores: pl.DataFrame, tasks: list[str], compare: Mapping[str, str] | None = None, protocol: str = "") -> Table:
    """From SCORES rows of all tasks and the tasks to show, in the table's order.

    `compare`: model key -> the published row (`published.PUBLISHED`) that it reproduces.  Raises ArtifactError where a model has no
    figure for a task, a figure is not a share, or tie rules differ: means over different tasks or rules cannot be compared.  Raises
    ConfigError for an unknown model key or published row.
    """
    compare = dict(compare or {})
    check_compare(compare)
    value, n = figures(scores, dict.fromkeys(tasks, METRIC), "evaluate")
    comparable = [mean for mean in MEANS if is_mmeb(mean, tasks)]
    rows = []
    for model, shown in MODELS.items():
        own = {name: value[model, name] for name in tasks}
        means = {mean: sum(own[t] for t in inside) / len(inside) for mean in MEANS if (inside := members(mean, tasks))}
        paper = PUBLISHED.get(compare.get(model, ""), {}).get("overall")
        difference = 100 * means["overall"] - paper if paper is not None and "overall" in comparable else None
        rows.append(Row(shown, "this run", means, own, difference))
    for shown, published in PUBLISHED.items():
        if means := {mean: published[mean] / 100 for mean in comparable if mean in published}:
            rows.append(Row(shown, "published", means, {}))
    rule = one_rule(scores, tasks, METRIC)
    return Table(rows, list(tasks), n, rule, compare, protocol)


def figures(scores: pl.DataFrame, metrics: Mapping[str, str], stage: str) -> tuple[dict[tuple[str, str], float], dict[str, int]]:
    """(model key, task) -> share, and n of each task, from SCORES; `metrics`: task -> the metric that is its figure.

    Raises ArtifactError where a figure is missing, stands twice or is not a share; `stage` is the one to run again.
    """
    value: dict[tuple[str, str], float] = {}
    n: dict[str, int] = {}
    for row in scores.filter(pl.col("task").is_in(list(metrics))).iter_rows(named=True):
        model, name = row["model"], row["task"]
        metric = metrics[name]
        if row["metric"] != metric:
            continue
        if (model, name) in value:
            raise ArtifactError(
                f"{metric} of {model} on {name} stands twice in the scores; delete results/{stage}/{name} and evaluate again"
            )
        if not 0 <= row["value"] <= 1:
            raise ArtifactError(f"{metric} of {model} on {name} is {row['value']}, not a share in [0, 1]; evaluate the task again")
        value[model, name], n[name] = row["value"], row["n"]
    for model in MODELS:
        for name, metric in metrics.items():
            if (model, name) not in value:
                raise ArtifactError(f"{name} has no {metric} of {model}; run the stage {stage}@{name} again")
    return value, {name: n[name] for name in metrics}


def one_rule(scores: pl.DataFrame, tasks: Sequence[str], metric: str) -> str:
    """The tie rule of these tasks' figures; '' where there is no task.  Raises ArtifactError where there is more than one."""
    rules = sorted(scores.filter(pl.col("metric").eq(metric) & pl.col("task").is_in(tasks))["tie_rule"].unique())
    if len(rules) > 1:
        raise ArtifactError(f"tie rules {', '.join(rules)} in one table; run `evaluate` again for all tasks with one evaluate.tie_rule")
    return rules[0] if rules else ""


def percent(share: float | None) -> str:
    """`63.60`; empty for None."""
    return "" if share is None else f"{100 * share:.2f}"


def points(difference: float | None) -> str:
    """`+1.20`, `-0.35`, `+0.00`; empty for None."""
    return "" if difference is None else f"{round(difference, 2) + 0.0:+.2f}"


def to_csv(table: Table) -> str:
    rows = []
    for row in table.rows:
        means, tasks = [percent(row.means.get(mean)) for mean in MEANS], [percent(row.tasks.get(name)) for name in table.tasks]
        rows.append([row.model, row.source, *means, points(row.difference), *tasks])
    return csv_text(["model", "source", *MEANS, DIFFERENCE, *table.tasks], rows)


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def to_metrics(table: Table) -> dict[str, dict[str, float]]:
    """model key -> mean -> percent, two decimals; this run's rows only."""
    own = {row.model: row for row in table.rows if row.source == "this run"}
    return {key: {mean: round(100 * share, 2) for mean, share in own[shown].means.items()} for key, shown in MODELS.items()}


def comparison(table: Table) -> str:
    """One sentence on what the published rows may be compared with, or why there are none."""
    if any(row.source == "published" for row in table.rows):
        return (
            "Rows marked published are the paper's (to one decimal) and stand only under means for which this run has exactly MMEB's own "
            "tasks; published rows without a mean for a group leave it empty."
        )
    return (
        "No published row stands beside these: no mean here is over exactly MMEB's own tasks, so the paper's figures are another quantity."
    )


def reproduction(table: Table) -> str:
    """One sentence on what the differences are; '' where there are none."""
    own = {row.model for row in table.rows if row.difference is not None}
    pairs = [f"{MODELS[model]} against the paper's {row}" for model, row in table.compare.items() if MODELS[model] in own]
    if not pairs:
        return ""
    shown = " The paper's reranker was shown five candidates." if MODELS[RERANKER] in own else ""
    return f"Difference: overall mean of this run minus the paper's, in points ({'; '.join(pairs)}).{shown}"


def queries(table: Table) -> str:
    """`100 queries a task`, or the range."""
    counts = sorted(set(table.n.values()))
    return f"{counts[0]:,} queries a task" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} queries a task"


def count(table: Table) -> str:
    """`18 tasks`, `1 task`."""
    return "1 task" if len(table.tasks) == 1 else f"{len(table.tasks)} tasks"


def basis(table: Table) -> str:
    """What the means are over."""
    sizes = [f"{len(inside)} {HEADINGS[mean]}" for mean in MEANS if mean != "overall" and (inside := members(mean, table.tasks))]
    return (
        f"Means over {count(table)} ({', '.join(sizes)}), {queries(table)}. IND / OOD: tasks whose training set was / was not trained on."
    )


def to_markdown(table: Table) -> str:
    """The whole report of the table: means and notes, then one block a meta-task with its tasks down and models across."""
    lines = ["# Precision@1 (%)", "", means_markdown(table)]
    for meta in table.groups():
        lines += [f"## {META[meta]}", "", *meta_markdown(table, meta), ""]
    return "\n".join(lines)


def means_markdown(table: Table) -> str:
    """The means, what they are over, the tie rule, and what each row is."""
    more = ["Difference"] if table.differs() else []
    cells = [[*_mean_cells(row), *(points(row.difference) for _ in more)] for row in table.rows]
    lines = grid(["model", "source", *HEADINGS.values(), *more], cells, text=2)
    lines += ["", basis(table), ""]
    lines += [table.protocol, ""] if table.protocol else []
    lines += [f"Ties (`{table.tie_rule}`): {TIES[table.tie_rule]}.", "", comparison(table), ""]
    lines += [note, ""] if (note := reproduction(table)) else []
    lines += ["Rows of this run:", "", *(f"- **{MODELS[key]}**: {text}" for key, text in ROWS.items()), ""]
    return "\n".join(lines)


def meta_markdown(table: Table, meta: str) -> list[str]:
    """Lines of a meta-task's block: task, split, n, then each of this run's models; the mean last."""
    own = [row for row in table.rows if row.source == "this run"]
    names = members(meta, table.tasks)
    cells = [[name, task(name).split.upper(), f"{table.n[name]:,}", *(percent(row.tasks[name]) for row in own)] for name in names]
    cells += [["mean", "", "", *(percent(row.means[meta]) for row in own)]]
    return grid(["task", "split", "n", *(row.model for row in own)], cells, text=2)


def screen(table: Table) -> Any:
    """A rich table of the means that fits 80 columns."""
    from rich import box
    from rich.table import Table as Screen

    short = dict(zip(MEANS, ("Cls", "VQA", "Ret", "Grd", "IND", "OOD", "All"), strict=True))
    shown = Screen(
        title="Precision@1 (%)",
        caption=f"{count(table)}, {queries(table)}, tie rule `{table.tie_rule}`; per task: mmeb_table.md",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("model", overflow="fold")
    for mean in MEANS:
        shown.add_column(short[mean], justify="right", no_wrap=True, style="bold" if mean == "overall" else "")
    if table.differs():
        shown.add_column("Diff", justify="right", no_wrap=True)
    best = {mean: max(row.means.get(mean, 0.0) for row in table.rows if row.source == "this run") for mean in MEANS}
    published = False
    for row in table.rows:
        if row.source == "published" and not published:
            shown.add_section()
            published = True
        cells = [percent(row.means.get(mean)) or "-" for mean in MEANS]
        marked = [
            f"[green]{cell}[/]" if row.source == "this run" and row.means.get(mean) == best[mean] else cell
            for cell, mean in zip(cells, MEANS, strict=True)
        ]
        more = [points(row.difference)] if table.differs() else []
        shown.add_row(row.model, *marked, *more, style="dim" if row.source == "published" else "")
    return shown


def to_text(table: Table, width: int = 80, color: bool = False) -> str:
    """`screen` as text of at most `width` columns, with terminal colours where asked."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=max(80, min(width, 120)), force_terminal=color, color_system="standard" if color else None).print(screen(table))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _mean_cells(row: Row) -> list[str]:
    return [row.model, row.source, *(percent(row.means.get(mean)) for mean in MEANS)]


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> list[str]:
    """A markdown table; the first `text` columns left, the others right aligned.  What is in a cell is text, never markup."""
    return markdown.grid(header, rows, [k >= text for k in range(len(header))])
