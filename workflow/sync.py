"""Write each stage's import closure into dvc.yaml.

usage: python workflow/sync.py [--check]      (run it after adding, moving or importing a module; --check only compares)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unime.__main__ import code_of  # noqa: E402

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
    path = ROOT / "dvc.yaml"
    old = path.read_text(encoding="utf-8")
    new = synced(old)
    if new == old:
        print("dvc.yaml names the code that its stages run")
        return 0
    if "--check" in sys.argv[1:]:
        print("dvc.yaml names other code than its stages run: python workflow/sync.py", file=sys.stderr)
        return 1
    path.write_text(new, encoding="utf-8")
    print("dvc.yaml is changed: its stages run other code than before")
    return 0


if __name__ == "__main__":
    sys.exit(main())
