"""unime/closure.py: a stage's code is exactly what it can run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unime import closure
from unime.__main__ import code_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "unime/__init__.py": "",
        "unime/a.py": "import json\nimport unime.b\n",
        "unime/b.py": "def late():\n    from unime import c\n    return c\n",
        "unime/c.py": "import unime.a\nNAME = 'not unime.d at all'\n",
        "unime/d.py": "import importlib\n\nimportlib.import_module('unime.sub.leaf')\n",
        "unime/alone.py": "import numpy\nimport unimelike\n",
        "unime/sub/__init__.py": "from unime import e\n",
        "unime/sub/leaf.py": "from . import other\nfrom ..alone import thing\n",
        "unime/sub/other.py": "",
        "unime/e.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def names(files: list[Path]) -> list[str]:
    return [path.as_posix().removeprefix("unime/") for path in files]


def test_imports_inside_functions_and_circles_are_followed(package: Path) -> None:
    assert names(closure.closure("unime.a", root=package)) == ["__init__.py", "a.py", "b.py", "c.py"]


def test_literal_module_names_relative_imports_and_packages_on_the_way_count(package: Path) -> None:
    found = names(closure.closure("unime.d", root=package))
    assert found == ["__init__.py", "alone.py", "d.py", "e.py", "sub/__init__.py", "sub/leaf.py", "sub/other.py"]


def test_an_unknown_module_is_an_error_that_names_it(package: Path) -> None:
    (package / "unime/a.py").write_text("import unime.nowhere\n")
    with pytest.raises(ValueError, match="unime.nowhere"):
        closure.closure("unime.a", root=package)


def test_a_digest_names_each_file_and_follows_its_bytes(package: Path) -> None:
    files = closure.closure("unime.b", root=package)
    before = closure.digest(files, package)
    (package / "unime/c.py").write_text("# other\n")
    after = closure.digest(files, package)
    assert list(before) == list(after) and {path for path in before if before[path] != after[path]} == {"unime/c.py"}


def test_rooms_of_one_stage_are_not_code_of_another() -> None:
    for stage, absent in (("mine", "unime/train/"), ("mine", "unime/backbones/"), ("judge", "unime/train/"), ("report", "unime/judge/")):
        code = [path.as_posix() for path in code_of(stage)]
        assert f"unime/doors/{stage}.py" in code and not any(path.startswith(absent) for path in code), (stage, absent)
        assert sum(path.startswith("unime/doors/") and not path.startswith("unime/doors/_") for path in code) == 1


def test_what_a_stage_loads_is_in_its_closure() -> None:
    """Every module of a closure is imported for real; whatever that loads must be in the closure too."""
    script = """
import importlib, sys
from unime.__main__ import code_of
from unime.closure import repository
for stage in ("suite", "mine", "judge", "train_reranker", "report"):
    for name in [n for n in sys.modules if n.split(".")[0] == "unime"]:
        del sys.modules[name]
    code = {path.as_posix() for path in code_of(stage)}
    for path in sorted(code - {"unime/__main__.py"}):
        importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "unime"]
    loaded = {str(file).removeprefix(str(repository()) + "/") for file in files}
    assert len(loaded) > 5 and loaded <= code, (stage, loaded - code)
print("all of it")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "all of it"
