"""What the pictures of a source show: each is decoded once, so that those that cannot be read are known, and copies of one another."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from unime.data import checks
from unime.data.archives import BadImage
from unime.data.images import Decoding
from unime.tools.rows.model import Caption, Pair, Place, Side, Source


def digests(pictures: dict[str, Place], decoding: Decoding) -> tuple[dict[str, str], dict[str, str]]:
    """(name -> digest of the decoded pixels, name -> reason) of the pictures that can be read, and of those that cannot."""

    def one(place: Place) -> str | BadImage:
        try:
            checks.check(*place, decoding)
            return checks.pixels(*place, decoding)
        except BadImage as bad:
            return bad

    names = sorted(pictures)
    good: dict[str, str] = {}
    bad: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = pool.map(one, [pictures[name] for name in names])
        for name, digest in zip(names, found, strict=True):
            if isinstance(digest, BadImage):
                bad[name] = digest.reason
            else:
                good[name] = digest
    return good, bad


def without_unreadable(source: Source, bad: dict[str, str]) -> Source:
    """The source without the pictures of `bad`, named in `unreadable`, and without what needs them, counted.

    A wrong answer whose picture is bad leaves its pair's list; the pair stays.
    """
    source.unreadable = [f"{name} ({reason})" for name, reason in bad.items()]
    source.pictures = {name: place for name, place in source.pictures.items() if name not in bad}
    captions: list[Caption] = [caption for caption in source.captions if caption.image not in bad]
    pairs: list[Pair] = []
    for pair in source.pairs:
        if pair.query.image in bad or pair.positive.image in bad:
            continue
        negatives: tuple[Side, ...] = tuple(side for side in pair.negatives if side.image not in bad)
        source.negatives_lost += len(pair.negatives) - len(negatives)
        pairs.append(Pair(pair.place, pair.query, pair.positive, negatives))
    source.lost_with_picture = len(source.captions) - len(captions) + len(source.pairs) - len(pairs)
    source.captions, source.pairs = captions, pairs
    if source.unit == "captions":
        captioned = {caption.image for caption in captions}
        source.no_caption = [name for name in source.pictures if name not in captioned]
    return source
