"""A model folder with an adapter's weights in it, for anyone who has transformers and nothing of this project.

Weights and config.json are written anew; tokenizer, image settings, chat template and generation settings are the base folder's own
files, byte for byte: a tokenizer that is read and written again may come out in another form.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from unime import artifacts
from unime.backbones import load

COPIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


def export(folder: str | Path, adapter: str | Path, out: str | Path, *, models: Any, card: str, shard: str = "5GB") -> None:
    """Write the model `folder` with `adapter` merged into it to the folder `out`, whole or not at all; an earlier `out` is replaced.

    `models` is the config's section of that name (weights are written in its dtype), `card` the text of README.md, `shard` the size
    above which weights are cut into several files.  Raises ModelError as `load` does, ValueError where `out` is one of the two folders.
    """
    if Path(out).resolve() in (Path(folder).resolve(), Path(adapter).resolve()):
        raise ValueError(f"{out} is the folder that is read; name another one to export to")
    backbone = load(folder, adapter=adapter, models=models)
    # Published generation settings may be of a form that transformers reads but does not write; the folder's own file is copied below.
    backbone.model.generation_config = GenerationConfig.from_model_config(backbone.model.config)
    with artifacts.whole(out) as temporary:
        backbone.model.save_pretrained(temporary, max_shard_size=shard)
        for name in COPIED:
            if (backbone.folder / name).exists():
                shutil.copyfile(backbone.folder / name, temporary / name)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        for file in temporary.glob("*.safetensors"):  # written for their owner alone: others may read them as they may the card
            shutil.copymode(temporary / "README.md", file)
