"""Images proved whole before anything is believed: a data stage decodes each of them once, to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import simplejpeg

from unime.data import images
from unime.data.archives import BadImage, archive
from unime.data.images import Decoding

_AHEAD = 4096  # images handed to the decoding threads at a time
_HOLE = 512  # zeros in a row that a lost block leaves at least; a picture's data may have as many where it is of one colour


def check(path: str, member: str, decoding: Decoding) -> bytes:
    """The SHA-256 digest of an image's bytes, after proving that it decodes to its end.  Raises BadImage."""
    data = archive(path).read(member)
    image = images.header(data, decoding, path, member)
    with images.named(path, member):
        # A JPEG is decoded at an eighth of its size: the whole stream is read, so a truncated one is found, at a third of the time.
        image.draft("L", (max(1, image.size[0] // 8), max(1, image.size[1] // 8)))
        image.load()
        if decoding.seen:
            images.eight_bits(image)
        if bytes(_HOLE) in data:
            _refuse_hole(data, str(image.format))
    return hashlib.sha256(data).digest()


def _refuse_hole(data: bytes, kind: str) -> None:
    """Raise ValueError where zeros stand for data that was lost, which decoders take for pixels.

    A JPEG's data may hold that many zeros where the picture is of one colour.  Its decoder then ends where the data do, and else has a
    warning, which Pillow does not pass on.  WebP's lossless code does not write as many; in its lossy one, in BMP and in TIFF without
    compression a hole cannot be told from a picture of one colour.  In PNG and GIF the decoder finds it.
    """
    if kind in ("JPEG", "MPO"):
        try:
            simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
        except ValueError as error:
            if not str(error).startswith(("Corrupt JPEG data", "Premature end")):
                return  # a kind of JPEG that it does not read
            raise ValueError(f"it has a hole: {_HOLE} zero bytes or more in place of data ({error})") from error
    elif kind == "WEBP" and data[12:16] == b"VP8L":
        raise ValueError(f"it has a hole: {_HOLE} zero bytes or more in place of data")


def pixels(path: str, member: str, decoding: Decoding) -> str:
    """A digest of the size and the pixels of an image that `check` found whole, 32 hex digits, equal where two images look alike."""
    image = images.open_image(path, member, decoding)
    digest = hashlib.sha256(f"{image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]


def check_all(places: Iterable[tuple[str, str]], decoding: Decoding, threads: int) -> Iterator[bytes | BadImage]:
    """`check` of every (archive, member), in order: its digest, or what is wrong with it.  Decoding runs on `threads` threads."""

    def one(place: tuple[str, str]) -> bytes | BadImage:
        try:
            return check(*place, decoding)
        except BadImage as bad:
            return bad

    places = list(places)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(places), _AHEAD):  # a bounded number of waiting jobs, however many images there are
            yield from pool.map(one, places[start : start + _AHEAD])
