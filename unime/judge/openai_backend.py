"""The judge behind a server that speaks OpenAI's chat-completions API with log-probabilities (vLLM's, SGLang's, a provider's).

1. One request a pair: the judge's turn as one user message, images as PNG in data URLs, one token of answer at temperature 0.  The
   server has the chat template and the tokenizer; neither a model nor torch is needed here.  What may spell a special token in an item's
   text is pulled apart (`unknown_tokenizer`), as it cannot be marked as text.
2. Yes and No are read from the answer's `top_logprobs`.  Log-probabilities are logits less one number, the same for both words, so their
   difference is that of the logits; a word that is not among them is an error, never a guess.
3. `in_flight` requests wait at a time and at most `rate` begin in a second, one question's candidates after the other, so that a
   server's prefix cache serves them.  An answer of 408, 429 or 5xx, or none within `timeout` seconds, is asked for again: after what
   Retry-After says, up to a limit, else after pauses that double, each drawn from half to one and a half of its length, lest all requests
   come back at once.  Every pause is logged.
4. What is whole is in the judge's shards: a killed run asks for the rest.
5. A server's text reaches messages and logs masked (`openai_key.Mask`), and an error is raised anew at the end, without the chain of those
   that led to it, which would hold the text as it came.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import random
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from unime import prompts
from unime.data.images import squashed
from unime.data.items import Items
from unime.judge import Question, blocks
from unime.judge.openai_answers import Absent, Unusable, error_code, log_probabilities, only_token, parsed, usage
from unime.judge.openai_http import BODY, NoReply, Reply, Server, ServerError, check_address, retry_after, trusted
from unime.judge.openai_key import KEY, Mask, read_key
from unime.judge.unknown_tokenizer import pulled_apart

T = TypeVar("T")

BLOCK = 256
"""Candidates whose images are held as PNG at a time."""

PAUSE, LONGEST = 0.5, 60.0
"""Seconds before the second attempt, and the most that a doubled pause comes to."""

BUSY = (408, 429)
"""Answers that a later attempt may better; 5xx are others."""


CHECK = f"check judge.openai (url, model, top_logprobs) and {KEY}"


class _Again(Exception):
    """An answer that a later attempt may better; `after` is how many seconds the server asks for, where it says so."""

    def __init__(self, reason: str, after: float | None) -> None:
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
    `prompts.FORMATS`.  Raises ConfigError for a key, an address, a proxy or certificates in the environment that cannot be used."""

    def __init__(self, items: Items, settings: Any, image_size: int, log: logging.Logger, form: str = prompts.UNIME):
        self.items, self.settings, self.image_size, self.log, self.form = items, settings, image_size, log, form
        self.url = settings.url
        self.key = read_key()
        self.mask = Mask(self.key)
        check_address(self.url, self.key)
        self.trust = trusted()
        self.pace = Pace(settings.rate)
        self._words: tuple[str, str] | None = None

    def answers(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Raises ServerError naming the first pair that was not answered as needed."""
        start = time.monotonic()
        problem = ""
        try:
            found = _finished(self._all_answers(questions))
        except ServerError as error:
            problem = self.mask(str(error))
        if problem:
            raise ServerError(problem)
        seconds = time.monotonic() - start
        read, cached, repeated = (sum(column) for column in zip(*(one[2:] for one in found), strict=True)) if found else (0, 0, 0)
        said = "openai: %d pairs in %.1f s, %.1f a second, %d requests repeated; %d of %d tokens from the server's prefix cache"
        self.log.info(said, len(found), seconds, len(found) / max(seconds, 1e-9), repeated, cached, read)
        sizes = [len(question.candidates) for question in questions]
        return np.split(np.array([one[:2] for one in found], dtype=np.float32).reshape(-1, 2), np.cumsum(sizes)[:-1])

    async def _all_answers(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers of all pairs, in their order.  The first error ends the requests that are under way and the pauses."""
        settings = self.settings
        found: list[Answer] = []
        room = asyncio.Semaphore(settings.in_flight)

        async def ask(server: Server, query: str, candidate: str, turn: Sequence[Any], words: tuple[str, str]) -> Answer:
            async with room:
                return await self._ask(server, f"query {query}, candidate {candidate}", turn, words)

        try:
            async with Server(self.key, settings.timeout, settings.in_flight, self.trust, self.mask) as server:
                words = await self._written(server)
                for block in blocks(questions, BLOCK):
                    shown = self._parts(block)
                    pairs = [(question.query, candidate) for question in block for candidate in question.candidates]
                    async with asyncio.TaskGroup() as group:
                        tasks = []
                        for query, candidate in pairs:
                            turn = prompts.judge_turn(shown[query], shown[candidate], self.form)
                            tasks.append(group.create_task(ask(server, query, candidate, turn, words)))
                    found += [task.result() for task in tasks]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return found

    async def _written(self, server: Server) -> tuple[str, str]:
        """Yes and No as the server writes them: themselves, or by their token ids, which vLLM's server tells."""
        if not self.settings.token_ids:
            return prompts.YES, prompts.NO
        if self._words is None:
            yes = await self._token(server, prompts.YES)
            no = await self._token(server, prompts.NO)
            if yes == no:
                raise ServerError(
                    f"{self.url}: the server says that {prompts.YES!r} and {prompts.NO!r} are one token, {yes}; see which model it serves"
                )
            self._words = f"token_id:{yes}", f"token_id:{no}"
        return self._words

    async def _token(self, server: Server, word: str) -> int:
        url = self.url.removesuffix("/v1") + "/tokenize"
        body = {"model": self.settings.model, "prompt": word, "add_special_tokens": False}
        name = f"the tokens of {word!r}"
        answer, _ = await self._retried(server, url, body, name)
        try:
            return only_token(answer, word)
        except Unusable as error:
            raise ServerError(
                f"{name}: {url}: {error}; use a server of vLLM's, and a model whose tokenizer has the word as one token"
            ) from None

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

    async def _ask(self, server: Server, name: str, turn: Sequence[Any], words: tuple[str, str]) -> Answer:
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
        answer, repeated = await self._retried(server, f"{self.url}/chat/completions", body, name)
        try:
            yes, no = log_probabilities(answer, words, self.mask)
        except Absent as error:
            raise ServerError(
                f"{name}: {error}; raise judge.openai.top_logprobs ({settings.top_logprobs} now, at most 20), set judge.openai.token_ids "
                "for a server of vLLM's, or use a judge that answers Yes or No"
            ) from None
        except Unusable as error:
            raise ServerError(
                f"{name}: the answer of {self.url} cannot be used: {error}; take a server and a model that give `top_logprobs`"
            ) from None
        return Answer(yes, no, *usage(answer), repeated)

    async def _retried(self, server: Server, url: str, body: dict[str, object], name: str) -> tuple[dict[str, object], int]:
        """The answer, and how many attempts before it were for nothing."""
        settings = self.settings
        attempts = settings.retries + 1
        for attempt in range(1, attempts + 1):
            await self.pace.wait()
            try:
                reply = await server.post(url, body)
                return self._object(reply, url, name), attempt - 1
            except (NoReply, _Again) as problem:
                why = str(problem)
                after = getattr(problem, "after", None)
            if attempt == attempts:
                raise ServerError(
                    f"{name}: {self.url} did not answer in {attempts} attempts ({why}); see that the server runs, and run again: whole "
                    "shards are kept.  Another judge.openai.retries or judge.openai.timeout "
                    f"({settings.timeout:g} s now) begins the stage anew"
                )
            await asyncio.sleep(self._pause(name, attempt, why, after))
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, name: str, attempt: int, why: str, after: float | None) -> float:
        """Seconds until the next attempt, which are logged.  Raises ServerError where the server asks for more than is waited."""
        attempts = self.settings.retries + 1
        limit = max(LONGEST, self.settings.timeout)
        said = "openai: %s: attempt %d of %d: %s; the next one in %.1f s%s"
        if after is None:
            pause = min(PAUSE * 2.0 ** min(attempt - 1, 60), LONGEST) * random.uniform(0.5, 1.5)
            self.log.warning(said, name, attempt, attempts, why, pause, "")
            return pause
        asked = ", as its Retry-After says"
        if after <= limit:
            self.log.warning(said, name, attempt, attempts, why, after, asked)
            return after
        self.log.warning("openai: %s: attempt %d of %d: %s; no next one: its Retry-After says %.0f s", name, attempt, attempts, why, after)
        raise ServerError(
            f"{name}: {self.url} is busy ({why}) and its Retry-After says {after:.0f} s, more than the {limit:g} s that a run waits (60, "
            "or judge.openai.timeout where that is more); run again after that time: whole shards are kept"
        )

    def _object(self, reply: Reply, url: str, name: str) -> dict[str, object]:
        """The JSON object that a good answer holds.  Raises _Again for one that a later attempt may better, else ServerError."""
        status = reply.status
        text = self.mask.shown(reply.text)
        remedy = "check judge.openai.url: a server of the chat-completions API is needed"
        if reply.left_over:  # whatever the status: the next attempt may go through the same connection
            raise ServerError(f"{name}: {url} sends more after its answer, which the next pair would be judged by; {remedy}")
        if status in BUSY or status >= 500:
            raise _Again(f"{status} {text[:200]}", retry_after(reply.retry_after))
        if 300 <= status < 400:
            place = self.mask.shown(reply.location)
            raise ServerError(
                f"{name}: {url} answers {status}, a redirect to {place!r}, which is not followed, as {KEY} would go along; put the address "
                "that answers in judge.openai.url"
            )
        if not 200 <= status < 300:
            raise ServerError(f"{name}: {url} answers {status}: {text}; {CHECK}")
        if not reply.whole:
            raise ServerError(f"{name}: {url} answers with more than {BODY:,} bytes; {remedy}")
        if reply.encoding:
            raise ServerError(f"{name}: {url} answers in {self.mask.shown(reply.encoding)!r}, which cannot be read; {remedy}")
        try:
            answer = parsed(reply.body)
        except Unusable as error:
            raise ServerError(f"{name}: the answer of {url} cannot be read: {error}: {text[:200]!r}; {remedy}") from None
        code = error_code(answer)
        if code is None:
            return answer
        if code in BUSY or code >= 500:
            raise _Again(f"{status} with an error inside: {text[:200]}", retry_after(reply.retry_after))
        raise ServerError(f"{name}: {url} answers {status} with an error inside: {text}; {CHECK}")


class Pace:
    """At most `rate` calls a second get past `wait`, evenly spaced; None: all do at once."""

    def __init__(self, rate: float | None):
        self.gap = 1 / rate if rate else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        self._next = max(now, self._next + self.gap)
        await asyncio.sleep(self._next - now)


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns.  A notebook runs an event loop in its own thread; there, another thread runs the coroutine."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _part(piece: str | bytes) -> dict[str, Any]:
    """A piece of a turn as the API takes it; bytes are an image's data URL."""
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image_url", "image_url": {"url": piece.decode()}}
