"""A small server that speaks the chat-completions API with log-probabilities, and fails where it is told to.

Its model is a hash of the conversation: two numbers, the logits of Yes and No among those of a few other words.  Faults: `busy` (status
codes to answer with first, with `after` as Retry-After), `hang` (seconds of silence, once each), `lacks` (a word that is not among the
likeliest), `plain` (no log-probabilities), `key` (the only key that it takes).  What it was asked is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IDS = {"Yes": 11, "No": 12, "Maybe": 13, "The": 14}


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # requests that arrive together wait for their threads, where the default of 5 would break them off


class Chat:
    """The server, what it was asked and its faults."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.busy: list[int] = []
        self.hang: list[float] = []
        self.after = self.lacks = self.key = ""
        self.plain = False
        self.pause = 0.0
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.server = Server(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


def logits(content: list[dict[str, Any]]) -> tuple[float, float]:
    """What the model thinks of Yes and of No after this message."""
    digest = hashlib.sha256(json.dumps(content).encode()).digest()
    return digest[0] / 32 - 4, digest[1] / 32 - 4


def completion(body: dict[str, Any], lacks: str = "", plain: bool = False) -> dict[str, Any]:
    """The right answer to a request, but for the word that it `lacks`, or without log-probabilities where `plain`."""
    assert body["max_tokens"] == 1 and body["temperature"] == 0 and body["logprobs"] is True
    yes, no = logits(body["messages"][0]["content"])
    scores = {"Yes": yes, "No": no, "Maybe": 0.5, "The": -1.0}
    total = math.log(sum(map(math.exp, scores.values())))
    names = {word: f"token_id:{IDS[word]}" if body.get("return_tokens_as_token_ids") else word for word in scores}
    words = [word for word in sorted(scores, key=lambda word: -scores[word]) if word != lacks]
    wanted = body.get("logprob_token_ids")
    told = [word for word in words if IDS[word] in wanted] if wanted else words[: body["top_logprobs"]]
    top = [{"token": names[word], "logprob": scores[word] - total} for word in told]
    first = {"token": names[words[0]], "logprob": scores[words[0]] - total, "top_logprobs": top}
    choice = {"index": 0, "message": {"role": "assistant", "content": words[0]}, "logprobs": None if plain else {"content": [first]}}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 64}}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


@contextmanager
def running() -> Iterator[Chat]:
    chat = Chat()
    thread = threading.Thread(target=chat.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        chat.server.shutdown()
        chat.server.server_close()


def _handler(chat: Chat) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return None

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with chat.lock:
                chat.times.append(time.monotonic())
                chat.now += 1
                chat.most = max(chat.most, chat.now)
                hang = chat.hang.pop(0) if chat.hang else 0.0
                code = chat.busy.pop(0) if chat.busy else 0
            try:
                time.sleep(hang + chat.pause)
                self._said(body, code)
            finally:
                with chat.lock:
                    chat.now -= 1

        def _said(self, body: dict[str, Any], code: int) -> None:
            chat.keys.add(self.headers.get("Authorization", ""))
            if chat.key and self.headers.get("Authorization") != f"Bearer {chat.key}":
                self._answer(401, {"error": {"message": "Incorrect API key provided"}})
            elif code:
                self._answer(code, {"error": {"message": "slow down"}}, {"Retry-After": chat.after} if chat.after else {})
            elif self.path == "/tokenize":
                self._answer(200, {"tokens": [IDS[body["prompt"]]]})
            elif self.path == "/v1/chat/completions":
                self._answer(200, self._completion(body))
            else:
                self._answer(404, {"error": {"message": f"no route {self.path}"}})

        def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
            with chat.lock:
                chat.asked.append(body)
            return completion(body, chat.lacks, chat.plain)

        def _answer(self, code: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            for name, value in {**(headers or {}), "Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                return  # a client that has given up

    return Handler
