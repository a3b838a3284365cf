"""Requests to a judge's server, each bounded in time and in memory whatever the server does.

1. `timeout` is the whole time of a request: to connect, to send, to wait and to read.  The requests run on an event loop, whose timeout
   cancels them wherever they are; a limit on single reads would never end a server that sends a byte a second.
2. A body is read to a limit.  It is asked for uncompressed; one in gzip or deflate all the same is unpacked to the same limit.
3. Redirects are not followed: the key would go along.
4. An answer must be the only thing that the server sends.  What follows it would be read as the answer to the connection's next request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
import time
import zlib
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote

import httpx2

from unime.config import ConfigError
from unime.judge.openai_key import KEY, PIECE, Mask

ADDRESS = "OPENAI_BASE_URL"

BODY = 256 * 1024
"""Bytes of a body that are read at most; the answer with twenty words has about 4 KiB."""


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Variables that name a proxy, also in lower case."""

PACKED = ("gzip", "x-gzip", "deflate")
"""Encodings of a body that are read, though none is asked for: gateways in front of a server pack whatever they pass on."""


class ServerError(ValueError):
    """The server did not answer, or not with what is needed; the message names the pair, the reason and the remedy."""


class NoReply(Exception):
    """The request was not answered in time, or the connection failed; a later attempt may do better."""


class Reply(NamedTuple):
    """What a server answered: at most BODY bytes of its body (`whole`: all of it), and the headers that are looked at."""

    status: int
    body: bytes
    whole: bool
    encoding: str
    location: str
    retry_after: str
    left_over: bool

    @property
    def text(self) -> str:
        return f"(a body in {self.encoding})" if self.encoding else self.body.decode("utf-8", "replace")


class Server:
    """An HTTP client whose `post` takes `timeout` seconds at most; an async context manager, which closes its connections."""

    def __init__(self, key: str, timeout: float, in_flight: int, trust: ssl.SSLContext, mask: Mask) -> None:
        # What these libraries log below WARNING quotes the server's reason phrase and headers, which may repeat the key.
        for name in ("httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        headers = {"Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.timeout = timeout
        self.mask = mask
        self.client = httpx2.AsyncClient(
            headers=headers,
            verify=trust,
            timeout=None,  # see `post`
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=in_flight),
        )

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def post(self, url: str, body: dict[str, object]) -> Reply:
        """The answer to a JSON body.  Raises NoReply."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self._exchange(url, body)
        except TimeoutError:
            problem = f"no whole answer in {self.timeout:g} s"
        except httpx2.TransportError as error:
            problem = f"{type(error).__name__}: {self.mask.shown(str(error))}{_hint(str(error))}"
        raise NoReply(problem)

    async def _exchange(self, url: str, body: dict[str, object]) -> Reply:
        async with self.client.stream("POST", url, json=body) as answer:
            data = bytearray()
            whole = True
            async for part in answer.aiter_raw():
                data += part
                if len(data) > BODY:
                    whole = False
                    break
            headers = answer.headers
            left_over = whole and _left_over(answer)
            encoding = headers.get("Content-Encoding", "").strip()
            if encoding.lower() == "identity":
                encoding = ""
            if whole and encoding.lower() in PACKED:
                unpacked = _unpacked(bytes(data))
                if unpacked is not None:
                    data, encoding, whole = unpacked, "", len(unpacked) <= BODY
            return Reply(
                status=answer.status_code,
                body=bytes(data[:BODY]),
                whole=whole,
                encoding=encoding,
                location=headers.get("Location", ""),
                retry_after=headers.get("Retry-After", ""),
                left_over=left_over,
            )


def _hint(error: str) -> str:
    """What in the environment a failed connection may be due to: certificates, or a proxy."""
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return "; SSL_CERT_FILE names certificates to trust"
    proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    return f"; {', '.join(proxies)} is set, and NO_PROXY names hosts that are reached without a proxy" if proxies else ""


def _unpacked(data: bytes) -> bytearray | None:
    """At most BODY + 1 bytes of what a body in gzip or deflate holds; None where it is neither, or not whole."""
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: either of the two
    try:
        found = bytearray(unpacking.decompress(data, BODY + 1))
    except zlib.error:
        return None
    return found if len(found) > BODY or (unpacking.eof and not unpacking.unused_data) else None


def _left_over(answer: httpx2.Response) -> bool:
    """Whether more than the answer came with it.

    The library keeps such bytes for the connection's next request and has no public name for them; envs/ pins its version.
    """
    stream = answer.stream
    while not hasattr(stream, "_connection"):
        stream = getattr(stream, "_httpcore_stream", None) or stream._stream
    received, _ = stream._connection._h11_state.trailing_data
    return bool(received)


def retry_after(text: str) -> float | None:
    """Seconds above 0 that a Retry-After header asks for, as a number or as a date; None where it says neither.

    A server that says 0 or a time that has passed would be asked again at once, as often as there are retries.
    """
    text = text.strip()
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
            return float(text) or None
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError):
        return None
    return seconds if seconds > 0 else None


def trusted() -> ssl.SSLContext:
    """The certificates that are trusted: the system's, or those of SSL_CERT_FILE or SSL_CERT_DIR.

    Raises ConfigError where they cannot be read, or where the environment names a proxy that the client cannot use.
    """
    try:
        context = httpx2.create_ssl_context()
    except OSError as error:
        raise ConfigError(
            f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({type(error).__name__}); set it to certificates in "
            "PEM, or unset it"
        ) from None
    try:
        httpx2.AsyncClient(verify=context)
    except (ImportError, ValueError, httpx2.InvalidURL):  # the address is not shown: it may hold a password
        raise ConfigError(
            "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names a proxy that cannot be used: a proxy's address begins with http:// or https://; "
            "change the variable, or unset it"
        ) from None
    return context


def check_address(url: str, key: str) -> None:
    """Raise ConfigError where OPENAI_BASE_URL names another server than judge.openai.url, or the url holds the key.

    A stage's scores stand under the url of its configuration, so those of two servers would be joined.
    """
    if len(key) >= PIECE and key in unquote(url):
        raise ConfigError(f"judge.openai.url holds the value of {KEY}, and the url stands in logs and records; take it out of the url")
    try:
        httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"judge.openai.url: {url!r} is no url: {error}; write one like http://127.0.0.1:8000/v1") from None
    given = os.environ.get(ADDRESS, "").rstrip("/")
    if given and given != url:
        bare = re.sub(r"//[^/]*@|[?#].*", lambda found: "//" if found[0].startswith("//") else "", given)  # no password
        raise ConfigError(
            f"{ADDRESS} is {Mask(key).shown(bare)}, and judge.openai.url is {url}: scores of two servers would be joined; put the address "
            f"in config.yaml, or unset {ADDRESS}"
        )
