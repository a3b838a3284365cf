"""DVC decides what is stale, Snakemake decides when and where it runs.

dvc.yaml is the only stage table.  A rule takes needs(stage) as input, adds touch(done(stage)) to its outputs and runs repro(stage).
DVC's verdict reaches the scheduler as two private files per stage: stale/<stage> is newer than the outputs if and only if DVC wants
the stage redone; done/<stage> is the edge to the stages below.  Neither is part of any artifact, and both are derived from dvc.lock
whenever Snakemake starts, so a fresh clone behaves like the old checkout.  A rule's other inputs, all ancient(), tell the reader
(and a clean-up) what the stage reads; they decide nothing.
"""

import os
import shlex
import sys
import time
from pathlib import Path

import networkx
from dvc.repo import Repo, lock_repo

MARKS = Path(".dvc/tmp/snakemake")

# A stage's command is plain `python`: the one that runs Snakemake, unless a conda environment goes before it.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]))


def ask_dvc(judge):
    """The stages directly above every stage; if `judge`, refresh the marks and say what is stale."""
    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
        graph = repo.index.graph  # edges point upstream
        above = {stage.addressing: [up.addressing for up in graph[stage]] for stage in graph}
        if judge:
            status = repo.status()
            roots = [stage for stage in graph if stage.addressing in status]
            stale = {low.addressing for root in roots for low in (root, *networkx.ancestors(graph, root))}
            mark(above, stale)
            tell({root.addressing: status[root.addressing] for root in roots}, stale, above)
    return above


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


def tell(status, stale, above):
    """Say which stages DVC wants redone first, and why: in Snakemake's own plan every reason is a mark."""
    if stale:
        print(f"DVC: {len(stale)} of {len(above)} stages are stale or below a stale one, first of all", file=sys.stderr)
    first = [name for name in status if not stale.intersection(above[name])]
    for name in first[:8]:
        why = list(reasons(status[name]))
        print(f"  {name}: {', '.join(why[:3])}{', ...' if len(why) > 3 else ''}", file=sys.stderr)
    if first[8:]:
        print(f"  and {len(first) - 8} more", file=sys.stderr)


def reasons(changes):
    """`modified unime/mine.py`, `modified mine.beta`, ... from DVC's nested account of one stage."""
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


def needs(stage):
    """Input function: DVC's verdict on a stage (name or wildcard pattern), and the stages that it needs."""

    def inputs(wildcards):
        name = stage.format(**dict(wildcards))
        return [stale_mark(name), *map(done, ABOVE[name])]

    return inputs


def repro(stage):
    """The job of a rule: DVC runs, restores or skips the stage; on screen goes the stage's own summary, or why there is none."""
    dvc = f"{shlex.quote(sys.executable)} -m dvc --wait-for-lock repro --single-item {stage}"
    return (
        f"echo 'stage {stage}'\n"
        f"UNIME_THREADS={{threads}} {dvc} > {{log}} 2>&1 || {{{{ tail -n 20 {{log}} >&2; exit 1; }}}}\n"
        f"awk -v stage={stage} -f workflow/summary.awk {{log}}"
    )


ABOVE = ask_dvc(judge=workflow.is_main_process)
