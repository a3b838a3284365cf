"""A small server that speaks the Hub's protocol, GitHub's and plain HTTP's, and breaks where it is told to.

Large files (`lfs`) are answered with a redirect to a second origin, as the Hub does; whole answers and ranges, with what was asked kept
in `asked`.  Faults are set by path: `cut` (break off after so many bytes, once per number), `wrong` (other bytes of the same length),
`longer` (another length than listed), `busy` (so many times 503), `slow` (seconds a block); `no_range` and `no_length` are
servers that do not know these.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

BLOCK = 1 << 14


@dataclass
class Repository:
    """One repository: its files by commit, what its branches are, who may read it."""

    files: dict[str, bytes]
    commit: str
    kind: str = "dataset"
    licence: str = "apache-2.0"
    gated: bool = False
    lfs: int = 1000
    refs: dict[str, str] = field(default_factory=lambda: {"main": ""})


@dataclass
class Asked:
    """One request for a file's bytes."""

    path: str
    start: int
    origin: str


class Hub:
    """The two origins, what they hold, what they were asked, and their faults."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.web: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.calls: list[str] = []
        self.tokens: set[tuple[str, str]] = set()
        self.sent: dict[str, int] = {}
        self.cut: dict[str, list[int]] = {}
        self.wrong: set[str] = set()
        self.longer: set[str] = set()
        self.busy: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.no_range = self.no_length = False
        self.front, self.back = (ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, origin)) for origin in ("hub", "cdn"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.server_port}"

    def add(self, name: str, files: dict[str, bytes], commit: str = "", **settings: object) -> Repository:
        commit = commit or hashlib.sha1(repr((name, sorted(files))).encode()).hexdigest()
        self.repositories[name] = Repository(files, commit, **settings)  # type: ignore[arg-type]
        return self.repositories[name]

    def starts(self, path: str) -> list[int]:
        """From which byte on a file was asked for, time after time (redirects counted once)."""
        return [one.start for one in self.asked if one.path == path]


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in (hub.front, hub.back)]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in (hub.front, hub.back):
            server.shutdown()
            server.server_close()


def _handler(hub: Hub, origin: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return None

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.calls.append(f"{self.command} {path}")
            hub.tokens.add((origin, self.headers.get("Authorization", "")))
            if path in hub.web:
                self._bytes(path, hub.web[path])
            elif found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/(.+)", path):
                self._info(*found.groups())
            elif found := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(*found.groups())
            elif found := re.fullmatch(r"/blob/([^/]+/[^/]+)/(.+)", path):
                self._bytes(found[2], hub.repositories[found[1]].files[found[2]])
            elif found := re.fullmatch(r"/repos/([^/]+/[^/]+)/commits/(.+)", path):
                repository = hub.repositories.get(found[1])
                self._answer(200, repository.commit.encode()) if repository else self._answer(404, b"{}")
            elif found := re.fullmatch(r"/repos/([^/]+/[^/]+)/git/trees/(.+)", path):
                files = hub.repositories[found[1]].files
                tree = [{"path": name, "type": "blob", "size": len(data), "sha": _git(data)} for name, data in files.items()]
                self._answer(200, json.dumps({"tree": tree}).encode())
            elif found := re.fullmatch(r"/raw/([^/]+/[^/]+)/([^/]+)/(.+)", path):
                self._bytes(found[3], hub.repositories[found[1]].files[found[3]])
            else:
                self._answer(404, b"{}")

        def _info(self, kind: str, name: str, revision: str) -> None:
            repository = hub.repositories.get(name)
            if repository is None or repository.kind != kind:
                self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
            elif hub.busy.get("listing", 0):
                hub.busy["listing"] -= 1
                self._answer(503, b"{}")
            elif revision not in repository.refs and revision != repository.commit:
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            else:
                siblings = [_sibling(path, data, repository) for path, data in repository.files.items()]
                answer = {"id": name, "sha": repository.commit, "siblings": siblings, "cardData": {"license": repository.licence}}
                self._answer(200, json.dumps(answer).encode())

        def _resolve(self, name: str, revision: str, path: str) -> None:
            repository = hub.repositories[name]
            assert revision == repository.commit, "files are asked for at a commit, never at a branch"
            if repository.gated:
                code = 403 if self.headers.get("Authorization") else 401
                self._answer(code, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            elif len(data := repository.files[path]) > repository.lfs:
                location = f"http://127.0.0.1:{hub.back.server_port}/blob/{name}/{path}"
                linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
                self._answer(302, b"", {"Location": location, "X-Repo-Commit": revision, **linked})
            else:
                self._bytes(path, data, {"ETag": f'"{_git(data)}"', "X-Repo-Commit": revision})

        def _bytes(self, path: str, data: bytes, headers: dict[str, str] | None = None) -> None:
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(found[1]) if found and not hub.no_range else 0
            if self.command == "GET":
                hub.asked.append(Asked(path, start, origin))
            if hub.busy.get(path, 0):
                hub.busy[path] -= 1
                self._answer(503, b"busy")
                return
            if path in hub.wrong:
                data = data[:-9] + bytes(255 - byte for byte in data[-9:])
            if path in hub.longer:
                data += b"more"
            self.send_response(206 if start else 200)
            if self.command == "HEAD" or not hub.no_length:
                self.send_header("Content-Length", str(len(data) - start))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            until = hub.cut[path].pop(0) if hub.cut.get(path) else None
            rest = data[start:] if until is None else data[start : start + until]
            for at in range(0, len(rest), BLOCK):
                self.wfile.write(rest[at : at + BLOCK])
                self.wfile.flush()
                hub.sent[path] = hub.sent.get(path, 0) + len(rest[at : at + BLOCK])
                time.sleep(hub.slow.get(path, 0))
            self.close_connection = self.close_connection or until is not None or hub.no_length

        def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                return  # a client that was killed

    return Handler


def _sibling(path: str, data: bytes, repository: Repository) -> dict[str, object]:
    it: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": _git(data)}
    if len(data) > repository.lfs:
        it["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        it["blobId"] = "0" * 40
    return it


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
