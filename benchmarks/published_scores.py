"""Time and memory of importing a published score file: python benchmarks/published_scores.py [rows]

Makes a file of the published format (20 sets, all rows shuffled), the sets' ITEMS and PAIRS, and the tables that must come out; no
images, since the ids are made up.  One in fifty rows has lost the white space around its texts, and some candidates of the text sets
are not in ITEMS.  The import and a plain `json.load` of the same file then run in a process each.  Prints seconds and peak memory of
both; the imported tables must equal the truth.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout without installation

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

from unime import artifacts  # noqa: E402
from unime.data.images import Decoding  # noqa: E402
from unime.data.rows import Shelf  # noqa: E402
from unime.job import Job  # noqa: E402
from unime.mine import published  # noqa: E402

SETS, WIDTH, MARK = 20, 10, "<|image_1|>\n"
WORDS = np.array(["".join(row) for row in np.random.default_rng(0).choice(list("etaoinshrdlucé"), (3000, 6))])


def texts(rng: np.random.Generator, count: int, length: int) -> list[str]:
    """Distinct texts of about this many characters."""
    chosen = WORDS[rng.integers(0, len(WORDS), (count, length // 7))]
    return [" ".join(row) + f" {number}" for number, row in enumerate(chosen.tolist())]


def one_set(number: int, size: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Write ITEMS, PAIRS and the true MINED of one set; give its published rows."""
    rng, name = np.random.default_rng([1, number]), f"Set{number:02}"
    images, pool = number % 2 == 0, size if number % 4 < 2 else max(20, size // 40)  # image candidates; few candidates (labels)
    queries = [(MARK if not images else "") + text + '?"\n' for text in texts(rng, size, 200)]
    candidates = [
        f"{MARK}Represent the given image: {text}\n" if images else text + ".\n" for text in texts(rng, pool, 60 if images else 100)
    ]
    path_of = [f"images/{name}/Train/{rng.integers(1 << 60):016x}_{k}.jpg" for k in range(pool if images else size)]
    query_path, candidate_path = ([""] * size, path_of) if images else (path_of, [""] * pool)

    def ids(words: list[str], paths: list[str]) -> np.ndarray:  # a made-up image: its path
        return np.array([artifacts.content_id(t, p.encode() if p else None) for t, p in zip(words, paths, strict=True)])

    query_ids, candidate_ids = ids(queries, query_path), ids(candidates, candidate_path)
    right = np.arange(size) % pool
    wrong = (right[:, None] + rng.integers(1, pool, (size, WIDTH))) % pool
    scores = 1 / (1 + np.exp(-rng.integers(-80, 40, (size, WIDTH + 1)) * 0.125 / 1.05))
    again = np.array([[value in row[:k] for k, value in enumerate(row)] for row in wrong.tolist()])

    archive = f"images_zip/{name}.zip"
    items = pl.DataFrame(
        {
            "id": [*query_ids, *candidate_ids],
            "text": queries + candidates,
            "archive": [archive if path else "" for path in query_path + candidate_path],
            "member": query_path + candidate_path,
            "image": query_path + candidate_path,
        },
        schema=artifacts.ITEMS,
    )
    pair = [artifacts.pair_id(name, q, c) for q, c in zip(query_ids, candidate_ids[right], strict=True)]
    columns = {"pair": pair, "dataset": [name] * size, "query": query_ids, "positive": candidate_ids[right]}
    pairs = pl.DataFrame(columns | {"row": np.arange(size)}).select(pl.col(key).cast(kind) for key, kind in artifacts.PAIRS.items())
    reasons = np.where(again, "repeated", "kept")
    listed = {"negatives": candidate_ids[wrong], "scores": scores[:, 1:], "reasons": reasons, "ranks": np.tile(np.arange(WIDTH), (size, 1))}
    truth = pl.DataFrame(columns | {"sigma": scores[:, 0]} | {key: value.tolist() for key, value in listed.items()})
    truth = truth.select(pl.col(key).cast(kind) for key, kind in artifacts.MINED.items())
    lost = [] if images or pool < size else candidate_ids[::20]  # every pair of theirs is new, and comes after the others
    known = ~pl.col("positive").is_in(pl.Series(lost, dtype=pl.String).implode())
    artifacts.write_table(
        items.filter(~pl.col("id").is_in(pl.Series(lost, dtype=pl.String).implode())), folder / f"{name}.items", artifacts.ITEMS
    )
    artifacts.write_table(pairs.filter(known), folder / f"{name}.pairs", artifacts.PAIRS)
    artifacts.write_table(pl.concat([truth.filter(known), truth.filter(~known)]), folder / f"{name}.truth", artifacts.MINED)
    for row, (query, negatives) in enumerate(zip(queries, wrong.tolist(), strict=True)):
        bare = row % 50 == 7 and not len(lost)

        def shown(text: str, bare: bool = bare) -> str:
            return text.strip() if bare else text

        yield {
            "query_text": shown(query),
            "query_image": query_path[row],
            "pos_text": shown(candidates[right[row]]),
            "pos_image": candidate_path[right[row]],
            "query_pos_scores": scores[row, 0],
            "hard_negatives": [[shown(candidates[k]), candidate_path[k]] for k in negatives],
            "hard_negatives_scores": scores[row, 1:].tolist(),
        }


def make(rows: int, folder: Path) -> None:
    """The score file, rows of all sets in turn, and the sets' tables."""
    sources = [one_set(number, rows // SETS + (number < rows % SETS), folder) for number in range(SETS)]
    with open(folder / "scores.json", "w", encoding="utf-8") as file:
        for count, source in enumerate(np.random.default_rng(2).permutation(np.arange(rows) % SETS)):
            file.write(("[" if not count else ", ") + json.dumps(next(sources[source])))
        file.write("]")


def imported(folder: Path) -> None:
    names = [f"Set{number:02}" for number in range(SETS)]
    sets = {
        name: (
            artifacts.read_table(folder / f"{name}.items", artifacts.ITEMS),
            artifacts.read_table(folder / f"{name}.pairs", artifacts.PAIRS),
        )
        for name in names
    }
    job = Job(None, 1, folder, logging.getLogger("benchmark"))
    shelves = {name: Shelf([]) for name in names}
    mined, _, report = published.import_scores(folder / "scores.json", sets, shelves, decoding=Decoding(1), bad_rows="fail", job=job)
    for name, table in mined.items():
        artifacts.write_table(table, folder / f"{name}.mined", artifacts.MINED)
    artifacts.write_json(report, folder / "report.json")


def child(what: str, folder: Path, rows: int) -> None:
    start = time.perf_counter()
    if what == "make":
        make(rows, folder)
    elif what == "import":
        imported(folder)
    else:
        with open(folder / "scores.json", encoding="utf-8") as file:
            json.load(file)
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        for what in ("make", "import", "json.load"):  # a child's peak is never below its parent's, so this process stays small
            command = [sys.executable, __file__, "--child", what, name, str(rows)]
            found[what] = tuple(map(float, subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()))
        print(f"{rows:,} rows, {(folder / 'scores.json').stat().st_size / 2**30:.2f} GiB")
        for number in range(SETS):
            mined, truth = (artifacts.read_table(folder / f"Set{number:02}.{kind}", artifacts.MINED) for kind in ("mined", "truth"))
            if not len(truth) or not mined.equals(truth):
                raise SystemExit(f"Set{number:02}: the imported table is not the generated one")
        report = artifacts.read_json(folder / "report.json")
    counts = ("rows", "mined", "new_pairs", "new_items", "texts_exact", "texts_stripped", "repeated")
    print("equal to the generated tables; " + ", ".join(f"{key} {report[key]:,}" for key in counts))
    for what in ("import", "json.load"):
        seconds, memory = found[what]
        print(f"{what:10} {seconds:6.1f} s, {seconds / found['json.load'][0]:.2f} of json.load, {memory:.2f} GiB at most")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 662_000)
