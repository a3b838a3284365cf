"""Mining rules that need no judge, so that it can be seen what the judge is worth.

    random    any of the retrieved candidates
    top_k     all of them: nothing is dropped
    margin    those with similarity < the positive's - margin
    percent   those with similarity < share x the positive's (NV-Retriever's TopK-PercPos, where share is 0.95)

What is left is taken as the judge's rule takes it (`unime.mine`, steps 2 to 4: every interval-th, repeated where too few are left, drawn
from all where none is left).  With `mine.order: similarity` the tables of `top_k`, `margin` and `percent` therefore differ from the
judge's, and from each other, by what was dropped alone.  They do not with `mine.order: score`, as a rule has no scores to order by, nor
with an `interval` of the rule's own (NV-Retriever takes the first ones: interval 1); `random` takes the first ones of a seeded order.

Similarities are the base embedder's: those of the hits and of the pair's own positive (POOLS), computed alike by the retrieve stage.
Nobody judged, so `sigma` and `scores` of the mined table are null.  No torch.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import polars as pl

from unime import artifacts, mine
from unime.config.rules import Rule

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # of the generator SplitMix64, as are the numbers in `_mixed`


def mine_by_rule(
    pairs: pl.DataFrame, hits: pl.DataFrame, pools: pl.DataFrame, rule: Rule, *, negatives: int, interval: int, seed: int
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(MINED in the order of `pairs`, report as `unime.mine.mine` gives it), with null in `sigma` and `scores`.

    `interval` holds where the rule names none.  Raises ArtifactError for a pair without its positive's similarity, or tables of different
    runs.
    """
    hits, labelled = mine.without_labelled(pairs, mine.in_runs(hits))
    run = hits["pair"].rle_id()
    nobody = pl.lit(None, dtype=pl.Float64)
    table = pl.DataFrame({"run": run, "false": _dropped(hits, run, pools, rule)}).with_row_index("hit")
    table = table.with_columns(score=nobody, sigma=nobody)
    left = table.filter(~pl.col("false"))
    if rule.rule == "random":
        left = left.with_columns(key=_keys(hits, run, seed)).sort("run", "key", "hit")
        interval = 1
    elif rule.interval is not None:
        interval = rule.interval
    mined, report = mine.take(pairs, hits, table, left, negatives=negatives, interval=interval, seed=seed)
    return mined, report | {"labelled": labelled}


def _dropped(hits: pl.DataFrame, run: pl.Series, pools: pl.DataFrame, rule: Rule) -> pl.Series:
    """Whether each hit is too similar to its query to be taken for a negative."""
    if rule.rule in ("random", "top_k"):
        return pl.Series([False]).new_from_index(0, len(hits))
    first = hits["pair"].filter(mine.begins(hits))
    known = pools.select("pair", "positive_similarity").unique("pair")
    positive = first.to_frame().join(known, on="pair", how="left", maintain_order="left")["positive_similarity"]
    if positive.null_count():
        lost = first.filter(positive.is_null())[0]
        raise artifacts.ArtifactError(f"pools: pair {lost} has no similarity to its positive; run the retrieve stage again")
    positive = positive.cast(pl.Float64)
    limit = positive - rule.margin if rule.rule == "margin" else positive * rule.share
    return hits["similarity"].cast(pl.Float64) >= limit.gather(run)


def _keys(hits: pl.DataFrame, run: pl.Series, seed: int) -> pl.Series:
    """A random number per hit that depends on nothing but (seed, pair, place among the pair's hits)."""
    new = run.is_first_distinct()
    digests = [hashlib.sha256(f"{seed}\0{pair}".encode()).digest()[:8] for pair in hits["pair"].filter(new)]
    start = np.frombuffer(b"".join(digests), dtype="<u8")[run.to_numpy()]
    first = np.flatnonzero(new.to_numpy())[run.to_numpy()]
    place = np.arange(len(hits), dtype=np.uint64) - first.astype(np.uint64)
    return pl.Series(_mixed(start + (place + np.uint64(1)) * _GAMMA))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's output function of uint64 states; products wrap around."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
