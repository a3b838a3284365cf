"""What a run read: a name for it before the run, and whether it is still the same after."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from unime import closure, digests

FOREIGN = re.compile(r"\.snakemake_timestamp|\.gitignore|\..*\.tmp")
"""Names inside an input folder that are not part of the artifact."""


class Witness:
    """The code, the parameters and the inputs of a run as they are now.

    `code` holds the digests of closure.digest; `parameters()` gives the run's parameters as text, or raises KeyError or ValueError
    where the configuration is no longer one; `where` names them in messages.
    """

    def __init__(self, name: str, code: dict[str, str], parameters: Callable[[], str], where: str, inputs: list[Path]) -> None:
        self._code, self._parameters, self._where, self._inputs = code, parameters, where, inputs
        self._stamps, self._contents, self.parameters = _stamps(inputs), _contents(inputs), parameters()
        text = json.dumps([name, code, self.parameters, self._contents], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def changes(self) -> list[str]:
        """What is no longer as it was, by name; a file that was only touched is not among it."""
        return [*self._other_parameters(), *self._other_code(), *self._other_inputs()]

    def _other_parameters(self) -> list[str]:
        try:
            same = self._parameters() == self.parameters
        except (KeyError, ValueError):
            return [f"{self._where} (no longer valid)"]
        return [] if same else [self._where]

    def _other_code(self) -> list[str]:
        root = closure.repository()
        return [path for path, digest in self._code.items() if not (root / path).exists() or closure.digest([Path(path)])[path] != digest]

    def _other_inputs(self) -> list[str]:
        now, before = _stamps([path for path in self._inputs if path.exists()]), self._stamps
        touched = sorted(path for path in now.keys() | before.keys() if now.get(path) != before.get(path))
        return [path for path in touched if path not in now or _contents([Path(path)])[path] != self._contents.get(path)]


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, below, names in os.walk(path, followlinks=True):
            below[:] = sorted(name for name in below if not FOREIGN.fullmatch(name))
            yield from (Path(folder) / name for name in sorted(names) if not FOREIGN.fullmatch(name))


def _stamps(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    """The stamp of every input file: a cheap sign that its content may have changed."""
    return {str(path): digests.stamp(path.stat()) for path in _files(paths)}


def _contents(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of the whole content of every input file."""
    return {str(path): digests.sha256(path) for path in _files(paths)}
