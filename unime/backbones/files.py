"""Is a model folder whole?  Every missing, damaged or misfitting file is named with folder, file and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

REMEDY = "copy the whole model folder again, or run the stage that writes it"


class ModelError(ValueError):
    """A model folder cannot be used; the message names folder, file, reason and remedy."""


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.  Raises ModelError where the folder or the file is missing or not JSON."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder; set models.* in config.yaml to a folder with config.json and its weights")
    return _json(folder, "config.json")


def check_model(folder: Path) -> None:
    """Raise ModelError unless the folder holds config, whole weights, tokenizer, image processor and chat template."""
    for name in ("config.json", "tokenizer_config.json"):
        _json(folder, name)
    if (folder / "preprocessor_config.json").exists() or not (folder / "processor_config.json").exists():
        _json(folder, "preprocessor_config.json")
    elif "image_processor" not in _json(folder, "processor_config.json"):  # where newer transformers put it
        raise _missing(folder, "preprocessor_config.json (or an image_processor in processor_config.json)")
    if not (folder / "tokenizer.json").exists():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).exists():
                raise _missing(folder, f"tokenizer.json (or vocab.json with merges.txt; {name} is not there either)")
    for name in _weight_files(folder):
        check_tensors(folder, name)
    chat_template(folder)


def check_adapter(folder: Path) -> None:
    """Raise ModelError unless the folder holds a whole peft adapter."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such adapter folder; {REMEDY}")
    _json(folder, "adapter_config.json")
    _no_pickle(folder, "adapter_model.safetensors", "adapter_model.bin")
    check_tensors(folder, "adapter_model.safetensors")


def is_merged(folder: Path) -> bool:
    """Whether a folder given as an adapter holds a whole model instead.  One that has both is an adapter."""
    return (folder / "config.json").exists() and not (folder / "adapter_config.json").exists()


def check_tensors(folder: Path, name: str) -> list[str]:
    """The tensor names in one safetensors file.  Raises ModelError where it is missing, truncated or not safetensors."""
    if not (folder / name).exists():
        raise _missing(folder, name)
    try:
        with safe_open(folder / name, framework="np") as tensors:
            return sorted(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder}: {name} is damaged ({error}); {REMEDY}") from error


def check_fit(folder: Path, tokenizer: Any, core: Any, word: str, token: int) -> None:
    """Raise ModelError for a folder whose parts do not fit each other, or a language model that sees a window of its past only.

    `core` is the model without its head, `word` the image token's text and `token` its id in the tokenizer.
    """
    messages = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in (("user", "a"), ("assistant", "b"))]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    if f"b{tokenizer.eos_token}" not in text:
        raise ModelError(f"{folder}: its chat template does not end the assistant's turn with eos_token {tokenizer.eos_token!r}; {REMEDY}")
    if (named := core.config.image_token_id) != token:
        raise ModelError(f"{folder}: config.json has image token {named}, its tokenizer has {word} at {token}; {REMEDY}")
    language = core.language_model.config
    if kinds := sorted(set(getattr(language, "layer_types", None) or []) - {"full_attention"}):
        raise ModelError(
            f"{folder}: {kinds[0]} layers (a window of {getattr(language, 'sliding_window', None)} tokens) cannot share prefixes; "
            "use a model with full attention"
        )


def chat_template(folder: Path) -> str:
    """The folder's chat template, from whichever of the three places that transformers has used.  Raises ModelError where there is none."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists() and (template := _json(folder, name).get("chat_template")):
            return template
    raise _missing(folder, "chat_template.jinja (or a chat_template in chat_template.json or tokenizer_config.json)")


def _weight_files(folder: Path) -> list[str]:
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    if (folder / "model.safetensors.index.json").exists():
        return sorted(set(_json(folder, "model.safetensors.index.json").get("weight_map", {}).values()))
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        _no_pickle(folder, "model.safetensors", name)
    raise _missing(folder, "model.safetensors (or model.safetensors.index.json and its shards)")


def _no_pickle(folder: Path, wanted: str, pickled: str) -> None:
    if (folder / pickled).exists() and not (folder / wanted).exists():
        raise ModelError(
            f"{folder}: weights in {pickled} are a pickle, which can run any code when it is opened, and are not read; get {wanted}, or "
            "open the folder with peft or transformers where you trust it and call save_pretrained, which writes safetensors"
        )


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).exists():
        raise _missing(folder, name)
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder}: {name} is not JSON ({error}); {REMEDY}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{folder}: {name} holds a {type(found).__name__}, not a mapping; {REMEDY}")
    return found


def _missing(folder: Path, name: str) -> ModelError:
    return ModelError(f"{folder}: {name} is missing; {REMEDY}")
