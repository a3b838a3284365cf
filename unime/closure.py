"""Which files of this package a module runs: its static import closure.

A stage depends on exactly the code that it can run.  The closure is read from the syntax trees, nothing is imported: every `import`
and `from` statement of a module counts, inside functions too, and so does the `__init__.py` of every package on the way.  A module
that is named by a string literal (`importlib.import_module("unime.x")`) counts as well, so a registry cannot hide one; a name that
is put together at run time cannot be seen, which only the command line does (it adds the closure of the door that it opens).
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

PACKAGE = __name__.split(".")[0]


def repository() -> Path:
    """The folder that holds the package."""
    return Path(__file__).resolve().parent.parent


def file_of(module: str, root: Path | None = None) -> Path | None:
    """The file of a module of the package, relative to `root`; None where there is no such module."""
    root = root or repository()
    base = Path(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if (root / path).is_file():
            return path
    return None


def closure(*modules: str, root: Path | None = None) -> list[Path]:
    """Sorted files, relative to `root`, that running these modules may execute.  Raises ValueError for an unknown module."""
    root = root or repository()
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        if file_of(module, root) is None:
            raise ValueError(f"there is no module {module!r} under {root}; check the import that names it")
        seen.add(module)
        waiting += [module.rpartition(".")[0]] if "." in module else []
        waiting += imports(module, root)
    return sorted({path for module in seen if (path := file_of(module, root))})


def imports(module: str, root: Path | None = None) -> list[str]:
    """Modules of the package that one module names directly, sorted."""
    root = root or repository()
    path = file_of(module, root)
    if path is None:
        raise ValueError(f"there is no module {module!r} under {root}; check the import that names it")
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"), str(path))):
        found |= {name for name in _named(node, here, root) if name.split(".")[0] == PACKAGE}
    return sorted(found - {module})


def _named(node: ast.AST, here: list[str], root: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])]) if node.level else str(node.module)
        below = [f"{base}.{alias.name}" for alias in node.names]
        return [base, *(name for name in below if name.split(".")[0] == PACKAGE and file_of(name, root))]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PACKAGE + "."):
        parts = node.value.split(".")
        return [node.value] if all(part.isidentifier() for part in parts) and file_of(node.value, root) else []
    return []


def digest(files: list[Path], root: Path | None = None) -> dict[str, str]:
    """SHA-256 of each file's bytes, by its path."""
    root = root or repository()
    return {str(path): hashlib.sha256((root / path).read_bytes()).hexdigest() for path in files}
