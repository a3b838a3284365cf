"""Is a model folder whole?  Every missing, damaged or misfitting file is named with folder, file, reason and remedy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

REMEDY = "copy the whole model folder again, or run the stage that writes it"

OPTIONAL = ("generation_config.json", "processor_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files of a model folder that are read where they are there."""


class ModelError(ValueError):
    """A model folder cannot be used; the message names folder, file, reason and remedy."""


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.  Raises ModelError where the folder or the file is missing, cannot be read or is not JSON."""
    _folder(folder, "model folder", "set models.* in config.yaml to a folder with config.json and its weights")
    return read_json(folder, "config.json")


def check_model(folder: Path, weights: bool = True) -> None:
    """Raise ModelError unless the folder holds config, whole weights, tokenizer, image processor and chat template.

    Without `weights` their files are not looked at.
    """
    read_config(folder)
    read_json(folder, "tokenizer_config.json")
    for name in OPTIONAL:
        if is_there(folder, name):
            read_json(folder, name)
    image_settings(folder)
    _check_tokenizer(folder)
    _check_generation(folder)
    if weights:
        _check_weights(folder)
    chat_template(folder)


def check_adapter(folder: Path) -> None:
    """Raise ModelError unless the folder holds a whole peft adapter."""
    _folder(folder, "adapter folder", REMEDY)
    settings = read_json(folder, "adapter_config.json")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder}: adapter_config.json has peft_type {kind}; only LoRA and DoRA adapters are known; {REMEDY}")
    if not is_count(rank):
        raise ModelError(f"{folder}: adapter_config.json has r {rank!r}; a whole number of at least 1 is needed; {REMEDY}")
    if not is_number(alpha) or alpha <= 0:
        raise ModelError(f"{folder}: adapter_config.json has lora_alpha {alpha!r}; a number above 0 is needed; {REMEDY}")
    if not settings.get("target_modules"):
        raise ModelError(f"{folder}: adapter_config.json has no target_modules, so no layer of the adapter has a place; {REMEDY}")
    _no_pickle(folder, "adapter_model.safetensors", "adapter_model.bin")
    check_tensors(folder, "adapter_model.safetensors")


def is_merged(folder: Path) -> bool:
    """Whether a folder given as an adapter holds a whole model instead.  One that has both is an adapter."""
    return is_there(folder, "config.json") and not is_there(folder, "adapter_config.json")


def check_tensors(folder: Path, name: str) -> list[str]:
    """The tensor names in one safetensors file, at least one.  Raises ModelError where it is missing, truncated or not safetensors."""
    _file(folder, name)
    try:
        with safe_open(folder / name, framework="np") as tensors:
            found = sorted(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder}: {name} is damaged ({error}); {REMEDY}") from error
    if not found:
        raise ModelError(f"{folder}: {name} holds no tensor; {REMEDY}")
    return found


def check_fit(folder: Path, tokenizer: Any, core: Any, word: str, token: int) -> None:
    """Raise ModelError for a folder whose parts do not fit each other, or a language model that sees a window of its past only.

    `core` is the model without its head, `word` the image token's text and `token` its id in the tokenizer.
    """
    messages = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in (("user", "a"), ("assistant", "b"))]
    with reading(folder, "chat template", "is damaged"):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    if f"b{tokenizer.eos_token}" not in text:
        end = f"eos_token {tokenizer.eos_token!r} of tokenizer_config.json"
        raise ModelError(f"{folder}: its chat template does not end the assistant's turn with {end}; {REMEDY}")
    if (named := core.config.image_token_id) != token:
        raise ModelError(f"{folder}: config.json has image token {named}, its tokenizer has {word} at {token}; {REMEDY}")
    language = core.language_model.config
    if kinds := sorted(set(getattr(language, "layer_types", None) or []) - {"full_attention"}):
        raise ModelError(
            f"{folder}: {kinds[0]} layers (a window of {getattr(language, 'sliding_window', None)} tokens) cannot share prefixes; "
            "use a model with full attention"
        )
    rows = core.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, config.json has room for {rows} (vocab_size); {REMEDY}"
        )


def chat_template(folder: Path) -> str:
    """The folder's chat template, from whichever of the three places that transformers has used.  Raises ModelError where there is none."""
    if is_there(folder, "chat_template.jinja"):
        return read_text(folder, "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder, name).get("chat_template") if is_there(folder, name) else None
        if isinstance(template, list):
            template = _default_template(template) or template
        if template and not isinstance(template, str):
            raise ModelError(f"{folder}: chat_template in {name} is a {type(template).__name__}, not a text; {REMEDY}")
        if template:
            return template
    raise _missing(folder, "chat_template.jinja (or a chat_template in chat_template.json or tokenizer_config.json)")


def _default_template(templates: list[object]) -> str | None:
    """The one that transformers takes of several templates, which it has written as a list of names and texts."""
    for one in templates:
        if isinstance(one, dict) and one.get("name") == "default" and isinstance(one.get("template"), str):
            return one["template"]
    return None


def image_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The name of the file with the folder's image settings, and what it says.  Raises ModelError where there is none."""
    name = "preprocessor_config.json"
    if is_there(folder, name) or not is_there(folder, "processor_config.json"):
        return name, read_json(folder, name)
    name = "processor_config.json"  # where newer transformers put it
    settings = read_json(folder, name).get("image_processor")
    if settings is None:
        raise _missing(folder, "preprocessor_config.json (or an image_processor in processor_config.json)")
    if not isinstance(settings, dict):
        raise ModelError(f"{folder}: image_processor in {name} is a {type(settings).__name__}, not a mapping; {REMEDY}")
    return name, settings


@contextmanager
def reading(folder: Path, name: str, problem: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into a ModelError: `<folder>: <name> <problem> (<what it said>)`.

    Libraries raise errors of many kinds for damaged files; a lack of memory is none of them.
    """
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"{folder}: {name} {problem} ({type(error).__name__}: {said}); {REMEDY}") from error


def is_there(folder: Path, name: str) -> bool:
    """Whether the folder has an entry of this name, be it a link to nowhere."""
    return (folder / name).exists() or (folder / name).is_symlink()


def is_count(value: object) -> bool:
    """Whether a value from a file is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_text(folder: Path, name: str) -> str:
    """A file's text.  Raises ModelError where it is missing, empty, no file, not UTF-8, or cannot be read."""
    _file(folder, name)
    try:
        text = (folder / name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{folder}: {name} is not text in UTF-8 (byte {error.start}); {REMEDY}") from error
    except OSError as error:
        raise ModelError(f"{folder}: {name} cannot be read ({error.strerror}); check its permissions and its disk, or {REMEDY}") from error
    if not text.strip():
        raise ModelError(f"{folder}: {name} is empty; {REMEDY}")
    return text


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A file's mapping.  Raises ModelError as `read_text` does, and where it is not JSON."""
    text = read_text(folder, name)
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ModelError(f"{folder}: {name} is nested too deeply to be read; {REMEDY}") from error
    except ValueError as error:
        raise ModelError(f"{folder}: {name} is not JSON ({error}); {REMEDY}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{folder}: {name} holds a {type(found).__name__}, not a mapping; {REMEDY}")
    return found


def _folder(folder: Path, what: str, remedy: str) -> None:
    if folder.is_dir():
        return
    if folder.is_symlink():
        raise ModelError(f"{folder}: no such {what}, it is a link to {folder.readlink()}, which is not there; {remedy}")
    if folder.exists():
        raise ModelError(f"{folder}: no such {what}, it is a file; {remedy}")
    raise ModelError(f"{folder}: no such {what}; {remedy}")


def _file(folder: Path, name: str) -> None:
    """Raise ModelError unless the folder has a file of this name; a pipe or a device would be waited for."""
    path = folder / name
    if path.is_file():
        if not os.access(path, os.R_OK):
            raise ModelError(f"{folder}: {name} cannot be read (no permission); chmod a+r {path}")
        return
    if path.is_dir():
        raise ModelError(f"{folder}: {name} is a folder, not a file; {REMEDY}")
    if path.is_symlink() and not path.exists():
        raise ModelError(f"{folder}: {name} is missing: it is a link to {path.readlink()}, which is not there; {REMEDY}")
    if path.exists():
        raise ModelError(f"{folder}: {name} is no regular file; {REMEDY}")
    raise _missing(folder, name)


def _check_tokenizer(folder: Path) -> None:
    if is_there(folder, "tokenizer.json"):
        if not isinstance(read_json(folder, "tokenizer.json").get("model"), dict):
            raise ModelError(f"{folder}: tokenizer.json has no model, so it is not a tokenizer's file; {REMEDY}")
        return
    for name in ("vocab.json", "merges.txt"):
        if not is_there(folder, name):
            raise _missing(folder, f"tokenizer.json (or vocab.json with merges.txt; {name} is not there either)")
    read_json(folder, "vocab.json")
    read_text(folder, "merges.txt")


def _check_generation(folder: Path) -> None:
    """Raise ModelError for a generation_config.json whose token ids are no ids."""
    name = "generation_config.json"
    settings = read_json(folder, name) if is_there(folder, name) else {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = settings.get(key)
        ids = value if isinstance(value, list) else [value]
        wrong = [one for one in ids if one is not None and not (one == 0 or is_count(one))]
        if wrong:
            raise ModelError(f"{folder}: {name} has {key} {value!r}; token ids are whole numbers from 0; {REMEDY}")


def _check_weights(folder: Path) -> None:
    if is_there(folder, "model.safetensors"):
        check_tensors(folder, "model.safetensors")
        return
    index = "model.safetensors.index.json"
    if not is_there(folder, index):
        for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            _no_pickle(folder, "model.safetensors", name)
        raise _missing(folder, "model.safetensors (or model.safetensors.index.json and its shards)")
    places = read_json(folder, index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{folder}: {index} has no weight_map, which says in which file each tensor is; {REMEDY}")
    for tensor, shard in places.items():
        if not isinstance(shard, str) or shard != Path(shard).name or not shard.endswith(".safetensors"):
            raise ModelError(f"{folder}: {index} puts {tensor} into {shard!r}; a *.safetensors file in the folder is needed; {REMEDY}")
    for shard in sorted(set(places.values())):
        there = set(check_tensors(folder, shard))
        absent = sorted(tensor for tensor, place in places.items() if place == shard and tensor not in there)
        if absent:
            raise ModelError(f"{folder}: {shard} lacks {len(absent)} tensors that {index} puts into it, {absent[0]} first; {REMEDY}")


def _no_pickle(folder: Path, wanted: str, pickled: str) -> None:
    if is_there(folder, pickled) and not is_there(folder, wanted):
        raise ModelError(
            f"{folder}: weights in {pickled} are a pickle, which can run any code when it is opened, and are not read; get {wanted}, or "
            "open the folder with peft or transformers where you trust it and call save_pretrained, which writes safetensors"
        )


def _missing(folder: Path, name: str) -> ModelError:
    return ModelError(f"{folder}: {name} is missing; {REMEDY}")
