"""UniME-V2's published scores as mined negatives, so that a user trains without judging.

`train_data_<judge>_scores.json` is one JSON list; a row has `query_text, query_image, pos_text, pos_image` ('' = no image),
`query_pos_scores` (sigma), `hard_negatives` ([text, image path] each) and `hard_negatives_scores`.

1. Match: the file is streamed once; every row finds its training set and the numbers of its items there (`unime.mine.lookup`), and
   is kept as numbers.  No image is opened.
2. Identify: what is not in ITEMS (negatives of rows that the cap did not draw, say) is read and hashed.
3. Assemble: one table MINED a training set.

A row's set is the one that its image path names, if the row's pair is in that set's PAIRS; else the only set in whose PAIRS it is;
else the one that the path names, as a new pair.  The published rows keep the order of retrieval but not its ranks: `ranks` are
positions in the published list.  A negative whose image is missing is left out and the row filled up with its others, in order, as
mining does; scores above sigma - 0.01 (about 2 % of the published ones) are accepted and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from unime.data import rows, stream
from unime.data.images import Decoding
from unime.data.rows import DataError, Rules, Shelf
from unime.mine.assemble import Listed, Matched, assemble
from unime.mine.lookup import ABSENT, Lookup, config_of

NEGATIVES = 10
"""Hard negatives of a published row."""

_NUMBER, _TEXT, _PATH = (float, int), (str,), (str, type(None))
_KEYS = {"query_text": _TEXT, "query_image": _PATH, "pos_text": _TEXT, "pos_image": _PATH, "query_pos_scores": _NUMBER}
_LISTS = ("hard_negatives", "hard_negatives_scores")


def import_scores(
    file: str | Path,
    sets: Mapping[str, tuple[pl.DataFrame, pl.DataFrame]],
    shelves: Mapping[str, Shelf],
    *,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    new_pairs: bool = True,
    negatives: int = NEGATIVES,
    image_marks: str = "public",
) -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame], dict[str, Any]]:
    """({set: MINED}, {set: ITEMS that the set's own table lacks}, report) of the training sets `sets`: {name: (ITEMS, PAIRS)}.

    MINED is in the order of PAIRS, with new pairs after it in the file's order; every row has `negatives` negatives.  Without
    `new_pairs`, rows whose pair is not in PAIRS are left out (`data.cap` drew others than the published sample).  `image_marks` says what
    a text has whose mark has no image, as it did when ITEMS were made (`rows.Rules.published`).  Malformed rows and
    missing images are left out and listed, or fatal where `bad_rows` is `fail`.  Raises DataError for a file that is no list, is
    truncated or gives no row at all, and for an archive that is missing as a whole.
    """
    lookups = [Lookup(name, items, pairs) for name, (items, pairs) in sets.items()]
    rules = Rules.published(image_marks)
    matched, left_out, unmatched, others = match(file, lookups, width=negatives, new_pairs=new_pairs, track=job.track, rules=rules)
    left_out.refuse_if_asked(bad_rows)
    lost, mined, items, figures = Listed(str(file)), {}, {}, []
    for one in matched:
        name, extras = one.lookup.name, one.lookup.extras()
        found = rows.identify(extras, shelves[name], decoding, job.threads, job.track, f"{name}: further images", rules)
        mined[name], items[name], counts = assemble(one, found, sets[name][1], left_out, lost)
        figures.append(counts)
    lost.refuse_if_asked(bad_rows)
    left_out.refuse_if_asked(bad_rows)
    if not any(len(table) for table in mined.values()):
        first = (left_out.listed + unmatched.listed or [{"row": 0, "reason": f"of another set: {', '.join(others) or 'none'}"}])[0]
        raise DataError(f"{file}: no row for {', '.join(sets)} (row {first['row']}: {first['reason']}); check data.train_sets and the file")
    total = sum(len(one.row) for one in matched) + sum(others.values()) + left_out.kinds["malformed"] + unmatched.kinds.total()
    report = {
        "file": str(file),
        "rows": total,
        "ranks": "positions in the published list; retrieval ranks are not published",
        **_sums(figures),
        "sets": figures,
        "rows_of_other_sets": dict(sorted(others.items())),
        "unmatched": unmatched.report(),
        "left_out": left_out.report(),
        "negatives_left_out": lost.report(),
    }
    return mined, items, report


def match(
    file: str | Path, lookups: list[Lookup], *, width: int, new_pairs: bool, track: Callable[..., Iterable[Any]], rules: Rules
) -> tuple[list[Matched], Listed, Listed, Counter[str]]:
    """(rows of each lookup's set, malformed rows, rows without a set, rows of sets that were not asked for by set), in one pass."""
    matched = {lookup.name: Matched(lookup, width) for lookup in lookups}
    left_out, unmatched, others = Listed(str(file)), Listed(str(file)), Counter[str]()
    for row, value in track(stream.rows(file), None, Path(file).name):
        if (reason := malformed(value, width)) is not None:
            left_out.add(row, reason, "malformed")
            continue
        value = _shown(value, rules)
        named = config_of(value["query_image"] or "") or config_of(value["pos_image"] or "")
        own = matched.get(named or "")
        if own is not None and _has(own.lookup, value):
            own.add(row, value)
            continue
        found = [one for one in matched.values() if one is not own and _has(one.lookup, value)]
        if len(found) == 1:
            found[0].by_pair += 1
            found[0].add(row, value)
        elif own is not None and new_pairs:
            own.add(row, value)
        elif own is not None:
            unmatched.add(row, f"its pair is not among those of {named} (data.cap drew others)", "the pair is not in its set's")
        elif named is not None:
            others[named] += 1
        elif found:
            which = ", ".join(one.lookup.name for one in found)
            unmatched.add(row, f"no image path names its set, and its pair is in several: {which}", "the pair is in several sets")
        else:
            unmatched.add(row, "no image path names its set, and its pair is in no training set", "the pair is in no set")
    return list(matched.values()), left_out, unmatched, others


def malformed(value: Any, width: int) -> str | None:
    """Why a row is none of the published format with finite scores in [0, 1], or None."""
    if type(value) is not dict:
        return f"{type(value).__name__}, needed an object with {', '.join([*_KEYS, *_LISTS])}"
    for key, kinds in _KEYS.items():
        if key not in value:
            return f"{key} is missing"
        if type(value[key]) not in kinds:
            return f"{key} is {type(value[key]).__name__}, needed {kinds[0].__name__}"
    for key in _LISTS:
        if type(value.get(key)) is not list:
            return f"{key} is {type(value[key]).__name__}, needed list" if key in value else f"{key} is missing"
    negatives, scores = value["hard_negatives"], value["hard_negatives_scores"]
    if len(negatives) != len(scores):
        return f"{len(negatives)} hard_negatives for {len(scores)} hard_negatives_scores; one score each is needed"
    if not 0 < len(negatives) <= width:
        return f"{len(negatives)} hard negatives, needed 1 to {width}"
    for place, one in enumerate(negatives):
        if type(one) is not list or len(one) != 2 or type(one[0]) is not str or type(one[1]) not in _PATH:
            return f"hard negative {place} is not [text, image path]"
    if not 0 <= value["query_pos_scores"] <= 1:
        return f"query_pos_scores {value['query_pos_scores']} is not in [0, 1]"
    for place, score in enumerate(scores):
        if type(score) not in _NUMBER or not 0 <= score <= 1:
            return f"the score {score!r} of hard negative {place} is not in [0, 1]"
    return None


def _shown(value: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """A row with the texts that its items have."""

    def text(written: str, path: str | None) -> str:
        return rules.applied_to(written, path or "")

    query, positive = text(value["query_text"], value["query_image"]), text(value["pos_text"], value["pos_image"])
    negatives = [[text(written, path), path] for written, path in value["hard_negatives"]]
    return value | {"query_text": query, "pos_text": positive, "hard_negatives": negatives}


def _sums(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The sets' counts added up, and the share over all."""
    keys = [key for key in figures[0] if key not in ("dataset", "above_alpha_share")] if figures else []
    sums = {f"{key}_in_sets" if key == "rows" else key: sum(one[key] for one in figures) for key in keys}
    return sums | {"above_alpha_share": sums.get("above_alpha", 0) / max(1, sums.get("negatives", 0))}


def _has(lookup: Lookup, value: dict[str, Any]) -> bool:
    """Whether a row's pair is in the set's PAIRS."""
    query, _ = lookup.find(value["query_text"], value["query_image"] or "")
    return query != ABSENT and lookup.has_pair(query, lookup.find(value["pos_text"], value["pos_image"] or "")[0])
