"""Fetch one model's weights, or an adapter's."""

from __future__ import annotations

from typing import Any

from unime.config import View
from unime.door import Door
from unime.doors._fetch import fetched


def request(config: View, item: str) -> Any:
    from unime.fetch import sources

    asked = config.fetch.models[item]
    return sources.model(asked.repo, revision=asked.revision)


DOOR = Door(
    sections=("fetch.copies", "fetch.models.{key}"),
    inputs=(),
    outputs=("models/{key}",),
    items="fetch.models",
    run=fetched(request),
    online=True,
)
