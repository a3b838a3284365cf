"""Images from where they lie (`archives`), decoded to RGB when they are asked for.

This is the one place that turns a file into pixels, for every stage and every tool.  `Decoding` says how.  Whatever is wrong with one
image is a BadImage with file, member and reason.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

from unime.data.archives import BadImage, archive

# Pillow's own bomb limit is a fixed global; ours is a setting and is checked on the header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # all formats are known before any thread asks

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # a JPEG of several pictures (MPO) is one of the first
_START = 64 * 1024  # bytes in which almost every image's header lies
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What shows a picture upright, by its EXIF orientation; from 5 on width and height change places."""
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")

# What Pillow's plugins raise for damaged or hostile files: OSError (truncated, unidentified), SyntaxError (PNG, TIFF structure),
# ValueError (chunk sizes), and the others from numbers in headers that make no sense.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, ArithmeticError, LookupError, TypeError, MemoryError)

Pixels = Literal["as_seen", "as_public"]


class Settings(Protocol):
    """What is needed of the configuration's section `data`."""

    max_pixels: int
    pixels: Pixels


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels.

    `max_pixels`: a larger image is refused.  `pixels`: `as_seen` gives what a viewer shows: turned as EXIF says, transparent parts on
    white, 16-bit grey and floating-point pixels scaled to 8 bits.  `as_public` gives what the public code's `convert("RGB")` does: no
    turning, the colour below transparent pixels, values above 255 cut to 255.
    """

    max_pixels: int
    pixels: Pixels = "as_seen"

    @classmethod
    def of(cls, data: Settings) -> Decoding:
        """As the configuration's section `data` says."""
        return cls(data.max_pixels, data.pixels)

    @property
    def seen(self) -> bool:
        return self.pixels == "as_seen"


@dataclass(frozen=True)
class Outline:
    """An image of which only the `size` is known, (width, height): enough to count tokens."""

    size: tuple[int, int]


def open_image(path: str, member: str, decoding: Decoding, on_white: bool = False) -> Image.Image:
    """The decoded RGB image; `on_white` as for `decode`.  Raises BadImage."""
    return decode(archive(path).read(member), decoding, path, member, on_white)


def decode(data: bytes, decoding: Decoding, file: str, member: str, on_white: bool = False) -> Image.Image:
    """The RGB image of these bytes, of several pictures or pages the first.  Raises BadImage where they are no whole image.

    `on_white`: transparent parts stand on white with `as_public` too.
    """
    image = header(data, decoding, file, member)
    with named(file, member):
        if not decoding.seen:
            return whitened(image) if on_white else image.convert("RGB")
        image.load()  # some formats know of their transparency and of their orientation only when they are decoded
        upright = _TURNS.get(_orientation(image))
        seen = whitened(eight_bits(image))
        return seen if upright is None else seen.transpose(upright)


def whitened(image: Image.Image) -> Image.Image:
    """The image in RGB on a white ground: a pixel of opacity a becomes a parts of its colour and 1 - a parts of white."""
    image.load()
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(coloured, mask=coloured.getchannel("A"))
    return ground


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture that still is to be turned; 1, upright, where nothing can be read."""
    if image.format == "TIFF":
        return 1  # Pillow has turned it, its size included
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGED:
        return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel.  Raises ValueError where the range of its pixels is not known."""
    if image.mode in _SIXTEEN or image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in wider numbers; PPM's are scaled
        values = np.asarray(image).astype(np.uint32)
        shades = (values + 128) // 257
    elif image.mode == "I":
        raise ValueError("its pixels are 32-bit integers, whose range is not stated; save it with 8 or 16 bits a channel")
    elif image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("its floating-point pixels are not all from 0 to 1, so no range is known; save it with 8 or 16 bits a channel")
        shades = np.rint(values * 255)
    else:
        return image
    grey = Image.fromarray(shades.astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def squashed(image: Image.Image, side: int) -> Image.Image:
    """The image in RGB, `side` pixels wide and high whatever its shape was; 0 leaves its size as it is."""
    image = image.convert("RGB")
    return image.resize((side, side), Image.Resampling.BICUBIC) if side else image


def peek(path: str, member: str, decoding: Decoding) -> Outline:
    """The size that `decode` gives, of a member that is read only as far as that needs.  Raises BadImage."""
    place = archive(path)
    start = place.start(member, _START)
    try:
        return _outline(start, decoding, path, member, whole=len(start) < _START)
    except BadImage:  # its header is longer, or stands at its end, or nothing can be read of it
        return _outline(place.read(member), decoding, path, member, whole=True)


def _outline(data: bytes, decoding: Decoding, file: str, member: str, whole: bool) -> Outline:
    image = header(data, decoding, file, member)
    if not decoding.seen:
        return Outline(image.size)
    if image.format == "PNG" and "exif" not in image.info:
        # A PNG may say how it is turned after its pixels, and Pillow decodes them to look there.
        if not whole:
            raise BadImage(file, member, "the start of a PNG does not tell how it is turned")
        if b"eXIf" not in data and b"Raw profile type exif" not in data:
            return Outline(image.size)
    width, height = image.size
    return Outline((height, width) if _orientation(image) >= 5 else (width, height))


def header(data: bytes, decoding: Decoding, file: str, member: str) -> Image.Image:
    """The image with its header read and no pixel decoded.  Raises BadImage."""
    if not data:
        raise BadImage(file, member, "an empty file")
    with named(file, member):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    width, height = image.size
    if width * height > decoding.max_pixels:
        raise BadImage(file, member, f"{width}x{height} = {width * height} pixels, more than data.max_pixels {decoding.max_pixels}")
    return image


class named:
    """Turns every error that Pillow raises for damaged bytes into a BadImage."""

    def __init__(self, file: str, member: str):
        self.file, self.member = file, member

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadImage) or error is None:
            return
        if isinstance(error, _DAMAGED):
            reason = "not an image that can be read" if isinstance(error, Image.UnidentifiedImageError) else f"does not decode ({error})"
            raise BadImage(self.file, self.member, reason) from error
