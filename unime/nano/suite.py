"""The embedded suite's writer: MMEB-train and MMEB-eval parquet plus image zips, in the published layout, from a seed.

    <folder>/MMEB-train/<set>/original-00000-of-00001.parquet            qry, qry_image_path, pos_text, pos_image_path
    <folder>/MMEB-train/<set>/diverse_instruction-00000-of-00001.parquet the same rows, paraphrased instructions
    <folder>/MMEB-train/images_zip/<set>.zip                             images/<set>/Train/<n>.png
    <folder>/MMEB-eval/<task>/test-00000-of-00001.parquet                qry_text, qry_img_path, tgt_text, tgt_img_path
    <folder>/MMEB-eval/images.zip                                        <task>/<n>.png
    <folder>/truth.parquet                                               what every training item shows (tests and reports only)

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
from unime.nano import kinds, makers
from unime.nano.kinds import KINDS, Kind
from unime.nano.makers import Row, Side

TRAIN_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
DUPLICATES = "NanoTwin"
"""The set whose candidates contain true duplicates: a quarter of its rows reuse an earlier row's candidate picture, byte for byte."""


class ImageZip:
    """A zip of PNG files; equal bytes get a member each, as in the published archives.  Times are fixed: equal runs, equal bytes."""

    def __init__(self, path: Path):
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._count: dict[str, int] = {}

    def add(self, prefix: str, png: bytes) -> str:
        number = self._count.get(prefix, 0)
        self._count[prefix] = number + 1
        member = f"{prefix}{number:06d}.png"
        self._file.writestr(zipfile.ZipInfo(member, date_time=(2020, 1, 1, 0, 0, 0)), png)
        return member

    def close(self) -> None:
        self._file.close()


def png_of(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def write(folder: str | Path, settings: Suite, track: Any = None) -> dict[str, int]:
    """Write the whole suite into `folder` (created).  Returns {"sets", "tasks", "rows", "queries", "images"}."""
    folder = Path(folder)
    facts: list[dict[str, str]] = []
    images = 0
    (folder / "MMEB-train" / "images_zip").mkdir(parents=True, exist_ok=True)
    (folder / "MMEB-eval").mkdir(parents=True, exist_ok=True)
    names = [*kinds.TRAIN_SETS, *kinds.TASKS]
    steps: Iterator[str] = iter(track(names, len(names), "embedded suite") if track else names)
    for name in kinds.TRAIN_SETS:
        next(steps)
        images += _train_set(folder / "MMEB-train", name, settings, facts)
    archive = ImageZip(folder / "MMEB-eval" / "images.zip")
    for name in kinds.TASKS:
        next(steps)
        images += _task(folder / "MMEB-eval", name, settings, archive)
    archive.close()
    truth = pl.DataFrame(facts, schema=artifacts.TRUTH).unique(["id", "dataset", "side", "facts"], maintain_order=True)
    artifacts.write_table(truth, folder / "truth.parquet", artifacts.TRUTH)
    rows, queries = settings.train_rows * len(kinds.TRAIN_SETS), settings.eval_rows * len(kinds.TASKS)
    return {"sets": len(kinds.TRAIN_SETS), "tasks": len(kinds.TASKS), "rows": rows, "queries": queries, "images": images}


def _random(settings: Suite, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng((settings.seed, int.from_bytes(digest[:8], "little")))


def _train_set(root: Path, name: str, settings: Suite, facts: list[dict[str, str]]) -> int:
    kind, rng = KINDS[kinds.TRAIN_SETS[name]], _random(settings, "train", name)
    archive, count = ImageZip(root / "images_zip" / f"{name}.zip"), 0
    plain: dict[str, list[str]] = {column: [] for column in TRAIN_COLUMNS}
    diverse: list[str] = []
    pngs: list[tuple[Row, bytes | None]] = []
    for number in range(settings.train_rows):
        row = kind.make(rng, "train", kind.phrasings[:1])
        candidate = None if row.positive.picture is None else png_of(row.positive.picture)
        if name == DUPLICATES and pngs and rng.random() < 0.25:
            earlier, candidate = pngs[rng.integers(len(pngs))]
            row = Row(makers.twin_query(rng, earlier.scene, kind.phrasings[0]), earlier.positive, earlier.scene)
        if name == DUPLICATES and len(pngs) < 1000:
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
    (root / name).mkdir(exist_ok=True)
    pl.DataFrame(plain).write_parquet(root / name / "original-00000-of-00001.parquet")
    pl.DataFrame({**plain, "qry": diverse}).write_parquet(root / name / "diverse_instruction-00000-of-00001.parquet")
    return count


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
