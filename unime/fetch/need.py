"""What is asked for, and what to say where it cannot be had.

Every failure of a fetch is one FetchError that names the repository, the reason, what is missing and how large it is, and both ways
to supply it: a connection (with a token where one is asked for), or own copies.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = ("dataset", "model")
"""Kinds of repository on the Hugging Face Hub; the others are `github` and `web` (plain files under one address)."""


@dataclass(frozen=True)
class Want:
    """Files of one repository, and where they go.

    `pattern` is a path in the repository in which `*` stands for anything within one name, never for a `/`; a file named
    ...-00000-of-00003... is wanted with its two siblings.  `to` is the place in the fetched folder: `{name}` is the file's own name,
    `{path}` its whole path.  `size` is what is known of all files together, in bytes, 0 where nothing is; `bounds` says in words what is
    known then.  `sha` is a SHA-256 for a server that gives none.  An `own` file is not in the repository: it is taken from own copies, or
    left out.
    """

    pattern: str
    to: str = "{name}"
    size: int = 0
    bounds: str = ""
    sha: str = ""
    optional: bool = False
    own: bool = False


@dataclass(frozen=True)
class Part:
    """Files of one repository at one revision.  `kind` is one of HUB, `github`, or `web`, whose files lie below `url`."""

    repository: str
    kind: str
    revision: str
    licence: str
    wants: tuple[Want, ...]
    url: str = ""


@dataclass(frozen=True)
class Request:
    """One folder to fetch; `source` is its name in the registry.  Parts are fetched in order."""

    source: str
    parts: tuple[Part, ...]


class FetchError(ValueError):
    """Something published cannot be had; the message names it, the reason, its size, and both ways to supply it."""


def readable(size: int) -> str:
    """Bytes in the unit that fits: 12.9 GB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def missing(part: Part) -> str:
    """The files that a part asks for, with their size as far as the registry knows it."""
    wants = [want for want in part.wants if not want.optional]
    shown = ", ".join(want.pattern for want in wants[:6]) + (f" and {len(wants) - 6} more" if len(wants) > 6 else "")
    size = sum(want.size for want in wants)
    sizes = ([f"about {readable(size)}"] if size else []) + [want.bounds for want in wants if want.bounds]
    return f"{shown} ({' and '.join(sizes) or 'size not known'})"


def refused(part: Part, reason: str, host: str, files: str = "") -> FetchError:
    """The error for a part that cannot be fetched; `files` says what is missing where more is known than the registry knows."""
    token = ", HF_TOKEN set to a token that may read it" if part.kind in HUB else ""
    return FetchError(
        f"{part.repository}: {reason}. Missing: {files or missing(part)}. "
        f"Either fetch it: a connection to {host}{token}; "
        f"or put the files at <folder>/{part.repository}/<path in the repository> and set fetch.copies to <folder>"
    )
