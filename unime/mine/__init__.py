"""Hard negatives out of judged candidates: false ones out, the rest taken at intervals (paper, section 3.3).

1. A candidate is dropped if s > alpha, alpha = sigma - beta: it fits the query about as well as the positive.
2. The rest, in retrieval order (or by score, highest first), is taken at positions 0, i, 2i, ... then 1, i+1, ... until n are chosen.
3. Fewer than n left: the list again and again, in order.
4. None left: n drawn from all candidates of the pair, each with score 1.0, which makes its row's target flat.  The draw is an order
   by hash of (seed, pair, candidate), so it depends on nothing else in the table.
A pair without a single candidate (a data set with one distinct positive, or delta took all) cannot be mined and is left out.

`unime.mine.rules` has rules that need no judge: they drop other candidates, and take the rest by the same steps 2 to 4.

Whole columns, no loop over pairs: a hit is its number in `hits`, ids are looked up for the chosen ones only.  No torch.
"""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from unime import artifacts

KEPT, REPEATED, FALLBACK = "kept", "repeated", "fallback"
_REASONS = pl.Enum([KEPT, REPEATED, FALLBACK])
_CHOSEN = {"run": pl.UInt32, "hit": pl.UInt32, "place": pl.Int32, "score": pl.Float64, "reason": _REASONS}


def mine(
    pairs: pl.DataFrame, hits: pl.DataFrame, judgements: pl.DataFrame, *, beta: float, negatives: int, interval: int, order: str, seed: int
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(MINED in the order of `pairs`, report with counts per data set and in all).

    Hits that are labelled positives of their query are left out, see `without_labelled`.

    Raises ArtifactError for a score that is NaN or outside [0, 1], a hit or a positive without judgement, a row that is there twice,
    or tables of different runs; each names pair and candidate.
    """
    hits, labelled = without_labelled(pairs, in_runs(hits))
    judged = judge_hits(hits, judgements, beta)
    left = judged.filter(~pl.col("false"))
    if order == "score":
        left = left.sort(["run", "score", "hit"], descending=[False, True, False])
    mined, report = take(pairs, hits, judged, left, negatives=negatives, interval=interval, seed=seed)
    return mined, report | {"labelled": labelled}


def take(
    pairs: pl.DataFrame, hits: pl.DataFrame, judged: pl.DataFrame, left: pl.DataFrame, *, negatives: int, interval: int, seed: int
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(MINED, report): steps 2 to 4 on what is `left` of each pair, in its order.

    `judged` has a row per hit as `judge_hits` gives them, `left` some of its rows, those of a pair together.  Where `score` and `sigma` are
    null, as nobody judged, those of the mined rows are null too.
    """
    place, size = pl.int_range(pl.len(), dtype=pl.Int32), pl.len().cast(pl.Int32)
    left = left.select("run", "hit", "score", position=place.over("run"), size=size.over("run"))
    chosen = pl.concat([_strided(left, negatives, interval), _repeated(left, negatives), _fallback(hits, judged, left, negatives, seed)])
    chosen = chosen.sort("run", "place")
    mined = _assemble(pairs, hits, judged, chosen, negatives)
    return mined, _report(pairs, hits, judged, mined)


def without_labelled(pairs: pl.DataFrame, hits: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """(the hits that may be negatives, how many may not): out go labelled positives of a hit's query in its data set, and the query itself.

    The retrieve stage leaves both out.  Judgements made on the hits of an older one may have cost weeks of a GPU, and a candidate less in a
    pair's list harms nothing, so these hits are dropped here and counted, where an error would ask for all judgements again.
    `hits` as `in_runs` gives them.
    """
    first = hits["pair"].filter(begins(hits))
    asked = first.to_frame().join(pairs.select("pair", "dataset", "query"), on="pair", how="left", maintain_order="left")
    # Numbers first: a join of all hits on three strings takes ten times as long, and hits of today's retrieve stage end here.
    query = (asked["dataset"].hash(1) + asked["query"].hash(2)).gather(hits["pair"].rle_id())
    own = pairs["dataset"].hash(1) + pairs["query"].hash(2)
    barred = pl.concat([own + pairs["positive"].hash(3), own + pairs["query"].hash(3)]).unique()
    suspect = (query + hits["candidate"].hash(3)).is_in(barred.implode())
    if not suspect.any():
        return hits, 0
    positives = pairs.select("dataset", "query", candidate="positive")
    itself = pairs.select("dataset", "query", candidate="query")
    found = hits.with_row_index("hit").filter(suspect).join(asked, on="pair")
    found = found.join(pl.concat([positives, itself]).unique(), on=["dataset", "query", "candidate"], how="semi")
    kept = hits.with_row_index("hit").join(found, on="hit", how="anti", maintain_order="left").drop("hit")
    return kept, len(found)


def begins(hits: pl.DataFrame) -> pl.Series:
    """Whether each row of HITS is of another pair than the row before it, (n,) bool: where a run of one pair's hits begins."""
    return (hits["pair"] != hits["pair"].shift(1)).fill_null(True)


def in_runs(hits: pl.DataFrame) -> pl.DataFrame:
    """HITS with the rows of a pair together and in the order of rank (the retrieve stage writes them so; others are sorted)."""
    new = begins(hits)
    rises = (hits["rank"] > hits["rank"].shift(1)).fill_null(True)
    if bool((new | rises).all()) and hits["pair"].filter(new).n_unique() == int(new.sum()):
        return hits
    return hits.sort("pair", "rank", maintain_order=True)


def judge_hits(hits: pl.DataFrame, judgements: pl.DataFrame, beta: float) -> pl.DataFrame:
    """One row per hit, in its order: `run` (number of its pair), `hit` (its own number), `score`, `sigma`, `false` (s > sigma - beta).

    `hits` as `in_runs` gives them.  Raises as `mine`.
    """
    check_scores(judgements)
    positives = judgements.filter(pl.col("positive")).select("pair", "candidate", sigma="score")
    others = judgements.filter(~pl.col("positive")).select("pair", "candidate", "score")
    if positives["pair"].n_unique() != len(positives):
        twice = positives.filter(pl.col("pair").is_duplicated())["pair"][0]
        raise artifacts.ArtifactError(f"judgements: pair {twice} has two positives; run the judge stage again")
    if len(hits) == len(others) and (hits["candidate"] == others["candidate"]).all() and (hits["pair"] == others["pair"]).all():
        scores = others["score"]  # the judge writes in the order of the hits
    else:
        _once(others, "judgements")
        scores = hits.join(others, on=["pair", "candidate"], how="left", maintain_order="left")["score"]
    if scores.null_count():
        lost = hits.filter(scores.is_null()).row(0, named=True)
        raise artifacts.ArtifactError(
            f"pair {lost['pair']}, candidate {lost['candidate']}: a hit without judgement; run the judge stage again"
        )
    run = hits["pair"].rle_id()
    first = hits["pair"].to_frame().filter(begins(hits))
    sigma = first.join(positives, on="pair", how="left", maintain_order="left")["sigma"]
    if sigma.null_count():
        lost = first["pair"].filter(sigma.is_null())[0]
        raise artifacts.ArtifactError(f"pair {lost}: its positive has no judgement; run the judge stage again")
    _once(hits, "hits")
    table = pl.DataFrame({"run": run, "score": scores, "sigma": sigma.gather(run)}).with_row_index("hit")
    return table.with_columns(false=pl.col("score") > pl.col("sigma") - beta)


def check_scores(judgements: pl.DataFrame) -> None:
    """Raise ArtifactError naming the first pair and candidate whose score is null, NaN or outside [0, 1]."""
    bad = judgements.filter(~pl.col("score").is_between(0, 1) | pl.col("score").is_nan() | pl.col("score").is_null())
    if len(bad):
        row = bad.row(0, named=True)
        raise artifacts.ArtifactError(
            f"judgements: pair {row['pair']}, candidate {row['candidate']}: score {row['score']} is not in [0, 1] "
            f"({len(bad)} such); check the judge's weights and models.dtype, and run the judge stage again"
        )


def _strided(left: pl.DataFrame, negatives: int, interval: int) -> pl.DataFrame:
    """Lists of at least n.  Positions in the residue class r mod i come after those in all smaller classes, which are
    r * (m // i) + min(r, m % i) of m."""
    position, size = pl.col("position"), pl.col("size")
    residue = position % interval
    place = residue * (size // interval) + pl.min_horizontal(residue, size % interval) + position // interval
    rows = left.filter(size >= negatives).with_columns(place=place, reason=pl.lit(KEPT))
    return rows.filter(pl.col("place") < negatives).select(pl.col(name).cast(kind) for name, kind in _CHOSEN.items())


def _repeated(left: pl.DataFrame, negatives: int) -> pl.DataFrame:
    """Lists shorter than n: position p stands at p, p + m, p + 2m, ..."""
    rows = left.filter(pl.col("size") < negatives).with_columns(place=pl.int_ranges("position", negatives, "size")).explode("place")
    rows = rows.with_columns(reason=pl.when(pl.col("place") < pl.col("size")).then(pl.lit(KEPT)).otherwise(pl.lit(REPEATED)))
    return rows.select(pl.col(name).cast(kind) for name, kind in _CHOSEN.items())


def _fallback(hits: pl.DataFrame, judged: pl.DataFrame, left: pl.DataFrame, negatives: int, seed: int) -> pl.DataFrame:
    """Pairs that lost every candidate: all of them in the order of their hash, the first n; again from the start where too few."""
    lost = judged.select("run", "hit", "score").join(left.select("run").unique(), on="run", how="anti", maintain_order="left")
    rows = hits.select("pair", "candidate")[lost["hit"]]
    keys = [hashlib.sha256(f"{seed}\0{pair}\0{candidate}".encode()).hexdigest() for pair, candidate in rows.iter_rows()]
    lost = lost.with_columns(pl.Series("key", keys, dtype=pl.String)).sort("run", "key")
    lost = lost.with_columns(position=pl.int_range(pl.len(), dtype=pl.Int32).over("run"), size=pl.len().cast(pl.Int32).over("run"))
    lost = lost.filter(pl.col("position") < negatives).with_columns(place=pl.int_ranges("position", negatives, "size")).explode("place")
    flat = pl.when(pl.col("score").is_not_null()).then(pl.lit(1.0))  # where nobody judged there is no score at all
    lost = lost.with_columns(score=flat, reason=pl.lit(FALLBACK))
    return lost.select(pl.col(name).cast(kind) for name, kind in _CHOSEN.items())


def _assemble(pairs: pl.DataFrame, hits: pl.DataFrame, judged: pl.DataFrame, chosen: pl.DataFrame, negatives: int) -> pl.DataFrame:
    """Table MINED; `chosen` has exactly n rows a run, sorted."""

    def lists(values: pl.Series) -> pl.Series:
        return values.reshape((-1, negatives)).arr.to_list() if len(values) else pl.Series(dtype=pl.List(values.dtype))

    firsts = judged.unique("run", keep="first", maintain_order=True)
    found = hits[chosen["hit"]]
    table = pl.DataFrame(
        {
            "pair": hits["pair"][firsts["hit"]],
            "sigma": firsts["sigma"],
            "negatives": lists(found["candidate"]),
            "scores": lists(chosen["score"]),
            "ranks": lists(found["rank"]),
            "reasons": lists(chosen["reason"].cast(pl.String)),
        }
    )
    mined = pairs.join(table, on="pair", how="inner", maintain_order="left").select(list(artifacts.MINED))
    if len(mined) != len(table):
        raise artifacts.ArtifactError(
            f"hits: {len(table) - len(mined)} of {len(table)} pairs are not in pairs, or there twice; run retrieve again"
        )
    artifacts.check(mined, artifacts.MINED, "mined")
    return mined


def _report(pairs: pl.DataFrame, hits: pl.DataFrame, judged: pl.DataFrame, mined: pl.DataFrame) -> dict[str, Any]:
    """Counts per data set, and their sums."""
    names = hits["pair"][judged.unique("run", keep="first", maintain_order=True)["hit"]].to_frame()
    names = names.join(pairs.select("pair", "dataset"), on="pair", how="left", maintain_order="left")["dataset"]
    lost = judged.group_by("run").agg(candidates=pl.len(), false=pl.col("false").sum()).sort("run").with_columns(dataset=names)
    lost = lost.group_by("dataset").agg(pl.col("candidates", "false").sum())
    reasons = pl.col("reasons").list
    rows = mined.select(
        "dataset",
        repeated=reasons.contains(REPEATED),
        fallback=reasons.contains(FALLBACK),
        kept_rows=reasons.count_matches(KEPT),
        repeated_rows=reasons.count_matches(REPEATED),
        fallback_rows=reasons.count_matches(FALLBACK),
    )
    rows = rows.group_by("dataset").agg(pl.len().alias("mined"), pl.exclude("dataset").sum())
    table = pairs.group_by("dataset", maintain_order=True).agg(pairs=pl.len())
    table = table.join(rows, on="dataset", how="left", maintain_order="left").join(lost, on="dataset", how="left", maintain_order="left")
    table = table.fill_null(0).with_columns(without_candidates=pl.col("pairs") - pl.col("mined"))
    return {**table.drop("dataset").sum().row(0, named=True), "sets": table.to_dicts()}


def _once(table: pl.DataFrame, what: str) -> None:
    """Raise ArtifactError naming the first (pair, candidate) that is there twice."""
    key = (table["pair"].hash(1) + table["candidate"].hash(2)).sort()  # one number a row: comparing rows of strings takes 20 times as long
    if (key == key.shift(1)).any() and len(twice := table.filter(table.select("pair", "candidate").is_duplicated())):
        row = twice.row(0, named=True)
        raise artifacts.ArtifactError(f"{what}: pair {row['pair']}, candidate {row['candidate']} is there twice; run its stage again")
