"""Fetch one set of MMEB-train: its rows and its images."""

from __future__ import annotations

from typing import Any

from unime.config import View
from unime.door import Door
from unime.doors._fetch import fetched


def request(config: View, item: str) -> Any:
    from unime.fetch import sources

    return sources.mmeb_train(item, instructions=config.data.instructions, revision=config.fetch.revisions["MMEB-train"])


DOOR = Door(
    sections=("data.root", "data.instructions", "fetch.copies", "fetch.revisions.MMEB-train"),
    inputs=(),
    outputs=("{data.root}/train/{item}",),
    items="fetch.train_sets",
    run=fetched(request),
    online=True,
)
