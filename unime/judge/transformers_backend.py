"""The judge on transformers' own model classes, on a CPU or one GPU.

Per block of questions: every prompt through the folder's chat template, tokens, the pictures through the vision tower (once each, then
from a bounded store), one forward pass with shared beginnings (`shared_prefix`), two rows of the language model's head.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from unime import prompts, shards
from unime.backbones import Backbone, Encoded, load
from unime.backbones.base import Picture
from unime.data.items import Items
from unime.embed import Lanes
from unime.judge import Question, blocks, shared_prefix
from unime.judge.tokens import Tokens

BLOCK = {"cpu": 64, "cuda": 256}  # candidates that are worth a forward pass: questions with fewer are put together
STORED = {"cpu": 1 << 17, "cuda": 1 << 18}  # visual tokens of pictures kept at hand
LOOKED = 16  # pictures of a block that a thread holds as pixels at a time


def open_judge(folder: str | Path, items: Items, settings: Any, *, models: Any, log: logging.Logger) -> TransformersJudge:
    """See `unime.judge.backends.open_backend`."""
    backbone = load(folder, models=models, image_size=settings.image_size)
    return TransformersJudge(backbone, items, settings.transformers.batch_tokens, settings.prompt)


class TransformersJudge:
    """See `unime.judge.Backend`.  `batch_tokens` bounds the tokens of a forward pass; one sequence may exceed it.  `form` is a name of
    `prompts.FORMATS`."""

    def __init__(self, backbone: Backbone, items: Items, batch_tokens: int, form: str = prompts.UNIME):
        self.backbone, self.items, self.batch_tokens, self.form = backbone, items, batch_tokens, form
        self.words = [backbone.token(prompts.YES), backbone.token(prompts.NO)]
        self.tokens = Tokens(backbone)
        self.pictures = Pictures(backbone, items)

    def answers(self, questions: Sequence[Question]) -> list[np.ndarray]:
        with shared_prefix.installed(self.backbone.core.language_model), Lanes(self.backbone.device) as lanes:

            @torch.inference_mode()
            def work(block: list[Question]) -> list[np.ndarray]:
                shown = self.pictures.of([id for one in block for id in (one.query, *one.candidates)], lanes.turn)
                groups = [self.sequences(question, shown) for question in block]
                found = []
                for some in passes(groups, self.backbone.image_token, self.batch_tokens):
                    packed = shared_prefix.pack(some, self.backbone)
                    with lanes.turn:
                        found.append(self._logits(shared_prefix.last_hidden(packed, self.backbone)))
                return np.split(np.concatenate(found), np.cumsum([len(group) for group in groups])[:-1])

            cut = blocks(questions, BLOCK[self.backbone.device.type])
            return [answer for block in shards.spread(cut, work, lanes.count) for answer in block]

    def plain(self, question: Question) -> np.ndarray:
        """As `answers`, one sequence at a time and nothing shared: what `answers` must equal."""
        found = []
        for candidate in question.candidates:
            turn = prompts.judge_turn(self.items[question.query].parts, self.items[candidate].parts, self.form)
            batch = self.backbone.collate([self.backbone.chat_prompt(turn)])
            with torch.inference_mode():
                found.append(self.backbone.answer_logits(batch, self.words).cpu().numpy())
        return np.concatenate(found)

    def sequences(self, question: Question, shown: Mapping[tuple[str, str], Picture] = MappingProxyType({})) -> list[Encoded]:
        """The question's prompts as token arrays, in the order of its candidates; a picture is one object wherever it is shown: of those
        at hand in `shown`, by the image's place, or of the store's."""
        query = self._parts(question.query, shown)
        found = []
        for candidate in question.candidates:
            turn = prompts.judge_turn(query, self._parts(candidate, shown), self.form)
            prompt = self.backbone.chat_prompt(turn)
            try:
                found.append(self.backbone.encode(prompt, self.tokens.ids(prompt.text)))
            except ValueError as error:
                raise ValueError(f"query {question.query} with candidate {candidate}: {error}") from error
        return found

    def _parts(self, id: str, shown: Mapping[tuple[str, str], Picture]) -> list:
        picture = (shown.get(self.items.image_place(id)) or self.pictures[id]) if self.items.has_image(id) else None
        return prompts.parts(self.items.text(id), picture)

    def _logits(self, hidden: torch.Tensor) -> np.ndarray:
        """(N, D) -> (N, 2) float32, computed as the backbone's `answer_logits` does."""
        return (hidden.float() @ self.backbone.head.weight[self.words].float().T).cpu().numpy()


def passes(groups: Sequence[list[Encoded]], image_token: int, budget: int) -> Iterator[list[list[Encoded]]]:
    """The groups, in order, in forward passes of at most `budget` tokens; a group that does not fit is cut, each part with the prefix."""
    some: list[list[Encoded]] = []
    used = 0
    for group in groups:
        prefix = shared_prefix.common_prefix(group, image_token)
        part: list[Encoded] = []
        for sequence in group:
            own = len(sequence.ids) - prefix
            cost = own if part else own + prefix
            if used + cost > budget and (some or part):
                yield [*some, part] if part else some
                some, part, used, cost = [], [], 0, own + prefix
            part.append(sequence)
            used += cost
        some.append(part)
    if some:
        yield some


class Pictures:
    """Items' images after the vision tower, the most recently used STORED tokens of them kept; used by several threads."""

    def __init__(self, backbone: Backbone, items: Items):
        self.backbone, self.items = backbone, items
        self._kept: OrderedDict[tuple[str, str], Picture] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()

    def of(self, ids: Iterable[str], turn: AbstractContextManager[object]) -> dict[tuple[str, str], Picture]:
        """On a GPU all of these items' pictures by their place, new ones seen several at a time: decoded here, computed in this thread's
        turn.  On a CPU none: there each is seen when its prompt is made."""
        if self.backbone.device.type == "cpu":
            return {}
        places = {self.items.image_place(id): id for id in ids if self.items.has_image(id)}
        with self._lock:
            found = {place: self._kept[place] for place in places if place in self._kept}
        for some in shards.cut([id for place, id in places.items() if place not in found], LOOKED):
            looked = [self.backbone.look(self.items[id].image) for id in some]
            with turn:
                seen = self.backbone.see_all(looked)
            for id, picture in zip(some, seen, strict=True):
                place = self.items.image_place(id)
                found[place] = self._keep(place, picture)
        return found

    def __getitem__(self, id: str) -> Picture:
        place = self.items.image_place(id)
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        return self._keep(place, self.backbone.see(self.items[id].image))

    def _keep(self, place: tuple[str, str], seen: Picture) -> Picture:
        """What is kept of this image from now on: where another thread was faster, its object is the one that others hold."""
        with self._lock:
            if place not in self._kept:
                self._kept[place] = seen
                self._tokens += len(seen.features)
                while self._tokens > STORED[self.backbone.device.type] and len(self._kept) > 1:
                    self._tokens -= len(self._kept.popitem(last=False)[1].features)
            return self._kept[place]
