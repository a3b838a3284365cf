"""Small model folders with random weights, one a family, in the form of the published ones: transformers' own classes, a tokenizer, the
family's chat template and image settings.  Tiles, windows and lists of resolutions are as in the originals, at a quarter of their size or
less, so that every branch is taken: pictures of one tile and of many, and ones that are shrunk again."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from unime import prompts

NAMES = ("qwen2_vl", "qwen2_5_vl", "llava_onevision", "internvl")
MODELS = SimpleNamespace(dtype="float32", device="cpu", attention="sdpa", max_length=4096)
WORDS = ["red", "green", "blue", "small", "big", "ring", "cross", "star", "at the top", "What color is it?", "Represent the given image."]

PAD, END = "<|endoftext|>", "<|im_end|>"
QWEN = [PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
MARKS = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "llava_onevision": [PAD, "<|im_start|>", END, "<image>", "<video>"],
    "internvl": [*QWEN, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
}
IMAGE = {"qwen2_vl": "<|image_pad|>", "qwen2_5_vl": "<|image_pad|>", "llava_onevision": "<image>", "internvl": "<IMG_CONTEXT>"}

_QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# All images, then all texts, each after a new line; and a block that only transformers' own template engine knows.
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ '\n' + part['text'] }}{% endgeneration %}{% else %}{{ '\n' + part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"qwen2_vl": _QWEN_TEMPLATE, "qwen2_5_vl": _QWEN_TEMPLATE, "llava_onevision": _LLAVA_TEMPLATE, "internvl": _INTERNVL_TEMPLATE}

_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_ALL = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3, "rescale_factor": 1 / 255}
_QWEN_IMAGES = _ALL | _CLIP | {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 784, "max_pixels": 36 * 784}
PINPOINTS = [[56 * high, 56 * wide] for high in range(1, 5) for wide in range(1, 5)]
IMAGES = {
    "qwen2_vl": _QWEN_IMAGES | {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"},
    "qwen2_5_vl": _QWEN_IMAGES | {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"},
    "llava_onevision": _ALL
    | _HALF
    | {"image_processor_type": "LlavaOnevisionImageProcessor", "processor_class": "LlavaOnevisionProcessor"}
    | {"do_pad": True, "image_grid_pinpoints": PINPOINTS, "size": {"height": 56, "width": 56}},
    "internvl": _ALL
    | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "default_to_square": True, "do_center_crop": None}
    | {"image_processor_type": "GotOcr2ImageProcessorFast", "processor_class": "InternVLProcessor"}
    | {"crop_to_patches": False, "min_patches": 1, "max_patches": 12, "size": {"height": 56, "width": 56}},
}


@functools.cache
def _learned() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary in which Yes and No are one token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("Yes", "isolated"), pre_tokenizers.Split("No", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), special_tokens=[], show_progress=False
    )
    text = prompts.JUDGE + prompts.LISTWISE + " ".join(WORDS) + "Yes No user assistant Ans: (1) Candidates:"
    raw.train_from_iterator([text] * 5 + ["Yes", "No"] * 50, trainer)
    found = json.loads(raw.to_str())["model"]
    return found["vocab"], [tuple(merge) for merge in found["merges"]]


def tokenizer(name: str) -> Qwen2Tokenizer:
    """Qwen2's tokenizer with the family's marks; InternVL's also has them by name, as its processor asks for."""
    vocabulary, merges = _learned()
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    more = {"extra_special_tokens": named} if name == "internvl" else {"additional_special_tokens": MARKS[name]}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges, unk_token=PAD, pad_token=PAD, eos_token=END, **more)
    made.add_special_tokens({"additional_special_tokens": MARKS[name]}, replace_extra_special_tokens=False)
    return made


def _text(words: Qwen2Tokenizer, **more: object) -> dict[str, object]:
    ids = {"bos_token_id": words.convert_tokens_to_ids(PAD), "eos_token_id": words.convert_tokens_to_ids(END)}
    return {
        "vocab_size": -(-len(words) // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.15,
        "use_sliding_window": False,
        "sliding_window": 32,  # published folders have one, and leave it off
        "max_window_layers": 2,
        **ids,
        **more,
    }


def _qwen(words: Qwen2Tokenizer, kind: type, tied: bool, vision: dict[str, object]) -> object:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    return kind(
        text_config=_text(words, rope_parameters=rope, tie_word_embeddings=tied),
        vision_config=vision | {"depth": 3, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        tie_word_embeddings=tied,
    )


def _model(name: str, words: Qwen2Tokenizer) -> torch.nn.Module:
    if name == "qwen2_vl":  # as the model of 2 billion parameters: word embeddings tied
        config = _qwen(words, Qwen2VLConfig, True, {"embed_dim": 32, "hidden_size": 128, "mlp_ratio": 2})
        return Qwen2VLForConditionalGeneration(config)
    if name == "qwen2_5_vl":
        vision = {"hidden_size": 32, "out_hidden_size": 128, "intermediate_size": 48, "window_size": 56, "fullatt_block_indexes": [1]}
        return Qwen2_5_VLForConditionalGeneration(_qwen(words, Qwen2_5_VLConfig, False, vision))
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
    if name == "llava_onevision":
        config = LlavaOnevisionConfig(
            text_config=_text(words, model_type="qwen2"),
            vision_config=vision | {"model_type": "siglip_vision_model", "image_size": 56, "vision_use_head": False},
            image_token_index=words.convert_tokens_to_ids("<image>"),
            video_token_index=words.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=PINPOINTS,
        )
        return LlavaOnevisionForConditionalGeneration(config)
    config = InternVLConfig(
        text_config=_text(words, model_type="qwen2"),
        vision_config=vision | {"image_size": [56, 56], "patch_size": [14, 14], "use_absolute_position_embeddings": True},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config)


def build(name: str, folder: Path) -> Path:
    """Write the folder (it is created): every weight is random, norms and those that begin at zero too."""
    words = tokenizer(name)
    words.chat_template = TEMPLATES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(NAMES.index(name))
        model = _model(name, words).float()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1 or not weight.any():
                    weight.add_(torch.rand_like(weight) - 0.5)
    ids = {"bos_token_id": words.convert_tokens_to_ids(PAD), "pad_token_id": words.convert_tokens_to_ids(PAD)}
    model.generation_config = GenerationConfig(eos_token_id=[words.convert_tokens_to_ids(END), ids["pad_token_id"]], **ids)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()  # published folders have the older form
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[name]}))
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES[name], indent=2))
    vocabulary, merges = _learned()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return folder


def older(name: str, key: str) -> str:
    """A weight's name (as transformers has it now) in what was made before transformers 4.52."""
    if name.startswith("qwen"):
        return key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    for now, then in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.", "")):
        if key.startswith(now):
            return then + key.removeprefix(now)
    return key


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def plain_positions(mask: torch.Tensor) -> torch.Tensor:
    """(3, B, L): every token of a sequence one further than the one before it, 0 where there is padding; `mask` (B, L)."""
    positions = torch.zeros(3, *mask.shape, dtype=torch.long)
    for row, present in enumerate(mask.bool()):
        positions[:, row, present] = torch.arange(int(present.sum()))
    return positions


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    assert one.shape == other.shape and one.numel()
    return (one - other).abs().max().item()
