"""Count what mining did to each set, and with a ground truth the false negatives that are left."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    import functools

    import polars as pl

    from unime import artifacts, caution
    from unime.mine.rules import mine_by_rule
    from unime.nano.truth import Truth
    from unime.report import mining

    data, retrieved, judged, mined = inputs
    sets = config.data.train_sets
    pairs = artifacts.read_tables(data, sets, "pairs.parquet", artifacts.PAIRS)
    truths = [data / name / "truth.parquet" for name in sets]
    ways = {"negatives": config.mine.negatives, "interval": config.mine.interval, "seed": config.seed}
    rules = {name: functools.partial(mine_by_rule, rule=rule, **ways) for name, rule in config.mine.rules.items()}
    known = all(file.exists() for file in truths)  # other data than the embedded suite has no ground truth
    figures = mining.report(
        pairs,
        artifacts.read_tables(retrieved, sets, "hits.parquet", artifacts.HITS),
        artifacts.read_tables(retrieved, sets, "pools.parquet", artifacts.POOLS),
        artifacts.read_tables(judged, sets, "judgements.parquet", artifacts.JUDGEMENTS),
        artifacts.read_tables(mined, sets, "mined.parquet", artifacts.MINED),
        beta=config.mine.beta,
        rules=rules,
        truth=Truth(pl.concat(artifacts.read_table(file, artifacts.TRUTH) for file in truths)) if known else None,
    )
    artifacts.write_json(figures, outputs[0] / "mining.json")
    (outputs[0] / "mining.md").write_text(mining.markdown(figures), encoding="utf-8")
    warnings = mining.warnings(figures)
    shares = figures["all"].get("false")
    if not shares:
        return caution.said("no ground truth for these sets", warnings)
    shown = {name: "none" if shares[name] is None else f"{100 * shares[name]:.2f} %" for name in ("mined", "in_batch", "in_batch_own_set")}
    summary = f"false negatives: mined {shown['mined']}, in-batch {shown['in_batch']} (own set {shown['in_batch_own_set']})"
    return caution.said(summary, warnings)


DOOR = Door(
    sections=("seed", "data.train_sets", "mine.judgements", "mine.beta", "mine.negatives", "mine.interval", "mine.rules"),
    inputs=("results/data/train", "results/retrieve", "{mine.judgements}", "results/mine/judge"),
    outputs=("results/mining_report/judge",),
    sweep=dict.fromkeys(("results/data/train", "results/retrieve", "results/judge", "results/mine/judge"), "data.train_sets"),
    run=run,
)
