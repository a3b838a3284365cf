"""Mean and standard deviation over runs with different seeds: python benchmarks/seeds.py run1/mmeb_table.csv run2/mmeb_table.csv ...

Each file is the results/mmeb_table.csv of one run; the runs differ in `seed` (config.yaml) and in nothing else.  Prints markdown: every
row's means, and the paired differences between rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout without installation

from unime.artifacts import ArtifactError  # noqa: E402
from unime.report import seeds  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path, help="mmeb_table.csv of each run")
    try:
        print(seeds.to_markdown(seeds.read(parser.parse_args().tables)))
    except ArtifactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
