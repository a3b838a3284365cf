"""What the doors that fetch share: a request in; a folder with source.json out, from the user's copies or from the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unime.config import View
from unime.door import final
from unime.job import Job

Run = Callable[[View, Job, list[Path], list[Path]], str]


def fetched(request: Callable[[View, str], Any]) -> Run:
    """`run` of a door that fetches `request(config, item)`."""

    def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
        from unime.fetch.run import fetch, summary

        asked = request(config, str(job.item))
        copies, before = config.fetch.copies, final(outputs[0])
        record = fetch(asked, outputs[0], scratch=job.scratch, track=job.track, log=job.log, copies=copies, before=before)
        return summary(record)

    return run
