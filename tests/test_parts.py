"""Jobs that share a stage's shards: together they make each once, and what is put together is what one job would have made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from checkouts import ROOT, SLOW, Checkout, narrow, run_once, sh
from published import job, read_sets
from test_door import CODE, made

from unime import artifacts, backbones, config, door, judge, shards
from unime.data.images import Decoding
from unime.data.items import Items
from unime.embed import embed
from unime.job import Job, Part, PartMade, StageError
from unime.judge import transformers_backend


@pytest.fixture(scope="module")
def data(suite: Path, config, tmp_path_factory) -> tuple[Items, pl.DataFrame]:
    names = ["NanoColor", "NanoCaption_t2i"]
    found, pairs, _ = read_sets(suite, names, "original", 8, 0, Decoding.of(config.data), "fail", job(tmp_path_factory.mktemp("items")))
    return Items(found, Decoding(10**6)), pairs


def never() -> backbones.Backbone:
    raise AssertionError("no shard is missing: no model is to be opened")


def test_a_part_is_written_as_it_is_read():
    assert Part.parse("2-of-8") == Part(2, 8) and str(Part(2, 8)) == "2-of-8"
    for text in ("", "0-of-2", "3-of-2", "1", "1-of-", "a-of-b"):
        with pytest.raises(ValueError, match="is no part; write e.g. 2-of-8"):
            Part.parse(text)


def test_parts_make_every_shard_once(tmp_path: Path):
    log: list[int] = []

    def go(part: Part | None) -> list[int]:
        return shards.run(
            range(7),
            tmp_path,
            "x",
            make=lambda number: log.append(number) or number,
            write=lambda number, place: place.write_text(str(number)),
            read=lambda place: int(place.read_text()),
            track=lambda some, total, label: some,
            part=part,
        )

    for number, share in ((2, [1, 4]), (1, [0, 3, 6]), (3, [2, 5])):
        with pytest.raises(PartMade, match=f"^{len(share)} of its {len(share)} shards, 0 were there"):
            go(Part(number, 3))
        assert log[-len(share) :] == share
    with pytest.raises(PartMade, match="^0 of its 3 shards, 3 were there"):
        go(Part(1, 3))
    assert go(None) == list(range(7)) and sorted(log) == list(range(7))


def test_embeddings_of_parts_are_those_of_one_job_and_the_last_opens_no_model(data, nano: Path, config, tmp_path: Path):
    items, _ = data

    def go(backbone, place: str, part: Part | None = None):
        scratch, track = tmp_path / place, job(tmp_path).track
        return embed(items.ids, items, backbone, batch_tokens=400, shard=5, scratch=scratch, track=track, part=part)

    backbone = backbones.load(nano, models=config.models)
    whole = go(backbone, "whole")
    for number in (1, 2):
        with pytest.raises(PartMade):
            go(lambda: backbone, "parts", Part(number, 2))
    ids, vectors = go(never, "parts")
    assert len(ids) > 10 and ids == whole[0] and vectors.tobytes() == whole[1].tobytes()


def test_judgements_of_parts_are_those_of_one_job_and_the_last_opens_no_model(data, nano: Path, config, tmp_path: Path):
    items, pairs = data
    rows = [
        (pair, other, rank, 0.5) for pair in pairs["pair"] for rank, other in enumerate(pairs["positive"].unique(maintain_order=True)[:4])
    ]
    hits = pl.DataFrame(rows, schema=artifacts.HITS, orient="row")
    engine = transformers_backend.TransformersJudge(backbones.load(nano, models=config.models), items, 8192)

    def go(backend, place: str, part: Part | None = None) -> pl.DataFrame:
        return judge.judge(pairs, hits, backend, mode="exact", shard=3, scratch=tmp_path / place, track=job(tmp_path).track, part=part)

    whole = go(engine, "whole")
    for number in (1, 2, 3):
        with pytest.raises(PartMade):
            go(judge.Later(lambda: engine), "parts", Part(number, 3))
    found = go(judge.Later(never), "parts")
    assert found.equals(whole) and found["score"].n_unique() > 10


# The frame around a stage


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    (tmp_path / "in").write_text("a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def work(view: config.View, told: Job, inputs: list[Path], outputs: list[Path]) -> str:
    numbers = shards.run(
        range(4),
        told.scratch,
        "x",
        make=int,
        write=lambda number, place: place.write_text(str(number)),
        read=lambda place: int(place.read_text()),
        track=told.track,
        part=told.part,
    )
    outputs[0].write_text(json.dumps(numbers))
    return "whole"


def enter(run=work, part: str | None = None, **more: object) -> str:
    os.environ.pop("UNIME_PART", None)
    if part:
        os.environ["UNIME_PART"] = part
    try:
        return door.enter("toy", made(run, parts=True, **more), None, Path("config.yaml"), CODE)
    finally:
        os.environ.pop("UNIME_PART", None)


def test_a_part_leaves_its_shards_and_no_output_and_the_whole_takes_them(here: Path):
    assert enter(part="2-of-2") == "made part 2-of-2 of out/table: 2 of its 2 shards, 0 were there"
    assert not list((here / "out").glob("*")) if (here / "out").exists() else True
    assert sorted(path.name for path in here.glob("scratch/toy/*/*")) == ["x-000001-of-000004", "x-000003-of-000004"]
    stamps = {path.name: path.stat().st_mtime_ns for path in here.glob("scratch/toy/*/*")}

    def looks(view, told, inputs, outputs):
        said = work(view, told, inputs, outputs)
        assert all((told.scratch / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
        return said

    assert enter(looks) == "made out/table: whole"
    assert json.loads((here / "out/table").read_text()) == [0, 1, 2, 3] and not list(here.glob("scratch/toy*"))


def test_a_part_that_another_job_makes_is_waited_for_and_found_made(here: Path):
    """After a lost login node the same part is submitted again while the first job still runs."""
    lock = here / "scratch/locks/toy.1-of-2"
    lock.parent.mkdir(parents=True)
    hold = "import fcntl, sys, time; file = open(sys.argv[1], 'a+'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); time.sleep(1.5)"
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        start = time.monotonic()

        def run(*_: object) -> str:
            assert time.monotonic() - start > 1
            raise PartMade("0 of its 2 shards, 2 were there")

        assert enter(run, part="1-of-2").endswith("0 of its 2 shards, 2 were there")


def test_a_part_whose_input_changes_meanwhile_leaves_nothing(here: Path):
    def meddles(view, told, inputs, outputs):
        Path("in").write_text("b")
        return work(view, told, inputs, outputs)

    with pytest.raises(StageError, match="in changed while toy.1-of-2 was running"):
        enter(meddles, part="1-of-2")
    assert not list(here.glob("scratch/toy/*/*"))


def test_only_stages_with_shards_have_parts(here: Path):
    with pytest.raises(StageError, match="toy has no shards that several runs could share; unset it"):
        os.environ["UNIME_PART"] = "1-of-2"
        try:
            door.enter("toy", made(work), None, Path("config.yaml"), CODE)
        finally:
            del os.environ["UNIME_PART"]
    with pytest.raises(StageError, match="UNIME_PART: '9-of-2' is no part"):
        enter(part="9-of-2")


# The workflow


@pytest.mark.slow
@SLOW[1]
def test_parts_are_planned_where_a_stage_is_stale_and_only_there(tmp_path: Path, tmp_path_factory):
    folder = tmp_path / "parts"
    shutil.copytree(run_once("narrow", narrow(), tmp_path_factory), folder, symlinks=True)
    checkout, target = Checkout(folder), "results/judge/NanoColor"
    checkout.configure("jobs.parts", {"embed_train": 1, "judge": 3})
    assert "Nothing to be done" in sh("snakemake -n", folder), "parts alone make nothing stale"
    checkout.configure("judge.mode", "published")
    text = sh(f"snakemake -n {target}", folder)
    assert text.count("rule judge_part:") == 3 and "rule embed_part:" not in text
    sh(f"snakemake --cores all {target}", folder)
    logs = {number: (folder / f"logs/dvc/judge.NanoColor.{number}-of-3.log").read_text() for number in (1, 2, 3)}
    assert all(f"made part {number}-of-3 of {target}" in text for number, text in logs.items())
    assert "Nothing to be done" in sh(f"snakemake --cores all {target}", folder)
    checkout.configure("judge.mode", "exact")
    assert sh(f"snakemake -n {target}", folder).count("rule judge_part:") == 3
    checkout.computed()
    sh(f"snakemake --cores all {target}", folder)  # what DVC has is neither judged again nor shared out
    assert checkout.computed() == set()
    assert "kept judge@NanoColor" in (folder / "logs/dvc/judge.NanoColor.1-of-3.log").read_text()
    checkout.configure("jobs.parts", {"embed_train": 1, "judge": 5})
    assert "Nothing to be done" in sh(f"snakemake -n {target}", folder)
