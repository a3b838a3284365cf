"""All benchmarks, or those named, one after the other: python benchmarks [NAME ...]

Each prints its section, which takes the place of the one with the same heading in RESULTS.md; sections of others stay, and what has no
heading (lanes, planning, published_scores) is printed only.  Run it on an idle
machine: about an hour on two cores.  `gpu` needs a GPU and runs only where it is named.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ON_A_GPU = ("gpu",)
ALL = ("judge", "train", "retrieval", "mining", "scoring", "growth", "limits", "published_scores", "lanes", "planning")


def put(text: str, section: str) -> str:
    """RESULTS.md with a section in the place of the one with its heading, or at its end."""
    heading = section.splitlines()[0]
    parts = re.split(r"(?m)^(?=## )", text)
    places = [number for number, part in enumerate(parts) if part.splitlines()[:1] == [heading]]
    if places:
        parts[places[0]] = section.rstrip() + "\n\n"
    else:
        parts.append(section.rstrip() + "\n\n")
    return "".join(part.rstrip() + "\n\n" for part in parts).rstrip() + "\n"


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in (*ALL, *ON_A_GPU)]:
        raise SystemExit(f"unknown benchmark {unknown[0]!r}; known: {', '.join((*ALL, *ON_A_GPU))}")
    failed = []
    for name in names or ALL:
        done = subprocess.run(
            [sys.executable, HERE / f"{name}.py"], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        )
        print(done.stdout, flush=True)
        if done.returncode:
            failed.append(name)
            continue
        if not done.stdout.startswith("## "):  # figures to read, no section
            continue
        results = HERE / "RESULTS.md"
        results.write_text(put(results.read_text(encoding="utf-8"), done.stdout), encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
