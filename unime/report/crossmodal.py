"""The cross-modal table: Recall@1 of each model in both directions of the caption sets, and its accuracy on SugarCrepe's pairs.

    crossmodal_table.csv    one row a model: the groups' means, then every column, percent with two decimals
    crossmodal_table.md     the same to read, with recall@5 and @10, the parts of the compositional columns, n and the tie rule
    section                 the markdown of its place on the page

A published row stands under a column that this run has, and under a group's mean only where this run had exactly the paper's columns of
that group.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from unime.evaluate.tasks import CAPTIONS, MODELS, column, columns_of, is_papers
from unime.report.published import PUBLISHED_CROSSMODAL
from unime.report.table import Row, csv_text, figures, grid, one_rule, percent

METRICS = {"recall@1": "Recall@1", "recall@5": "Recall@5", "recall@10": "Recall@10", "accuracy": "Accuracy"}
STAGE = "crossmodal"
"""The stage whose scores these are, for messages."""

RETRIEVAL = "Retrieval: Recall@1, the share of queries whose best candidate is right; an image's right answers are all its own captions."
TIES = {
    "content": "any other candidate that ties with the best right one comes before it, so a model that scores all alike earns nothing",
    "vlm2vec_v1": "equals stand in the order of the pool",
    "vlm2vec_v2": "equals stand in the arbitrary order that numpy's argsort leaves them in, as in VLM2Vec's second version",
    "unime_v2": "equals stand in the arbitrary order that numpy's argpartition and argsort leave them in, as in UniME-V2's public code",
}
COMPOSITIONAL = (
    "Compositional: accuracy, the share of images to which the true caption is strictly more similar than the changed one (a tie is a "
    "miss); a column's figure is the mean over its parts."
)
PAPER = (
    "Rows marked published are the paper's (to one decimal), each figure under the column of the same name; a mean only where this run "
    "has exactly the paper's columns of that group."
)
ALONE = "No published row stands beside these: none of these columns is one of the paper's."
ARROWS = (
    "Of each pair of columns in the paper, which marks them image to text and text to image, the first figure stands under `_t2i`: its "
    "public code computes that one with captions as queries."
)


@dataclass(frozen=True)
class Table:
    """rows: `means` by group and `tasks` by column.  tie_rule: of the retrieval columns, '' where there are none.

    details: column -> (metric, n), e.g. recall@5 or accuracy/<part> with its number of queries -> shown model -> share.
    """

    rows: list[Row]
    tasks: list[str]
    n: dict[str, int]
    tie_rule: str
    details: dict[str, dict[tuple[str, int], dict[str, float]]]

    def groups(self) -> list[str]:
        """The groups that have a column in this table."""
        return [group for group in CAPTIONS if columns_of(group, self.tasks)]

    def own(self) -> list[Row]:
        return [row for row in self.rows if row.source == "this run"]


def build(scores: pl.DataFrame, tasks: list[str]) -> Table:
    """From SCORES rows of all columns and the columns to show, in the table's order.

    Raises ArtifactError where a model has no figure for a column, a figure is not a share, or tie rules differ; ConfigError for an
    unknown column.
    """
    value, n = figures(scores, {name: column(name).metric for name in tasks}, STAGE)
    rows = []
    for model, shown in MODELS.items():
        own = {name: value[model, name] for name in tasks}
        means = {group: sum(own[name] for name in inside) / len(inside) for group in CAPTIONS if (inside := columns_of(group, tasks))}
        rows.append(Row(shown, "this run", means, own))
    for shown, published in PUBLISHED_CROSSMODAL.items():
        means = {group: published[group] / 100 for group in CAPTIONS if group in published and is_papers(group, tasks)}
        if (own := {name: published[name] / 100 for name in tasks if name in published}) or means:
            rows.append(Row(shown, "published", means, own))
    details: dict[str, dict[tuple[str, int], dict[str, float]]] = {name: {} for name in tasks}
    found = scores.filter(pl.col("task").is_in(tasks) & pl.col("model").is_in(list(MODELS)))
    for name, model, metric, count, share in found.select("task", "model", "metric", "n", "value").iter_rows():
        if metric.partition("/")[0] in METRICS:
            details[name].setdefault((metric, count), {})[MODELS[model]] = share
    rule = one_rule(scores, [name for name in tasks if column(name).metric == "recall@1"], "recall@1")
    return Table(rows, list(tasks), n, rule, details)


def to_csv(table: Table) -> str:
    rows = [
        [row.model, row.source, *(percent(row.means.get(group)) for group in CAPTIONS), *(percent(row.tasks.get(t)) for t in table.tasks)]
        for row in table.rows
    ]
    return csv_text(["model", "source", *CAPTIONS, *table.tasks], rows)


def to_metrics(table: Table) -> dict[str, dict[str, float]]:
    """model key -> group -> percent, two decimals; this run's rows only."""
    own = {row.model: row for row in table.own()}
    return {key: {group: round(100 * share, 2) for group, share in own[shown].means.items()} for key, shown in MODELS.items()}


def to_markdown(table: Table) -> str:
    """The whole report of the table."""
    return "# Cross-modal retrieval (%)\n\n" + section(table, "##")


def section(table: Table, heading: str = "#") -> str:
    """Means and notes, then a block a group: each column's figure for all rows, and this run's other figures.  `heading`: its marks."""
    groups = table.groups()
    rows = [row for row in table.rows if row.means]
    cells = [[row.model, row.source, *(percent(row.means.get(group)) for group in groups)] for row in rows]
    lines = [*grid(["model", "source", *(CAPTIONS[group] for group in groups)], cells, text=2), "", *_notes(table)]
    for group in groups:
        lines += [f"{heading} {CAPTIONS[group]}", "", *_columns(table, group), "", *_details(table, group), ""]
    return "\n".join(lines)


def _notes(table: Table) -> list[str]:
    """Paragraphs: what the means are over, what counts as a hit, what may be compared."""
    sizes = [f"{CAPTIONS[group]} over {len(columns_of(group, table.tasks))}" for group in table.groups()]
    notes = [f"Means: {', '.join(sizes)} columns. Rows of this run are those of the MMEB table."]
    if table.tie_rule:
        notes.append(f"{RETRIEVAL} Ties (`{table.tie_rule}`): {TIES[table.tie_rule]}.")
    if "compositional" in table.groups():
        notes.append(COMPOSITIONAL)
    published = {name for row in table.rows if row.source == "published" for name in (*row.means, *row.tasks)}
    notes.append(PAPER if published else ALONE)
    if any(name.endswith("_t2i") for name in published):
        notes.append(ARROWS)
    return [line for note in notes for line in (note, "")]


def _columns(table: Table, group: str) -> list[str]:
    names = columns_of(group, table.tasks)
    rows = [row for row in table.rows if row.source == "this run" or any(name in row.tasks for name in names)]
    cells = [[row.model, row.source, *(percent(row.tasks.get(name)) for name in names)] for row in rows]
    return grid(["model", "source", *names], cells, text=2)


def _details(table: Table, group: str) -> list[str]:
    """Every figure of this run: columns and metrics down, models across."""
    own = [row.model for row in table.own()]
    cells = []
    for name in columns_of(group, table.tasks):
        for (metric, n), shares in table.details[name].items():
            kind, _, part = metric.partition("/")
            shown = f"{METRICS[kind]}, {part}" if part else METRICS[kind]
            cells.append([name, shown, f"{n:,}", *(percent(shares.get(model)) for model in own)])
    return grid(["column", "figure", "queries", *own], cells, text=2)
