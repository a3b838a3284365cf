"""The experiment's configuration: typed, explained, refused with a reason when wrong.

config.yaml holds the values, the models below hold the types and the bounds.  Every message names the key, the value, the bound
and, for a key that nobody knows, the nearest one that exists.  A room never sees the whole configuration: it gets a `view` of the
sections that its door declares, which are also the parameters of its stage, so no room can depend on a value that its stage does
not record.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from unime.config import sections
from unime.config.files import UnreadableConfig, read_values
from unime.config.judges import JUDGED
from unime.config.rules import Rule
from unime.config.sections import Pretrain, Suite
from unime.config.types import BRANCH, is_folder, nearest
from unime.config.variants import Variant, settings_of

__all__ = [
    "JUDGED",
    "Config",
    "ConfigError",
    "Pretrain",
    "Rule",
    "Suite",
    "Variant",
    "View",
    "at",
    "keys_of",
    "load",
    "nearest",
    "parse",
    "settings_of",
]


class ConfigError(ValueError):
    """The configuration asks for something that cannot be; the message names key, value, bound and remedy."""


class Config(sections.Experiment):
    """The whole configuration."""

    def view(self, sections: tuple[str, ...]) -> View:
        """The part of the configuration that a door declares, e.g. ("seed", "train.lora"); which section `judge.{judge.backend}` is, the
        value of judge.backend says."""
        return View(self, tuple(re.sub(r"\{([^{}]+)\}", lambda found: str(at(self, found[1])), section) for section in sections))


class View:
    """Read-only window on some sections; anything else is an AttributeError, so a stage's parameters are complete."""

    def __init__(self, config: Any, sections: tuple[str, ...]):
        self._config, self._sections = config, sections

    def __getattr__(self, name: str) -> Any:
        sections = self.__dict__["_sections"]
        if name in sections:
            return at(self._config, name)
        below = tuple(s[len(name) + 1 :] for s in sections if s.startswith(name + "."))
        if below:
            return View(at(self._config, name), below)
        raise AttributeError(f"this room does not declare the section {name!r}; it declares {', '.join(sections)}")

    def __getitem__(self, name: str) -> Any:
        """As an attribute, for the names of a mapping."""
        return getattr(self, name)

    def dump(self) -> dict[str, Any]:
        """Plain values by dotted section name, for digests and model cards."""
        found: dict[str, Any] = {}
        for section in self._sections:
            found[section] = _plain(at(self._config, section))
        return found


def at(values: Any, dotted: str) -> Any:
    """The value of a dotted key, through sections and mappings."""
    for part in dotted.split("."):
        values = values[part] if isinstance(values, Mapping) else getattr(values, part)
    return values


def keys_of(values: BaseModel, path: str, above: str = "") -> list[str]:
    """The dotted keys that name this folder or one above it, e.g. ["models.base", "models.judge"]; only keys whose type is a folder."""
    found: list[str] = []
    for name, field in type(values).model_fields.items():
        folder = is_folder(field.annotation, field.metadata)
        found += _keys_in(getattr(values, name), folder, path, f"{above}.{name}" if above else name)
    return found


def _keys_in(value: Any, folder: bool, path: str, key: str) -> list[str]:
    """As keys_of, in the value of one key; `folder`: whether its type is a folder, or a mapping to folders."""
    if isinstance(value, BaseModel):
        return keys_of(value, path, key)
    found: list[str] = []
    if isinstance(value, Mapping):
        for name, one in value.items():
            found += _keys_in(one, folder, path, f"{key}.{name}")
    elif folder and value is not None and (path == value or path.startswith(f"{value}/")):
        found.append(key)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def load(path: str | Path = "config.yaml") -> Config:
    """Read and check a configuration file.  Raises ConfigError with one line per problem."""
    path = Path(path)
    try:
        raw = read_values(path)
    except UnreadableConfig as problem:
        raise ConfigError(f"{path}: {problem}") from None
    return parse(raw, str(path))


def parse(raw: Any, source: str = "config") -> Config:
    """Check plain values against the models.  Raises ConfigError with one line per problem."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: a mapping of sections is needed, found {type(raw).__name__}")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _explain(problem: Any) -> str:
    parts = [str(part) for part in problem["loc"]]
    key = ".".join(part for part in parts if not part.startswith(BRANCH)) or "config"
    value, kind = problem.get("input"), problem["type"]
    if kind == "extra_forbidden":
        names = list(_model_at(problem["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1, cutoff=0.4)
        hint = f"nearest: {near[0]!r}" if near else f"known: {', '.join(names)}"
        return f"{key}: unknown key ({hint})"
    if kind == "missing":
        return f"{key}: missing; config.yaml in the repository shows every key"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "), n=1)
        return f"{key}: {_shown(value)} is not one of {problem['ctx']['expected']}" + (f"; nearest: {near[0]!r}" if near else "")
    remedy = ""
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        remedy = " (YAML reads 1e-4 as text: write 1.0e-4)" if "e" in value.lower() else " (write the number without quotes)"
    shown = "" if kind == "value_error" else f"{_shown(value)}: "
    return f"{key}: {shown}{problem['msg'].removeprefix('Value error, ')}{remedy}"


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long or deep."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def _model_at(loc: tuple[Any, ...]) -> type[BaseModel]:
    found: Any = Config
    for part in loc:
        inside = get_args(found)  # of a mapping: (name, value)
        found = inside[-1] if inside else found.model_fields[part].annotation
    return found
