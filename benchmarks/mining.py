"""Mining at the paper's size: 662,000 pairs with 50 judged candidates each: python benchmarks/mining.py [pairs]

20 training sets, one after the other, from the tables of the stages above to the table MINED on disk, as the stage `mine` does.  The peer
is the same rule query by query in Python, on one set; its seconds are scaled to all sets.  Both must choose the same negatives.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from harness import Section, child, main, peak

from unime import artifacts
from unime.mine import mine

SETS, K, SETTINGS = 20, 50, {"beta": 0.01, "negatives": 10, "interval": 5, "order": "similarity", "seed": 42}


def make(folder: str, pairs: int) -> dict:
    """PAIRS, HITS and JUDGEMENTS of every set; a tenth of the pairs loses most of its candidates to alpha, some lose all."""
    for number in range(SETS):
        size, rng, name = pairs // SETS + (number < pairs % SETS), np.random.default_rng(number), f"Set{number:02}"
        place = Path(folder) / name
        place.mkdir()
        ids = pl.Series([f"{number:02x}{value:030x}" for value in range(size)], dtype=pl.String)
        keys = pl.Series([f"{number:02x}{value:030x}" for value in rng.permutation(size)], dtype=pl.String)
        near = (rng.integers(0, size, (size, 1)) + np.cumsum(rng.integers(1, 30, (size, K)), axis=1)) % size
        own = np.arange(size)
        near[near == own[:, None]] = (near[near == own[:, None]] + 40 * K) % size
        sigma = rng.uniform(0.3, 0.95, size)
        hard = rng.random(size) < 0.1
        scores = np.where(hard[:, None], rng.uniform(0.25, 1, (size, K)), rng.uniform(0, 0.8, (size, K)))
        table = {"pair": keys, "dataset": [name] * size, "row": own, "query": ids, "positive": ids}
        write(pl.DataFrame(table), place / "pairs.parquet", artifacts.PAIRS)
        hits = {"pair": keys.gather(np.repeat(own, K)), "candidate": ids.gather(near.ravel()), "rank": np.tile(np.arange(K), size)}
        similarity = np.sort(rng.random((size, K), dtype=np.float32), axis=1)[:, ::-1].ravel()
        write(pl.DataFrame(hits | {"similarity": similarity}), place / "hits.parquet", artifacts.HITS)
        both = np.concatenate([own[:, None], near], axis=1)
        judged = {"pair": keys.gather(np.repeat(own, K + 1)), "candidate": ids.gather(both.ravel())}
        judged |= {"positive": np.tile(np.arange(K + 1) == 0, size), "yes": np.float32(0), "no": np.float32(0)}
        score = np.concatenate([sigma[:, None], scores], axis=1).ravel()
        write(pl.DataFrame(judged | {"score": score}), place / "judgements.parquet", artifacts.JUDGEMENTS)
    return {}


def write(table: pl.DataFrame, path: Path, schema: dict) -> None:
    artifacts.write_table(table.select(pl.col(name).cast(kind) for name, kind in schema.items()), path, schema)


def tables(place: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    kinds = {"pairs": artifacts.PAIRS, "hits": artifacts.HITS, "judgements": artifacts.JUDGEMENTS}
    return tuple(artifacts.read_table(place / f"{name}.parquet", kind) for name, kind in kinds.items())


def mined(folder: str) -> dict:
    start, rows = time.perf_counter(), 0
    for place in sorted(Path(folder).iterdir()):
        table, _ = mine(*tables(place), **SETTINGS)
        artifacts.write_table(table, place / "mined.parquet", artifacts.MINED)
        rows += len(table)
    return {"seconds": time.perf_counter() - start, "peak": peak(), "rows": rows}


def loop(folder: str) -> dict:
    """The rule for one pair after the other, over the first set; only pairs that keep ten candidates are compared."""
    place = sorted(Path(folder).iterdir())[0]
    start = time.perf_counter()
    pairs, hits, judgements = tables(place)
    candidates: dict[str, list[str]] = {}
    for pair, candidate, _, _ in hits.iter_rows():
        candidates.setdefault(pair, []).append(candidate)
    sigma, scores = {}, {}
    for pair, candidate, positive, _, _, score in judgements.iter_rows():
        if positive:
            sigma[pair] = score
        else:
            scores[pair, candidate] = score
    found, step, wanted = {}, SETTINGS["interval"], SETTINGS["negatives"]
    for pair in pairs["pair"]:
        left = [one for one in candidates[pair] if scores[pair, one] <= sigma[pair] - SETTINGS["beta"]]
        found[pair] = [left[at] for offset in range(step) for at in range(offset, len(left), step)][:wanted]
    seconds = time.perf_counter() - start
    table = artifacts.read_table(place / "mined.parquet", artifacts.MINED)
    ours = dict(zip(table["pair"], table["negatives"].to_list(), strict=True))
    whole = [pair for pair, chosen in found.items() if len(chosen) == wanted]
    return {"seconds": seconds, "peak": peak(), "same": all(found[pair] == ours[pair] for pair in whole), "compared": len(whole)}


def run(pairs: int) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        child(__file__, "make", f'"{folder}"', pairs)
        ours = child(__file__, "mined", f'"{folder}"')
        plain = child(__file__, "loop", f'"{folder}"')
    if not plain["same"] or plain["compared"] < pairs / SETS / 2:
        sys.exit("the two ways choose different negatives; nothing to compare")
    scaled = plain["seconds"] * SETS
    text = f"{pairs:,} pairs x {K} candidates in {SETS} sets, tables read from disk and written to it; the same negatives, checked first."
    rows = [
        ["columns (polars)", f"{scaled / ours['seconds']:.1f}", f"{ours['seconds']:.1f}", f"{ours['peak']:.2f}"],
        ["Python loop, one set, seconds times 20", "1.0", f"{scaled:.1f}", f"{plain['peak']:.2f}"],
    ]
    return Section("Mining at the paper's size", text, ["way", "speed", "seconds", "GiB at most"], rows, ["polars"])


if __name__ == "__main__":
    main(run, 662_000, make=make, mined=mined, loop=loop)
