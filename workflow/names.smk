"""Names that the rules share, out of the configuration."""

import re

SETS, TASKS, CROSSMODAL = CONFIG.data.train_sets, CONFIG.evaluate.tasks, CONFIG.evaluate.crossmodal
GPU = int(CONFIG.models.device == "cuda")  # GPUs of a job that runs a model
ABLATIONS = "ablations/dvc.yaml"


def one_of(names):
    """A wildcard's pattern: exactly these names, or nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


def raw(path):
    """A folder of raw data, as the rule names it that makes it: a fetched one by its record, which alone Snakemake may remove."""
    room, _, name = path.partition("/")
    fetched = {"train": CONFIG.fetch.train_sets, "eval": CONFIG.fetch.eval, "crossmodal": CONFIG.fetch.crossmodal}[room]
    if CONFIG.data.root == "data/nano":
        return "data/nano"
    return f"{CONFIG.data.root}/{path}" + ("/source.json" if name in fetched or (room == "eval" and fetched) else "")


def model(folder):
    """A model's folder, as the rule names it that makes it."""
    return f"{folder}/source.json" if folder in [f"models/{name}" for name in CONFIG.fetch.models] else folder


TRAIN = [raw(f"train/{name}") for name in SETS]


def mined(source):
    """The folders of mined negatives from a source (mine.source), as the rules name them that make them."""
    return expand("results/mine/judge/{set}", set=SETS) if source == "judge" else f"results/mine/{source}"


CAPTIONS = [raw(f"crossmodal/{name}") for name in CONFIG.fetch.crossmodal] or raw("crossmodal")
