"""Items that are equal but for their form: a text typed or stored another way, a picture saved anew.

Two texts have one form where they agree after Unicode normalisation (NFC: é is one character or e and an accent), with line ends as `\\n`
and without white space at their ends.  Two pictures are copies where all their pixels are equal, as after saving a PNG as BMP.  Upper case,
blanks inside a text and a JPEG that was compressed again are differences like any other.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

import polars as pl


def form(text: str) -> str:
    """What a text has in common with those that differ from it in form alone."""
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").strip()


def merged(identified: pl.DataFrame, pixels: Mapping[str, str]) -> pl.DataFrame:
    """Table IDENTIFIED in which every item of several with one form is the first of them; `pixels`: `image` -> digest of its pixels."""
    with_form = _with_form(identified).with_columns(pl.col("image").replace_strict(dict(pixels), default=pl.col("image")).alias("look"))
    good = pl.col("reason").is_null()
    firsts = [
        pl.when(good).then(pl.col(name).filter(good).first().over("form", "look")).otherwise(pl.col(name)).alias(name)
        for name in ("id", "archive", "member", "image")
    ]
    return with_form.with_columns(firsts).select(identified.columns)


def equal_but_for_form(items: pl.DataFrame, answers: pl.Series) -> int:
    """How many of the ITEMS with an id in `answers` differ from another one of these by the form of their text alone."""
    shown = items.filter(pl.col("id").is_in(answers.unique().implode()))
    return len(shown) - _with_form(shown).select("form", "image").n_unique()


def _with_form(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.Series("form", [form(text) for text in table["text"]], dtype=pl.String))
