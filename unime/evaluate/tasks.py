"""What is evaluated: the table's models, and the tasks (MMEB's 36, the embedded suite's 18) with meta-task and split.

MMEB's split is the paper's (VLM2Vec, table 2): 20 tasks whose training split is trained on (IND), 16 that are only evaluated (OOD).
The suite's OOD tasks show attribute pairs and phrasings that no training set has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from unime.config import ConfigError, nearest

META = {"classification": "Classification", "vqa": "VQA", "retrieval": "Retrieval", "grounding": "Visual Grounding"}
"""Meta-task -> its name on a page, in the table's order."""

MEANS = (*META, "ind", "ood", "overall")
"""The means of the table, in its order."""


MODELS = {
    "zero_shot": "base zero-shot",
    "in_batch": "in-batch (VLM2Vec)",
    "hard_negatives": "hard negatives",
    "unime_v2": "UniME-V2",
    "unime_v2_reranker": "UniME-V2 + reranker",
}
"""Model key (scores, metrics.json, folders) -> its row in the table, in the table's order."""


EMBEDDERS, RERANKED, RERANKER = tuple(MODELS)[:4], "unime_v2", "unime_v2_reranker"
"""The models that rank all candidates, and the one whose best candidates the reranker orders."""


class Task(NamedTuple):
    meta: str
    split: Literal["ind", "ood"]
    suite: Literal["mmeb", "nano"]


_LISTS = {
    ("mmeb", "classification", "ind"): "ImageNet-1K N24News HatefulMemes VOC2007 SUN397",
    ("mmeb", "classification", "ood"): "Place365 ImageNet-A ImageNet-R ObjectNet Country211",
    ("mmeb", "vqa", "ind"): "OK-VQA A-OKVQA DocVQA InfographicsVQA ChartQA Visual7W",
    ("mmeb", "vqa", "ood"): "ScienceQA VizWiz GQA TextVQA",
    ("mmeb", "retrieval", "ind"): "VisDial CIRR VisualNews_t2i VisualNews_i2t MSCOCO_t2i MSCOCO_i2t NIGHTS WebQA",
    ("mmeb", "retrieval", "ood"): "FashionIQ Wiki-SS-NQ OVEN EDIS",
    ("mmeb", "grounding", "ind"): "MSCOCO",
    ("mmeb", "grounding", "ood"): "RefCOCO RefCOCO-Matching Visual7W-Pointing",
    ("nano", "classification", "ind"): "NanoObject NanoColor NanoMeme",
    ("nano", "classification", "ood"): "NanoObject-Held",
    ("nano", "vqa", "ind"): "NanoAskColor NanoAskPlace",
    ("nano", "vqa", "ood"): "NanoAskShape NanoAskCount",
    ("nano", "retrieval", "ind"): "NanoCaption_i2t NanoCaption_t2i NanoEdit NanoTwin NanoPhrase",
    ("nano", "retrieval", "ood"): "NanoCaption-Held_i2t NanoCaption-Held_t2i",
    ("nano", "grounding", "ind"): "NanoCrop",
    ("nano", "grounding", "ood"): "NanoCrop-Held NanoPoint",
}

TASKS: dict[str, Task] = {
    name: Task(meta, split, suite)  # type: ignore[arg-type]
    for (suite, meta, split), names in _LISTS.items()
    for name in names.split()
}


def task(name: str) -> Task:
    """A task by its MMEB-eval name.  Raises ConfigError with the nearest name for an unknown one."""
    try:
        return TASKS[name]
    except KeyError:
        raise ConfigError(f"evaluate.tasks: {name!r} is no known task{nearest(name, list(TASKS))}") from None


def groups(name: str) -> tuple[str, str, str]:
    """The means that a task counts in: its meta-task, ind or ood, overall."""
    found = task(name)
    return found.meta, found.split, "overall"


def members(mean: str, names: Iterable[str]) -> list[str]:
    """Those of `names` (tasks, their order kept) that count in a mean."""
    return [name for name in names if mean in groups(name)]


def is_mmeb(mean: str, names: Iterable[str]) -> bool:
    """Whether these tasks give the published mean: exactly MMEB's own tasks of that group, all of them and no others."""
    return set(members(mean, names)) == {name for name, known in TASKS.items() if known.suite == "mmeb" and mean in groups(name)}
