"""What several benchmarks work on: Qwen2-VL folders of chosen size with random weights, and items made of random pictures and words."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import numpy as np
import polars as pl
from PIL import Image

from unime import artifacts, prompts
from unime.data.images import Decoding
from unime.data.items import Items

NANO = harness.ROOT / "assets/nano-mllm"
MODELS = SimpleNamespace(dtype="float32", device="auto", attention="sdpa", max_length=8192)
WORDS = "red green blue small big ring cross star circle square top left right bottom dog cat road tree house of the a in on with".split()

SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4}
SMALL_EYES = {"embed_dim": 192, "depth": 4, "num_heads": 6, "hidden_size": 512}


PIXELS = 1 << 20
"""Of the image processor, at most: the nano MLLM's own cuts every picture down to 16 tokens."""


def wide(folder: Path) -> Path:
    """The nano MLLM with an image processor that leaves pictures as large as they are."""
    shutil.copytree(NANO, folder)
    place = folder / "preprocessor_config.json"
    processor = json.loads(place.read_text())
    processor |= {"max_pixels": PIXELS, "size": processor["size"] | {"longest_edge": PIXELS}}
    place.write_text(json.dumps(processor, indent=2))
    return folder


def model(folder: Path, text: dict[str, Any] = SMALL, eyes: dict[str, Any] = SMALL_EYES, **how: Any) -> Path:
    """A folder with the nano MLLM's tokenizer, `wide`'s image processor, and random weights of another size; `how` says their dtype and
    the device that draws them."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    wide(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    config["text_config"]["layer_types"] = ["full_attention"] * config["text_config"]["num_hidden_layers"]
    config["vision_config"] |= eyes
    torch.manual_seed(0)
    with torch.device(how.get("device", "cpu")):
        made = Qwen2VLForConditionalGeneration._from_config(Qwen2VLConfig.from_dict(config), dtype=how.get("dtype", torch.float32))
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    made.eval().save_pretrained(folder)
    return folder


def words(rng: np.random.Generator, count: int, least: int, most: int) -> list[str]:
    """`count` distinct texts of `least` to `most` words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(" ".join(rng.choice(WORDS, rng.integers(least, most + 1))) + f" {len(found)}.")
    return list(found)


def items(folder: Path, texts: list[str], sides: list[int]) -> tuple[Items, list[str], list[str]]:
    """Items of texts alone, and of pictures with sides of this many pixels: (items, ids of texts, ids of pictures)."""
    (folder / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(5), [(f"t{number:07d}", text, "", "", "") for number, text in enumerate(texts)]
    for number, side in enumerate(sides):
        data = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        coarse.save(data, "JPEG", quality=90)
        (folder / f"images/{number}.jpg").write_bytes(data.getvalue())
        rows.append(
            (f"p{number:07d}", f"{prompts.IMAGE_MARK}What is in the picture?\n", str(folder / "images"), f"{number}.jpg", str(number))
        )
    table = pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row")
    return Items(table, Decoding(10**8)), [row[0] for row in rows[: len(texts)]], [row[0] for row in rows[len(texts) :]]
