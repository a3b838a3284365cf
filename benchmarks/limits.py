"""Which rows a run's models can read, decided for a training set of texts and pictures: python benchmarks/limits.py [rounds]

Two embedders, the judge and the reranker read the same items with one tokenizer, as in a run whose models are of one family.  Measured are
the whole decision as the stage `filter_train` makes it, and the same with texts tokenized anew for every reader; and the size of a picture
from the beginning of its file against the whole file.  Both ways must decide alike.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import harness
import material
import numpy as np
import polars as pl
from harness import Section, main, ratio, turns

from unime import artifacts, prompts
from unime.backbones import Backbone, load
from unime.data import images
from unime.data.archives import archive
from unime.data.images import Decoding
from unime.data.items import Items
from unime.limits.lengths import ImageSizes, Reader, TextLengths
from unime.limits.places import Places
from unime.limits.sets import fitting

PAIRS = 2000
PLACES = [{"first": 0, "file": "rows.jsonl", "row": 1, "step": 1}]


def one(query: list, candidates: list) -> list:
    return prompts.judge_turn(query, candidates[0], prompts.UNIME)


def decided(backbone: Backbone, items: Items, pairs: pl.DataFrame, shared: bool) -> list[int]:
    """Rows that are left out."""
    texts = TextLengths(backbone, items)
    sizes = ImageSizes(items)

    def reader(name: str, **more: object) -> Reader:
        return Reader(name, backbone, items, texts if shared else TextLengths(backbone, items), sizes, "image_size", **more)

    judge = reader("the judge", turn=one)
    reranker = reader("the reranker", turn=functools.partial(prompts.list_turn, form=prompts.UNIME))
    _, bad = fitting(pairs, [reader("base"), reader("finder")], [(judge, 1, False), (reranker, 4, True)], Places(PLACES))
    return bad["row"].to_list()


def run(rounds: int) -> Section:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = material.words(np.random.default_rng(3), PAIRS, 20, 60)
        items, queries, pictures = material.items(folder, texts, [512] * PAIRS)
        columns = {"pair": queries, "dataset": ["S"] * PAIRS, "row": list(range(PAIRS)), "query": queries, "positive": pictures}
        pairs = pl.DataFrame(columns, schema=artifacts.PAIRS)
        backbone = load(harness.ROOT / "assets/nano-mllm", models=material.MODELS, weights=False)
        if decided(backbone, items, pairs, True) != decided(backbone, items, pairs, False):
            raise SystemExit("the two ways leave out different rows")
        decoding = Decoding(10**8)
        place, names = str(folder / "images"), [f"{number}.jpg" for number in range(PAIRS)]
        ways = {
            "texts tokenized once": lambda: decided(backbone, items, pairs, True),
            "texts tokenized by every reader": lambda: decided(backbone, items, pairs, False),
            "sizes from the start of a file": lambda: [images.peek(place, name, decoding).size for name in names],
            "sizes from the whole file": lambda: [images.header(archive(place).read(name), decoding, place, name).size for name in names],
        }
        times = turns(ways, rounds)
    rows = []
    for name, other in (
        ("texts tokenized once", "texts tokenized by every reader"),
        ("sizes from the start of a file", "sizes from the whole file"),
    ):
        rows.append([name, f"{PAIRS / float(np.median(times[name])):,.0f}", ratio(times[other], times[name])])
    text = f"{PAIRS:,} pairs of a text of 20 to 60 words and a JPEG of 512 x 512 pixels, one thread; the rows left out are the same."
    return Section("Limits: rows that no model can read", text, ["way", "pairs a second", "speed against the other way"], rows)


if __name__ == "__main__":
    main(run, rounds=5)
