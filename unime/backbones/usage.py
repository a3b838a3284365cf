"""How an exported embedder is used without this project: Python on transformers alone, for its model card.

The text of the code depends on the family: how an image becomes pixels and tokens, and what stands around it.  `tests/test_adapters.py`
runs it on the exported folder and compares the vectors with ours.
"""

from __future__ import annotations

from pathlib import Path

from unime.backbones import FAMILIES, family_of
from unime.data.images import Pixels

_OPEN = """\
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from {module} import {processor}

folder = "."  # this folder
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
image_processor = {processor}.from_pretrained(folder)
"""

_EMBED = '''

@torch.no_grad()
def embed(text: str, image: Image.Image | None = None, side: int = 0) -> torch.Tensor:
    """The item's unit vector (D,); the image stands at <|image_1|> in the text, or first where there is no such mark.

    `side`: squash the image to a square of so many pixels first, as this model's `train.image_size` and `evaluate.image_size` say.
    """
    inputs = {}
    for word in tokenizer.all_special_tokens:
        if word in text:
            raise ValueError(f"the text spells the special token {word}, which would not be read as text; take it out")
    if image is not None:
{pixels}        image = image.resize((side, side), Image.Resampling.BICUBIC) if side else image
        if "<|image_1|>" not in text:
            text = "<|image_1|>" + text
'''

_AS_SEEN = """\
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:  # on white
            coloured = image.convert("RGBA")
            image = Image.new("RGB", image.size, "white")
            image.paste(coloured, mask=coloured.getchannel("A"))
        image = image.convert("RGB")
"""

_AS_PUBLIC = """\
        image = image.convert("RGB")
"""

_PIXELS_QWEN = """\
        inputs = dict(image_processor(images=[image], return_tensors="pt"))
        tokens = int(inputs["image_grid_thw"].prod()) // image_processor.merge_size**2
"""

_PIXELS_LLAVA = """\
        inputs = dict(image_processor(images=[image], return_tensors="pt"))
        inputs = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
        tokens = len(model.model.get_image_features(**inputs, return_dict=True).pooler_output[0])
"""

_PIXELS_INTERNVL = """\
        inputs = {"pixel_values": image_processor(images=[image], return_tensors="pt", crop_to_patches=True)["pixel_values"]}
        tokens = len(inputs["pixel_values"]) * model.config.image_seq_length
"""

_PROMPT_QWEN = """\
    # Raw text.  A mark without an image is one image token, as in training: a word without pixels.
    text = text.replace("<|image_1|>", "<|image_pad|>" * (tokens if image is not None else 1))
"""

_TURN = """\
    # One user turn of the chat template, which says where images stand and what is around them.
    if image is not None:
        before, _, after = text.partition("<|image_1|>")
        parts = [{"type": "text", "text": before.strip()}, {"type": "image"}, {"type": "text", "text": after.strip()}]
        parts = [part for part in parts if part["type"] == "image" or part["text"]]
        if len(parts) == 1:
            parts.append({"type": "text", "text": ""})  # as in training: an empty text follows an image that is alone
    else:  # nothing stands for a mark without an image
        text = text.replace("<|image_1|>\\n", "").replace("<|image_1|>", "")
        parts = [{"type": "text", "text": text.strip()}]
    template = tokenizer.chat_template or json.loads(Path(folder, "chat_template.json").read_text())["chat_template"]
    turn = [{"role": "user", "content": parts}]
    text = tokenizer.apply_chat_template(turn, chat_template=template, tokenize=False, add_generation_prompt=True)
"""

_PROMPT_LLAVA = (
    _TURN
    + """\
    if image is not None:
        text = text.replace("<image>", "<image>" * tokens)
"""
)

_PROMPT_INTERNVL = (
    _TURN
    + """\
    if image is not None:
        text = text.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * tokens + "</img>")
"""
)

_IDS = """\
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
"""

_PLAIN = """\
    # The model was trained with plain positions: no vision start stands before the image.  transformers would count in two dimensions.
    inputs["position_ids"] = torch.arange(ids.shape[1]).expand(3, 1, -1)
"""

_VECTOR = """\
    last = model.model(**inputs).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(last.float(), dim=-1)
"""

_BODIES = {
    "qwen2_vl": _EMBED + _PIXELS_QWEN + _PROMPT_QWEN + _IDS + _PLAIN + _VECTOR,
    "qwen2_5_vl": _EMBED + _PIXELS_QWEN + _PROMPT_QWEN + _IDS + _PLAIN + _VECTOR,
    "llava_onevision": _EMBED + _PIXELS_LLAVA + _PROMPT_LLAVA + _IDS + _VECTOR,
    "internvl": _EMBED + _PIXELS_INTERNVL + _PROMPT_INTERNVL + _IDS + _VECTOR,
}
"""The function `embed` of each family, by model_type.  Tokens and marks stand in it as a reader of the card needs them."""


def embedding(folder: str | Path, pixels: Pixels) -> str:
    """Markdown that says how to embed an item with the exported model of a base folder, in Python on transformers alone.

    Images become `pixels` as in training (the configuration's data.pixels; 16-bit images are left out, which Pillow's users scale).
    Raises ModelError where the folder has no config.json of a known family.
    """
    family = family_of(Path(folder))
    kind = next(name for name, known in FAMILIES.items() if known is family)
    code = _OPEN.format(module=family.IMAGE_PROCESSOR.__module__, processor=family.IMAGE_PROCESSOR.__name__)
    code += _BODIES[kind].replace("{pixels}", _AS_SEEN if pixels == "as_seen" else _AS_PUBLIC)
    if pixels == "as_seen":
        code = code.replace("from PIL import Image\n", "from PIL import Image, ImageOps\n")
    if not family.CHAT_ITEMS:
        code = code.removeprefix("import json\nfrom pathlib import Path\n\n")
    return f"```python\n{code}```"
