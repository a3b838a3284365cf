"""WebDataset shards: tar files in which `000000.jpg` and `000000.txt` (or `.json`) are one sample."""

from __future__ import annotations

import json
from pathlib import Path

from unime.data import archives
from unime.tools.rows import text
from unime.tools.rows.folder import Folder, is_hidden, is_picture
from unime.tools.rows.model import Caption, Options, Source, where
from unime.tools.rows.tables import captions_of

_TEXTS = ("txt", "text", "caption")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def is_shard(file: Path, root: Path, options: Options) -> bool:
    """Whether a file is a tar in which a picture and a text share a name.  A compressed tar is taken for one, to be refused by name."""
    if file.name.endswith(_COMPRESSED):
        return True
    if file.suffix != ".tar":
        return False
    members = list(archives.archive(file.resolve().as_posix()).names())
    endings = {_split(member)[1] for member in members}
    return any(is_picture(f"x.{ending}") for ending in endings) and bool(endings & {*_TEXTS, "json", options.text_column})


def read(folder: Folder, files: list[Path], options: Options) -> Source:
    """The captions of all samples of all shards.

    A sample's caption is its text file, else the field of a known name in its .json (one text or a list); `--text-column` names either.
    A picture is called `<shard>/<member>`.  Raises ArchiveError for a shard that is torn or compressed.
    """
    source = Source("WebDataset")
    for file in files:
        shown = where(file, folder.root)
        path = file.resolve().as_posix()
        hidden = 0
        samples: dict[str, dict[str, str]] = {}
        for member in archives.archive(path).names():
            if is_hidden(member):
                hidden += 1
                continue
            key, ending = _split(member)
            samples.setdefault(key, {})[ending] = member
        source.note("hidden files ignored", hidden)
        prefix = shown.removesuffix(".tar")
        for key, parts in samples.items():
            _sample(source, path, prefix, f"{shown}: {key}", parts, options)
    return source


def _split(member: str) -> tuple[str, str]:
    """(key, ending) of a member, as WebDataset splits names: at the first dot of the last part."""
    folder, slash, name = member.rpartition("/")
    key, _, ending = name.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _sample(source: Source, archive: str, prefix: str, place: str, parts: dict[str, str], options: Options) -> None:
    endings = [ending for ending in parts if is_picture(f"x.{ending}") and "." not in ending]
    if options.image_column is not None:
        endings = [ending for ending in parts if ending == options.image_column]
    if len(endings) > 1:
        source.bad_rows.append(f"{place}: pictures {' and '.join(sorted(endings))} in one sample; name one with --image-column")
        return
    words = _words(source, archive, place, parts, options)
    if not endings:
        if words:
            source.no_picture.append(f"{place}: a caption and no picture")
        return
    member = parts[endings[0]]
    name = f"{prefix}/{archives.whole(member)}"
    source.pictures[name] = (archive, member)
    source.captions += [Caption(place, name, caption) for caption in words]


def _words(source: Source, archive: str, place: str, parts: dict[str, str], options: Options) -> list[str]:
    """The captions of a sample."""
    asked = options.text_column
    own = [ending for ending in ((asked,) if asked else _TEXTS) if ending in parts and ending != "json"]
    try:
        if own:
            words = archives.archive(archive).read(parts[own[0]]).decode("utf-8-sig")
            return list(captions_of(words, source, place, own[0]))
        if "json" not in parts:
            return []
        value = json.loads(archives.archive(archive).read(parts["json"]).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        source.bad_rows.append(f"{place}: its text cannot be read ({error})")
        return []
    if not isinstance(value, dict):
        source.bad_rows.append(f"{place}: its .json is {text.kind_of(value)}, needed an object with a caption")
        return []
    known = [name for name in ((asked,) if asked else text.TEXT_COLUMNS) if name in value]
    if not known:
        source.bad_rows.append(f"{place}: its .json has no caption (keys {', '.join(value)}); name the key with --text-column")
        return []
    return list(captions_of(value[known[0]], source, place, known[0]))
