"""The presets are whole configurations of the paper's run: valid, planned in full, and different only where the models differ."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from checkouts import ROOT, new_checkout, sh, working_tree

from unime import config
from unime.evaluate.tasks import CROSSMODAL, TASKS
from unime.report.published import PUBLISHED

PRESETS = [path for path in sorted((ROOT / "presets").glob("*.yaml")) if not path.stem.startswith("own-data")]
OWN = ROOT / "presets/own-data-qwen2vl-2b.yaml"

# What `snakemake -n` must list beside the one job of every other rule: 20 training sets, 36 + 11 evaluations.
JOBS = {
    **dict.fromkeys(("fetch_train", "data_train", "embed_train", "retrieve", "judge", "mine"), 20),
    **dict.fromkeys(("data_eval", "evaluate"), 36),
    **dict.fromkeys(("data_crossmodal", "crossmodal"), 11),
    "embed_part": 40,
    "judge_part": 160,
    "fetch_crossmodal": 5,
    "export": 2,
    **dict.fromkeys(("fetch_eval", "train_in_batch", "train_hard_negatives", "train_unime_v2", "train_reranker"), 1),
    **dict.fromkeys(("filter_train", "filter_eval", "mining_report", "report", "settings", "all"), 1),
}
MODELS = {"qwen2vl-2b": 4, "qwen2vl-7b": 3, "llava-onevision-7b": 4}
ABLATIONS = {"judge_more": 2, "mine_more": 2, "ablation_train": 8, "ablation_evaluate": 8, "ablations": 1}


def jobs(text: str) -> dict[str, int]:
    """Rule -> jobs, from a dry run's table."""
    table = text.partition("Job stats:")[2].partition("\n\n")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.M) if name != "total"}


def test_there_is_a_preset_for_each_model_of_the_paper() -> None:
    assert {path.stem for path in PRESETS} == set(MODELS)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_the_papers_run(path: Path) -> None:
    found = config.load(path)
    assert sorted(found.evaluate.tasks) == sorted(name for name, task in TASKS.items() if task.suite == "mmeb")
    assert sorted(found.evaluate.crossmodal) == sorted(name for name, column in CROSSMODAL.items() if column.suite == "paper")
    assert len(found.data.train_sets) == 20 and found.data.train_sets == found.fetch.train_sets and found.data.cap == 50_000
    assert (found.retrieve.k, found.mine.beta, found.mine.negatives, found.mine.interval) == (50, 0.01, 10, 5)
    lora, new = found.train.lora, found.train.unime_v2
    assert (lora.rank, lora.alpha, lora.dropout, lora.dora, lora.init) == (16, 64, 0.1, True, "gaussian")
    assert (lora.targets, found.train.reranker.lora.targets) == ("public", "language")
    assert (new.steps, new.batch, new.warmup, new.decay, new.tau, new.negatives) == (2000, 1024, 200, "linear", 0.02, 8)
    assert (new.smoothing, new.in_batch_negatives, found.train.hard_negatives.in_batch_negatives) == (1e-8, False, False)
    assert found.train.in_batch.mask == "none", "VLM2Vec masks nothing"
    assert "smoothing: 1.0e-8}  # public code" in path.read_text(), "a preset says where a value comes from"
    llava = "llava" in path.stem
    assert (new.lr, found.train.image_size) == ((2e-5, 336) if llava else (1e-4, 672))
    reranker = found.train.reranker
    assert (reranker.lora.rank, reranker.lora.alpha, reranker.lr, reranker.decay, reranker.batch) == (128, 256, 2e-5, "cosine", 64)
    assert (reranker.lora.dropout, reranker.image_size, reranker.max_tokens) == (0.05, 0, 300), "public code"
    assert (reranker.pair_negative, reranker.list_order, reranker.list_negatives, reranker.list_fixed) == ("first", "first", 5, True)
    assert (reranker.prompt, reranker.loss, found.judge.prompt) == ("public", "sequence", "unime")
    assert (found.evaluate.rerank_image_size, found.evaluate.compositional_rerank) == (1344, "pairwise")
    assert reranker.warmup == round(0.03 * reranker.steps) and reranker.steps == 662_000 // 64
    assert (found.seed, found.models.dtype, found.evaluate.rerank, found.evaluate.image_size) == (42, "bfloat16", 10, 1344)
    assert found.models.max_length >= 4096 and found.models.max_length > (7371 if llava else 2304) + 1000  # an image and long text fit
    assert set(found.evaluate.compare.values()) <= set(PUBLISHED)
    tokens = reranker.max_tokens + 2  # of an image and its marks
    assert (found.evaluate.rerank + 1) * (tokens + 400) < found.models.max_length, "a list of pictures fits"
    assert (found.train.reranker.list_negatives + 2) * (tokens + 400) < found.models.max_length
    assert 2 * ((found.judge.image_size // 28) ** 2 + 100) < found.models.max_length
    local = [found.models.base, found.models.judge, found.models.reranker, found.embed.model, found.embed.adapter, *found.export.values()]
    local += [judge.model for judge in found.judge.models.values()]
    assert {folder.removeprefix("models/") for folder in local} == set(found.fetch.models), "every model is fetched, and no other"


def test_presets_differ_only_in_their_models_and_what_goes_with_them() -> None:
    def flat(values: object, key: str = "") -> dict[str, object]:
        if not isinstance(values, dict):
            return {key: values}
        return {name: one for part, below in values.items() for name, one in flat(below, f"{key}.{part}".lstrip(".")).items()}

    values = [flat(yaml.safe_load(path.read_text())) for path in PRESETS]
    keys = {key for one in values for key in one}
    differ = {key for key in keys if len({repr(one.get(key)) for one in values}) > 1}
    known = r"fetch\.models\..*|models\.base|export\.unime_v2|evaluate\.compare.*|models\.max_length|train\.(image_size|\w+\.(lr|micro))"
    assert differ and not {key for key in differ if not re.fullmatch(known, key)}


def test_the_preset_for_own_data_with_a_real_model_follows_the_rows_and_fetches_what_it_opens() -> None:
    found, nano = config.load(OWN), config.load(ROOT / "presets/own-data.yaml")
    assert (found.data.root, found.data.train_sets, found.evaluate.tasks) == ("data/own", ["pictures"], ["pictures"])
    assert (found.data.root, found.data.train_sets, found.evaluate.tasks) == (nano.data.root, nano.data.train_sets, nano.evaluate.tasks)
    assert (found.embed.model, found.embed.adapter) == (found.models.base, "results/train/in_batch")
    local = [found.models.base, found.models.judge, found.models.reranker, found.embed.model, *found.export.values()]
    assert {folder.removeprefix("models/") for folder in local} == set(found.fetch.models)
    published = config.load(ROOT / "presets/qwen2vl-2b.yaml").fetch.models
    assert all(published[name] == one for name, one in found.fetch.models.items()), "the commits of the paper's preset"
    for kind in ("in_batch", "hard_negatives", "unime_v2", "reranker"):
        own = getattr(found.train, kind)
        assert own.follows_rows
        for rows in (3, 163, 5_000, 1_000_000):
            settings = own.resolved(rows)
            assert settings.batch <= rows and settings.warmup < settings.steps <= 2000, (kind, rows)
    embedders = [found.train.in_batch, found.train.hard_negatives, found.train.unime_v2]
    assert len({(one.resolved(2000).steps, one.resolved(2000).batch) for one in embedders}) == 1, "rows of the table see equally much"
    assert found.train.image_size == found.evaluate.image_size == found.embed.image_size > 0, "a photograph as it is may be too long"
    tokens = found.train.reranker.max_tokens + 2
    assert (found.evaluate.rerank + 1) * (tokens + 400) < found.models.max_length, "a list of pictures fits"
    assert 2 * ((found.judge.image_size // 28) ** 2 + 400) < found.models.max_length


def test_own_data_with_a_real_model_is_one_command_and_further_exports_are_made_on_request(tmp_path: Path) -> None:
    made = new_checkout(tmp_path / "own", yaml.safe_load(OWN.read_text(encoding="utf-8")))
    for part in ("train", "eval"):
        folder = made.root / "data/own" / part / "pictures"
        folder.mkdir(parents=True)
        rows = [{"query_text": f"question {number}", "positive_text": f"answer {number}"} for number in range(5)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned = jobs(made.sh("snakemake -n --profile workflow/profiles/gpu"))
    assert (planned["fetch_model"], planned["export"], planned["train_in_batch"], planned["judge"]) == (2, 2, 1, 1)
    assert "fetch_train" not in planned and "suite" not in planned
    said = made.sh("snakemake -n results/export/in_batch", code=1)
    assert "error: export in config.yaml does not name 'in_batch' (it names: unime_v2, reranker); add it there" in said
    for name in ("in_batch", "hard_negatives"):
        made.configure(f"export.{name}", "models/Qwen2-VL-2B-Instruct")
        assert jobs(made.sh(f"snakemake -n results/export/{name}"))["export"] == 1
    assert jobs(made.sh("snakemake -n"))["export"] == 4


def test_a_dry_run_with_the_slurm_profile_shows_what_each_job_asks_for(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "presets/qwen2vl-7b.yaml").read_text())
    values["train"] |= {"nodes": 2, "gpus_per_node": 4}
    folder = working_tree(tmp_path / "cluster", values)
    sh("git init -q", folder)
    text = sh("snakemake -n --profile workflow/profiles/slurm", folder)
    assert jobs(text) == JOBS | {"fetch_model": MODELS["qwen2vl-7b"]}
    asked: dict[str, set[str]] = {}
    for rule, block in re.findall(r"^ *(?:local)?rule (\w+):\n((?: {4}.*\n)+)", text, flags=re.M):
        found = re.search(r"^ *resources: (.+)$", block, flags=re.M)
        asked.setdefault(rule, set()).add(re.sub(r"tmpdir=[^,]+(, )?|, mem=[^,]+|, disk[^,]*", "", found[1] if found else ""))
    memory, minutes = values["jobs"]["memory"], values["jobs"]["minutes"]

    def of(rule: str) -> dict[str, str]:
        (one,) = asked[rule]  # the same for all jobs of a rule
        return dict(part.split("=", 1) for part in one.split(", "))

    for rule in ("judge_part", "retrieve", "train_unime_v2", "evaluate", "mine", "data_train"):
        assert of(rule)["mem_mb"] == str(memory.get(rule.removesuffix("_part"), memory["default"])), rule
        assert of(rule)["runtime"] == str(minutes.get(rule.removesuffix("_part"), minutes["default"])), rule
    for rule in ("judge_part", "embed_part", "evaluate", "crossmodal"):
        assert (of(rule)["gpu"], of(rule)["cpus_per_task"]) == ("1", "8"), rule
    assert {of(rule).get("gpu", "0") for rule in ("judge", "embed_train", "mine", "report")} == {"0"} and of("retrieve")["gpu"] == "1"
    assert {of(rule)["nodes"] for rule in ("judge", "judge_part")} == {"1"}
    training = of("train_unime_v2")
    assert (training["nodes"], training["tasks"], training["gres"], training["mpi"]) == ("2", "2", "gpu:4", "srun")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("nodes: 2", "nodes: 1"))
    (alone,) = re.findall(r"^rule train_unime_v2:(?:\n .*)*?\n +resources: (.+)$", sh("snakemake -n", folder), flags=re.M)
    assert {"nodes=1", "gpu=4"} <= set(alone.split(", ")), "four GPUs of one node, not two of two"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_dry_run_lists_the_papers_whole_plan(name: str, tmp_path: Path) -> None:
    folder = working_tree(tmp_path / name, yaml.safe_load((ROOT / "presets" / f"{name}.yaml").read_text()))
    sh("git init -q && git add -A && git -c user.name=test -c user.email=test@example.org commit -qm test", folder)
    assert jobs(sh("snakemake -n", folder)) == JOBS | {"fetch_model": MODELS[name]}
    more = jobs(sh("snakemake -n results/ablations.csv", folder))
    assert {rule: count for rule, count in more.items() if rule.startswith("ablation") or rule.endswith("_more")} == ABLATIONS
    assert more["fetch_model"] == MODELS[name] + 2, "the ablations' judges too"


def test_every_setting_that_the_docs_on_the_public_code_name_exists():
    text = (ROOT / "docs" / "public-code.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:data|models|judge|train|mine|evaluate)\.[a-z_0-9.]+)", text))
    assert len(named) > 15
    whole = config.load(ROOT / "config.yaml")
    for name in sorted(named):
        config.at(whole, name.rstrip("."))
