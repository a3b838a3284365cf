"""How far two judges agree: on the order of the candidates, and on which of them are false negatives.

Positives are no candidates: each judge's score of the positive is its sigma, and its own alpha = sigma - beta parts the candidates that
mining drops (above) from those that it keeps.  Whole columns, no loop over pairs; memory is two numbers a candidate of all sets, and
their ranks.  No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from unime import artifacts
from unime.markdown import escaped, grid
from unime.mine import check_scores, judges


def report(sets: Iterable[tuple[str, pl.DataFrame, pl.DataFrame]], names: tuple[str, str], *, beta: float) -> dict[str, Any]:
    """{"judges": names, "beta", "sets": [figures of a set], "all": figures} of (set, JUDGEMENTS of the one, of the other).

    Figures: pairs (query and positive) and candidates compared; rho, Spearman's over all candidates, equal scores at their mean rank;
    rho_in_pair, the mean over pairs of the rho within a pair, and constant, the pairs left out of it because a judge gives all
    candidates one score; apart, the share of candidates that one judge drops and the other keeps; drops and other_drops, the shares
    that each drops; difference, the mean of |s - s'|.  A figure of nothing is None.  Raises ArtifactError as `unime.mine.judges.mean`,
    and for a pair without one positive.
    """
    counted, scores, shown = [], [], []
    for name, table, other in sets:
        both = candidates(table, other, names, beta)
        counted.append(_counted(both))
        scores.append(both.select("score", "other"))
        shown.append(_figures(name, counted[-1], rho(scores[-1])))
    whole = {key: sum(one[key] for one in counted) for key in counted[0]}
    return {"judges": list(names), "beta": beta, "sets": shown, "all": _figures("all", whole, rho(pl.concat(scores)))}


def candidates(table: pl.DataFrame, other: pl.DataFrame, names: tuple[str, str], beta: float) -> pl.DataFrame:
    """A row per candidate: `run` (number of its pair), `score` and `other` (the two judges'), `drop` and `other_drop` (above alpha)."""
    check_scores(table)
    table = table.select("pair", "positive", "score", other=judges.beside(table, other, names)["score"])
    positives = table.filter("positive").select("pair", sigma="score", sigma_other="other").with_row_index("run")
    if len(twice := positives.filter(pl.col("pair").is_duplicated())):
        raise artifacts.ArtifactError(f"judgements: pair {twice['pair'][0]} has two positives; run the judges' stages again")
    both = table.filter(~pl.col("positive")).join(positives, on="pair", how="left", maintain_order="left")
    if len(lost := both.filter(pl.col("run").is_null())):
        raise artifacts.ArtifactError(f"judgements: pair {lost['pair'][0]}: its positive has no judgement; run the judges' stages again")
    return both.select(
        "run", "score", "other", drop=pl.col("score") > pl.col("sigma") - beta, other_drop=pl.col("other") > pl.col("sigma_other") - beta
    )


def rho(both: pl.DataFrame) -> float | None:
    """Spearman's rho of the columns `score` and `other`; None where one of them is constant, or there is nothing."""
    ranks = both.select(pl.col("score", "other").rank("average"))
    return ranks.select(_sums()).select(_correlation())["rho"][0]


def _sums() -> list[pl.Expr]:
    """Of average ranks `score` and `other`, whose mean is (n + 1) / 2, ties or none: so the sums are exact where n is small."""
    middle = (pl.len() + 1) / 2
    one, two = pl.col("score") - middle, pl.col("other") - middle
    return [(one * two).sum().alias("product"), (one * one).sum().alias("one"), (two * two).sum().alias("two")]


def _correlation() -> pl.Expr:
    """Pearson's correlation out of `_sums`; null where a side is constant."""
    vary = (pl.col("one") > 0) & (pl.col("two") > 0)
    return pl.when(vary).then(pl.col("product") / (pl.col("one").sqrt() * pl.col("two").sqrt())).alias("rho")


def _counted(both: pl.DataFrame) -> dict[str, float]:
    """What `_figures` makes figures of, and what adds up over sets."""
    ranks = both.select("run", pl.col("score", "other").rank("average").over("run"))
    in_pair = ranks.group_by("run", maintain_order=True).agg(_sums()).select(_correlation())["rho"]
    return {
        "candidates": len(both),
        "pairs": len(in_pair),
        "constant": in_pair.null_count(),
        "rho": float(in_pair.drop_nulls().sum()),
        "apart": int((both["drop"] != both["other_drop"]).sum()),
        "drops": int(both["drop"].sum()),
        "other_drops": int(both["other_drop"].sum()),
        "difference": float((both["score"] - both["other"]).abs().sum()),
    }


def _figures(name: str, sums: Mapping[str, float], whole: float | None) -> dict[str, Any]:
    shares = ("apart", "drops", "other_drops", "difference")
    return {
        "name": name,
        **{key: sums[key] for key in ("pairs", "candidates", "constant")},
        "rho": whole,
        "rho_in_pair": _share(sums["rho"], sums["pairs"] - sums["constant"]),
        **{key: _share(sums[key], sums["candidates"]) for key in shares},
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def markdown(figures: Mapping[str, Any]) -> str:
    """The report as text: a row a set, and one for all."""
    one, other = figures["judges"]
    head = ("set", "pairs", "candidates", "rho", "rho in a pair", "constant", "apart", f"{one} drops", f"{other} drops", "difference")
    rows = [
        (
            row["name"],
            *(f"{row[key]:,}" for key in ("pairs", "candidates")),
            *(_number(row[key]) for key in ("rho", "rho_in_pair")),
            f"{row['constant']:,}",
            *(_percent(row[key]) for key in ("apart", "drops", "other_drops")),
            _number(row["difference"]),
        )
        for row in (*figures["sets"], figures["all"])
    ]
    lines = [f"# {escaped(one)} and {escaped(other)}: how far they agree", ""]
    lines += grid(head, rows, [False, *[True] * (len(head) - 1)])
    lines += [
        "",
        "Rho: Spearman's, over all candidates and as the mean over pairs (query and positive) of the rho within a pair; constant: pairs "
        "left out of that mean, because a judge gives all of their candidates one score. Apart: candidates that one judge drops as false "
        f"negatives and the other keeps, each by its own alpha = sigma - {figures['beta']:g}. Difference: mean of |s - s'|.",
    ]
    return "\n".join(lines) + "\n"


def line(figures: Mapping[str, Any]) -> str:
    """What goes on the screen."""
    (one, other), row = figures["judges"], figures["all"]
    return (
        f"rho {_number(row['rho']) or 'none'} over {row['candidates']:,} candidates; {_percent(row['apart'])} on different sides of alpha "
        f"({one} drops {_percent(row['drops'])}, {other} drops {_percent(row['other_drops'])})"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"
