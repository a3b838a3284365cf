"""config.yaml as plain values: what YAML allows and a configuration does not need is refused by line."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

LARGEST = 1 << 20
"""Bytes of a configuration file."""

MOST_VALUES, DEEPEST = 100_000, 20
"""Values of a file, those behind an alias counted at each place that it stands in, and levels of nesting."""

MERGE, DEFAULT_KEY = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"
"""YAML's tags of the keys `<<` and `=`; PyYAML reads the second one as text."""


class UnreadableConfig(ValueError):
    """A configuration file that gives no values; the message names the reason, the line where there is one, and the remedy."""


def read_values(path: Path) -> Any:
    """The values of a YAML file.  Raises UnreadableConfig."""
    text = _text(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise UnreadableConfig("is empty; copy the repository's config.yaml, or a file of presets/, and change what is to differ")
        _count(root, 1, {})
        _refuse_duplicates(root, loader, set())
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise UnreadableConfig(f"is not YAML: {error}; see that brackets, quotes and indents are closed and even") from None
    except (RecursionError, MemoryError):
        raise UnreadableConfig(f"is nested too deeply; {DEEPEST} levels are allowed, and the sections need far fewer") from None
    except UnreadableConfig:
        raise
    except (ValueError, OverflowError, TypeError) as error:
        raise UnreadableConfig(f"has a value that is not of its YAML type: {error}; quote it if it is text") from None


def _text(path: Path) -> str:
    if path.is_dir():
        raise UnreadableConfig("is a folder; name the file in it")
    if not path.exists():
        raise UnreadableConfig("no such file; run from the repository's root or name the file with --config")
    if not path.is_file():
        raise UnreadableConfig("is not a regular file; a configuration is read several times, so it cannot be a pipe or a device")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise UnreadableConfig(f"has {size:,} bytes, and {LARGEST:,} are allowed; is it the right file?")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UnreadableConfig(f"cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise UnreadableConfig(f"is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it as UTF-8") from None


def _count(node: yaml.Node, level: int, counted: dict[yaml.Node, int | None]) -> int:
    """How many values a node stands for; `counted` holds the nodes that are done, and None for those that are open above this one."""
    line = node.start_mark.line + 1
    if node in counted:
        values = counted[node]
        if values is None:
            raise UnreadableConfig(f"line {line}: the value behind this anchor holds itself; write it out")
        return values
    if level > DEEPEST:
        raise UnreadableConfig(f"line {line}: is nested {level} levels deep, and {DEEPEST} are allowed; the sections need far fewer")
    counted[node] = None
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    total = 1
    for child in below:
        total += _count(child, level + 1, counted)
    if total > MOST_VALUES:
        raise UnreadableConfig(f"line {line}: stands for more than {MOST_VALUES:,} values, aliases written out; shorten it")
    counted[node] = total
    return total


def _refuse_duplicates(node: yaml.Node, loader: yaml.SafeLoader, done: set[yaml.Node]) -> None:
    """Raise UnreadableConfig for a key that one mapping, at any depth, gives twice, where PyYAML would take the last one.

    This looks at the file as it is written, before PyYAML puts the keys of a merge (`<<: *anchor`) into the mapping itself: a mapping may
    give a key that it also merges, and its own value holds.
    """
    if node in done:
        return
    done.add(node)
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_duplicates(child, loader, done)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[Hashable, int] = {}
    for key, value in node.value:
        _refuse_duplicates(key, loader, done)
        _refuse_duplicates(value, loader, done)
        if not isinstance(key, yaml.ScalarNode):
            continue
        same = _key(key, loader)
        line = key.start_mark.line + 1
        if same in lines:
            remedy = "merge several mappings as a list, <<: [*one, *other]" if key.tag == MERGE else "keep one"
            raise UnreadableConfig(f"line {line}: the key {key.value!r} is given twice, first in line {lines[same]}; {remedy}")
        lines[same] = line


def _key(node: yaml.ScalarNode, loader: yaml.SafeLoader) -> Hashable:
    """The key as the dictionary will hold it: `1` and `0x1` are the same key, `1` and `"1"` are two."""
    if node.tag == MERGE:
        return (MERGE,)  # beside it, "<<" in quotes is a key like any other
    if node.tag == DEFAULT_KEY:
        return str(node.value)
    key: Hashable = loader.construct_object(node)
    return key
