"""Images are read where they lie, by several processes, and whatever is wrong with one is said with file, member and reason."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unime.data import archives, checks, images
from unime.data.archives import ArchiveError, BadImage
from unime.data.images import Decoding

LIMIT = Decoding(10_000)


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 0) -> bytes:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_common_format_becomes_rgb(kind: str, tmp_path: Path):
    path = zipped(tmp_path / "a.zip", {"x": encoded(kind)})
    image = images.open_image(path, "x", LIMIT)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert checks.check(path, "x", LIMIT) == hashlib.sha256(encoded(kind)).digest()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_other_colour_modes_become_rgb(mode: str, tmp_path: Path):
    assert images.open_image(zipped(tmp_path / "a.zip", {"x": encoded("PNG", mode=mode)}), "x", LIMIT).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_image_is_found_without_keeping_it(kind: str, share: float, tmp_path: Path):
    whole = encoded(kind)
    path = zipped(tmp_path / "a.zip", {"x.img": whole[: int(len(whole) * share)]})
    with pytest.raises(BadImage) as found:
        checks.check(path, "x.img", LIMIT)
    assert (found.value.file, found.value.member) == (path, "x.img") and "a.zip: x.img: " in str(found.value)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path):
    """60,000 x 60,000 pixels in a few bytes: decoding it would take 10 GB."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    empty = b"IDAT" + zlib.compress(b"")
    bomb += struct.pack(">I", len(empty) - 4) + empty + struct.pack(">I", zlib.crc32(empty))
    path = zipped(tmp_path / "a.zip", {"bomb.png": bomb, "just.png": encoded(size=(100, 100)), "over.png": encoded(size=(101, 100))})
    for name in ("bomb.png", "over.png"):
        with pytest.raises(BadImage, match=r"\d+x\d+ = \d+ pixels, more than data.max_pixels 10000"):
            checks.check(path, name, LIMIT)
    assert images.open_image(path, "just.png", LIMIT).size == (100, 100)


def test_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "_MAX_BYTES", 1000)
    with pytest.raises(BadImage, match="1001 bytes, more than 1000"):
        checks.check(zipped(tmp_path / "a.zip", {"x.png": bytes(1001)}), "x.png", LIMIT)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("._x.png", "resource fork"),
        ("d/._x.png", "resource fork"),
        ("none.png", "no such image"),
        ("empty.png", "an empty file"),
        ("text.png", "not an image that can be read"),
    ],
)
def test_what_is_no_image_is_named(member: str, reason: str, tmp_path: Path):
    path = zipped(tmp_path / "a.zip", {"._x.png": b"Mac", "d/._x.png": b"Mac", "empty.png": b"", "text.png": b"hello " * 20})
    with pytest.raises(BadImage, match=reason):
        checks.check(path, member, LIMIT)


def test_a_member_whose_bytes_were_damaged_is_named(tmp_path: Path):
    path = zipped(tmp_path / "a.zip", {"x.png": encoded(), "y.png": encoded(seed=1)})
    data = bytearray(Path(path).read_bytes())
    at = data.index(encoded()) + 100
    data[at] ^= 255
    Path(path).write_bytes(data)
    with pytest.raises(BadImage, match="x.png: its bytes cannot be read"):
        checks.check(path, "x.png", LIMIT)
    assert checks.check(path, "y.png", LIMIT)


def test_a_truncated_archive_is_an_error_of_the_archive(tmp_path: Path):
    path = Path(zipped(tmp_path / "a.zip", {"x.png": encoded()}))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ArchiveError, match="a.zip: not a whole zip archive .* download it again"):
        archives.archive(str(path))
    with pytest.raises(ArchiveError, match="no such archive"):
        archives.archive(str(tmp_path / "b.zip"))


def test_a_folder_serves_as_an_archive_but_nothing_outside_it(tmp_path: Path):
    (tmp_path / "a" / "d").mkdir(parents=True)
    (tmp_path / "a" / "d" / "x.png").write_bytes(encoded())
    (tmp_path / "y.png").write_bytes(encoded())
    folder = str(tmp_path / "a")
    assert images.open_image(folder, "d/x.png", LIMIT).size == (40, 30)
    for outside in ("../y.png", str(tmp_path / "y.png"), "d"):
        with pytest.raises(BadImage, match="no such image"):
            images.open_image(folder, outside, LIMIT)


@pytest.mark.parametrize(
    ("members", "row_path", "found"),
    [
        (["images/S/Train/1.png"], "images/S/Train/1.png", "images/S/Train/1.png"),
        (["S/Train/1.png"], "images/S/Train/1.png", "S/Train/1.png"),
        (["1.png"], "images/S/Train/1.png", "1.png"),
        (["MMEB-train/images/S/1.png"], "images/S/1.png", "MMEB-train/images/S/1.png"),
        (["Other/1.png"], "images/S/1.png", None),
        (["a/S/1.png", "b/S/1.png"], "S/1.png", None),
    ],
)
def test_a_row_path_finds_its_member_and_never_a_namesake(members: list[str], row_path: str, found: str | None, tmp_path: Path):
    path = zipped(tmp_path / "a.zip", dict.fromkeys(members, b"x"))
    assert archives.archive(path).find(row_path) == found


def test_many_images_are_checked_in_order_and_bad_ones_do_not_stop_it(tmp_path: Path):
    good = {f"{i}.png": encoded(seed=i) for i in range(20)}
    path = zipped(tmp_path / "a.zip", good | {"7.png": b"no"})
    results = list(checks.check_all([(path, f"{i}.png") for i in range(20)], LIMIT, threads=3))
    assert [isinstance(result, BadImage) for result in results] == [i == 7 for i in range(20)]
    assert results[5] == hashlib.sha256(good["5.png"]).digest()


def _read_all(path: str, names: list[str]) -> list[bytes]:
    return [archives.archive(path).read(name) for name in names]


def test_forked_processes_read_an_archive_that_the_parent_has_open(tmp_path: Path):
    members = {f"{i}.bin": np.random.default_rng(i).bytes(50_000) for i in range(40)}
    path = zipped(tmp_path / "a.zip", members)
    mine = archives.archive(path)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = [pool.apply_async(_read_all, (path, list(members))) for _ in range(6)]
        assert _read_all(path, list(members)) == list(members.values())
        assert all(result.get(30) == list(members.values()) for result in results)
    assert archives.archive(path) is mine  # one handle a process


def test_a_bad_image_survives_a_trip_between_processes():
    make, arguments, *_ = BadImage("a.zip", "x.png", "truncated").__reduce__()
    assert str(make(*arguments)) == "a.zip: x.png: truncated"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "long header"])
def test_a_size_is_known_from_the_beginning_of_a_file_and_of_the_whole_where_that_says_nothing(kind: str, tmp_path: Path):
    plain = encoded("JPEG", (640, 480)) if kind == "long header" else encoded(kind, (640, 480))
    data = plain
    if kind == "long header":  # application data of 200 KB before the frame's size
        segment = b"\xff\xe5" + (50_002).to_bytes(2, "big") + bytes(50_000)
        data = plain[:2] + 4 * segment + plain[2:]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_bytes(data + bytes(100_000))
    zipped(tmp_path / "a.zip", {"a": data + bytes(100_000)})
    for place in ("folder", "a.zip"):
        assert images.peek(str(tmp_path / place), "a", Decoding(10**6)).size == (640, 480)
        with pytest.raises(BadImage, match="640x480 = 307200 pixels, more than data.max_pixels 1000"):
            images.peek(str(tmp_path / place), "a", Decoding(1000))


def test_a_peek_reads_little_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = encoded("JPEG", (640, 480)) + bytes(5_000_000)
    path = zipped(tmp_path / "a.zip", {"a": data})
    read: list[int] = []
    start = archives.Archive.start

    def counted(self: archives.Archive, member: str, count: int) -> bytes:
        read.append(len(start(self, member, count)))
        return start(self, member, count)

    monkeypatch.setattr(archives.Archive, "start", counted)
    monkeypatch.setattr(archives.Archive, "read", lambda self, member: pytest.fail("the whole file was read"))
    assert images.peek(path, "a", Decoding(10**6)).size == (640, 480) and read == [64 * 1024]
