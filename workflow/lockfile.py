"""dvc.lock, replaced whole: a kill while it is written leaves the old one or the new one."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

DAMAGED = "If dvc.lock is damaged: `git checkout dvc.lock`, or delete it; stages that ran since then come back from DVC's cache"


@contextmanager
def replaced(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
    """DVC's `modify_yaml` for dvc.lock: the same text, renamed into place; only the stages that change are read and written."""
    file = Path(path)
    head, found, body = file.read_text(encoding="utf-8").partition("stages:\n") if file.exists() else ("", "", "")
    if head and not found:
        raise DvcException(f"{path} holds no stages.  {DAMAGED}")
    blocks = {block.partition(":")[0].strip(): block for block in re.split(r"^(?=  \S)", body, flags=re.M) if block}
    data: dict[str, Any] = {"stages": Stages(blocks)} if head else {}
    yield data
    blocks |= {name: written({name: stage}) for name, stage in data["stages"].items()}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text((head or "schema: '2.0'\n") + "stages:\n" + "".join(blocks.values()), encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


class Stages(dict[str, Any]):
    """The stages of dvc.lock: one that is asked for is parsed out of the text, one that is set is held."""

    def __init__(self, blocks: dict[str, str]):
        super().__init__()
        self.blocks = blocks

    def get(self, name: str, default: Any = None) -> Any:
        return YAML(typ="safe").load(self.blocks[name])[name] if name in self.blocks else default


def written(stages: dict[str, Any]) -> str:
    """A stage's block in dvc.lock."""
    writer, text = YAML(typ="safe"), io.StringIO()
    writer.Representer = Like
    writer.default_flow_style, writer.sort_base_mapping_type_on_output, writer.allow_unicode = False, False, True
    writer.dump({"stages": plain(stages)}, text)
    return re.sub(r": $", ":", text.getvalue().partition("\n")[2], flags=re.M)  # an empty null, without the blank before it


class Like(SafeRepresenter):
    """As DVC's slow writer, which leaves null empty."""


Like.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", ""))


def plain(value: Any) -> Any:
    """DVC's ordered mappings as plain ones; what stands in two places is written twice, not as an alias."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
