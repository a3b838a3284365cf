"""Time and memory of judge, embed and mine at 1, 4 and 16 times the rows: python benchmarks/growth.py [pairs]

Each size in a process of its own, with the nano MLLM; per row neither may grow.  The judge reads each pair's picture and 20 texts, embed
one picture and one text a row, mine takes 50 judged candidates a pair (400 times as many pairs).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import material
import mining
import numpy as np
import polars as pl
from harness import Section, child, main, peak

from unime import artifacts, embed, judge
from unime.backbones import load
from unime.judge.transformers_backend import TransformersJudge

TIMES, CANDIDATES, MINED = (1, 4, 16), 20, 400


def quiet(iterable, total=None, label=""):
    return iterable


def judged(size: int) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        place, rng = Path(temporary), np.random.default_rng(0)
        items, texts, pictures = material.items(place / "items", material.words(rng, size + CANDIDATES, 3, 9), [84] * size)
        keys = [f"{number:06d}" for number in range(size)]
        columns = {"pair": keys, "dataset": ["Set"] * size, "row": range(size), "query": pictures, "positive": texts[:size]}
        pairs = pl.DataFrame(columns, schema=artifacts.PAIRS)
        rows = [(key, texts[number + 1 + at], at, 0.0) for number, key in enumerate(keys) for at in range(CANDIDATES)]
        hits = pl.DataFrame(rows, schema=artifacts.HITS, orient="row")
        backend, start = TransformersJudge(load(material.NANO, models=material.MODELS), items, 8192), time.perf_counter()
        found = judge.judge(pairs, hits, backend, mode="exact", shard=64, scratch=place / "scratch", track=quiet)
        return {"seconds": time.perf_counter() - start, "peak": peak(), "rows": len(found)}


def embedded(size: int) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        place, rng = Path(temporary), np.random.default_rng(0)
        items, texts, pictures = material.items(place / "items", material.words(rng, size, 3, 9), [84] * size)
        backbone, start = load(material.NANO, models=material.MODELS), time.perf_counter()
        ids, _ = embed.embed([*texts, *pictures], items, backbone, batch_tokens=8192, shard=512, scratch=place / "scratch", track=quiet)
        return {"seconds": time.perf_counter() - start, "peak": peak(), "rows": len(ids)}


def mined(size: int) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        child(mining.__file__, "make", f'"{temporary}"', size * MINED)
        return mining.mined(temporary)


def run(pairs: int) -> Section:
    rows = []
    for name in ("judged", "embedded", "mined"):
        found = [child(__file__, name, pairs * times) for times in TIMES]
        first = found[0]["seconds"] / found[0]["rows"]
        for times, one in zip(TIMES, found, strict=True):
            each = one["seconds"] / one["rows"]
            rows.append(
                [
                    name,
                    f"{times}x: {one['rows']:,}",
                    f"{one['seconds']:.2f}",
                    f"{1e3 * each:.3f}",
                    f"{each / first:.2f}",
                    f"{one['peak']:.2f}",
                ]
            )
    text = "rows are judgements, items, mined pairs; seconds without loading the model."
    header = ["stage", "rows", "seconds", "ms a row", "against 1x", "GiB at most"]
    return Section("Growth: 1, 4 and 16 times the rows", text, header, rows, ["torch", "polars"])


if __name__ == "__main__":
    main(run, 150, judged=judged, embedded=embedded, mined=mined)
