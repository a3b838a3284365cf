"""What the doors that read raw data share."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def source(folder: Path) -> dict[str, Any]:
    """{"source": which repositories at which commits} of a fetched folder, to stand in a report; nothing for any other folder."""
    from unime import artifacts

    if not (folder / "source.json").exists():
        return {}
    record = artifacts.read_json(folder / "source.json")
    parts = [{key: part[key] for key in ("repository", "commit", "licence")} for part in record["parts"]]
    return {"source": {"source": record["source"], "parts": parts}}
