"""Backbones: what a prompt becomes, that padding changes nothing, that pooling is after the final norm, that bad folders are named."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from unime import backbones
from unime.backbones import ModelError, Picture
from unime.data.items import Content


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def models(config):
    return config.models.model_copy(update={"device": "cpu"})


@pytest.fixture(scope="module")
def backbone(nano, models):
    return backbones.load(nano, models=models)


@pytest.fixture(scope="module")
def prompts(backbone):
    """Text only, image first, image in the middle, two images side by side of unequal sides, a chat."""
    return [
        backbone.item_prompt(Content("a small red circle", None)),
        backbone.item_prompt(Content("<|image_1|>\nWhat color is the ring?\n", image(56, 56))),
        backbone.item_prompt(Content("Find it: <|image_1|> here, please", image(28, 84, 1))),
        backbone._prompt([backbone.IMAGE_TOKEN * 2, " two"], [image(84, 56, 2), image(28, 28, 3)]),
        backbone.chat_prompt(["Query:", image(56, 56, 4), " Candidate:", "a blue square", image(56, 28, 5)]),
    ]


@pytest.fixture
def copy(nano, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(nano, folder)
    return folder


# Prompts and batches


def test_item_prompts_are_raw_text_and_chats_have_vision_marks(backbone, prompts):
    assert prompts[1].text == "<|image_pad|>\nWhat color is the ring?\n"
    assert prompts[4].text.count("<|vision_start|><|image_pad|><|vision_end|>") == 2
    assert prompts[4].text.endswith("<|im_start|>assistant\n")


def test_length_is_the_number_of_tokens(backbone, prompts, nano, models):
    for found in (backbone, backbones.load(nano, models=models.model_copy(update={"image_size": 84}))):
        for prompt in prompts:
            assert found.length(prompt) == len(found.encode(prompt).ids)
    sized = SimpleNamespace(size=(56, 56))  # a header that was not decoded is enough
    assert backbone.length(prompts[1]._replace(images=(sized,))) == backbone.length(prompts[1])


def test_image_size_squashes_images_first(nano, models):
    squashing = backbones.load(nano, models=models.model_copy(update={"image_size": 84}))
    (picture,) = squashing.encode(squashing.item_prompt(Content("", image(56, 28)))).pictures
    assert picture.grid.tolist() == [[1, 6, 6]]


def test_what_cannot_be_a_prompt_is_named(backbone, nano, models):
    short = backbones.load(nano, models=models.model_copy(update={"max_length": 5}))
    with pytest.raises(ValueError, match=r"of 9 tokens is over models.max_length \(5\)"):
        short.encode(short._prompt(["ring" + "," * 8], []))
    with pytest.raises(ValueError, match="2 image placeholders for 1 images"):
        backbone.item_prompt(Content("<|image_1|> and <|image_pad|>", image(28, 28)))
    with pytest.raises(ValueError, match="'Yes and No' is"):
        backbone.token("Yes and No")
    assert backbone.tokenizer.decode([backbone.token("Yes")]) == "Yes"


def test_labels_are_the_answer_and_the_end_of_the_turn(backbone, prompts):
    for side in ("left", "right"):
        batch = backbone.collate(prompts, ["Yes", "No", "Ans: (3)", "a red circle", "No"], side)
        for row, answer in zip(batch["labels"], ["Yes", "No", "Ans: (3)", "a red circle", "No"], strict=True):
            assert backbone.tokenizer.decode(row[row != -100]) == f"{answer}<|im_end|>"
        shown = batch["labels"] != -100
        assert (batch["input_ids"][shown] == batch["labels"][shown]).all() and (batch["attention_mask"][shown] == 1).all()


def test_pictures_with_and_without_features_do_not_mix(backbone, prompts):
    seen = prompts[1]._replace(images=(backbone.see(prompts[1].images[0]),))
    with pytest.raises(ValueError, match="some pictures"):
        backbone.collate([seen, prompts[2]])


# Numbers


def test_positions_are_the_models_own(backbone, prompts):
    """transformers takes two adjacent images for one, so the fourth prompt is left to the next test."""
    for side in ("left", "right"):
        batch = backbone.collate([*prompts[:3], prompts[4]], side=side)
        own, _ = backbone.core.get_rope_index(
            batch["input_ids"], batch["mm_token_type_ids"], image_grid_thw=batch["image_grid_thw"], attention_mask=batch["attention_mask"]
        )
        assert torch.equal(backbone.positions(batch), own)
        assert len(own.unique(dim=0)) == 3, "no image moved the three axes apart"


def test_positions_of_two_adjacent_images(backbone, prompts):
    ids = backbone.encode(prompts[3]).ids  # 2 x 3 tokens, 1 x 1 token, text
    found = backbone.positions(backbone.collate([prompts[3]]))[:, 0].tolist()
    rest = [*range(4, 4 + len(ids) - 7)]
    assert found == [[0] * 6 + [3] + rest, [0, 0, 0, 1, 1, 1, 3, *rest], [0, 1, 2, 0, 1, 2, 3, *rest]]


@torch.no_grad()
def test_padding_side_batch_and_order_change_no_embedding(backbone, prompts):
    alone = torch.cat([backbone.embed(backbone.collate([prompt])) for prompt in prompts])
    assert (alone @ alone.T).fill_diagonal_(0).max() < 0.9999, "all prompts embed alike: nothing is compared"
    assert torch.allclose(alone.norm(dim=1), torch.ones(len(prompts)), atol=1e-6) and alone.dtype == torch.float32
    order = [3, 0, 4, 2, 1]
    for side in ("left", "right"):
        assert (backbone.embed(backbone.collate(prompts, side=side)) - alone).abs().max() < 1e-5
        assert (backbone.embed(backbone.collate([prompts[i] for i in order], side=side)) - alone[order]).abs().max() < 1e-5
        padded = backbone.collate([prompts[0], prompts[4]], side=side)
        assert (padded["attention_mask"][0] == 0).sum() > 10
        assert (backbone.embed(padded) - alone[[0, 4]]).abs().max() < 1e-5


@torch.no_grad()
def test_pooling_is_after_the_final_norm(backbone, prompts):
    """Against the model's own forward pass, which computes its positions itself."""
    seen = {}
    hook = backbone.core.language_model.norm.register_forward_hook(lambda _, given, out: seen.update(before=given[0], after=out))
    for prompt in [*prompts[:3], prompts[4]]:
        batch = backbone.collate([prompt])
        own = backbone.model.model(**batch).last_hidden_state
        assert torch.equal(own, seen["after"])
        found = backbone.embed(batch)[0]
        assert (found - nn.functional.normalize(own[0, -1], dim=0)).abs().max() < 1e-6
        weight = backbone.core.language_model.norm.weight
        assert weight.std() < 1e-6 or (found - nn.functional.normalize(seen["before"][0, -1], dim=0)).abs().max() > 1e-3
    hook.remove()


@torch.no_grad()
def test_pooling_before_the_norm_would_be_noticed(backbone, prompts):
    """Random weights have a norm of all ones, where normalised rows before and after it are alike; so give it others."""
    norm, batch = backbone.core.language_model.norm, backbone.collate([prompts[1]])
    kept, before = norm.weight.clone(), backbone.embed(batch)
    norm.weight.copy_(torch.linspace(0.1, 2, len(kept)))
    changed = backbone.embed(batch)
    norm.weight.copy_(kept)
    assert (before - changed).abs().max() > 1e-3


@torch.no_grad()
def test_seen_pictures_stand_in_for_images(backbone, prompts):
    plain = backbone.embed(backbone.collate(prompts))
    seen = [prompt._replace(images=tuple(backbone.see(i) for i in prompt.images)) for prompt in prompts]
    assert all(isinstance(i, Picture) and i.pixels is None for prompt in seen for i in prompt.images)
    assert [backbone.length(prompt) for prompt in seen] == [backbone.length(prompt) for prompt in prompts]
    assert (backbone.embed(backbone.collate(seen)) - plain).abs().max() < 1e-5


@torch.no_grad()
def test_answer_logits_are_rows_of_the_full_logits(backbone, prompts):
    ids = [backbone.token("Yes"), backbone.token("No"), 7]
    for prompt in [*prompts[:3], prompts[4]]:
        full = backbone.model(**backbone.collate([prompt])).logits[:, -1]
        found = backbone.answer_logits(backbone.collate([prompt]), ids)
        assert found.shape == (1, 3) and (found - full[:, ids]).abs().max() < 1e-5
    assert found.std() > 0


@torch.no_grad()
def test_likelihoods_are_those_of_the_full_logits(backbone, prompts):
    chosen, answers = [*prompts[:3], prompts[4]], ["Yes", "Ans: (10)", "a red circle", "No"]
    for side in ("left", "right"):
        batch = backbone.collate(chosen, answers, side)
        found, losses = backbone.log_likelihood(batch), backbone.sequence_loss(batch)
        for row, (prompt, answer) in enumerate(zip(chosen, answers, strict=True)):
            single = backbone.collate([prompt], [answer])
            own = backbone.model(**single).loss.item()  # transformers' mean over the labels
            count = int((single["labels"] != -100).sum())
            assert losses[row].item() == pytest.approx(own, abs=1e-5)
            assert found[row].item() == pytest.approx(-own * count, abs=1e-4)


# Adapters


def test_lora_is_in_every_linear_layer_of_the_language_model_and_nowhere_else(nano, models, config):
    found = backbones.load(nano, models=models, train=True)
    language = {n for n, m in found.core.language_model.named_modules() if isinstance(m, nn.Linear)}
    found.add_lora(config.train.lora, 0)
    trained = [n for n, p in found.model.named_parameters() if p.requires_grad]
    assert trained and all("language_model.layers" in n and "lora_" in n for n in trained)
    assert {n.split("language_model.")[1].split(".lora_")[0] for n in trained} == language
    assert len([n for n in trained if "magnitude" in n]) == len(language), "DoRA is off"


def test_lora_starts_from_the_seed_and_leaves_the_random_state_alone(nano, models, config):
    states = []
    for seed in (0, 0, 1):
        found = backbones.load(nano, models=models, train=True)
        torch.manual_seed(5)
        found.add_lora(config.train.lora, seed)
        states.append((torch.cat([p.flatten() for n, p in found.model.named_parameters() if "lora_A" in n]), torch.rand(1)))
    assert torch.equal(states[0][0], states[1][0]) and not torch.equal(states[0][0], states[2][0])
    assert states[0][1] == states[2][1]


@torch.no_grad()
def test_a_merged_adapter_equals_the_trained_model(nano, models, config, prompts, backbone, tmp_path):
    trained = backbones.load(nano, models=models, train=True)
    trained.add_lora(config.train.lora, 0)
    for _, parameter in trained.model.named_parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    trained.model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    trained.model.eval()
    wanted = trained.embed(trained.collate(prompts))
    assert (wanted - backbone.embed(backbone.collate(prompts))).abs().max() > 1e-2, "the adapter does nothing"
    merged = backbones.load(nano, adapter=tmp_path / "adapter", models=models)
    assert not hasattr(merged.model, "peft_config") or not any("lora" in n for n, _ in merged.model.named_modules())
    assert (merged.embed(merged.collate(prompts)) - wanted).abs().max() < 1e-5
    again = backbones.load(nano, adapter=tmp_path / "adapter", models=models, train=True)
    again.model.eval()
    assert (again.embed(again.collate(prompts)) - wanted).abs().max() < 1e-6
    assert any(p.requires_grad for p in again.model.parameters())

    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    tensors["other." + first] = tensors.pop(first)
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="1 tensors missing, 1 unknown"):
        backbones.load(nano, adapter=tmp_path / "adapter", models=models)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="adapter_model.safetensors is damaged"):
        backbones.load(nano, adapter=tmp_path / "adapter", models=models)
    with pytest.raises(ModelError, match="no such adapter folder"):
        backbones.load(nano, adapter=tmp_path / "absent", models=models)


# Folders


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_missing_file_is_named_with_its_folder(copy, models, name):
    for spare in ("vocab.json", "merges.txt"):
        (copy / spare).unlink(missing_ok=True)
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name) as caught:
        backbones.load(copy, models=models)
    assert str(copy) in str(caught.value) and "missing" in str(caught.value) and "copy the whole model folder" in str(caught.value)


def test_a_missing_chat_template_is_named_and_its_older_place_is_read(copy, models):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template", None) or (copy / "chat_template.jinja").read_text()
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="chat_template"):
        backbones.load(copy, models=models)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert backbones.load(copy, models=models).chat_prompt(["a"]).text.endswith("assistant\n")


def test_damaged_weights_are_named(copy, models):
    whole = (copy / "model.safetensors").read_bytes()
    for torn in (whole[: len(whole) // 2], b"\x00" * 100, b""):
        (copy / "model.safetensors").write_bytes(torn)
        with pytest.raises(ModelError, match="model.safetensors is damaged") as caught:
            backbones.load(copy, models=models)
        assert str(copy) in str(caught.value)


def test_a_missing_tensor_is_an_error_and_not_random_weights(copy, models):
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in sorted(tensors) if "q_proj" in n)
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 tensors"):
        backbones.load(copy, models=models)


def test_weights_of_another_size_are_an_error(copy, models):
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in sorted(tensors) if "q_proj.weight" in n)
    tensors[name] = tensors[name][:-8].contiguous()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not fit config.json"):
        backbones.load(copy, models=models)


def test_shards_are_read_and_a_missing_one_is_named(copy, models):
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    place = {n: f"model-0000{1 + (i >= len(names) // 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(place.values()):
        save_file({n: tensors[n] for n in names if place[n] == file}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    backbones.load(copy, models=models)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors is missing"):
        backbones.load(copy, models=models)


def test_unusable_folders_are_named(copy, models, tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        backbones.load(tmp_path / "absent", models=models)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"model_type": "qwen9"}))
    with pytest.raises(ModelError, match="model_type 'qwen9'; known: qwen2_vl"):
        backbones.load(copy, models=models)
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json is not JSON"):
        backbones.load(copy, models=models)


def test_an_absent_gpu_is_named(nano, models):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="torch sees no GPU"):
        backbones.load(nano, models=models.model_copy(update={"device": "cuda"}))
