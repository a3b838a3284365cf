"""The judge behind a server that speaks OpenAI's chat-completions API with log-probabilities (vLLM's, SGLang's, a provider's).

1. One request a pair: the judge's turn as one user message, images as PNG in data URLs, one token of answer at temperature 0.  The
   server has the chat template and the tokenizer; neither a model nor torch is needed here.  What may spell a special token in an item's
   text is pulled apart (`unknown_tokenizer`), as it cannot be marked as text.
2. Yes and No are read from the answer's `top_logprobs`.  Log-probabilities are logits less one number, the same for both words, so their
   difference is that of the logits; a word that is not among them is an error, never a guess.
3. `in_flight` requests wait at a time and at most `rate` begin in a second, one question's candidates after the other, so that a
   server's prefix cache serves them.  An answer of 408, 429 or 5xx, or none in time, is asked for again: after what Retry-After says,
   else after pauses that double, each drawn from half to one and a half of its length, lest all requests come back at once.
4. What is whole is in the judge's shards: a killed run asks for the rest.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np

from unime import prompts
from unime.data.images import squashed
from unime.data.items import Items
from unime.judge import Question, blocks
from unime.judge.unknown_tokenizer import pulled_apart

BLOCK = 256
"""Candidates whose images are held as PNG at a time."""

PAUSE, LONGEST = 0.5, 60.0
"""Seconds before the second attempt, and the most that a doubled pause comes to."""


class ServerError(ValueError):
    """The server did not answer, or not with what is needed; the message names the pair, the reason and the remedy."""


class Stopped(Exception):
    """Another request failed, or the run was ended."""


class _Again(Exception):
    """An answer that a later attempt may better; `after` is how many seconds the server asks for, where it says so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def open_judge(_: str | Path, items: Items, settings: Any, *, models: Any, log: logging.Logger) -> OpenaiJudge:
    """See `unime.judge.backends.open_backend`; the model is the server's, and the folder is not looked into."""
    return OpenaiJudge(items, settings.openai, settings.image_size, log, settings.prompt)


class Answer(NamedTuple):
    """The log-probabilities of Yes and of No; tokens of the prompt, how many of them the server had in its prefix cache, and how many
    attempts were for nothing."""

    yes: float
    no: float
    read: int
    cached: int
    repeated: int


class OpenaiJudge:
    """See `unime.judge.Backend`: rows are log-probabilities.  `settings` is the config's section `judge.openai`, `form` a name of
    `prompts.FORMATS`."""

    def __init__(self, items: Items, settings: Any, image_size: int, log: logging.Logger, form: str = prompts.UNIME):
        self.items, self.settings, self.image_size, self.log, self.form = items, settings, image_size, log, form
        self.url = os.environ.get("OPENAI_BASE_URL", settings.url).rstrip("/")
        key = os.environ.get("OPENAI_API_KEY")
        self.client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.timeout,
            limits=httpx2.Limits(max_connections=settings.in_flight, max_keepalive_connections=settings.in_flight),
        )
        self.pace = Pace(settings.rate)

    def answers(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Raises ServerError naming the first pair that was not answered as needed."""
        start, found, words = time.monotonic(), [], self.words
        stop, failed = threading.Event(), []

        def ask(query: str, candidate: str, turn: Sequence[Any]) -> Answer:
            try:
                return self._ask(f"query {query}, candidate {candidate}", turn, words, stop)
            except ServerError as error:
                failed.append(error)
                stop.set()
                raise

        with ThreadPoolExecutor(self.settings.in_flight) as pool:
            try:
                for block in blocks(questions, BLOCK):
                    shown = self._parts(block)
                    queries, candidates = zip(*((one.query, candidate) for one in block for candidate in one.candidates), strict=True)
                    turns = [
                        prompts.judge_turn(shown[query], shown[one], self.form) for query, one in zip(queries, candidates, strict=True)
                    ]
                    found += pool.map(ask, queries, candidates, turns)
            except Stopped:
                raise failed[0] from None
            finally:
                stop.set()  # those that pause between attempts end at once, after Ctrl-C too
        seconds = time.monotonic() - start
        read, cached, repeated = (sum(column) for column in zip(*(one[2:] for one in found), strict=True)) if found else (0, 0, 0)
        said = "openai: %d pairs in %.1f s, %.1f a second, %d requests repeated; %d of %d tokens from the server's prefix cache"
        self.log.info(said, len(found), seconds, len(found) / max(seconds, 1e-9), repeated, cached, read)
        sizes = [len(question.candidates) for question in questions]
        return np.split(np.array([one[:2] for one in found], dtype=np.float32).reshape(-1, 2), np.cumsum(sizes)[:-1])

    @cached_property
    def words(self) -> tuple[str, str]:
        """Yes and No as the server writes them: themselves, or by their token ids, which vLLM's server tells."""
        if not self.settings.token_ids:
            return prompts.YES, prompts.NO
        return tuple(f"token_id:{self._token(word)}" for word in (prompts.YES, prompts.NO))

    def _token(self, word: str) -> int:
        url = self.url.removesuffix("/v1") + "/tokenize"
        body = {"model": self.settings.model, "prompt": word, "add_special_tokens": False}
        answer, _ = self._retried(lambda: self._post(url, body), f"the tokens of {word!r}", threading.Event())
        ids = answer.get("tokens", [])
        if len(ids) != 1:
            raise ServerError(f"{url}: {word!r} is {len(ids)} tokens, one is needed; use a model whose tokenizer has it as one")
        return ids[0]

    def _parts(self, block: Sequence[Question]) -> dict[str, list[Any]]:
        """The block's items as parts, an image as its data URL; one image is encoded once."""
        urls: dict[tuple[str, str], bytes] = {}
        found: dict[str, list[Any]] = {}
        changed: list[str] = []
        for id in dict.fromkeys(id for question in block for id in (question.query, *question.candidates)):
            place, image = self.items.image_place(id), None
            if self.items.has_image(id):
                image = urls[place] = urls.get(place) or self._png(id)
            as_read = prompts.parts(self.items.text(id), image)
            found[id] = [pulled_apart(piece) if isinstance(piece, str) else piece for piece in as_read]
            if found[id] != as_read:
                changed.append(id)
        if changed:
            said = "openai: %d texts hold what may be a special token of the server's model, e.g. item %s; a space is put into each"
            self.log.warning(said, len(changed), changed[0])
        return found

    def _png(self, id: str) -> bytes:
        out = io.BytesIO()
        squashed(self.items[id].image, self.image_size).save(out, "PNG", compress_level=1)
        return b"data:image/png;base64," + base64.b64encode(out.getvalue())

    def _ask(self, name: str, turn: Sequence[Any], words: tuple[str, str], stop: threading.Event) -> Answer:
        """One pair, called `name` in errors; `words` are Yes and No as the server writes them."""
        settings = self.settings
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": [_part(piece) for piece in turn]}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": settings.top_logprobs,
        }
        if settings.token_ids:
            body |= {"logprob_token_ids": [int(word.partition(":")[2]) for word in words], "return_tokens_as_token_ids": True}
        answer, repeated = self._retried(lambda: self._post(f"{self.url}/chat/completions", body), name, stop)
        try:
            (first, *_) = answer["choices"][0]["logprobs"]["content"]
            told = {one["token"]: float(one["logprob"]) for one in reversed([first, *first["top_logprobs"]])}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServerError(
                f"{name}: the answer of {self.url} has no log-probabilities ({error!r}); take a server and a model that give `top_logprobs`"
            ) from error
        usage = answer.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if absent := [word for word in words if word not in told]:
            raise ServerError(
                f"{name}: {absent[0]!r} is not among the {len(told)} likeliest words ({', '.join(map(repr, list(told)[:5]))} ...); raise "
                f"judge.openai.top_logprobs ({settings.top_logprobs} now, at most 20), set judge.openai.token_ids for a server of vLLM's, "
                "or use a judge that answers Yes or No"
            )
        return Answer(*(told[word] for word in words), usage.get("prompt_tokens", 0), cached, repeated)

    def _retried(self, ask: Callable[[], dict[str, Any]], name: str, stop: threading.Event) -> tuple[dict[str, Any], int]:
        """The answer, and how many attempts before it were for nothing."""
        for attempt in range(self.settings.retries + 1):
            self.pace.wait(stop)
            try:
                return ask(), attempt
            except (httpx2.TransportError, _Again) as problem:
                why = f"{type(problem).__name__.strip('_')}: {problem}"
                if attempt == self.settings.retries:
                    raise ServerError(
                        f"{name}: {self.url} did not answer in {attempt + 1} attempts ({why}); see that the server runs, and run "
                        "again: whole shards are kept.  Another judge.openai.retries or judge.openai.timeout "
                        f"({self.settings.timeout:g} s now) begins the stage anew"
                    ) from problem
                after = getattr(problem, "after", None)
            if stop.wait(min(PAUSE * 2**attempt, LONGEST) * random.uniform(0.5, 1.5) if after is None else after):
                break
        raise Stopped(name)

    def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post(url, json=body)
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise _Again(f"{answer.status_code} {answer.text[:200]}", retry_after(answer.headers.get("Retry-After", "")))
        if answer.is_error:
            said = f"{url} answers {answer.status_code}: {answer.text[:500]}"
            raise ServerError(f"{said}; check judge.openai (url, model) and OPENAI_API_KEY")
        try:
            return answer.json()
        except ValueError as error:
            raise ServerError(f"{url} does not answer in JSON: {answer.text[:200]!r}; check judge.openai.url") from error


class Pace:
    """At most `rate` calls a second get past `wait`, evenly spaced; None: all do at once."""

    def __init__(self, rate: float | None):
        self.gap = 1 / rate if rate else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Raises Stopped."""
        with self._lock:
            now = time.monotonic()
            begin = self._next = max(now, self._next + self.gap)
        if stop.wait(begin - now) if begin > now else stop.is_set():
            raise Stopped


def retry_after(text: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None where it says neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _part(piece: str | bytes) -> dict[str, Any]:
    """A piece of a turn as the API takes it; bytes are an image's data URL."""
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image_url", "image_url": {"url": piece.decode()}}
