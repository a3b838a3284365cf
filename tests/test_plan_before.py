"""The plan before the data are read, where names meet, and of what is stale alone."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from checkouts import ROOT, sh, working_tree
from published import task, train_set

from unime import artifacts
from unime import config as config_module
from unime.__main__ import main
from unime.data import sets
from unime.data.images import Decoding
from unime.job import Job
from unime.plan import counts, raw, stale

ROWS = [{"query_text": f"question {number // 2}", "positive_text": f"answer {number}"} for number in range(9)]


def rows_of(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano: Path) -> dict:
    """The preset for own data in a folder of its own, whose training set and task have one name."""
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "presets/own-data.yaml").read_text())
    values["data"]["root"] = "own"
    for name in ("base", "judge", "reranker"):
        values["models"][name] = str(nano)
    values["export"] = {}
    values["embed"]["model"], values["models"]["device"] = str(nano), "cpu"
    for kind in ("in_batch", "hard_negatives", "unime_v2", "reranker"):
        values["train"][kind] |= {"steps": 2, "batch": 4, "micro": 2, "warmup": 1}
    Path("config.yaml").write_text(yaml.safe_dump(values))
    rows_of(tmp_path / "own/train/pictures", ROWS)
    rows_of(tmp_path / "own/eval/pictures", [*ROWS[:3], {**ROWS[3], "candidates": [{"text": "no"}, {"text": "never"}]}])
    return values


def read_data(folder: Path) -> None:
    """What the data stages write."""
    job, data = Job(None, 1, folder / "scratch", logging.getLogger("test")), folder / "results/data"
    items, pairs, _, labels = sets.read_train("own", "pictures", "original", 50, 1, Decoding(10**6), "fail", job)
    artifacts.write_table(items, data / "train/pictures/items.parquet", artifacts.ITEMS)
    artifacts.write_table(pairs, data / "train/pictures/pairs.parquet", artifacts.PAIRS)
    artifacts.write_table(labels, data / "train/pictures/labels.parquet", artifacts.LABELS)
    items, queries, _ = sets.read_eval("own", "pictures", Decoding(10**6), "fail", job)
    artifacts.write_table(items, data / "eval/pictures/items.parquet", artifacts.ITEMS)
    artifacts.write_table(queries, data / "eval/pictures/queries.parquet", artifacts.TASKS)


def planned(*arguments: str) -> dict[str, dict]:
    assert main(["plan", "--json", "plan.json", *arguments]) == 0
    return {row["stage"]: row for row in json.loads(Path("plan.json").read_text())["rows"]}


def test_a_training_set_and_a_task_may_have_one_name(own: dict, tmp_path: Path) -> None:
    read_data(tmp_path)
    rows = planned("--no-calibrate")
    assert {row["source"] for row in rows.values()} <= {"counted", "at most"}
    assert rows["embed_train"]["tokens"] > 0 and rows["evaluate"]["tokens"] > 0
    assert rows["embed_train"]["tokens"] / rows["embed_train"]["count"] != rows["evaluate"]["tokens"] / rows["evaluate"]["count"]
    assert all(row["seconds"] for row in planned("--calibrate", "0.1").values())


def test_rows_are_counted_before_the_data_stages_have_run(own: dict, tmp_path: Path) -> None:
    before = planned("--no-calibrate")
    assert (before["embed_train"]["count"], before["retrieve"]["count"]) == (2 * 9, 9 * 9)
    assert before["judge"]["count"] == 9 + 9 * 8 and before["judge"]["source"] == "at most"
    # Two questions, four answers and two wrong candidates; four embedders.
    assert (before["evaluate_reranker"]["count"], before["evaluate"]["count"]) == (4, 4 * 8)
    read_data(tmp_path)
    after = planned("--no-calibrate")
    for name in ("embed_train", "retrieve", "judge", "mine", "evaluate", "evaluate_reranker"):
        assert before[name]["count"] >= after[name]["count"] > 0, name
    assert after["embed_train"]["source"] == "counted"


def test_published_files_are_counted_before_they_are_read(tmp_path: Path, config) -> None:
    train_set(tmp_path, "S", [("q", "", f"t{number}", "") for number in range(5)], {})
    task(tmp_path, "T", [("q", "", ["a", "b"], ["", ""]), ("q", "", ["b", "c"], ["", "x.png"]), ("r", "", ["a"], ["", ""])])
    data = config.data.model_copy(update={"root": str(tmp_path), "cap": 3})
    assert raw.training_rows(data, "S") == 5 and raw.training_rows(data, "none") is None
    assert raw.task_rows(data, "T") == raw.Rows(3, 5) and raw.task_rows(data, "none") is None, "a row of unequal lists shows its query"
    (one,) = counts.train_sets(config.model_copy(update={"data": data.model_copy(update={"train_sets": ["S"]})}), tmp_path / "results")
    assert (one.pairs, one.items, one.counted) == (3, 6, False), "no more than data.cap"


@pytest.mark.parametrize("name", ["own/train/pictures/rows.parquet", "own/eval/pictures/rows.parquet"])
def test_raw_data_that_cannot_be_counted_are_named_in_one_line(own: dict, name: str, capsys) -> None:
    Path(name).write_bytes(b"PAR1 and nothing more PAR1")
    assert main(["plan", "--no-calibrate"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: {name}: not a parquet file that can be read"), error


CHAIN = """vars: [config.yaml]
stages:
  data_train@S: {cmd: cat in > data, deps: [in], outs: [data]}
  judge@S: {cmd: cat data > judged, deps: [data], params: [beta], outs: [judged]}
  mine@S: {cmd: cat judged > mined, deps: [judged], outs: [mined]}
  evaluate@T: {cmd: cat task > scores, deps: [task], outs: [scores]}
  report: {cmd: cat mined scores > report, deps: [mined, scores], outs: [report]}
"""


def test_stale_is_what_dvc_says_and_all_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = CHAIN.replace("@S", "_S").replace("@T", "_T").replace("vars: [config.yaml]\n", "")
    text += "  suite: {cmd: cat in > suite, deps: [in], outs: [suite]}\n"
    Path("dvc.yaml").write_text(text)
    for name in ("in", "task"):
        Path(name).write_text(name)
    Path("params.yaml").write_text("beta: 1\n")
    sh("dvc init -q --no-scm && dvc config core.analytics false && dvc repro -q", tmp_path)
    assert stale.stages("data") == set()
    Path("suite").unlink()
    assert stale.stages("data") == set(), "nothing that the report needs is made of it"
    Path("params.yaml").write_text("beta: 2\n")
    assert stale.stages("data") == {"judge_S", "mine_S", "report"}
    Path("task").write_text("another")
    assert stale.stages("data") == {"judge_S", "mine_S", "evaluate_T", "report"}
    Path("in").write_text("more")
    assert stale.stages("data") == {"data_train_S", "judge_S", "mine_S", "evaluate_T", "report"}
    Path("dvc.lock").write_text("schema: '2.0'\nstages: [")
    with pytest.raises(ValueError, match=r"dvc status cannot say what is stale: .*dvc\.lock"):
        stale.stages("data")


def test_a_plan_of_stale_stages_leaves_out_the_others(own: dict, tmp_path: Path) -> None:
    config = config_module.parse(own)
    read_data(tmp_path)
    whole = {one.stage: one for one in counts.work(config)}
    wanted = {"judge@pictures", "mine@pictures", "train_unime_v2", "report"}
    reduced = stale.reduced(config, wanted)
    rows = counts.work(reduced, stale=wanted)
    assert rows == [whole[name] for name in ("judge", "mine", "train_unime_v2")]
    more = {*wanted, "data_train@pictures"}
    assert [note.partition(":")[0] for note in stale.notes(more)] == ["also stale, without a row here", "the data themselves are stale"]
    assert "data_train@pictures, report" in stale.notes(more)[0] and stale.notes({"judge@pictures"}) == []


@pytest.mark.slow
def test_the_whole_plan_of_a_fresh_checkout_is_stale(own: dict, tmp_path: Path, capsys) -> None:
    checkout = working_tree(tmp_path / "checkout", own)
    shutil.move(tmp_path / "own", checkout / "own")
    sh("git init -q", checkout)
    whole = sh("python -m unime plan --no-calibrate", checkout)
    shown = sh("python -m unime plan --no-calibrate --stale", checkout)
    assert [line for line in shown.splitlines() if not line.startswith("* ")] == [
        line for line in whole.splitlines() if not line.startswith("* ")
    ]
    assert "* also stale, without a row here: data_eval@pictures, data_train@pictures" in shown
    assert "error: --stale with --config presets/nano.yaml" in sh(
        "cp config.yaml presets/nano.yaml && python -m unime plan --stale --config presets/nano.yaml", checkout, 1
    )
