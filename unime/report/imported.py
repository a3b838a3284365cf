"""The mining report of a run that takes published scores: what of the file became mined pairs, and what did not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unime.markdown import escaped
from unime.report.table import grid

COLUMNS = {
    "rows": "rows",
    "mined": "mined pairs",
    "new_pairs": "not in this run's pairs",
    "duplicate_pairs": "repeats",
    "pairs_without_scores": "pairs without scores",
    "new_items": "further items",
    "labelled": "negatives left out, labelled positives",
    "itself": "negatives left out, the query itself",
    "above_alpha": "negatives above sigma - 0.01",
}
LISTED = 20
"""Rows of each kind that the report names; mining.json has up to a thousand."""


def markdown(report: Mapping[str, Any]) -> str:
    """`report` is that of `unime.mine.published.import_scores`."""
    rows = [[one["dataset"], *(f"{one[key]:,}" for key in COLUMNS)] for one in report["sets"]]
    share = 100 * report["above_alpha_share"]
    lines = ["# Mining report", "", f"Negatives and scores as published ({report['rows']:,} rows); nothing was judged here.", ""]
    lines += [
        *grid(["set", *COLUMNS.values()], rows, text=1),
        "",
        f"{share:.2f} % of the negatives score above sigma - 0.01, which mining here would drop; as published, they are kept (about 2 % "
        "is usual). "
        f"Ranks are {report['ranks']}.",
        "",
    ]
    for key, title in (("left_out", "Rows left out"), ("unmatched", "Rows of no pair here"), ("negatives_left_out", "Negatives left out")):
        found = report[key]
        lines += [f"## {title}: {found['count']:,}", ""]
        lines += [f"- row {one['row']}: {escaped(one['reason'])}" for one in found["listed"][:LISTED]] + ([""] if found["listed"] else [])
    others = report["rows_of_other_sets"]
    shown = ", ".join(f"{escaped(name)} {count:,}" for name, count in others.items())
    lines += [f"Rows of sets that this run does not train on: {shown or 'none'}."]
    return "\n".join(lines) + "\n"
