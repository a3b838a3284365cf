"""Qwen2-VL: images of any size as 28-pixel tokens, three-dimensional positions."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unime.backbones.base import Backbone, Picture


class Qwen2VL(Backbone):
    MODEL = Qwen2VLForConditionalGeneration
    IMAGE_PROCESSOR = Qwen2VLImageProcessorPil
    IMAGE_TOKEN = "<|image_pad|>"

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw") if name in batch}
        if "image_features" in batch:
            given["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=(batch["image_features"],))}
        elif "pixel_values" in batch:
            given["pixel_values"] = batch["pixel_values"]
        return self.core(**given, position_ids=self.positions(batch), use_cache=False).last_hidden_state

    @torch.no_grad()
    def see(self, image: Image.Image) -> Picture:
        picture = self._picture(image)
        found = self.core.get_image_features(picture.pixels.to(self.device), picture.grid.to(self.device), return_dict=True)
        return Picture(picture.grid, features=torch.cat(found.pooler_output).cpu())

    def positions(self, batch: dict[str, Tensor]) -> Tensor:
        """(3, B, L) int64 temporal, height and width positions, as the model's own `get_rope_index` has them, in fewer operations.

        Text counts on by one; an image of h x w tokens that starts at position p has (p, p + row, p + column), and the text after it
        goes on at p + max(h, w).  Padding is at position 0, so a sequence's positions do not depend on its side or width.
        """
        mask = batch["attention_mask"]
        positions = ((mask.cumsum(1) - 1) * mask).repeat(3, 1, 1)
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

    def _image_tokens(self, image: Image.Image | Picture) -> int:
        if isinstance(image, Picture):
            return int(image.grid.prod()) // self.processor.merge_size**2
        width, height = self._size(image)
        return self.processor.get_number_of_image_patches(height, width) // self.processor.merge_size**2
