"""The judge behind a server that misbehaves: right scores, or an error in time that names the pair, the reason and the remedy."""

from __future__ import annotations

import base64
import gzip
import html
import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
import raw_server
import yaml
from published import job, read_sets
from raw_server import Exchange, Mode

from unime import artifacts
from unime.config import ConfigError
from unime.data.images import Decoding
from unime.data.items import Items
from unime.judge import Question, openai_answers, openai_backend, openai_http
from unime.judge.openai_backend import OpenaiJudge, ServerError
from unime.judge.openai_key import Mask

ROOT = Path(__file__).resolve().parents[1]
SET = "NanoColor"
TIMEOUT, SHORT, RETRIES = 5.0, 0.5, 1
RIGHT = "right scores"
MB = 1_000_000
KEY = "sk-Judge/Test+Key=0123456789~abcdef"


@pytest.fixture(scope="module")
def tables(suite: Path, config, tmp_path_factory) -> tuple[pl.DataFrame, pl.DataFrame]:
    items, pairs, _ = read_sets(suite, [SET], "original", 12, 0, Decoding.of(config.data), "fail", job(tmp_path_factory.mktemp("data")))
    return items, pairs


@pytest.fixture(scope="module")
def question(tables) -> Question:
    _, pairs = tables
    return Question(pairs["query"][0], tuple(pairs["positive"].unique(maintain_order=True)[:2]))


@pytest.fixture
def opened(tables, config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenaiJudge]:
    monkeypatch.setattr(openai_backend, "PAUSE", 0.01)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def make(url: str, **settings: object) -> OpenaiJudge:
        values = {"url": url, "retries": RETRIES, "timeout": TIMEOUT, "in_flight": 1} | settings
        items = Items(tables[0], Decoding.of(config.data))
        return OpenaiJudge(items, config.judge.openai.model_copy(update=values), 0, logging.getLogger("test"))

    return make


def good(exchange: Exchange) -> None:
    exchange.answer(exchange.right())


@pytest.fixture
def wanted(opened, question: Question) -> np.ndarray:
    """The rows of a server that does what it should."""
    with raw_server.serving(good) as raw:
        (rows,) = opened(raw.url, timeout=5.0).answers([question])
    assert rows.shape == (2, 2) and abs(rows[0] - rows[1]).min() > 1e-3, "the two pairs have scores of their own"
    return rows


# What a server may do, by name: the mode, and RIGHT or what the error says


def raw(data: bytes, then: str = "close") -> Mode:
    """These bytes, and then the connection is closed, kept or left silent."""

    def mode(exchange: Exchange) -> bool:
        exchange.send(data)
        if then == "wait":
            exchange.wait()
        return then == "keep"

    return mode


def whole(exchange: Exchange, head: str = "", status: str = "HTTP/1.1 200 OK") -> bytes:
    data = json.dumps(exchange.right()).encode()
    return f"{status}\r\nContent-Length: {len(data)}\r\n{head}\r\n".encode() + data


def endless(first: bytes, piece: bytes) -> Mode:
    def mode(exchange: Exchange) -> bool:
        exchange.send(first)
        while not exchange.stopped.is_set():
            exchange.send(piece)
        return False

    return mode


def chunked(exchange: Exchange, extension: bytes = b"", trailer: bytes = b"", size: int = 50) -> bytes:
    data = json.dumps(exchange.right()).encode()
    parts = [data[place : place + size] for place in range(0, len(data), size)]
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailer + b"\r\n"


def spoiled(change: Callable[[dict], object]) -> Mode:
    """The right answer after a change; one that gives something else gives the whole answer."""

    def mode(exchange: Exchange) -> None:
        answer = exchange.right()
        changed = change(answer)
        exchange.answer(answer if changed is None else changed)

    return mode


def first_token(answer: dict) -> dict:
    return answer["choices"][0]["logprobs"]["content"][0]


def logprob(value: str) -> Mode:
    """Yes has this log-probability, written as it is."""

    def mode(exchange: Exchange) -> None:
        answer = exchange.right()
        for entry in [first_token(answer), *first_token(answer)["top_logprobs"]]:
            if entry["token"] == "Yes":
                entry["logprob"] = "PLACE"
        exchange.answer(json.dumps(answer).replace('"PLACE"', value).encode())

    return mode


def usage(value: object) -> Mode:
    return spoiled(lambda answer: answer.update(usage=value))


def prompt_tokens(value: object) -> Mode:
    return spoiled(lambda answer: answer["usage"].update(prompt_tokens=value, prompt_tokens_details={"cached_tokens": value}))


def busy_once(after: str | bytes, status: str = "429 Too Many Requests") -> Mode:
    value = after if isinstance(after, bytes) else after.encode("utf-8")

    def mode(exchange: Exchange) -> None:
        if exchange.number > 1:
            return good(exchange)
        exchange.send(f"HTTP/1.1 {status}\r\nContent-Length: 4\r\nRetry-After: ".encode() + value + b"\r\n\r\nbusy")

    return mode


def dripped_body(exchange: Exchange) -> bool:
    head, _, body = whole(exchange).partition(b"\r\n\r\n")
    exchange.send(head + b"\r\n\r\n")
    exchange.drip(body)
    return False


def dripped_chunks(exchange: Exchange) -> bool:
    head, _, body = chunked(exchange).partition(b"\r\n\r\n")
    exchange.send(head + b"\r\n\r\n")
    exchange.drip(body)
    return False


def slow_but_in_time(exchange: Exchange) -> None:
    data = whole(exchange)
    for place in range(0, len(data), len(data) // 4 + 1):
        exchange.send(data[place : place + len(data) // 4 + 1])
        time.sleep(0.03)


def closed_between_requests(exchange: Exchange) -> bool:
    exchange.send(whole(exchange))
    return False


def silent_at_first(exchange: Exchange) -> bool:
    if exchange.number == 1:
        exchange.wait()
        return False
    good(exchange)
    return True


def reset(exchange: Exchange) -> bool:
    exchange.reset()
    return False


def two_answers(exchange: Exchange) -> None:
    """A second answer at once, as of a proxy that is out of step: the connection's next request would get it."""
    exchange.send(whole(exchange) + whole(exchange))


def busy_and_an_answer(exchange: Exchange) -> None:
    """The second attempt would get an answer that was not made for it."""
    exchange.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy" + whole(exchange))


def twice(exchange: Exchange, first: float, second: float) -> None:
    answer = exchange.right()
    top = [{"token": "Yes", "logprob": first}, {"token": "Yes", "logprob": second}, {"token": "No", "logprob": -3.0}]
    first_token(answer).update(token="Yes", logprob=first, top_logprobs=top)
    exchange.answer(answer)


def with_listed(token: object) -> Mode:
    """One more word among the likeliest."""
    return spoiled(lambda answer: first_token(answer)["top_logprobs"].append({"token": token, "logprob": -20.0}))


def bomb(encoding: str, status: str = "200 OK", level: int = 9) -> Mode:
    """200 MB of zeros, which are 200 kB compressed (at level 1: 900 kB)."""

    def mode(exchange: Exchange) -> None:
        pack = zlib.compressobj(level, wbits=31 if encoding == "gzip" else 15)
        data = b"".join(pack.compress(bytes(MB)) for _ in range(200)) + pack.flush()
        exchange.answer(data, status, Content_Encoding=encoding)

    return mode


def packed(encoding: str, pack: Callable[[bytes], bytes]) -> Mode:
    """The right answer, compressed."""
    return lambda exchange: exchange.answer(pack(json.dumps(exchange.right()).encode()), Content_Encoding=encoding)


def in_older_form(change: Callable[[dict], object] = lambda told: None) -> Mode:
    """Log-probabilities as the completions API had them: words and numbers in lists of their own."""

    def mode(exchange: Exchange) -> None:
        answer = exchange.right()
        first = first_token(answer)
        likeliest = {entry["token"]: entry["logprob"] for entry in first["top_logprobs"]}
        told = {"tokens": [first["token"]], "token_logprobs": [first["logprob"]], "text_offset": [0], "top_logprobs": [likeliest]}
        change(told)
        answer["choices"][0]["logprobs"] = told
        exchange.answer(answer)

    return mode


def error_inside(answer: dict, times: int = 99) -> Mode:
    """An error with status 200, as of a gateway whose upstream failed after it had begun to answer."""
    return lambda exchange: exchange.answer(answer) if exchange.number <= times else good(exchange)


def other_word(value: object) -> Mode:
    """One more word among the likeliest, with this for its log-probability."""
    return spoiled(lambda answer: first_token(answer)["top_logprobs"].append({"token": "zz", "logprob": value, "bytes": None}))


def written(before: str) -> Mode:
    """Every word with this before it."""

    def change(answer: dict) -> None:
        entries = first_token(answer)["top_logprobs"]
        for entry in [first_token(answer), *entries]:
            entry["token"] = before + entry["token"]

    return spoiled(change)


def huge(status: str) -> Mode:
    return endless(f"HTTP/1.1 {status}\r\nContent-Length: {200 * MB}\r\n\r\n".encode(), b"x" * 65536)


UNUSABLE = "the answer of http.* cannot be used: "
NOT_READ = "the answer of http.* cannot be read: "
SILENT = r"did not answer in 2 attempts \(no whole answer in 0.5 s\).*see that the server runs"
BROKEN = r"did not answer in 2 attempts \(RemoteProtocolError"
TOO_LONG = r"answers with more than 262,144 bytes; check judge.openai.url"

MODES: dict[str, tuple[Mode, str]] = {
    "good": (good, RIGHT),
    # time
    "slow but in time": (slow_but_in_time, RIGHT),
    "silent at first": (silent_at_first, RIGHT),
    "silent": (lambda exchange: exchange.wait(), SILENT),
    "silent after the headers": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", "wait"), SILENT),
    "a body that drips": (dripped_body, SILENT),
    "chunks that drip": (dripped_chunks, SILENT),
    "headers that drip": (lambda exchange: exchange.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 1000), SILENT),
    "a status line that drips": (lambda exchange: exchange.drip(b"HTTP/1.1 200 " + b"O" * 1000), SILENT),
    "an error's body that drips": (lambda exchange: exchange.drip(b"HTTP/1.1 500 No\r\nContent-Length: 500\r\n\r\n" + b"x" * 500), SILENT),
    "interim answers without an end": (endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), SILENT),
    "a body shorter than promised": (raw(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"a": 1}', "wait"), SILENT),
    # HTTP
    "an interim answer": (lambda exchange: exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n" + whole(exchange)), RIGHT),
    "HTTP/1.0": (lambda exchange: exchange.send(whole(exchange, status="HTTP/1.0 200 OK")) or False, RIGHT),
    "closed after each answer": (closed_between_requests, RIGHT),
    "chunked": (lambda exchange: exchange.send(chunked(exchange)), RIGHT),
    "chunked by single bytes": (lambda exchange: exchange.send(chunked(exchange, size=1)), RIGHT),
    "chunks with extensions and a trailer": (lambda exchange: exchange.send(chunked(exchange, b";a=b", b"X-Sum: 1\r\n")), RIGHT),
    "status 201": (lambda exchange: exchange.answer(exchange.right(), "201 Created"), RIGHT),
    "an encoding called identity": (lambda exchange: exchange.answer(exchange.right(), Content_Encoding="identity"), RIGHT),
    "two answers to a request": (two_answers, "sends more after its answer, which the next pair would be judged by"),
    "an answer after being busy": (busy_and_an_answer, "sends more after its answer"),
    "a body longer than promised": (lambda exchange: exchange.send(whole(exchange) + b"and more"), "sends more after its answer"),
    "a chunk after the last": (lambda exchange: exchange.send(chunked(exchange) + b"5\r\nhello\r\n"), "sends more after its answer"),
    "two lengths": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), BROKEN),
    "a length that is no number": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"), BROKEN),
    "a negative length": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"), BROKEN),
    "a chunk without a size": (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"), BROKEN),
    "another transfer coding": (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}"), BROKEN),
    "closed without an answer": (raw(b""), BROKEN),
    "closed in the headers": (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), BROKEN),
    "closed in the body": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"), BROKEN),
    "reset": (reset, "did not answer in 2 attempts"),
    "not HTTP": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), BROKEN),
    "HTTP/0.9": (raw(b'{"choices": []}'), BROKEN),
    "headers without an end": (endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 1000 + b"\r\n"), BROKEN),
    "a status that is none": (raw(b"HTTP/1.1 999999 OK\r\n\r\n"), BROKEN),
    "no content": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), f"{NOT_READ}it is not JSON"),
    "not modified": (raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"), "answers 304, a redirect to ''"),
    "another protocol": (raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), BROKEN),
    "not found": (lambda exchange: exchange.answer(b"no such page", "404 Not Found"), "answers 404: no such page; check judge.openai"),
    "an error that acts on a screen": (lambda exchange: exchange.answer(b"\x1b[2J\x07gone", "400 No"), r"answers 400: \\x1b\[2J\\x07gone"),
    "always busy": (lambda exchange: exchange.answer(b"full", "503 Busy"), r"did not answer in 2 attempts \(503 full\)"),
    # bodies
    "a body of 200 MB": (huge("200 OK"), TOO_LONG),
    "a body without an end": (endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), TOO_LONG),
    "chunks without an end": (
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        TOO_LONG,
    ),
    "an error of 200 MB": (huge("400 No"), "answers 400: x{200}"),
    "a busy server of 200 MB": (huge("500 No"), r"did not answer in 2 attempts \(500 x{200}\)"),
    "gzip": (packed("gzip", gzip.compress), RIGHT),
    "gzip in capitals": (packed("GZIP", gzip.compress), RIGHT),
    "deflate": (packed("deflate", zlib.compress), RIGHT),
    "gzip cut off": (packed("gzip", lambda data: gzip.compress(data)[:-20]), "answers in 'gzip', which cannot be read"),
    "gzip that is none": (packed("gzip", lambda data: data), "answers in 'gzip', which cannot be read"),
    "gzip with more behind it": (packed("gzip", lambda data: gzip.compress(data) + b"more"), "answers in 'gzip', which cannot be read"),
    "an error in gzip": (
        lambda exchange: exchange.answer(gzip.compress(b"no such model"), "404 Not Found", Content_Encoding="gzip"),
        "answers 404: no such model",
    ),
    "a gzip bomb": (bomb("gzip"), TOO_LONG),
    "a large gzip bomb": (bomb("gzip", level=1), TOO_LONG),
    "a deflate bomb": (bomb("deflate"), TOO_LONG),
    "a busy gzip bomb": (bomb("gzip", "503 Busy", level=1), r"did not answer in 2 attempts \(503 \(a body in gzip\)\)"),
    "brotli": (lambda exchange: exchange.answer(b"\x0b\x02\x80{}\x03", Content_Encoding="br"), "answers in 'br'"),
    "empty": (lambda exchange: exchange.answer(b""), f"{NOT_READ}it is not JSON"),
    "a web page": (
        lambda exchange: exchange.answer(b"<html>Welcome"),
        f"{NOT_READ}it is not JSON: '<html>Welcome'; check judge.openai.url",
    ),
    "events": (lambda exchange: exchange.answer(b'data: {"choices": []}\n\n'), f"{NOT_READ}it is not JSON"),
    "not UTF-8": (lambda exchange: exchange.answer(b'{"choices": "\xff\xfe\xe9"}'), f"{NOT_READ}it is not JSON"),
    "with a byte order mark": (lambda exchange: exchange.answer(json.dumps(exchange.right()).encode("utf-8-sig")), RIGHT),
    "nested deeply": (lambda exchange: exchange.answer(b"[" * 100_000), f"{NOT_READ}it is nested too deeply"),
    "nested deeply inside": (lambda exchange: exchange.answer(b'{"choices": ' + b'{"a":' * 40_000), f"{NOT_READ}it is nested too deeply"),
    "an integer without an end": (lambda exchange: exchange.answer(b'{"usage": ' + b"9" * 100_000 + b"}"), f"{NOT_READ}it is not JSON"),
    "a list": (spoiled(lambda answer: [answer]), f"{NOT_READ}it is JSON, but a list instead of an object"),
    "a number": (lambda exchange: exchange.answer(b"1"), f"{NOT_READ}it is JSON, but a number"),
    "null": (lambda exchange: exchange.answer(b"null"), f"{NOT_READ}it is JSON, but null"),
    # what is in them
    "an error inside": (
        error_inside({"error": {"message": "no"}}),
        r'answers 200 with an error inside: {"error": {"message": "no"}}; check judge.openai .url, model, top_logprobs. and OPENAI_API_KEY',
    ),
    "an error inside, as text": (error_inside({"error": "no such model"}), "answers 200 with an error inside: .*no such model"),
    "an error inside, with a code": (error_inside({"error": {"message": "no", "code": 400}}), "answers 200 with an error inside"),
    "an error inside, with a code of any kind": (error_inside({"error": {"code": [5]}}), "answers 200 with an error inside"),
    "an error inside, as an object": (error_inside({"object": "error", "message": "no", "code": 404}), "200 with an error inside: .*404"),
    "busy inside": (error_inside({"error": {"message": "full", "code": 429}}), r"in 2 attempts \(200 with an error inside: .*full"),
    "busy inside once": (error_inside({"error": {"message": "full", "code": 429}}, 1), RIGHT),
    "busy inside once, as text": (error_inside({"error": {"message": "full", "code": "503"}}, 1), RIGHT),
    "an upstream's error once": (error_inside({"choices": [{"error": {"code": 502, "message": "gone"}}]}, 1), RIGHT),
    "more keys": (spoiled(lambda answer: answer.update(error=None, extra=[{}])), RIGHT),
    "two choices": (spoiled(lambda answer: answer["choices"].append({"index": 1, "logprobs": None})), RIGHT),
    "no choice": (spoiled(lambda answer: answer.update(choices=[])), f"{UNUSABLE}it has no log-probabilities: no `choices.0`"),
    "choices null": (spoiled(lambda answer: answer.update(choices=None)), f"{UNUSABLE}.*no `choices.0`"),
    "choices by name": (spoiled(lambda answer: answer.update(choices={"0": answer["choices"][0]})), f"{UNUSABLE}.*no `choices.0`"),
    "choices as text": (spoiled(lambda answer: answer.update(choices="Yes")), f"{UNUSABLE}.*no `choices.0`"),
    "a choice as text": (spoiled(lambda answer: answer.update(choices=["Yes"])), f"{UNUSABLE}.*no `choices.0.logprobs`"),
    "no token": (
        spoiled(lambda answer: answer["choices"][0]["logprobs"].update(content=[])),
        f"{UNUSABLE}.*no `choices.0.logprobs.content.0`",
    ),
    "no log-probabilities, cut off": (
        spoiled(lambda answer: answer["choices"][0].update(logprobs={"content": None}, finish_reason="length")),
        f"{UNUSABLE}.*no `choices.0.logprobs.content.0`",
    ),
    "in the older form": (in_older_form(), RIGHT),
    "in the older form beside null": (in_older_form(lambda told: told.update(content=None)), RIGHT),
    "in the older form without words": (in_older_form(lambda told: told.update(tokens=[])), f"{UNUSABLE}.*no `tokens.0`"),
    "in the older form, null": (in_older_form(lambda told: told.update(top_logprobs=[None])), f"{UNUSABLE}`top_logprobs.0` is null"),
    "in the older form, empty": (in_older_form(lambda told: told.update(top_logprobs=[])), f"{UNUSABLE}.*no `top_logprobs.0`"),
    "in the older form without No": (
        in_older_form(lambda told: told.update(tokens=["Yes"], token_logprobs=[-0.1], top_logprobs=[{"Yes": -0.1}])),
        "'No' is not among the 1 likeliest words .'Yes'",
    ),
    "in the older form, two for Yes": (
        in_older_form(lambda told: told.update(tokens=["Yes"], token_logprobs=[-9.0], top_logprobs=[{"Yes": -0.1, "No": -3.0}])),
        f"{UNUSABLE}'Yes' is listed with the log-probabilities -0.1 and -9",
    ),
    "words after a blank": (written(" "), "'Yes' is not among the 4 likeliest words .*; ' Yes' is, which is another token; raise"),
    "words after a mark": (written("\u2581"), "; '\u2581Yes' is, which is another token"),
    "another word's null": (other_word(None), RIGHT),
    "another word's 3": (other_word(3), RIGHT),
    "no likeliest": (spoiled(lambda answer: first_token(answer).update(top_logprobs=None)), f"{UNUSABLE}`top_logprobs` is null"),
    "likeliest by name": (
        spoiled(lambda answer: first_token(answer).update(top_logprobs={"Yes": -1})),
        f"{UNUSABLE}`top_logprobs` is an obj",
    ),
    "a likeliest as text": (spoiled(lambda answer: first_token(answer)["top_logprobs"].append("Yes")), f"{UNUSABLE}.*no `token`"),
    "a token as number": (with_listed(7), f"{UNUSABLE}a `token` is a number"),
    "a lone surrogate": (with_listed("\ud800"), RIGHT),
    "control characters": (with_listed("\x1b[2J"), RIGHT),
    "log-probability 5": (logprob("5"), f"{UNUSABLE}the log-probability of 'Yes' is 5, and one is a number of at most 0"),
    "log-probability 0.01": (logprob("0.01"), f"{UNUSABLE}the log-probability of 'Yes' is 0.01"),
    "log-probability NaN": (logprob("NaN"), f"{UNUSABLE}the log-probability of 'Yes' is nan"),
    "log-probability infinite": (logprob("Infinity"), f"{UNUSABLE}the log-probability of 'Yes' is inf"),
    "log-probability minus infinite": (logprob("-Infinity"), f"{UNUSABLE}the log-probability of 'Yes' is -inf, and a finite number"),
    "log-probability 1e999": (logprob("1e999"), f"{UNUSABLE}the log-probability of 'Yes' is inf"),
    "log-probability -1e39": (logprob("-1e39"), f"{UNUSABLE}the log-probability of 'Yes' is -1e.39, and a finite number"),
    "log-probability of 400 digits": (logprob("1" + "0" * 400), f"{UNUSABLE}the log-probability of 'Yes' is inf"),
    "log-probability of -400 digits": (logprob("-1" + "0" * 400), f"{UNUSABLE}the log-probability of 'Yes' is -inf"),
    "log-probability true": (logprob("true"), f"{UNUSABLE}the log-probability of 'Yes' is true or false"),
    "log-probability text": (logprob('"-0.5"'), f"{UNUSABLE}the log-probability of 'Yes' is text"),
    "log-probability null": (logprob("null"), f"{UNUSABLE}the log-probability of 'Yes' is null"),
    "log-probability list": (logprob("[-0.5]"), f"{UNUSABLE}the log-probability of 'Yes' is a list"),
    "Yes with two": (lambda exchange: twice(exchange, -0.5, -2.5), f"{UNUSABLE}'Yes' is listed with the log-probabilities -0.5 and -2.5"),
    # counts
    "usage null": (usage(None), RIGHT),
    "usage text": (usage("many"), RIGHT),
    "usage list": (usage([1, 2]), RIGHT),
    "usage number": (usage(5), RIGHT),
    "no usage": (spoiled(lambda answer: answer.pop("usage") and None), RIGHT),
    "details list": (usage({"prompt_tokens": 5, "prompt_tokens_details": [1]}), RIGHT),
    "tokens null": (prompt_tokens(None), RIGHT),
    "tokens text": (prompt_tokens("5"), RIGHT),
    "tokens negative": (prompt_tokens(-5), RIGHT),
    "tokens true": (prompt_tokens(True), RIGHT),
    "tokens list": (prompt_tokens([5]), RIGHT),
    "tokens huge": (prompt_tokens(10**4000), RIGHT),
    "tokens NaN": (prompt_tokens(float("nan")), RIGHT),
    "tokens 1e300": (prompt_tokens(1e300), RIGHT),
    # Retry-After
    "come back at once": (busy_once("0"), RIGHT),
    "keep-alive spaces before the answer": (
        lambda exchange: exchange.answer(b"\n       \n\n" * 50 + json.dumps(exchange.right()).encode()),
        RIGHT,
    ),
    "come back in a fraction": (busy_once("0.1"), RIGHT),
    "come back in a day": (
        busy_once("86400"),
        r"is busy \(429 busy\) and its Retry-After says 86400 s, more than the 60 s .* run again after",
    ),
    "come back in 3 million years": (busy_once("99999999999999"), "Retry-After says 99999999999999 s, more than the 60 s"),
    "come back never": (busy_once("9" * 5000), "Retry-After says inf s"),
    "come back in the year 9999": (busy_once("Fri, 31 Dec 9999 23:59:59 GMT"), r"Retry-After says \d+ s"),
    "come back in a day, as an error": (busy_once("86400", "503 Service Unavailable"), r"is busy \(503 busy\)"),
    "come back in 1960": (busy_once("Sat, 31 Dec 1960 23:59:59 GMT"), RIGHT),
    "come back in the year 1": (busy_once("Mon, 01 Jan 0001 00:00:00 +2359"), RIGHT),
    "come back on no day": (busy_once("Fri, 99 Foo 2027 99:99:99 GMT"), RIGHT),
    "come back -5": (busy_once("-5"), RIGHT),
    "come back NaN": (busy_once("NaN"), RIGHT),
    "come back inf": (busy_once("inf"), RIGHT),
    "come back 1e400": (busy_once("1e400"), RIGHT),
    "come back soon": (busy_once("soon"), RIGHT),
    "come back in Arabic digits": (busy_once("٣٣٣٣"), RIGHT),
    "come back in Latin-1": (busy_once(b"\xb2\xb3"), RIGHT),
    "come back empty": (busy_once(""), RIGHT),
}


@pytest.mark.parametrize("name", MODES)
def test_a_server_gives_right_scores_or_an_error_in_time(name: str, opened, question: Question, wanted: np.ndarray):
    mode, expected = MODES[name]
    with raw_server.serving(mode) as server:
        timeout = SHORT if expected == SILENT or name == "silent at first" else TIMEOUT
        backend = opened(server.url, timeout=timeout)
        begun = time.monotonic()
        if expected == RIGHT:
            (rows,) = backend.answers([question])
            assert np.array_equal(rows, wanted)
        else:
            pair = f"query {question.query}, candidate {question.candidates[0]}"
            with pytest.raises(ServerError, match=f"(?s){re.escape(pair)}: .*{expected}") as error:
                backend.answers([question])
            assert str(error.value).isprintable() and len(str(error.value)) < 1500
            assert error.value.__cause__ is None and error.value.__context__ is None, "the chain would hold what the server sent"
        attempts = RETRIES + 1 if expected == SILENT else 1
        assert time.monotonic() - begun < attempts * timeout + 1
    assert server.heads and all(b"accept-encoding: identity" in head.lower() for head in server.heads)


@pytest.mark.parametrize(
    "name",
    [
        *("a body of 200 MB", "a body without an end", "a gzip bomb", "a large gzip bomb", "an error of 200 MB"),
        *("headers without an end", "nested deeply"),
    ],
)
def test_no_answer_takes_much_memory(name: str, opened, question: Question):
    def peak(mode: Mode, **settings: object) -> int:
        with raw_server.serving(mode) as server:
            backend = opened(server.url, **settings)
            tracemalloc.start()
            try:
                backend.answers([question])
                assert mode is good
            except ServerError:
                assert mode is not good
            finally:
                found = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        return found

    allowed = peak(good, timeout=20.0) + 20 * MB
    assert peak(MODES[name][0], timeout=20.0, retries=0) < allowed


def test_a_small_answer_in_many_values_takes_little_memory():
    """The most that a body of the allowed size can become."""
    tracemalloc.start()
    answer = openai_answers.parsed(b'{"a": [' + b"{}," * (openai_http.BODY // 3 - 10) + b"{}]}")
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(answer["a"]) > 80_000 and found < 20 * MB


@pytest.mark.parametrize(("after", "wait"), [("1", 1.0), ("", 0.0), ("0", 0.0), ("0.00", 0.0)])
def test_every_wait_is_logged_with_its_length_reason_and_attempt(after: str, wait: float, opened, question: Question, caplog):
    with caplog.at_level(logging.INFO), raw_server.serving(busy_once(after)) as server:
        opened(server.url).answers([question])
    (line,) = [message for message in caplog.messages if "attempt" in message]
    pair = f"query {question.query}, candidate {question.candidates[0]}"
    found = re.fullmatch(rf"openai: {pair}: attempt 1 of 2: 429 busy; the next one in (\S+) s(, as its Retry-After says)?", line)
    assert found and float(found[1]) == wait and bool(found[2]) == bool(wait)


def test_a_wait_that_is_too_long_is_logged_and_refused_at_once(opened, question: Question, caplog):
    with caplog.at_level(logging.INFO), raw_server.serving(busy_once("86400")) as server:
        with pytest.raises(ServerError, match="Retry-After says 86400 s, more than the 100 s that a run waits"):
            opened(server.url, timeout=100.0).answers([question])
    assert len(server.heads) == 1 and "attempt 1 of 2: 429 busy; no next one: its Retry-After says 86400 s" in caplog.text


def test_many_retries_overflow_nothing(opened):
    backend = opened("http://127.0.0.1:9/v1", retries=10_000)
    assert backend._pause("a pair", 9_999, "busy", None) <= 1.5 * openai_backend.LONGEST


def test_the_deadline_covers_the_handshake_and_the_connection(opened, question: Question):
    with raw_server.serving(good) as server:  # takes a ClientHello for the beginning of a request
        begun = time.monotonic()
        with pytest.raises(ServerError, match="no whole answer in 0.5 s"):
            opened(server.url.replace("http:", "https:"), timeout=SHORT).answers([question])
        assert time.monotonic() - begun < (RETRIES + 1) * SHORT + 1 and server.connections == 2
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        begun = time.monotonic()
        with pytest.raises(ServerError, match="did not answer in 2 attempts"):
            opened(f"http://127.0.0.1:{address[1]}/v1", timeout=SHORT).answers([question])
        assert time.monotonic() - begun < (RETRIES + 1) * SHORT + 1
        for one in waiting:
            one.close()


def test_the_first_error_ends_the_requests_that_are_under_way(opened, tables):
    _, pairs = tables
    asked = Question(pairs["query"][0], tuple(pairs["positive"].unique(maintain_order=True)[:6]))

    def mode(exchange: Exchange) -> None:
        if exchange.number == 6:
            exchange.answer(b"no", "400 No")
        else:
            exchange.wait()

    with raw_server.serving(mode) as server:
        begun = time.monotonic()
        with pytest.raises(ServerError, match="answers 400: no"):
            opened(server.url, in_flight=6, timeout=60.0).answers([asked])
        assert time.monotonic() - begun < 10


def test_a_proxy_is_used_and_its_answers_are_checked_too(opened, question: Question, wanted: np.ndarray, monkeypatch):
    for mode, works in ((good, True), (two_answers, False)):
        with raw_server.serving(mode) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
            backend = opened("http://judge.invalid/v1")
            if works:
                assert np.array_equal(backend.answers([question])[0], wanted)
            else:
                with pytest.raises(ServerError, match="sends more after its answer"):
                    backend.answers([question])
            assert proxy.heads[0].startswith(b"POST http://judge.invalid/v1/chat/completions")


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("ALL_PROXY", "socks5://user:secret@127.0.0.1:9", "ALL_PROXY names a proxy that cannot be used.*http:// or https://"),
        ("HTTPS_PROXY", "ftp://user:secret@127.0.0.1:9", "ALL_PROXY names a proxy that cannot be used"),
        ("SSL_CERT_FILE", "/nowhere/secret.pem", "SSL_CERT_FILE or SSL_CERT_DIR names cannot be read .FileNotFoundError"),
    ],
)
def test_an_environment_that_the_client_cannot_use_is_named_and_no_password_shown(variable, value, why, opened, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=why) as refused:
        opened("http://127.0.0.1:9/v1")
    assert "secret" not in str(refused.value)


def test_a_server_is_reached_past_a_proxy_where_no_proxy_names_it(opened, question: Question, wanted: np.ndarray, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for hosts in ("127.0.0.1,localhost", "127.0.0.0/8", "*"):
        monkeypatch.setenv("NO_PROXY", hosts)
        with raw_server.serving(good) as server:
            assert np.array_equal(opened(server.url).answers([question])[0], wanted)


def test_a_proxy_that_does_not_answer_is_named_with_the_way_past_it(opened, question: Question, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    with pytest.raises(ServerError, match="ConnectError: .*; HTTP_PROXY is set, and NO_PROXY names hosts") as refused:
        opened("http://judge.invalid/v1").answers([question])
    assert "secret" not in str(refused.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_server_whose_certificate_is_not_trusted_is_refused_until_it_is(
    opened, question: Question, wanted: np.ndarray, monkeypatch, tmp_path: Path
):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate), *name]
    subprocess.run(making, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for mode, why in ((good, ""), (two_answers, "sends more after its answer")):
        with raw_server.serving(mode, tls=context) as server:
            monkeypatch.delenv("SSL_CERT_FILE", raising=False)
            with pytest.raises(ServerError, match="CERTIFICATE_VERIFY_FAILED.*; SSL_CERT_FILE names certificates to trust"):
                opened(server.url).answers([question])
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            if why:
                with pytest.raises(ServerError, match=why):
                    opened(server.url).answers([question])
            else:
                assert np.array_equal(opened(server.url).answers([question])[0], wanted)


def test_a_server_is_reached_by_a_name_and_by_an_address_of_ip_version_6(opened, question: Question, wanted: np.ndarray):
    with raw_server.serving(good) as server:
        assert np.array_equal(opened(server.url.replace("127.0.0.1", "localhost")).answers([question])[0], wanted)
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with raw_server.serving(good, "::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert np.array_equal(opened(server.url).answers([question])[0], wanted)


def test_float16_rounding_of_a_log_probability_is_no_error(opened, question: Question):
    with raw_server.serving(logprob("1.2e-7")) as server:
        (rows,) = opened(server.url).answers([question])
    assert (rows[:, 0] == np.float32(1.2e-7)).all()


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([11, 12], "is 2 tokens, one is needed"),
        ([], "is 0 tokens"),
        (None, "`tokens` is null instead of a list"),
        ("11", "`tokens` is text"),
        ([True], "is no id"),
        (["11"], "is no id"),
        ([-1], "is no id"),
        ([1.5], "is no id"),
        ([7], "'Yes' and 'No' are one token, 7"),
    ],
)
def test_token_ids_that_are_none_are_refused(tokens: object, why: str, opened, question: Question):
    with raw_server.serving(lambda exchange: exchange.answer({"tokens": tokens})) as server:
        with pytest.raises(ServerError, match=why):
            opened(server.url, token_ids=True).answers([question])


# The key


def spellings(key: str) -> list[bytes]:
    """The key as a server may repeat it."""
    text = json.dumps({"error": f"wrong key: Bearer {key}"})
    return [
        key.encode(),
        text.encode(),
        json.dumps(text).encode(),
        text.replace("/", "\\/").encode(),
        "".join(f"\\u{ord(letter):04x}" for letter in key).encode(),
        quote(key).encode(),
        quote(key, safe="").encode(),
        quote(quote(key, safe=""), safe="").lower().encode(),
        html.escape(f'<a href="/login?key={key}">').encode(),
        "".join(f"&#{ord(letter)};" for letter in key).encode(),
        key.upper().encode(),
        key[:20].encode() + b"...",
        b"..." + key[10:].encode(),
        ("x" * 190 + key).encode(),
        ("x" * 490 + key).encode(),
        base64.b64encode(f"Bearer {key}".encode()),
        base64.b64encode(f"u:{key}".encode()),
        base64.urlsafe_b64encode(f"{key} again".encode()),
        key.encode().hex().encode(),
    ]


def leaks(text: str) -> list[str]:
    """Pieces of the key in a text, in each of the spellings that are tried."""
    data = KEY.encode()
    escaped = ["".join(f"\\u{ord(letter):04x}" for letter in KEY), "".join(f"&#{ord(letter)};" for letter in KEY), KEY.replace("/", "\\/")]
    quoted = [quote(KEY, safe=""), quote(quote(KEY, safe=""), safe="")]
    coded = [base64.b64encode(bytes(before) + data).decode()[4:-4] for before in range(3)]  # the ends depend on what is around the key
    found = []
    for spelled in [KEY, data.hex(), *escaped, *quoted, *coded]:
        pieces = [spelled[place : place + 12].lower() for place in range(len(spelled) - 11)]
        found += [piece for piece in pieces if piece in text.lower()]
    return found


def test_leaks_are_found():
    assert all(leaks(data.decode()) for data in spellings(KEY))
    assert not leaks("judge.openai.url, OPENAI_API_KEY, Incorrect API key provided")


@pytest.mark.parametrize(
    "place", ["body", "busy body", "good body", "reason", "status line", "location", "encoding", "retry", "token", "value"]
)
@pytest.mark.parametrize("number", range(len(spellings(KEY))))
def test_the_key_is_masked_wherever_a_server_repeats_it(place: str, number: int, opened, question: Question, monkeypatch, caplog):
    said = spellings(KEY)[number]
    modes: dict[str, Mode] = {
        "body": lambda exchange: exchange.answer(said, "401 No"),
        "busy body": lambda exchange: exchange.answer(said, "503 No"),
        "good body": lambda exchange: exchange.answer(said),
        "reason": lambda exchange: exchange.answer(b"no", f"401 {said.decode()}"),
        "status line": raw(said + b"\r\n\r\n"),
        "location": lambda exchange: exchange.answer(b"", "307 Moved", Location=f"http://127.0.0.1:9/{said.decode()}"),
        "encoding": lambda exchange: exchange.answer(b"", Content_Encoding=said.decode()),
        "retry": busy_once(said),
        "token": spoiled(lambda answer: first_token(answer).update(token=said.decode(), top_logprobs=[])),
        "value": with_listed(said.decode()),
    }
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with caplog.at_level(logging.DEBUG), raw_server.serving(modes[place]) as server:
        backend = opened(server.url)
        if place in ("retry", "value"):
            backend.answers([question])
        else:
            with pytest.raises(ServerError) as error:
                backend.answers([question])
            everything = "".join(traceback.format_exception(error.value)) + repr(error.value)
            assert not leaks(everything) and error.value.__cause__ is None and error.value.__context__ is None
    assert all(f"Bearer {KEY}".encode() in head for head in server.heads) and server.heads
    assert not leaks(caplog.text)


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_a_redirect_is_named_and_the_key_goes_nowhere_else(status: str, opened, question: Question, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with raw_server.serving(good) as other:
        elsewhere = other.url + "/chat/completions"
        with raw_server.serving(lambda exchange: exchange.answer(b"", f"{status} Moved", Location=elsewhere)) as server:
            with pytest.raises(
                ServerError, match=f"answers {status}, a redirect to '{elsewhere}', which is not followed.*judge.openai.url"
            ):
                opened(server.url).answers([question])
        assert not other.connections and len(server.heads) == 1


@pytest.mark.parametrize("key", ["{}\n", " {}", "{} ", "{}\r\nX-More: 1", "a {}", "{}é", "\t{}", "{}\x7f", "“{}”", "{}\udce9"])
def test_a_key_that_no_header_can_hold_is_refused_by_name_and_not_shown(key: str, opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key.format(KEY))
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY: character \d+ of \d+ is a blank, a line end or no ASCII") as refused:
        opened("http://127.0.0.1:9/v1")
    assert not leaks(str(refused.value))


def test_a_url_that_holds_the_key_is_refused(opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for spelled in (KEY, quote(KEY, safe="")):
        with pytest.raises(ConfigError, match="judge.openai.url holds the value of OPENAI_API_KEY") as refused:
            opened(f"http://127.0.0.1:9/{spelled}/v1")
        assert not leaks(str(refused.value))


@pytest.mark.parametrize("key", ["x", "EMPTY", "sk-12345", "a" * 4000])
def test_a_mask_hides_a_key_of_any_length_and_nothing_else(key: str):
    mask = Mask(key)
    assert mask(f"({key}) {{#;%}}") == f"({'*' * len(key)}) {{#;%}}"
    assert mask("") == "" and Mask("")("(any text)") == "(any text)"


def test_a_mask_is_quick_on_text_that_escapes_without_end():
    mask = Mask(KEY)
    begun = time.monotonic()
    for text in ("\\" * 30_000, "%25" * 10_000, "&#0000" * 5_000, KEY * 800):
        assert len(mask(text)) == len(text)
    assert time.monotonic() - begun < 20


def test_a_stage_leaves_the_key_in_no_file_and_not_on_the_screen(tables, tmp_path: Path):
    """`python -m unime judge` against a server that repeats the key: refused at first, busy with waits, then right."""
    items, pairs = tables
    others = pairs["positive"].unique(maintain_order=True)[:2]
    rows = [(pair, one, rank, 0.5) for pair in pairs["pair"] for rank, one in enumerate(others)]
    artifacts.write_table(items, tmp_path / f"results/data/train/{SET}/items.parquet", artifacts.ITEMS)
    artifacts.write_table(pairs, tmp_path / f"results/data/train/{SET}/pairs.parquet", artifacts.PAIRS)
    hits = pl.DataFrame(rows, schema=artifacts.HITS, orient="row")
    artifacts.write_table(hits, tmp_path / f"results/retrieve/{SET}/hits.parquet", artifacts.HITS)
    (tmp_path / "models/served").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UNIME_THREADS": "1", "OPENAI_API_KEY": KEY}
    environment.pop("OPENAI_BASE_URL", None)
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["data"]["train_sets"] = [SET]
    values["models"]["judge"] = "models/served"
    values["ablations"] = {"embedders": {}}

    def run(mode: Mode, **more: str) -> tuple[int, str]:
        """The stage's exit code, and all that it said and wrote."""
        with raw_server.serving(mode) as server:
            values["judge"] |= {"backend": "openai", "models": {}, "means": {}}
            values["judge"]["openai"] |= {"url": server.url, "retries": 1, "timeout": 20.0}
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
            command = [sys.executable, "-m", "unime", "judge", SET]
            done = subprocess.run(command, cwd=tmp_path, env=environment | more, capture_output=True, text=True)
        files = [path.read_bytes().decode("latin-1") for path in sorted(tmp_path.rglob("*")) if path.is_file()]
        text = "\n".join([done.stdout, done.stderr, *files])
        assert not leaks(text)
        return done.returncode, text

    said = json.dumps({"error": f"wrong key: Bearer {KEY}"}).encode()
    code, text = run(lambda exchange: exchange.answer(said, f"401 wrong {KEY}", X_Key=KEY))
    assert code == 1 and "answers 401" in text and "wrong key: Bearer ***" in text and "Traceback" in text
    code, text = run(raw(said + b"\r\n\r\n"))
    assert code == 1 and "did not answer in 2 attempts" in text

    def busy_first(exchange: Exchange) -> None:
        exchange.answer(said, f"429 {KEY}") if exchange.number == 1 else good(exchange)

    code, text = run(busy_first, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert code == 2 and "OPENAI_BASE_URL is http://127.0.0.1:9/v1" in text
    code, text = run(busy_first)
    assert code == 0 and "attempt 1 of 2: 429" in text and (tmp_path / f"results/judge/{SET}/judgements.parquet").exists()
