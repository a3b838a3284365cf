"""What every family of MLLMs gives to the rooms: prompts, padded batches, embeddings, answer logits, answer likelihoods.

The model is transformers' own class, untouched.  A family (one small subclass) says which classes to use, how an image becomes
tokens and which positions tokens have; all else is here.  Shapes: B sequences, L padded tokens, D hidden size.

What was refused: AutoProcessor (needs torchvision for Qwen2-VL; the PIL processors give the same pixels everywhere), the model's own
`labels` argument (it computes logits for the whole vocabulary at every position), `hidden_states[-1]` (in newer classes it is taken
before the final norm).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from unime import prompts
from unime.backbones.files import REMEDY, ModelError, chat_template, check_adapter, check_model, check_tensors

IGNORED = -100


class Picture(NamedTuple):
    """One image as the model takes it: `grid` (1, 3) int64, and `pixels` (P, C) float32 patches or, where the vision tower has seen
    it already, `features` (V, D)."""

    grid: Tensor
    pixels: Tensor | None = None
    features: Tensor | None = None


class Prompt(NamedTuple):
    """`text` holds one image placeholder per image; an image is a PIL image or a `Picture`."""

    text: str
    images: tuple[Image.Image | Picture, ...] = ()


class Encoded(NamedTuple):
    """One prompt as arrays: `ids` (L,) int64 with image placeholders repeated per visual token, and its pictures in order."""

    ids: np.ndarray
    pictures: tuple[Picture, ...] = ()


class Backbone:
    """One loaded model folder.  Subclasses set the three names below and write `hidden`, `see` and `_image_tokens`."""

    MODEL: type[nn.Module]
    IMAGE_PROCESSOR: type[Any]
    IMAGE_TOKEN: str

    def __init__(self, folder: Path, model: nn.Module, tokenizer: Any, processor: Any, models: Any) -> None:
        self.folder, self.model, self.tokenizer, self.processor, self.models = folder, model, tokenizer, processor, models
        self.core: nn.Module = model.model  # without the language model head; LoRA layers are put inside, so it stays valid
        self.head: nn.Linear = model.get_output_embeddings()
        self.image_token = self.token(self.IMAGE_TOKEN)
        self.end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end
        self._check_turn_end()

    @classmethod
    def open(cls, folder: Path, *, adapter: Path | None, models: Any, train: bool) -> Backbone:
        """Load weights (dtype and device of the config), tokenizer and image processor; see `unime.backbones.load`."""
        check_model(folder)
        transformers_logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.chat_template = chat_template(folder)
        device = _device(models.device)
        try:
            model, report = cls.MODEL.from_pretrained(
                folder, dtype=getattr(torch, models.dtype), use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except RuntimeError as error:
            raise ModelError(f"{folder}: the weights do not fit config.json ({error}); {REMEDY}") from error
        if absent := sorted(report["missing_keys"]):
            raise ModelError(f"{folder}: the weights lack {len(absent)} tensors, {absent[0]} first; {REMEDY}")
        model.requires_grad_(False).to(device).eval()
        backbone = cls(folder, model, tokenizer, cls.IMAGE_PROCESSOR.from_pretrained(folder, local_files_only=True), models)
        if adapter is not None:
            backbone._add_adapter(Path(adapter), train)
        return backbone

    # Prompts

    def item_prompt(self, content: Any) -> Prompt:
        """The embedder's input for one item (`text`, `image`): raw text, the image's placeholder where the data has its marker."""
        pieces = prompts.parts(content.text, content.image)
        return self._prompt([self.IMAGE_TOKEN if not isinstance(p, str) else p for p in pieces], pieces)

    def chat_prompt(self, turn: Sequence[str | Image.Image | Picture]) -> Prompt:
        """One user turn through the folder's chat template, ending where the assistant's turn begins."""
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn]
        messages = [{"role": "user", "content": content}]
        return self._prompt([self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)], turn)

    def _prompt(self, texts: list[str], pieces: Sequence[Any]) -> Prompt:
        text, images = "".join(texts), tuple(p for p in pieces if not isinstance(p, str))
        if text.count(self.IMAGE_TOKEN) != len(images):
            raise ValueError(
                f"{text.count(self.IMAGE_TOKEN)} image placeholders for {len(images)} images; take {self.IMAGE_TOKEN} out of the "
                f"item's text: {text[:80]!r}"
            )
        return Prompt(text, images)

    def token(self, word: str) -> int:
        """The id of a word that is one token.  Raises ValueError naming the word where it is none or several."""
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens in {self.folder}, one is needed; use a model whose tokenizer has it as one")
        return ids[0]

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt after its placeholders are repeated; no pixel is computed."""
        ids = self.tokenizer.encode(prompt.text, add_special_tokens=False)
        return len(ids) + sum(self._image_tokens(image) - 1 for image in prompt.images)

    # Batches

    def encode(self, prompt: Prompt, ids: np.ndarray | None = None) -> Encoded:
        """One prompt as arrays; `ids` are its text's tokens (int64, a placeholder per image) where they are known already.

        Raises ValueError with its length where it is over models.max_length.
        """
        if ids is None:
            ids = np.asarray(self.tokenizer.encode(prompt.text, add_special_tokens=False), dtype=np.int64)
        pictures = tuple(image if isinstance(image, Picture) else self._picture(image) for image in prompt.images)
        if pictures:
            counts = np.ones(len(ids), dtype=np.int64)
            counts[ids == self.image_token] = [self._image_tokens(picture) for picture in pictures]
            ids = np.repeat(ids, counts)
        if len(ids) > self.models.max_length:
            raise ValueError(
                f"a prompt of {len(ids)} tokens is over models.max_length ({self.models.max_length}); raise it, or shrink images with "
                f"models.image_size: {prompt.text[:80]!r}"
            )
        return Encoded(ids, pictures)

    def collate(self, items: Sequence[Prompt | Encoded], answers: Sequence[str] | None = None, side: str = "left") -> dict[str, Tensor]:
        """A padded batch on the model's device.

        `input_ids`, `attention_mask` (B, L) int64; with images `mm_token_type_ids` (B, L), `pixel_values` (P, C) and
        `image_grid_thw` (I, 3), or `image_features` (V, D) in place of pixels where all pictures have theirs; with answers `labels`
        (B, L): the answer and the turn's end token, -100 elsewhere.
        """
        encoded = [item if isinstance(item, Encoded) else self.encode(item) for item in items]
        tails = [self._answer(answer) for answer in answers] if answers is not None else [[]] * len(encoded)
        width = max(len(e.ids) + len(tail) for e, tail in zip(encoded, tails, strict=True))
        ids = np.full((len(encoded), width), self.pad, dtype=np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for row, (e, tail) in enumerate(zip(encoded, tails, strict=True)):
            size = len(e.ids) + len(tail)
            start = width - size if side == "left" else 0
            middle, stop = start + len(e.ids), start + size
            ids[row, start:middle], ids[row, middle:stop] = e.ids, tail
            labels[row, middle:stop] = tail
            mask[row, start:stop] = 1
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if pictures := [picture for e in encoded for picture in e.pictures]:
            batch["mm_token_type_ids"] = torch.from_numpy((ids == self.image_token) & (mask == 1)).to(torch.int32)
            batch["image_grid_thw"] = torch.cat([picture.grid for picture in pictures])
            seen = [picture.features for picture in pictures if picture.features is not None]
            if len(seen) == len(pictures):
                batch["image_features"] = torch.cat(seen)
            elif not seen:
                batch["pixel_values"] = torch.cat([picture.pixels for picture in pictures])
            else:
                raise ValueError(f"some pictures of a batch ({len(seen)} of {len(pictures)}) have been seen; see all of them, or none")
        if answers is not None:
            batch["labels"] = torch.from_numpy(labels)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    # The model

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, D) float32 unit rows: the last token's hidden state after the final norm (paper, section 3.1)."""
        return nn.functional.normalize(self._last(batch).float(), dim=-1)

    def answer_logits(self, batch: dict[str, Tensor], token_ids: Sequence[int]) -> Tensor:
        """(B, len(token_ids)) float32 logits of these tokens at the last position; no other row of the vocabulary is computed."""
        return self._last(batch).float() @ self.head.weight[list(token_ids)].float().T

    def log_likelihood(self, batch: dict[str, Tensor]) -> Tensor:
        """(B,) float32: the sum of the log probabilities of the tokens in `labels`."""
        row, losses = self._token_losses(batch)
        return -torch.zeros(len(batch["labels"]), device=losses.device).index_add(0, row, losses)

    def sequence_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """(B,) float32: cross entropy of each sequence, the mean over its own tokens in `labels`."""
        return -self.log_likelihood(batch) / (batch["labels"] != IGNORED).sum(dim=1)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, L, D) hidden states after the final norm; rows of padding hold nothing of use."""
        raise NotImplementedError

    def see(self, image: Image.Image) -> Picture:
        """The image after the vision tower, on the CPU, to stand in for the image in any number of prompts.

        Each image passes the tower alone, so its features depend on it only: a cache of them changes no result.
        """
        raise NotImplementedError

    def _image_tokens(self, image: Image.Image | Picture) -> int:
        raise NotImplementedError

    def _picture(self, image: Image.Image) -> Picture:
        squashed = image.convert("RGB")
        if self.models.image_size:
            squashed = squashed.resize(self._size(image), Image.Resampling.BICUBIC)
        found = self.processor(images=[squashed], return_tensors="pt")
        return Picture(found["image_grid_thw"], pixels=found["pixel_values"])

    def _size(self, image: Image.Image) -> tuple[int, int]:
        return (self.models.image_size, self.models.image_size) if self.models.image_size else image.size

    def _last(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.hidden(batch)
        mask = batch["attention_mask"]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        return hidden[torch.arange(len(last), device=last.device), last]

    def _token_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        row, column = (labels != IGNORED).nonzero(as_tuple=True)
        logits = self.head(self.hidden(batch)[row, column - 1])  # (answer tokens, vocabulary)
        return row, nn.functional.cross_entropy(logits.float(), labels[row, column], reduction="none")

    def _answer(self, answer: str) -> list[int]:
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.end]

    def _check_turn_end(self) -> None:
        messages = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in (("user", "a"), ("assistant", "b"))]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        if f"b{self.tokenizer.eos_token}" not in text:
            raise ModelError(
                f"{self.folder}: its chat template does not end the assistant's turn with eos_token {self.tokenizer.eos_token!r}; {REMEDY}"
            )

    # LoRA

    def lora_targets(self) -> str:
        """A pattern of the full names of the language model's linear layers: no vision tower, no head."""
        language = next(name for name, module in self.model.named_modules() if module is self.core.language_model)
        found = {n.split(".", 1)[1].split(".", 1)[1] for n, m in self.core.language_model.named_modules() if isinstance(m, nn.Linear)}
        return rf"{re.escape(language)}\.layers\.\d+\.({'|'.join(re.escape(name) for name in sorted(found))})"

    def add_lora(self, lora: Any, seed: int) -> None:
        """Put trainable LoRA (or DoRA) layers of config section `lora` into the language model, drawn from `seed`."""
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            use_dora=lora.dora,
            init_lora_weights="gaussian" if lora.init == "gaussian" else True,
            target_modules=self.lora_targets(),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.model = get_peft_model(self.model, settings)

    def _add_adapter(self, folder: Path, train: bool) -> None:
        from peft import PeftModel
        from peft.utils import get_peft_model_state_dict

        check_adapter(folder)
        adapted = PeftModel.from_pretrained(self.model, folder, is_trainable=train)
        needed, found = set(get_peft_model_state_dict(adapted)), set(check_tensors(folder, "adapter_model.safetensors"))
        if needed != found:
            raise ModelError(
                f"{folder}: adapter_model.safetensors does not fit {self.folder}: {len(needed - found)} tensors missing, "
                f"{len(found - needed)} unknown, {sorted(needed ^ found)[0]} first; train the adapter on this model"
            )
        self.model = adapted if train else adapted.merge_and_unload().requires_grad_(False).eval()


def _device(asked: str) -> torch.device:
    """This process's GPU (one process a GPU, as accelerate's launcher numbers them), or the CPU.  Raises ModelError for an absent GPU."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ModelError("models.device is 'cuda' but torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cpu") if asked == "cpu" or not there else torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
