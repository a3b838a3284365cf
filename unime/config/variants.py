"""Embedders that differ from the run's own, for the ablations: `ablations.embedders`, name -> Variant."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unime.config.types import Name, Section, nearest

Settings = TypeVar("Settings", bound=BaseModel)


class Variant(Section):
    """An embedder trained as `train.<loss>` says, but for the settings that are named here.  Which ones there are, that section says."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, protected_namespaces=())

    loss: Literal["unime_v2", "hard_negatives", "in_batch"] = Field(
        description="how it is trained, and which section of train it starts from; no default, because DVC reads it from the file"
    )
    source: str = Field(
        description="judge, or a name of judge.models, judge.means, fetch.scores or mine.rules: whose negatives.  in_batch reads none, but "
        "its stage depends on these too"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_its_loss(cls, values: Any) -> Any:
        if isinstance(values, dict) and "loss" not in values:
            raise ValueError("loss is missing; write loss: unime_v2, loss: hard_negatives or loss: in_batch")
        return values

    @property
    def changes(self) -> dict[str, Any]:
        """The settings of train.<loss> that it changes."""
        return dict(self.model_extra or {})


class Ablations(Section):
    embedders: dict[Name, Variant] = Field(description="embedders that differ from the run's own, by name")


def settings_of(variant: Variant, section: Settings) -> Settings:
    """The section `train.<loss>` with the variant's changes.  Raises pydantic's ValidationError for a change that the section refuses."""
    return type(section).model_validate(section.model_dump() | variant.changes)


def check_variant(
    where: str, variant: Variant, section: BaseModel, *, sources: Collection[str], rules: Collection[str], negatives: int
) -> None:
    """Raise ValueError, naming the key below `where`, for an unknown source or a setting that train.<loss> (`section`) refuses.

    `sources` are all that `source` may name, `rules` those of them that no judge scored; `negatives` is mine.negatives.
    """
    if variant.source not in sources:
        raise ValueError(f"{where}.source {variant.source!r} is unknown{nearest(variant.source, sources)}")
    if variant.source in rules and variant.loss == "unime_v2":
        raise ValueError(
            f"{where}.source {variant.source!r} is one of mine.rules, which give no scores, and the loss unime_v2 reads scores; "
            "set loss: hard_negatives"
        )
    try:
        settings = settings_of(variant, section)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = list(type(section).model_fields)
            raise ValueError(f"{where}.{key}: train.{variant.loss} has no such setting{nearest(key, known)}") from None
        message = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}.{key} {problem['input']!r}: {message}" if key else f"{where}: {message}") from None
    k = getattr(settings, "negatives", 0)
    if k > negatives:
        raise ValueError(f"{where}.negatives {k} must be at most mine.negatives {negatives}")
