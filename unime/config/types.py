"""What the sections of config.yaml are made of."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST = 2**31 - 1
"""The largest count: 32-bit integers hold row numbers and token counts in polars, faiss and torch."""

LONGEST_NAME = 100
"""Characters of a name: file systems take names of 255 bytes, and marks and temporary files add theirs."""

LONGEST_PART, LONGEST_PATH = 255, 2048
"""Bytes of one name and of a whole path in UTF-8: file systems take 255, Linux takes 4,096, and files lie below the folder."""

REFUSED = {
    "{": "Snakemake reads braces as a wildcard",
    "}": "Snakemake reads braces as a wildcard",
    "<": "Snakemake reads <name> as a path of its own",
    "$": "a shell fills in what follows it and the pipeline does not, so write the path itself",
    "*": "the reader of tables takes it for a pattern",
    "?": "the reader of tables takes it for a pattern",
    "[": "the reader of tables takes it for a pattern",
    "`": "a shell runs what follows it and the pipeline does not, so write the path itself",
}
"""Characters that no path may have -> why.  Every other printable one, in every script, passes through Snakemake, DVC and the
readers of files unchanged (tests/test_paths.py runs both)."""

UNPRINTABLE = {"Cc": "a control character", "Zl": "a line separator", "Zp": "a paragraph separator", "Cs": "half of a character"}
"""Unicode categories that no path may have -> what their characters are: messages and logs are lines."""

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

BRANCH = "form: "
"""How the names begin of the forms that a setting may have (a number, a section); they are no part of its key."""

WRITTEN = ("results", "logs", "scratch", ".dvc", ".git", ".snakemake")
"""Folders that the pipeline, or one of its tools, writes."""


def one_path(path: str) -> str:
    """The path of a folder, if it is written in the one way in which DVC, Snakemake and this package all know it.  Raises ValueError.

    It lies in the project, or anywhere else if it begins with / or with ../ (a folder beside the project).
    """
    if not path:
        raise ValueError("'' is no path; name a folder")
    if len(path.encode(errors="replace")) > LONGEST_PATH:
        raise ValueError(f"{path[:40]!r}... has {len(path):,} characters; paths of up to {LONGEST_PATH:,} bytes are possible")
    for sign in path:
        reason = REFUSED.get(sign)
        kind = UNPRINTABLE.get(unicodedata.category(sign))
        if kind:
            reason = f"{kind} would break the lines of logs and messages"
        if reason:
            raise ValueError(f"{path!r} has {sign!r} in it: {reason}; rename the folder, or name a link to it")
    _check_parts(path)
    if SCHEME.match(path):
        raise ValueError(f"{path!r} begins with a name and a colon, which DVC reads as the address of a server; rename the folder")
    if path.startswith("~"):
        raise ValueError(f"{path!r} begins with '~', which only a shell knows; write the home folder's own path, from /")
    if path != path.strip():
        raise ValueError(f"{path!r} has a blank before or after it, which Snakemake warns of; take it out, or rename the folder")
    name = path.rpartition("/")[2]
    if name == "dvc.yaml" or name.endswith(".dvc"):
        raise ValueError(f"{path!r} has the name of one of DVC's own files; rename the folder, or name a link to it")
    return path


def _check_parts(path: str) -> None:
    """Raise ValueError for a name between two slashes that is none, or for a path back into the project."""
    parts = path.removeprefix("/").split("/")
    if "" in parts:
        raise ValueError(f"{path!r} has an empty part; write one slash between two names, and none at the end")
    inside = parts.copy()
    while inside[0] == ".." and len(inside) > 1 and not path.startswith("/"):
        inside.pop(0)
    for part in inside:
        if part in (".", ".."):
            raise ValueError(f"{path!r} has a part {part!r}; write the folder's own path, from the project's root, / or ../")
    for part in parts:
        if len(part.encode(errors="replace")) > LONGEST_PART:
            raise ValueError(f"{path[:40]!r}... has a name of {len(part)} characters; names of up to {LONGEST_PART} bytes are possible")
    if parts == inside:
        return
    own = os.path.relpath(path)
    if own.split("/")[0] != "..":
        raise ValueError(f"{path!r} lies in the project; write its path from the project's root: {own!r}")
    if own != path:
        raise ValueError(f"{path!r} goes further up than it needs to; write {own!r}")


def own_folder(path: str) -> str:
    """The path, if it is one of a folder that the user fills.  Raises ValueError."""
    first = one_path(path).split("/")[0]
    if first in WRITTEN:
        raise ValueError(f"{path!r} lies in {first}/, which the pipeline writes; choose another folder")
    return path


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=LONGEST_NAME)]  # a dot would split it as a key
Folder = Annotated[str, AfterValidator(one_path)]
OwnFolder = Annotated[str, AfterValidator(own_folder)]
FOLDER_CHECKS = (AfterValidator(one_path), AfterValidator(own_folder))
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy's generators take
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Rate = Annotated[float, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0.0001, le=100)]  # below it, exp(cosine / tau) of float32 knows the largest cosine only
PromptFormat = Literal["unime", "public"]
Side = Annotated[int, Field(ge=0, le=16384, description="pixels; images are squashed to this side first; 0 leaves them as they are")]


def is_folder(declared: Any, metadata: Iterable[Any] = ()) -> bool:
    """Whether a declared type is Folder or OwnFolder, or has one in it, as `Folder | None` and `dict[Name, Folder]` have."""
    parts = [*metadata, *get_args(declared)]
    return any(part in FOLDER_CHECKS or is_folder(part) for part in parts)


class Section(BaseModel):
    """Unknown keys, other types and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: 'X'` for messages about an unknown name, or the known names where none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; nearest: {near[0]!r}" if near else f"; known: {', '.join(names)}"
