"""LLaVA-OneVision: the whole image as one tile, then the image at its best resolution in tiles, the padding cut off again and a newline
token after each row ("anyres"); a Qwen2 language model with plain positions.

Every image is seen so, alone, also where a prompt shows several (transformers' processor has a coarser form for those): features
then depend on the image only.  `image_size` keeps them small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.modeling_llava_onevision import get_anyres_image_grid_shape, unpad_image

from unime.backbones.base import Backbone, Picture
from unime.backbones.files import REMEDY, ModelError, image_settings, reading


class LlavaOnevision(Backbone):
    """A picture's `shape` is its image's height and width in pixels."""

    MODEL = LlavaOnevisionForConditionalGeneration
    IMAGE_PROCESSOR = LlavaOnevisionImageProcessorPil
    IMAGE_TOKEN = "<image>"
    CHAT_ITEMS = True

    def _check(self) -> None:
        super()._check()
        config, settings = self.core.config, self.processor
        with reading(self.folder, image_settings(self.folder)[0], "has a size or image_grid_pinpoints that are none"):
            theirs = settings.size["height"], sorted(map(list, settings.image_grid_pinpoints))
        ours = config.vision_config.image_size, sorted(map(list, config.image_grid_pinpoints))
        if theirs != ours:
            raise ModelError(
                f"{self.folder}: preprocessor_config.json cuts tiles of {theirs[0]} pixels and {len(theirs[1])} resolutions, config.json "
                f"has {ours[0]} and {len(ours[1])}, and they differ; {REMEDY}"
            )

    def _content(self, turn: Sequence[Any]) -> list[dict[str, str]]:
        """One text with the image tokens in it: the template puts images before all texts, where nothing says which is whose."""
        return [{"type": "text", "text": "".join(piece if isinstance(piece, str) else self.IMAGE_TOKEN for piece in turn)}]

    def _tokens(self, height: int, width: int) -> int:
        """The model's own arithmetic (`pack_image_features`) on a tensor without channels: nothing is computed but its shape."""
        config = self.core.config
        tile, side = config.vision_config.image_size, config.vision_config.image_size // config.vision_config.patch_size
        rows, columns = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, tile)
        _, high, wide = unpad_image(torch.empty(0, rows * side, columns * side), (height, width)).shape
        ratio = math.sqrt(high * wide / (int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * side**2))
        if ratio > 1.1:
            high, wide = int(high // ratio), int(wide // ratio)
        return side**2 + high * (wide + 1)

    def _picture(self, image: Image.Image) -> Picture:
        found = self.processor(images=[image], return_tensors="pt")
        return Picture(self._tokens(image.height, image.width), found["image_sizes"], found["pixel_values"][0])

    def _shapes(self, pictures: Sequence[Picture], marked: Tensor) -> dict[str, Tensor]:
        return {"image_sizes": torch.cat([picture.shape for picture in pictures])}

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.cat(self.core.get_image_features(batch["pixel_values"], batch["image_sizes"], return_dict=True).pooler_output)
