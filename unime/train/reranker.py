"""The reranker: three answers a query, cross entropy on the assistant's turn only (paper, section 3.4).

(q, positive) -> Yes; (q, one negative) -> No; (q, list) -> Ans: (i), where the list shows the first x distinct negatives and the
positive at a place drawn uniformly.  x and the place are drawn from (seed, epoch, pair): another epoch shows another list, a resumed
run the same one.  Which negatives come first is a setting, for the pair and for the list: the hardest, which takes scores, or those that
were mined first.

loss sequence  L = L_pair + L_list, each the mean over its sequences, of each sequence the mean over its answer and the end of the turn.
     token     The mean over all tokens of a query's three sequences, from the header of the assistant's turn to what the chat template
               puts behind the end of the turn (public code, Rerank/collators/MMEB_rerank.py, with one query on each device).  A sequence
               weighs as much as it has tokens: with Qwen2.5-VL's template and tokenizer 6, 6 and 10.
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
from unime.backbones.inputs import Answer
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

    `view` holds `seed`, `models` and `train.reranker`.  Raises ValueError for a pair without negatives, a batch larger than the table, or
    a pair without scores where `pair_negative` or `list_order` is `hardest`.
    """
    settings = view.train.reranker.resolved(len(table))
    backbone.add_lora(settings.lora, view.seed)
    accelerator = accelerator_for(backbone)
    budget, level = prepared(backbone, view.train.passes, job.parallel, accelerator)
    accumulate = Answers(Shown(backbone, items.on_white()), table, settings, view.seed, accelerator, budget, level)
    log = fit(backbone, settings, len(table), view.seed, job, accelerator, accumulate)
    if accelerator.is_main_process:
        card.write(out, backbone, "reranker", log, view, table, card.notes(view.train.reranker, len(table)))
    accelerator.wait_for_everyone()
    return card.line(log, table)


def hardest(negatives: Sequence[str], scores: Sequence[float], reasons: Sequence[str]) -> list[str]:
    """Distinct negatives, hardest first: kept ones before fallback ones, then by score, then in mined order."""
    order = sorted(range(len(negatives)), key=lambda i: (reasons[i] != "kept", -scores[i], i))
    return list(dict.fromkeys(negatives[i] for i in order))


def ordered(rule: str, negatives: Sequence[str], scores: Sequence[float], reasons: Sequence[str]) -> list[str]:
    """Distinct negatives, by the rule `hardest` as `hardest` orders them, by `first` in mined order (public code: most similar first)."""
    return hardest(negatives, scores, reasons) if rule == "hardest" else list(dict.fromkeys(negatives))


def sequences(
    query: str, positive: str, wrong: str, negatives: Sequence[str], rng: np.random.Generator, most: int, fixed: bool
) -> list[Turn]:
    """The three sequences of one query: `wrong` is the negative of the pair, the first `most` of `negatives` stand in the list, or 1..most
    unless `fixed`."""
    most = min(most, len(negatives))
    count = most if fixed else int(rng.integers(1, most + 1))
    place = int(rng.integers(0, count + 1))
    shown = (*negatives[:place], positive, *negatives[place:count])
    return [
        Turn(query, (positive,), prompts.YES, 0.5),
        Turn(query, (wrong,), prompts.NO, 0.5),
        Turn(query, shown, prompts.list_answer(place + 1), 1.0),
    ]


class Row(NamedTuple):
    """One row of the training table: the negative of its pair, and those of its list in the order in which they are taken."""

    pair: str
    query: str
    positive: str
    wrong: str
    negatives: list[str]


class Frame(NamedTuple):
    """Tokens that a chat template puts around the assistant's answer: before it, and behind the end of its turn."""

    header: list[int]
    after: list[int]

    @staticmethod
    def of(backbone: Backbone) -> Frame:
        tokenizer = backbone.tokenizer
        user = {"role": "user", "content": [{"type": "text", "text": "a"}]}
        assistant = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
        closed = tokenizer.apply_chat_template([user], tokenize=False)
        opened = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template([user, assistant], tokenize=False)
        header = opened.removeprefix(closed)
        after = answered.rpartition(tokenizer.eos_token)[2]
        return Frame(tokenizer.encode(header, add_special_tokens=False), tokenizer.encode(after, add_special_tokens=False))

    def whole(self, encoded: Encoded, answer: Sequence[int]) -> tuple[Encoded, list[int]]:
        """A prompt without the assistant's header, and the assistant's whole turn: header, `answer` with the turn's end, what follows."""
        start = len(encoded.ids) - len(self.header)
        if encoded.ids[start:].tolist() != self.header:
            raise ValueError("the prompt does not end with the chat template's header of the assistant's turn; set loss to sequence")
        return encoded._replace(ids=encoded.ids[:start]), [*self.header, *answer, *self.after]


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
        if "hardest" in (settings.pair_negative, settings.list_order):
            refuse_unjudged(table, "the reranker's rule `hardest`", "set both train.reranker.pair_negative and list_order to first")
        columns = ("pair", "query", "positive", "negatives", "scores", "reasons")
        self.rows: list[Row] = []
        for pair, query, positive, *mined in zip(*(table[c].to_list() for c in columns), strict=True):
            if not mined[0]:
                raise ValueError(f"pair {pair}: no mined negative; run the mine stage again")
            wrong = ordered(settings.pair_negative, *mined)[0]
            self.rows.append(Row(pair, query, positive, wrong, ordered(settings.list_order, *mined)))
        self.frame = Frame.of(self.backbone) if settings.loss == "token" else None
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
            encoded, answers, weights = self.targets(found)
            split = groups([len(e.ids) for e in encoded], OVERHEAD[self.backbone.device.type], budget=self.budget)
            passes = [(group, 1.0) for group in split]
            passes += [(split[0][:1], 0.0)] * (self.level(len(split)) - len(split))  # another process has more

            def loss(
                one: tuple[list[int], float],
                encoded: list[Encoded] = encoded,
                answers: list[Answer] = answers,
                weights: list[float] = weights,
            ) -> torch.Tensor:
                group, counted = one
                inputs = self.backbone.collate([encoded[i] for i in group], [answers[i] for i in group])
                weight = torch.tensor([counted * weights[i] for i in group], device=self.backbone.device)
                return (self.backbone.sequence_loss(inputs) * weight).sum() / len(batch.rows)

            total += lanes.accumulate(loss, passes, self.parameters)
        return total, 3 * len(batch.rows)

    def turns(self, row: int, epoch: int) -> list[Turn]:
        """The three sequences of a row of the table in an epoch."""
        pair, query, positive, wrong, negatives = self.rows[row]
        rng = np.random.default_rng([self.seed, epoch, int(pair[:16], 16)])
        return sequences(query, positive, wrong, negatives, rng, self.settings.list_negatives, self.settings.list_fixed)

    def targets(self, turns: Sequence[Turn]) -> tuple[list[Encoded], list[Answer], list[float]]:
        """Of each sequence its prompt, what its labels are, and its weight in the sum over a batch of one; three of a query in a row."""
        prompted = [self.encode(turn) for turn in turns]
        if self.frame is None:
            return prompted, [turn.answer for turn in turns], [turn.weight for turn in turns]
        encoded, answers, weights = [], [], []
        for prompt, turn in zip(prompted, turns, strict=True):
            told = self.backbone.tokens([turn.answer])[0].tolist()
            asked, whole = self.frame.whole(prompt, [*told, self.backbone.end])
            encoded.append(asked)
            answers.append(whole)
        for start in range(0, len(answers), 3):
            lengths = [len(answer) for answer in answers[start : start + 3]]
            weights += [length / sum(lengths) for length in lengths]
        return encoded, answers, weights

    def encode(self, turn: Turn) -> Encoded:
        """Raises ValueError naming the query where a sequence is too long."""
        try:
            return self.backbone.encode(self.prompt(turn))
        except ValueError as error:
            raise ValueError(f"query {turn.query} with {len(turn.candidates)} candidates: {error}") from error

    def prompt(self, turn: Turn) -> Prompt:
        """The judge's question for one candidate, the list's for several."""
        query, *candidates = (self.shown.content(id).parts for id in (turn.query, *turn.candidates))
        form = self.settings.prompt
        if turn.listwise:
            return self.backbone.chat_prompt(prompts.list_turn(query, candidates, form))
        return self.backbone.chat_prompt(prompts.judge_turn(query, candidates[0], form, taught=True))
