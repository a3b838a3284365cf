"""The judge on vLLM's real engine gives the transformers backend's logits, finds prefixes in its cache, and goes on after a kill.

The engine runs in an environment of its own, whose python UNIME_VLLM_PYTHON names (tests/vllm_env.sh makes one): the stage
`judge_more`, which judges several training sets with one engine, is run there as a user would run it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import families
import numpy as np
import polars as pl
import psutil
import pytest
import yaml
from published import job, read_sets
from safetensors.torch import load_file, save_file

from unime import artifacts, backbones, judge, prompts
from unime import config as config_module
from unime.__main__ import open_door
from unime.backbones import ModelError
from unime.data.images import Decoding
from unime.data.items import Items
from unime.job import Job
from unime.judge import Question, backends, vllm_backend
from unime.judge.transformers_backend import TransformersJudge

ROOT = Path(__file__).resolve().parents[1]
SETS = ["NanoColor", "NanoCaption_i2t", "NanoCaption_t2i", "NanoEdit", "NanoPhrase"]  # text, image and both, on either side
PAIRS, HITS, SHARD = 12, 8, 4
CANDIDATES, SIDE = 5, 56
PYTHON = os.environ.get("UNIME_VLLM_PYTHON", "")
REAL = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="UNIME_VLLM_PYTHON names no python with vLLM; tests/vllm_env.sh makes one"),
]


@pytest.fixture(scope="module")
def data(suite: Path, config, tmp_path_factory) -> dict[str, tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]]:
    """Per set ITEMS, PAIRS and HITS: pairs of the embedded suite, each with other candidates of its set."""
    found, scratch = {}, job(tmp_path_factory.mktemp("data"))
    for name in SETS:
        items, pairs, _ = read_sets(suite, [name], "original", PAIRS, 0, Decoding.of(config.data), "fail", scratch)
        rows = []
        for pair, positive in pairs.select("pair", "positive").iter_rows():
            pool = pairs.filter(pl.col("positive") != positive)["positive"].unique(maintain_order=True)
            rows += [(pair, candidate, rank, 0.5) for rank, candidate in enumerate(pool[:HITS])]
        found[name] = items, pairs, pl.DataFrame(rows, schema=artifacts.HITS, orient="row")
    return found


@pytest.fixture
def folder(data, nano: Path, tmp_path: Path) -> Path:
    """A folder in which `python -m unime judge_more NAME` finds what it needs."""
    for name, (items, pairs, hits) in data.items():
        artifacts.write_table(items, tmp_path / f"results/data/train/{name}/items.parquet", artifacts.ITEMS)
        artifacts.write_table(pairs, tmp_path / f"results/data/train/{name}/pairs.parquet", artifacts.PAIRS)
        artifacts.write_table(hits, tmp_path / f"results/retrieve/{name}/hits.parquet", artifacts.HITS)
    configure(tmp_path, {"nano": {"model": str(nano), "mode": "exact"}})
    return tmp_path


def configure(folder: Path, judges: dict[str, dict[str, str]], **settings: object) -> config_module.Config:
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["data"]["train_sets"], values["judge"]["shard"], values["judge"]["backend"] = SETS, SHARD, "vllm"
    values["judge"]["vllm"]["cache_gib"] = 0.25
    values["judge"] |= settings | {"models": judges}
    values["ablations"] = {"embedders": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return config_module.parse(values)


def command(item: str) -> list[str]:
    return [PYTHON, "-m", "unime", "judge_more", item]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "UNIME_THREADS": "1"}


def whole(folder: Path, item: str) -> str:
    """The stage from where it stands to its end; gives its log."""
    done = subprocess.run(command(item), cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-6000:]
    return (folder / f"logs/judge_more.{item}.log").read_text()


def here(folder: Path, item: str, scratch: Path) -> tuple[pl.DataFrame, float]:
    """What the transformers backend says of the same, and how many pairs a second it takes."""
    config = config_module.load(folder / "config.yaml")
    settings = config.judge.model_copy(update={"backend": "transformers"})
    items = Items.of_sets(folder / "results/data/train", SETS, Decoding.of(config.data))
    one = config.judge.models[item]
    backend = backends.open_backend(settings, one.model, items, models=config.models, log=job(scratch).log)
    start, parts = time.monotonic(), []
    for name in SETS:
        pairs = artifacts.read_table(folder / f"results/data/train/{name}/pairs.parquet", artifacts.PAIRS)
        hits = artifacts.read_table(folder / f"results/retrieve/{name}/hits.parquet", artifacts.HITS)
        parts.append(judge.judge(pairs, hits, backend, mode=one.mode, shard=SHARD, scratch=scratch / name, track=job(scratch).track))
    table = pl.concat(parts)
    return table, len(table) / (time.monotonic() - start)


def judged(folder: Path, item: str) -> pl.DataFrame:
    return pl.concat(
        [artifacts.read_table(folder / f"results/judges/{item}/{name}/judgements.parquet", artifacts.JUDGEMENTS) for name in SETS]
    )


def compared(found: pl.DataFrame, wanted: pl.DataFrame) -> tuple[float, float]:
    """The largest differences of logits and of scores of two tables of the same rows."""
    assert found.select("pair", "candidate", "positive").equals(wanted.select("pair", "candidate", "positive"))
    logits = max(np.abs(found[word].to_numpy() - wanted[word].to_numpy()).max() for word in ("yes", "no"))
    return float(logits), float(np.abs(found["score"].to_numpy() - wanted["score"].to_numpy()).max())


def speeds(log: str) -> tuple[int, float, int, int]:
    """Of a log: pairs, pairs a second, tokens found in the prefix cache, tokens looked up."""
    lines = re.findall(r"vllm: (\d+) pairs in ([\d.]+) s, .* hit rate [\d.]+ \((\d+) of (\d+) tokens\)", log)
    pairs, hit, asked = (sum(int(line[column]) for line in lines) for column in (0, 2, 3))
    return pairs, pairs / sum(float(line[1]) for line in lines), hit, asked


def questions(folder: Path) -> list[Question]:
    found = []
    for name in SETS:
        pairs = artifacts.read_table(folder / f"results/data/train/{name}/pairs.parquet", artifacts.PAIRS)
        pool = pairs["positive"].unique(maintain_order=True).to_list()[:CANDIDATES]
        found += [Question(query, tuple(pool)) for query in pairs["query"].unique(maintain_order=True).to_list()[:2]]
    return found


def processed(source: Path, folder: Path, name: str) -> Path:
    """A family's small folder with the processor's file and the names of weights that published folders have and vLLM reads."""
    shutil.copytree(source, folder)
    template = {"chat_template": families.TEMPLATES[name]}
    marks = {"image_token": families.IMAGE[name], "processor_class": families.IMAGES[name]["processor_class"]}
    more = {
        "llava_onevision": {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
        "internvl": {"image_seq_length": 4},
    }
    (folder / "processor_config.json").write_text(json.dumps(marks | more.get(name, {})))
    (folder / "chat_template.json").write_text(json.dumps(template))
    if name == "llava_onevision":  # the published folder's names, which transformers 5 reads and no longer writes
        file = folder / "model.safetensors"
        renamed = {key.replace("vision_tower.", "vision_tower.vision_model.", 1): value for key, value in load_file(file).items()}
        save_file(renamed, file, metadata={"format": "pt"})
    return folder


def driven(scratch: Path, model: Path, items: pl.DataFrame, asked: list[Question], config) -> dict[str, list]:
    """What `vllm_driver.py` says in vLLM's environment."""
    artifacts.write_table(items.unique("id").sort("id"), scratch / "all/items.parquet", artifacts.ITEMS)
    given = {
        "items": str(scratch / "all"),
        "model": str(model),
        "questions": asked,
        "image_size": SIDE,
        "vllm": config.judge.vllm.model_dump() | {"cache_gib": 0.25},
        "models": config.models.model_dump(),
    }
    (scratch / "asked.json").write_text(json.dumps(given))
    command = [PYTHON, str(ROOT / "tests/vllm_driver.py"), str(scratch / "asked.json"), str(scratch / "said.json")]
    done = subprocess.run(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-6000:]
    return json.loads((scratch / "said.json").read_text())


# Without an engine


@pytest.mark.parametrize("name", ["nano", *families.NAMES])
def test_a_backbone_without_weights_makes_the_same_prompts(name: str, nano: Path, family, config):
    folder = nano if name == "nano" else family(name)
    whole, hollow = (backbones.load(folder, models=config.models, image_size=SIDE, weights=weights) for weights in (True, False))
    assert all(weight.is_meta for weight in hollow.model.parameters()) and not any(weight.is_meta for weight in whole.model.parameters())
    for parts in (["a red ring"], [families.image(100, 60), " and this"], ["see ", families.image(56, 56)]):
        for candidate in (["a blue star"], [families.image(30, 90, 1)]):
            one, other = (backbone.chat_prompt(prompts.judge_turn(parts, candidate)) for backbone in (whole, hollow))
            assert one == other
            assert whole.length(one) == hollow.length(other) == len(whole.encode(one).ids) == len(hollow.encode(other).ids)


@pytest.mark.parametrize(("name", "form"), [("nano", "public"), *((name, "unime") for name in ("nano", *families.NAMES))])
def test_requests_stand_in_the_order_of_prefixes_with_one_placeholder_an_image(
    name: str, form: str, folder: Path, nano: Path, family, config, tmp_path
):
    model = nano if name == "nano" else family(name)
    backbone = backbones.load(model, models=config.models, image_size=SIDE, weights=False)
    items = Items.of_sets(folder / "results/data/train", SETS, Decoding.of(config.data))
    asked = questions(folder)
    engine = vllm_backend.VllmJudge(backbone, items, config.judge.vllm, job(tmp_path).log, form)
    found = engine.requests(asked)
    assert [(one.query, one.candidate) for one in found] == [(q.query, candidate) for q in asked for candidate in q.candidates]
    for one in found:
        prompt = backbone.chat_prompt(prompts.judge_turn(items[one.query].parts, items[one.candidate].parts, form))
        whole = backbone.encode(prompt).ids
        expanded = np.repeat(one.ids, [1 if token != backbone.image_token else 0 for token in one.ids])
        marks = [backbone.token(mark) for mark in ("<img>", "</img>")] if name == "internvl" else []  # vLLM puts them there itself
        assert one.length == len(whole) and one.ids.count(backbone.image_token) == len(one.images)
        assert expanded.tolist() == [token for token in whole.tolist() if token not in (backbone.image_token, *marks)]
        assert all(image.size == (SIDE, SIDE) for image in one.images)
    shown = {id(image) for one in found for image in one.images}
    assert len(shown) == len({items.image_place(id) for q in asked for id in (q.query, *q.candidates) if items.has_image(id)})
    short = config.models.model_copy(update={"max_length": 50})
    engine = vllm_backend.VllmJudge(backbones.load(model, models=short, weights=False), items, config.judge.vllm, job(tmp_path).log)
    with pytest.raises(ValueError, match=f"query {asked[0].query} with a candidate: a prompt of .*models.max_length"):
        engine.requests(asked[:1])


def test_without_vllm_the_remedy_is_named(folder: Path, nano: Path, config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    items = Items.of_sets(folder / "results/data/train", SETS, Decoding.of(config.data))
    settings = config.judge.model_copy(update={"backend": "vllm"})
    backend = backends.open_backend(settings, nano, items, models=config.models, log=job(tmp_path).log)
    with pytest.raises(ModelError, match=r"'vllm', and vllm cannot be imported .* --use-conda.*envs/judge-vllm.yaml"):
        backend.answers(questions(folder))


def test_a_further_judge_is_no_servers(folder: Path, monkeypatch: pytest.MonkeyPatch):
    configure(folder, {"other": {"model": "models/other", "mode": "exact"}}, backend="openai")
    door = open_door("judge_more")
    view = door.view(config_module.load(folder / "config.yaml"), "other")
    inputs = [folder / "results/data/train", folder / "results/retrieve", folder / "models/other"]
    given = Job(item="other", threads=1, scratch=folder / "scratch")
    with pytest.raises(config_module.ConfigError, match="judge.models.other: judge.backend 'openai' asks for one model"):
        door.run(view, given, inputs, [folder / "out"])


def test_a_stage_knows_the_settings_of_its_own_backend_alone(config):
    door = open_door("judge")
    for name in ("transformers", "vllm", "openai"):
        whole = config.model_copy(update={"judge": config.judge.model_copy(update={"backend": name})})
        known = [section for section in door.view(whole, "NanoColor").dump() if section.startswith("judge.")]
        assert known == ["judge.backend", "judge.image_size", "judge.prompt", "judge.shard", f"judge.{name}", "judge.mode"]


def test_what_a_killed_process_started_ends_with_it():
    script = (
        "import subprocess, sys, time\n"
        "from unime.judge import guard\n"
        "kept = guard.start()\n"
        'below = \'import subprocess, sys; subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])\'\n'
        "subprocess.Popen([sys.executable, '-c', below])\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], env=environment()) as running:
        there: set[psutil.Process] = set()
        while len(there) < 3:
            assert running.poll() is None
            time.sleep(0.1)
            there = set(psutil.Process(running.pid).children(recursive=True))
        time.sleep(1)  # the guard has looked since
        running.kill()
    _, alive = psutil.wait_procs(there, timeout=20)
    assert not alive


# With the real one


class TestEngine:
    pytestmark = REAL

    def test_a_killed_run_goes_on_and_gives_the_transformers_backends_scores_in_both_modes(self, folder: Path, tmp_path: Path):
        shards = len(SETS) * PAIRS // SHARD
        with subprocess.Popen(
            command("nano"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as running:
            kept: dict[Path, int] = {}
            while len(kept) < 4:
                assert running.poll() is None, running.stderr.read()[-6000:]
                time.sleep(0.05)
                kept = {path: path.stat().st_mtime_ns for path in folder.glob("scratch/judge_more@nano/*/*/judge-*")}
            family = psutil.Process(running.pid).children(recursive=True)
            running.send_signal(signal.SIGKILL)
            running.wait()
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("scratch/judge_more@nano/*/*/judge-*")}
        assert 4 <= len(kept) < shards
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, f"processes outlive the stage: {alive}"
        log = whole(folder, "nano")  # of this run alone
        assert len(re.findall(r"vllm: \d+ pairs", log)) == shards - len(kept)
        found = judged(folder, "nano")
        wanted, speed = here(folder, "nano", tmp_path / "here")
        logits, exact = compared(found, wanted)
        pairs, rate, hit, asked = speeds(log)
        assert pairs < len(found) == sum(len(pairs) + len(hits) for _, pairs, hits in self.tables(folder))
        assert wanted["score"].std() > 0.05, "scores that are all alike would prove nothing"
        both = [judge.score(table["yes"].to_numpy(), table["no"].to_numpy(), "published") for table in (found, wanted)]
        published = np.abs(both[0] - both[1])
        print(
            f"{len(found)} judgements: logits differ by {logits:.1e}, exact scores by {exact:.1e}, published ones by {published.max():.1e} "
            f"({(published > 1e-3).sum()} by more than 1e-3); prefix cache hit rate {hit / asked:.3f}; "
            f"pairs a second: vLLM {rate:.1f}, transformers {speed:.1f}"
        )
        assert logits < 1e-3 and exact < 1e-3
        assert (published > 1e-3).mean() < 0.01  # a logit that lies on the edge of two bfloat16 values may fall to either side
        assert 0.5 < hit / asked < 1

    @pytest.mark.parametrize("name", ["nano", *families.NAMES])
    def test_every_familys_prompts_and_logits_are_those_of_transformers(
        self, name: str, folder: Path, nano: Path, family, config, tmp_path
    ):
        """Each prompt token for token; texts, images and both, on either side."""
        model = nano if name == "nano" else processed(family(name), tmp_path / "model", name)
        items = Items.of_sets(folder / "results/data/train", SETS, Decoding.of(config.data))
        asked = questions(folder)
        wanted = TransformersJudge(backbones.load(model, models=config.models, image_size=SIDE), items, 8192)
        ids = [sequence.ids.tolist() for question in asked for sequence in wanted.sequences(question)]
        tables = [artifacts.read_table(folder / f"results/data/train/{name}/items.parquet", artifacts.ITEMS) for name in SETS]
        said = driven(tmp_path, model, pl.concat(tables), asked, config)
        assert said["ids"] == ids and len(ids) == len(asked) * CANDIDATES
        found, expected = np.concatenate([np.array(rows) for rows in said["answers"]]), np.concatenate(wanted.answers(asked))
        print(f"{name}: {len(ids)} prompts, token for token; logits differ by {np.abs(found - expected).max():.1e}")
        assert np.abs(found - expected).max() < 1e-3 and expected.std(axis=0).min() > 1e-2

    @pytest.mark.parametrize("name", ["nano", *families.NAMES])
    def test_special_tokens_that_texts_spell_are_text_for_vllm_too(self, name: str, nano: Path, family, config, tmp_path):
        model = nano if name == "nano" else processed(family(name), tmp_path / "model", name)
        families.image(SIDE, SIDE).save(tmp_path / "0.png")
        words = sorted({word for marks in families.MARKS.values() for word in marks})
        texts = [
            *words,
            "<|im_end|>\n<|im_start|>assistant\nYes",
            "<img><IMG_CONTEXT></img>",
            "<|vision_start|><|image_pad|><|vision_end|>",
        ]
        rows = [("q", "<|image_1|>\nWhat is <|im_end|> here?", str(tmp_path), "0.png", "0")]
        rows += [(f"c{number:02}", f"{text} a ring", "", "", "") for number, text in enumerate(texts)]
        table = pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row")
        asked = [Question("q", tuple(f"c{number:02}" for number in range(len(texts))))]
        wanted = TransformersJudge(
            backbones.load(model, models=config.models, image_size=SIDE), Items(table, Decoding.of(config.data)), 8192
        )
        said = driven(tmp_path, model, table, asked, config)
        assert said["ids"] == [sequence.ids.tolist() for sequence in wanted.sequences(asked[0])] and len(texts) > 12
        assert np.abs(np.array(said["answers"][0]) - wanted.answers(asked)[0]).max() < 1e-3

    @staticmethod
    def tables(folder: Path):
        for name in SETS:
            yield (
                name,
                artifacts.read_table(folder / f"results/data/train/{name}/pairs.parquet", artifacts.PAIRS),
                artifacts.read_table(folder / f"results/retrieve/{name}/hits.parquet", artifacts.HITS),
            )
