"""Fetch MMEB-eval: the tasks that are asked for, and the images of all."""

from __future__ import annotations

from typing import Any

from unime.config import View
from unime.door import Door
from unime.doors._fetch import fetched


def request(config: View, item: str) -> Any:
    from unime.evaluate.tasks import task
    from unime.fetch import sources

    asked = [name for name in config.evaluate.tasks if task(name).suite == "mmeb"]
    return sources.mmeb_eval(asked, revision=config.fetch.revisions["MMEB-eval"])


DOOR = Door(
    sections=("data.root", "evaluate.tasks", "fetch.copies", "fetch.revisions.MMEB-eval"),
    inputs=(),
    outputs=("{data.root}/eval",),
    items="fetch.eval",
    run=fetched(request),
    online=True,
)
