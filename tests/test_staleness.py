"""One truth about what is stale, on a tiny version of the embedded suite: whoever runs, after whatever happened to the files.

Every test works in a Git checkout of its own, a copy of one in which the pipeline has run.  What was truly computed is read from the
stages' own logs: a stage that DVC skips or restores writes none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from checkouts import SLOW, Checkout, new_checkout, run_once, small

SET, TASKS = "NanoColor", ["NanoColor", "NanoObject-Held"]
CAPTIONS = "NanoScenes_i2t"
EVALUATE = {*(f"evaluate@{task}" for task in TASKS), f"crossmodal@{CAPTIONS}"}
DATA_EVAL = {*(f"data_eval@{task}" for task in TASKS), f"data_crossmodal@{CAPTIONS}"}
REPORT = {"report", "export@unime_v2", "export@reranker"}
TRAINED = {"train_hard_negatives", "train_unime_v2", "train_reranker"}
BELOW_MINE = {*TRAINED, "mining_report", *EVALUATE, *REPORT, "settings"}
MODELS = {"train_in_batch", f"embed_train@{SET}", f"retrieve@{SET}", f"judge@{SET}", f"mine@{SET}"}
ALL = {"suite", "nano_mllm", f"data_train@{SET}", "filter_train", "filter_eval", *DATA_EVAL, *MODELS, *BELOW_MINE}
TABLE = "results/mmeb_table.csv"

pytestmark = SLOW


def tiny() -> dict:
    """The repository's configuration, seconds a stage."""
    training = {"steps": 2, "batch": 4, "micro": 4, "warmup": 1, "checkpoint": 1}
    return small({"train_rows": 12, "eval_rows": 4, "candidates": 6}, training, [SET], TASKS, [CAPTIONS])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which a fresh `snakemake --cores all` has run."""
    folder = tmp_path_factory.mktemp("staleness") / "a checkout"
    shutil.copytree(run_once("a tiny one", tiny(), tmp_path_factory), folder, symlinks=True)
    made = Checkout(folder)
    made.seen = {}  # all of its logs are the run's
    return made


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    return finished.copy(tmp_path / "copy")


# 1 to 4: parameters and time stamps


def test_a_fresh_run_runs_all_and_then_no_tool_has_anything_to_do(finished: Checkout) -> None:
    assert finished.computed() == ALL == set(finished.lock())
    finished.assert_idle()


@pytest.mark.parametrize("tool", ["snakemake", "dvc repro"])
def test_a_changed_parameter_is_the_same_plan_in_both_tools_and_changed_back_computes_nothing(checkout: Checkout, tool: str) -> None:
    checkout.configure("mine.beta", 0.02)
    stale = {f"mine@{SET}", *BELOW_MINE}
    assert checkout.plan() == checkout.plan_dvc() == stale
    assert checkout.status() == {f"mine@{SET}", "mining_report", "settings"}  # all three read mine.beta
    checkout.sh(tool)
    assert {f"mine@{SET}", "mining_report"} <= checkout.computed() <= stale
    checkout.assert_clean()
    checkout.configure("mine.beta", 0.01)
    assert checkout.plan() == checkout.plan_dvc() == stale
    checkout.sh(tool)
    assert checkout.computed() == set()
    checkout.assert_clean()


def test_touched_files_are_not_stale(checkout: Checkout) -> None:
    checkout.sh("find . -path ./.git -prune -o -path ./.dvc/cache -prune -o -type f -exec touch {} +")
    checkout.computed()  # logs were touched too
    checkout.assert_idle()


# 5: remotes


def test_a_clone_takes_what_a_remote_has(checkout: Checkout, tmp_path: Path) -> None:
    checkout.sh(f"dvc remote add -q -d shared '{tmp_path / 'remote'}' && dvc push -q --run-cache")

    pulled = checkout.clone(tmp_path / "pulled", pull=True)
    assert "Nothing to be done" in pulled.sh(f"snakemake {TABLE}")
    pulled.assert_idle()

    shutil.rmtree(pulled.root / ".snakemake")
    pulled.configure("evaluate.tie_rule", "vlm2vec_v1")
    assert pulled.plan(TABLE) == {*EVALUATE, "report"}
    pulled.sh(f"snakemake {TABLE}")
    assert {*EVALUATE} <= pulled.computed() <= {*EVALUATE, "report"} and pulled.status() <= {"settings", *REPORT} - {"report"}
    pulled.sh("snakemake")
    pulled.assert_clean()

    bare = checkout.clone(tmp_path / "bare")
    bare.sh("snakemake")
    assert bare.computed() == set() and bare.lock() == checkout.lock()
    bare.assert_clean()

    # and what was made elsewhere since, under another dvc.lock: its run-cache entries come from the remote
    pulled.sh("dvc push -q --run-cache")
    bare.configure("evaluate.tie_rule", "vlm2vec_v1")
    bare.sh("snakemake")
    assert bare.computed() == set() and bare.lock() == pulled.lock()


def test_a_remote_that_cannot_be_reached_costs_nothing_that_is_here(checkout: Checkout, tmp_path: Path) -> None:
    checkout.sh(f"dvc remote add -q -d shared '{tmp_path / 'nowhere'}'")
    checkout.configure("evaluate.tie_rule", "vlm2vec_v1")
    checkout.sh("snakemake")
    assert checkout.computed() >= EVALUATE
    checkout.assert_clean()


# 6 and 7: damaged intermediates


@pytest.mark.parametrize("victim", [f"results/judge/{SET}", f"results/retrieve/{SET}/hits.parquet", TABLE])
def test_a_deleted_intermediate_is_restored(checkout: Checkout, victim: str) -> None:
    for tool in ("snakemake", "dvc repro"):
        path = checkout.root / victim
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert checkout.status()
        checkout.sh(tool)
        assert path.exists() and checkout.computed() == set()
        checkout.assert_clean()


def test_a_corrupted_intermediate_is_repaired_and_nothing_is_built_on_it(checkout: Checkout) -> None:
    want, file = checkout.lock(), checkout.root / f"results/judge/{SET}/judgements.parquet"
    good = file.read_bytes()
    for tool in ("snakemake", "dvc repro"):
        file.write_bytes(good[:-9] + b"corrupted")
        assert checkout.status() >= {f"judge@{SET}"} and f"judge@{SET}" in checkout.plan(TABLE)
        checkout.sh(tool)
        assert file.read_bytes() == good and checkout.computed() == set() and checkout.lock() == want
        checkout.assert_clean()
    # the cached copy is gone too: computed again, to the same bytes
    cached = cached_copy(checkout, file)
    cached.unlink()
    file.write_bytes(good[:-9] + b"corrupted")
    checkout.sh("snakemake")
    assert file.read_bytes() == good and checkout.computed() == {f"judge@{SET}"} and checkout.lock() == want
    # the cached copy is there, and is not what its name says: dropped
    os.chmod(cached, 0o644)
    cached.write_bytes(good[:-9] + b"corrupted")
    os.chmod(cached, 0o444)
    file.unlink()
    checkout.sh("snakemake")
    assert file.read_bytes() == good and checkout.computed() == {f"judge@{SET}"} and checkout.lock() == want
    checkout.assert_clean()


def cached_copy(checkout: Checkout, file: Path) -> Path:
    """Where DVC's cache has a file's content."""
    md5 = checkout.sh(f"md5sum '{file}'").split()[0]
    cached = checkout.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    assert cached.read_bytes() == file.read_bytes()
    return cached


# 8: code


def test_an_edited_module_is_its_room_and_those_below(checkout: Checkout) -> None:
    checkout.edit("unime/evaluate/rank.py", 'f"recall@{k}"', 'f"recalled@{k}"')
    assert checkout.plan() == checkout.plan_dvc() == {*EVALUATE, *REPORT} and checkout.status() == EVALUATE
    checkout.sh("snakemake")
    assert checkout.computed() == {*EVALUATE, "report"}, "the exports' cards have figures that did not change"
    checkout.assert_clean()
    checkout.edit("unime/evaluate/rank.py", 'f"recalled@{k}"', 'f"recall@{k}"')
    checkout.sh("dvc repro")
    assert checkout.computed() == set()
    checkout.assert_clean()


def test_a_comment_reruns_its_room_and_stops_there(checkout: Checkout) -> None:
    text = (checkout.root / "unime/retrieve/__init__.py").read_text()
    (checkout.root / "unime/retrieve/__init__.py").write_text(text + "\n# a comment\n")
    assert checkout.plan() == checkout.plan_dvc() == {f"retrieve@{SET}", f"judge@{SET}", f"mine@{SET}", *BELOW_MINE}
    checkout.sh("snakemake")
    assert checkout.computed() == {f"retrieve@{SET}"}
    checkout.assert_clean()


# 9: from scratch, by either tool


def test_either_tool_from_scratch_records_the_same_and_evaluations_overlap(finished: Checkout, tmp_path: Path) -> None:
    other = new_checkout(tmp_path / "dvc", tiny())
    other.sh("dvc repro")
    assert other.computed() == ALL
    cards = {f"export@{name}" for name in ("unime_v2", "reranker")}  # they name the commit, which is another one there
    ours, theirs = ({stage: entry for stage, entry in one.lock().items() if stage not in cards} for one in (other, finished))
    assert ours == theirs and cards <= finished.lock().keys()
    other.assert_idle()
    spans = []
    for stage in EVALUATE:
        lines = (finished.root / f"logs/{stage.replace('@', '.')}.log").read_text().splitlines()
        spans.append([datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in (lines[0], lines[-1])])
    overlap = any(max(one[0], two[0]) < min(one[1], two[1]) for one, two in combinations(spans, 2))
    assert overlap or (os.cpu_count() or 1) < 2


# 10: failures and kills


def test_what_finished_before_a_failure_is_kept_and_the_rerun_goes_on(checkout: Checkout) -> None:
    before = yaml.safe_load((checkout.root / "config.yaml").read_text())["train"]["reranker"]["lr"]
    checkout.configure("train.reranker.lr", before / 2)
    checkout.configure("train.unime_v2.lr", 0.001)
    obstacle = checkout.root / "scratch/train_reranker"
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.write_text("a file where the stage needs a folder")
    text = checkout.sh("snakemake --keep-going", code=1)
    assert "scratch/train_reranker" in text and "train_unime_v2" in text
    assert checkout.computed() == {"train_reranker", "train_unime_v2", "settings"}
    assert checkout.status() >= {"train_reranker"} and "train_unime_v2" not in checkout.status()
    assert not (checkout.root / "results/train/reranker").exists() and not list((checkout.root / "results").rglob(".*.tmp"))
    obstacle.unlink()
    checkout.configure("train.reranker.lr", before)
    checkout.sh("snakemake")
    assert EVALUATE <= checkout.computed() <= {*EVALUATE, *REPORT, "settings"}
    checkout.assert_clean()


def test_kill_9_of_everything_leaves_nothing_that_counts_as_done_and_nobody_is_asked_to_unlock(checkout: Checkout) -> None:
    want = checkout.lock()
    checkout.configure("train.unime_v2.steps", 60)
    process = checkout.start("snakemake --cores 1 results/train/unime_v2")
    checkout.until(TRAINING, process)
    kill_all(process)
    checkout.computed()
    assert not (checkout.root / "results/train/unime_v2").exists() and checkout.lock() == want
    checkout.sh("snakemake results/train/unime_v2")
    assert checkout.computed() == {"train_unime_v2"}
    assert "resumed after step" in (checkout.root / "logs/train_unime_v2.log").read_text()
    # locks whose owners are gone: a number that is another process's now, and a file cut off in the middle
    rwlock = checkout.root / ".dvc/tmp/rwlock"
    for left in (json.dumps({"write": {str(checkout.root / "results"): {"pid": os.getpid(), "cmd": "dvc repro gone"}}}), '{"write": {"'):
        rwlock.write_text(left)
        checkout.sh("snakemake results/train/unime_v2")


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a command and everything that it has started."""
    import psutil

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=20)


# 11: tasks come and go


def test_a_task_added_is_its_evaluation_and_the_table_and_removed_only_the_table(checkout: Checkout, tmp_path: Path) -> None:
    checkout.configure("evaluate.tasks", [*TASKS, "NanoPhrase"])
    wanted = {"data_eval@NanoPhrase", "filter_eval", "evaluate@NanoPhrase", *REPORT, "settings"}
    assert checkout.plan() == checkout.plan_dvc() == {*wanted, *EVALUATE}, "one stage filters all tasks"
    checkout.sh("snakemake")
    assert checkout.computed() == wanted, "the other tasks' tables are as they were"
    assert "NanoPhrase" in (checkout.root / TABLE).read_text()
    checkout.assert_clean()
    checkout.configure("evaluate.tasks", TASKS)
    gone, working = checkout.root / "results/evaluate/NanoPhrase", checkout.root / "results/evaluate/.NanoColor.1.tmp"
    working.mkdir()  # what a stage at work has not finished
    assert checkout.plan() == checkout.plan_dvc() == {"filter_eval", *EVALUATE, *REPORT, "settings"} and gone.exists()
    checkout.sh("snakemake")
    assert working.exists() and not gone.exists()
    working.rmdir()
    assert checkout.computed() <= {"filter_eval", *REPORT, "settings"} and "NanoPhrase" not in (checkout.root / TABLE).read_text()
    checkout.assert_clean()
    checkout.sh(f"dvc remote add -q -d shared '{tmp_path / 'remote'}' && dvc push -q")
    assert checkout.clone(tmp_path / "clone", pull=True).status() == set()


def test_a_judge_added_is_its_own_stages_and_mining_from_it_makes_it_and_judges_nothing_again(checkout: Checkout) -> None:
    own = {"model": "models/nano-mllm", "mode": "published"}
    checkout.configure("ablations.embedders", {})  # they name a judge
    checkout.configure("judge.models", {"one": own})
    checkout.configure("judge.means", {"both": ["judge", "one"]})
    assert checkout.plan() == checkout.plan_dvc() == {"settings"}
    checkout.sh("snakemake results/judge_agreement/one")
    assert checkout.computed() == {"judge_more@one", "judge_agreement@one"}
    report = json.loads((checkout.root / "results/judge_agreement/one/report.json").read_text())
    assert report["all"]["candidates"] > 0 and report["all"]["rho"] > 0.5
    checkout.configure("mine.judgements", "results/judge_means/both")
    wanted = {"judge_mean@both", f"mine@{SET}", *BELOW_MINE}
    assert checkout.plan() == {name.rpartition(":")[2] for name in checkout.plan_dvc()} == wanted
    checkout.sh("dvc repro")
    assert {"judge_mean@both", f"mine@{SET}", "mining_report"} <= checkout.computed() <= wanted
    checkout.assert_clean()
    # another judge: the mean is taken again, to the same numbers, and nothing below it runs; taken out, its judgements go
    checkout.configure("judge.models", {"one": own, "two": own})
    checkout.sh("snakemake")
    assert checkout.computed() == {"judge_more@two", "judge_mean@both", "settings"}
    checkout.configure("judge.models", {"one": own})
    checkout.sh("snakemake")
    assert not (checkout.root / "results/judges/two").exists() and checkout.computed() <= {"judge_mean@both", "settings"}
    checkout.assert_clean()
    checkout.configure("mine.judgements", "results/judge")
    checkout.sh("snakemake")
    assert checkout.computed() <= {"settings"}
    checkout.assert_clean()


# 12 to 14: parts, turns, at once


def test_a_partial_target_leaves_the_rest_stale(checkout: Checkout) -> None:
    checkout.configure("mine.beta", 0.02)
    checkout.configure("train.in_batch.tau", 0.05)
    checkout.configure("evaluate.tie_rule", "vlm2vec_v1")
    checkout.sh("snakemake results/data/eval")
    assert checkout.computed() == set()
    checkout.sh("snakemake results/train/in_batch")
    assert checkout.computed() == {"train_in_batch"}
    assert checkout.status() >= {f"mine@{SET}", *EVALUATE, f"embed_train@{SET}"} and "train_in_batch" not in checkout.status()
    assert checkout.plan() == ALL - {"suite", "nano_mllm", f"data_train@{SET}", "filter_train", "filter_eval", "train_in_batch", *DATA_EVAL}


def test_the_tools_used_in_turn_agree_at_each_step(checkout: Checkout) -> None:
    checkout.configure("mine.beta", 0.02)
    checkout.sh(f"dvc repro mine@{SET}")
    assert checkout.computed() == {f"mine@{SET}"}
    assert f"mine@{SET}" not in checkout.plan() | checkout.plan_dvc() | checkout.status()
    checkout.sh("snakemake results/train/unime_v2")
    assert checkout.computed() <= {"train_unime_v2"}
    assert not {f"mine@{SET}", "train_unime_v2"} & (checkout.plan() | checkout.plan_dvc() | checkout.status())
    checkout.sh("dvc repro mining_report")
    assert checkout.computed() == {"mining_report"}
    checkout.sh("snakemake")
    assert not {f"mine@{SET}", "train_unime_v2", "mining_report"} & checkout.computed()
    checkout.assert_clean()


TRAINING = "scratch/train_unime_v2/*/*"  # there as soon as the training has its first checkpoint


def test_two_runs_at_once_one_waits_or_refuses_and_nothing_breaks(checkout: Checkout) -> None:
    checkout.configure("train.unime_v2.steps", 40)
    running = checkout.start("snakemake results/train/unime_v2")
    checkout.until(TRAINING, running)
    for command in ("snakemake", "snakemake -n"):
        assert "this checkout is in use: Snakemake is process" in checkout.sh(command, code=1)
    assert "is busy, it is being blocked by" in checkout.sh("dvc repro --single-item train_unime_v2", code=255)
    text = running.communicate()[0]
    assert running.returncode == 0, text[-3000:]
    assert checkout.computed() == {"train_unime_v2"} and "train_unime_v2" not in checkout.status()

    checkout.configure("train.unime_v2.steps", 41)
    running = checkout.start("dvc repro --single-item train_unime_v2")
    checkout.until(TRAINING, running)
    assert re.search(r"DVC is at work in this checkout: .*busy.*\n.*PID \d+.*dvc", checkout.sh("snakemake", code=1))
    waiting = checkout.start(f"{sys.executable} workflow/repro.py train_unime_v2")
    texts = [process.communicate()[0] for process in (running, waiting)]
    assert running.returncode == waiting.returncode == 0, texts
    assert "waiting: " in texts[1] and "didn't change, skipping" in texts[1]
    checkout.sh("snakemake")
    checkout.assert_clean()


def test_a_job_whose_lock_entries_another_node_has_dropped_still_ends_well(checkout: Checkout) -> None:
    """DVC on another node takes an unknown process number for a dead process, and drops its entries."""
    checkout.configure("train.unime_v2.steps", 20)
    process = checkout.start(f"{sys.executable} workflow/repro.py train_unime_v2")
    checkout.until(TRAINING, process)
    assert "unime_v2" in (checkout.root / ".dvc/tmp/rwlock").read_text()
    (checkout.root / ".dvc/tmp/rwlock").write_text("{}")
    text = process.communicate()[0]
    assert process.returncode == 0 and "train_unime_v2" not in checkout.status(), text


# 15 and 16: what is edited meanwhile, what is said twice


@pytest.mark.parametrize(
    ("tool", "what"),
    [
        ("snakemake results/train/unime_v2", "config.yaml"),
        ("dvc repro --single-item train_unime_v2", "unime/doors/train_unime_v2.py"),
        ("snakemake results/train/unime_v2", f"results/mine/judge/{SET}/mined.parquet"),
    ],
)
def test_an_edit_while_a_stage_runs_fails_it_and_nothing_is_recorded(checkout: Checkout, tool: str, what: str) -> None:
    checkout.configure("train.unime_v2.steps", 30)
    before = (checkout.root / "dvc.lock").read_text()
    runs = sorted((checkout.root / ".dvc/cache/runs").rglob("*"))
    process = checkout.start(tool)
    checkout.until(TRAINING, process)
    if what == "config.yaml":
        checkout.configure("train.unime_v2.tau", 0.03)
    else:
        with (checkout.root / what).open("ab") as file:
            file.write(b"\n# meanwhile\n")
    text = process.communicate()[0]
    assert process.returncode != 0 and re.search(rf"{what}.* changed while train_unime_v2 was running", text)
    assert (checkout.root / "dvc.lock").read_text() == before
    assert sorted((checkout.root / ".dvc/cache/runs").rglob("*")) == runs
    assert not (checkout.root / "results/train/unime_v2").exists() and "train_unime_v2" in checkout.status()
    checkout.computed()
    checkout.sh("snakemake results/train/unime_v2")
    assert checkout.computed() == {"train_unime_v2"}


def test_an_edit_after_the_stage_and_before_the_record_fails_it_too(checkout: Checkout) -> None:
    """DVC reads code and configuration once more when the command has ended."""
    late = checkout.root / "late.py"
    late.write_text(
        "import sys, pathlib\nsys.path.insert(0, 'workflow')\nimport repro\nfrom dvc.stage import run\nold = run.cmd_run\n"
        "def cmd_run(*given, **named):\n    old(*given, **named)\n    path = pathlib.Path('unime/report/html.py')\n"
        "    path.write_text(path.read_text() + '\\n# late\\n')\n"
        "run.cmd_run = cmd_run\nsys.exit(repro.main('report'))\n"
    )
    checkout.configure("evaluate.tasks", TASKS[::-1])
    before = checkout.lock()
    assert "unime/report/html.py changed while it was running" in checkout.sh("python late.py", code=1)
    assert checkout.lock() == before and not (checkout.root / TABLE).exists()


def test_a_configuration_from_elsewhere_and_a_damaged_record_are_refused_and_a_new_config_file_is_seen_by_both_tools(
    checkout: Checkout,
) -> None:
    (checkout.root / "other.yaml").write_text("seed: 1\n")
    for option in ("--config seed=1", "--configfile other.yaml"):
        assert "DVC reads config.yaml: write the values there" in checkout.sh(f"snakemake -n {option}", code=1)
    good = (checkout.root / "dvc.lock").read_text()
    (checkout.root / "dvc.lock").write_text(good[: good.index("md5:") + 2])  # no colon: not YAML any more
    assert "If dvc.lock is damaged: `git checkout dvc.lock`" in checkout.sh("snakemake -n", code=1)
    (checkout.root / "dvc.lock").write_text(good)
    values = tiny()
    values["seed"], values["mine"]["interval"] = 43, 4
    (checkout.root / "config.yaml").write_text("# another experiment\n" + yaml.safe_dump(values))
    assert checkout.plan() == checkout.plan_dvc() == ALL - {"suite", "nano_mllm", *DATA_EVAL, "filter_eval"}


# a stage that cannot run is never passed over in silence


@pytest.mark.parametrize(
    ("key", "folder", "near"),
    [
        ("models.judge", "models/nano-mlm", "nano-mllm"),
        ("data.root", "data/nnao", "nano"),
        ("embed.adapter", "results/train/in_bacth", "in_batch"),
        ("models.reranker", "/nowhere/at/all", ""),
    ],
)
def test_a_finished_run_whose_configuration_names_a_folder_that_is_not_there_is_refused_by_every_way_in(
    checkout: Checkout, key: str, folder: str, near: str
) -> None:
    if key == "models.reranker":
        checkout.configure("export", {})  # what is exported names the folder that it was trained on
    checkout.configure(key, folder)
    before = checkout.lock()
    for command in ("snakemake -n", "snakemake", f"snakemake {TABLE}", "snakemake --profile profiles/default all"):
        said = checkout.sh(command, code=1)
        assert f"error: {key} names {folder}" in said and f"correct {key}" in said and near in said, said
    if key != "data.root":
        assert "Nothing to be done" in checkout.sh(f"snakemake -n results/rows/train/{SET}"), "what does not need it is not stopped"
    said = checkout.sh("dvc repro", code=255)
    assert folder in said
    assert checkout.computed() == set() and checkout.lock() == before


@pytest.mark.parametrize("path", ["envs/report.yaml", "unime/report/html.py", "models/nano-mllm/config.json"])
def test_a_missing_file_is_named_or_restored_and_never_passed_over(checkout: Checkout, path: str) -> None:
    (checkout.root / path).unlink()
    made = path.startswith("models/")  # by a stage, so DVC has it
    said = checkout.sh("snakemake", code=0 if made else 1)
    if made:
        assert (checkout.root / path).exists() and checkout.status() == set()
    else:
        assert path in said and "Nothing to be done" not in said


# what DVC shows of the results


def test_metrics_plots_and_experiments(checkout: Checkout) -> None:
    checkout.sh("git add -A && git commit -qm state")
    shown = json.loads(checkout.sh("dvc metrics show --json"))
    assert shown[""]["data"]["results/metrics.json"]["data"] == json.loads((checkout.root / "results/metrics.json").read_text())
    checkout.sh("dvc exp run -q -S config.yaml:evaluate.rerank=2")
    assert yaml.safe_load((checkout.root / "config.yaml").read_text())["evaluate"]["rerank"] == 2
    assert checkout.computed() <= {"filter_eval", *EVALUATE, *REPORT, "settings"} and checkout.status() == set()
    assert json.loads(checkout.sh("dvc metrics diff --json HEAD"))["results/metrics.json"]
    checkout.sh("dvc plots show -o plots")
    page = (checkout.root / "plots/index.html").read_text()
    assert all(name in page for name in ("training loss", "unime_v2/log.csv", "classification.svg"))
