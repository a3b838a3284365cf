"""report.html: the table, a chart a meta-task, the mining report and the data report on one page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unime import markdown
from unime.evaluate.tasks import META
from unime.report import html, table
from unime.report.table import Table

SHOWN = 50
"""Left-out rows of one data set that the page lists; the data stage's report.json has more."""

_CELL = 300  # characters of a source's text (a reason, a file name) in a cell


def page(
    results: Table,
    charts: Mapping[str, str],
    mining: str,
    train: Sequence[Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    images: Mapping[str, str] | None = None,
    crossmodal: str = "",
    columns: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
    choice: str = "",
) -> str:
    """The whole page.  `charts`: SVG by meta-task; `mining`: the mining report in markdown, `images` the SVG texts it names;
    `train`, `tasks`, `columns`: the report.json of every results/data/train/<set> and results/data/eval/<task>, MMEB's tasks and
    cross-modal columns; `crossmodal`: the cross-modal table's `section`, '' where no such column ran;
    `warnings`: signs that a result means nothing, above everything else; `choice`: the section on a user's own tasks, '' for none."""
    found = {"Warnings": html.render("\n".join(f"- {' '.join(one.split())}" for one in warnings))} if warnings else {}
    sections = {
        **found,
        **({"Which model": html.render(choice, deeper=2)} if choice else {}),
        "Results": html.render(table.means_markdown(results), deeper=2) + "\n" + _by_meta(results, charts),
        **({"Cross-modal": html.render(crossmodal, deeper=2)} if crossmodal else {}),
        "Mining": html.render(_without_title(mining), images, deeper=1),
        "Data": html.render(data_markdown(train, tasks, columns), deeper=2),
    }
    menu = "<nav>" + "".join(f'<a href="#{html.slug(name)}">{name}</a>' for name in sections) + "</nav>"
    body = "\n".join(f'<h2 id="{html.slug(name)}">{name}</h2>\n{text}' for name, text in sections.items())
    return html.page("UniME-V2 report", f"<h1>UniME-V2: embeddings from a judge's soft scores</h1>\n{menu}\n{body}")


def data_markdown(train: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]] = ()) -> str:
    """What the data stages read, kept and left out."""
    lines = ["# Training sets", ""]
    lines += _grid(
        ["set", "rows", "sampled", "pairs", "queries", "candidates", "duplicates", "left out", "query -> candidate"],
        [
            [
                one["name"],
                one["rows"],
                one["sampled"],
                one["pairs"],
                one["queries"],
                one["candidates"],
                one["duplicate_pairs"],
                one["left_out"]["count"],
                _shares(one["modalities"]),
            ]
            for one in train
        ],
    )
    lines += [
        "",
        "Sampled: rows drawn under `data.cap`. Candidates: distinct positives of the set, the pool that its hard negatives come from. "
        "Duplicates: rows whose query and positive stand in an earlier row.",
        "",
        "# Evaluation tasks",
        "",
    ]
    lines += _grid(
        ["task", "rows", "queries", "candidates a query", "distinct", "repeats", "left out", "query", "candidate"],
        [
            [
                one["name"],
                one["rows"],
                one["queries"],
                _range(one["candidates"]["fewest"], one["candidates"]["most"]),
                one["candidates"]["distinct"],
                one["duplicate_candidates"]["candidates"],
                one["left_out"]["count"] + one["candidates_left_out"]["count"],
                _shares(one["modalities"]["query"]),
                _shares(one["modalities"]["candidate"]),
            ]
            for one in tasks
        ],
    )
    lines += [
        "",
        "Repeats: candidates equal in content to another of the same list; the tie rule says what they earn.",
        "",
        *_marks(train, tasks),
        *_forms([*train, *tasks, *columns]),
    ]
    lines += _columns(columns) if columns else []
    return "\n".join([*lines, "# Left out", "", *_left_out([*train, *tasks, *columns])])


def _marks(train: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which sets and tasks have texts with an image mark and no image, as a paragraph; nothing where none has."""
    told = []
    for what, reports in (("training set", train), ("task", tasks)):
        for one in reports:
            count = sum(one.get("marks_without_image", {}).values())
            if count:
                told.append(f"{what} {markdown.escaped(one['name'])} {count:,}")
    return [f"Texts with an image mark and no image (`data.image_marks`): {', '.join(told)}.", ""] if told else []


def _forms(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which sets, tasks and columns have answers that are equal but for their form, as a paragraph; nothing where none has."""
    told = []
    for one in reports:
        count = one.get("equal_but_for_form", 0)
        if count:
            told.append(f"{markdown.escaped(one['name'])} {count:,}")
    return [f"Answers that equal another one but for the form of their text (`data.copies`): {', '.join(told)}.", ""] if told else []


def _columns(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["# Cross-modal columns", ""]
    lines += _grid(
        ["column", "rows", "queries", "candidates", "distinct", "repeats", "left out"],
        [
            [
                one["name"],
                one["rows"],
                one["queries"],
                one["candidates"],
                one["distinct"],
                one["duplicates"],
                one["left_out"]["count"] + one["captions_left_out"]["count"],
            ]
            for one in columns
        ],
    )
    return [*lines, "", "Candidates: what a column's queries share, or both captions of each pair. Left out: rows and single captions.", ""]


def _by_meta(results: Table, charts: Mapping[str, str]) -> str:
    parts = []
    for meta in results.groups():
        parts.append(f'<h3 id="{meta}">{META[meta]}</h3>')
        if meta in charts:
            parts.append(
                html.figure(charts[meta], f"{META[meta]}: Precision@1 of each model on each task; the figures are in the table below")
            )
        parts.append(html.render("\n".join(table.meta_markdown(results, meta))))
    return "\n".join(parts)


def _left_out(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: list[list[Any]] = []
    more = []
    for one in reports:
        for kind in ("left_out", "candidates_left_out", "captions_left_out"):
            found = one.get(kind, {"count": 0, "listed": []})
            rows += [[one["name"], _cut(row["file"]), row["row"], _cut(row["reason"])] for row in found["listed"][:SHOWN]]
            if (hidden := found["count"] - len(found["listed"][:SHOWN])) > 0:
                more.append(f"- {markdown.escaped(one['name'])}: {hidden:,} more, see its report.json")
    if not rows and not more:
        return ["No row and no candidate was left out.", ""]
    return [*_grid(["set", "file", "row", "reason"], rows, text=(0, 1, 3)), "", *more, ""]


def _grid(header: Sequence[str], rows: Sequence[Sequence[Any]], text: Sequence[int] = ()) -> list[str]:
    """A markdown table; columns whose cells are numbers are right aligned."""
    shown = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    numbers = [k not in text and bool(rows) and all(isinstance(row[k], int) for row in rows) for k in range(len(header))]
    return markdown.grid(header, shown, numbers)


def _shares(counts: Mapping[str, int]) -> str:
    """`image + text 240, text 12`, the most first."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _cut(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _CELL else line[: _CELL - 3] + "..."


def _without_title(text: str) -> str:
    """The page has its own title above the mining report."""
    first, _, rest = text.lstrip().partition("\n")
    return rest if first.startswith("# ") else text
