"""What jobs ask of the machine or of the cluster.  No stage reads this section, so changing it makes no artifact stale."""

from __future__ import annotations

from pydantic import Field, model_validator

from unime.config.types import Positive, Section

DEFAULT = "default"
"""What holds for the rules that a table does not name."""


class Parts(Section):
    embed_train: Positive = Field(description="jobs that embed a training set's shards side by side")
    judge: Positive = Field(description="jobs that judge a training set's shards side by side")


class Jobs(Section):
    parts: Parts
    memory: dict[str, Positive] = Field(description="rule -> MB of main memory of a node; each further attempt asks for twice as much")
    minutes: dict[str, Positive] = Field(description="rule -> minutes that a job may take; each further attempt may take twice as long")
    longest: Positive = Field(description="minutes, the cluster's limit: no attempt asks for more")

    @model_validator(mode="after")
    def _default_is_given(self) -> Jobs:
        for name in ("memory", "minutes"):
            if DEFAULT not in getattr(self, name):
                raise ValueError(f"{name} lacks {DEFAULT!r}, which holds for the rules that it does not name")
        for rule, asked in self.minutes.items():
            if asked > self.longest:
                raise ValueError(f"minutes.{rule} {asked} must be at most longest {self.longest}")
        return self
