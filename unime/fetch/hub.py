"""What repositories hold, from their hosts: the commit that a revision is, and every file with its size and hash.

The Hub is asked through huggingface_hub, in one call a repository, so that commit and files are of one moment; GitHub through its own
API; files of a plain web server are asked for one by one.  Bytes are fetched by the session of huggingface_hub too (its proxies,
certificates and offline switch hold), but not by its downloaders: they start a file anew after a kill.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from unime.fetch.need import HUB, FetchError, Part, refused
from unime.fetch.select import File

TIMEOUT = 30.0
"""Seconds that a host may keep silent."""

ATTEMPTS, PAUSE = 3, 1.0
"""How often a host is asked that does not answer; seconds before the second time, twice as many before the third."""

UNREACHABLE = (httpx2.RequestError, OfflineModeIsEnabled)
PROBLEMS = (*UNREACHABLE, HfHubHTTPError, HFValidationError, json.JSONDecodeError)
"""What a request may raise; `refusal` turns it into a FetchError."""


@dataclass(frozen=True)
class Hosts:
    """Where things are asked for; `hub` '' is HF_ENDPOINT, or the Hub itself.  Tests put a server of their own here."""

    hub: str = ""
    github_api: str = "https://api.github.com"
    github_raw: str = "https://raw.githubusercontent.com"

    def of(self, part: Part) -> str:
        """The host that serves a part."""
        if part.kind in HUB:
            return self.hub or constants.ENDPOINT
        return self.github_raw if part.kind == "github" else part.url.rstrip("/")


@dataclass(frozen=True)
class Listing:
    """A repository at one commit ('' on a plain web server): its files by path, the licence on its card ('' where it has none)."""

    commit: str
    licence: str
    address: str
    files: Mapping[str, File]
    headers: Mapping[str, str] = field(default_factory=dict)


def listing(part: Part, hosts: Hosts) -> Listing:
    """All files of a part's repository at its revision.  Raises FetchError: offline, refused, gated, unknown."""
    if constants.is_offline_mode():
        raise refused(part, "this run is offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set)", hosts.of(part))
    ask = {"github": _of_github, "web": _of_web}.get(part.kind, _of_hub)
    attempt = 1
    while True:
        try:
            return ask(part, hosts)
        except PROBLEMS as error:
            if attempt == ATTEMPTS or not _passing(error):
                raise refusal(error, part, hosts) from error
            time.sleep(PAUSE * attempt)
            attempt += 1


def refusal(error: Exception, part: Part, hosts: Hosts, files: str = "") -> FetchError:
    """The FetchError for what a request raised."""
    host = hosts.of(part)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if isinstance(error, OfflineModeIsEnabled):
        reason = "this run is offline (HF_HUB_OFFLINE is set)"
    elif isinstance(error, GatedRepoError):
        reason = f"gated: its owner gives access on request at {host}/{'datasets/' if part.kind == 'dataset' else ''}{part.repository}"
    elif isinstance(error, RevisionNotFoundError):
        reason = f"it has no revision {part.revision!r}"
    elif isinstance(error, RepositoryNotFoundError) or (status == 404 and part.kind == "github"):
        reason = f"there is no such {part.kind} repository, it is private, or it has no revision {part.revision!r} ({status})"
    elif isinstance(error, HFValidationError):
        reason = f"not the name of a repository ({error})"
    elif isinstance(error, json.JSONDecodeError):
        reason = f"{host} does not answer as it should: a proxy, or a page that asks to log in?"
    elif isinstance(error, UNREACHABLE):
        reason = f"{host} cannot be reached ({type(error).__name__}: {error})"
    else:
        reason = f"{host} refuses ({status}: {str(error).strip().splitlines()[0]})"
    return refused(part, reason, host, files)


def _passing(error: Exception) -> bool:
    """Whether the same request may go well a moment later."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and (error.response.status_code == 429 or error.response.status_code >= 500)
    return isinstance(error, httpx2.TransportError)


def _of_hub(part: Part, hosts: Hosts) -> Listing:
    endpoint = hosts.of(part)
    api = HfApi(endpoint=endpoint)
    info = api.repo_info(part.repository, repo_type=part.kind, revision=part.revision, files_metadata=True, timeout=TIMEOUT)
    files = {}
    for it in info.siblings or []:
        url = hf_hub_url(part.repository, it.rfilename, repo_type=part.kind, revision=info.sha, endpoint=endpoint)
        sha = it.lfs.sha256 if it.lfs else it.blob_id
        files[it.rfilename] = File(it.rfilename, it.size, sha or "", url)
    licence = getattr(info.card_data, "license", "")
    address = f"{endpoint}/{'datasets/' if part.kind == 'dataset' else ''}{part.repository}"
    return Listing(str(info.sha), licence if isinstance(licence, str) else "", address, files, build_hf_headers())


def _of_github(part: Part, hosts: Hosts) -> Listing:
    above = f"{hosts.github_api}/repos/{part.repository}"
    commit = _get(f"{above}/commits/{quote(part.revision, safe='')}", accept="application/vnd.github.sha").text.strip()
    tree = json.loads(_get(f"{above}/git/trees/{commit}?recursive=1", accept="application/vnd.github+json").text)
    files = {
        it["path"]: File(it["path"], it["size"], it["sha"], f"{hosts.github_raw}/{part.repository}/{commit}/{quote(it['path'])}")
        for it in tree["tree"]
        if it["type"] == "blob"
    }
    return Listing(commit, "", f"https://github.com/{part.repository}", files)


def _of_web(part: Part, hosts: Hosts) -> Listing:
    files = {}
    for want in part.wants:
        url = part.url + quote(want.pattern)
        answer = get_session().head(url, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})
        if answer.status_code == 404:
            continue
        hf_raise_for_status(answer)
        if "Content-Length" not in answer.headers:
            raise FetchError(f"{url}: the server does not say how long the file is; fetch it by hand, and use fetch.copies")
        files[want.pattern] = File(want.pattern, int(answer.headers["Content-Length"]), want.sha, url)
    return Listing("", "", part.url, files)


def _get(url: str, *, accept: str) -> httpx2.Response:
    answer = get_session().get(url, timeout=TIMEOUT, headers={"Accept": accept})
    hf_raise_for_status(answer)
    return answer
