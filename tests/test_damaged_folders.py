"""Damaged files of model and adapter folders: each is refused with folder, file, reason and remedy before weights are read.

`tests/test_model_folders.py` has the missing files, and the forms of good ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import families
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model_folders import changed

from unime import backbones
from unime.backbones import ModelError, base
from unime.backbones.usage import embedding
from unime.plan.tokens import without_weights

Damage = Callable[[Path], object]
REMEDY = re.compile(r"copy the whole model folder again|use a model whose tokenizer|use the model that it was trained on|set models\.\*")


def put(file: str, content: bytes | str) -> Damage:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(file: str) -> Damage:
    """The first half of the file."""
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[: (folder / file).stat().st_size // 2])


def utf16(file: str) -> Damage:
    return lambda folder: (folder / file).write_text((folder / file).read_text(), encoding="utf-16")


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    """Something else in the file's place."""

    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return damage


def folder_for(file: str) -> Damage:
    return instead(file, lambda path: path.mkdir())


def link_to_nowhere(file: str) -> Damage:
    return instead(file, lambda path: path.symlink_to("nowhere"))


def setting(file: str, **values: object) -> Damage:
    return lambda folder: changed(folder, file, **values)


def without(file: str, *keys: str) -> Damage:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / file).read_text())
        for key in keys:
            settings.pop(key)
        (folder / file).write_text(json.dumps(settings))

    return damage


PIXELS = "preprocessor_config.json"
TEMPLATE = "chat_template.json"
MODEL = "model.safetensors"
# what is damaged -> (family, damage, the file as the message names it, the reason)
SETTINGS: dict[str, tuple[str, Damage, str, str]] = {
    "config cut off": ("qwen2_vl", cut("config.json"), "config.json", "is not JSON"),
    "config a folder": ("qwen2_vl", folder_for("config.json"), "config.json", "is a folder, not a file"),
    "config a link to nowhere": ("internvl", link_to_nowhere("config.json"), "config.json", "is a link to nowhere, which is not there"),
    "config a pipe": ("qwen2_vl", instead("config.json", os.mkfifo), "config.json", "is no regular file"),
    "config in UTF-16": ("qwen2_vl", utf16("config.json"), "config.json", "is not text in UTF-8 .byte 0"),
    "config empty": ("qwen2_5_vl", put("config.json", ""), "config.json", "is empty"),
    "config a list": ("qwen2_vl", put("config.json", "[1]"), "config.json", "holds a list, not a mapping"),
    "config nested deeply": ("qwen2_vl", put("config.json", '{"a":' + "[" * 10**5 + "]" * 10**5 + "}"), "config.json", "nested too deeply"),
    "config unreadable": ("qwen2_vl", instead("config.json", lambda p: p.symlink_to("/proc/self/mem")), "config.json", "cannot be read"),
    "config of a model_type that is a list": ("qwen2_vl", setting("config.json", model_type=["qwen2_vl"]), "config.json", "has model_type"),
    "config with a width that is a word": (
        "qwen2_vl",
        setting("config.json", text_config__hidden_size="wide"),
        "config.json",
        "describes no",
    ),
    "config without layers": ("internvl", setting("config.json", text_config__num_hidden_layers=-1), "config.json", "describes no|fit"),
    "config with no attention heads": (
        "qwen2_5_vl",
        setting("config.json", text_config__num_attention_heads=0),
        "config.json",
        "describes no",
    ),
    "config with a text for the vision tower": ("qwen2_vl", setting("config.json", vision_config="none"), "config.json", "describes no"),
    "config with too few words": ("qwen2_vl", setting("config.json", text_config__vocab_size=50), "config.json", "has room for 50"),
    "tokenizer cut off": ("qwen2_vl", cut("tokenizer.json"), "tokenizer.json", "is not JSON"),
    "tokenizer empty": ("llava_onevision", put("tokenizer.json", ""), "tokenizer.json", "is empty"),
    "tokenizer a link to nowhere beside its older files": (
        "qwen2_vl",
        link_to_nowhere("tokenizer.json"),
        "tokenizer.json",
        "a link to nowhere",
    ),
    "tokenizer without a model": ("qwen2_vl", without("tokenizer.json", "model"), "tokenizer.json", "has no model"),
    "tokenizer with an unknown model": (
        "qwen2_vl",
        setting("tokenizer.json", model__type="Nothing"),
        "tokenizer.json",
        "no tokenizer can be",
    ),
    "tokenizer with a word for its merges": (
        "qwen2_vl",
        setting("tokenizer.json", model__merges="a b"),
        "tokenizer.json",
        "no tokenizer can",
    ),
    "tokenizer_config cut off": ("internvl", cut("tokenizer_config.json"), "tokenizer_config.json", "is not JSON"),
    "tokenizer_config empty of settings": ("qwen2_vl", put("tokenizer_config.json", "{}"), "tokenizer_config.json", "eos_token"),
    "tokenizer_config a folder": ("qwen2_vl", folder_for("tokenizer_config.json"), "tokenizer_config.json", "is a folder"),
    "special_tokens_map cut off": ("qwen2_vl", put("special_tokens_map.json", "{"), "special_tokens_map.json", "is not JSON"),
    "generation_config cut off": ("qwen2_vl", cut("generation_config.json"), "generation_config.json", "is not JSON"),
    "generation_config with a word": ("qwen2_vl", setting("generation_config.json", eos_token_id="end"), "generation_config.json", "'end'"),
    "template cut off": (
        "qwen2_vl",
        setting(TEMPLATE, chat_template=families.TEMPLATES["qwen2_vl"][:90]),
        "chat template",
        "TemplateSyntax",
    ),
    "template in jinja cut off": ("internvl", put("chat_template.jinja", "{% for message in"), "chat template", "TemplateSyntax"),
    "template in jinja empty": ("internvl", put("chat_template.jinja", "\n"), "chat_template.jinja", "is empty"),
    "template in jinja of another encoding": ("qwen2_vl", put("chat_template.jinja", b"\xff\xfe{"), "chat_template.jinja", "UTF-8"),
    "template a list": ("qwen2_vl", setting(TEMPLATE, chat_template=[{"name": "default"}]), TEMPLATE, "is a list, not a text"),
    "templates without a default": (
        "qwen2_vl",
        setting(TEMPLATE, chat_template=[{"name": "tool_use", "template": families.TEMPLATES["qwen2_vl"]}]),
        TEMPLATE,
        "is a list, not a text",
    ),
    "template that fails": (
        "qwen2_vl",
        setting(TEMPLATE, chat_template="{{ raise_exception('no') }}"),
        "chat template",
        "TemplateError: no",
    ),
    "template without an end of the turn": ("qwen2_vl", setting(TEMPLATE, chat_template="{{ messages }}"), "chat template", "does not end"),
    "template that leaves out images": (
        "qwen2_5_vl",
        setting(TEMPLATE, chat_template=families.TEMPLATES["qwen2_5_vl"].replace("<|image_pad|>", "")),
        "chat template",
        "writes 0 image placeholders for 1 images",
    ),
    "images cut off": ("qwen2_vl", cut(PIXELS), PIXELS, "is not JSON"),
    "images empty of settings": ("qwen2_vl", put(PIXELS, "{}"), PIXELS, "lacks image_mean, image_std, patch_size"),
    "images empty of settings (tiles)": ("llava_onevision", put(PIXELS, "{}"), PIXELS, "lacks image_mean, image_std, size"),
    "images empty of settings (patches)": ("internvl", put(PIXELS, "{}"), PIXELS, "lacks image_mean, image_std, size"),
    "images without bounds": ("qwen2_5_vl", without(PIXELS, "min_pixels", "max_pixels"), PIXELS, "lacks min_pixels and max_pixels"),
    "images with bounds that are null": (
        "qwen2_vl",
        setting(PIXELS, min_pixels=None, max_pixels=None),
        PIXELS,
        "lacks min_pixels and max_pixels .or a size.",
    ),
    "images with one bound": ("qwen2_vl", setting(PIXELS, min_pixels=None), PIXELS, "lacks min_pixels and max_pixels .or a size."),
    "images of other patches": ("qwen2_vl", setting(PIXELS, patch_size=16), PIXELS, r"\(16, 2, 2\), config.json has \(14, 2, 2\)"),
    "images merged otherwise": ("qwen2_5_vl", setting(PIXELS, merge_size=4), PIXELS, r"\(14, 2, 4\), config.json has \(14, 2, 2\)"),
    "images of patches in words": ("qwen2_vl", setting(PIXELS, patch_size="14"), PIXELS, "is damaged|config.json has"),
    "images with two means": ("qwen2_vl", setting(PIXELS, image_mean=[0.5, 0.5]), PIXELS, "three numbers from 0 to 1"),
    "images with a mean of bytes": ("internvl", setting(PIXELS, image_mean=[123.7, 116.3, 103.5]), PIXELS, "three numbers from 0 to 1"),
    "images with a deviation of 0": ("qwen2_vl", setting(PIXELS, image_std=[0.2, 0, 0.2]), PIXELS, "three numbers above 0"),
    "images with a deviation that is NaN": (
        "llava_onevision",
        setting(PIXELS, image_std=[float("nan")] * 3),
        PIXELS,
        "three numbers above 0",
    ),
    "images with a mean in words": ("qwen2_vl", setting(PIXELS, image_mean="half"), PIXELS, "three numbers|is damaged"),
    "images left in bytes": ("qwen2_vl", setting(PIXELS, rescale_factor=255), PIXELS, "rescale_factor 255"),
    "images with bounds the wrong way": ("qwen2_vl", setting(PIXELS, min_pixels=10**6, max_pixels=784), PIXELS, "above max_pixels 784"),
    "images with a negative bound": ("qwen2_vl", setting(PIXELS, min_pixels=-1), PIXELS, "min_pixels -1; a whole number of at least 1"),
    "images enlarged beyond all positions": ("qwen2_vl", setting(PIXELS, min_pixels=10**12, max_pixels=10**13), PIXELS, "positions"),
    "images smaller than a token": ("qwen2_vl", setting(PIXELS, min_pixels=1, max_pixels=10), PIXELS, "is above max_pixels 10"),
    "tiles of no size": ("llava_onevision", setting(PIXELS, size={"shortest_edge": 56}), PIXELS, "size|tiles"),
    "tiles without a list": ("llava_onevision", setting(PIXELS, image_grid_pinpoints=7), PIXELS, "image_grid_pinpoints|is damaged"),
    "tiles, fewer than none": ("internvl", setting(PIXELS, max_patches=0), PIXELS, "max_patches 0; a whole number"),
    "tiles, fewer than the fewest": ("internvl", setting(PIXELS, min_patches=13), PIXELS, "min_patches 13, which is above max_patches 12"),
}


@pytest.fixture
def broken(family, tmp_path):
    """A copy of a family's folder after some damage."""

    def made(name: str, damage: Damage) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(family(name), folder)
        damage(folder)
        return folder

    return made


def refused(folder: Path, file: str, reason: str, **options: object) -> None:
    with pytest.raises(ModelError) as caught:
        backbones.load(folder, models=families.MODELS, **options)
    assert named(str(caught.value), folder, file, reason)


def named(message: str, folder: Path, file: str, reason: str) -> bool:
    assert message.startswith(f"{folder}: ") and file in message, message
    assert re.search(reason, message) and REMEDY.search(message) and "\n" not in message and len(message) < 900, message
    return True


@pytest.mark.parametrize("case", SETTINGS)
def test_a_damaged_file_is_refused_before_weights_are_read(case, broken, monkeypatch):
    name, damage, file, reason = SETTINGS[case]
    folder = broken(name, damage)
    monkeypatch.setattr(base, "loaded", lambda *_: pytest.fail("the weights were read"))
    refused(folder, file, reason)
    with pytest.raises(ModelError) as caught:
        without_weights(folder, families.MODELS, 0)
    assert named(str(caught.value), folder, file, reason), "the plan says the same"


def sharded(places: Callable[[list[str]], dict[str, object]]) -> Damage:
    """The weights in one shard and an index that says where they are."""

    def damage(folder: Path) -> None:
        names = sorted(load_file(folder / MODEL))
        (folder / MODEL).rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places(names)}))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = MODEL) -> Damage:
    def damage(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file(found, folder / file, metadata={"format": "pt"})

    return damage


def filled(part: str, value: float) -> Damage:
    """One value of the first tensor with this part in its name."""

    def change(found: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(found) if part in name)
        found[name].view(-1)[3] = value

    return tensors(change)


INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"
WEIGHTS: dict[str, tuple[str, Damage, str, str]] = {
    "weights a folder": ("qwen2_vl", folder_for(MODEL), MODEL, "is a folder"),
    "weights a link to nowhere": ("qwen2_vl", link_to_nowhere(MODEL), MODEL, "a link to nowhere"),
    "weights cut off": ("internvl", cut(MODEL), MODEL, "is damaged"),
    "weights that are a note of Git LFS": ("qwen2_vl", put(MODEL, "version https://git-lfs.github.com/spec/v1\n"), MODEL, "is damaged"),
    "weights without tensors": ("qwen2_vl", tensors(lambda found: found.clear()), MODEL, "holds no tensor"),
    "weights with one tensor more": (
        "qwen2_vl",
        tensors(lambda found: found.update({"model.layers.0.lora_A.weight": torch.zeros(2, 2)})),
        "weights",
        "1 tensors without a place in the model of config.json, .*lora_A",
    ),
    "weights of more layers": (
        "qwen2_5_vl",
        setting("config.json", text_config__num_hidden_layers=1, text_config__layer_types=["full_attention"]),
        "weights",
        "without a place",
    ),
    "weights of another vision tower": (
        "internvl",
        tensors(
            lambda found: found.update({n: t[:3].clone() for n, t in found.items() if n.endswith("cls_token")} | {"x": torch.zeros(1)})
        ),
        "weights",
        "without a place|fit",
    ),
    "weights with NaN": ("qwen2_vl", filled("q_proj.weight", float("nan")), "q_proj.weight", "not finite"),
    "weights with an infinite value": ("llava_onevision", filled("vision", float("inf")), "vision", "not finite"),
    "index without a map": ("qwen2_vl", lambda f: (sharded(lambda names: {})(f), (f / INDEX).write_text("{}")), INDEX, "has no weight_map"),
    "index of another shard": (
        "qwen2_vl",
        sharded(lambda names: dict.fromkeys(names, "other.safetensors")),
        "other.safetensors",
        "missing",
    ),
    "index that leaves the folder": ("qwen2_vl", sharded(lambda names: dict.fromkeys(names, "../x.safetensors")), INDEX, r"'\.\./x"),
    "index of a whole path": ("qwen2_vl", sharded(lambda names: dict.fromkeys(names, "/x.safetensors")), INDEX, "'/x.safetensors'"),
    "index of numbers": ("qwen2_vl", sharded(lambda names: dict.fromkeys(names, 1)), INDEX, "into 1; a .*safetensors file in the folder"),
    "index of a pickle": ("qwen2_vl", sharded(lambda names: dict.fromkeys(names, "model.bin")), INDEX, "'model.bin'"),
    "index of tensors that are not there": (
        "qwen2_vl",
        sharded(lambda names: dict.fromkeys([*names, "y"], SHARD)),
        SHARD,
        "lacks 1 tensors",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_damaged_weights_are_refused_by_name(case, broken):
    name, damage, file, reason = WEIGHTS[case]
    refused(broken(name, damage), file, reason)


ADAPTER, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ADAPTERS: dict[str, tuple[Damage, str, str]] = {
    "settings cut off": (cut(ADAPTER), ADAPTER, "is not JSON"),
    "settings a folder": (folder_for(ADAPTER), ADAPTER, "is a folder"),
    "settings a link to nowhere": (link_to_nowhere(ADAPTER), ADAPTER, "a link to nowhere"),
    "settings empty": (put(ADAPTER, "{}"), ADAPTER, "has peft_type None; only LoRA and DoRA"),
    "settings of another kind": (setting(ADAPTER, peft_type="NOTHING"), ADAPTER, "has peft_type NOTHING; only LoRA"),
    "no rank": (setting(ADAPTER, r=0), ADAPTER, "has r 0; a whole number of at least 1"),
    "a rank in words": (setting(ADAPTER, r="8"), ADAPTER, "has r '8'"),
    "another rank": (setting(ADAPTER, r=3), "adapter", "size mismatch"),
    "a scale that is infinite": (setting(ADAPTER, lora_alpha=float("inf")), ADAPTER, "has lora_alpha inf"),
    "no layers": (setting(ADAPTER, target_modules=None), ADAPTER, "has no target_modules"),
    "layers of another base": (setting(ADAPTER, target_modules=["query_key_value"]), "adapter", "does not fit"),
    "fewer layers": (setting(ADAPTER, target_modules=["q_proj"]), TENSORS, "does not fit .* unknown"),
    "tensors cut off": (cut(TENSORS), TENSORS, "is damaged"),
    "tensors empty": (put(TENSORS, ""), TENSORS, "is damaged"),
    "a tensor missing": (tensors(lambda found: found.pop(sorted(found)[0]), TENSORS), TENSORS, "1 tensors missing"),
    "a tensor of NaN": (tensors(lambda found: found[sorted(found)[0]].fill_(float("nan")), TENSORS), "lora_A", "not finite"),
}


@pytest.fixture(scope="module")
def adapter(family, tmp_path_factory) -> Path:
    from unime import config as config_module

    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    backbone = backbones.load(family("qwen2_vl"), models=families.MODELS, train=True)
    backbone.add_lora(config_module.load(Path(__file__).resolve().parents[1] / "config.yaml").train.lora, 0)
    backbone.model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_damaged_adapter_is_refused_by_name(case, adapter, family, tmp_path):
    damage, file, reason = ADAPTERS[case]
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    backbones.load(family("qwen2_vl"), models=families.MODELS, adapter=folder)
    damage(folder)
    with pytest.raises(ModelError) as caught:
        backbones.load(family("qwen2_vl"), models=families.MODELS, adapter=folder)
    assert named(str(caught.value), folder, file, reason)


@pytest.mark.parametrize(
    ("make", "reason"), [(lambda p: p.symlink_to("nowhere"), "a link to nowhere"), (lambda p: p.touch(), "it is a file")]
)
def test_what_is_no_folder_is_refused(make, reason, family, tmp_path):
    make(tmp_path / "model")
    refused(tmp_path / "model", "no such model folder", reason)
    with pytest.raises(ModelError, match=f"no such adapter folder, .*{reason}"):
        backbones.load(family("qwen2_vl"), models=families.MODELS, adapter=tmp_path / "model")


def test_a_model_card_is_not_written_for_a_damaged_folder(broken):
    with pytest.raises(ModelError, match="config.json has model_type 'x'"):
        embedding(broken("qwen2_vl", setting("config.json", model_type="x")), "as_seen")


def test_the_weights_a_plan_does_not_need_may_be_missing_and_nothing_is_drawn_by_opening(family, broken):
    folder = broken("internvl", lambda folder: (folder / MODEL).unlink())
    assert without_weights(folder, families.MODELS, 0).length
    before = torch.get_rng_state()
    backbones.load(family("internvl"), models=families.MODELS)
    assert torch.equal(torch.get_rng_state(), before)
