"""Fetch one judge's published scores."""

from __future__ import annotations

from typing import Any

from unime.config import View
from unime.door import Door
from unime.doors._fetch import fetched


def request(config: View, item: str) -> Any:
    from unime.fetch import sources

    return sources.published_scores(config.fetch.scores[item], revision=config.fetch.revisions.scores)


DOOR = Door(
    sections=("fetch.copies", "fetch.revisions.scores", "fetch.scores.{key}"),
    inputs=(),
    outputs=("data/scores/{key}",),
    items="fetch.scores",
    run=fetched(request),
    online=True,
)
