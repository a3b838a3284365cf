"""Images from where they lie (`archives`), checked before anything is believed and decoded when they are asked for.

Whatever is wrong with one image is a BadImage with file, member and reason.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from unime.data.archives import BadImage, archive

# Pillow's own bomb limit is a fixed global; ours is a setting and is checked on the header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # all formats are known before any thread asks

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # a JPEG of several pictures (MPO) is one of the first
_START = 64 * 1024  # bytes in which almost every image's header lies
_AHEAD = 4096  # images handed to the decoding threads at a time

# What Pillow's plugins raise for damaged or hostile files: OSError (truncated, unidentified), SyntaxError (PNG, TIFF structure),
# ValueError (chunk sizes), and the others from numbers in headers that make no sense.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, ArithmeticError, LookupError, TypeError, MemoryError)


def open_image(path: str, member: str, max_pixels: int, on_white: bool = False) -> Image.Image:
    """The decoded RGB image; what is transparent in it is white where `on_white`, else as `decode`.  Raises BadImage."""
    return decode(archive(path).read(member), max_pixels, path, member, on_white)


def decode(data: bytes, max_pixels: int, file: str, member: str, on_white: bool = False) -> Image.Image:
    """Decode an image's bytes to RGB.  Raises BadImage where they are no whole image, or one of more than `max_pixels`.

    Transparent pixels show the colour that lies below them, or white where `on_white`.
    """
    image = header(data, max_pixels, file, member)
    with _named(file, member):
        return whitened(image) if on_white else image.convert("RGB")


def whitened(image: Image.Image) -> Image.Image:
    """The image in RGB on a white ground: a pixel of opacity a becomes a parts of its colour and 1 - a parts of white."""
    image.load()  # some formats know of their transparency only when they are decoded
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(coloured, mask=coloured.getchannel("A"))
    return ground


def squashed(image: Image.Image, side: int) -> Image.Image:
    """The image in RGB, `side` pixels wide and high whatever its shape was; 0 leaves its size as it is."""
    image = image.convert("RGB")
    return image.resize((side, side), Image.Resampling.BICUBIC) if side else image


def header(data: bytes, max_pixels: int, file: str, member: str) -> Image.Image:
    """The image with its header read and no pixel decoded: `.size` is known.  Raises BadImage."""
    if not data:
        raise BadImage(file, member, "an empty file")
    with _named(file, member):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(file, member, f"{width}x{height} = {width * height} pixels, more than data.max_pixels {max_pixels}")
    return image


def peek(path: str, member: str, max_pixels: int) -> Image.Image:
    """The image with its header read and no pixel decoded, of a member that is read only as far as that needs.  Raises BadImage."""
    place = archive(path)
    try:
        return header(place.start(member, _START), max_pixels, path, member)
    except BadImage:  # its header is longer, or stands at its end, or nothing can be read of it
        return header(place.read(member), max_pixels, path, member)


def check(path: str, member: str, max_pixels: int) -> bytes:
    """The SHA-256 digest of an image's bytes, after proving that it decodes to its end.  Raises BadImage."""
    data = archive(path).read(member)
    image = header(data, max_pixels, path, member)
    with _named(path, member):
        # A JPEG is decoded at an eighth of its size: the whole stream is read, so a truncated one is found, at a third of the time.
        image.draft("L", (max(1, image.size[0] // 8), max(1, image.size[1] // 8)))
        image.load()
    return hashlib.sha256(data).digest()


def check_all(places: Iterable[tuple[str, str]], max_pixels: int, threads: int) -> Iterator[bytes | BadImage]:
    """`check` of every (archive, member), in order: its digest, or what is wrong with it.  Decoding runs on `threads` threads."""

    def one(place: tuple[str, str]) -> bytes | BadImage:
        try:
            return check(*place, max_pixels)
        except BadImage as bad:
            return bad

    places = list(places)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(places), _AHEAD):  # a bounded number of waiting jobs, however many images there are
            yield from pool.map(one, places[start : start + _AHEAD])


class _named:
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
