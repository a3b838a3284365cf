"""Positions of Qwen2-VL and Qwen2.5-VL: plain in the embedder's raw text, the model's own in chat prompts; each against transformers."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from families import apart, image, plain_positions
from torch import nn

from unime import backbones
from unime.backbones import Encoded
from unime.data.items import Content

ROPE = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
SIDES = ["left", "right"]


@pytest.fixture(scope="module", params=["nano", "qwen2_vl", "qwen2_5_vl"])
def backbone(request, nano, family):
    return backbones.load(nano if request.param == "nano" else family(request.param), models=families.MODELS)


@pytest.fixture(scope="module")
def items(backbone):
    """Text only, an image first, an image in the middle, a tall image after text."""
    return [
        backbone.item_prompt(Content("a small red circle", None)),
        backbone.item_prompt(Content("<|image_1|>\nWhat color is the ring?\n", image(112, 84))),
        backbone.item_prompt(Content("Find it: <|image_1|> here, please", image(84, 56, 1))),
        backbone.item_prompt(Content("Is it red? <|image_1|>", image(56, 140, 2))),
    ]


@pytest.fixture(scope="module")
def chats(backbone):
    return [
        backbone.chat_prompt(["Query:", image(112, 84, 3), " Candidate:", "a blue square"]),
        backbone.chat_prompt(["Query: a red ring", " Candidate:", image(56, 140, 4), image(84, 56, 5)]),
        backbone.chat_prompt(["Query: a red ring", " Candidate:", "a blue square"]),
    ]


def forward(backbone, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, D) of left-padded sequences: transformers' own forward pass, without a line of ours."""
    return nn.functional.normalize(backbone.model.model(**batch).last_hidden_state[:, -1], dim=-1)


def without(batch: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != name}


@pytest.mark.parametrize("side", SIDES)
def test_raw_items_have_plain_positions(backbone, items, side):
    batches = [[item] for item in items] + [items]
    for some in batches:
        batch = backbone.collate(some, side=side)
        assert torch.equal(backbone.positions(batch), plain_positions(batch["attention_mask"]))
    assert (batch["attention_mask"] == 0).any(), "no padding: nothing is tested"


@torch.no_grad()
def test_raw_items_embed_as_transformers_does_with_plain_positions(backbone, items):
    batches = [[item] for item in items] + [items]
    worst, moved = 0.0, []
    for some in batches:
        batch = backbone.collate(some)
        wanted = forward(backbone, without(batch, "mm_token_type_ids") | {"position_ids": plain_positions(batch["attention_mask"])})
        found = backbone.embed(batch)
        worst = max(worst, apart(found, wanted))
        if len(some) == 1 and "image_grid_thw" in batch:
            moved.append(apart(found, forward(backbone, batch)))  # transformers' choice: two-dimensional
    print(f"{backbone.folder.name}: plain positions against transformers: {worst:.1e}; against two-dimensional ones: {min(moved):.1e}")
    assert len(moved) == 3 and min(moved) > 1e-3, "the two kinds of positions give the same embedding: nothing is compared"
    assert worst < 1e-5


@pytest.mark.parametrize("side", SIDES)
def test_chat_prompts_have_the_models_own_positions(backbone, chats, side):
    batch = backbone.collate(chats, side=side)
    own, _ = backbone.core.get_rope_index(**{key: batch[key] for key in ROPE})
    assert torch.equal(backbone.positions(batch), own)
    assert len(own.unique(dim=0)) == 3, "no image moved the three axes apart"


@torch.no_grad()
def test_chat_prompts_are_read_as_by_the_models_own_forward_pass(backbone, chats):
    for some in [[chat] for chat in chats] + [chats]:
        batch = backbone.collate(some)
        assert apart(backbone.embed(batch), forward(backbone, batch)) < 1e-5
    plain = forward(backbone, batch | {"position_ids": plain_positions(batch["attention_mask"])})
    assert apart(backbone.embed(batch)[:2], plain[:2]) > 1e-3, "plain positions would do as well: nothing is compared"


@pytest.mark.parametrize("side", SIDES)
def test_raw_and_chat_prompts_of_a_batch_have_their_own_positions(backbone, items, chats, side):
    mixed = [items[1], chats[0], items[0], chats[1], items[3]]
    batch = backbone.collate(mixed, side=side)
    found = backbone.positions(batch)
    for row, prompt in enumerate(mixed):
        alone = backbone.positions(backbone.collate([prompt]))[:, 0]
        assert torch.equal(found[:, row, batch["attention_mask"][row] == 1], alone)


def test_an_image_token_without_pixels_counts_as_one_word(backbone, items, chats):
    """In text alone, and before an image that has pixels; `mm_token_type_ids` says which tokens have them."""
    bare = Encoded(np.array([5, backbone.image_token, 6, 7]))
    assert backbone.positions(backbone.collate([bare]))[:, 0].tolist() == [[0, 1, 2, 3]] * 3
    shown = backbone.encode(chats[0])
    longer = Encoded(np.concatenate([bare.ids, shown.ids]), shown.pictures)
    batch = backbone.collate([longer])
    batch["mm_token_type_ids"][0, 1] = 0
    alone = backbone.positions(backbone.collate([shown]))
    assert torch.equal(backbone.positions(batch)[..., 4:], alone + 4)
    assert backbone.positions(batch)[:, 0, :4].tolist() == [[0, 1, 2, 3]] * 3


def test_positions_of_two_adjacent_images_behind_one_vision_start(backbone):
    """transformers takes them for one image, so the numbers are written out: the second has no vision start and counts as text."""
    text = backbone.VISION_START + backbone.IMAGE_TOKEN * 2 + " two"
    prompt = backbone._prompt(text, [image(84, 56, 2), image(56, 56, 3)])
    ids = backbone.encode(prompt).ids
    found = backbone.positions(backbone.collate([prompt]))[:, 0]
    rest = [*range(4, 4 + len(ids) - 7)]  # a vision start, 2 x 3 tokens, which end at 1 + 3, and the second image's
    assert found.tolist() == [[0, *[1] * 6, *rest], [0, 1, 1, 1, 2, 2, 2, *rest], [0, 1, 2, 3, 1, 2, 3, *rest]]
