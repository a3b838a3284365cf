"""What is evaluated: the tables' models, the tasks (MMEB's 36, the embedded suite's 18) with meta-task and split, and the cross-modal
columns (the paper's 11, the suite's 5) with their group.

MMEB's split is the paper's (VLM2Vec, table 2): 20 tasks whose training split is trained on (IND), 16 that are only evaluated (OOD).
The suite's OOD tasks show attribute pairs and phrasings that no training set has.  A cross-modal column is one direction of a caption
set (`_i2t`: an image looks for its captions, `_t2i`: a caption for its image) or one kind of SugarCrepe's changed captions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from unime.config import ConfigError, View, nearest

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
    suite: Literal["mmeb", "nano", "own"]


OWN = Task("retrieval", "ind", "own")

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
    """A task by its MMEB-eval name; any other name is a task of your own, which counts as retrieval in distribution.

    A name that is misspelt is refused where the task's data are read (`unime.data`).
    """
    return TASKS.get(name, OWN)


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


CAPTIONS = {"short": "Short captions", "long": "Long captions", "compositional": "Compositional"}
"""Group of cross-modal columns -> its name on a page, in the table's order; each is a mean of the cross-modal table."""


class Column(NamedTuple):
    """One cross-modal column.  `metric` is its figure: recall@1 of a retrieval, accuracy of the compositional pairs."""

    group: str
    metric: Literal["recall@1", "accuracy"]
    suite: Literal["paper", "nano", "own"]


_COLUMNS = {
    ("paper", "short"): "Flickr30K_i2t Flickr30K_t2i COCO_i2t COCO_t2i",
    ("paper", "long"): "ShareGPT4V_i2t ShareGPT4V_t2i Urban1K_i2t Urban1K_t2i",
    ("paper", "compositional"): "SugarCrepe_replace SugarCrepe_swap SugarCrepe_add",
    ("nano", "short"): "NanoScenes_i2t NanoScenes_t2i",
    ("nano", "compositional"): "NanoCrepe_replace NanoCrepe_swap NanoCrepe_add",
}

CROSSMODAL: dict[str, Column] = {
    name: Column(group, "accuracy" if group == "compositional" else "recall@1", suite)  # type: ignore[arg-type]
    for (suite, group), names in _COLUMNS.items()
    for name in names.split()
}


def column(name: str) -> Column:
    """A cross-modal column by its name; captions of your own count as short ones, or as compositional, by the name's end.

    Raises ConfigError with the nearest name for one that ends in none of these ways.
    """
    if name in CROSSMODAL:
        return CROSSMODAL[name]
    if name.endswith(("_i2t", "_t2i")):
        return Column("short", "recall@1", "own")
    if name.endswith(("_replace", "_swap", "_add")):
        return Column("compositional", "accuracy", "own")
    raise ConfigError(f"evaluate.crossmodal: {name!r} is no known cross-modal task{nearest(name, list(CROSSMODAL))}")


def columns_of(group: str, names: Iterable[str]) -> list[str]:
    """Those of `names` (cross-modal columns, their order kept) that count in a group's mean."""
    return [name for name in names if column(name).group == group]


def is_papers(group: str, names: Iterable[str]) -> bool:
    """Whether these columns give the group's published mean: exactly the paper's own, all of them and no others."""
    return set(columns_of(group, names)) == {name for name, known in CROSSMODAL.items() if known.suite == "paper" and known.group == group}


def rerank_image_size(config: View) -> int:
    """Pixels of the side to which the reranker's images are squashed in evaluation: its own setting, or that of the training."""
    own = config.evaluate.rerank_image_size
    return config.train.reranker.image_size if own is None else own


def rerank_mode(settings: Any, compositional: bool) -> str:
    """How the reranker reads a query's candidates (see `unime.evaluate.rerank`); `settings` is the config section evaluate.

    `compositional`: the candidates are an image's true and false caption, which evaluate.compositional_rerank has read in one list or
    one by one, whatever the other tasks do; where those show no list, this one is read by likelihoods.
    """
    if not compositional:
        return settings.rerank_mode
    if settings.compositional_rerank == "pairwise":
        return "pairwise"
    return "likelihood" if settings.rerank_mode == "pairwise" else settings.rerank_mode
