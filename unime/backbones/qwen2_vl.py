"""Qwen2-VL: images of any size as 28-pixel tokens, three-dimensional positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unime.backbones.base import Backbone, Picture

LEAST = 4
"""Tokens of an image, at least, where the most of them are bounded (public code: min_pixels 4 x 28 x 28)."""


class Qwen2VL(Backbone):
    """A picture's `shape` is its grid of patches (1, height, width), before patches are merged to tokens."""

    MODEL = Qwen2VLForConditionalGeneration
    IMAGE_PROCESSOR = Qwen2VLImageProcessorPil
    IMAGE_TOKEN = "<|image_pad|>"

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
        """(3, B, L) int64 temporal, height and width positions, as the model's own `get_rope_index` has them, in fewer operations.

        Text counts on by one; an image of h x w tokens that starts at position p has (p, p + row, p + column), and the text after it
        goes on at p + max(h, w).
        """
        mask = batch["attention_mask"]
        positions = super().positions(batch).repeat(3, 1, 1)
        if "image_grid_thw" not in batch:
            return positions
        merge = self.core.config.vision_config.spatial_merge_size
        found, mask = positions.cpu().numpy(), mask.cpu().numpy()
        rows, columns = (batch["mm_token_type_ids"].cpu().numpy() == 1).nonzero()
        at = 0
        for time, height, width in (batch["image_grid_thw"].cpu().numpy() // [1, merge, merge]).tolist():
            row, first, count = rows[at], columns[at], time * height * width
            start = found[0, row, first]
            t, h, w = torch.meshgrid(torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij")
            for axis, steps in enumerate((t, h, w)):
                found[axis, row, first : first + count] = start + steps.reshape(-1).numpy()
            after = slice(first + count, None)
            found[:, row, after] -= (count - max(height, width)) * mask[row, after]
            at += count
        return torch.from_numpy(found).to(positions.device)
