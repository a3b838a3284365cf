"""What the sections of config.yaml are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # of a folder and of a stage; a dot would split it as a key
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
PromptFormat = Literal["unime", "public"]
Side = Annotated[int, Field(ge=0, description="pixels; images are squashed to this side first; 0 leaves them as they are")]


class Section(BaseModel):
    """Unknown keys, other types and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: 'X'` for messages about an unknown name, or the known names where none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; nearest: {near[0]!r}" if near else f"; known: {', '.join(names)}"
