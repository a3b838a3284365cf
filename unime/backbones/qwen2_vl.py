"""Qwen2-VL: images of any size as 28-pixel tokens; three-dimensional positions in chat prompts, plain ones in raw text.

VLM2Vec and UniME-V2 feed raw text in which `<|image_pad|>` stands without `<|vision_start|>` (public code,
Embedding/src/model_utils.py, `vlm_image_tokens`).  The transformers of their time looked for images behind vision starts only, found
none, and counted all tokens on by one.  Their published weights were trained so.  transformers 5 takes every image token for an image
(`mm_token_type_ids`) and would give such a prompt other positions.  Here the older reading decides, so the rule follows from the tokens:
a chat template writes vision starts and gets the model's own positions, raw text gets plain ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unime.backbones.base import Backbone, Picture
from unime.backbones.files import REMEDY, ModelError, image_settings
from unime.backbones.opening import check_bounds, check_counts

LEAST = 4
"""Tokens of an image, at least, where the most of them are bounded (public code: min_pixels 4 x 28 x 28)."""


class Qwen2VL(Backbone):
    """A picture's `shape` is its grid of patches (1, height, width), before patches are merged to tokens."""

    MODEL = Qwen2VLForConditionalGeneration
    IMAGE_PROCESSOR = Qwen2VLImageProcessorPil
    IMAGE_TOKEN = "<|image_pad|>"
    IMAGE_SETTINGS = ("image_mean", "image_std", "patch_size")
    VISION_START = "<|vision_start|>"

    @functools.cached_property
    def vision_start(self) -> int:
        """The id of the token that introduces an image in a chat prompt."""
        return self.token(self.VISION_START)

    def _check(self) -> None:
        super()._check()
        self.vision_start  # noqa: B018  raises where the tokenizer lacks it
        settings, vision = self.processor, self.core.config.vision_config
        cut = (settings.patch_size, settings.temporal_patch_size, settings.merge_size)
        model = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        file, written = image_settings(self.folder)
        if cut != model:
            raise ModelError(
                f"{self.folder}: {file} has patch_size, temporal_patch_size and merge_size {cut}, config.json has {model}; {REMEDY}"
            )
        names = ("min_pixels", "max_pixels")
        unset = [name for name in names if written.get(name) is None]
        if unset and not written.get("size"):
            raise ModelError(f"{self.folder}: {file} lacks min_pixels and max_pixels (or a size), which bound an image; {REMEDY}")
        least, most = settings.size.shortest_edge, settings.size.longest_edge
        check_counts(self.folder, {"min_pixels": least, "max_pixels": most})
        check_bounds(self.folder, ("min_pixels", least), ("max_pixels", most))
        pixels = (vision.patch_size * vision.spatial_merge_size) ** 2
        longest = self.core.language_model.config.max_position_embeddings
        check_bounds(self.folder, ("min_pixels", least), ("the pixels of all the model's positions,", longest * pixels))
        check_bounds(self.folder, ("the pixels of one token,", pixels), ("max_pixels", most))

    def limit_tokens(self, most: int) -> None:
        """Shrink images to at most `most` tokens, and enlarge them to at least LEAST; their aspect is kept but for whole tokens."""
        pixels = (self.processor.patch_size * self.processor.merge_size) ** 2  # of one token
        self.processor.size = SizeDict(shortest_edge=LEAST * pixels, longest_edge=most * pixels)

    def _tokens(self, height: int, width: int) -> int:
        return self.processor.get_number_of_image_patches(height, width) // self.processor.merge_size**2

    def _picture(self, image: Image.Image) -> Picture:
        found = self.processor(images=[image], return_tensors="pt")
        grid = found["image_grid_thw"]
        return Picture(int(grid.prod()) // self.processor.merge_size**2, grid, found["pixel_values"])

    def _shapes(self, pictures: Sequence[Picture], marked: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": marked.to(torch.int32), "image_grid_thw": torch.cat([picture.shape for picture in pictures])}

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.cat(self.core.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True).pooler_output)

    def positions(self, batch: dict[str, Tensor]) -> Tensor:
        """(3, B, L) int64 temporal, height and width positions.

        Text counts on by one, and so does an image without a vision start before it.  An image of h x w tokens behind a vision start at
        position p - 1 has (p, p + row, p + column), and the text after it goes on at p + max(h, w), as the model's own `get_rope_index`
        has it.  Which image tokens have pixels is read from `mm_token_type_ids`; any other image token is text.
        """
        if "image_grid_thw" not in batch:
            return super().positions(batch).repeat(3, 1, 1)
        here = {name: batch[name].cpu() for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")}
        merge = self.core.config.vision_config.spatial_merge_size
        ids, mask = here["input_ids"].numpy(), here["attention_mask"].numpy()
        grids = (here["image_grid_thw"].numpy() // [1, merge, merge]).tolist()
        rows, columns = (here["mm_token_type_ids"].numpy() == 1).nonzero()
        found = super().positions(here).repeat(3, 1, 1).numpy()
        at = 0  # of the image's first token among all tokens of images
        for time, height, width in grids:
            row, first, count = rows[at], columns[at], time * height * width
            at += count
            if first == 0 or ids[row, first - 1] != self.vision_start:
                continue
            start = found[0, row, first]
            t, h, w = torch.meshgrid(torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij")
            for axis, steps in enumerate((t, h, w)):
                found[axis, row, first : first + count] = start + steps.reshape(-1).numpy()
            after = slice(first + count, None)
            found[:, row, after] -= (count - max(height, width)) * mask[row, after]
        return torch.from_numpy(found).to(batch["input_ids"].device)
