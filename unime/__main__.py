"""The command line: `python -m unime <stage> [item]` makes one stage's artifacts; `python -m unime --help` lists the stages.

Doors are opened by name, so the code that a stage depends on (unime/closure.py) is this frame and its own rooms, no others.
"""

from __future__ import annotations

import argparse
import graphlib
import importlib
import io
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from unime import closure, config, door, doors, launch, tools


def stages() -> list[str]:
    """Names of all doors, in the alphabet's order."""
    return sorted(module.name for module in pkgutil.iter_modules(doors.__path__) if not module.name.startswith("_"))


def open_door(stage: str) -> door.Door:
    """The door of a stage.  Importing it loads no room."""
    return importlib.import_module(f"{doors.__name__}.{stage}").DOOR


def item_from_dvc(stage: str, opened: door.Door) -> str | None:
    """The item of the stage that DVC runs, from DVC_STAGE: "NanoColor" of `judge@NanoColor`; None for another stage, or without DVC."""
    found = re.fullmatch(rf"(?:[^@]*dvc\.yaml:)?{stage}@(.+)", os.environ.get("DVC_STAGE", ""), flags=re.DOTALL)
    return found[1] if found and opened.per_item else None


def code_of(stage: str) -> list[Path]:
    """Every file of the package that `python -m unime <stage>` may run."""
    return closure.closure(__spec__.name if __name__ == "__main__" else __name__, f"{doors.__name__}.{stage}")


def flow(names: list[str]) -> list[str]:
    """Stages in data-flow order: who writes before who reads."""
    try:
        values = config.load()
    except config.ConfigError:
        values = None  # placeholders stay as they stand

    def filled(template: str) -> str:
        return re.sub(r"\{(?!item|key)([\w.]+)\}", lambda found: str(config.at(values, found[1])), template) if values else template

    opened = {name: open_door(name) for name in names}
    reads = {name: [filled(path) for path in it.inputs] for name, it in opened.items()}
    writes = {name: [filled(path) for path in it.outputs] for name, it in opened.items()}
    above = {
        name: [other for other in names if any(_inside(a, b) or _inside(b, a) for a in reads[name] for b in writes[other])]
        for name in names
    }
    return list(graphlib.TopologicalSorter(above).static_order())


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def help_text() -> str:
    lines = ["stages:"]
    for name in flow(stages()):
        module = importlib.import_module(f"{doors.__name__}.{name}")
        what = (module.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name + (' ITEM' if module.DOOR.per_item else ''):<22} {what}")
    lines += ["", "tools:"]
    for name in known_tools():
        what = (importlib.import_module(f"{tools.__name__}.{name}").__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:<22} {what}")
    return "\n".join(lines)


def known_tools() -> list[str]:
    """Names of the commands that are no stages."""
    return sorted(module.name for module in pkgutil.iter_modules(tools.__path__))


def use(name: str, arguments: Sequence[str]) -> int:
    """Run a tool on its own arguments."""
    tool = importlib.import_module(f"{tools.__name__}.{name}")
    parser = argparse.ArgumentParser(prog=f"unime {name}", description=(tool.__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="default: config.yaml")
    tool.add_arguments(parser)
    given = parser.parse_args(arguments)
    try:
        door.environment(os.cpu_count() or 1)
        say(tool.run(given, config.load(given.config)))
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130
    except Exception as problem:
        return door.fail(problem, name)
    return 0


def say(text: str) -> None:
    """Print what a command has to say.  A reader that has gone, such as `head`, is no failure: what was made is there."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes standard output once more at its end, and would fail there.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def plain_where_needed() -> None:
    """A character that the terminal's encoding lacks is shown as an escape (\\xe9), on either stream, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    plain_where_needed()
    if arguments and arguments[0] in known_tools():
        return use(arguments[0], arguments[1:])
    asked = not arguments or bool({"-h", "--help"} & set(arguments))
    parser = argparse.ArgumentParser(
        prog="unime",
        description="UniME-V2, open.  One stage at a time; `snakemake --cores all` or `dvc repro` runs them all.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=help_text() if asked else None,
    )
    parser.add_argument("stage", help="one of the stages below")
    parser.add_argument("item", nargs="?", help="the task, for stages that run once per task")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="default: config.yaml")
    if not arguments:
        parser.print_help()
        return 2
    given = parser.parse_args(arguments)
    if given.stage not in stages():
        print(f"error: no stage {given.stage!r}{config.nearest(given.stage, stages())}", file=sys.stderr)
        return 2
    try:
        opened = open_door(given.stage)
        item = given.item or item_from_dvc(given.stage, opened)
        door.environment(door.threads(opened), opened.online)
        if launch.is_worker():
            door.work(given.stage, opened, item, given.config)
            return 0
        if "DVC_STAGE" in os.environ:
            launch.end_with_dvc()
        code = code_of(given.stage)
        say(door.enter(given.stage, opened, item, given.config, code))
    except (Exception, KeyboardInterrupt) as problem:
        return door.fail(problem, given.stage)
    return 0


def in_utf8() -> None:
    """Start this command again in Python's UTF-8 mode where a locale such as C has another encoding for the names of files.

    Rows and tables name files in UTF-8.  What PYTHONIOENCODING says of the terminal stays.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


if __name__ == "__main__":
    in_utf8()
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before a stage or a tool began, or in the help
        sys.exit(130)
