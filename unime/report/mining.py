"""What mining did to each data set, and on data with a ground truth: how many false negatives are left.

Every figure is per data set and for all.  "In-batch negatives" are the positives of the other pairs of a batch, drawn from all pairs
(`in_batch`) or from the query's own set (`in_batch_own_set`); theirs is an expected share, computed over all pairs where that is
little work and over a seeded sample where it is not.

Rules that need no judge cost nothing: their negatives are mined here from the tables that the report reads anyway, and are counted beside
the judge's.  No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import polars as pl

from unime import artifacts, caution, mine
from unime.markdown import Code, grid

BINS = 20
LOOKS = 100_000
"""Questions to the ground truth per data set and figure; beyond it a sample is drawn."""

SHARES = ("retrieved", "dropped", "mined", "in_batch_own_set", "in_batch")
"""Groups of candidates; of each, the share that really answers the query."""

Miner = Callable[[pl.DataFrame, pl.DataFrame, pl.DataFrame], tuple[pl.DataFrame, dict[str, Any]]]
"""(PAIRS, HITS, POOLS) of one set -> (MINED, report), as `unime.mine.rules.mine_by_rule` gives them by one rule."""


class Truth(Protocol):
    def matches_many(self, dataset: str, query: str, candidates: Sequence[str]) -> np.ndarray:
        """Whether each candidate really answers the query, (n,) bool."""


def report(
    pairs: pl.DataFrame,
    hits: pl.DataFrame,
    pools: pl.DataFrame,
    judgements: pl.DataFrame,
    mined: pl.DataFrame,
    *,
    beta: float,
    truth: Truth | None = None,
    seed: int = 0,
    rules: Mapping[str, Miner] = MappingProxyType({}),
) -> dict[str, Any]:
    """{"sets": [figures of a set], "all": figures}, from the tables PAIRS, HITS, POOLS, JUDGEMENTS and MINED.

    Counts: pairs, mined, pool (distinct candidates of the set), labelled and itself (candidates that are no negatives, summed over pairs),
    candidates (retrieved), delta and alpha (candidates removed), repeated and fallback (rows of the mined table), sigma (mean score of the
    positives), scores and sigmas (histograms of BINS equal bins over [0, 1]).  With a truth, `false`: shares of candidates that really
    answer the query, of those retrieved, of those dropped by alpha, of the mined rows and of in-batch negatives; and `wrong_labels`: the
    share of pairs whose positive does not answer the query.

    `rules` holds for each of the given `rules` how many candidates it drops, how many rows it has, repeats and draws, and with a truth the
    share of its rows that really answer the query.  Raises as `unime.mine.mine` for tables that do not fit together.
    """
    hits, _ = mine.without_labelled(pairs, mine.in_runs(hits))
    judged = pl.concat([hits, mine.judge_hits(hits, judgements, beta)], how="horizontal")
    judged = judged.join(pairs.select("pair", "dataset", "query"), on="pair", how="left", maintain_order="left")
    positives = judgements.filter(pl.col("positive")).join(pairs.select("pair", "dataset"), on="pair")
    sets = []
    for name in pairs["dataset"].unique(maintain_order=True):
        only = pl.col("dataset") == name
        own, own_judged, own_mined = pairs.filter(only), judged.filter(only), mined.filter(only)
        own_pools = pools.join(own.select("pair"), on="pair", how="semi")
        figures = _counts(name, own, own_judged, positives.filter(only), own_mined, own_pools)
        own_hits = own_judged.select(list(artifacts.HITS))
        by_rule = {rule: miner(own, own_hits, own_pools) for rule, miner in rules.items()}
        figures["rules"] = {rule: _rule_counts(counts) for rule, (_, counts) in by_rule.items()}
        if truth is not None:
            tables = {"mined": own_mined} | {f"rule {rule}": table for rule, (table, _) in by_rule.items()}
            shares = _false(pairs, own, own_judged, tables, truth, np.random.default_rng(_entropy(seed, name)))
            for rule in rules:
                figures["rules"][rule]["false"] = shares.pop(f"rule {rule}")
            figures["wrong_labels"] = shares.pop("wrong_labels")
            figures["false"] = shares
        sets.append(figures)
    return {"sets": sets, "all": _sum(sets)}


def _counts(
    name: str, own: pl.DataFrame, judged: pl.DataFrame, positives: pl.DataFrame, mined: pl.DataFrame, pools: pl.DataFrame
) -> dict[str, Any]:
    reasons = mined["reasons"].explode(empty_as_null=False) if len(mined) else pl.Series(dtype=pl.String)
    return {
        "name": name,
        "pairs": len(own),
        "mined": len(mined),
        "pool": own["positive"].n_unique(),
        "labelled": int(pools["labelled"].sum()),
        "itself": int(pools["itself"].sum()),
        "delta": int(pools["delta"].sum()),
        "candidates": len(judged),
        "alpha": int(judged["false"].sum()),
        "rows": len(reasons),
        "repeated": int((reasons == mine.REPEATED).sum()),
        "fallback": int((reasons == mine.FALLBACK).sum()),
        "fallback_pairs": int(mined["reasons"].list.contains(mine.FALLBACK).sum()),
        "sigma": float(positives["score"].mean() or 0.0),
        "scores": _histogram(judged["score"]),
        "sigmas": _histogram(positives["score"]),
    }


def _rule_counts(counts: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule did to a set: candidates dropped, rows of its mined table, those repeated, those drawn as nothing was left."""
    rows = {"kept": counts["kept_rows"], "repeated": counts["repeated_rows"], "fallback": counts["fallback_rows"]}
    return {"dropped": counts["false"], "rows": sum(rows.values()), "repeated": rows["repeated"], "fallback": rows["fallback"]}


def _histogram(scores: pl.Series) -> list[int]:
    return np.bincount(np.minimum((scores.to_numpy() * BINS).astype(np.int64), BINS - 1), minlength=BINS).tolist()


def _false(
    pairs: pl.DataFrame,
    own: pl.DataFrame,
    judged: pl.DataFrame,
    tables: Mapping[str, pl.DataFrame],
    truth: Truth,
    rng: np.random.Generator,
) -> dict[str, float | None]:
    """SHARES of one set and its `wrong_labels`; in place of `mined` there is one for each of `tables` (name -> MINED)."""
    name = own["dataset"][0]
    frame = judged.select("pair", "query", "candidate", "false")
    per_pair = max(1, len(frame) // max(1, len(own)))
    asked = own["pair"]
    if len(frame) > LOOKS:
        asked = own["pair"].gather(np.sort(rng.choice(len(own), max(1, LOOKS // per_pair), replace=False)))
        frame = frame.filter(pl.col("pair").is_in(asked.implode()))
    frame = frame.with_columns(match=_matches(truth, name, frame["query"], frame["candidate"]))
    dropped = frame.filter(pl.col("false"))["match"]
    shares = {"retrieved": _mean(frame["match"]), "dropped": _mean(dropped)}
    for what, table in tables.items():
        rows = table.filter(pl.col("pair").is_in(asked.implode())).select("query", "negatives").explode("negatives")
        shares[what] = _mean(_matches(truth, name, rows["query"], rows["negatives"]))
    wrong = _wrong_labels(own, truth, rng)
    shares["in_batch_own_set"], shares["in_batch"] = _in_batch(pairs, own, truth, rng, 1 - wrong)
    return shares | {"wrong_labels": wrong}


def _wrong_labels(own: pl.DataFrame, truth: Truth, rng: np.random.Generator) -> float:
    """Share of one set's pairs whose positive does not answer the query."""
    some = own if len(own) <= LOOKS else own[np.sort(rng.choice(len(own), LOOKS, replace=False))]
    return 1 - float(_matches(truth, own["dataset"][0], some["query"], some["positive"]).mean())


def _in_batch(
    pairs: pl.DataFrame, own: pl.DataFrame, truth: Truth, rng: np.random.Generator, right_labels: float
) -> tuple[float | None, float | None]:
    """Expected share of right answers among the positives of the other pairs, of the own set and of all sets, over the queries of `own`.

    A candidate is weighted by the pairs that have it as positive; one that is no candidate of the own set never answers.  `right_labels`:
    share of the pairs whose own positive, which is no negative, answers.
    """
    name, ids = own["dataset"][0], own["positive"].unique().sort()
    weights = [
        ids.to_frame().join(table.group_by("positive").agg(n=pl.len()), on="positive", maintain_order="left")["n"].to_numpy()
        for table in (own, pairs)
    ]
    asked = own.group_by("query").agg(n=pl.len()).sort("query")
    if len(asked) * len(ids) <= LOOKS:
        table = np.stack([truth.matches_many(name, query, ids.to_list()) for query in asked["query"]])  # (queries, candidates)
        right = [np.average(table @ counts, weights=asked["n"].to_numpy()) for counts in weights]
    else:
        queries = own["query"].gather(rng.integers(0, len(own), LOOKS))
        drawn = [rng.choice(len(ids), LOOKS, p=counts / counts.sum()) for counts in weights]
        right = [
            float(_mean(_matches(truth, name, queries, ids.gather(some))) or 0.0) * counts.sum()
            for some, counts in zip(drawn, weights, strict=True)
        ]
    others = [max(0.0, float(number) - right_labels) for number in right]
    own_share, share = (number / (len(table) - 1) if len(table) > 1 else None for number, table in zip(others, (own, pairs), strict=True))
    return own_share, share


def _matches(truth: Truth, name: str, queries: pl.Series, candidates: pl.Series) -> pl.Series:
    """The truth of (query, candidate), row by row, asked once for each query."""
    table = pl.DataFrame({"query": queries, "candidate": candidates}).with_row_index("row")
    found = np.zeros(len(table), dtype=bool)
    for query, rows, some in table.group_by("query", maintain_order=True).agg("row", "candidate").iter_rows():
        found[rows] = truth.matches_many(name, query, some)
    return pl.Series(found)


def _mean(values: pl.Series) -> float | None:
    return float(values.cast(pl.Float64).mean()) if len(values) else None


def _sum(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All sets together: counts added, means weighted by what they are means of."""
    apart = ("name", "sigma", "scores", "sigmas", "rules", "false", "wrong_labels")
    added = {key: sum(one[key] for one in sets) for key in sets[0] if key not in apart}
    whole: dict[str, Any] = {"name": "all", **added}
    whole["sigma"] = _weighted((one["sigma"], one["pairs"]) for one in sets)
    for key in ("scores", "sigmas"):
        whole[key] = np.sum([one[key] for one in sets], axis=0).tolist()
    whole["rules"] = {rule: _sum_of_rule([one["rules"][rule] for one in sets]) for rule in sets[0]["rules"]}
    if all("false" in one for one in sets):
        of = {"retrieved": "candidates", "dropped": "alpha", "mined": "rows", "in_batch_own_set": "pairs", "in_batch": "pairs"}
        whole["false"] = {key: _weighted((one["false"][key], one[of[key]]) for one in sets) for key in SHARES}
        whole["wrong_labels"] = _weighted((one["wrong_labels"], one["pairs"]) for one in sets)
    return whole


def _sum_of_rule(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    added: dict[str, Any] = {key: sum(one[key] for one in sets) for key in ("dropped", "rows", "repeated", "fallback")}
    if all("false" in one for one in sets):
        added["false"] = _weighted((one["false"], one["rows"]) for one in sets)
    return added


def _weighted(parts: Iterable[tuple[float | None, float]]) -> float | None:
    known = [(value, weight) for value, weight in parts if value is not None and weight]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def _entropy(seed: int, name: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(f"{seed}\0{name}".encode()).digest(), dtype=np.uint32)


def warnings(figures: Mapping[str, Any]) -> list[str]:
    """Signs that what was mined means nothing: of all sets together, or, where these look well, of single ones."""
    for rows in ([figures["all"]], figures["sets"]):
        found = []
        for one in rows:
            what = "" if one["name"] == "all" else f"{one['name']}: "
            found += caution.of_figures(one, what)
        if found:
            return found
    return []


def markdown(figures: Mapping[str, Any]) -> str:
    """The report as text: counts per set, score histograms, and the false-negative shares where the truth is known."""
    rows = [*figures["sets"], figures["all"]]
    lines = ["# Mining report", "", "## What became of the candidates", ""]
    columns = ("pairs", "pool", "labelled", "itself", "candidates", "delta", "alpha", "repeated", "fallback", "unmined")
    lines += _table(("set", *columns), ([one["name"], *(_count(one, column) for column in columns)] for one in rows))
    lines += [
        "",
        "Pool: distinct candidates of the set. Labelled: positives of a query's other pairs; itself: the query, or another item with its "
        "picture; both are never its negatives, and are summed over the pairs. Candidates: those retrieved, at most k per pair. Delta, "
        "alpha: candidates removed because they are too similar to the query, or judged to fit it as well as the positive does. Repeated, "
        "fallback: rows of the mined table that fill up a short list, or stand for one of which nothing was left. Unmined: pairs without "
        "any candidate.",
        "",
        "## Scores",
        "",
        f"Histograms of {BINS} equal bins from 0 to 1, each drawn to its own height.",
        "",
    ]
    lines += _table(
        ("set", "mean sigma", "positives", "candidates"),
        ([one["name"], f"{one['sigma']:.3f}", Code(_spark(one["sigmas"])), Code(_spark(one["scores"]))] for one in rows),
    )
    if "false" in figures["all"]:
        lines += ["", "## False negatives and wrong labels, by the ground truth", ""]
        names = ("retrieved", "dropped by alpha", "mined", "in-batch, own set", "in-batch, all sets", "wrong labels")
        shares = [[one["name"], *(_percent(one["false"][key]) for key in SHARES), _percent(one["wrong_labels"])] for one in rows]
        lines += _table(("set", *names), shares)
        lines += [
            "",
            "Percent of candidates that really answer the query: the fewer the better among mined and in-batch negatives, the more the "
            "better among those dropped. A fallback row counts as what it is, though its score of 1.0 tells the embedder so. Wrong labels: "
            "percent of the pairs whose positive does not answer its query (nano.suite.wrong_labels).",
        ]
    lines += _rules_text(figures)
    return "\n".join(lines) + "\n"


def _rules_text(figures: Mapping[str, Any]) -> list[str]:
    """The rules without a judge beside the judge's: what each did to all sets, and where the truth is known its false negatives by set."""
    whole, rules = figures["all"], list(figures["all"]["rules"])
    if not rules:
        return []
    known = "false" in whole
    judge = {"dropped": whole["alpha"], "rows": whole["rows"], "repeated": whole["repeated"], "fallback": whole["fallback"]}
    rows = {"judge": judge | ({"false": whole["false"]["mined"]} if known else {})} | whole["rules"]
    columns = ("dropped", "rows", "repeated", "fallback")
    lines = ["", "## Mining rules", ""]
    head = ("rule", "candidates dropped", "rows", "repeated", "fallback", *(["false negatives"] if known else []))
    shown = [[name, *(f"{one[key]:,}" for key in columns), *([_percent(one["false"])] if known else [])] for name, one in rows.items()]
    lines += _table(head, shown)
    lines += [
        "",
        "The rules of mine.rules use the same candidates as the judge's rule; only what is dropped differs (docs/mining.md). "
        "False negatives: percent of the mined rows that really answer the query.",
    ]
    if known:
        lines += ["", "False negatives by set (percent of the mined rows):", ""]
        by_set = []
        for one in (*figures["sets"], whole):
            shares = [one["false"]["mined"], *(one["rules"][rule]["false"] for rule in rules)]
            by_set.append([one["name"], *map(_percent, shares)])
        lines += _table(("set", "judge", *rules), by_set)
    return lines


def _count(one: Mapping[str, Any], column: str) -> str:
    return f"{one['pairs'] - one['mined'] if column == 'unmined' else one[column]:,}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str | Code]]) -> list[str]:
    return grid(head, rows, [False, *[True] * (len(head) - 1)])


def _spark(bins: Sequence[int]) -> str:
    top = max(bins) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // top)] for count in bins)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
