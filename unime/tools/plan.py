"""Say what a run will process, stage by stage, and about how long it will take: `python -m unime plan`."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

ESTIMATE = "time in s or h:mm, estimated: jobs of one stage side by side, stages one after the other, without what DVC adds to a job"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calibrate", type=float, default=20.0, metavar="SECONDS", help="of measuring, in all (default: 20)")
    parser.add_argument("--no-calibrate", action="store_true", help="counts and tokens only; no weights are loaded")
    parser.add_argument(
        "--rate", action="append", default=[], metavar="STAGE=N", help="tokens a second of a row, of a machine that is not this one"
    )
    parser.add_argument("--item-tokens", type=int, metavar="N", help="tokens of an item, for rows whose model or data are not there yet")
    parser.add_argument("--stale", action="store_true", help="only what would run now: the stages that DVC calls stale, and those below")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there too")


def run(given: argparse.Namespace, values: Any) -> str:
    """The plan as a text table.  Tables are read from results/, nothing is written but `--json`.

    With `--stale` DVC is asked what would run now.  Raises ValueError for a rate or a number that cannot be, for an item that is longer
    than models.max_length, and for a batch larger than its training table.
    """
    begun = time.monotonic()
    if not 0 < given.calibrate < math.inf:
        raise ValueError(f"--calibrate {given.calibrate}: more than 0 seconds are needed; --no-calibrate measures nothing")
    if given.json is not None and given.json.is_dir():
        raise ValueError(f"--json {given.json}: a folder; name a file")
    if given.json is not None and given.json.exists() and not given.json.is_file():
        raise ValueError(f"--json {given.json}: a pipe or a device, which a file would take the place of; name a file")
    if given.item_tokens is not None and given.item_tokens < 1:
        raise ValueError(f"--item-tokens {given.item_tokens}: an item has 1 token or more")
    rated = dict(map(rate, given.rate))
    from unime import artifacts
    from unime.plan import fits, table
    from unime.plan import stale as dvc
    from unime.plan.estimate import Estimate, Options

    stale = None
    if given.stale:
        if given.config.resolve() != Path("config.yaml").resolve():
            raise ValueError(f"--stale with --config {given.config}: DVC reads config.yaml; copy {given.config} there first")
        stale = dvc.stages(values.data.root)
        values = dvc.reduced(values, stale)
        if not stale:
            return "nothing is stale: nothing would run"
    too_large = fits.of_the_run(fits.problems(values, read=stale is None or "filter_train" not in stale))
    if too_large:
        raise ValueError("\n".join(too_large.values()))
    options = Options(0.0 if given.no_calibrate else given.calibrate, rated, given.item_tokens, begun, stale)
    estimate = Estimate(values, options)
    rows = estimate.rows()
    estimate.notes.update(dict.fromkeys(dvc.notes(stale or ())))
    if given.json is not None:
        artifacts.write_json(table.values(rows, estimate.notes), given.json.resolve())  # of a link the file behind it
    return table.text(rows, estimate.notes, ESTIMATE)


def rate(text: str) -> tuple[str, float]:
    """`judge=12000` as ("judge", 12000.0).  Raises ValueError with the form that is needed."""
    stage, _, number = text.partition("=")
    try:
        found = float(number)
    except ValueError:
        found = math.nan
    if not stage or not 0 < found < math.inf:
        raise ValueError(f"--rate {text!r}: needed <stage>=<tokens a second>, a number above 0, e.g. judge=12000")
    return stage, found
