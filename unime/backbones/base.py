"""What every family of MLLMs gives to the rooms: prompts, padded batches, embeddings, answer logits, answer likelihoods.

The model is transformers' own class, untouched.  A family (one small subclass) says which classes to use, how an image becomes
pixels, tokens and features, and which positions tokens have; all else is here.  The image's features are put in place of its tokens
here too, and the language model is run on that: what each class's own forward pass does, the same for all.  Shapes: B sequences,
L padded tokens, D hidden size, I images, V image tokens.

What was refused: AutoProcessor (needs torchvision; the PIL processors give the same pixels everywhere), the model's own `labels`
argument (it computes logits for the whole vocabulary at every position), `hidden_states[-1]` (in newer classes it is taken before the
final norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unime import prompts
from unime.backbones import lora as adapters
from unime.backbones.files import REMEDY, ModelError, check_adapter, check_fit, check_model
from unime.backbones.inputs import Answer, Encoded, Picture, Prompt, laid_out, part, shown, stripped, together
from unime.backbones.opening import processor_of, tokenizer_of
from unime.backbones.texts import Texts, restored
from unime.backbones.weights import hollow, loaded
from unime.data.images import Outline, squashed

IGNORED = -100

SEEN = 8192
"""Tokens of pictures that pass the vision tower of a GPU at a time."""


class Backbone:
    """One loaded model folder.  A family sets the names below and writes `_tokens`, `_picture` and `_features`; `_shapes` and
    `positions` where the model takes more than pixels and counts positions in its own way."""

    MODEL: type[nn.Module]
    IMAGE_PROCESSOR: type[Any]
    IMAGE_TOKEN: str
    """The token that stands for an image, repeated once per visual token."""
    IMAGE_SETTINGS: tuple[str, ...] = ("image_mean", "image_std", "size")
    """What the folder's image settings must say; the processor's class has another model's defaults."""
    IMAGE_TEXT = "{}"
    """How the family writes an image in a prompt; `{}` is the image token."""
    CHAT_ITEMS = False
    """Whether the embedder's input is a user turn through the chat template; if not, it is raw text."""

    def __init__(self, folder: Path, model: nn.Module, tokenizer: Any, processor: Any, models: Any, image_size: int) -> None:
        self.folder, self.model, self.tokenizer, self.processor = folder, model, tokenizer, processor
        self.models, self.image_size = models, image_size
        self.texts = Texts(tokenizer, [self.IMAGE_TOKEN])
        self.core: nn.Module = model.model  # without the language model head; LoRA layers are put inside, so it stays valid
        self.head: nn.Linear = model.get_output_embeddings()
        self.image_token = self.token(self.IMAGE_TOKEN)
        self.end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end
        self._check()

    @classmethod
    def open(cls, folder: Path, *, adapter: Path | None, models: Any, image_size: int, train: bool, weights: bool = True) -> Backbone:
        """Load weights (dtype and device of the config), tokenizer and image processor; see `unime.backbones.load`."""
        check_model(folder)
        if adapter is not None:
            check_adapter(adapter)
        model = hollow(cls.MODEL, folder)
        tokenizer, processor = tokenizer_of(folder), processor_of(cls.IMAGE_PROCESSOR, folder, cls.IMAGE_SETTINGS)
        backbone = cls(folder, model.requires_grad_(False).eval(), tokenizer, processor, models, image_size)
        if weights:  # they are read after everything else was checked
            model = loaded(cls.MODEL, folder, models)
            backbone = cls(folder, model.requires_grad_(False).eval(), tokenizer, processor, models, image_size)
        if adapter is not None:
            backbone.model = adapters.attach(model, adapter, folder, train)
        return backbone

    # Prompts

    def item_prompt(self, content: Any) -> Prompt:
        """The embedder's input for one item (`text`, `image`): raw text with the image where the data has its marker, or, for a family
        with CHAT_ITEMS, one user turn (its template puts blanks around texts, so the data's own are taken off).

        A marker without an image is one image token in raw text, which is a word like any other: no pixels stand for it, so its own word
        embedding stays.  In a user turn nothing stands for it.  Both as in the public code (model_utils.py).
        """
        pieces = prompts.parts(content.text, content.image)
        if self.CHAT_ITEMS:
            return self._templated([part(p) for p in self.texts.literals(stripped(pieces))], pieces)
        if content.image is None and prompts.IMAGE_MARK in content.text:
            before, after = map(self.texts.literal, content.text.split(prompts.IMAGE_MARK))
            return self._prompt(before + self.IMAGE_TOKEN + after, [], bare=1)
        return self._prompt("".join(p if isinstance(p, str) else self.IMAGE_TOKEN for p in self.texts.literals(pieces)), pieces)

    def chat_prompt(self, turn: Sequence[str | Image.Image | Picture]) -> Prompt:
        """One user turn through the folder's chat template, images where they stand, ending where the assistant's turn begins."""
        return self._templated(self._content(self.texts.literals(turn)), turn)

    def _content(self, turn: Sequence[Any]) -> list[dict[str, str]]:
        """A turn as the chat template takes it; a family whose template moves images out of their place says it otherwise."""
        return [part(piece) for piece in turn]

    def _templated(self, content: list[dict[str, str]], pieces: Sequence[Any]) -> Prompt:
        messages = [{"role": "user", "content": content}]
        return self._prompt(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), pieces)

    def _prompt(self, text: str, pieces: Sequence[Any], bare: int = 0) -> Prompt:
        """`bare`: image tokens in the text that stand for no image."""
        images = tuple(p for p in pieces if not isinstance(p, str))
        if text.count(self.IMAGE_TOKEN) != len(images) + bare:
            found = f"{text.count(self.IMAGE_TOKEN)} image placeholders for {len(images)} images"
            raise ModelError(f"{self.folder}: its chat template writes {found}; {REMEDY}")
        return Prompt(text.replace(self.IMAGE_TOKEN, self.IMAGE_TEXT.format(self.IMAGE_TOKEN)), images)

    def token(self, word: str) -> int:
        """The id of a word that is one token.  Raises ModelError naming the word where it is none or several."""
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise ModelError(f"{self.folder}: {word!r} is {len(ids)} tokens, one is needed; use a model whose tokenizer has it as one")
        return ids[0]

    def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Of each prompt's text its tokens (L,) int64, none added."""
        return self.texts.batch(texts)

    def length(self, prompt: Prompt, ids: np.ndarray | None = None) -> int:
        """Tokens of a prompt after its placeholders are repeated; no pixel is computed.  `ids` as for `encode`."""
        ids = self.texts.ids(prompt.text) if ids is None else ids
        return len(ids) + sum(self._image_tokens(image) - 1 for image in prompt.images)

    # Batches

    def encode(self, prompt: Prompt, ids: np.ndarray | None = None) -> Encoded:
        """One prompt as arrays; `ids` are its text's tokens (int64, a placeholder per image) where they are known already.

        Raises ValueError with its length where it is over models.max_length.
        """
        if ids is None:
            ids = self.texts.ids(prompt.text)
        pictures = tuple(image if isinstance(image, Picture) else self.look(image) for image in prompt.images)
        if pictures:
            counts = np.ones(len(ids), dtype=np.int64)
            counts[ids == self.image_token] = [picture.tokens for picture in pictures]
            ids = np.repeat(ids, counts)
        self.check_length(len(ids), prompt)
        return Encoded(ids, pictures)

    def check_length(self, tokens: int, prompt: Prompt) -> None:
        """Raise ValueError where a prompt of so many tokens is over models.max_length."""
        if tokens > self.models.max_length:
            remedy = f"shrink images with image_size ({self.image_size} now)" if prompt.images else "shorten the text"
            raise ValueError(
                f"a prompt of {tokens} tokens is over models.max_length ({self.models.max_length}); raise it, or {remedy}: "
                f"{restored(prompt.text)[:80]!r}"
            )

    def collate(self, items: Sequence[Prompt | Encoded], answers: Sequence[Answer] | None = None, side: str = "left") -> dict[str, Tensor]:
        """A padded batch on the model's device.

        `input_ids`, `attention_mask` (B, L) int64; with images what the family's `_shapes` adds and `pixel_values` (P, ...), under the
        names that the model's own forward pass takes, or `image_features` (V, D) in place of pixels where all pictures have theirs;
        `picture_tokens` (B, L) bool, the image tokens that stand for pictures, where one without pictures has a bare image token;
        with answers `labels` (B, L): the answer and the turn's end token (an answer in tokens: those), -100 elsewhere.
        """
        encoded = [item if isinstance(item, Encoded) else self.encode(item) for item in items]
        tails = [self._answer(answer) for answer in answers] if answers is not None else [[]] * len(encoded)
        ids, mask, labels = laid_out(encoded, tails, self.pad, IGNORED, side)
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if pictures := [picture for e in encoded for picture in e.pictures]:
            tokens = torch.from_numpy((ids == self.image_token) & (mask == 1))
            theirs = tokens & torch.tensor([[bool(e.pictures)] for e in encoded])
            batch |= self._shapes(pictures, theirs) | shown(pictures)
            if not torch.equal(theirs, tokens):
                batch["picture_tokens"] = theirs
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
        return self.run(batch).last_hidden_state

    def run(self, batch: dict[str, Tensor], use_cache: bool = False) -> Any:
        """The language model's own output for a batch: `last_hidden_state` (B, L, D), after the final norm, and the key-value cache."""
        embeds, mask = self.core.get_input_embeddings()(batch["input_ids"]), batch["attention_mask"]
        features = batch.get("image_features")
        if "pixel_values" in batch:
            features = self._features(batch)
        if features is not None:
            marked = batch.get("picture_tokens")
            if marked is None:
                marked = (batch["input_ids"] == self.image_token) & (mask == 1)
            if int(marked.sum()) != len(features):
                raise ValueError(f"{int(marked.sum())} image tokens for {len(features)} rows of features; the family's `_tokens` is wrong")
            embeds = embeds.masked_scatter(marked[..., None], features.to(embeds.dtype))
        return self.core.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=self.positions(batch), use_cache=use_cache)

    def positions(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, L) int64, or (axes, B, L) for a family of several axes: a token's place in its sequence; 0 where there is padding, so that
        a sequence's positions depend on neither its side nor its width."""
        mask = batch["attention_mask"]
        return (mask.cumsum(1) - 1) * mask

    def look(self, image: Image.Image) -> Picture:
        """The image as pixels in the model's form: the part of `see` that needs no model, for threads that work ahead of it."""
        return self._picture(squashed(image, self.image_size))

    def see(self, image: Image.Image | Picture) -> Picture:
        """As `see_all`, of one image."""
        return self.see_all([image])[0]

    def see_all(self, images: Sequence[Image.Image | Picture]) -> list[Picture]:
        """Images (or what `look` made of them) after the vision tower, on the CPU, to stand in for them in any number of prompts.

        On a CPU each passes the tower alone, so its features depend on it only: a cache of them changes no result.  A GPU would idle
        (`benchmarks/gpu.py`), so there `SEEN` tokens pass together, and a picture's last bits may depend on the others.
        """
        pictures = [image if isinstance(image, Picture) else self.look(image) for image in images]
        runs = [[picture] for picture in pictures] if self.device.type == "cpu" else together(pictures, SEEN)
        return [seen for some in runs for seen in self.seen_together(some)]

    @torch.no_grad()
    def seen_together(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Pictures after one pass of the vision tower."""
        tokens = [picture.tokens for picture in pictures]
        batch = self._shapes(pictures, torch.ones(1, sum(tokens), dtype=torch.bool))
        batch["pixel_values"] = torch.cat([picture.pixels for picture in pictures])
        features = self._features({name: tensor.to(self.device) for name, tensor in batch.items()}).cpu().split(tokens)
        return [p._replace(pixels=None, features=f.clone()) for p, f in zip(pictures, features, strict=True)]  # else each keeps all

    def _tokens(self, height: int, width: int) -> int:
        """How many tokens an image of this size in pixels becomes; no pixel is computed."""
        raise NotImplementedError

    def _picture(self, image: Image.Image) -> Picture:
        """An RGB image as pixels."""
        raise NotImplementedError

    def _shapes(self, pictures: Sequence[Picture], marked: Tensor) -> dict[str, Tensor]:
        """What the model is told of a batch's pictures besides pixels; `marked` (B, L) bool: the image tokens."""
        return {}

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        """(V, D): the features of a batch's `pixel_values`, one row an image token, in order."""
        raise NotImplementedError

    def _image_tokens(self, image: Image.Image | Outline | Picture) -> int:
        if isinstance(image, Picture):
            return image.tokens
        width, height = (self.image_size, self.image_size) if self.image_size else image.size
        return self._tokens(height, width)

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

    def _answer(self, answer: Answer) -> list[int]:
        if not isinstance(answer, str):
            return list(answer)
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.end]

    def _check(self) -> None:
        """Raise ModelError for a folder whose parts do not fit each other; a family may look at more."""
        check_fit(self.folder, self.tokenizer, self.core, self.IMAGE_TOKEN, self.image_token)
        self.chat_prompt(["a", Picture(1, torch.empty(1, 0)), "b"])  # images have a place in the chat template

    # LoRA

    def layers(self) -> list[nn.Module]:
        """The language model's decoder layers."""
        return list(self.core.language_model.layers)

    def checkpoint_layers(self) -> None:
        """In training keep the input of each layer with a graph only, and run the layer again on the way back: less memory for one more
        forward pass."""
        layered = self.core if self.trains_images else self.core.language_model
        layered.gradient_checkpointing_enable({"use_reentrant": False})

    def add_lora(self, lora: Any, seed: int) -> None:
        """Put trainable LoRA (or DoRA) layers of config section `lora` where its `targets` say, drawn from `seed`."""
        self.model = adapters.add(self.model, lora, seed, self.device)

    @property
    def trains_images(self) -> bool:
        """Whether a weight that turns an image into features is trained: then features need a graph, and each step changes them."""
        return adapters.trained_outside(self.core.language_model, self.core)
