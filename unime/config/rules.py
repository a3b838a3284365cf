"""Mining rules without a judge, as `mine.rules` names them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unime.config.types import Positive, Section


class Rule(Section):
    rule: Literal["random", "top_k", "margin", "percent"] = Field(
        description="which retrieved candidates may be negatives.  random: any, in a seeded order; top_k: all, the most similar first; "
        "margin: those with similarity < the positive's - margin; percent: those with similarity < share x the positive's"
    )
    margin: Annotated[float, Field(ge=-2, le=2)] | None = Field(default=None, description="of the rule margin, a difference of cosines")
    share: Annotated[float, Field(gt=0, le=2)] | None = Field(
        default=None, description="of the rule percent; NV-Retriever's TopK-PercPos has 0.95"
    )
    interval: Positive | None = Field(
        default=None, description="every interval-th of these is taken; null: as mine.interval; 1: the first ones, as in NV-Retriever"
    )

    @model_validator(mode="after")
    def _has_what_its_rule_reads(self) -> Rule:
        reads = {"random": (), "top_k": ("interval",), "margin": ("margin", "interval"), "percent": ("share", "interval")}[self.rule]
        for key in ("margin", "share", "interval"):
            value = getattr(self, key)
            if value is None and key in reads and key != "interval":
                raise ValueError(f"the rule {self.rule!r} needs {key!r}")
            if value is not None and key not in reads:
                raise ValueError(f"the rule {self.rule!r} does not read {key!r} (found {value}); take it out")
        return self
