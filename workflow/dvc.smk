"""DVC decides what is stale, Snakemake decides when and where it runs.

dvc.yaml is the only stage table.  A rule takes needs(stage) as input, adds touch(done(stage)) to its outputs and runs repro(stage).
DVC's verdict reaches the scheduler as two private files per stage: stale/<stage> is newer than the outputs if and only if DVC wants
the stage redone; done/<stage> is the edge to the stages below, parts/<stage>/ that from the jobs that share its shards (they fill its
scratch folder and DVC does not know them).  None is part of any artifact, and all are derived from dvc.lock
whenever Snakemake starts, so a fresh clone behaves like the old checkout.  A rule's other inputs, all ancient(), tell the reader
(and a clean-up) what the stage reads; they decide nothing.

One Snakemake at a time: the marks are one set.  The lock that says so is the process's own, so no kill leaves it behind, and
Snakemake's (which a kill does leave behind) is switched off in profiles/default.
"""

import errno
import fcntl
import os
import shlex
import shutil
import socket
import sys
import time
from pathlib import Path

import networkx
from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from lockfile import DAMAGED
from repro import mend_rwlock
from unime.__main__ import open_door
from unime.config import at as config_at
from unime.config import keys_of, nearest
from unime.inputs import problems, told

MARKS = Path(".dvc/tmp/snakemake")

# A stage's command is plain `python`: the one that runs Snakemake, unless a conda environment goes before it.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]))


def alone():
    """Hold this checkout's lock for as long as this process lives.  Raises WorkflowError naming who else holds it."""
    MARKS.mkdir(parents=True, exist_ok=True)
    lock = (MARKS / "lock").open("a+")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in (errno.EAGAIN, errno.EACCES):
            raise WorkflowError(f"{lock.name}: this file system gives no locks ({problem}); mount it with them") from None
        lock.seek(0)
        owner = lock.read() or "another process"
        raise WorkflowError(f"this checkout is in use: Snakemake is {owner}; wait for it, or end it, and run again") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock  # kept open: closing any handle of this file in this process would give the lock up


def ask_dvc(judge):
    """The stages directly above every stage, what to sweep, and what stops stale stages; if `judge`, refresh the marks and say what is stale."""
    try:
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            graph, left, stopped = repo.index.graph, [], {}  # edges point upstream
            above = {stage.name: [up.name for up in graph[stage]] for stage in graph}
            if judge:
                if writers := mend_rwlock(repo):  # `status` would see those of this node alone
                    path, info = next(iter(writers.items()))
                    raise LockError(f"'{path}' is busy, it is being blocked by:\n  (PID {info['pid']}): {info['cmd']}")
                outs = outputs(graph)
                check_inputs(graph, outs)
                status = repo.status()
                roots = [stage for stage in graph if stage.addressing in status]
                stale = {low.name for root in roots for low in (root, *networkx.ancestors(graph, root))}
                mark(above, stale)
                known = {root for root in roots if any(out.hash_info for out in root.outs)}
                why = {root.name: status[root.addressing] if root in known else ["never recorded"] for root in roots}
                tell(why, stale, above, {stage.name for stage in graph if stage.path_in_repo == "dvc.yaml"})
                left = left_over(graph)
                stopped = {stage.name: lacking(stage, outs) for stage in graph if stage.name in stale}
                stopped = {name: why for name, why in stopped.items() if why} | too_large(stale)
        return above, left, stopped
    except LockError as busy:
        text = str(busy).partition("\n\n")[0]
        raise WorkflowError(f"DVC is at work in this checkout: {text}\nWait for it, or end it, and run again") from None
    except DvcException as problem:
        text = f"{problem}" + (f": {problem.__cause__}" if problem.__cause__ else "")
        if "dvc.lock" in text:
            text += f"\n{DAMAGED}"
        raise WorkflowError(text) from None


def lacking(stage, outs):
    """Why a stage cannot run: an input that is not there and that no stage makes; '' if there is none."""
    for path, name in inputs_of(stage):
        if not path.exists() and not made(path, outs):
            return missing_input(stage.name, name)
    return ""


def too_large(stale):
    """What to say of each stale training whose batch is larger than its table; stale tables are of other rows, so files are counted then."""
    if not any(name.startswith(("train_", "ablation_train@")) for name in stale):
        return {}  # nothing would train, so no rows need be counted
    from unime.plan import fits  # loads polars, which a job that Snakemake starts does not need

    found = fits.problems(CONFIG, read="filter_train" not in stale)
    return {stage: why for stage, why in found.items() if stage in stale}


def check_inputs(graph, outs):
    """Raise WorkflowError for what lies in an input from outside and DVC would wait for at its hashing, or not see."""
    whole, _ = outs
    given = {path: name for stage in graph for path, name in inputs_of(stage) if not within(path, whole)}
    for path, name in sorted(given.items()):
        found = problems(Path(name) if Path(name).exists() else path)
        if found:
            raise WorkflowError(told(found))


def inputs_of(stage):
    """Path of every file and folder that a stage reads, and its name as dvc.yaml or config.yaml writes it."""
    return [(Path(dep.fs_path), dep.def_path) for dep in stage.deps if not isinstance(dep, ParamsDependency)]


def outputs(graph):
    """All outputs of all stages, and the folders that they lie in."""
    whole = {Path(out.fs_path) for stage in graph for out in stage.outs}
    return whole, {above for out in whole for above in out.parents}


def made(path, outs):
    """Whether stages make this path, something in it, or a folder that it lies in."""
    whole, above = outs
    return path in above or within(path, whole)


def within(path, folders):
    """Whether the path is one of the folders, or lies in one."""
    return any(folder in folders for folder in (path, *path.parents))


def missing_input(stage, name):
    """Say which input is missing, which key of config.yaml names it, and what can be done."""
    keys = keys_of(CONFIG, name)
    if not keys:
        return f"{name} is missing, and {stage} needs it; get it back, e.g. with `git checkout {name}`"
    said = f"{keys[0]} names {name}, which is not there and which no stage makes; {stage} needs it"
    absent = Path(name)
    while not absent.parent.exists():
        absent = absent.parent
    beside = sorted(found.name for found in absent.parent.iterdir() if found.is_dir())
    near = nearest(absent.name, beside)
    near = near if near.startswith("; nearest") else ""
    return f"{said}.  Put it there, or correct {' and '.join(keys)} in config.yaml{near}"


def left_over(graph):
    """Folders of tasks and sets no longer asked for: a stage that reads all of them would read these too."""
    outs = {Path(out.fs_path) for stage in graph for out in stage.outs}
    parents = {Path(out.fs_path).parent for stage in graph if "@" in stage.name for out in stage.outs if out.use_cache}
    found = [left for parent in parents if parent.is_dir() for left in parent.iterdir() if left.is_dir() and left not in outs]
    return [left for left in found if not left.name.startswith(".") and not any(left in out.parents for out in outs)]


def mark(stages, stale):
    """Write both marks of every stage; see above."""
    for name in stages:
        for path in Path(stale_mark(name)), Path(done(name)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (0, 0))
        if name in stale:  # a text of its own: Snakemake overlooks a newer file of equal content
            Path(stale_mark(name)).write_text(str(time.time_ns()))
            Path(done(name)).unlink()
        mark_parts(name, name in stale)


def mark_parts(stage, stale):
    """The jobs that share a stage's shards are all to run if it is stale, else none is."""
    shutil.rmtree(Path(part(stage)).parent, ignore_errors=True)
    for one in map(Path, parts(stage)({}) if stage.partition("@")[0] in PARTS and not stale else []):
        one.parent.mkdir(parents=True, exist_ok=True)
        one.touch()
        os.utime(one, (0, 0))


def tell(status, stale, above, main):
    """Say which stages of dvc.yaml (`main`) DVC wants redone first, and why: in Snakemake's own plan every reason is a mark."""
    if found := stale & main:
        print(f"DVC: {len(found)} of {len(main)} stages are stale or below a stale one, first of all", file=sys.stderr)
    first = [name for name in status if name in main and not stale.intersection(above[name])]
    for name in first[:8]:
        why = list(reasons(status[name]))
        print(f"  {name}: {', '.join(why[:3])}{', ...' if len(why) > 3 else ''}", file=sys.stderr)
    if first[8:]:
        print(f"  and {len(first) - 8} more", file=sys.stderr)


def reasons(changes):
    """`modified unime/mine/__init__.py`, `modified mine.beta`, ... from DVC's nested account of one stage."""
    for change in changes:
        if isinstance(change, str):
            yield change
            continue
        for what, how in next(iter(change.values())).items():
            yield from (f"{word} {key}" for key, word in (how.items() if isinstance(how, dict) else [(what, how)]))


def stale_mark(stage):
    return str(MARKS / "stale" / stage)


def done(stage):
    return str(MARKS / "done" / stage)


def part(stage):
    """The mark of one of the jobs that share a stage's shards, a pattern with the wildcard `part`."""
    return str(MARKS / "parts" / stage / "{part}")


def parts(stage):
    """Input function: the marks of all jobs that share the stage's shards; none where one job makes them all."""
    count, mark = PARTS[stage.partition("@")[0]], part(stage)
    numbers = [f"{number}-of-{count}" for number in range(1, count + 1)] if count > 1 else []
    return lambda wildcards: [mark.format(**dict(wildcards), part=number) for number in numbers]


def needs(stage):
    """Input function: DVC's verdict on a stage (name or wildcard pattern), and the stages that it needs."""

    def inputs(wildcards):
        name = stage.format(**dict(wildcards))
        if name not in ABOVE:
            raise SystemExit(f"error: {not_asked_for(name)}")
        if name in STOPPED:  # not a WorkflowError: Snakemake would take the old output, which is there, and say that there is nothing to do
            raise SystemExit(f"error: {STOPPED[name]}")
        return [stale_mark(name), *map(done, ABOVE[name])]

    return inputs


def not_asked_for(name):
    """What to say of a stage that config.yaml does not ask for, such as export@in_batch."""
    stage, _, item = name.partition("@")
    key = open_door(stage).items
    known = ", ".join(config_at(CONFIG, key))
    return f"{key} in config.yaml does not name {item!r} (it names: {known}); add it there, and `snakemake` makes {stage} {item}"


def repro(stage, file="dvc.yaml", part=""):
    """The job of a rule: DVC runs, restores or skips the stage of that file; on screen goes its own summary, or why there is none.

    With a part (`2-of-8`) the job makes that part of the stage's shards, unless DVC has its output.
    """
    job = f"{shlex.quote(sys.executable)} workflow/repro.py {stage if file == 'dvc.yaml' else f'{file}:{stage}'} {part}".rstrip()
    stage = f"{stage} {part}".rstrip()
    return (
        f"echo 'stage {stage}'\n"
        f"UNIME_THREADS={{threads}} {job} > {{log}} 2>&1 || {{{{ tail -n 20 {{log}} >&2; exit 1; }}}}\n"
        f"awk -v stage='{stage}' -f workflow/summary.awk {{log}}"
    )


ALONE = alone() if workflow.is_main_process else None
ABOVE, LEFT, STOPPED = ask_dvc(judge=workflow.is_main_process)


onstart:  # before the first job, and only where jobs run
    for left in LEFT:
        shutil.rmtree(left, ignore_errors=True)
