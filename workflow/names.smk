"""Names that the rules share, out of the configuration."""

import re

from unime.__main__ import stages
from unime.config import nearest
from unime.config.jobs import DEFAULT

SETS, TASKS, CROSSMODAL = CONFIG.data.train_sets, CONFIG.evaluate.tasks, CONFIG.evaluate.crossmodal
GPU = int(CONFIG.models.device == "cuda")  # GPUs of a job that runs a model
JUDGING = GPU * {"vllm": CONFIG.judge.vllm.tensor_parallel, "openai": 0}.get(CONFIG.judge.backend, 1)  # of one that judges
SEARCH = "search-gpu" if GPU else "data"  # environment of the search; the same hits from both (unime/retrieve/search.py)
# Threads of a job that runs a model: on a GPU's job they read and prepare images.  Snakemake cuts a rule's threads down to the cores of the
# machine that it runs on, a login node too, so that rules ask a cluster for as many by name (cpus_per_task).
BESIDE = 8 if GPU else 1
NODES = CONFIG.train.nodes  # of a training
TRAINING = GPU * CONFIG.train.gpus_per_node if NODES == 1 else 0  # its GPUs; on several nodes SPREAD asks for them
# Several nodes: one task on each, which torchrun takes (unime/launch.py); SLURM's plugin leaves the step to the job where `mpi` is set.
SPREAD = {"nodes": 1} if NODES == 1 else {"nodes": NODES, "tasks": NODES, "mpi": "srun"}
if NODES > 1 and GPU:
    SPREAD |= {"gres": f"gpu:{CONFIG.train.gpus_per_node}", "tasks_per_gpu": 0}
BOTH = max(2, BESIDE)  # threads of a training that others wait for: on a CPU two passes run side by side
PARTS = {"embed_train": CONFIG.jobs.parts.embed_train, "judge": CONFIG.jobs.parts.judge}  # jobs that share a training set's shards
ABLATIONS, RECORD = "ablations/dvc.yaml", "source.json"


for table in ("memory", "minutes"):
    for name in getattr(CONFIG.jobs, table):
        if name not in (DEFAULT, *stages()):
            raise WorkflowError(f"jobs.{table}: there is no rule {name!r}{nearest(name, stages())}")


def growing(table, rule, most=float("inf")):
    """A resource of a rule's jobs: what the configuration says at the first attempt, twice as much at each further one, up to `most`."""
    first = table.get(rule, table[DEFAULT])
    return lambda wildcards, attempt: min(most, first * 2 ** (attempt - 1))


def memory(rule):
    """MB of main memory of each node."""
    return growing(CONFIG.jobs.memory, rule)


def minutes(rule):
    return growing(CONFIG.jobs.minutes, rule, CONFIG.jobs.longest)


def one_of(names):
    """A wildcard's pattern: exactly these names, or nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


def raw(path):
    """A folder of raw data in the words of the rule that makes it; a fetched one by its record, which alone Snakemake may remove."""
    room, _, name = path.partition("/")
    fetched = {"train": CONFIG.fetch.train_sets, "eval": CONFIG.fetch.eval, "crossmodal": CONFIG.fetch.crossmodal}[room]
    if CONFIG.data.root == "data/nano":
        return "data/nano"
    folder = f"{CONFIG.data.root}/{path}"
    return f"{folder}/{RECORD}" if name in fetched or (room == "eval" and fetched) else folder


def model(folder):
    """A model's folder in the words of the rule that makes it."""
    return f"{folder}/{RECORD}" if folder in [f"models/{name}" for name in CONFIG.fetch.models] else folder


TRAIN = [raw(f"train/{name}") for name in SETS]


def mined(source):
    """The folders of mined negatives from a source (mine.source), in the words of the rules that make them."""
    return expand("results/mine/judge/{set}", set=SETS) if source == "judge" else f"results/mine/{source}"


def negatives_of(variant):
    """The mined negatives that an embedder of ablations.embedders reads; in-batch negatives are not mined."""
    return [] if variant.loss == "in_batch" else mined(variant.source)


def judged(name):
    """A set's judgements that the run mines from (mine.judgements), in the words of the rule that makes them."""
    return f"results/judge/{name}" if CONFIG.mine.judgements == "results/judge" else CONFIG.mine.judgements


CAPTIONS = [raw(f"crossmodal/{name}") for name in CONFIG.fetch.crossmodal] or raw("crossmodal")
