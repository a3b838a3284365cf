"""Adapters by the public code's list: in the layers that peft picks, in the vision tower too, trained, stored, merged and exported.

Where the tower is trained, images pass it inside the forward pass.  The plain implementation here is peft on transformers' own model, one
item at a time, without a cache, a batch or a line of the project's layers.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import families
import pytest
import torch
import training
from families import apart, plain_positions
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText

from unime import backbones, config
from unime.backbones import lora
from unime.backbones.export import export
from unime.data.images import Decoding
from unime.data.items import Items
from unime.train import checkpoint, dense, lean, losses, processes
from unime.train.data import Shown, batch_at
from unime.train.loop import prepared

LIST = "qkv_proj,o_proj,gate_up_proj,down_proj,k_proj,q_proj,out_proj,v_proj"
"""As the public code spells it."""

LANGUAGE = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"}
TOWER = {
    "qwen2_vl": set(),
    "qwen2_5_vl": {"mlp.down_proj"},
    "llava_onevision": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"},
    "internvl": {"attention.q_proj", "attention.k_proj", "attention.v_proj"},
}
TRAINED = [name for name, layers in TOWER.items() if layers]
KINDS = ["in_batch", "unime_v2", "reranker"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("training")
    training.write_data(place, 12)
    return place


def adapted(model: nn.Module) -> set[str]:
    """The full names of the layers that carry adapters."""
    names = {name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert names, "no adapter: nothing is tested"
    return names


def kinds_of(names: set[str], inside: bool) -> set[str]:
    """The last two parts of the names of layers inside the language model, or outside it."""
    return {".".join(name.split(".")[-2:]) for name in names if ("language_model" in name) == inside}


def accumulator(kind, folder, model, **changes):
    return training.accumulator(kind, folder, model, lora__targets="public", lora__dropout=0.0, batch=4, **changes)


# Which layers


@pytest.mark.parametrize("name", families.NAMES)
def test_public_targets_are_the_layers_that_peft_picks_from_the_public_list(name, family):
    plain = AutoModelForImageTextToText.from_pretrained(family(name))
    wanted = adapted(get_peft_model(plain, LoraConfig(r=4, target_modules=LIST.split(","), use_dora=True)))
    backbone = backbones.load(family(name), models=families.MODELS, train=True)
    backbone.add_lora(SimpleNamespace(rank=4, alpha=8, dropout=0.1, dora=True, init="gaussian", targets="public"), 0)
    found = adapted(backbone.model)
    assert found == wanted
    assert kinds_of(found, inside=True) == LANGUAGE and kinds_of(found, inside=False) == TOWER[name]
    assert backbone.trains_images == (name in TRAINED)


def test_a_list_of_name_endings_is_pefts_too(family, tmp_path):
    """Endings of several parts; stored in one order in every process."""
    endings = ["self_attn.v_proj", "fc2", "out_proj"]
    plain = AutoModelForImageTextToText.from_pretrained(family("llava_onevision"))
    wanted = adapted(get_peft_model(plain, LoraConfig(r=4, target_modules=endings)))
    backbone = backbones.load(family("llava_onevision"), models=families.MODELS, train=True)
    backbone.add_lora(SimpleNamespace(rank=4, alpha=8, dropout=0.1, dora=False, init="gaussian", targets=endings), 0)
    assert adapted(backbone.model) == wanted
    backbone.model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    stored = (tmp_path / "adapter_config.json").read_text()
    places = [stored.index(f'"{ending}"') for ending in sorted(endings)]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (["nothing_proj"], r"\['nothing_proj'\] are the end of no layer's name in this model; use 'language' or 'public'"),
        (["q_proj", "lm_head"], "lm_head is the language model's head"),
        (["q_proj", "embed_tokens"], "embed_tokens is a Embedding; adapters go into linear layers only"),
    ],
)
def test_targets_that_cannot_be_trained_are_named(family, asked, match):
    model = backbones.load(family("qwen2_5_vl"), models=families.MODELS).model
    with pytest.raises(ValueError, match=match):
        lora.targets(model, asked)


def test_targets_of_the_configuration():
    raw = config.load(training.ROOT / "config.yaml").model_dump()
    for asked in ("public", "language", ["q_proj", "self_attn.v_proj"]):
        raw["train"]["lora"]["targets"] = asked
        assert config.parse(raw).train.lora.targets == asked
    for wrong in ("all", [], ["q_proj|v_proj"], [".q_proj"]):
        raw["train"]["lora"]["targets"] = wrong
        with pytest.raises(ValueError, match="targets"):
            config.parse(raw)


# Training


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
def test_images_stay_pixels_where_the_tower_is_trained(name, folder, family):
    backbone = backbones.load(family(name), models=families.MODELS, train=True)
    backbone.add_lora(SimpleNamespace(rank=4, alpha=8, dropout=0.0, dora=True, init="gaussian", targets="public"), 0)
    items = Items.open(folder, Decoding(10**6))
    shown = Shown(backbone, items, limit=10**9)
    shown.ahead(["q01"])
    (encoded,) = shown.encoded(["q01"])
    (picture,) = encoded.pictures
    trained = name in TRAINED
    assert (picture.features is None) == trained and (picture.pixels is not None) == trained
    assert shown.used > (picture.pixels if trained else picture.features).nbytes, "what is kept was not counted"


def soft_loss(cosines: torch.Tensor, scores: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Equation 4 at tau 0.02 in float64: (B, 1 + k) twice -> (B,)."""
    p, q = torch.softmax(cosines.double() / 0.02, -1), torch.softmax(scores.double() / 0.02, -1)
    return 0.5 * ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1))


def plain_step(model: nn.Module, backbone, rows, items, lr: float) -> tuple[float, dict, dict]:
    """Equation 4 over some rows of the mined table, by peft and transformers alone: loss, gradients and weights after an AdamW step."""

    def embed(id: str) -> torch.Tensor:
        batch = backbone.collate([backbone.item_prompt(items[id])])  # pixels and tokens
        if hasattr(backbone, "vision_start"):
            batch["position_ids"] = plain_positions(batch["attention_mask"])
        return nn.functional.normalize(model.model(**batch).last_hidden_state[0, -1], dim=-1).double()

    loss = 0.0
    for mined in rows:
        query = embed(mined["query"])
        candidates = torch.stack([embed(id) for id in (mined["positive"], *mined["negatives"][:8])])
        scores = torch.tensor([mined["sigma"], *mined["scores"][:8]], dtype=torch.float64)
        loss = loss + soft_loss((candidates @ query)[None], scores[None]).sum() / len(rows)
    loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = {name: weight.grad.clone() for name, weight in trained.items()}
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0).step()
    return loss.item(), gradients, {name: weight.detach().clone() for name, weight in trained.items()}


@pytest.mark.parametrize("layers", [dense, lean], ids=["dense", "lean"])
@pytest.mark.parametrize("name", TRAINED)
def test_training_with_a_tower_is_a_plain_step_of_peft_and_transformers(name, layers, folder, family, monkeypatch):
    """Gradients of every adapter and the weights after a step, in float64, where only a wrong formula can differ: AdamW's first step
    makes a whole step of the smallest gradient, so one that is rounding alone would move its weight anywhere.  The loss, which has tests
    of its own, is float64 on both sides."""
    model, accumulate = accumulator("unime_v2", folder, family(name))
    backbone, items, batch = accumulate.backbone, Items.open(folder, Decoding(10**6)), batch_at(0, 12, 4, 1)
    model.double()
    monkeypatch.setattr(backbone, "embed", lambda batch: nn.functional.normalize(backbone._last(batch), dim=-1))  # its own makes float32
    monkeypatch.setattr(losses, "soft_label_loss", soft_loss)
    table = training.table_of(folder, "unime_v2")
    rows = [table.row(row, named=True) for row in batch.rows]
    plain = backbones.load(family(name), models=families.MODELS)  # for its prompts and its processor
    loss, gradients, weights = plain_step(copy.deepcopy(model).get_base_model(), plain, rows, items, 0.002)
    assert layers.use(model) == len(adapted(model))
    found_loss, _ = training.gradient_of(model, accumulate, batch)
    trained = {key.removeprefix("base_model.model."): weight for key, weight in model.named_parameters() if weight.requires_grad}
    assert found_loss == pytest.approx(loss, rel=1e-5) and set(trained) == set(gradients)
    tower = [key for key in gradients if "language_model" not in key]
    assert tower and all(gradients[key].norm() > 1e-6 for key in gradients), "an adapter has no gradient"
    worst = max(apart(weight.grad, gradients[key]) / gradients[key].abs().max().item() for key, weight in trained.items())
    processes.Replicated(trained, accumulate.accelerator).step(0.002)
    moved = max(apart(weight, weights[key]) for key, weight in trained.items())
    print(f"{name}: gradients against peft's: {worst:.1e} of each layer's largest; weights after a step: {moved:.1e}")
    assert worst < 1e-5 and moved < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_does_not_depend_on_micro_batches_and_passes(kind, folder, family):
    """In micro-batches (GradCache for `in_batch`), in passes of few tokens, with layers run twice: all equal the whole batch."""
    batch, found, runs = batch_at(0, 12, 4, 1), {}, {}
    ways = {"whole": {"micro": 8}, "micro": {"micro": 1}, "small passes": {"micro": 8}, "run twice": {"micro": 8}}
    for way, changes in ways.items():
        model, accumulate = accumulator(kind, folder, family("llava_onevision"), **changes)
        counted = []
        layer = accumulate.backbone.core.vision_tower.encoder.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        twice = way == "run twice"
        passes = SimpleNamespace(batch_tokens=4096, gradient_checkpointing=twice)
        accumulate.budget, _ = prepared(accumulate.backbone, passes, "ddp", accumulate.accelerator)
        if way == "small passes":
            accumulate.budget = 1
        found[way] = training.gradient_of(model, accumulate, batch)
        runs[way] = len(counted)
    loss, gradient = found.pop("whole")
    assert runs["run twice"] > runs["whole"] and runs["small passes"] > runs["whole"] < runs["micro"], runs
    for way, (other_loss, other) in found.items():
        assert other_loss == pytest.approx(loss, rel=1e-5), way
        assert (other - gradient).abs().max() < 1e-5 * gradient.abs().max(), way


@pytest.mark.parametrize("kind", KINDS)
def test_idle_passes_change_no_gradient(kind, folder, family):
    """A process with fewer passes runs one of its own again for nothing (`fsdp`); dropout in the other passes must not notice."""
    changes = {"lora__targets": "public", "lora__dropout": 0.1}
    batch, found, counts = batch_at(0, 12, 4, 1), {}, {}
    for idle in (0, 3):
        model, accumulate = training.accumulator(kind, folder, family("llava_onevision"), batch=4, micro=2, **changes)
        lean.use(model)  # its dropout draws from torch's global generator
        counted = counts.setdefault(idle, [])
        accumulate.backbone.core.language_model.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        accumulate.level = lambda count, idle=idle: count + idle
        found[idle] = training.gradient_of(model, accumulate, batch)
    assert len(counts[3]) > len(counts[0]), "no idle pass was run"
    assert found[3][0] == pytest.approx(found[0][0], rel=1e-6)
    assert (found[3][1] - found[0][1]).abs().max() < 1e-6 * found[0][1].abs().max()


def test_training_changes_the_tower_and_a_resumed_run_leaves_the_same_files(folder, family, tmp_path, monkeypatch):
    """With dropout, in bytes: what a step draws in the tower depends on seed and step too."""
    asked = {"steps": 3, "batch": 2, "micro": 2, "checkpoint": 1, "lora__targets": "public"}
    nano = family("llava_onevision")
    training.train("unime_v2", folder, nano, tmp_path / "whole", tmp_path / "a", **asked)
    save = checkpoint.save

    def stopped(path, parameters, state, step, log):
        save(path, parameters, state, step, log)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            training.train("unime_v2", folder, nano, tmp_path / "resumed", tmp_path / "b", **asked)
    training.train("unime_v2", folder, nano, tmp_path / "resumed", tmp_path / "b", **asked)
    assert training.files(tmp_path / "resumed") == training.files(tmp_path / "whole")
    models, items = training.view_of("unime_v2", folder, nano).models, Items.open(folder, Decoding(10**6))
    before, after = (backbones.load(nano, adapter=adapter, models=models) for adapter in (None, tmp_path / "whole"))
    image = items["q01"].image
    assert apart(before.see(image).features, after.see(image).features) > 1e-4, "the tower was not trained"


# Stored, merged, exported


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_a_merged_export_of_a_trained_tower_is_the_trained_model(name, folder, family, tmp_path):
    model, accumulate = accumulator("unime_v2", folder, family(name))
    backbone, items = accumulate.backbone, Items.open(folder, Decoding(10**6))
    model.eval()
    prompts = [backbone.item_prompt(items[id]) for id in ("q00", "q01", "c02")]
    wanted = backbone.embed(backbone.collate(prompts))
    image = items["q01"].image
    features = backbone._features(backbone.collate([prompts[1]]))
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    export(family(name), tmp_path / "adapter", tmp_path / "merged", models=families.MODELS, card="")
    base = backbones.load(family(name), models=families.MODELS)
    assert apart(base.see(image).features, features) > 1e-3, "the tower's adapters do nothing"
    merged = backbones.load(tmp_path / "merged", models=families.MODELS)
    opened = backbones.load(family(name), adapter=tmp_path / "adapter", models=families.MODELS)
    again = backbones.load(family(name), adapter=tmp_path / "adapter", models=families.MODELS, train=True)
    again.model.eval()
    assert again.trains_images and adapted(again.model) == adapted(model)
    for found in (merged, opened, again):
        assert apart(found.embed(found.collate(prompts)), wanted) < 1e-5
    for found in (merged, opened):
        assert not found.trains_images and apart(found.see(image).features, features) < 1e-4
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    for prompt, vector in zip(prompts, wanted, strict=True):
        batch = backbone.collate([prompt])
        if name.startswith("qwen"):
            batch["position_ids"] = plain_positions(batch["attention_mask"])
        last = plain.model(**batch).last_hidden_state[0, -1]
        assert apart(nn.functional.normalize(last, dim=-1), vector) < 1e-5
