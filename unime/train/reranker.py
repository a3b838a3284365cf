"""The reranker: three answers a query, cross entropy on the assistant's turn only (paper, section 3.4).

(q, positive) -> Yes; (q, hardest negative) -> No; (q, list) -> Ans: (i), where the list shows the x hardest distinct negatives and the
positive at a place drawn uniformly.  L = L_pair + L_list, each the mean over its sequences.  x and the place are drawn from
(seed, epoch, pair): another epoch shows another list, a resumed run the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator

from unime import prompts
from unime.backbones import Backbone, Encoded, Prompt
from unime.lanes import ONE, GradientLanes
from unime.train import card
from unime.train.data import OVERHEAD, Batch, Shown, groups, refuse_unjudged, trained
from unime.train.loop import accelerator_for, fit, prepared, share


class Turn(NamedTuple):
    """One training sequence: the query and the candidates that it shows, the answer, its weight in the sum over a batch of one."""

    query: str
    candidates: tuple[str, ...]
    answer: str
    weight: float

    @property
    def listwise(self) -> bool:
        return self.answer not in (prompts.YES, prompts.NO)


def train_reranker(table: pl.DataFrame, items: Any, backbone: Backbone, view: Any, job: Any, out: str | Path) -> str:
    """Train an adapter on a table MINED and write it to the folder `out`, with log.csv and a model card; returns a line about the run.

    `view` holds `seed`, `models` and `train.reranker`.  Raises ValueError for a pair without negatives or a batch larger than the table.
    """
    settings = view.train.reranker
    backbone.add_lora(settings.lora, view.seed)
    accelerator = accelerator_for(backbone)
    budget, level = prepared(backbone, view.train.passes, job.parallel, accelerator)
    accumulate = Answers(Shown(backbone, items), table, settings, view.seed, accelerator, budget, level)
    log = fit(backbone, settings, len(table), view.seed, job, accelerator, accumulate)
    if accelerator.is_main_process:
        card.write(out, backbone, "reranker", log, view, table["dataset"].to_list(), {})
    accelerator.wait_for_everyone()
    return card.line(log)


def hardest(negatives: Sequence[str], scores: Sequence[float], reasons: Sequence[str]) -> list[str]:
    """Distinct negatives, hardest first: kept ones before fallback ones, then by score, then in mined order."""
    order = sorted(range(len(negatives)), key=lambda i: (reasons[i] != "kept", -scores[i], i))
    return list(dict.fromkeys(negatives[i] for i in order))


def sequences(query: str, positive: str, negatives: Sequence[str], rng: np.random.Generator, most: int, fixed: bool) -> list[Turn]:
    """The three sequences of one query; `negatives` as `hardest` orders them, `most` of them in the list, or 1..most unless `fixed`."""
    most = min(most, len(negatives))
    count = most if fixed else int(rng.integers(1, most + 1))
    place = int(rng.integers(0, count + 1))
    shown = (*negatives[:place], positive, *negatives[place:count])
    return [
        Turn(query, (positive,), prompts.YES, 0.5),
        Turn(query, (negatives[0],), prompts.NO, 0.5),
        Turn(query, shown, prompts.list_answer(place + 1), 1.0),
    ]


class Answers:
    """Accumulates the gradient of L over a batch, in forward passes of sequences of like length."""

    def __init__(
        self,
        shown: Shown,
        table: pl.DataFrame,
        settings: Any,
        seed: int,
        accelerator: Accelerator,
        budget: int | None = None,
        level: Callable[[int], int] = int,
    ) -> None:
        self.shown, self.backbone, self.settings, self.seed, self.accelerator = shown, shown.backbone, settings, seed, accelerator
        self.budget, self.level = budget, level
        refuse_unjudged(table, "the reranker")
        columns = ("pair", "query", "positive", "negatives", "scores", "reasons")
        self.rows = []
        for pair, query, positive, negatives, scores, reasons in zip(*(table[c].to_list() for c in columns), strict=True):
            if not negatives:
                raise ValueError(f"pair {pair}: no mined negative; run the mine stage again")
            self.rows.append((pair, query, positive, hardest(negatives, scores, reasons)))
        self.parameters = list(trained(self.backbone.model).values())

    def ahead(self, batch: Batch) -> None:
        rows = (row for micro in share(batch, self.settings.micro, self.accelerator) for row in micro.rows)
        asked = (turn for row in rows for turn in self.turns(row, batch.epoch))
        self.shown.ahead(id for turn in asked for id in (turn.query, *turn.candidates))

    def __call__(self, batch: Batch, lanes: GradientLanes = ONE) -> tuple[float, int]:
        total = 0.0
        for micro in share(batch, self.settings.micro, self.accelerator):
            torch.manual_seed(micro.seed)
            found = [turn for row in micro.rows for turn in self.turns(row, batch.epoch)]
            self.shown.contents(id for turn in found for id in (turn.query, *turn.candidates))  # new images pass the tower together
            encoded = [self.encode(turn) for turn in found]
            split = groups([len(e.ids) for e in encoded], OVERHEAD[self.backbone.device.type], budget=self.budget)
            passes = [(group, 1.0) for group in split]
            passes += [(split[0][:1], 0.0)] * (self.level(len(split)) - len(split))  # another process has more

            def loss(one: tuple[list[int], float], found: list[Turn] = found, encoded: list[Encoded] = encoded) -> torch.Tensor:
                group, share = one
                inputs = self.backbone.collate([encoded[i] for i in group], [found[i].answer for i in group])
                weights = torch.tensor([share * found[i].weight for i in group], device=self.backbone.device)
                return (self.backbone.sequence_loss(inputs) * weights).sum() / len(batch.rows)

            total += lanes.accumulate(loss, passes, self.parameters)
        return total, 3 * len(batch.rows)

    def turns(self, row: int, epoch: int) -> list[Turn]:
        """The three sequences of a row of the table in an epoch."""
        pair, query, positive, negatives = self.rows[row]
        rng = np.random.default_rng([self.seed, epoch, int(pair[:16], 16)])
        return sequences(query, positive, negatives, rng, self.settings.list_negatives, self.settings.list_fixed)

    def encode(self, turn: Turn) -> Encoded:
        """Raises ValueError naming the query where a sequence is too long."""
        try:
            return self.backbone.encode(self.prompt(turn))
        except ValueError as error:
            raise ValueError(f"query {turn.query} with {len(turn.candidates)} candidates: {error}") from error

    def prompt(self, turn: Turn) -> Prompt:
        """The judge's question for one candidate, the list's for several."""
        query, *candidates = (self.shown.content(id).parts for id in (turn.query, *turn.candidates))
        asked = prompts.list_turn(query, candidates) if turn.listwise else prompts.judge_turn(query, candidates[0])
        return self.backbone.chat_prompt(asked)
