"""The nano MLLM's folder: the real Qwen2-VL classes at a small size, a tokenizer trained on the suite's text, all of Qwen2-VL's files.

Anything that opens a Qwen2-VL folder opens this one: config.json, model.safetensors, tokenizer.json, vocab.json, merges.txt,
chat_template.jinja, preprocessor_config.json, generation_config.json.  No token id is written in code: they follow from the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex as TokenRegex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from unime import prompts
from unime.nano import kinds, scenes

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, START, END, VISION_START, VISION_END, "<|vision_pad|>", IMAGE, VIDEO)
PATCH, MERGE = 14, 2
INIT = 0.06
"""Standard deviation of the first weights; Qwen2-VL's 0.02 suits a width of thousands.  With 0.02 colour questions were at chance after
750 steps; they were not with 0.06, but lessons on crops came in with the same change, so the two were not told apart."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# The split that Qwen2's tokenizer applies before byte-pair merges; a folder trained with another one would be read differently.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus(rows: int = 300) -> Iterator[str]:
    """Texts as models see them: every kind's items in the judge's and the list's prompt, every answer, every attribute word."""
    rng = np.random.default_rng(0)
    plain = {word for words in (*scenes.ATTRIBUTES.values(), *(kind.labels for kind in kinds.KINDS.values())) for word in words}
    yield from (f" {word}\n:{word}\n" for word in sorted(plain) for _ in range(20))
    for _, kind in sorted(kinds.KINDS.items()):
        for _ in range(rows):
            row = kind.make(rng, "train", (*kind.phrasings, *kind.ood))
            query, candidate = (side.text.replace(prompts.IMAGE_MARK, "") for side in (row.query, row.positive))
            turn = "".join(prompts.judge_turn([query], [candidate]))
            for answer in (prompts.YES, prompts.NO, candidate, *(prompts.list_answer(n) for n in range(1, 11))):
                yield f"user\n{turn}\nassistant\n{answer}"
            yield "".join(prompts.list_turn([query], [[candidate]] * 10))


def train_tokenizer(vocabulary: int = 1500) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's split.  Yes and No are single tokens after the assistant's newline, or this is a ValueError."""
    raw = Tokenizer(models.BPE(byte_fallback=False))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenRegex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    raw.train_from_iterator(corpus(), trainer)
    learned = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    for word in (prompts.YES, prompts.NO):
        if len(ids := tokenizer.encode(word, add_special_tokens=False)) != 1:
            raise ValueError(f"{word!r} became {len(ids)} tokens; it must be one: give the tokenizer a larger vocabulary")
    return tokenizer


def config_for(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLConfig:
    """About 1.4 million parameters: width 128, 6 layers of 4 heads (2 key-value), a vision tower of width 96 and 3 blocks."""
    size = -(-len(tokenizer) // 64) * 64
    return Qwen2VLConfig(
        text_config={
            "vocab_size": size,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            "initializer_range": INIT,
            "bos_token_id": tokenizer.convert_tokens_to_ids(PAD),
            "eos_token_id": tokenizer.convert_tokens_to_ids(END),
            "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "initializer_range": INIT,
        },
        initializer_range=INIT,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_START),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_END),
        tie_word_embeddings=True,
    )


def create(seed: int) -> tuple[Qwen2VLForConditionalGeneration, Qwen2Tokenizer]:
    """A model with random weights (float32, sdpa attention) and its tokenizer; the caller's random state is left alone."""
    tokenizer = train_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config_for(tokenizer)).float()
    return model, tokenizer


def write(folder: str | Path, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the complete folder (it is created)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.convert_tokens_to_ids(PAD),
        eos_token_id=[tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(PAD)],
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        do_sample=False,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(state["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in state["merges"]), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(), indent=2) + "\n", encoding="utf-8")


def preprocessor() -> dict[str, object]:
    """Qwen2-VL's image settings; one merged token is 28 x 28 pixels and an image of one token is allowed (a crop is one)."""
    side = PATCH * MERGE
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "min_pixels": side * side,
        "max_pixels": 16 * side * side,
        "size": {"shortest_edge": side * side, "longest_edge": 16 * side * side},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
    }


def build(folder: str | Path, seed: int) -> Path:
    """Write a folder with random weights; for tests and as the start of pretraining."""
    write(folder, *create(seed))
    return Path(folder)


def patches(picture: np.ndarray) -> np.ndarray:
    """What the processor makes of a picture whose sides are multiples of 28: (H, W, 3) uint8 -> (H/14 * W/14, 1176) float32.

    Pretraining paints hundreds of pictures a step; this skips PIL and is tested to equal transformers' processor.
    """
    height, width = (side // PATCH for side in picture.shape[:2])
    pixels = (picture.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    grid = pixels.reshape(height // MERGE, MERGE, PATCH, width // MERGE, MERGE, PATCH, 3)
    grid = grid.transpose(0, 3, 1, 4, 6, 2, 5)  # (h, w, merge, merge, 3, patch, patch)
    grid = np.repeat(grid[:, :, :, :, :, None], 2, axis=5)  # the frame twice: temporal patch 2
    return grid.reshape(height * width, -1)
