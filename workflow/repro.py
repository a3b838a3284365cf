"""The job of every rule: `dvc repro --single-item STAGE`, fit for many jobs at once, several nodes, and kills.

usage: python workflow/repro.py STAGE [PART]

DVC does all of it: skips the stage, restores it from the cache or runs it, and records it in dvc.lock.  Around it, for the time of this
process only, stands what DVC leaves to a person:

- busy: a stage that another process is making is waited for, not failed;
- killed: a lock entry whose process is gone is dropped, also where another process, or one on another node, has its number now; and
  dvc.lock is replaced whole, never cut off;
- other nodes: DVC knows a lock's owner by its process number, so a command on one node drops the entries of another; their owner,
  done with its work, does not stumble over that;
- changed: inputs, code or parameters that are others after the command than before it fail the stage.  DVC would record the new
  ones with the old output (its issue 11058); the stage's own guard (unime/door.py) cannot see what changes after it has ended;
- shared: with a default remote (`core.remote`), what the remote holds is fetched instead of computed.  DVC's own --pull copies the
  whole run-cache for every stage; here it is this stage's entry;
- shared out: with a PART (`2-of-8`) only that part of the stage's shards is made, into its scratch folder; DVC records nothing, and is
  asked only whether it has the stage's output already;
- too large: a batch that is larger than the training table stops the first stages that cost much, not the training after them;
- rotten: a file in the cache or from the remote whose content is not what its name says is dropped, not restored.

Uses parts of DVC that are not public: pyproject.toml pins it.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from dvc import dvcfile, rwlock
from dvc.exceptions import DvcException, ReproductionError
from dvc.lock import LockError, make_lock
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage
from dvc.stage import run as stage_run
from dvc.stage.cache import StageCache, _get_stage_hash
from dvc_data.hashfile.db import HashFileDB
from lockfile import DAMAGED, replaced

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's library, whichever is installed

from unime.config import load  # noqa: E402

WAIT = 2.0
"""Seconds between two looks at a lock that another process holds."""

PAID = ("train_in_batch", "embed_train", "judge")
"""The first stages that cost much.  Before them the training tables are there, and may be shorter than the files that they are made of."""

log = logging.getLogger("dvc.unime")


class ChangedMeanwhile(DvcException):
    """What a stage read is no longer what it was when the stage began."""


def main(stage: str, part: str | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows names all the same
    sys.argv[0] = f"{socket.gethostname()}: {Path(sys.argv[0]).name}"  # DVC's locks show it to whoever meets them
    if stage.partition("@")[0] in PAID:
        from unime.plan import fits  # loads polars, which other jobs do not need

        too_large = fits.of_the_run(fits.problems(load()))
        if too_large:
            log.error("%s", "\n".join(too_large.values()))
            return 1
    ran: list[str] = []
    dvcfile.modify_yaml = replaced
    rwlock._release_read, rwlock._release_write = forgiving(rwlock._release_read), forgiving(rwlock._release_write)
    PipelineStage.save = guarded(Stage.save)
    stage_run.cmd_run = noted(stage_run.cmd_run, ran)
    told, pull = "", True
    while True:
        try:
            with Repo(_wait_for_lock=True) as repo, signed(Path(repo.tmp_dir)):
                mend_rwlock(repo)
                remote = repo.config["core"].get("remote")
                if remote in repo.config["remote"]:
                    repo.config["remote"][remote].setdefault("verify", True)
                repo.stage_cache = Shared(repo)
                odb = repo.cache.local
                odb.check = lambda oid, check_hash=True, _info=None, odb=odb: HashFileDB.check(odb, oid, check_hash, _info)
                if part is not None:
                    command = missing(repo, stage, remote is not None)
                    break
                repo.reproduce(stage, single_item=True, pull=pull and remote is not None)
            return 0
        except DvcException as error:
            cause = error.__cause__ if isinstance(error, ReproductionError) else error
            if isinstance(cause, LockError) and not ran:
                busy = str(cause).partition("\n\n")[0]
                if busy != told:
                    log.info("waiting: %s", busy)
                told = busy
                time.sleep(WAIT)
            elif isinstance(error, ReproductionError) and pull and remote is not None and not ran:
                log.warning("the remote gave nothing for %s (%s); going on without it", stage, cause)
                pull = False
            else:
                log.error("%s: %s", stage, explained(cause))
                return 1
    if command is None:
        print(f"kept {stage}: unchanged, or DVC has it: nothing to share out")
        return 0
    return subprocess.run(command, shell=True, env={**os.environ, "DVC_STAGE": stage, "UNIME_PART": part}).returncode


def explained(problem: BaseException) -> str:
    """DVC's reason, and what to do where the damage is in a file of its own."""
    text = str(problem)
    below: BaseException | None = problem
    while below is not None and not isinstance(below, OSError):
        below = below.__cause__ or below.__context__
    file = below.filename if isinstance(below, OSError) else None
    if file and str(file) not in text:
        text += f" ({file})"
    if "dvc.lock" in text:
        return f"{text}\n{DAMAGED}"
    if f"{os.sep}cache{os.sep}" in text:
        return f"{text}\nIf it is damaged, remove it: what it held is made, or fetched, again"
    return text


def missing(repo: Repo, target: str, pull: bool) -> str | None:
    """The stage's command; None where the checkout or DVC's cache has what it would make."""
    (stage,) = repo.stage.collect(target)
    with repo.lock:
        if not stage.changed():
            return None
        return None if repo.stage_cache.known(stage, pull) else stage.cmd


def noted(run: Callable[..., None], ran: list[str]) -> Callable[..., None]:
    """DVC's `cmd_run`; `ran` says that the command was started, so that no failure after it has it run twice."""

    def noting(stage: Stage, **options: Any) -> None:
        ran.append(stage.addressing)
        run(stage, **options)

    return noting


@contextmanager
def signed(folder: Path) -> Iterator[None]:
    """Hold a lock file named after this process: whoever meets its entries in DVC's lock, on any node, sees whether it lives."""
    path = sign(folder, socket.gethostname(), os.getpid())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def sign(folder: Path, host: str, process: int) -> Path:
    return folder / "snakemake" / "jobs" / f"{host}.{process}"


def forgiving(release: Callable[..., None]) -> Callable[..., None]:
    """DVC's release of lock entries, for entries that another node has dropped already."""

    def released(lock: Any, info: Any, paths: list[str]) -> None:
        for path in paths:
            with suppress(AssertionError, KeyError):
                release(lock, info, [path])

    return released


def mend_rwlock(repo: Repo) -> dict[str, dict[str, Any]]:
    """Drop what killed processes left in DVC's list of busy paths: a file cut off, or entries of nobody.  Gives who writes what."""
    folder = Path(repo.tmp_dir)
    path, hardlink = folder / "rwlock", repo.config["core"].get("hardlink_lock", False)
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder), hardlink_lock=hardlink, wait=True):
        try:
            held = {"write": {}, "read": {}} | json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError:
            path.unlink()
            return {}
        write = {busy: info for busy, info in held["write"].items() if alive(folder, info)}
        read = {busy: [info for info in infos if alive(folder, info)] for busy, infos in held["read"].items()}
        mended = {"write": write, "read": {busy: infos for busy, infos in read.items() if infos}}
        if mended != held:
            path.write_text(json.dumps(mended), encoding="utf-8")
        return write


def alive(folder: Path, info: dict[str, Any]) -> bool:
    """Whether the process that a lock entry names runs: a job by its lock file, anything else by its number and command here."""
    host, found, _ = info["cmd"].partition(": ")
    if not found:
        try:
            return "".join(host.split()[-1:]) in " ".join(psutil.Process(info["pid"]).cmdline())
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    if (host, info["pid"]) == (socket.gethostname(), os.getpid()):
        return True  # looking would drop this process's own lock
    try:
        with sign(folder, host, info["pid"]).open("r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def guarded(save: Callable[..., None]) -> Callable[..., None]:
    """DVC's `Stage.save`, refused where a dependency is another than before the command."""

    def saved(stage: Stage, **options: Any) -> None:
        before = {str(dep): dep.hash_info for dep in stage.deps}
        stage.save_deps(allow_missing=options.get("allow_missing", False))
        changed = [name for dep in stage.deps if dep.hash_info != before[name := str(dep)]]
        if changed:
            stage.remove_outs(ignore_remove=False, force=False)
            raise ChangedMeanwhile(f"{', '.join(changed)} changed while it was running: its output is thrown away; run it again")
        stage.save_deps = lambda **_: None  # `save` would read them a third time, and record that
        try:
            save(stage, **options)
        finally:
            del stage.save_deps

    return saved


class Shared(StageCache):
    """The run-cache, with the remote's behind it."""

    def pull(self, remote: str | None, odb: Any = None) -> list[tuple[str, str]]:
        return []

    def restore(self, stage: Stage, run_cache: bool = True, pull: bool = False, dry: bool = False) -> None:
        self._open(pull)
        super().restore(stage, run_cache, pull, dry)

    def known(self, stage: Stage, pull: bool) -> bool:
        """Whether `restore` would give the stage's outputs, as far as can be told without fetching them.

        Not by its `dry`: that looks up the inputs of the run that dvc.lock records, not those that are there.
        """
        self._open(pull)
        if not stage.changed_stage() and stage.deps_cached() and all(out.hash_info for out in stage.outs) and stage.outs_cached():
            return True
        stage.save_deps()
        found = self._load(stage)
        return found is not None and (pull or self._create_stage(found, wdir=stage.wdir).outs_cached())

    def _open(self, pull: bool) -> None:
        self.remote = self.repo.cloud.get_remote_odb(None, "fetch --run-cache", hash_name="md5-dos2unix") if pull else None

    def _load(self, stage: Stage) -> Any:
        key = _get_stage_hash(stage)
        here = Path(self._get_cache_dir(key))
        with suppress(OSError):
            here.rmdir()  # an empty folder, left by a kill, would stop DVC
        if self.remote is not None and not here.exists():
            self._fetch(key, here)
        return super()._load(stage)

    def _fetch(self, key: str, here: Path) -> None:
        """Copy the remote's runs of this command with these dependencies, all or none."""
        fs, there = self.remote.fs, self.remote.fs.join(self.remote.path, "runs", key[:2], key)
        if not fs.exists(there):
            return
        here.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=here.parent, prefix=".") as temporary:
            whole = Path(temporary) / key
            whole.mkdir()
            for file in fs.find(there):
                fs.get_file(file, str(whole / fs.name(file)))
            with suppress(OSError):  # another job was faster
                whole.rename(here)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__.split("\n\n")[1])
    sys.exit(main(*sys.argv[1:]))
