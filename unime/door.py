"""The frame around every stage: what makes an artifact whole, true to its inputs, and a killed run resumable.

A door names what a stage reads, writes and may know of the configuration; the frame runs it, in this order:

1. The configuration is checked and cut down to the door's sections; the inputs must exist; no other process may make this stage.
2. A digest of the inputs' content, the code (the stage's import closure) and the parameters names the scratch folder
   `scratch/<stage>[@item]/<digest>`, so what a killed run left there is used again if and only if nothing has changed.
3. The door's `run` writes to temporary names beside its outputs.
4. If the parameters, the code or the inputs are no longer what they were at the start, the run fails and leaves nothing: whoever
   records artifacts (DVC reads code and configuration AFTER the command) would otherwise certify an output that they did not make.
5. The outputs are renamed into place, the stage's scratch goes, and one line says what was made.

This module and the doors import nothing heavy, so that `environment` can set thread counts before numerical libraries start.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unime import closure, config, launch
from unime.alone import alone, patience
from unime.costs import Attempt
from unime.inputs import problems, told
from unime.job import Job, Part, PartMade, StageError
from unime.witness import Witness


@dataclass(frozen=True)
class Door:
    """A stage as the frame sees it.

    `inputs` and `outputs` are paths from the repository's root; `{models.base}` stands for a value of the configuration that `sections`
    covers.  `items` is the key of the list (or mapping) that items come from: `{item}` is the task or set; of a mapping `{key}` is the
    name, `{item}` its value and `{item.model}` a part of that, in `sections` too.  `sweep` names, by folder, the list
    (or lists) whose names its subfolders must be among: one left over from a task or set no longer asked for must not enter a table.
    `parts` says that several runs may share its shards (Job.part), `trains` that several processes may (config section `train`).
    `run(config, job, inputs, outputs)` writes `outputs` and returns what to say about them: one line, or a table below it.
    """

    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[config.View, Job, list[Path], list[Path]], str]
    threads: int = 1
    online: bool = False
    items: str | None = None
    parts: bool = False
    trains: bool = False
    sweep: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    @property
    def per_item(self) -> bool:
        return self.items is not None

    def view(self, whole: config.Config, item: str | None) -> config.View:
        """The part of the configuration that a run for this item may know."""
        named = [re.sub(r"\{(key|item)\}", str(item), section) for section in self.sections]
        return whole.view(tuple(section.replace("{item.", f"{{{self.items}.{item}.") for section in named))

    def paths(self, templates: tuple[str, ...], view: config.View, item: str | None) -> list[Path]:
        """Templates with their placeholders filled."""
        keyed = any("{key}" in template for template in (*self.sections, *self.outputs))

        def value(match: re.Match[str]) -> str:
            name, _, part = match[1].partition(".")
            if name == "key" or name == "item" and not keyed:
                return str(item)
            path = [str(self.items), str(item), *([part] if part else [])] if name == "item" else [match[1]]
            return str(config.at(view, ".".join(path)))

        return [Path(re.sub(r"\{([\w.]+)\}", value, template)) for template in templates]


def environment(threads: int, online: bool = False) -> None:
    """Set what numerical libraries read when they are loaded; values that change results or speed are ours, others the user's.

    Only an `online` stage fetches anything.
    """
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ["POLARS_MAX_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)
    for name, value in (
        ("OMP_WAIT_POLICY", "PASSIVE"),  # threads that spin at barriers are fifty times slower as soon as a core is shared
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),  # deterministic matrix products on CUDA
        ("TOKENIZERS_PARALLELISM", "false"),  # forked data loaders
        *([] if online else [("HF_HUB_OFFLINE", "1")]),  # models are folders; nothing is fetched in the middle of a run
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("MPLBACKEND", "Agg"),
    ):
        os.environ.setdefault(name, value)


def threads(door: Door) -> int:
    """CPU threads of this run: UNIME_THREADS (set by a scheduler), else the door's own number."""
    text = os.environ.get("UNIME_THREADS", str(door.threads))
    if not text.isdecimal() or int(text) < 1:
        raise StageError(f"UNIME_THREADS={text!r}: a number of threads, 1 or more, is needed; unset it for the default of {door.threads}")
    return int(text)


def enter(stage: str, door: Door, item: str | None, config_path: Path, code: list[Path]) -> str:
    """Run a stage, or the part of it that UNIME_PART names, and return what to print.

    Raises StageError, ConfigError, or what the room raises; then no output is there.
    """
    source = closure.digest(code)
    whole_config = config.load(config_path)
    _check_item(stage, door, item, whole_config)
    view = door.view(whole_config, item)
    inputs, outputs = (door.paths(templates, view, item) for templates in (door.inputs, door.outputs))
    stage_name, part = stage if item is None else f"{stage}@{item}", _part(stage, door)
    name = f"{stage_name}.{part}" if part else stage_name
    log = _log_to(name)
    with alone(name, patience(part)), launch.ended_politely():
        _empty(name)
        for folder, key in door.sweep.items():
            keys = (key,) if isinstance(key, str) else key
            _sweep(Path(folder), [name for one in keys for name in config.at(view, one)], log)
        _check_inputs(inputs)

        def parameters() -> str:
            return json.dumps(door.view(config.load(config_path), item).dump(), sort_keys=True)

        read = Witness(stage_name, source, parameters, f"{config_path} ({', '.join(door.sections)})", inputs)
        scratch = Path("scratch") / stage_name / read.digest
        scratch.mkdir(parents=True, exist_ok=True)
        job = Job(item=item, threads=threads(door), scratch=scratch, part=part, log=log)
        said = "%s: start, %d threads, python %s, scratch %s, parameters %s"
        log.info(said, name, job.threads, sys.prefix, scratch, read.parameters)
        attempt = Attempt(stage_name, read.digest, name)
        temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in outputs]  # `final` undoes it
        try:
            if part:
                return f"made part {part} of {outputs[0]}: {_share(door, view, job, inputs, temporary, read)}"
            _clear(outputs)
            processes = launch.Processes.of(whole_config) if door.trains else launch.ONE
            if processes.several:
                summary = launch.run(processes, stage, item, config_path, job, temporary)
            else:
                summary = door.run(view, job, inputs, temporary)
            for path, made in zip(temporary, outputs, strict=True):
                if not path.exists():
                    raise StageError(f"{name}: {made} was not written; this is a fault of unime/doors/{stage}.py")
            _unchanged(read, name)
            for path, made in zip(temporary, outputs, strict=True):
                _remove(made)
                os.replace(path, made)
        finally:
            attempt.end()
            for path in temporary:
                _remove(path)
        _remove(scratch.parent)
        log.info("%s: %s: %s", name, attempt.told(), summary)
    more = f" and {len(outputs) - 2} more" if len(outputs) > 2 else ""
    return f"made {', '.join(map(str, outputs[:2]))}{more}: {summary}"


def work(stage: str, door: Door, item: str | None, config_path: Path) -> str:
    """The part of a stage that one of several processes does: those of `launch.run`, which says where it writes.  Prints nothing."""
    given = launch.given()
    view = door.view(config.load(config_path), item)
    inputs = door.paths(door.inputs, view, item)
    name = f"{stage if item is None else f'{stage}@{item}'}.process-{given.rank}"
    log = _log_to(name)
    _empty(name)
    job = Job(item=item, threads=given.threads, scratch=given.scratch, parallel=given.parallel, silent=given.rank > 0, log=log)
    with launch.ended_politely():
        summary = door.run(view, job, inputs, given.outputs)
    if given.rank == 0:
        given.tell(summary)
    return ""


def _part(stage: str, door: Door) -> Part | None:
    text = os.environ.get("UNIME_PART")
    if not text:
        return None
    if not door.parts:
        raise StageError(f"UNIME_PART={text!r}: {stage} has no shards that several runs could share; unset it")
    try:
        return Part.parse(text)
    except ValueError as problem:
        raise StageError(f"UNIME_PART: {problem}") from None


def _share(door: Door, view: config.View, job: Job, inputs: list[Path], temporary: list[Path], read: Witness) -> str:
    """Make one part's shards; they stay in scratch for the run that puts all together, unless something has changed meanwhile."""
    try:
        door.run(view, job, inputs, temporary)
    except PartMade as made:
        try:
            _unchanged(read, f"{job.scratch.parent.name}.{job.part}")
        except StageError:
            _remove(job.scratch)
            raise
        job.log.info("%s", made)
        return str(made)
    raise StageError(f"{job.scratch.parent.name}: it has no shards; this is a fault of its door")


def _unchanged(read: Witness, name: str) -> None:
    """Raises StageError naming what is no longer what it was when the run began."""
    if changed := read.changes():
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise StageError(f"{shown} changed while {name} was running: its output is thrown away and not recorded; run it again")


def final(temporary: Path) -> Path:
    """The place that an output's temporary name stands for: what an earlier run made is still there while a stage runs."""
    return temporary.with_name(temporary.name[1:].rsplit(".", 2)[0])


def _check_item(stage: str, door: Door, item: str | None, whole_config: config.Config) -> None:
    if not door.per_item:
        if item is not None:
            raise StageError(f"{stage} takes no item, found {item!r}; run `python -m unime {stage}`")
        return
    known = list(config.at(whole_config, str(door.items)))
    if not known:
        raise StageError(f"{door.items} is empty: there is nothing for {stage} to do")
    if item is None:
        raise StageError(f"{stage} runs once per item of {door.items}; run `python -m unime {stage} {known[0]}`")
    if item not in known:
        raise StageError(f"{item!r} is not in {door.items}{config.nearest(item, known)}")


def _log_file(name: str) -> Path:
    return Path("logs") / f"{name.replace('@', '.')}.log"


def _empty(name: str) -> None:
    """Begin the stage's log anew; this process alone writes it now."""
    os.truncate(_log_file(name), 0)


def _check_inputs(inputs: list[Path]) -> None:
    """Raises StageError naming an input that is missing, and what in the others cannot be read, before anything is read."""
    for path in inputs:
        if not path.exists():
            raise StageError(f"{path}: no such input; `snakemake` makes it, or put it there if it is data or a model of your own")
        found = problems(path)
        if found:
            raise StageError(told(found))


def _log_to(name: str) -> logging.Logger:
    """The package's logger at INFO, everybody else's warnings too, to the end of a file, which another process may be writing."""
    path = _log_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="a", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().handlers = [handler]
    logging.captureWarnings(True)
    log = logging.getLogger(closure.PACKAGE)
    log.setLevel(logging.INFO)
    return log


def _sweep(folder: Path, items: list[str], log: logging.Logger) -> None:
    for left in sorted(folder.iterdir()) if folder.is_dir() else []:
        if left.is_dir() and left.name not in items and not left.name.startswith("."):  # .<name>.tmp: another stage at work
            log.info("removing %s: no longer asked for", left)
            shutil.rmtree(left, ignore_errors=True)  # stages that run side by side may sweep the same folder


def _clear(outputs: list[Path]) -> None:
    """Remove temporary names that a killed run left beside the outputs."""
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+\.tmp", left.name):
                _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fail(problem: BaseException, name: str) -> int:
    """Say in a line on screen what went wrong in a stage or tool, and in its log in full; the exit code."""
    if isinstance(problem, KeyboardInterrupt):
        print("interrupted: no output was touched; the same command goes on from the parts that were finished", file=sys.stderr)
        return 130
    known = isinstance(problem, StageError | config.ConfigError)
    expected = known or isinstance(problem, ValueError | OSError)  # rooms' own errors are ValueErrors
    kind = "" if expected else f"{type(problem).__name__}: "
    text = str(problem)
    if isinstance(problem, OSError) and problem.filename is not None:
        text = f"{problem.filename}: {problem.strerror}"
    log = logging.getLogger(closure.PACKAGE)
    if not expected and not log.hasHandlers():
        log = _log_to(name)  # before a stage began, or in a tool: what nobody foresaw is kept where a stage would have kept it
        text = f"{text} (more in logs/{name}.log)"
    if log.hasHandlers():
        log.error("%s", problem, exc_info=None if known else problem)
    print(f"error: {kind}{text}", file=sys.stderr)
    return 2 if isinstance(problem, config.ConfigError) else 1
