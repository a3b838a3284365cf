"""Batches that are larger than their training table: found by counting rows, before anything is computed.  No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from unime import artifacts
from unime.config import Config, settings_of
from unime.config.sections import NANO
from unime.config.training import Optimizer
from unime.data.rows import DataError
from unime.plan import counts, raw


class Rows(NamedTuple):
    """At most so many training rows in all sets together, and where they were counted."""

    count: int
    place: str


def problems(config: Config, read: bool = True, tables: Path = counts.TRAIN) -> dict[str, str]:
    """What to say of each training whose batch is larger than the number of training rows, by the name of its stage.

    Rows are counted in the tables of the data stages where these are there, unless `read` says that they are of other rows than
    data.root holds now; else in the files below data.root.  There is nothing to say while a set is nowhere yet: it is still to be fetched.
    """
    rows = counted(config, read, tables)
    found: dict[str, str] = {}
    if rows is None:
        return found
    for stage, key, settings in trainings(config):
        batch = settings.resolved(rows.count).batch
        if batch > rows.count:
            found[stage] = told(key, batch, rows, config)
    return found


def of_the_run(found: dict[str, str]) -> dict[str, str]:
    """Those of `problems` that a whole run meets: ablations are trained on request alone, and may ask for more rows than it has."""
    return {stage: why for stage, why in found.items() if not stage.startswith("ablation_train")}


def told(key: str, batch: int, rows: Rows, config: Config) -> str:
    """Key, value, bound and remedy."""
    names = ", ".join(config.data.train_sets[:3]) + (", ..." if len(config.data.train_sets) > 3 else "")
    remedy = f"set it to {rows.count:,} or less, or to {{max: {batch}}}, which takes all rows where there are fewer, or add rows"
    if rows.count >= config.data.cap:
        remedy += f"; data.cap keeps {config.data.cap:,} rows of a set"
    return f"{key} is {batch:,}, and data.train_sets ({names}) have {rows.count:,} rows at most, counted in {rows.place}; {remedy}"


def trainings(config: Config) -> Iterator[tuple[str, str, Optimizer]]:
    """Name of the stage, key of the batch, and settings of each training of the configuration, ablations included."""
    for kind in counts.TRAININGS:
        settings: Optimizer = getattr(config.train, kind)
        yield f"train_{kind}", f"train.{kind}.batch", settings
    for name, variant in config.ablations.embedders.items():
        settings = getattr(config.train, variant.loss)
        own = "batch" in variant.changes
        key = f"ablations.embedders.{name}.batch" if own else f"train.{variant.loss}.batch"
        yield f"ablation_train@{name}", key, settings_of(variant, settings)


def counted(config: Config, read: bool, tables: Path = counts.TRAIN) -> Rows | None:
    """Training rows of all sets together; None where a set is nowhere yet, or its rows cannot be counted."""
    total = 0
    places: dict[str, None] = {}
    for name in config.data.train_sets:
        table = tables / name / "pairs.parquet"
        if read and table.exists():
            count = len_of(table)
            places[str(tables)] = None
        else:
            count = raw_rows(config, name)
            places[config.data.root] = None
        if count is None:
            return None
        total += min(count, config.data.cap)
    return Rows(total, " and ".join(places))


def raw_rows(config: Config, name: str) -> int | None:
    """Rows of a set below data.root; None where its files are not there or are damaged, which its data stage explains."""
    try:
        found = raw.training_rows(config.data, name)
    except (DataError, OSError):
        return None
    if found is None and config.data.root == NANO:
        return config.nano.suite.train_rows
    return found


def len_of(table: Path) -> int | None:
    """Rows of a parquet file, by its metadata; None where it cannot be read."""
    try:
        return pl.scan_parquet(table, glob=False).select(pl.len()).collect().item()
    except artifacts.UNREADABLE:
        return None
