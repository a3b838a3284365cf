"""The plan as text and as JSON.  No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

HEAD = ("stage", "what", "count", "", "tokens", "a second", "time", "rate from")


def clock(seconds: float | None) -> str:
    """`42 s` below ten minutes, else hours and minutes as h:mm."""
    if seconds is None:
        return "-"
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}:{minutes % 60:02d}"


def short(value: float | None) -> str:
    """A number in three or four digits: 950, 12.3k, 4.56M, 7.8G."""
    if value is None:
        return "-"
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{value:.0f}{unit}" if not unit or value >= 99.95 else f"{value:.1f}{unit}"


def text(rows: Sequence[Any], notes: Iterable[str], timed: str) -> str:
    """A line a stage, the total, `timed` where there are times, and the notes; `rows` are `estimate.Row`s."""
    lines = [HEAD]
    for row in rows:
        count = "?" if row.count is None else f"{row.count:,}"
        rated = row.sample if row.timed == "measured" else row.timed
        lines.append((row.stage, row.what, count, row.source, short(row.tokens), short(row.rate), clock(row.seconds), rated))
        if row.plain is not None:
            lines.append(("", "  one pair a sequence", "", "", short(row.plain), "", "", ""))
    known = [row.seconds for row in rows if row.seconds is not None]
    if known:
        what = "all" if len(known) == len(rows) else f"{len(known)} of {len(rows)} rows"
        lines.append(("total", what, "", "", "", "", clock(sum(known)), ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    shown = [
        "  ".join(_placed(cell, width, column) for column, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines
    ]
    return "\n".join([line.rstrip() for line in shown] + [f"* {note}" for note in (*([timed] if known else []), *notes)])


def _placed(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column in (2, 4, 5, 6) else cell.ljust(width)


def values(rows: Sequence[Any], notes: Iterable[str]) -> dict[str, Any]:
    """The same for a program; numbers in full."""
    known = [row.seconds for row in rows if row.seconds is not None]
    return {"rows": [row._asdict() for row in rows], "seconds": sum(known) if known else None, "notes": list(notes)}
