"""dvc.yaml, the doors, the rules and the environments say the same; the guard holds with DVC around it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from checkouts import ENVIRONMENT, sh

from unime.__main__ import item_from_dvc, open_door, stages
from unime.config import load

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))

from sync import FILES, synced  # noqa: E402

MAIN, ABLATIONS = (yaml.safe_load((ROOT / file).read_text())["stages"] for file in FILES)
DVC = MAIN | ABLATIONS
TABLE = {name: stage.get("do", stage) for name, stage in DVC.items()}


def templates(paths: list) -> list[str]:
    """Paths of dvc.yaml as doors write them; one with settings (cache: false) is a mapping there."""
    return [(path if isinstance(path, str) else next(iter(path))).replace("${", "{") for path in paths]


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git checkout of this working tree, without artifacts, and with a smaller suite."""
    folder = tmp_path_factory.mktemp("elsewhere") / "a clone"
    ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache")  # of .dvc
    for name in "unime workflow ablations envs assets .dvc config.yaml dvc.yaml Snakefile pyproject.toml .gitignore .dvcignore".split():
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignore)
        elif source.exists():
            shutil.copy(source, target)
    (folder / "assets/nano-mllm").mkdir(parents=True, exist_ok=True)  # no stage here looks into it
    (folder / "profiles").symlink_to("workflow/profiles")
    text = (folder / "config.yaml").read_text()
    for key, value in (("train_rows", 20), ("eval_rows", 20), ("candidates", 10)):
        text = re.sub(rf"^(    {key}:) \d+", rf"\1 {value}", text, count=1, flags=re.M)
    (folder / "config.yaml").write_text(text.replace("  means: {} ", "  means: {both: [judge, nano-published]} "))
    sh("git init -q && git add -A && git -c user.name=test -c user.email=test@example.org commit -qm test", folder)
    return folder


# dvc.yaml and the doors


def test_there_is_a_stage_for_every_door() -> None:
    assert sorted(DVC) == stages()


def test_every_stage_names_exactly_the_code_that_it_can_run() -> None:
    for file, one in zip(FILES, ("judge", "judge_more"), strict=True):
        text = (ROOT / file).read_text()
        assert f"- unime/doors/{one}.py" in text and synced(text) == text, "run: python workflow/sync.py"


@pytest.mark.parametrize("stage", sorted(DVC))
def test_a_stage_says_what_its_door_says(stage: str) -> None:
    row, door = TABLE[stage], open_door(stage)
    assert row["cmd"] == f"exec python -m unime {stage}", "no text of config.yaml reaches a shell"
    assert [{"config.yaml": templates(row["params"][0]["config.yaml"])}] == [{"config.yaml": list(door.sections)}]
    data = [dep for dep in templates(row["deps"]) if not dep.startswith(("unime/", "envs/"))]
    assert data == list(door.inputs)
    assert sum(dep.startswith("envs/") for dep in row["deps"]) == 1
    assert sorted(templates([*row["outs"], *row.get("metrics", [])])) == sorted(door.outputs)
    assert DVC[stage].get("foreach") == (f"${{{door.items}}}" if door.per_item else None)


def test_paths_that_a_door_takes_from_the_configuration_are_among_its_parameters() -> None:
    for stage in stages():
        door = open_door(stage)
        keyed = any("{key}" in text for text in (*door.sections, *door.outputs))
        for key in re.findall(r"\{([\w.]+)\}", " ".join(door.inputs + door.outputs)):
            found = key.replace("item", f"{door.items}.{{key}}", 1) if key.startswith("item") and keyed else key
            assert found in ("item", "key") or any(found == s or found.startswith(s + ".") for s in door.sections), (stage, key)


# Rules, dvc.yaml and environments


def test_rules_and_stages_have_the_same_names_outputs_edges_threads_and_environments(checkout: Path) -> None:
    more = "results/ablations.csv results/judge_agreement/nano-published results/mine/both"
    text = sh(f"snakemake -n --forceall all {more}", checkout)
    script = """
import json
from dvc.repo import Repo
with Repo() as repo:
    graph = repo.index.graph
    print(json.dumps({s.name: [sorted(o.def_path for o in s.outs), sorted(u.name for u in graph[s])] for s in graph}))
"""
    wanted = yaml.safe_load(
        subprocess.run([sys.executable, "-c", script], cwd=checkout, text=True, stdout=subprocess.PIPE, check=True).stdout
    )
    mark = re.compile(r"\.dvc/tmp/snakemake/done/(\S+?)(?:,|\s|$)")
    found, threads = {}, {}
    for block in re.split(r"\n(?=(?:local)?rule )", text):
        if not (parts := re.search(r"input: (.*)\n\s+output: (.*)", block)) or not (names := mark.findall(parts[2])):
            continue
        found[names[0]] = [sorted(path for path in parts[2].split(", ") if "/done/" not in path), sorted(mark.findall(parts[1]))]
        count = re.search(r"threads: (\d+)", block)
        threads[names[0].partition("@")[0]] = int(count[1]) if count else 1
    assert len(found) > 40 and found == wanted
    cores = os.cpu_count() or 1
    asked = {name.partition("@")[0] for name in found}
    assert threads == {stage: min(cores, open_door(stage).threads) for stage in asked}
    assert set(stages()) - asked == {"fetch_train", "fetch_eval", "fetch_crossmodal", "fetch_scores", "fetch_model", "import_scores"}


def test_dvc_reads_of_train_what_the_door_of_an_ablation_reads(checkout: Path) -> None:
    script = """
import json
from dvc.repo import Repo
with Repo() as repo:
    stages = [s for s in repo.index.stages if s.name.startswith("ablation_train@")]
    print(json.dumps({s.name.partition("@")[2]: sorted(p for d in s.params for p in d.params) for s in stages}))
"""
    found = yaml.safe_load(
        subprocess.run([sys.executable, "-c", script], cwd=checkout, text=True, stdout=subprocess.PIPE, check=True).stdout
    )
    config, door = load(checkout / "config.yaml"), open_door("ablation_train")
    assert found == {name: sorted(door.view(config, name).dump()) for name in config.ablations.embedders}
    read = {key for params in found.values() for key in params}
    assert read >= {"train.in_batch", "train.hard_negatives", "train.unime_v2"}, "variants of every loss are compared"


@pytest.mark.parametrize(
    ("key", "items"),
    [("tasks", ["NanoObject", "x; touch pwned"]), ("tasks", ["$(touch pwned)"]), ("tasks", ["`touch pwned`", "a\ntouch pwned"])],
)
def test_no_text_of_the_configuration_reaches_a_shell(checkout: Path, key: str, items: list[str]) -> None:
    good = (checkout / "config.yaml").read_text()
    values = yaml.safe_load(good)
    values["evaluate"][key] = items
    try:
        (checkout / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        for command in ("dvc repro report", "dvc repro", "snakemake --cores 1"):
            done = subprocess.run(f"python -m {command}", shell=True, cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True)
            assert done.returncode != 0 and "evaluate.tasks" in done.stdout + done.stderr, command
    finally:
        (checkout / "config.yaml").write_text(good)
    assert not list(checkout.rglob("pwned*")) and not (checkout / "data").exists()


@pytest.mark.parametrize("trap", ["a FIFO", "a link to the folder", "a device", "links in a cycle"])
def test_snakemake_names_what_dvc_would_wait_for_or_not_see_before_dvc_looks(checkout: Path, tmp_path: Path, trap: str) -> None:
    good = (checkout / "config.yaml").read_text()
    folder = checkout / "data/own/train/NanoColor"
    folder.mkdir(parents=True)
    place = folder / "pictures"
    if trap == "a FIFO":
        os.mkfifo(place)
    elif trap == "a device":
        place.symlink_to("/dev/zero")
    elif trap == "links in a cycle":
        place.symlink_to(folder)
    else:
        place.symlink_to(tmp_path)
    try:
        (checkout / "config.yaml").write_text(good.replace("root: data/nano ", "root: data/own "))
        said = sh("timeout 60 python -m snakemake -n", checkout, code=1)
    finally:
        (checkout / "config.yaml").write_text(good)
        shutil.rmtree(checkout / "data")
    assert "data/own/train/NanoColor/pictures" in said and "Traceback" not in said
    assert trap in said or trap in ("links in a cycle", "a device")


@pytest.mark.parametrize(
    ("told", "stage", "item"),
    [
        ("judge@NanoColor", "judge", "NanoColor"),
        ("ablations/dvc.yaml:judge_more@other", "judge_more", "other"),
        ("../dvc.yaml:judge@NanoColor", "judge", "NanoColor"),
        ("judge_more@other", "judge", None),
        ("suite", "suite", None),
        ("suite@x", "suite", None),
        ("judge@x; y", "judge", "x; y"),
        ("", "judge", None),
    ],
)
def test_a_stage_learns_its_item_from_dvc(monkeypatch: pytest.MonkeyPatch, told: str, stage: str, item: str | None) -> None:
    monkeypatch.setenv("DVC_STAGE", told)
    assert item_from_dvc(stage, open_door(stage)) == item


def test_mining_waits_for_the_judges_that_it_is_told_to_mine_from(checkout: Path) -> None:
    good = (checkout / "config.yaml").read_text()
    own, others = {f"judge@{name}" for name in yaml.safe_load(good)["data"]["train_sets"]}, {"judge_more@nano-published"}
    for folder, wanted in (
        ("results/judge", own),
        ("results/judges/nano-published", others),
        ("results/judge_means/both", own | others | {"judge_mean@both"}),
    ):
        (checkout / "config.yaml").write_text(good.replace("judgements: results/judge ", f"judgements: {folder} "))
        planned = re.findall(r"output:.*?snakemake/done/(judge\S*)", sh("snakemake -n", checkout))
        assert set(planned) == wanted, folder
    (checkout / "config.yaml").write_text(good)


def test_a_rules_environment_is_a_dependency_of_its_stage() -> None:
    found = {}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for rule in re.split(r"^ *rule ", file.read_text(), flags=re.M)[1:]:
            conda = re.search(r'conda:\s+f?"../../(envs/[^"]+\.yaml)"', rule)
            found[rule.partition(":")[0]] = conda[1].replace("{CONFIG.", "${").replace("{SEARCH}", "data") if conda else None
            assert all(f"    {part}:" in rule for part in ("input", "output", "log", "benchmark", "threads", "resources", "shell")), rule
    for part, whole in (("embed_part", "embed_train"), ("judge_part", "judge")):  # jobs that share a stage's shards
        assert found.pop(part) == found[whole]
    assert found == {stage: next(dep for dep in row["deps"] if dep.startswith("envs/")) for stage, row in TABLE.items()}


def test_environments_pin_what_the_project_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all("==" in line for line in project["dependencies"])
    extras = project["optional-dependencies"]
    wanted, used = pins([*project["dependencies"], *extras["deepspeed"], *extras["faiss-gpu"]]), set()
    for file in sorted((ROOT / "envs").glob("*.yaml")):
        found = pins(yaml.safe_load(file.read_text())["dependencies"][-1]["pip"])
        used |= set(found) - {"vllm"}
        if file.stem == "judge-vllm":  # cannot be installed beside the rest: what vLLM needs takes no newer numpy
            assert (found.pop("vllm"), found.pop("numpy")) == ("0.32.0", "2.3.5")
        assert found == {name: wanted[name] for name in found}, file
    assert used == set(wanted) - {"dvc", "dvc-data", "dvc-objects", "networkx", "ruamel.yaml.clib", "snakemake"}


def test_the_snakefile_is_a_table_of_contents() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 50


def test_a_second_truth_about_the_configuration_is_refused(checkout: Path) -> None:
    assert "DVC reads config.yaml: write the values there" in sh("snakemake -n --config seed=1", checkout, code=1)


def test_a_wrong_configuration_is_explained(checkout: Path) -> None:
    good = (checkout / "config.yaml").read_text()
    (checkout / "config.yaml").write_text(good.replace("negatives: 10 ", "negatives: 99 "))
    text = sh("snakemake -n", checkout, code=1)
    (checkout / "config.yaml").write_text(good)
    assert "mine.negatives 99 must be at most retrieve.k 50" in text


# One stage for real


def test_a_rule_runs_its_stage_shows_one_line_and_then_there_is_nothing_to_do(checkout: Path) -> None:
    text = sh("snakemake data/nano", checkout)
    assert "\nstage suite\nmade data/nano: 11 training sets of 220 rows, 18 tasks of 360 queries" in text
    assert "Running stage" not in text and "Running stage" in (checkout / "logs/dvc/suite.log").read_text()
    assert list(yaml.safe_load((checkout / "dvc.lock").read_text())["stages"]) == ["suite"]
    assert "Nothing to be done" in sh("snakemake data/nano", checkout)
    for path in (checkout / "data/nano").rglob("*"):
        path.touch()
    shutil.rmtree(checkout / ".snakemake")
    assert "Nothing to be done" in sh("snakemake data/nano", checkout)
    (checkout / "data/nano/eval/images.zip").unlink()
    text = sh("snakemake data/nano", checkout)
    assert "suite: deleted data/nano" in text or "suite: modified data/nano" in text
    assert "kept suite: unchanged, restored or fetched" in text and (checkout / "data/nano/eval/images.zip").exists()


def test_a_configuration_edited_while_a_stage_runs_is_not_recorded(checkout: Path) -> None:
    """DVC reads parameters after the command (its issue 11058): without the guard it would certify the old output for the new value."""
    path = checkout / "config.yaml"
    good = path.read_text()
    path.write_text(good.replace("    seed: 7 ", "    seed: 8 "))
    before = (checkout / "dvc.lock").read_text() if (checkout / "dvc.lock").exists() else None
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", "suite"], cwd=checkout, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not (left := list((checkout / "data").glob(".nano.*.tmp"))):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    worker = int(left[0].name.split(".")[2])
    os.kill(worker, signal.SIGSTOP)
    path.write_text(good.replace("    seed: 7 ", "    seed: 9 "))
    os.kill(worker, signal.SIGCONT)
    _, err = process.communicate()
    path.write_text(good.replace("    seed: 7 ", "    seed: 9 "))
    assert process.returncode != 0 and "config.yaml (nano.suite) changed while suite was running" in err
    assert ((checkout / "dvc.lock").read_text() if (checkout / "dvc.lock").exists() else None) == before
    assert "made data/nano" in sh("snakemake data/nano", checkout)  # computed: no run of seed 8 was recorded for seed 9
    path.write_text(good)
