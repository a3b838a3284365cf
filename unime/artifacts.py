"""What lies between rooms: the schemas of all tables, whole-or-absent writing, content ids.

Everything is parquet, safetensors, JSON or CSV.  A file is written under a temporary name beside its place and renamed, so a file
that exists is whole.  Items are known by content id (text and image bytes), never by row number or path.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ITEMS = {"id": pl.String, "text": pl.String, "archive": pl.String, "member": pl.String, "image": pl.String}
"""Item: `archive` is a zip, tar or parquet file or a folder of images, `member` the name in it, and `image` a digest of the image file's
bytes, 32 hex digits; all three '' where it has no image."""

PAIRS = {"pair": pl.String, "dataset": pl.String, "row": pl.Int64, "query": pl.String, "positive": pl.String}
"""Training pair: `pair` is the content id of (dataset, query, positive); `row` is where the source first has it (for messages)."""

LABELS = {"query": pl.String, "positive": pl.String}
"""Labelled positive known from training rows that `data.cap` left out; query and positive both stand in PAIRS, but not as a pair."""

TASKS = {"task": pl.String, "row": pl.Int64, "query": pl.String, "candidates": pl.List(pl.String), "right": pl.Int64}
"""Evaluation query: candidates in the source's order (duplicates kept), `right` the index of the right one."""

CAPTION_QUERIES = {
    "task": pl.String,
    "row": pl.Int64,
    "query": pl.String,
    "right": pl.List(pl.String),
    "candidates": pl.List(pl.String),
    "part": pl.String,
}
"""Query of a caption set.  Retrieval: all of POOL are candidates and `candidates` is empty, `right` holds every right one, `part` is ''.
Compositional: `candidates` is [true caption, false caption], `part` the source's file (add_att ...).  `row` counts the source's queries
(images, or with t2i the captions), left-out ones included, so it is unique."""

POOL = {"id": pl.String}
"""The distinct candidates of a retrieval task, in the source's order; no row for a compositional task."""

HITS = {"pair": pl.String, "candidate": pl.String, "rank": pl.Int32, "similarity": pl.Float32}
"""Potential hard negative: rank from 0, best similarity first."""

POOLS = {
    "pair": pl.String,
    "pool": pl.Int64,
    "labelled": pl.Int64,
    "itself": pl.Int64,
    "delta": pl.Int64,
    "positive_similarity": pl.Float32,
}
"""Per pair: `pool` candidates of its set may be negatives of its query, and similarity >= delta removed `delta` of these.  Not in the pool
are the pair's positive, `labelled` further labelled positives of the query, and `itself` candidates that are the query or hold its picture.
`positive_similarity` is that of query and positive."""

JUDGEMENTS = {
    "pair": pl.String,
    "candidate": pl.String,
    "positive": pl.Boolean,
    "yes": pl.Float32,
    "no": pl.Float32,
    "score": pl.Float64,
}
"""One judged pair: raw logits of Yes and No at the first answer token and s = e_y / (e_y + e_n)."""

MINED = {
    "pair": pl.String,
    "dataset": pl.String,
    "query": pl.String,
    "positive": pl.String,
    "sigma": pl.Float64,
    "negatives": pl.List(pl.String),
    "scores": pl.List(pl.Float64),
    "ranks": pl.List(pl.Int32),
    "reasons": pl.List(pl.String),
}
"""Mined pair: n negatives with score, retrieval rank and why each is there (kept / repeated / fallback)."""

SCORES = {"task": pl.String, "model": pl.String, "metric": pl.String, "value": pl.Float64, "n": pl.Int64, "tie_rule": pl.String}
"""One figure of one model on one task; `value` is a share in [0, 1]."""

PREDICTIONS = {
    "task": pl.String,
    "model": pl.String,
    "row": pl.Int64,
    "query": pl.String,
    "predicted": pl.String,
    "right": pl.String,
    "correct": pl.Boolean,
    "top": pl.List(pl.String),
}
"""One query's answer by one model: the best candidates' ids, best first."""

TRUTH = {"id": pl.String, "dataset": pl.String, "side": pl.String, "facts": pl.String}
"""Embedded suite only, read by tests and reports: the true attributes (JSON) of an item on the `query` or `candidate` side."""


UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for a damaged file; a panic is a fault of its own that some damaged bytes reach, and no Exception to Python."""


class ArtifactError(ValueError):
    """An artifact is missing, torn, or not of its schema; the message names file, reason and remedy."""


def content_id(text: str, image: bytes | None) -> str:
    """32 hex digits that name an item by its text and its image's bytes (None: no image)."""
    return content_id_of(text, None if image is None else hashlib.sha256(image).digest())


def content_id_of(text: str, image_digest: bytes | None) -> str:
    """As `content_id`, from the SHA-256 digest of the image's bytes, so that an image shared by many items is hashed once."""
    digest = hashlib.sha256(text.encode("utf-8"))
    digest.update(b"\0" if image_digest is None else b"\1" + image_digest)
    return digest.hexdigest()[:32]


def image_id(digest: bytes | None) -> str:
    """The column `image` of an item whose image's bytes have this SHA-256 digest; '' without an image."""
    return "" if digest is None else digest.hex()[:32]


def pair_id(dataset: str, query: str, positive: str) -> str:
    """32 hex digits that name a training pair by its set and its two items."""
    return hashlib.sha256("\0".join((dataset, query, positive)).encode("utf-8")).hexdigest()[:32]


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary path (file or folder, up to the caller) that takes the place of `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            remove(path)
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_table(table: pl.DataFrame, path: str | Path, schema: dict[str, Any]) -> None:
    """Write a parquet file of exactly this schema.  Raises ArtifactError where the table has another one."""
    _check(table.schema, schema, path)
    with whole(path) as temporary:
        table.select(list(schema)).write_parquet(temporary, compression="zstd", statistics=False)


def read_table(path: str | Path, schema: dict[str, Any]) -> pl.DataFrame:
    """Read a parquet file and check its schema.  Raises ArtifactError naming file and column."""
    table = _reading(Path(path), pl.read_parquet)
    _check(table.schema, schema, path)
    return table.select(list(schema))


def read_tables(folder: str | Path, names: Sequence[str], file: str, schema: dict[str, Any]) -> pl.DataFrame:
    """`<folder>/<name>/<file>` of every name, one below the other.  Raises ArtifactError as `read_table`."""
    return pl.concat([pl.DataFrame(schema=schema), *(read_table(Path(folder) / name / file, schema) for name in names)])


def write_json(value: Any, path: str | Path) -> None:
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    return _reading(Path(path), lambda p: json.loads(p.read_text(encoding="utf-8")))


def write_vectors(folder: str | Path, ids: list[str], vectors: np.ndarray) -> None:
    """Write `vectors.safetensors` ("vectors": (N, D) float32 or float16, unit rows) and `ids.parquet` (N) into an existing folder."""
    from safetensors.numpy import save_file

    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise ArtifactError(f"{folder}: {len(ids)} ids for vectors of shape {vectors.shape}; one row per id is needed")
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(axis=1)).argmax())
        raise ArtifactError(f"{folder}: the vector of item {ids[bad]} is not finite; check the model's weights and dtype")
    folder = Path(folder)
    with whole(folder / "vectors.safetensors") as temporary:
        save_file({"vectors": np.ascontiguousarray(vectors)}, temporary)
    write_table(pl.DataFrame({"id": ids}, schema={"id": pl.String}), folder / "ids.parquet", {"id": pl.String})


def read_vectors(folder: str | Path) -> tuple[list[str], np.ndarray]:
    """The ids (N) and the vectors (N, D) of a folder; the vectors stay on disk until they are looked at, and cannot be written to.

    Raises ArtifactError where they do not fit together.
    """
    folder = Path(folder)
    ids = read_table(folder / "ids.parquet", {"id": pl.String})["id"].to_list()
    vectors = _reading(folder / "vectors.safetensors", _mapped)
    if len(ids) != len(vectors):
        raise ArtifactError(f"{folder}: {len(ids)} ids for {len(vectors)} vectors; delete the folder and run the stage again")
    return ids, vectors


def _mapped(path: Path) -> np.ndarray:
    """The tensor "vectors" of a safetensors file: eight bytes of length, a JSON header of that length, the numbers."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # checks the header and the file's size
            file.get_slice("vectors")
    except SafetensorError as error:
        raise ValueError(error) from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))["vectors"]
    kind = {"F32": np.float32, "F16": np.float16}[entry["dtype"]]
    return np.memmap(path, kind, mode="r", offset=8 + size + entry["data_offsets"][0], shape=tuple(entry["shape"]))


def _reading(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.exists():
        raise ArtifactError(f"{path}: no such file; run the stage that writes it")
    if not path.is_file():
        raise ArtifactError(f"{path}: not a file but a folder, FIFO or device; delete it and run its stage again")
    try:
        return read(path)
    except (*UNREADABLE, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); delete it and run its stage again") from error


def check(table: pl.DataFrame, schema: dict[str, Any], path: str | Path) -> None:
    """Raise ArtifactError, naming `path` and the column, where the table lacks a column of the schema or has another type."""
    _check(table.schema, schema, path)


def _check(found: Any, schema: dict[str, Any], path: str | Path) -> None:
    for column, kind in schema.items():
        if column not in found:
            raise ArtifactError(f"{path}: column {column!r} is missing; found {', '.join(found)}")
        if found[column] != kind:
            raise ArtifactError(f"{path}: column {column!r} is {found[column]}, needed {kind}")
