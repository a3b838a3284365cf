"""A server of raw sockets that answers each request as a test says, HTTP or not.

A mode is a function of one exchange: it sends what it wants, at the pace it wants, and returns; the connection is closed where the mode
returns False.  The requests that came are kept.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import chat_server


class Exchange:
    """One request, and the connection that its answer goes to."""

    def __init__(self, connection: socket.socket, head: bytes, body: bytes, number: int, stopped: threading.Event) -> None:
        self.connection, self.head, self.number, self.stopped = connection, head, number, stopped
        self.asked: dict[str, Any] = json.loads(body)

    def right(self) -> dict[str, Any]:
        """The right answer, to be spoiled."""
        return chat_server.completion(self.asked)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def answer(self, body: object, status: str = "200 OK", **headers: str) -> None:
        """A whole answer with these headers; a body that is not bytes is written as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *(f"{name.replace('_', '-')}: {headers[name]}" for name in headers)]
        self.send("\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + data)

    def drip(self, data: bytes, gap: float = 0.05) -> None:
        """A byte at a time, until the client has gone or the test is over."""
        for place in range(len(data)):
            self.send(data[place : place + 1])
            if self.stopped.wait(gap):
                return

    def wait(self) -> None:
        """Silence until the client closes the connection or the test is over."""
        while not self.stopped.is_set():
            if select.select([self.connection], [], [], 0.05)[0] and not self.connection.recv(65536):
                return

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


Mode = Callable[[Exchange], object]


class Raw:
    """The server, and the heads of the requests that came."""

    def __init__(self, mode: Mode, host: str, tls: ssl.SSLContext | None) -> None:
        self.mode = mode
        self.host = host
        self.tls = tls
        self.heads: list[bytes] = []
        self.connections = 0
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.listener.getsockname()[1]}/v1"

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # closed
            with self.lock:
                self.connections += 1
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                return  # a client that does not trust the certificate
        with connection:
            try:
                while request := _request(connection):
                    with self.lock:
                        self.heads.append(request[0])
                        number = len(self.heads)
                    if self.mode(Exchange(connection, *request, number, self.stopped)) is False:
                        return
            except OSError:
                return  # a client that has given up


def _request(connection: socket.socket) -> tuple[bytes, bytes] | None:
    """The head and the body of the next request; None where the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        more = connection.recv(65536)
        if not more:
            return None
        body += more
    return head, body


@contextmanager
def serving(mode: Mode, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Raw]:
    raw = Raw(mode, host, tls)
    thread = threading.Thread(target=raw.accept, daemon=True)
    thread.start()
    try:
        yield raw
    finally:
        raw.stopped.set()
        raw.listener.shutdown(socket.SHUT_RDWR)
        raw.listener.close()
        thread.join(5)
