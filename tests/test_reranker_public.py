"""The reranker as the public code has it: its images, and the loss over whole assistant turns."""

from __future__ import annotations

import io
import math
import shutil
import zipfile
from pathlib import Path

import families
import numpy as np
import polars as pl
import pytest
import torch
import training
from PIL import Image
from training import accumulator, gradient_of

from unime import artifacts, backbones, prompts
from unime.backbones import ModelError
from unime.data import images
from unime.data.images import Decoding
from unime.data.items import Items
from unime.plan import tokens
from unime.train import reranker
from unime.train.data import Batch

RED, HIDDEN = (200, 30, 40), (12, 200, 77)


# Transparency


def transparent(kind: str) -> bytes:
    """40 x 30 pixels: an opaque red rectangle in the middle, and around it a colour of opacity 0."""
    image = Image.new("RGBA", (40, 30), (*HIDDEN, 0))
    image.paste((*RED, 255), (10, 10, 30, 20))
    out = io.BytesIO()
    if kind == "LA":
        image.convert("LA").save(out, "PNG")
    elif kind == "palette":
        flat = Image.new("P", (40, 30), 1)
        flat.putpalette([*RED, *HIDDEN])
        flat.paste(0, (10, 10, 30, 20))
        flat.save(out, "PNG", transparency=1)
    elif kind == "tRNS":  # one colour of an RGB image is transparent
        flat = Image.new("RGB", (40, 30), HIDDEN)
        flat.paste(RED, (10, 10, 30, 20))
        flat.save(out, "PNG", transparency=HIDDEN)
    elif kind == "WEBP":
        image.save(out, "WEBP", lossless=True, exact=True)
    else:
        image.save(out, kind)
    return out.getvalue()


def items_of(folder: Path, members: dict[str, bytes]) -> Items:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    rows = [(name, prompts.IMAGE_MARK, str(folder / "a.zip"), name, name) for name in members]
    return Items(pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row"), Decoding(10**6, "as_public"))


@pytest.mark.parametrize("kind", ["PNG", "LA", "palette", "tRNS", "GIF", "WEBP"])
def test_what_is_transparent_is_white_to_the_reranker(kind: str, tmp_path: Path):
    items = items_of(tmp_path, {"x": transparent(kind)})
    plain, white = items["x"].image, items.on_white()["x"].image
    assert plain.mode == white.mode == "RGB"
    assert white.getpixel((0, 0)) == white.getpixel((39, 29)) == (255, 255, 255)
    assert plain.getpixel((20, 15)) == white.getpixel((20, 15)) != (255, 255, 255)
    if kind != "GIF":  # Pillow writes a colour of its own where a GIF is transparent
        assert plain.getpixel((0, 0)) != (255, 255, 255), "without it the hidden colour is seen"
    assert items["x"].image.tobytes() == plain.tobytes(), "the items themselves stay as they were"


def test_half_transparent_is_half_white_and_an_opaque_image_stays_as_it_is():
    partly = Image.new("RGBA", (8, 8), (100, 0, 50, 51))
    expected = tuple(round((51 * colour + 204 * 255) / 255) for colour in (100, 0, 50))
    assert images.whitened(partly).getpixel((3, 3)) == expected
    assert images.whitened(Image.new("RGB", (8, 8), (100, 0, 50))).getpixel((3, 3)) == (100, 0, 50)
    assert images.whitened(Image.new("L", (8, 8), 7)).getpixel((3, 3)) == (7, 7, 7)


def test_the_training_sees_its_images_on_white(tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch):
    training.write_data(tmp_path / "data", 12)
    seen = []

    def fit(backbone, settings, rows, seed, job, accelerator, accumulate):
        seen.append(accumulate.shown.items.white)
        raise StopIteration

    monkeypatch.setattr(reranker, "fit", fit)
    with pytest.raises(StopIteration):
        training.train("reranker", tmp_path / "data", nano, tmp_path / "out", tmp_path / "scratch", batch=8)
    assert seen == [True]


# Sizes


def public_size(width: int, height: int, most: int, least: int = 4) -> tuple[int, int]:
    """The public code's size of an image in the reranker's prompts: sides in whole tokens of 28 pixels, `least` to `most` tokens."""
    high, wide = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if high * wide > most * 784:
        shrink = math.sqrt(height * width / (most * 784))
        high, wide = math.floor(height / shrink / 28) * 28, math.floor(width / shrink / 28) * 28
    elif high * wide < least * 784:
        grow = math.sqrt(least * 784 / (height * width))
        high, wide = math.ceil(height * grow / 28) * 28, math.ceil(width * grow / 28) * 28
    return wide, high


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_an_image_of_at_most_so_many_tokens_keeps_its_aspect_as_in_the_public_code(name, family):
    sizes = [(640, 480), (90, 600), (1000, 300), (28, 28), (4, 18), (84, 84), (250, 251)]
    free = backbones.load(family(name), models=families.MODELS)
    bound = backbones.load(family(name), models=families.MODELS, max_tokens=20)
    planned = tokens.without_weights(family(name), families.MODELS, 0, 20)
    for width, height in sizes:
        image = families.image(width, height)
        expected = public_size(width, height, 20)
        found = bound.look(image)
        assert found.tokens == expected[0] * expected[1] // 784 == bound._image_tokens(image) and 4 <= found.tokens <= 20
        assert planned._image_tokens(image) == found.tokens
        resized = free.look(image.resize(expected, Image.Resampling.BICUBIC))  # whole tokens already: nothing is left to resize
        assert resized.shape.tolist() == found.shape.tolist() and families.apart(resized.pixels, found.pixels) < 1e-6
    assert free.look(families.image(640, 480)).tokens > 20 and free.look(families.image(28, 28)).tokens < 4, "the bounds must bind"


def test_published_sizes_are_300_tokens_in_training_and_289_in_evaluation(family):
    trained = backbones.load(family("qwen2_5_vl"), models=families.MODELS, max_tokens=300)
    evaluated = backbones.load(family("qwen2_5_vl"), models=families.MODELS, image_size=1344, max_tokens=300)
    image = families.image(1344, 700)
    assert public_size(1344, 1344, 300) == (476, 476)
    assert evaluated.look(image).tokens == 17 * 17 == 289
    assert trained.look(image).tokens == math.prod(public_size(1344, 700, 300)) // 784 == 288
    assert trained._image_tokens(families.image(300, 300)) == 121


def test_a_family_of_tiles_refuses_a_bound_on_tokens(family):
    with pytest.raises(ModelError, match=r"max_tokens \(300\) bounds the images of Qwen2-VL and Qwen2.5-VL; LlavaOnevision cuts images"):
        backbones.load(family("llava_onevision"), models=families.MODELS, max_tokens=300)


# The loss over tokens


def public_loss(answers: reranker.Answers, rows: list[int]) -> torch.Tensor:
    """Mean over queries of the mean over all labelled tokens of a query's three sequences, each tokenized as one whole conversation.

    Labels are all tokens from the assistant's `<|im_start|>` on (public code: Rerank/collators/MMEB_rerank.py).
    """
    backbone, losses = answers.backbone, []
    start = backbone.token("<|im_start|>")
    for row in rows:
        summed, count = 0.0, 0
        for turn in answers.turns(row, 0):
            prompt = answers.prompt(turn)
            text = prompt.text + turn.answer + "<|im_end|>\n"
            encoded = backbone.encode(prompt._replace(text=text))
            labelled = int(np.flatnonzero(encoded.ids == start)[-1])
            batch = backbone.collate([encoded])
            logits = backbone.head(backbone.hidden(batch))[0, labelled - 1 : -1]
            targets = batch["input_ids"][0, labelled:]
            summed = summed + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            count += len(targets)
        losses.append(summed / count)
    return torch.stack(losses).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    training.write_data(folder, 12)
    return folder


@pytest.mark.parametrize("form", ["unime", "public"])
def test_the_token_loss_is_the_public_codes(form, folder, family):
    found = {}
    for loss in ("token", "sequence"):
        model, answers = accumulator(
            "reranker", folder, family("qwen2_5_vl"), loss=loss, prompt=form, batch=4, micro=2, lora__dropout=0.0, list_fixed=True
        )
        rows = [0, 3, 5, 8]
        found[loss] = gradient_of(model, answers, Batch(0, 0, rows))
        if loss == "token":
            model.zero_grad()
            plain = public_loss(answers, rows)
            plain.backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert found["token"][0] == pytest.approx(plain.item(), rel=1e-5)
    assert (found["token"][1] - gradient).norm() < 1e-5 * gradient.norm()
    directions = [found[loss][1] / found[loss][1].norm() for loss in ("token", "sequence")]
    assert (directions[0] - directions[1]).norm() > 0.01, "losses with one gradient would prove nothing"


def test_the_token_loss_weighs_a_sequence_by_its_tokens(folder, family):
    _, answers = accumulator("reranker", folder, family("qwen2_5_vl"), loss="token")
    turns = answers.turns(0, 0)
    encoded, labels, weights = answers.targets(turns)
    tokenizer = answers.backbone.tokenizer
    for turn, prompt, label in zip(turns, encoded, labels, strict=True):
        assert tokenizer.decode(label) == f"<|im_start|>assistant\n{turn.answer}<|im_end|>\n"
        assert tokenizer.decode(prompt.ids).endswith("<|im_end|>\n")
    assert weights == [len(label) / sum(map(len, labels)) for label in labels] and sum(weights) == pytest.approx(1)


def test_a_template_that_opens_the_assistants_turn_otherwise_than_it_prompts_is_refused(folder, family, tmp_path: Path):
    copy = tmp_path / "model"
    shutil.copytree(family("qwen2_5_vl"), copy)
    _, answers = accumulator("reranker", folder, copy, loss="token")
    answers.frame = answers.frame._replace(header=[*answers.frame.header[:-1], answers.backbone.end])
    with pytest.raises(ValueError, match="header of the assistant's turn; set loss to sequence"):
        answers.targets(answers.turns(0, 0))
