"""Fetch one caption benchmark."""

from __future__ import annotations

from typing import Any

from unime.config import View
from unime.door import Door
from unime.doors._fetch import fetched

NAMES = {"Flickr30K": "flickr30k", "COCO": "coco", "Urban1K": "urban1k", "ShareGPT4V": "sharegpt4v", "SugarCrepe": "sugar_crepe"}


def request(config: View, item: str) -> Any:
    from unime.fetch import sources

    return sources.crossmodal(NAMES.get(item, item), revision=config.fetch.revisions[item])


DOOR = Door(
    sections=("data.root", "fetch.copies", "fetch.revisions.{item}"),
    inputs=(),
    outputs=("{data.root}/crossmodal/{item}",),
    items="fetch.crossmodal",
    run=fetched(request),
    online=True,
)
