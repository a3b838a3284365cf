"""Retrieval against a bare faiss search, and mining against sentence-transformers: python benchmarks/retrieval.py [rounds]

1. 50,000 queries in a pool of 50,000, D = 1536, k = 50: `unime.retrieve` (positives left out, ties ordered, tables made) against
   `faiss.IndexFlatIP.search` of 51, each in a process of its own.  The ids must be the same.
2. From vectors to ten negatives a query with a margin of 0.01 to the positive: retrieve and mine against sentence-transformers'
   `mine_hard_negatives` with the same vectors, in a set of labels and in one of distinct positives.  The negatives must be the same.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from harness import Section, child, main, peak, ratio

from unime import artifacts

SIZE, WIDTH, K = 50_000, 1536, 50
SETS = ((50_000, 1000, 256), (50_000, 1000, 1536), (16_000, 16_000, 1536))
"""Pairs, distinct positives, D of the sets to mine: MMEB-train has labels and short answers as well as sets where all positives differ."""
MARGIN, NEGATIVES = 0.01, 10


def unit(rng: np.random.Generator, size: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((size, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def names(size: int) -> tuple[list[str], list[str]]:
    return [f"c{number:06d}" for number in range(size)], [f"q{number:06d}" for number in range(size)]


def pairs_of(size: int, own: np.ndarray | None = None) -> pl.DataFrame:
    """PAIRS; the positive of each is its own, or of the candidates the one of this number."""
    candidates, queries = names(size)
    positives = candidates if own is None else [candidates[number] for number in own]
    columns = {"pair": queries, "dataset": ["Set"] * size, "row": range(size), "query": queries, "positive": positives}
    return pl.DataFrame(columns, schema=artifacts.PAIRS)


def make(folder: str) -> dict:
    """Vectors of candidates, then of queries, in one file: each query near its candidate."""
    rng = np.random.default_rng(0)
    candidates = unit(rng, SIZE, WIDTH)
    queries = candidates + 0.02 * rng.standard_normal((SIZE, WIDTH), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    made = Path(folder) / "vectors"
    made.mkdir()
    artifacts.write_vectors(made, [*names(SIZE)[0], *names(SIZE)[1]], np.concatenate([candidates, queries]))
    return {}


def ours(folder: str) -> dict:
    from unime.retrieve import retrieve

    pairs = pairs_of(SIZE)
    start = time.perf_counter()
    ids, vectors = artifacts.read_vectors(Path(folder) / "vectors")
    hits, _ = retrieve(pairs, ids, vectors, k=K, delta=None, threads=2)
    seconds = time.perf_counter() - start
    memory = peak()
    found = hits["candidate"].str.slice(1).cast(pl.Int64).to_numpy().reshape(SIZE, K)
    np.save(Path(folder) / "ours.npy", found)
    return {"seconds": seconds, "peak": memory, "vectors": vectors.nbytes / 2**30}


def bare(folder: str) -> dict:
    import faiss

    start = time.perf_counter()
    _, vectors = artifacts.read_vectors(Path(folder) / "vectors")
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors[:SIZE])
    values, found = index.search(np.ascontiguousarray(vectors[SIZE:]), K + 1)
    seconds = time.perf_counter() - start
    memory = peak()
    np.save(Path(folder) / "bare.npy", found)
    np.save(Path(folder) / "values.npy", values)
    return {"seconds": seconds, "peak": memory}


def same_ids(folder: Path) -> str:
    """Stops where the ids differ otherwise than by the order of similarities that float32 cannot tell apart."""
    mine, theirs, values = (np.load(folder / f"{name}.npy") for name in ("ours", "bare", "values"))
    kept = theirs != np.arange(SIZE)[:, None]
    kept[kept.all(axis=1), -1] = False  # the own positive is not among the 51: the last one goes
    theirs, values = theirs[kept].reshape(SIZE, K), values[kept].reshape(SIZE, K)
    other = (mine != theirs).nonzero()
    close = [
        abs(values[row, at] - values[row, max(at - 1, 0)]) < 1e-6 or abs(values[row, at] - values[row, min(at + 1, K - 1)]) < 1e-6
        for row, at in zip(*other, strict=True)
    ]
    if not all(close):
        sys.exit("ours finds other ids than faiss; nothing to compare")
    return f"ids the same, but for the order of {len(close):,} of {SIZE * K:,} whose similarities differ by less than 1e-6"


def mined_here(size: int, pool: int, width: int) -> dict:
    from unime.mine import mine
    from unime.retrieve import retrieve

    own, ids, vectors = labelled(size, pool, width)
    pairs = pairs_of(size, own)
    start = time.perf_counter()
    hits, _ = retrieve(pairs, ids, vectors, k=K, delta=None, threads=2)
    close = np.einsum("nd,nd->n", vectors[own], vectors[pool:])
    positives = pairs.select("pair", candidate="positive", positive=pl.lit(True), score=pl.Series(close))
    judged = pl.concat([positives, hits.select("pair", "candidate", positive=pl.lit(False), score="similarity")])
    judged = judged.with_columns(pl.col("score").cast(pl.Float64).clip(0, 1), yes=pl.lit(0.0), no=pl.lit(0.0))
    judged = judged.select(pl.col(name).cast(kind) for name, kind in artifacts.JUDGEMENTS.items())
    table, _ = mine(pairs, hits, judged, beta=MARGIN, negatives=NEGATIVES, interval=1, order="similarity", seed=0)
    return {"seconds": time.perf_counter() - start, "negatives": dict(table.select("query", "negatives").iter_rows())}


def labelled(size: int, pool: int, width: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(size,) the number of each query's positive; ids and vectors of the candidates and then of the queries."""
    rng = np.random.default_rng(1)
    own = np.arange(size) if pool == size else rng.integers(0, pool, size)
    centres = unit(rng, pool // 40, width)[rng.integers(0, pool // 40, pool)]
    candidates = centres + 0.05 * rng.standard_normal((pool, width), dtype=np.float32)
    queries = candidates[own] + 0.03 * rng.standard_normal((size, width), dtype=np.float32)
    rows = np.concatenate([candidates, queries])
    return own, [*names(pool)[0], *names(size)[1]], rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mined_there(size: int, pool: int, width: int, use_faiss: bool) -> dict:
    """sentence-transformers, its encoder in place of which the same vectors are looked up."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    own, ids, vectors = labelled(size, pool, width)
    row = {name: number for number, name in enumerate(ids)}

    class Known(SentenceTransformer):
        def __init__(self) -> None:
            super().__init__(modules=[torch.nn.Identity()], device="cpu")

        def encode(self, sentences: list[str], **_: object) -> np.ndarray:
            return vectors[[row[one] for one in sentences]]

        encode_query = encode_document = encode

        def get_embedding_dimension(self) -> int:
            return width

        get_sentence_embedding_dimension = get_embedding_dimension

    data = Dataset.from_dict({"anchor": ids[pool:], "positive": [ids[number] for number in own]})
    model = Known()
    start = time.perf_counter()
    found = mine_hard_negatives(
        data,
        model,
        range_max=K,
        absolute_margin=MARGIN,
        num_negatives=NEGATIVES,
        sampling_strategy="top",
        use_faiss=use_faiss,
        output_format="n-tuple",
        verbose=False,
    )
    seconds = time.perf_counter() - start
    columns = [name for name in found.column_names if name.startswith("negative")]
    return {"seconds": seconds, "negatives": {one["anchor"]: [one[name] for name in columns] for one in found}}


def mined(shape: tuple[int, int, int], rounds: int) -> tuple[list[list[str]], str]:
    """The table's rows of one set, and how many queries were compared."""
    ways = {
        "retrieve and mine": ("mined_here",),
        "sentence-transformers, its default": ("mined_there", "false"),
        "sentence-transformers, use_faiss": ("mined_there", "true"),
    }
    found: dict[str, list[dict]] = {said: [] for said in ways}
    for _ in range(rounds):
        for said, (part, *more) in ways.items():
            found[said].append(child(__file__, part, *shape, *more))
    mine, *others = (some[0]["negatives"] for some in found.values())
    for theirs in others:
        shared = mine.keys() & theirs.keys()
        other = sum(mine[query] != theirs[query] for query in shared)
        if len(shared) < shape[0] / 2 or other > len(shared) / 1000:  # a similarity on the margin, or two that are equal
            sys.exit(f"{shape}: sentence-transformers mines {other} of {len(shared)} lists otherwise; nothing to compare")
    size, pool, width = shape
    times = {said: [one["seconds"] for one in some] for said, some in found.items()}
    first = times["retrieve and mine"]
    rows = [
        [
            f"mining {size:,} pairs, {pool:,} candidates, D = {width:,}: {said}",
            f"{ratio(some, first)} of ours",
            f"{sorted(some)[rounds // 2]:.2f}",
            "",
        ]
        for said, some in times.items()
    ]
    return rows, f"{len(shared):,} of {size:,} ({other} lists with another order)"


def run(rounds: int) -> Section:
    found: dict[str, list[dict]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        child(__file__, "make", f'"{folder}"')
        for _ in range(rounds):
            for name in found:
                found[name].append(child(__file__, name, f'"{folder}"'))
        checked = same_ids(Path(folder))
    middle = {name: sorted(one["seconds"] for one in some)[rounds // 2] for name, some in found.items()}
    relative = sorted(one["seconds"] / two["seconds"] for one, two in zip(found["ours"], found["bare"], strict=True))
    shares = f"{relative[rounds // 2]:.2f} ({relative[0]:.2f} to {relative[-1]:.2f}) of faiss's"
    rows = []
    for name, said, shown in (("ours", "retrieve, 50,000 x 50,000 x 1536", shares), ("bare", "faiss.IndexFlatIP.search", "1.00")):
        rows.append([said, shown, f"{middle[name]:.1f}", f"{max(one['peak'] for one in found[name]):.2f}"])
    compared = []
    for shape in SETS:
        more, said = mined(shape, max(3, rounds))
        rows += more
        compared.append(said)
    size = found["ours"][0]["vectors"]
    text = f"{checked}; vectors {size:.2f} GiB, on disk. Mined negatives compared for "
    text += f"{', '.join(compared)} queries; sentence-transformers leaves out those that keep fewer than ten."
    packages = ["faiss-cpu", "sentence-transformers", "polars"]
    return Section(
        "Retrieval and mining against peers",
        text,
        ["what", "time", "seconds", "GiB at most"],
        rows,
        packages,
    )


if __name__ == "__main__":
    main(run, 3, make=make, ours=ours, bare=bare, mined_here=mined_here, mined_there=mined_there)
