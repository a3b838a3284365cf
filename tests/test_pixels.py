"""Two image files that look alike give equal pixels, whatever their format, colour mode and orientation say; what is lost is listed."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_images import zipped

from unime.data import checks, images
from unime.data.archives import BadImage
from unime.data.images import Decoding

SEEN, PUBLIC = Decoding(10**7), Decoding(10**7, "as_public")
SIZE = (64, 40)
WHITE = np.array([255, 255, 255])


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def pixels(data: bytes, decoding: Decoding = SEEN, on_white: bool = False) -> np.ndarray:
    found = images.decode(data, decoding, "f", "m", on_white)
    assert found.mode == "RGB"
    return np.asarray(found).astype(int)


def painted(size: tuple[int, int] = SIZE) -> np.ndarray:
    """(h, w, 3) uint8: smooth, so that lossy formats keep it, and different at every corner."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return np.stack([across, down, (across + down) / 2], axis=-1).astype(np.uint8)


# Orientation


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say_and_its_size_with_it(kind: str, orientation: int, tmp_path: Path) -> None:
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    data = saved(Image.fromarray(painted()), kind, exif=exif(orientation), **lossless)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    assert wanted.shape == ((64, 40, 3) if orientation >= 5 else (40, 64, 3))
    assert np.array_equal(pixels(data), wanted)
    assert images.peek(zipped(tmp_path / "a.zip", {"a": data}), "a", SEEN).size == wanted.shape[1::-1]
    if kind != "TIFF":  # which Pillow turns by itself
        stored = Image.open(io.BytesIO(data))
        assert np.array_equal(pixels(data, PUBLIC), np.asarray(stored.convert("RGB")))
        assert images.peek(str(tmp_path / "a.zip"), "a", PUBLIC).size == stored.size == SIZE


def test_a_png_that_says_it_after_its_pixels_is_turned_too(tmp_path: Path) -> None:
    data = saved(Image.fromarray(painted()), "PNG", exif=exif(6))
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    moved = data[:start] + data[start + length : end] + data[start : start + length] + data[end:]
    assert pixels(moved).shape == (64, 40, 3) and np.array_equal(pixels(moved), pixels(data))
    assert images.peek(zipped(tmp_path / "a.zip", {"a": moved}), "a", SEEN).size == (40, 64)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    data = saved(Image.fromarray(painted()), "PNG", exif=exif(orientation))
    assert np.array_equal(pixels(data), painted())


@pytest.mark.parametrize("broken", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"\0" * 40])
def test_exif_data_that_cannot_be_read_cost_no_picture(broken: bytes, tmp_path: Path) -> None:
    data = saved(Image.fromarray(painted()), "JPEG", exif=broken)
    assert pixels(data).shape == (40, 64, 3)
    path = zipped(tmp_path / "a.zip", {"a": data})
    assert checks.check(path, "a", SEEN) and images.peek(path, "a", SEEN).size == SIZE


# Transparency and colour


def composite(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour (h, w, 3) of opacity alpha (h, w) in 0 ... 255 on white."""
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(int)


def square(value: int = 255) -> np.ndarray:
    """(h, w) uint8: opaque in a square, else transparent; between them a border of half opacity where `value` is less than 255."""
    alpha = np.zeros(SIZE[::-1], np.uint8)
    alpha[8:32, 8:48] = value
    alpha[10:30, 10:46] = 255
    return alpha


HIDDEN = (12, 200, 77)


def red_square() -> np.ndarray:
    colour = np.empty((*SIZE[::-1], 3), np.uint8)
    colour[:] = HIDDEN
    colour[square() > 0] = (250, 10, 20)
    return colour


def palette() -> Image.Image:
    """Two colours, the hidden one transparent."""
    image = Image.new("P", SIZE)
    image.putpalette([*HIDDEN, 250, 10, 20])
    image.paste(1, mask=Image.fromarray(square()))
    return image


TRANSPARENT = {
    "RGBA png": lambda: saved(Image.merge("RGBA", [*Image.fromarray(red_square()).split(), Image.fromarray(square())]), "PNG"),
    "RGBA webp": lambda: saved(
        Image.merge("RGBA", [*Image.fromarray(red_square()).split(), Image.fromarray(square())]), "WEBP", lossless=True, exact=True
    ),
    "RGBA tiff": lambda: saved(Image.merge("RGBA", [*Image.fromarray(red_square()).split(), Image.fromarray(square())]), "TIFF"),
    "RGB png with a transparent colour": lambda: saved(Image.fromarray(red_square()), "PNG", transparency=HIDDEN),
    "palette png": lambda: saved(palette(), "PNG", transparency=0),
    "palette png, opacities": lambda: saved(palette(), "PNG", transparency=bytes([0, 255])),
    "gif": lambda: saved(palette(), "GIF", transparency=0),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white_and_the_colour_below_it_is_never_seen(name: str) -> None:
    data = TRANSPARENT[name]()
    wanted = composite(red_square(), square())
    assert np.array_equal(pixels(data), wanted)
    assert np.array_equal(pixels(data, PUBLIC, on_white=True), wanted)
    assert (pixels(data, PUBLIC)[0, 0] != WHITE).any(), "the public code's pixels are others"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_partly_opaque_pixels_are_mixed_with_white(mode: str, kind: str) -> None:
    colour = red_square() if mode == "RGBA" else np.repeat(red_square()[..., :1], 3, axis=-1)
    image = Image.merge("RGBA", [*Image.fromarray(colour).split(), Image.fromarray(square(100))]).convert(mode)
    data = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(pixels(data) - composite(colour, square(100))).max() <= 1


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"]
KINDS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}, "GIF": {}, "JPEG": {"quality": 100, "subsampling": 0}}
WRITES = {
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "TIFF": {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"},
    "WEBP": {"L", "LA", "RGB", "RGBA", "P"},
    "GIF": {"1", "L", "P", "RGB"},
    "JPEG": {"L", "RGB", "CMYK", "YCbCr"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_picture_looks_the_same_in_every_colour_mode_and_format(mode: str, kind: str) -> None:
    """Grey in all modes, so that none changes what it looks like; 256 levels, or as many as the format keeps."""
    if mode not in WRITES[kind]:
        pytest.skip(f"{kind} has no {mode}")
    levels = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    grey = Image.fromarray(levels)
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(levels.astype(np.float32) / 255)
    elif mode == "1":
        levels = np.where(levels < 128, 0, 255).astype(np.uint8)
        image = Image.fromarray(levels).convert("1")
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else grey.convert(mode)
    assert image.mode == mode
    data = saved(image, kind, **KINDS[kind])
    wanted = np.repeat(levels[..., None], 3, axis=-1).astype(int)
    lossy = kind == "JPEG" or mode in ("CMYK", "YCbCr") or (kind, mode) == ("GIF", "RGB")
    assert np.abs(pixels(data) - wanted).max() <= (2 if lossy else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_and_never_cut_off(kind: str) -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257)[None].repeat(4, 0)
    data = saved(Image.fromarray(ramp), kind)
    assert np.array_equal(pixels(data)[0, :, 0], np.arange(256))
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.abs(pixels(saved(Image.fromarray(every), kind))[..., 0] - every / 257).max() <= 0.5
    assert len(np.unique(pixels(data, PUBLIC))) < 256, "the public code's are cut off"


def test_a_transparent_shade_of_sixteen_bits_is_white() -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257)[None].repeat(4, 0)
    found = pixels(saved(Image.fromarray(ramp), "PNG", transparency=int(ramp[0, 7])))
    assert found[0, 7].tolist() == [255, 255, 255] and found[0, 6].tolist() == [6, 6, 6] and found[0, 8].tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((4, 4), 70_000, np.int32), "32-bit integers, whose range is not stated"),
        (np.full((4, 4), 1.5, np.float32), "not all from 0 to 1"),
        (np.full((4, 4), -0.1, np.float32), "not all from 0 to 1"),
        (np.full((4, 4), np.nan, np.float32), "not all from 0 to 1"),
        (np.full((4, 4), np.inf, np.float32), "not all from 0 to 1"),
    ],
)
def test_pixels_of_unknown_range_are_listed_by_the_data_stage(values: np.ndarray, reason: str, tmp_path: Path) -> None:
    data = saved(Image.fromarray(values), "TIFF")
    path = zipped(tmp_path / "a.zip", {"a.tif": data})
    with pytest.raises(BadImage, match=f"a.zip: a.tif: does not decode .*{reason}.*save it with 8 or 16 bits"):
        checks.check(path, "a.tif", SEEN)
    assert checks.check(path, "a.tif", PUBLIC) and pixels(data, PUBLIC).shape == (4, 4, 3)


# Several pictures in one file


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_or_pages_the_first_is_seen(kind: str, tmp_path: Path) -> None:
    first = Image.merge("RGBA", [*Image.fromarray(red_square()).split(), Image.fromarray(square())])
    rest = [Image.new("RGBA", SIZE, (0, 0, 255, 255)), Image.new("RGBA", SIZE, (0, 255, 0, 128))]
    exact = {"WEBP": {"lossless": True, "exact": True}}.get(kind, {})
    data = saved(first, kind, save_all=True, append_images=rest, **exact)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(pixels(data) - composite(red_square(), square())).max() <= (0 if kind != "GIF" else 1)
    path = zipped(tmp_path / "a.zip", {"a": data})
    assert images.peek(path, "a", SEEN).size == SIZE and checks.check(path, "a", SEEN)


# Cut off in the middle


def photo(size: tuple[int, int] = (400, 300)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 20, (size[1], size[0], 3))
    return Image.fromarray((painted(size) * 0.9 + noise).astype(np.uint8))


def product(size: tuple[int, int] = (1200, 900)) -> Image.Image:
    """Something on much white: optimised Huffman tables write its ground as zeros."""
    image = Image.new("RGB", size, "white")
    image.paste(photo(), (500, 400))
    return image


WAYS = {
    "JPEG": {},
    "JPEG, optimized": {"optimize": True},
    "JPEG, progressive": {"progressive": True},
    "WEBP, lossless": {"lossless": True},
    "PNG": {},
    "GIF": {},
}


@functools.cache
def photo_file(way: str) -> bytes:
    return saved(photo(), way.partition(",")[0], **WAYS[way])


@pytest.mark.parametrize("start", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("count", [1024, 4096, None])
@pytest.mark.parametrize("way", WAYS)
def test_a_picture_with_zeros_where_data_should_be_is_listed(way: str, count: int | None, start: float, tmp_path: Path) -> None:
    data = photo_file(way)
    at = int(len(data) * start)
    hole = len(data) - at if count is None else count
    torn = data[:at] + bytes(hole) + data[at + hole :]
    assert len(torn) == len(data) or at + hole > len(data)
    with pytest.raises(BadImage, match="does not decode"):
        checks.check(zipped(tmp_path / "a.zip", {"a": torn[: len(data)]}), "a", SEEN)


@pytest.mark.parametrize("way", [*WAYS, "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("make", [photo, product, lambda: Image.new("RGB", (1200, 900)), lambda: Image.new("L", (1200, 900), 255)])
def test_a_whole_picture_is_never_taken_for_one_with_a_hole(way: str, make, tmp_path: Path) -> None:
    data = saved(make(), way.partition(",")[0], **WAYS.get(way, {}))
    assert checks.check(zipped(tmp_path / "a.zip", {"a": data}), "a", SEEN)
    if way.startswith("JPEG") and make is photo:
        extraneous = data[:-2] + b"\x11\x12" + data[-2:]  # cameras write such, and nothing is lost
        assert checks.check(zipped(tmp_path / "b.zip", {"a": extraneous}), "a", SEEN)
