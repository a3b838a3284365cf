"""InternVL3 (transformers' own class, the `-hf` folders): an image in up to twelve tiles and a thumbnail, each of as many tokens; a Qwen2
language model with plain positions."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from unime.backbones.base import Backbone, Picture
from unime.backbones.files import REMEDY, ModelError
from unime.backbones.opening import check_bounds, check_counts


class InternVL(Backbone):
    """A picture's `shape` is the number of its tiles."""

    MODEL = InternVLForConditionalGeneration
    IMAGE_PROCESSOR = GotOcr2ImageProcessorPil
    IMAGE_TOKEN = "<IMG_CONTEXT>"
    IMAGE_TEXT = "<img>{}</img>"
    CHAT_ITEMS = True
    TILES = {"crop_to_patches": True}
    """The published preprocessor_config.json leaves tiles off; InternVL's processor in transformers asks for them."""

    def _check(self) -> None:
        super()._check()
        theirs, ours = self.processor.size, self.core.config.vision_config.image_size
        check_counts(self.folder, {name: getattr(self.processor, name) for name in ("min_patches", "max_patches")})
        check_bounds(self.folder, ("min_patches", self.processor.min_patches), ("max_patches", self.processor.max_patches))
        if (theirs.height, theirs.width) != tuple(ours):
            raise ModelError(
                f"{self.folder}: preprocessor_config.json cuts tiles of {dict(theirs)} pixels, config.json has {list(ours)}; {REMEDY}"
            )

    def _tokens(self, height: int, width: int) -> int:
        return self.processor.get_number_of_image_patches(height, width, self.TILES) * self.core.config.image_seq_length

    def _picture(self, image: Image.Image) -> Picture:
        found = self.processor(images=[image], return_tensors="pt", **self.TILES)
        tiles = found["pixel_values"]
        return Picture(len(tiles) * self.core.config.image_seq_length, found["num_patches"].reshape(1, 1), tiles)

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        return self.core.get_image_features(batch["pixel_values"], return_dict=True).pooler_output.flatten(0, 1)
