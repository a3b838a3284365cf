"""Backbones, one family after the other: what a prompt becomes, that padding changes nothing, that pooling is after the final norm.

`nano` is the shipped Qwen2-VL with trained weights, the others are small folders of random weights (`families`).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import families
import numpy as np
import pytest
import torch
from families import apart, image, plain_positions
from torch import nn
from transformers import InternVLConfig, LlavaOnevisionConfig
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from unime import backbones
from unime.backbones import Picture
from unime.backbones.inputs import together
from unime.data.items import Content

SIZES = [(1, 1), (56, 56), (57, 56), (30, 200), (200, 30), (111, 113), (224, 224), (500, 480), (640, 120), (1000, 90), (13, 29)]


@pytest.fixture(scope="module", params=["nano", *families.NAMES])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, nano, family):
    return nano if name == "nano" else family(name)


@pytest.fixture(scope="module")
def backbone(folder):
    return backbones.load(folder, models=families.MODELS)


@pytest.fixture(scope="module")
def shown(backbone):
    """Text only, image first, image in the middle, two images side by side of unequal sides, a chat with two images."""
    return [
        backbone.item_prompt(Content("a small red circle", None)),
        backbone.item_prompt(Content("<|image_1|>\nWhat color is the ring?\n", image(56, 56))),
        backbone.item_prompt(Content("Find it: <|image_1|> here, please", image(28, 84, 1))),
        backbone._prompt(backbone.IMAGE_TOKEN * 2 + " two", [image(84, 56, 2), image(28, 28, 3)]),
        backbone.chat_prompt(["Query:", image(56, 56, 4), " Candidate:", "a blue square", image(300, 240, 5)]),
    ]


def given(backbone, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch for transformers' own forward pass, which has to be told that raw text has plain positions (`test_positions`)."""
    three_axes = hasattr(backbone.core, "get_rope_index")
    if three_axes and not (batch["input_ids"] == backbone.vision_start).any():
        return batch | {"position_ids": plain_positions(batch["attention_mask"])}
    return batch


def told(backbone, sizes) -> list[int]:
    """Tokens of images of these sizes, as transformers' own processor counts them."""
    kind, config = backbone.core.config.model_type, backbone.core.config
    if kind == "llava_onevision":
        own = object.__new__(LlavaOnevisionProcessor)  # making one needs torchvision
        own.image_processor, own.vision_feature_select_strategy, own.vision_aspect_ratio = backbone.processor, "full", "anyres_max_9"
        own.num_image_tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return own._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    if kind == "internvl":
        own = object.__new__(InternVLProcessor)
        own.image_processor, own.image_seq_length = backbone.processor, config.image_seq_length
        ends = 2  # <img> and </img>
        return [count - ends for count in own._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]]
    grids = (backbone.processor(images=[image(width, height)], return_tensors="pt")["image_grid_thw"] for height, width in sizes)
    return [int(grid.prod()) // 4 for grid in grids]


# Prompts and batches


def test_the_embedders_prompts_are_of_the_familys_form(name, backbone, shown):
    forms = {
        "llava_onevision": "<|im_start|>user <image>\nWhat color is the ring?<|im_end|><|im_start|>assistant\n",
        "internvl": "<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat color is the ring?<|im_end|>\n<|im_start|>assistant\n",
    }
    assert shown[1].text == forms.get(name, "<|image_pad|>\nWhat color is the ring?\n")
    assert shown[0].text == (shown[0].text if name in forms else "a small red circle")
    assert "a small red circle" in shown[0].text and not shown[0].images
    only = backbone.item_prompt(Content("", image(56, 56)))
    assert only.text.count(backbone.IMAGE_TOKEN) == 1 and "What" not in only.text


def test_a_chat_shows_its_images_where_they_stand(name, backbone, shown):
    text = shown[4].text
    first, last = text.index(backbone.IMAGE_TOKEN), text.rindex(backbone.IMAGE_TOKEN)
    assert text.index("Query:") < first < text.index(" Candidate:a blue square") < last and text.endswith("<|im_start|>assistant\n")
    around = {"internvl": "<img><IMG_CONTEXT></img>", "llava_onevision": "<image>"}
    assert text.count(around.get(name, "<|vision_start|><|image_pad|><|vision_end|>")) == 2


def test_length_is_the_number_of_tokens(folder, backbone, shown):
    for found in (backbone, backbones.load(folder, models=families.MODELS, image_size=84)):
        for prompt in shown:
            assert found.length(prompt) == len(found.encode(prompt).ids)
    sized = SimpleNamespace(size=(56, 56))  # a header that was not decoded is enough
    assert backbone.length(shown[1]._replace(images=(sized,))) == backbone.length(shown[1])


@torch.no_grad()
def test_tokens_of_an_image_are_the_processors_and_as_many_as_its_features(backbone):
    rng = np.random.default_rng(0)
    sizes = SIZES + [tuple(int(side) for side in rng.integers(1, 700, 2)) for _ in range(60)]
    sizes = [size for size in sizes if max(size) / min(size) < 200]
    found = [backbone._tokens(*size) for size in sizes]
    assert found == told(backbone, sizes) and len(set(found)) > 3
    for height, width in SIZES:
        picture = backbone.see(image(width, height))
        assert picture.pixels is None and len(picture.features) == picture.tokens == backbone._tokens(height, width)


@pytest.mark.parametrize("kind", families.NAMES)
def test_the_documented_numbers_of_tokens_are_those_of_the_published_settings(kind):
    document = (Path(__file__).resolve().parents[1] / "docs" / "backbones.md").read_text()
    (row,) = [line.replace("\\|", "") for line in document.splitlines() if line.startswith(f"| `{kind}`")]
    settings, config = {
        "llava_onevision": ({}, LlavaOnevisionConfig()),
        "internvl": ({"size": {"height": 448, "width": 448}, "max_patches": 12}, InternVLConfig()),
    }.get(kind, ({"min_pixels": 3136, "max_pixels": 12845056}, None))
    family = backbones.FAMILIES[kind]
    bare = object.__new__(family)  # the published sizes without the published weights
    bare.processor, bare.core = family.IMAGE_PROCESSOR(**settings), SimpleNamespace(config=config)
    assert [bare._tokens(side, side) for side in (336, 672, 1344)] == [int(cell) for cell in row.split("|")[-4:-1]]
    assert families.IMAGE[kind].replace("|", "") in row and family.IMAGE_TOKEN == families.IMAGE[kind]


def test_image_size_squashes_images_first(folder):
    squashing = backbones.load(folder, models=families.MODELS, image_size=84)
    (wide,), (high,) = (squashing.encode(squashing.item_prompt(Content("", image(*size)))).pictures for size in ((90, 28), (40, 400)))
    assert wide.tokens == high.tokens == squashing._tokens(84, 84) and torch.equal(wide.shape, high.shape)
    assert wide.pixels.shape == high.pixels.shape


def test_what_cannot_be_a_prompt_is_named(folder, backbone):
    models = SimpleNamespace(**vars(families.MODELS) | {"max_length": 5})
    short = backbones.load(folder, models=models, image_size=84)
    long = short._prompt("Yes" * 9, [])
    with pytest.raises(ValueError, match=r"of 9 tokens is over models.max_length \(5\); raise it, or shorten the text: 'YesYes"):
        short.encode(long)
    with pytest.raises(ValueError, match=r"is over models.max_length \(5\); raise it, or shrink images with image_size \(84 now\)"):
        short.encode(short.item_prompt(Content("", image(84, 84))))
    with pytest.raises(ValueError, match="2 image placeholders for 1 images"):
        backbone._prompt(2 * backbone.IMAGE_TOKEN, [image(28, 28)])
    with pytest.raises(ValueError, match="'Yes and No' is"):
        backbone.token("Yes and No")
    assert backbone.tokenizer.decode([backbone.token("Yes")]) == "Yes"


def test_labels_are_the_answer_and_the_end_of_the_turn(backbone, shown):
    answers = ["Yes", "No", "Ans: (3)", "a red circle", "No"]
    for side in ("left", "right"):
        batch = backbone.collate(shown, answers, side)
        for row, answer in zip(batch["labels"], answers, strict=True):
            assert backbone.tokenizer.decode(row[row != -100]) == f"{answer}<|im_end|>"
        told = batch["labels"] != -100
        assert (batch["input_ids"][told] == batch["labels"][told]).all() and (batch["attention_mask"][told] == 1).all()


def test_pictures_with_and_without_features_do_not_mix(backbone, shown):
    seen = shown[1]._replace(images=(backbone.see(shown[1].images[0]),))
    with pytest.raises(ValueError, match="some pictures"):
        backbone.collate([seen, shown[2]])


def test_a_wrong_number_of_features_is_an_error_and_not_shifted(backbone, shown):
    (picture,) = backbone.encode(shown[1]).pictures
    more = picture._replace(pixels=None, features=torch.zeros(picture.tokens + 1, 4))
    with pytest.raises(ValueError, match=f"{picture.tokens} image tokens for {picture.tokens + 1} rows"):
        backbone.run(backbone.collate([shown[1]._replace(images=(more,))]))


# Numbers


@torch.no_grad()
def test_padding_side_batch_and_order_change_no_embedding(name, backbone, shown):
    alone = torch.cat([backbone.embed(backbone.collate([prompt])) for prompt in shown])
    assert (alone @ alone.T).fill_diagonal_(0).max() < 0.9999, "all prompts embed alike: nothing is compared"
    assert torch.allclose(alone.norm(dim=1), torch.ones(len(shown)), atol=1e-6) and alone.dtype == torch.float32
    order, worst = [3, 0, 4, 2, 1], 0.0
    for side in ("left", "right"):
        worst = max(worst, apart(backbone.embed(backbone.collate(shown, side=side)), alone))
        worst = max(worst, apart(backbone.embed(backbone.collate([shown[i] for i in order], side=side)), alone[order]))
        padded = backbone.collate([shown[0], shown[4]], side=side)
        assert (padded["attention_mask"][0] == 0).sum() > 10
        worst = max(worst, apart(backbone.embed(padded), alone[[0, 4]]))
    print(f"{name}: embeddings, batch size, side and order: {worst:.1e}")
    assert worst < 1e-5


@torch.no_grad()
def test_pooling_is_after_the_final_norm(name, backbone, shown):
    """Against the model's own forward pass, which places features itself."""
    norm = backbone.core.language_model.norm
    kept, seen, worst = norm.weight.clone(), {}, 0.0
    norm.weight.copy_(torch.linspace(0.1, 2, len(kept)))  # all ones would leave normalised rows as they were
    hook = norm.register_forward_hook(lambda _, given, out: seen.update(before=given[0], after=out))
    for prompt in [*shown[:3], shown[4]]:
        batch = backbone.collate([prompt])
        own = backbone.model.model(**given(backbone, batch)).last_hidden_state
        assert torch.equal(own, seen["after"])
        found = backbone.embed(batch)[0]
        worst = max(worst, apart(found, nn.functional.normalize(own[0, -1], dim=0)))
        assert apart(found, nn.functional.normalize(seen["before"][0, -1], dim=0)) > 1e-2
    hook.remove()
    norm.weight.copy_(kept)
    print(f"{name}: embeddings, transformers' own forward pass: {worst:.1e}")
    assert worst < 1e-6


def test_positions_of_items_count_their_tokens(backbone, shown):
    """Plain in every family; chat prompts of the two that have three axes are in `test_positions`."""
    for side in ("left", "right"):
        batch = backbone.collate(shown[:4], side=side)
        found = backbone.positions(batch)
        wanted = plain_positions(batch["attention_mask"])
        assert torch.equal(found, wanted if found.ndim == 3 else wanted[0])


@torch.no_grad()
def test_seen_pictures_stand_in_for_images(name, backbone, shown):
    plain = backbone.embed(backbone.collate(shown))
    seen = [prompt._replace(images=tuple(backbone.see(i) for i in prompt.images)) for prompt in shown]
    assert all(isinstance(i, Picture) and i.pixels is None for prompt in seen for i in prompt.images)
    assert [backbone.length(prompt) for prompt in seen] == [backbone.length(prompt) for prompt in shown]
    found = apart(backbone.embed(backbone.collate(seen)), plain)
    others = [prompt._replace(images=tuple(i._replace(features=-i.features) for i in prompt.images)) for prompt in seen]
    assert apart(backbone.embed(backbone.collate(others))[1:], plain[1:]) > 1e-2, "features have no effect"
    print(f"{name}: embeddings, features in place of pixels: {found:.1e}")
    assert found < 1e-5


@torch.no_grad()
def test_half_precision_is_near_full(folder, backbone, shown):
    half = backbones.load(folder, models=SimpleNamespace(**vars(families.MODELS) | {"dtype": "bfloat16"}))
    seen = [prompt._replace(images=tuple(half.see(i) for i in prompt.images)) for prompt in shown]
    full = backbone.embed(backbone.collate(shown))
    for prompts in (shown, seen):
        found = half.embed(half.collate(prompts))
        assert found.dtype == torch.float32 and (found * full).sum(dim=1).min() > 0.99


@torch.no_grad()
def test_answer_logits_are_rows_of_the_full_logits(backbone, shown):
    ids = [backbone.token("Yes"), backbone.token("No"), 7]
    for prompt in [*shown[:3], shown[4]]:
        full = backbone.model(**given(backbone, backbone.collate([prompt]))).logits[:, -1]
        found = backbone.answer_logits(backbone.collate([prompt]), ids)
        assert found.shape == (1, 3) and apart(found, full[:, ids]) < 1e-5
    assert found.std() > 0


@torch.no_grad()
def test_likelihoods_are_those_of_the_full_logits(backbone, shown):
    chosen, answers = [*shown[:3], shown[4]], ["Yes", "Ans: (10)", "a red circle", "No"]
    for side in ("left", "right"):
        batch = backbone.collate(chosen, answers, side)
        found, losses = backbone.log_likelihood(batch), backbone.sequence_loss(batch)
        for row, (prompt, answer) in enumerate(zip(chosen, answers, strict=True)):
            single = backbone.collate([prompt], [answer])
            own = backbone.model(**given(backbone, single)).loss.item()  # transformers' mean over the labels
            count = int((single["labels"] != -100).sum())
            assert losses[row].item() == pytest.approx(own, abs=1e-5)
            assert found[row].item() == pytest.approx(-own * count, abs=1e-4)


def test_pictures_that_pass_the_tower_together_are_each_alone(backbone):
    """What a GPU does: pictures of different sizes in one pass, cut by their tokens."""
    sizes = [(56, 56), (200, 90), (56, 112), (300, 240)]
    pictures = [backbone.look(image(width, height, seed)) for seed, (height, width) in enumerate(sizes)]
    assert len({picture.tokens for picture in pictures}) > 1 or backbone.core.config.model_type == "internvl"
    for picture, seen in zip(pictures, backbone.seen_together(pictures), strict=True):
        alone = backbone.see(picture).features
        assert seen.pixels is None and seen.features.shape == alone.shape and apart(seen.features, alone) < 1e-4
    assert backbone.see_all([]) == []


def test_pictures_are_put_together_up_to_a_number_of_tokens():
    sizes = [3, 4, 3, 20, 1, 9, 1]
    found = together([Picture(size, torch.zeros(1, 0)) for size in sizes], 10)
    assert [[picture.tokens for picture in some] for some in found] == [[3, 4, 3], [20], [1, 9], [1]]
