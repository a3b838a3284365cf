"""The engine that a judge runs on, by its name in the config; only that one's packages are imported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from unime.data.items import Items
from unime.judge import Backend


def open_backend(settings: Any, folder: str | Path, items: Items, *, models: Any, log: logging.Logger) -> Backend:
    """The judge of `settings.backend` on a model folder.

    `settings` is the config's section `judge` and `models` the one of that name.  Only the chosen backend's module is imported: each has
    an environment of its own (envs/judge-*.yaml).  Raises ValueError for an unknown backend, ModelError for a damaged folder.
    """
    if settings.backend == "transformers":
        from unime.judge.transformers_backend import open_judge
    elif settings.backend == "vllm":
        from unime.judge.vllm_backend import open_judge
    elif settings.backend == "openai":
        from unime.judge.openai_backend import open_judge
    else:
        raise ValueError(f"judge.backend {settings.backend!r} is not known; known: 'transformers', 'vllm', 'openai'")
    return open_judge(folder, items, settings, models=models, log=log)
