"""Small data in the published layout, to be damaged by tests."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from unime.data import mmeb
from unime.data.images import Decoding
from unime.job import Job

MARK = "<|image_1|>\n"
LIMIT = Decoding(10_000)


def png(seed: int, size: tuple[int, int] = (28, 28)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def job(folder: Path) -> Job:
    return Job(item=None, threads=2, scratch=folder / "scratch", log=logging.getLogger("test"))


def read_sets(root: Path, names: list[str], instructions: str, cap: int, seed: int, decoding: Decoding, bad_rows: str, job: Job):
    """Some training sets as one: (ITEMS, PAIRS, [report])."""
    found = [mmeb.read_train(str(root), name, instructions, cap, seed, decoding, bad_rows, job) for name in names]
    items = pl.concat([items for items, _, _, _ in found]).unique("id", keep="first", maintain_order=True).sort("id")
    return items, pl.concat([pairs for _, pairs, _, _ in found]), [report for _, _, report, _ in found]


def train_set(root: Path, name: str, rows: list[tuple[str, str, str, str]], members: dict[str, bytes], stem: str = "original") -> Path:
    """Rows (qry, qry_image_path, pos_text, pos_image_path) and an archive with these members; gives the parquet file's path."""
    columns = ["qry", "qry_image_path", "pos_text", "pos_image_path"]
    file = root / "train" / name / f"{stem}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row").write_parquet(file)
    zipped(root / "train" / name / "images.zip", members)
    return file


def task(root: Path, name: str, rows: list[tuple[str, str, list[str] | None, list[str] | None]]) -> Path:
    """Rows (qry_text, qry_img_path, tgt_text, tgt_img_path); gives the parquet file's path."""
    schema = {"qry_text": pl.String, "qry_img_path": pl.String, "tgt_text": pl.List(pl.String), "tgt_img_path": pl.List(pl.String)}
    file = root / "eval" / name / "test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(file)
    return file


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path
