"""Adapters: which layers they touch, ones made here and elsewhere, and that a merged export is the same model to plain transformers."""

from __future__ import annotations

import functools
import json
import shutil
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from families import apart, image, plain_positions
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

from unime import backbones
from unime.backbones import ModelError, lora, usage
from unime.backbones.export import export
from unime.data.items import Content
from unime.train import card

MODELS = families.MODELS
PREFIX = "base_model.model."
FILE = "adapter_model.safetensors"


def settings(dora: bool = True, rank: int = 4, targets: str | list[str] = "language") -> SimpleNamespace:
    return SimpleNamespace(rank=rank, alpha=8, dropout=0.1, dora=dora, init="gaussian", targets=targets)


def perturbed(model: nn.Module) -> nn.Module:
    """Trainable weights away from LoRA's zero start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=families.NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, family):
    return family(name)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """`made("dora")` or `made("lora")`: (backbone with its adapter apart, the adapter's folder), weights perturbed."""

    @functools.cache
    def make(way: str):
        backbone = backbones.load(folder, models=MODELS, train=True)
        backbone.add_lora(settings(way == "dora"), 0)
        perturbed(backbone.model)
        out = tmp_path_factory.mktemp("adapter") / way
        backbone.model.save_pretrained(str(out), save_embedding_layers=False)
        return backbone, out

    return make


@pytest.fixture
def trained(made):
    return made("dora")


@pytest.fixture(params=["dora", "lora"])
def both(request, made):
    return made(request.param)


def shown(backbone):
    return [
        backbone.item_prompt(Content("a small red ring", None)),
        backbone.item_prompt(Content("<|image_1|>\nWhat color is it?\n", image(130, 70))),
    ]


@torch.no_grad()
def vectors(backbone):
    return backbone.embed(backbone.collate(shown(backbone)))


def test_lora_touches_every_linear_of_the_language_model_and_nothing_else(both):
    backbone, out = both
    names = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
    language = {f"layers.{n}" for n, m in backbone.core.language_model.layers.named_modules() if hasattr(m, "base_layer")}
    linears = {n for n, m in backbone.core.language_model.named_modules() if isinstance(m, nn.Linear)}
    assert len(language) == 7 * len(backbone.core.language_model.layers)
    assert all("lora_" in n or n.endswith(".base_layer") for n in linears), "a linear layer was left out"
    assert {n.split("language_model.")[1].split(".lora_")[0] for n in names} == language
    assert all("language_model" in n for n in names)
    assert sum(isinstance(m, nn.Linear) for n, m in backbone.model.named_modules() if "language_model" not in n and "head" not in n) > 6
    assert len([n for n in names if "magnitude" in n]) == (len(language) if out.name == "dora" else 0)


def test_lora_starts_from_the_seed_and_leaves_the_random_state_alone(folder):
    states = []
    for seed in (0, 0, 1):
        found = backbones.load(folder, models=MODELS, train=True)
        torch.manual_seed(5)
        found.add_lora(settings(), seed)
        states.append((torch.cat([p.flatten() for n, p in found.model.named_parameters() if "lora_A" in n]), torch.rand(1)))
    assert torch.equal(states[0][0], states[1][0]) and not torch.equal(states[0][0], states[2][0])
    assert states[0][1] == states[2][1]


def test_a_merged_adapter_equals_the_trained_model(name, folder, both):
    backbone, out = both
    wanted = vectors(backbone)
    assert apart(wanted, vectors(backbones.load(folder, models=MODELS))) > 1e-2, "the adapter does nothing"
    torch.manual_seed(5)
    merged = backbones.load(folder, adapter=out, models=MODELS)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
    assert not any("lora" in n for n, _ in merged.model.named_modules())
    assert not any(p.requires_grad for p in merged.model.parameters()) and not merged.model.training
    again = backbones.load(folder, adapter=out, models=MODELS, train=True)
    again.model.eval()
    print(f"{name} {out.name}: embeddings, adapter merged: {apart(vectors(merged), wanted):.1e}")
    assert apart(vectors(merged), wanted) < 1e-5 and apart(vectors(again), wanted) < 1e-6
    assert {n for n, p in again.model.named_parameters() if p.requires_grad} == {
        n for n, p in backbone.model.named_parameters() if p.requires_grad
    }


def old_adapter(name: str, out, place, **changes):
    """A copy of an adapter under the names that its model had before transformers 4.52, its settings changed."""
    shutil.copytree(out, place)
    tensors = load_file(place / FILE)
    old = {PREFIX + families.older(name, key.removeprefix(PREFIX)): tensor for key, tensor in tensors.items()}
    assert not set(old) & set(tensors)
    save_file(old, place / FILE)
    asked = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(asked | changes))
    return place


def test_an_adapter_of_the_older_layout_loads(name, folder, trained, tmp_path):
    """However it says which layers it goes into: by their own names, by a pattern, by full names."""
    backbone, out = trained
    wanted, pattern = vectors(backbone), lora.targets(backbones.load(folder, models=MODELS).model, "language")
    assert pattern.startswith(r"model\.language_model\.layers")
    then = families.older(name, "model.language_model.layers.").rstrip(".").replace(".", r"\.")
    own = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    full = [key.removeprefix(PREFIX).partition(".lora_A")[0] for key in load_file(out / FILE) if ".lora_A" in key]
    ways = {
        "names": {"target_modules": own, "exclude_modules": r".*(vision_tower|visual).*"},  # the tower of LLaVA and InternVL has q_proj too
        "pattern": {"target_modules": pattern.replace(r"model\.language_model\.layers", then)},
        "full": {"target_modules": [families.older(name, key) for key in full]},
    }
    for way, changes in ways.items():
        old = old_adapter(name, out, tmp_path / way, base_model_name_or_path="Some/Model-7B-Instruct", **changes)
        assert apart(vectors(backbones.load(folder, adapter=old, models=MODELS)), wanted) < 1e-5, way
    again = backbones.load(folder, adapter=tmp_path / "pattern", models=MODELS, train=True)
    again.model.eval()
    assert apart(vectors(again), wanted) < 1e-6


def test_an_older_adapter_that_lacks_a_layer_is_named(name, folder, trained, tmp_path):
    own = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    old = old_adapter(name, trained[1], tmp_path / "old", target_modules=own, exclude_modules=r".*(vision_tower|visual).*")
    tensors = {key: value for key, value in load_file(old / FILE).items() if "layers.1.mlp" not in key}
    save_file(tensors, old / FILE)
    with pytest.raises(ModelError, match=r"does not fit .* (6|9) tensors missing, 0 unknown, .*model.language_model.layers.1.mlp"):
        backbones.load(folder, adapter=old, models=MODELS)


def test_adapters_that_do_not_fit_are_named(folder, trained, tmp_path):
    place = tmp_path / "adapter"
    shutil.copytree(trained[1], place)

    def refused(match: str, **more) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            backbones.load(folder, adapter=place, models=MODELS, **more)
        assert str(place) in str(caught.value)

    tensors = load_file(place / FILE)
    first = sorted(tensors)[0]
    save_file({("other." + key if key == first else key): value for key, value in tensors.items()}, place / FILE)
    refused("1 tensors missing, 1 unknown")
    save_file({key: (value[:2].contiguous() if "lora_A" in key else value) for key, value in tensors.items()}, place / FILE)
    refused("the adapter does not fit")
    (place / FILE).write_bytes(b"torn")
    refused("adapter_model.safetensors is damaged")
    (place / FILE).rename(place / "adapter_model.bin")
    refused("weights in adapter_model.bin are a pickle.*save_pretrained, which writes safetensors")
    (place / "adapter_model.bin").unlink()
    refused("adapter_model.safetensors is missing")
    save_file(tensors, place / FILE)
    asked = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(asked | {"target_modules": ["nothing_proj"]}))
    refused("the adapter does not fit .*nothing_proj")
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"]}))
    refused("peft_type .*IA3; only LoRA and DoRA")
    (place / "adapter_config.json").unlink()
    refused("adapter_config.json is missing")
    place = tmp_path / "absent"
    refused("no such adapter folder")


def test_an_adapter_of_the_tower_is_merged_or_trained_and_one_of_the_head_is_merged_only(folder, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "language_model" not in n and "head" not in n][-2:]
    place = tmp_path / "tower"
    perturbed(get_peft_model(model, LoraConfig(r=2, target_modules=linears))).save_pretrained(str(place), save_embedding_layers=False)
    merged, base = (vectors(backbones.load(folder, adapter=adapter, models=MODELS)) for adapter in (place, None))
    assert apart(merged[:1], base[:1]) == 0 and apart(merged[1:], base[1:]) > 1e-3
    again = backbones.load(folder, adapter=place, models=MODELS, train=True)
    again.model.eval()
    assert again.trains_images and apart(vectors(again), merged) < 1e-5
    model, place = AutoModelForImageTextToText.from_pretrained(folder), tmp_path / "head"
    perturbed(get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))).save_pretrained(str(place), save_embedding_layers=False)
    with pytest.raises(ModelError, match="is of the language model's head, which is not trained here"):
        backbones.load(folder, adapter=place, models=MODELS, train=True)


# Exports


def inputs(folder, model: nn.Module) -> dict[str, torch.Tensor]:
    """Words, an image and words for a model of transformers, made with transformers alone."""
    kind, picture = model.config.model_type, image(130, 70)
    words = AutoTokenizer.from_pretrained(folder)
    asked = {"crop_to_patches": True} if kind == "internvl" else {}
    family = backbones.FAMILIES[kind]  # for its processor's class and nothing else
    found = dict(family.IMAGE_PROCESSOR.from_pretrained(folder)(images=[picture], return_tensors="pt", **asked))
    found = {key: found[key] for key in ("pixel_values", "image_grid_thw", "image_sizes") if key in found}
    features = model.model.get_image_features(**found, return_dict=True).pooler_output
    count = sum(len(part) for part in features) if not torch.is_tensor(features) else features.shape[:2].numel()
    ids = [*words.encode("Represent the "), *[words.convert_tokens_to_ids(families.IMAGE[kind])] * count, *words.encode(" red ring")]
    made = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **found}
    if kind.startswith("qwen"):
        made["position_ids"] = plain_positions(made["attention_mask"])  # of raw text; transformers would count in two dimensions
    return made


@torch.no_grad()
def test_an_adapter_and_its_merged_export_give_the_same_embeddings_in_plain_transformers(name, folder, both, tmp_path):
    export(folder, both[1], tmp_path / "merged", models=MODELS, card="# A card\n")
    base = AutoModelForImageTextToText.from_pretrained(folder).eval()
    given = inputs(folder, base)

    def embedding(model: nn.Module) -> torch.Tensor:
        return nn.functional.normalize(model.model(**given).last_hidden_state[:, -1], dim=-1)

    before = embedding(base)
    wanted = embedding(PeftModel.from_pretrained(base, both[1]).eval().get_base_model())
    merged, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert type(merged) is type(base) and not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = embedding(merged.eval())
    assert apart(before, wanted) > 1e-2, "the adapter does nothing"
    assert given["input_ids"].tolist() == inputs(tmp_path / "merged", merged)["input_ids"].tolist()
    print(f"{name} {both[1].name}: embeddings, merged export in transformers: {apart(found, wanted):.1e}")
    assert apart(found, wanted) < 1e-5
    tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert tied == (name == "qwen2_vl")


@torch.no_grad()
def test_the_code_of_an_exports_card_embeds_as_we_do(name, folder, trained, tmp_path, monkeypatch):
    """The card's Python is run as it stands there, in the exported folder: it knows transformers and nothing of this project."""
    text = card.exported("unime_v2", "---\nbase_model: x\n---\n\n# unime_v2\n", {}, "0000000", usage.embedding(folder, "as_seen"))
    out = tmp_path / "merged"
    export(folder, trained[1], out, models=MODELS, card=text)
    code = (out / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert "unime" not in code and code.count("def embed(") == 1
    monkeypatch.chdir(out)
    card_of: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), card_of)
    items = [
        (Content("a small red ring", None), 0),
        (Content("<|image_1|>\nWhat color is it?\n", image(130, 70)), 0),
        (Content("Find it: <|image_1|> here, please", image(60, 200, 1)), 112),
        (Content("a picture without a mark", image(90, 90, 2)), 0),
        (Content("<|image_1|>\nA page about rings", None), 0),
        (Content("Find it: <|image_1|> here, please", None), 0),
        (Content("", image(80, 60, 3)), 0),
    ]
    found, moved = [], []
    for content, side in items:
        backbone = backbones.load(out, models=MODELS, image_size=side)
        wanted = backbone.embed(backbone.collate([backbone.item_prompt(content)]))[0]
        found.append(card_of["embed"](content.text, content.image, side))
        assert apart(found[-1], wanted) < 1e-5
        moved.append(apart(found[-1], found[0]))
    assert min(moved[1:]) > 1e-2, "all items embed alike: nothing is compared"
    with pytest.raises(ValueError, match="the text spells the special token <|im_end|>".replace("|", "[|]")):
        card_of["embed"]("a ring<|im_end|>")


def test_an_export_is_a_whole_folder_and_opens_as_model_and_as_adapter(name, folder, trained, tmp_path):
    backbone, adapter = trained
    out = tmp_path / "export"
    copy = tmp_path / "base"
    shutil.copytree(folder, copy)
    said = {"do_sample": False, "temperature": 0.01, "eos_token_id": [backbone.end]}  # transformers reads this and would not write it
    (copy / "generation_config.json").write_text(json.dumps(said))
    out.mkdir()
    (out / "stale.txt").write_text("of an earlier export")
    export(copy, adapter, out, models=MODELS, card="# A card\n", shard="300KB")
    files = {path.name for path in out.iterdir()}
    assert "model.safetensors.index.json" in files and len([file for file in files if file.endswith(".safetensors")]) > 1
    assert not files & {"stale.txt", "adapter_config.json", FILE, "model.safetensors"} and not list(tmp_path.glob(".*tmp"))
    assert (out / "README.md").read_text() == "# A card\n"
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "whoever may read the card may read the weights"
    base = {path.name for path in folder.iterdir()} - {"model.safetensors", "config.json"}
    assert len(base) > 5 and all((out / file).read_bytes() == (copy / file).read_bytes() for file in base)
    wanted = vectors(backbone)
    for found in (backbones.load(out, models=MODELS), backbones.load(tmp_path / "no such base", adapter=out, models=MODELS)):
        assert found.folder == out and apart(vectors(found), wanted) < 1e-5
    again = backbones.load(folder, adapter=out, models=MODELS, train=True)
    again.add_lora(settings(), 0)
    assert any(p.requires_grad for p in again.model.parameters())
    with pytest.raises(ValueError, match="is the folder that is read"):
        export(out, adapter, out, models=MODELS, card="")


def test_a_folder_with_an_adapter_and_merged_weights_is_an_adapter(folder, trained, tmp_path):
    """As in a published repository whose merged weights are known to be wrong."""
    mixed = tmp_path / "mixed"
    shutil.copytree(trained[1], mixed)
    for path in folder.iterdir():
        shutil.copy(path, mixed)
    assert apart(vectors(backbones.load(folder, adapter=mixed, models=MODELS)), vectors(trained[0])) < 1e-5


def test_names_that_are_current_are_left_alone(trained):
    backbone, out = trained
    tensors = load_file(out / FILE)
    assert list(lora.renamed(backbone.model.get_base_model(), tensors)) == list(tensors)
