"""What a conversion says: an error for what cannot become a row, else what was made, what was left out, and the split in figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from unime.tools.rows.model import Source, listed
from unime.tools.rows.split import Split

SHOWN = 1000
"""Names of each kind of trouble that the report lists; it counts all."""


def refuse(source: Source, given: Path, skip_bad: bool) -> None:
    """Raise ValueError for what cannot become a row unless it is to be skipped, and where nothing can.

    A picture that cannot be read is no reason to stop: it is counted and named, as the pipeline does with its bad rows.
    """
    problems = []
    if source.bad_rows:
        problems.append(_counted(source.bad_rows, "rows that cannot be used"))
    if source.no_picture:
        problems.append(_counted(source.no_picture, "captions or rows without their picture"))
    if source.no_caption:
        have = "has" if len(source.no_caption) == 1 else "have"
        count = f"({len(source.no_caption):,} of {len(source.pictures):,} images)"
        remedy = source.hint or "give each a .txt beside it or a row of the table"
        problems.append(f"{given}: {listed(source.no_caption)} {have} no caption {count}; {remedy}")
    if problems and not skip_bad:
        raise ValueError("\n".join([*problems, "correct these, or leave them out with --skip-bad, which counts them"]))
    if not source.captions and not source.pairs:
        reasons = [*problems, *([_unreadable(source)] if source.unreadable else [])]
        raise ValueError("\n".join([f"{given}: no row can be made ({source.form})", *reasons]))


def _counted(entries: list[str], what: str) -> str:
    """The first entries, and how many there are."""
    shown = "\n".join(entries[:3])
    return f"{shown}\n({len(entries):,} {what} in all)" if len(entries) > 1 else shown


def _unreadable(source: Source) -> str:
    count = len(source.unreadable)
    lost = f", with {source.lost_with_picture:,} {source.unit}" if source.lost_with_picture else ""
    what = "picture cannot be read and is" if count == 1 else "pictures cannot be read and are"
    return f"{count:,} {what} left out{lost}: {listed(source.unreadable)}; convert them to JPEG or PNG"


def report(source: Source, parts: Split) -> dict[str, object]:
    """The conversion in figures: what was read, left out and held out, and which answers of the task occur in training."""
    kinds = {
        "bad_rows": source.bad_rows,
        "captions_without_picture": source.no_picture,
        "pictures_without_caption": source.no_caption,
        "pictures_unreadable": source.unreadable,
    }
    return {
        "format": source.form,
        "unit": source.unit,
        "train": _named_by_unit(parts.train.counts(), source),
        "task": _named_by_unit(parts.held.counts(), source),
        "groups": parts.groups,
        "task_answers": parts.answers,
        "task_answers_in_training": parts.answers_in_training,
        "left_out": {kind: {"count": len(names), "listed": names[:SHOWN]} for kind, names in kinds.items()},
        "captions_or_pairs_lost_with_their_picture": source.lost_with_picture,
        "wrong_answers_lost_with_their_picture": source.negatives_lost,
        "notes": source.notes,
    }


def _named_by_unit(counts: dict[str, int], source: Source) -> dict[str, int]:
    return {source.unit if name == "captions" else name: count for name, count in counts.items()}


def made(source: Source, parts: Split, root: Path, given: argparse.Namespace) -> str:
    """The lines that the command prints."""
    rooms = {"train": (parts.train, "data.train_sets"), "eval": (parts.held, "evaluate.tasks")}
    places = []
    keys = []
    for room, (part, key) in rooms.items():
        if part.entries:
            places.append(f"{root / room / given.name} ({part.counts()['rows']:,} rows)")
            keys.append(key)
    lines = [f"made {', '.join(places)}; name {given.name} in {' and '.join(keys)}"]
    lines.append(f"read: {source.form}, {len(source.captions) + len(source.pairs):,} {source.unit}, {len(source.pictures):,} pictures")
    lines += [f"{what}: {count:,}" for what, count in source.notes.items()]
    if source.unreadable:
        lines.append(_unreadable(source))
    skipped = {
        "rows that cannot be used": source.bad_rows,
        f"{source.unit} without their picture": source.no_picture,
        "pictures without a caption": source.no_caption,
    }
    lines += [f"left out, {what}: {len(names):,} ({listed(names)})" for what, names in skipped.items() if names]
    if source.negatives_lost:
        lines.append(f"left out, wrong answers whose picture cannot be read: {source.negatives_lost:,}")
    for name, part in (("training", parts.train), ("task", parts.held)):
        counts = part.counts()
        shown = f"pictures: {counts['pictures']:,}, distinct: {counts['distinct_pictures']:,}"
        lines.append(f"{name}: {counts['rows']:,} rows ({source.unit}: {counts['captions']:,}, {shown})")
    if parts.held.entries:
        lines.append(f"answers of the task that occur in training: {parts.answers_in_training:,} of {parts.answers:,}")
    elif given.held:
        lines.append(f"nothing is held out: of {parts.groups:,} groups none fell into the share {given.held}; raise --held for a task")
    return "\n".join(lines)
