"""The house's rules: who may import whom, what loads torch, how large things may grow, what is never used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unime import closure
from unime.__main__ import code_of, stages

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "unime").rglob("*.py"))

# In the order that data flows: a file imports only from rooms before its own, or from its own room without going in circles.
HOUSE = (
    "config prompts markdown caution artifacts closure inputs costs job devices shards launch alone digests witness lanes fetch data nano "
    "backbones embed retrieve judge mine train evaluate limits report door doors plan tools __main__"
).split()
HEAVY = {"torch", "transformers", "peft", "accelerate", "tokenizers"}
TABLES = (
    "suite fetch_train fetch_eval fetch_crossmodal fetch_scores fetch_model data_train data_eval data_crossmodal import_scores retrieve "
    "judge_mean judge_agreement mine mine_more mine_mean mine_rule mining_report report ablations settings"
).split()
BACKENDS = ("transformers", "vllm", "openai")
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "faiss": "faiss-cpu"}


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return (module.split(".") + [""])[1]


def outside(files: list[Path]) -> set[str]:
    """Packages that files import from elsewhere, inside functions too; the standard library apart."""
    found: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).split(".")[0])
    return found - set(sys.stdlib_module_names) - {"unime"}


def test_every_file_has_a_place_in_the_house() -> None:
    assert {room_of(name_of(path)) for path in MODULES} - {""} == set(HOUSE)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_file_imports_only_from_rooms_before_its_own(path: Path) -> None:
    here = room_of(name_of(path))
    for module in closure.imports(name_of(path)):
        there = room_of(module)
        if here == "":
            assert there == "", f"{path} imports {module}: `import unime` must load nothing"
        assert there in ("", here) or HOUSE.index(there) < HOUSE.index(here), f"{path} imports {module}"


def test_imports_do_not_go_in_circles() -> None:
    above = {name_of(path): set(closure.imports(name_of(path))) for path in MODULES}
    done: set[str] = set()
    while ready := {name for name, names in above.items() if name not in done and not names - done - {name.rpartition(".")[0]}}:
        done |= ready
    assert done == set(above), sorted(set(above) - done)


def test_importing_the_package_loads_neither_torch_nor_polars() -> None:
    script = "import unime, sys; print(sorted({'torch', 'transformers', 'polars', 'numpy', 'faiss', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_opening_a_door_loads_no_numerical_library() -> None:
    """Thread counts are set between opening a door and running it."""
    script = f"""
import sys
from unime.__main__ import open_door
for stage in {stages()!r}:
    open_door(stage)
print(sorted({{"torch", "numpy", "polars", "faiss", "matplotlib", "PIL"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_tables_and_reports_run_without_torch() -> None:
    """Nothing in these stages' closures names torch, and all of it can be imported where torch and its friends are not."""
    code = sorted({path for stage in TABLES for path in code_of(stage)} - {Path("unime/__main__.py")})
    assert not outside(code) & HEAVY
    assert {Path(f"unime/{name}.py") for name in ("mine/__init__", "config/__init__", "report/table")} <= set(code)
    wanted = [name_of(path) for path in code] + ["unime.evaluate.metrics"]
    script = f"""
import importlib, sys
for heavy in {sorted(HEAVY)!r}:
    sys.modules[heavy] = None
for name in {wanted!r}:
    importlib.import_module(name)
print(len({wanted!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def run_by(stage: str, backend: str) -> list[Path]:
    """The stage's code where this is the judge's backend: without what only the others' modules import."""
    others = {f"unime.judge.{name}_backend" for name in BACKENDS if name != backend}
    seen: set[str] = set()
    waiting = ["unime.__main__", f"unime.doors.{stage}"]
    while waiting:
        if (module := waiting.pop()) not in seen | others:
            seen.add(module)
            waiting += closure.imports(module)
    files = {closure.file_of(module) for module in seen}
    assert files < set(code_of(stage))
    return sorted(path for path in files if path)


@pytest.mark.parametrize("stage", stages())
def test_a_stage_needs_nothing_that_its_environment_lacks(stage: str) -> None:
    files = [yaml.safe_load((ROOT / file).read_text())["stages"] for file in ("dvc.yaml", "ablations/dvc.yaml")]
    dvc = (files[0] | files[1])[stage]
    environment = next(dep for dep in dvc.get("do", dvc)["deps"] if dep.startswith("envs/"))
    chosen = "${judge.backend}" in environment
    assert chosen == ("unime/judge/vllm_backend.py" in map(str, code_of(stage)))
    for backend in BACKENDS if chosen else [""]:
        one = environment.replace("${judge.backend}", backend)
        pins = {pin.split("==")[0] for pin in yaml.safe_load((ROOT / one).read_text())["dependencies"][-1]["pip"]}
        needed = {DISTRIBUTIONS.get(name, name) for name in outside(run_by(stage, backend) if chosen else code_of(stage))}
        assert needed <= pins, f"{one} lacks {sorted(needed - pins)}"


def test_vllm_is_imported_in_one_file_alone() -> None:
    assert [str(path) for path in MODULES if "vllm" in outside([path])] == ["unime/judge/vllm_backend.py"]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = (ROOT / path).read_text()
    assert len(text.splitlines()) <= 320, f"{path}: {len(text.splitlines())} lines; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 66, f"{path}: {node.name} has {length} lines; split it"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_bare_except_no_pickle_no_remote_code_no_path_of_one_machine(path: Path) -> None:
    text = (ROOT / path).read_text()
    for node in ast.walk(ast.parse(text)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}: bare except in line {node.lineno}"
        assert not (isinstance(node, ast.keyword) and node.arg == "trust_remote_code"), f"{path}: trust_remote_code"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load":
            raise AssertionError(f"{path}: torch.load in line {node.lineno} reads pickles; use safetensors")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"/(home|root|tmp|work|mnt|data)/", node.value), f"{path}: {node.value!r} is a path of one machine"
    assert not outside([path]) & {"dill", "cloudpickle", "joblib"} and "import pickle" not in text
    assert "TODO" not in text and "FIXME" not in text


def test_the_library_knows_neither_snakemake_nor_dvc() -> None:
    assert not outside(MODULES) & {"snakemake", "dvc", "networkx"}
