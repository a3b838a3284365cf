"""Which format a folder or a file is in, by what it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unime import prompts
from unime.data import own
from unime.inputs import problems, told
from unime.tools.rows import anchors, chats, coco, parquet, shards, tables, text
from unime.tools.rows.folder import Folder
from unime.tools.rows.model import Options, Side, Source, listed, where

READ = (
    "pictures with a .txt beside each; captions.csv or .tsv (columns image, caption); ImageFolder (metadata.csv or .jsonl); parquet with "
    "pictures inside; COCO captions (.json); WebDataset (.tar); sentence-transformers' .jsonl (anchor, positive); conversations "
    "(.jsonl or .json with messages or conversations)"
)


@dataclass(frozen=True)
class Format:
    """A format: its name, whether a file is in it, and its reader."""

    name: str
    matches: Callable[[Path, Path, Options], bool]
    read: Callable[[Folder, list[Path], Options], Source]


def _with_keys(keys: frozenset[str], every: bool) -> Callable[[Path, Path, Options], bool]:
    """Whether a file's first JSON rows have every one of these keys, or any."""

    def matches(file: Path, root: Path, options: Options) -> bool:
        found = text.first_keys(file)
        return keys <= found if every else bool(keys & found)

    return matches


FORMATS = (
    Format("a table of captions", tables.is_captions, tables.read_captions),
    Format("ImageFolder", tables.is_metadata, tables.read_metadata),
    Format("parquet with pictures", parquet.is_pictures, parquet.read),
    Format("COCO captions", coco.is_coco, coco.read),
    Format("WebDataset", shards.is_shard, shards.read),
    Format("sentence-transformers", _with_keys(anchors.KEYS, every=True), anchors.read),
    Format("conversations", _with_keys(chats.KEYS, every=False), chats.read),
)


def read(given: Path, options: Options) -> Source:
    """Everything that a folder, or a single file, holds, without texts that no row can have: those are among the bad rows.

    Raises ValueError as `_read`.
    """
    source = _read(given, options)
    captions = []
    for caption in source.captions:
        reason = unfit(Side(caption.text))
        if reason:
            source.bad_rows.append(f"{caption.place}: {reason}")
        else:
            captions.append(caption)
    pairs = []
    for pair in source.pairs:
        found = [unfit(side) for side in pair.sides()]
        reasons = [reason for reason in found if reason]
        if reasons:
            source.bad_rows.append(f"{pair.place}: {reasons[0]}")
        else:
            pairs.append(pair)
    source.captions, source.pairs = captions, pairs
    return source


def unfit(side: Side) -> str | None:
    """Why a row cannot have this text, or None."""
    if not side.text.isascii():
        try:
            side.text.encode("utf-8")
        except UnicodeEncodeError:
            return r"a text holds half of a character (an unpaired \u escape)"
    marks = side.text.count(prompts.IMAGE_MARK)
    if marks > (1 if side.image else 0):
        return f"a text holds the mark {prompts.IMAGE_MARK}, which stands for an image; take it out"
    return None


def _read(given: Path, options: Options) -> Source:
    """Everything that a folder, or a single file, holds.

    Raises ValueError where the files are in no known format, or in several: then the file must be named.
    """
    if not given.exists():
        raise ValueError(f"{given}: no such folder or file")
    root = given if given.is_dir() else given.parent
    wrong = problems(given)
    if wrong:
        raise ValueError(told(wrong))
    if given.is_file():
        return _file(given, root, options)
    folder = Folder(root)
    found: dict[Format, list[Path]] = {}
    for form in FORMATS:
        files = _files(folder, form, options)
        if files:
            found[form] = files
    if len(found) > 1:
        names = "; ".join(f"{form.name}: {where(files[0], root)}" for form, files in found.items())
        raise ValueError(f"{given}: files in several formats ({names}); name the one to be read, e.g. {next(iter(found.values()))[0]}")
    if found:
        ((form, files),) = found.items()
        source = form.read(folder, files, options)
    else:
        refuse_own(folder)
        source = tables.beside_pictures(folder)
        source.hint = _hint(folder, source)
        if not source.pictures:
            for name in folder.files:
                _refuse_unread_json(folder.root / name)
            there = f"found {listed(folder.files)}" if folder.files else "it is empty"
            raise ValueError(f"{given}: no images and no rows in a known format ({there}); read are: {READ}")
    source.note("hidden files ignored", folder.hidden)
    if source.unit == "pairs":
        source.note("pictures that no row names, ignored", len(set(folder.pictures) - source.pictures.keys()))
    return source


def _hint(folder: Folder, source: Source) -> str:
    """What to do where pictures have no caption at all and a file may be their table; '' otherwise."""
    tabular = (".csv", ".tsv", ".parquet", *text.JSON)
    found = [name for name in folder.files if Path(name).suffix.lower() in tabular]
    if source.captions or not found:
        return ""
    return f"if {listed(found)} has the captions, name that file in place of the folder, and its columns (--image-column, --text-column)"


def _files(folder: Folder, form: Format, options: Options) -> list[Path]:
    """The files of a folder that are in a format.  Of tables of captions, captions.csv is the only one if it is there."""
    paths = [folder.root / name for name in folder.files]
    found = [path for path in paths if form.matches(path, folder.root, options)]
    named = [path for path in found if path.stem == "captions" and form.read is tables.read_captions]
    return named[:1] or found


def _file(file: Path, root: Path, options: Options) -> Source:
    """One file that was named.  Pictures beside it that it does not name are no mistake: they are counted."""
    form = next((form for form in FORMATS if form.matches(file, root, options)), None)
    if form is None and file.suffix.lower() in (*tables.SEPARATED, *text.JSON):
        if file.suffix.lower() in text.JSON and not text.first_keys(file):
            _refuse_unread_json(file)
            raise ValueError(f"{file}: in no known format; read are: {READ}")
        form = FORMATS[0]
    if form is None:
        raise ValueError(f"{file}: in no known format; read are: {READ}")
    folder = Folder(root)
    if form.read is coco.read and not folder.pictures:
        folder = Folder(root.parent)  # annotations/captions_val2017.json, with the pictures in val2017/
    source = form.read(folder, [file], options)
    used = {caption.image for caption in source.captions}
    for pair in source.pairs:
        used |= {side.image for side in pair.sides()}
    unnamed = [name for name in source.pictures if name not in used and name in folder.pictures]
    for name in unnamed:
        del source.pictures[name]
    source.note(f"pictures that {file.name} does not name, ignored", len(unnamed))
    return source


def _refuse_unread_json(file: Path) -> None:
    """Raises ValueError for a JSON file in another encoding, or a list that is damaged: such a file is in no known format for that."""
    if file.suffix in text.JSON:
        next(text.json_rows(file, file.name), None)


def refuse_own(folder: Folder) -> None:
    """Raises ValueError where a folder holds rows in the project's own format, which need no conversion."""
    for name in folder.files:
        file = folder.root / name
        if set(own.SIDES) & text.first_keys(file) or file.suffix == ".parquet" and parquet.is_own(file):
            raise ValueError(f"{file}: rows in this project's format already; put its folder at <data.root>/train/<name>")
