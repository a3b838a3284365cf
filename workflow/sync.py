"""Write each stage's import closure into dvc.yaml and ablations/dvc.yaml.

usage: python workflow/sync.py [--check]      (run it after adding, moving or importing a module; --check only compares)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unime.__main__ import code_of  # noqa: E402

FILES = ("dvc.yaml", "ablations/dvc.yaml")
CODE = re.compile(r"\s+- unime/\S+\.py")


def synced(text: str) -> str:
    """The text of dvc.yaml with the code that every stage runs now, after its other deps."""
    lines: list[str] = []
    stage = ""
    for line in text.splitlines():
        if CODE.fullmatch(line):
            continue
        if found := re.match(r"  (\w+):$", line):
            stage = found[1]
        if found := re.match(r"( +)outs:$", line):
            lines += [f"{found[1]}  - {path}" for path in code_of(stage)]
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    status = 0
    for name in FILES:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = synced(old)
        if new == old:
            print(f"{name} names the code that its stages run")
        elif "--check" in sys.argv[1:]:
            print(f"{name} names other code than its stages run: python workflow/sync.py", file=sys.stderr)
            status = 1
        else:
            (ROOT / name).write_text(new, encoding="utf-8")
            print(f"{name} is changed: its stages run other code than before")
    return status


if __name__ == "__main__":
    sys.exit(main())
