"""The plan: counts, tokens, rates and seconds of every stage, and what could not be known.

What a stage computes comes from `counts` and `tokens`, how fast from `rates`, or from the user: a given rate is of a whole machine.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from unime import artifacts, backbones
from unime.backbones import Backbone
from unime.data.images import Decoding
from unime.data.items import Items
from unime.evaluate.tasks import EMBEDDERS, rerank_image_size
from unime.plan import counts, lists, rates, tokens
from unime.plan.counts import Work
from unime.plan.rates import Rate
from unime.plan.tokens import Load, Sizes

INSTRUCTION = 64
"""Tokens of the judge's and of the list's instruction with the chat template, about; used where prompts cannot be counted."""

POOL = 20000
"""Random candidates that the search is timed on, at most."""

SHARES = {"retrieve": 0.5, "mine": 0.25, "train": 2}
"""Of the time for measuring; 1 for all others."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Row(NamedTuple):
    """A stage as it is shown.  `tokens` is None where there are none or none are known, `plain` are the judge's with one pair a sequence.
    `rate` is tokens (without tokens: counts) a second, `timed` is measured, given, or '' where nothing is known."""

    stage: str
    what: str
    count: int | None
    source: str
    tokens: float | None = None
    plain: float | None = None
    seconds: float | None = None
    rate: float | None = None
    timed: str = ""
    sample: str = ""


class Options(NamedTuple):
    """`seconds` of measuring in all, 0 for none; `given` rates by stage; tokens of an item where prompts cannot be counted; `begun`, when
    this process started to import; the `stale` stages, where no other is to be counted."""

    seconds: float = 0.0
    given: Mapping[str, float] = {}
    item_tokens: int | None = None
    begun: float | None = None
    stale: Collection[str] | None = None


class Estimate:
    """Rows and `notes` of one configuration, whose tables are below `train` and `evaluation`."""

    def __init__(self, config: Any, options: Options, train: Path = counts.TRAIN, evaluation: Path = counts.EVAL) -> None:
        self.config, self.options, self.train, self.evaluation = config, options, train, evaluation
        self.imports = 0.0 if options.begun is None else time.monotonic() - options.begun
        self.work = counts.work(config, train, evaluation, options.stale)
        sets = counts.train_sets(config, train)
        self.sets, self.pairs = [one for one in sets if one.counted], counts.pairs_of(sets)
        self.notes: dict[str, None] = dict.fromkeys(counts.lengths(config, sets))
        self._absent: dict[str, None] = {}
        self._sizes: dict[tuple[Any, ...], Sizes] = {}
        self._items: dict[tuple[Path, tuple[str, ...]], Items] = {}
        self._rates: dict[Any, Rate | None] = {}
        settings, models = config.train, config.models
        most = settings.reranker.max_tokens
        self.models = {  # folder, image_size, max_tokens
            "embed_train": (config.embed.model, config.embed.image_size, None),
            "judge": (models.judge, config.judge.image_size, None),
            **{f"train_{kind}": (models.base, settings.image_size, None) for kind in ("in_batch", "hard_negatives", "unime_v2")},
            "train_reranker": (models.reranker, settings.reranker.image_size, most),
            **dict.fromkeys(("evaluate_reranker", "crossmodal_reranker"), (models.reranker, rerank_image_size(config), most)),
            **dict.fromkeys(("evaluate", "crossmodal"), (models.base, config.evaluate.image_size, None)),
        }
        if config.mine.source == counts.JUDGED and (whose := config.mine.judgements) != "results/judge":
            self.notes[f"mine.judgements is {whose!r}: the row judge is models.judge; each further judge reads as many pairs"] = None
        if unknown := sorted(options.given.keys() - {one.stage for one in self.work}):
            known = ", ".join(one.stage for one in self.work)
            raise ValueError(f"--rate {unknown[0]}: no such row in this plan; its rows: {known}")

    def rows(self) -> list[Row]:
        """Every stage's row.  Raises ValueError for an item that is too long."""
        loads = {one.stage: self._load(one) for one in self.work}
        if self._absent:
            self.notes[
                f"no model in {', '.join(self._absent)} yet: no tokens and times of the stages that open it; `snakemake <folder>` gets it"
            ] = None
        wanted = [one for one in self.work if one.stage not in self.options.given and self._can(one, loads[one.stage])]
        keys = [(one.stage, key) for one in wanted for key in self._keys(one.stage, loads[one.stage])]
        shares = {key: SHARES.get(stage.split("_")[0], 1) for stage, key in reversed(keys)}
        for stage, key in keys if self.options.seconds else []:
            self._measure(stage, key, self.options.seconds * shares[key] / sum(shares.values()))
        return [self._row(one, loads[one.stage]) for one in self.work]

    # Tokens

    def sizes(self, stage: str) -> Sizes | None:
        """Prompts of the stage's model on the data that are there; None, and a note, where either is not."""
        folder, side, most = self.models[stage]
        of_tasks = stage.split("_")[0] in ("evaluate", "crossmodal")
        names = tuple(self._tasks(stage) if of_tasks else [one.name for one in self.sets])
        there = (Path(folder) / "config.json").exists()
        if not there:
            self._absent[folder] = None
        if not names:
            part, rules = ("evaluation", "filter_eval") if of_tasks else ("training", "filter_train")
            self.notes[f"no {part} data yet: bounds, no tokens, no times; `snakemake --until {rules}` reads them"] = None
        if not names or not there:
            return None
        root = self.evaluation if of_tasks else self.train
        data = (root, names)  # a training set and a task may have one name
        if (key := (folder, side, most, data)) not in self._sizes:
            if data not in self._items:
                self._items[data] = Items.of_sets(root, names, Decoding.of(self.config.data))
            self._sizes[key] = Sizes(tokens.without_weights(folder, self.config.models, side, most), self._items[data])
        return self._sizes[key]

    def _tasks(self, stage: str) -> list[str]:
        wanted = self.config.evaluate.tasks if stage.startswith("evaluate") else self.config.evaluate.crossmodal
        return [name for name in wanted if (self.evaluation / name / "queries.parquet").exists()]

    def _load(self, one: Work) -> Load | None:
        if one.stage not in self.models:
            return None
        sizes, config = self.sizes(one.stage), self.config
        if sizes is None:
            return self._assumed(one)
        if one.stage == "embed_train":
            found = tokens.of_items([(sizes, Items.open(self.train / s.name, Decoding.of(config.data)).ids) for s in self.sets])
            return _scaled(found, one.count, sum(s.items for s in self.sets))
        if one.stage == "judge":
            found = tokens.of_judge([(sizes, *self._pairs(s.name)) for s in self.sets], config.judge, config.retrieve.k)
            return _scaled(found, one.count, sum(counts.judged(s, config.retrieve.k) for s in self.sets))
        if one.stage.startswith("train_"):
            kind = one.stage.removeprefix("train_")
            whole, table = getattr(config.train, kind).resolved(self.pairs), self._table(kind)
            part = whole.model_copy(update={"batch": min(whole.batch, len(table))})  # of the sets whose data are there
            found = tokens.of_training(kind, table, sizes, part, config.seed, BYTES[config.models.dtype])
            return _scaled(found, whole.batch, part.batch)
        places = {name: self.evaluation / name for name in self._tasks(one.stage)}
        if one.stage.endswith("_reranker"):
            asked = lists.of_config(config, list(places), self.evaluation, max(1, tokens.SAMPLE // (5 * len(places))))
            found = lists.of_lists(sizes, asked, config.train.reranker.prompt)
            return _scaled(found, one.count, sum(some.queries for some in asked))
        ids = [counts.distinct(place) for place in places.values()]
        return _scaled(tokens.of_items([(sizes, some) for some in ids], len(EMBEDDERS)), one.count, len(EMBEDDERS) * sum(map(len, ids)))

    def _pairs(self, name: str) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        hits = self.train.parent.parent / "retrieve" / name / "hits.parquet"
        pairs = artifacts.read_table(self.train / name / "pairs.parquet", artifacts.PAIRS)
        return pairs, artifacts.read_table(hits, artifacts.HITS) if hits.exists() else None

    def _table(self, kind: str) -> pl.DataFrame:
        """The training table, or a stand-in for what is not mined yet."""
        names = [one.name for one in self.sets]
        if kind != "in_batch":
            mined = self.train.parent.parent / "mine" / self.config.mine.source
            if all((mined / name / "mined.parquet").exists() for name in names):
                found = artifacts.read_tables(mined, names, "mined.parquet", artifacts.MINED)
                if self.config.mine.source == counts.JUDGED:  # published negatives may show items that no data table has
                    return found
        pairs = artifacts.read_tables(self.train, names, "pairs.parquet", artifacts.PAIRS)
        return pairs if kind == "in_batch" else tokens.stand_in(pairs, self.config.mine.negatives)

    def _assumed(self, one: Work) -> Load | None:
        """Tokens where an item has as many as the user says."""
        size, config = self.options.item_tokens, self.config
        if size is None or one.count is None:
            return None
        if one.stage == "judge":
            pairs = sum(s.pairs for s in counts.chosen(counts.train_sets(config, self.train), "judge", self.options.stale))
            return Load(pairs * (INSTRUCTION + size) + one.count * size, plain=one.count * (INSTRUCTION + 2 * size))
        if one.stage == "train_reranker":
            most, fixed = config.train.reranker.list_negatives, config.train.reranker.list_fixed
            shown = 2 * 2 + 2 + (most if fixed else (1 + most) / 2)  # two pairs; a query, its positive, the negatives of the list
            return Load(one.count / 3 * (3 * INSTRUCTION + shown * size))
        if one.stage.endswith("_reranker"):
            names = config.evaluate.tasks if one.stage.startswith("evaluate") else config.evaluate.crossmodal
            return lists.assumed(config, names, self.evaluation, INSTRUCTION, size)
        return Load(one.count * size)

    # Rates and seconds

    def _can(self, one: Work, load: Load | None) -> bool:
        """Whether there is something to measure the stage on."""
        return bool(self.sets) if one.stage not in self.models else load is not None and bool(load.sample)

    def _keys(self, stage: str, load: Load | None) -> list[Any]:
        """The rates that a stage needs: one, or the reranker's in each mode in which it reads.  Stages with one key share its rate."""
        if load is not None and load.by_mode:
            return [("reranker", mode) for mode in load.by_mode]
        return [self._key(stage)]

    def _key(self, stage: str) -> Any:
        """The rate of a stage that has one: what its speed depends on, where other stages may share it."""
        if stage in ("embed_train", "evaluate", "crossmodal"):
            return ("embed", *self.models[stage])
        if stage in ("train_hard_negatives", "train_unime_v2"):
            settings = getattr(self.config.train, stage.removeprefix("train_"))
            return "mined", settings.micro, settings.batch, settings.negatives, settings.in_batch_negatives
        return stage

    def _measure(self, stage: str, key: Any, seconds: float) -> None:
        if key in self._rates:
            return
        print(f"measuring {stage} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads(stage))
            self._rates[key] = self._rate(stage, key, seconds)
        except (ValueError, RuntimeError, OSError) as error:
            self.notes[f"{stage} was not measured: {error}"] = None
            self._rates[key] = None
        finally:
            torch.set_num_threads(before)
            gc.collect()
            torch.cuda.empty_cache()

    def _rate(self, stage: str, key: Any, seconds: float) -> Rate:
        config = self.config
        if stage == "mine":
            return rates.mining(config.mine, config.retrieve.k, seconds)
        if stage == "retrieve":
            return self._searched(seconds)
        sizes, batch_tokens = self.sizes(stage), config.embed.batch_tokens
        start = time.monotonic()
        backbone = self._open(stage)
        opened = time.monotonic() - start
        if stage.startswith("train_"):
            kind = stage.removeprefix("train_")
            found = rates.training(kind, backbone, sizes, _mixed(self._table(kind)), config, threads(stage), seconds)
        elif stage == "judge":
            if (backend := config.judge.backend) != "transformers":
                self.notes[f"judge.backend is {backend!r}: counted and measured as 'transformers'; --rate judge=N takes your figure"] = None
            each = max(1, tokens.ASKED // len(self.sets))
            rows = pl.concat([tokens.asked(*self._pairs(one.name), config.retrieve.k, each) for one in self.sets])
            asked = [question for row in _mixed(rows).iter_rows() for question in tokens.questions([row])]
            found = rates.judging(backbone, sizes, asked, config.judge.transformers.batch_tokens, config.judge.prompt, seconds)
        elif stage.endswith("_reranker"):
            _, mode = key
            asked = lists.of_config(config, self._tasks(stage), self.evaluation, 8)
            read = [row for one in asked if one.mode == mode for row in one.lists]
            order = _mixed(pl.DataFrame({"place": range(len(read))}))["place"]
            form = config.train.reranker.prompt
            found = rates.reranking(backbone, sizes, [read[at] for at in order], mode, form, batch_tokens, seconds)
        else:
            ids = _mixed(pl.DataFrame({"id": tokens.drawn(sizes.items.ids, tokens.SAMPLE)}))["id"].to_list()
            found = rates.embedding(backbone, sizes, ids, batch_tokens, seconds)
        return found._replace(start=opened, side=1 if backbone.device.type == "cuda" else os.cpu_count() or 1)

    def _searched(self, seconds: float) -> Rate:
        sizes = self.sizes("embed_train")
        width = sizes.backbone.head.weight.shape[1] if sizes else 1536
        pool = min(POOL, max(one.pool for one in self.sets))
        return rates.searching(width, pool, self.config.retrieve.k + 1, seconds)._replace(side=os.cpu_count() or 1)

    def _open(self, stage: str) -> Backbone:
        folder, side, most = self.models[stage]
        return backbones.load(folder, models=self.config.models, image_size=side, max_tokens=most, train=stage.startswith("train_"))

    def _row(self, one: Work, load: Load | None) -> Row:
        source = "unknown" if one.count is None else "counted" if one.counted else "at most"
        amount = one.count if one.stage not in self.models else None if load is None else load.tokens
        row = Row(one.stage, one.what, one.count, source, load and load.tokens, load and load.plain)
        if amount is None:
            return row
        if (given := self.options.given.get(one.stage)) is not None:
            return row._replace(seconds=amount / given, rate=given, timed="given")
        found = [self._rates.get(key) for key in self._keys(one.stage, load)]
        if None in found:
            return row
        rate = found[0]  # of several, which are of one model, it says the rest
        parts = load.by_mode.values() if load and load.by_mode else [amount]
        busy = sum(part / own.each for part, own in zip(parts, found, strict=True)) + (load.images * rate.image if load else 0.0)
        side = min(one.jobs, max(1, rate.side // threads(one.stage)))
        starts = rate.start * (len(EMBEDDERS) if one.stage in ("evaluate", "crossmodal") else 1)
        if one.stage in self.models and not one.stage.endswith(("evaluate_reranker", "crossmodal_reranker")):
            starts += self.imports  # the reranker of a task works in the process of its embedders
        sample = ", ".join(own.sample for own in found)
        seconds = busy / side + starts * math.ceil(one.jobs / side)
        return row._replace(seconds=seconds, rate=amount / busy if busy else None, timed="measured", sample=sample)


def threads(stage: str) -> int:
    """CPU threads of a stage's process."""
    name = stage.removesuffix("_reranker") if not stage.startswith("train_") else stage
    return importlib.import_module(f"unime.doors.{name}").DOOR.threads


def _scaled(load: Load, count: int | None, there: int) -> Load:
    """A load of the `there` things whose data are there, as one of `count`."""
    factor = (count or there) / max(1, there)
    plain = None if load.plain is None else load.plain * factor
    by_mode = {mode: part * factor for mode, part in load.by_mode.items()}
    return load._replace(tokens=load.tokens * factor, images=load.images * factor, plain=plain, by_mode=by_mode)


def _mixed(table: pl.DataFrame) -> pl.DataFrame:
    """The rows in an order drawn with a fixed seed, so that any beginning of it has something of everything."""
    return table.sample(fraction=1.0, shuffle=True, seed=0)
