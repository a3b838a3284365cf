"""The embedded suite's writer: training sets and tasks as MMEB publishes them, and caption sets, from a seed.

    <folder>/train/<set>/original-00000-of-00001.parquet             qry, qry_image_path, pos_text, pos_image_path
    <folder>/train/<set>/diverse_instruction-00000-of-00001.parquet  the same rows, paraphrased instructions
    <folder>/train/<set>/images.zip                                  images/<set>/Train/<n>.png
    <folder>/train/<set>/truth.parquet                               what every training item shows (tests and reports only)
    <folder>/eval/<task>/test-00000-of-00001.parquet                 qry_text, qry_img_path, tgt_text, tgt_img_path
    <folder>/eval/images.zip                                         <task>/<n>.png
    <folder>/crossmodal/<benchmark>/                                 see `captions`

Every set and every task draws from its own random state (seed, kind of file, name), so adding one leaves the others' bytes alone.
Rows are written in blocks: a million rows need no more memory than a thousand.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from unime import artifacts
from unime.config import Suite
from unime.nano import captions, kinds, makers
from unime.nano.kinds import KINDS, Kind
from unime.nano.makers import Row, Side

TRAIN_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
DUPLICATES = "NanoTwin"
"""The set whose candidates contain true duplicates: a quarter of its rightly labelled rows reuse the candidate picture of an earlier one,
byte for byte."""


class ImageZip:
    """A zip of PNG files; equal bytes get a member each, as in the published archives.  Times are fixed: equal runs, equal bytes."""

    def __init__(self, path: Path):
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._count: dict[str, int] = {}

    def add(self, prefix: str, png: bytes) -> str:
        number = self._count.get(prefix, 0)
        self._count[prefix] = number + 1
        member = f"{prefix}{number:06d}.png"
        self.put(member, png)
        return member

    def put(self, member: str, png: bytes) -> None:
        self._file.writestr(zipfile.ZipInfo(member, date_time=(2020, 1, 1, 0, 0, 0)), png)

    def close(self) -> None:
        self._file.close()


def png_of(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def write(folder: str | Path, settings: Suite, track: Any = None) -> dict[str, int]:
    """Write the whole suite into `folder` (created).  Returns {"sets", "tasks", "rows", "queries", "images"}."""
    folder = Path(folder)
    images = 0
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    names = [*kinds.TRAIN_SETS, *kinds.TASKS, *captions.BENCHMARKS]
    steps: Iterator[str] = iter(track(names, len(names), "embedded suite") if track else names)
    for name in kinds.TRAIN_SETS:
        next(steps)
        images += _train_set(folder / "train" / name, name, settings)
    archive = ImageZip(folder / "eval" / "images.zip")
    for name in kinds.TASKS:
        next(steps)
        images += _task(folder / "eval", name, settings, archive)
    archive.close()
    for name in captions.BENCHMARKS:
        next(steps)
        images += _benchmark(folder / "crossmodal" / name, name, settings)
    rows, queries = settings.train_rows * len(kinds.TRAIN_SETS), settings.eval_rows * len(kinds.TASKS)
    return {"sets": len(kinds.TRAIN_SETS), "tasks": len(kinds.TASKS), "rows": rows, "queries": queries, "images": images}


def _random(settings: Suite, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng((settings.seed, int.from_bytes(digest[:8], "little")))


def _train_set(folder: Path, name: str, settings: Suite) -> int:
    kind, rng = KINDS[kinds.TRAIN_SETS[name]], _random(settings, "train", name)
    folder.mkdir(parents=True, exist_ok=True)
    archive, count = ImageZip(folder / "images.zip"), 0
    facts: list[dict[str, str]] = []
    plain: dict[str, list[str]] = {column: [] for column in TRAIN_COLUMNS}
    diverse: list[str] = []
    pngs: list[tuple[Row, bytes | None]] = []
    for number in range(settings.train_rows):
        row = kind.make(rng, "train", kind.phrasings[:1])
        mislabelled = rng.random() < settings.wrong_labels
        if mislabelled:
            row = row._replace(positive=_wrong_label(rng, kind, row))
        candidate = None if row.positive.picture is None else png_of(row.positive.picture)
        if name == DUPLICATES and pngs and not mislabelled and rng.random() < 0.25:
            earlier, candidate = pngs[rng.integers(len(pngs))]
            row = Row(makers.twin_query(rng, earlier.scene, kind.phrasings[0]), earlier.positive, earlier.scene)
        if name == DUPLICATES and not mislabelled and len(pngs) < 1000:
            pngs.append((row, candidate))
        query = None if row.query.picture is None else png_of(row.query.picture)
        for prefix, side, png in (("qry", row.query, query), ("pos", row.positive, candidate)):
            plain["qry" if prefix == "qry" else "pos_text"].append(side.text)
            path = archive.add(f"images/{name}/Train/", png) if png is not None else ""
            plain[f"{prefix}_image_path"].append(path)
            count += png is not None
            label = "query" if prefix == "qry" else "candidate"
            facts.append({"id": artifacts.content_id(side.text, png), "dataset": name, "side": label, "facts": json.dumps(side.facts)})
        diverse.append(_paraphrase(row.query.text, kind, number))
    archive.close()
    pl.DataFrame(plain).write_parquet(folder / "original-00000-of-00001.parquet")
    pl.DataFrame({**plain, "qry": diverse}).write_parquet(folder / "diverse_instruction-00000-of-00001.parquet")
    truth = pl.DataFrame(facts, schema=artifacts.TRUTH).unique(["id", "dataset", "side", "facts"], maintain_order=True)
    artifacts.write_table(truth, folder / "truth.parquet", artifacts.TRUTH)
    return count


def _wrong_label(rng: np.random.Generator, kind: Kind, row: Row) -> Side:
    """The right answer to another query, which is wrong for this one."""
    while True:
        side = kind.make(rng, "train", kind.phrasings[:1]).positive
        if not makers.meets(row.query.facts, side.facts):
            return side


def _paraphrase(text: str, kind: Kind, number: int) -> str:
    """The same query with the kind's other instruction on every second row, as MMEB's diverse_instruction files have it."""
    first, other = kind.phrasings[0], kind.phrasings[-1]
    if number % 2 == 0 or first == other:
        return text
    return text.replace(first.split("{")[0], other.split("{")[0], 1)


def _task(root: Path, name: str, settings: Suite, archive: ImageZip) -> int:
    kind_name, split = kinds.TASKS[name]
    kind, rng = KINDS[kind_name], _random(settings, "eval", name)
    phrasings = kind.ood if split == "held" else kind.phrasings[:1]
    rows = [kind.make(rng, split, phrasings) for _ in range(settings.eval_rows)]
    files: dict[int, str] = {}
    kept: list[np.ndarray] = []  # keeps every picture alive, so that an id() names one picture only

    def place(side: Side) -> tuple[str, str]:
        if side.picture is None:
            return side.text, ""
        if id(side.picture) not in files:
            kept.append(side.picture)
            files[id(side.picture)] = archive.add(f"{name}/", png_of(side.picture))
        return side.text, files[id(side.picture)]

    queries, lists = [], []
    for row in rows:
        queries.append(place(row.query))
        lists.append([place(side) for side in _candidates(rng, kind, row, rows, settings.candidates)])
    table = {
        "qry_text": [text for text, _ in queries],
        "qry_img_path": [path for _, path in queries],
        "tgt_text": [[text for text, _ in candidates] for candidates in lists],
        "tgt_img_path": [[path for _, path in candidates] for candidates in lists],
    }
    (root / name).mkdir(exist_ok=True)
    pl.DataFrame(table).write_parquet(root / name / "test-00000-of-00001.parquet")
    return len(files)


def _benchmark(folder: Path, name: str, settings: Suite) -> int:
    rng = _random(settings, "crossmodal", name)
    if name == captions.RETRIEVAL:
        return captions.write_scenes(folder, rng, settings.eval_rows, png_of)
    folder.mkdir(parents=True, exist_ok=True)
    archive = ImageZip(folder / "val2017.zip")
    count = captions.write_crepe(folder, rng, settings.eval_rows, png_of, archive.put)
    archive.close()
    return count


def _candidates(rng: np.random.Generator, kind: Kind, row: Row, rows: list[Row], count: int) -> list[Side]:
    """The right one first, then wrong ones by the suite's own truth: the label set; or near misses (a tenth), then other rows' answers."""
    if kind.labels:
        right = row.positive.facts["is"]
        return [row.positive, *(Side(f"{word}\n", None, {"is": word}) for word in kind.labels if word != right)]
    found, seen = [row.positive], {row.positive.text if row.positive.picture is None else row.positive.picture.tobytes()}
    near = [kind.wrong(rng, row) for _ in range(max(1, count // 10))]
    others = [rows[i].positive for i in rng.permutation(len(rows))]
    for side in (*near, *others):
        key = side.text if side.picture is None else side.picture.tobytes()
        if len(found) < count and key not in seen and not makers.meets(row.query.facts, side.facts):
            seen.add(key)
            found.append(side)
    return found
