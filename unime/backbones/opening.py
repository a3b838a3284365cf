"""A folder's tokenizer and image processor, opened by transformers and looked over: its own defaults never stand in for a damaged file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from unime.backbones.files import REMEDY, ModelError, chat_template, image_settings, is_count, is_number, is_there, reading


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer with its chat template.  Raises ModelError for damaged files."""
    transformers_logging.disable_progress_bar()
    file = "tokenizer.json" if is_there(folder, "tokenizer.json") else "vocab.json and merges.txt"
    with reading(folder, f"{file} or tokenizer_config.json", "is damaged, as no tokenizer can be made of it"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.encode("a", add_special_tokens=False)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: tokenizer_config.json has eos_token {tokenizer.eos_token!r}, which is no token; {REMEDY}")
    tokenizer.chat_template = chat_template(folder)
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]
    with reading(folder, "its chat template", "is damaged"):
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer


def processor_of(kind: type[Any], folder: Path, needed: Sequence[str]) -> Any:
    """The folder's image processor of class `kind`; `needed` are the settings that its file must have.  Raises ModelError.

    Means and standard deviations are those of colours from 0 to 1, so they lie there too.
    """
    file, settings = image_settings(folder)
    absent = [key for key in needed if settings.get(key) is None]
    if absent:
        raise ModelError(f"{folder}: {file} lacks {', '.join(absent)}, and another model's would be taken instead; {REMEDY}")
    with reading(folder, file, "is damaged"):
        processor = kind.from_pretrained(folder, local_files_only=True)
    for name, above in (("image_mean", False), ("image_std", True)):
        values = getattr(processor, name)
        values = list(values) if isinstance(values, list | tuple) else [values] * 3
        right = [is_number(value) and (value > 0 or not above) and 0 <= value <= 1 for value in values]
        if len(values) != 3 or not all(right):
            bounds = "above 0 and at most 1" if above else "from 0 to 1"
            raise ModelError(f"{folder}: {file} has {name} {values}; three numbers {bounds} are needed; {REMEDY}")
    factor = processor.rescale_factor
    if not is_number(factor) or not 0 < factor <= 1:
        raise ModelError(f"{folder}: {file} has rescale_factor {factor!r}; a number above 0 and at most 1 is needed; {REMEDY}")
    return processor


def check_counts(folder: Path, settings: dict[str, object]) -> None:
    """Raise ModelError for image settings, by name, that are not whole numbers of at least 1."""
    for name, value in settings.items():
        if not is_count(value):
            raise ModelError(
                f"{folder}: {image_settings(folder)[0]} has {name} {value!r}; a whole number of at least 1 is needed; {REMEDY}"
            )


def check_bounds(folder: Path, low: tuple[str, int], high: tuple[str, int]) -> None:
    """Raise ModelError where the first of two image settings, each (name, value), is above the second."""
    if low[1] > high[1]:
        file = image_settings(folder)[0]
        raise ModelError(f"{folder}: {file} has {low[0]} {low[1]}, which is above {high[0]} {high[1]}; {REMEDY}")
