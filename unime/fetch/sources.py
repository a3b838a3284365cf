"""The registry: everything published that this project can fetch, and what a selection of it needs.

A revision is a commit where that commit has been seen, named with its repository, in two independent public places; elsewhere `main`.
`main` becomes a commit when it is fetched; the commit is logged and kept in source.json, to be written into the configuration.
Sizes are what the repositories showed (rounded; 0: not seen), of models without such a page two bytes a parameter; a fetch goes by the
sizes that the repository itself gives.
Never fetched, whatever a repository holds: pickles (*.bin, *.pth, *.pt, *.ckpt) and code (*.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unime.fetch.need import FetchError, Part, Request, Want, readable


@dataclass(frozen=True)
class Source:
    """One published thing: `size` in bytes, of all of it that can be asked for (0: not known)."""

    repository: str
    kind: str
    revision: str
    licence: str
    size: int
    what: str
    remark: str = ""


CARD = "as its card says"
"""The licence was not seen; the repository's card is read when it is fetched, and what it says is kept in source.json."""

MMEB_TRAIN_IMAGES = {
    "A-OKVQA": 934_000_000,
    "CIRR": 271_000_000,
    "ChartQA": 745_000_000,
    "DocVQA": 12_900_000_000,
    "HatefulMemes": 420_000_000,
    "ImageNet_1K": 3_900_000_000,
    "MSCOCO_t2i": 1_210_000_000,
}
"""Bytes of images_zip/<set>.zip where seen; all twenty are between 0.3 and 13 GB."""

SUGAR_CREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
COCO_ZIPS = "https://s3.amazonaws.com/images.cocodataset.org/zips/"
"""images.cocodataset.org itself has no certificate."""

COCO_VAL2017 = "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
"""SHA-256 of val2017.zip, as many projects have it; the server gives none."""

JUDGES = ("Qwen25VL_7B", "InternVL3_8B", "InternVL3_14B")

SOURCES = {
    "mmeb_train": Source(
        "TIGER-Lab/MMEB-train",
        "dataset",
        "76dd0a440b6d4c02776830a804443fffbb2d0bfa",
        "apache-2.0",
        0,
        "twenty training sets: parquet, and one archive of images a set (0.3 to 13 GB each)",
        "images keep the licences of the data sets that they come from",
    ),
    "mmeb_eval": Source(
        "TIGER-Lab/MMEB-eval",
        "dataset",
        "main",
        "apache-2.0",
        7_130_000_000,
        "36 tasks: parquet, and one archive of images for all (7.13 GB, needed for a single task too)",
        "images keep the licences of the data sets that they come from",
    ),
    "flickr30k": Source(
        "royokong/flickr30k_test",
        "dataset",
        "main",
        CARD,
        0,
        "1,000 images with five captions each, images inside the parquet",
        "images: Flickr's terms, for research only",
    ),
    "coco": Source(
        "royokong/coco_test",
        "dataset",
        "main",
        CARD,
        2_417_000_000,
        "5,000 images with five captions each, images inside the parquet",
        "captions cc-by-4.0, images Flickr's terms",
    ),
    "urban1k": Source(
        "BeichenZhang/Urban1k",
        "dataset",
        "953fcf1d1a3bde031d9424a91a0154e594b5a586",
        "cc-by-nc-4.0",
        80_586_923,
        "1,000 images with a long caption each, one archive",
    ),
    "sharegpt4v": Source(
        "Lin-Chen/ShareGPT4V",
        "dataset",
        "main",
        "cc-by-nc-4.0",
        1_490_000_000,
        "captions; the benchmark is the first 1,000 rows",
        "its images (sam/images/sa_*.jpg) are from SA-1B, which Meta gives out on request: own copy, a zip",
    ),
    "sugar_crepe": Source(
        "RAIVNLab/sugar-crepe",
        "github",
        "main",
        "mit",
        0,
        "seven lists of an image, its caption and a false one",
    ),
    "coco_val2017": Source(
        "images.cocodataset.org/zips",
        "web",
        "",
        "Flickr's terms",
        815_585_330,
        "the images of SugarCrepe",
        "fetched with sugar_crepe",
    ),
    "published_scores": Source(
        "TianchengGu/UniME-V2-Training-Datasets",
        "dataset",
        "main",
        CARD,
        0,
        "mined negatives and judges' scores as published, one JSON file a judge",
    ),
}

_PICKLED = "seen with a pickled adapter only (adapter_model.bin), which is not fetched; convert it, or name a revision that has safetensors"

MODELS = {
    it.repository: it
    for it in (
        Source(
            "Qwen/Qwen2-VL-2B-Instruct", "model", "895c3a49bc3fa70a340399125c650a463535e71c", "apache-2.0", 4_430_000_000, "embedder, 2B"
        ),
        Source(
            "Qwen/Qwen2-VL-7B-Instruct", "model", "eed13092ef92e448dd6875b2a00151bd3f7db0ac", "apache-2.0", 16_600_000_000, "embedder, 7B"
        ),
        Source(
            "Qwen/Qwen2.5-VL-7B-Instruct",
            "model",
            "cc594898137f460bfe9f0759e9844b3ce807cfb5",
            "apache-2.0",
            16_600_000_000,
            "judge, reranker",
        ),
        Source(
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "model",
            "0d50680527681998e456c7b78950205bedd8a068",
            "apache-2.0",
            16_100_000_000,
            "embedder, LLaVA-OneVision",
        ),
        Source("OpenGVLab/InternVL3-8B-hf", "model", "main", CARD, 16_000_000_000, "judge of an ablation"),
        Source("OpenGVLab/InternVL3-14B-hf", "model", "main", CARD, 30_000_000_000, "judge of an ablation"),
        Source("TIGER-Lab/VLM2Vec-Qwen2VL-2B", "model", "main", "apache-2.0", 18_800_000, "adapter for retrieval, 2B", _PICKLED),
        Source("TIGER-Lab/VLM2Vec-Qwen2VL-7B", "model", "main", "apache-2.0", 41_800_000, "adapter for retrieval, 7B", _PICKLED),
        Source("TianchengGu/UniME-V2-Qwen2VL-2B", "model", "main", CARD, 4_430_000_000, "the published embedder, 2B"),
        Source("TianchengGu/UniME-V2-Qwen2VL-7B", "model", "main", CARD, 16_600_000_000, "the published embedder, 7B"),
        Source("TianchengGu/UniME-V2-LLaVA-OneVision-8B", "model", "main", "apache-2.0", 16_100_000_000, "the published embedder, LLaVA"),
        Source("TianchengGu/UniME-V2-reranker-Qwen25VL-7B", "model", "main", CARD, 16_600_000_000, "the published reranker"),
    )
}
"""Models with something to say about them; any other `owner/name` can be fetched too."""


def mmeb_train(name: str, *, instructions: str = "original", revision: str = "") -> Request:
    """One training set: its parquet files and `images.zip`.

    `instructions`: original | diverse_instruction, which of the set's two files; `revision`: '' for the registry's.
    """
    size = MMEB_TRAIN_IMAGES.get(name, 0)
    images = Want(f"images_zip/{name}.zip", to="images.zip", size=size, bounds="" if size else "0.3 to 13 GB")
    return Request("mmeb_train", (_part("mmeb_train", revision, Want(f"{name}/{instructions}-*.parquet", size=10_000_000), images),))


def mmeb_eval(tasks: Sequence[str], *, images: bool = True, revision: str = "") -> Request:
    """`<task>/test-*.parquet` of every task, and `images.zip` for all of them unless `images` is off."""
    wants = [Want(f"{task}/test-*.parquet", to="{path}", size=1_000_000) for task in tasks]
    if images:
        wants.append(Want("images.zip", size=SOURCES["mmeb_eval"].size))
    return Request("mmeb_eval", (_part("mmeb_eval", revision, *wants),))


def crossmodal(benchmark: str, *, revision: str = "") -> Request:
    """One cross-modal benchmark: flickr30k, coco, urban1k, sharegpt4v or sugar_crepe.  Raises FetchError for another name."""
    if benchmark in ("flickr30k", "coco"):
        wants = [Want("data/test-*.parquet", size=SOURCES[benchmark].size)]
    elif benchmark == "urban1k":
        wants = [Want("Urban1k.zip", size=SOURCES[benchmark].size)]
    elif benchmark == "sharegpt4v":
        captions = Want("share-captioner_coco_lcs_sam_1246k_1107.json", size=SOURCES[benchmark].size)
        wants = [captions, Want("*.zip", optional=True, own=True)]
    elif benchmark == "sugar_crepe":
        wants = [Want(f"data/{name}.json", size=200_000) for name in SUGAR_CREPE]
        images = SOURCES["coco_val2017"]
        archive = Want("val2017.zip", size=images.size, sha=COCO_VAL2017)
        pictures = Part(images.repository, images.kind, "", images.licence, (archive,), COCO_ZIPS)
        return Request(benchmark, (_part(benchmark, revision, *wants), pictures))
    else:
        raise FetchError(f"unknown benchmark {benchmark!r}; known: flickr30k, coco, urban1k, sharegpt4v, sugar_crepe")
    return Request(benchmark, (_part(benchmark, revision, *wants),))


def published_scores(judge: str = "Qwen25VL_7B", *, revision: str = "") -> Request:
    """One judge's published scores.  Raises FetchError for an unknown judge."""
    if judge not in JUDGES:
        raise FetchError(f"unknown judge {judge!r}; published are {', '.join(JUDGES)}")
    return Request("published_scores", (_part("published_scores", revision, Want(f"train_data_{judge}_scores.json")),))


def model(repository: str, *, revision: str = "", folder: str = "") -> Request:
    """A model or an adapter, `owner/name`: weights as safetensors, with its JSON, Jinja and text files.

    `folder`: where in the repository it lies, '' for the top; nothing below it is fetched.  Raises FetchError for another form of name.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise FetchError(f"{repository!r} is not the name of a repository; needed owner/name, as in Qwen/Qwen2-VL-7B-Instruct")
    known = MODELS.get(repository, Source(repository, "model", "main", CARD, 0, ""))
    above = f"{folder.strip('/')}/" if folder.strip("/") else ""
    if known.what.startswith("adapter"):  # such a repository may hold merged weights too, which are known to be wrong
        only = Want(f"{above}adapter_model.safetensors", size=known.size), Want(f"{above}adapter_config.json", size=1000)
        return Request("model", (Part(repository, "model", revision or known.revision, known.licence, only),))
    wants = (
        Want(f"{above}*.safetensors", size=known.size),
        Want(f"{above}*.json", size=20_000_000 if known.size else 0),
        Want(f"{above}*.jinja", optional=True),
        Want(f"{above}*.txt", optional=True),
    )
    return Request("model", (Part(repository, "model", revision or known.revision, known.licence, wants),))


def _part(source: str, revision: str, *wants: Want) -> Part:
    it = SOURCES[source]
    return Part(it.repository, it.kind, revision or it.revision, it.licence, wants)


def table() -> str:
    """Everything in the registry as a Markdown table: what, where, licence, size, revision, remark."""
    lines = ["| what | repository | licence | size | revision | remark |", "| --- | --- | --- | ---: | --- | --- |"]
    for it in (*SOURCES.values(), *MODELS.values()):
        above = {"dataset": "https://huggingface.co/datasets/", "model": "https://huggingface.co/", "github": "https://github.com/"}
        link = f"[{it.repository}]({above[it.kind]}{it.repository})" if it.kind in above else it.repository
        size = readable(it.size) if it.size else "?"
        revision = f"`{it.revision[:10]}`" if it.revision else ""
        lines.append(f"| {it.what} | {link} | {it.licence} | {size} | {revision} | {it.remark} |")
    return "\n".join(lines) + "\n"
