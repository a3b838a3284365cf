"""LoRA and DoRA adapters: which layers they go into, new ones, and ones that were trained here or elsewhere.

`targets` answers to config key train.lora.targets, and peft does the matching, so that `public` picks what the public code picks.

An adapter made with an older transformers names the layers of its time (`model.layers...` for Qwen2-VL's language model, now
`model.language_model.layers...`).  Its tensors are renamed as transformers renames the weights of a model folder of that time; peft
does so for some model types only.  What was refused: loading an adapter of which a single tensor has no place, or a place no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from unime.backbones.files import ModelError, reading
from unime.backbones.weights import check_finite

PUBLIC = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "k_proj", "q_proj", "out_proj", "v_proj")
"""The public code's targets (Embedding/src/arguments.py, as VLM2Vec's), which peft matches with the end of a module's name.  Of Qwen2-VL
that is q, k, v, o and down of the language model, and nothing of the vision tower."""

PREFIX = "base_model.model."
_PART = re.compile(r"\.lora_(A|B|magnitude_vector|embedding_A|embedding_B)(\.|$)")


def targets(model: nn.Module, asked: str | Sequence[str]) -> str | list[str]:
    """What peft is told to adapt in `model`: a pattern of full names, or name endings in alphabetical order.

    `asked` is `language` (all linear layers in the language model's layers), `public` (`PUBLIC`), or name endings.  Raises ValueError
    where they name no layer, one that is not linear, or one outside `model.model` such as the language model's head.
    """
    if asked == "language":
        return _all_linear(model, model.model.language_model)
    endings = sorted(set(PUBLIC if asked == "public" else asked))
    found = matched(model, endings)
    if not found:
        raise ValueError(f"train.lora.targets {endings} are the end of no layer's name in this model; use 'language' or 'public'")
    inner = _name(model, model.model) + "."
    for name, module in found.items():
        if not isinstance(module, nn.Linear):
            raise ValueError(f"train.lora.targets: {name} is a {type(module).__name__}; adapters go into linear layers only")
        if not name.startswith(inner):
            raise ValueError(f"train.lora.targets: {name} is the language model's head, which an embedding does not pass; leave it out")
    return endings


def matched(model: nn.Module, endings: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that peft finds by name endings: those of this name, or with this name behind a dot."""
    ends = tuple("." + ending for ending in endings)
    return {name: module for name, module in model.named_modules() if name in endings or name.endswith(ends)}


def trained_outside(part: nn.Module, whole: nn.Module) -> bool:
    """Whether a parameter of `whole` that is none of `part`'s is trained."""
    inside = set(part.parameters())
    return any(parameter.requires_grad and parameter not in inside for parameter in whole.parameters())


def _all_linear(model: nn.Module, language_model: nn.Module) -> str:
    """A pattern of the full names of all linear layers in the layers of `language_model`, a part of `model`."""
    language = _name(model, language_model)
    found = {name.split(".", 2)[2] for name, module in language_model.named_modules() if isinstance(module, nn.Linear)}
    return rf"{re.escape(language)}\.layers\.\d+\.({'|'.join(re.escape(name) for name in sorted(found))})"


def add(model: nn.Module, lora: Any, seed: int, device: torch.device) -> nn.Module:
    """The model with trainable layers of config section `lora`, drawn from `seed`; torch's random state stays as it was.

    Raises ValueError as `targets` does.
    """
    from peft import LoraConfig, get_peft_model

    chosen = targets(model, lora.targets)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        target_modules=chosen,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, settings)
    # peft keeps a list as a set, whose order differs from process to process, and so would adapter_config.json
    adapted.peft_config["default"].target_modules = chosen
    return adapted


def attach(model: nn.Module, folder: Path, base: Path, train: bool) -> nn.Module:
    """The model with an adapter's weights merged into it, or apart and trainable where `train`.

    The adapter's files are whole (`check_adapter`); `base` is the model's folder, for messages.  Raises ModelError where they do not fit.
    """
    from peft import PeftConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    with reading(folder, "adapter_config.json", "is damaged"):
        settings = PeftConfig.from_pretrained(str(folder))
    stored = load_file(folder / "adapter_model.safetensors")
    check_finite(folder, stored.items())
    tensors = renamed(model, stored)
    if set(tensors) != set(stored) and not _plain(settings.target_modules):  # it names layers as they were called then
        settings.target_modules = sorted({_split(key)[0] for key in tensors})
    if set(tensors) != set(stored) and (patterns := [name for name in ("alpha_pattern", "rank_pattern") if getattr(settings, name)]):
        raise ModelError(f"{folder}: adapter_config.json has {patterns[0]} for layers as an older transformers named them; rename its keys")
    settings.inference_mode, settings.base_model_name_or_path = not train, model.name_or_path
    with reading(folder, "the adapter", f"does not fit {base}, or adapter_config.json is damaged"):
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            adapted = get_peft_model(model, settings)
        needed, found = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)), set(tensors)
        if needed != found:
            raise ModelError(
                f"{folder}: adapter_model.safetensors does not fit {base}: {len(needed - found)} tensors missing, "
                f"{len(found - needed)} unknown, {sorted(needed ^ found)[0]} first; use the model that it was trained on"
            )
        set_peft_model_state_dict(adapted, tensors)
    if not train:
        return adapted.merge_and_unload().requires_grad_(False).eval()
    inner = _name(model, model.model) + "."
    outside = [key for key in sorted(tensors) if not _split(key)[0].startswith(inner)]
    if outside:
        raise ModelError(
            f"{folder}: {outside[0]} is of the language model's head, which is not trained here; export the adapter merged and train on "
            "the export"
        )
    return adapted


def renamed(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors under the names that this transformers gives its layers; names that are current stay as they are."""
    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    found = {}
    for key, tensor in tensors.items():
        module, part = _split(key)
        if part and not _is_module(model, module):
            now = rename_source_key(module + ".weight", renamings, [])[0].removesuffix(".weight")
            key = PREFIX + now + part if _is_module(model, now) else key
        found[key] = tensor
    return found


def _split(key: str) -> tuple[str, str]:
    """A tensor's name as (layer, part); part is empty where it is none of LoRA's."""
    name = key.removeprefix(PREFIX)
    match = _PART.search(name)
    return (name[: match.start()], name[match.start() :]) if match else (name, "")


def _name(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


def _is_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _plain(names: Any) -> bool:
    """Whether an adapter names its layers by their own names alone (`q_proj`), which are the same in every layout."""
    return not isinstance(names, str) and not any("." in name for name in names or ())
