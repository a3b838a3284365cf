"""What the sections of config.yaml are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST = 2**31 - 1
"""The largest count: 32-bit integers hold row numbers and token counts in polars, faiss and torch."""

LONGEST_NAME = 100
"""Characters of a name: file systems take names of 255 bytes, and marks and temporary files add theirs."""

PATH_SIGNS = "/._-+=@ "
"""What may stand in a path beside letters and digits: the rest means something to a shell, to Snakemake or to DVC."""

BRANCH = "form: "
"""How the names begin of the forms that a setting may have (a number, a section); they are no part of its key."""

WRITTEN = ("results", "logs", "scratch", ".dvc", ".git", ".snakemake")
"""Folders that the pipeline, or one of its tools, writes."""


def one_path(path: str) -> str:
    """The path, if it is written in the one way in which DVC, Snakemake and this package all know it.  Raises ValueError."""
    parts = path.removeprefix("/").split("/")
    if not path:
        raise ValueError("'' is no path; name a folder")
    if "" in parts:
        raise ValueError(f"{path!r} has an empty part; write one slash between two names, and none at the end")
    for part in parts:
        if part in (".", ".."):
            raise ValueError(f"{path!r} has a part {part!r}; write the folder's own path, from the repository's root or from /")
        if len(part) > LONGEST_NAME:
            raise ValueError(f"{path[:40]!r}... has a name of {len(part)} characters; {LONGEST_NAME} at most are possible")
        if part != part.strip():
            raise ValueError(f"{path!r} has a blank before or after a name; take it out")
    for sign in path:
        if not sign.isalnum() and sign not in PATH_SIGNS:
            raise ValueError(f"{path!r} has {sign!r} in it; a path is made of letters, digits, blanks and {PATH_SIGNS.strip()}")
    return path


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
