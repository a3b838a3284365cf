"""The job of every rule: `dvc repro --single-item STAGE`, fit for many jobs at once, several nodes, and kills.

usage: python workflow/repro.py STAGE

DVC does all of it: skips the stage, restores it from the cache or runs it, and records it in dvc.lock.  Around it, for the time of this
process only, stands what DVC leaves to a person:

- busy: a stage that another process is making is waited for, not failed;
- killed: a lock entry whose process is gone or has another's number is dropped, and dvc.lock is replaced whole, never cut off;
- other nodes: DVC knows a lock's owner by its process number, so a command on one node drops the entries of another; their owner,
  done with its work, does not stumble over that;
- changed: inputs, code or parameters that are others after the command than before it fail the stage.  DVC would record the new
  ones with the old output (its issue 11058); the stage's own guard (unime/door.py) cannot see what changes after it has ended;
- shared: with a default remote (`core.remote`), what the remote holds is fetched instead of computed.  DVC's own --pull copies the
  whole run-cache for every stage; here it is this stage's entry;
- rotten: a cached file whose content is not what its name says is dropped, not restored.

Uses parts of DVC that are not public: pyproject.toml pins it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import sys
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
from dvc.stage.cache import StageCache, _get_stage_hash
from dvc.stage.exceptions import StageCmdFailedError
from dvc_data.hashfile.db import HashFileDB
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

WAIT = 2.0
"""Seconds between two looks at a lock that another process holds."""

log = logging.getLogger("dvc.unime")


class ChangedMeanwhile(DvcException):
    """What a stage read is no longer what it was when the stage began."""


def main(stage: str) -> int:
    sys.argv[0] = f"{socket.gethostname()}: {Path(sys.argv[0]).name}"  # DVC's locks show it to whoever meets them
    dvcfile.modify_yaml = replaced
    rwlock._release_read, rwlock._release_write = forgiving(rwlock._release_read), forgiving(rwlock._release_write)
    PipelineStage.save = guarded(Stage.save)
    told, pull = "", None
    while True:
        try:
            with Repo(_wait_for_lock=True) as repo:
                mend_rwlock(Path(repo.tmp_dir))
                pull = repo.config["core"].get("remote") is not None if pull is None else pull
                repo.stage_cache = Shared(repo)
                odb = repo.cache.local
                odb.check = lambda oid, check_hash=True, _info=None, odb=odb: HashFileDB.check(odb, oid, check_hash, _info)
                repo.reproduce(stage, single_item=True, pull=pull)
            return 0
        except ReproductionError as error:
            cause = error.__cause__
            if isinstance(cause, LockError):
                busy = str(cause).partition("\n\n")[0]
                if busy != told:
                    log.info("waiting: %s", busy)
                told = busy
                time.sleep(WAIT)
            elif pull and not isinstance(cause, StageCmdFailedError | ChangedMeanwhile):
                log.warning("the remote gave nothing for %s (%s); going on without it", stage, cause)
                pull = False
            else:
                log.error("%s: %s", stage, cause)
                return 1
        except DvcException as error:
            log.error("%s: %s", stage, error)
            return 1


@contextmanager
def replaced(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
    """DVC's `modify_yaml` for dvc.lock: the same text, renamed into place; only the stages that change are read and written."""
    file = Path(path)
    head, _, body = file.read_text(encoding="utf-8").partition("stages:\n") if file.exists() else ("", "", "")
    blocks = {block.partition(":")[0].strip(): block for block in re.split(r"^(?=  \S)", body, flags=re.M) if block}
    data: dict[str, Any] = {"stages": Stages(blocks)} if head else {}
    yield data
    blocks |= {name: written({name: stage}) for name, stage in data["stages"].items()}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text((head or "schema: '2.0'\n") + "stages:\n" + "".join(blocks.values()), encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


class Stages(dict[str, Any]):
    """The stages of dvc.lock: one that is asked for is parsed out of the text, one that is set is held."""

    def __init__(self, blocks: dict[str, str]):
        super().__init__()
        self.blocks = blocks

    def get(self, name: str, default: Any = None) -> Any:
        return YAML(typ="safe").load(self.blocks[name])[name] if name in self.blocks else default


def written(stages: dict[str, Any]) -> str:
    """A stage's block in dvc.lock."""
    writer, text = YAML(typ="safe"), io.StringIO()
    writer.Representer = Like
    writer.default_flow_style, writer.sort_base_mapping_type_on_output, writer.allow_unicode = False, False, True
    writer.dump({"stages": plain(stages)}, text)
    return re.sub(r": $", ":", text.getvalue().partition("\n")[2], flags=re.M)  # an empty null, without the blank before it


class Like(SafeRepresenter):
    """As DVC's slow writer, which leaves null empty."""


Like.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", ""))


def plain(value: Any) -> Any:
    """DVC's ordered mappings as plain ones; what stands in two places is written twice, not as an alias."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def forgiving(release: Callable[..., None]) -> Callable[..., None]:
    """DVC's release of lock entries, for entries that another node has dropped already."""

    def released(lock: Any, info: Any, paths: list[str]) -> None:
        for path in paths:
            with suppress(AssertionError, KeyError):
                release(lock, info, [path])

    return released


def mend_rwlock(folder: Path) -> None:
    """Drop what killed processes left in DVC's list of busy paths: a file cut off, or entries of a number that is another's now."""
    path = folder / "rwlock"
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder), wait=True):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except json.JSONDecodeError:
            path.unlink()
            return
        write = {busy: info for busy, info in held.get("write", {}).items() if alive(info)}
        read = {busy: [info for info in infos if alive(info)] for busy, infos in held.get("read", {}).items()}
        mended = {"write": write, "read": {busy: infos for busy, infos in read.items() if infos}}
        if mended != {"write": held.get("write", {}), "read": held.get("read", {})}:
            path.write_text(json.dumps(mended), encoding="utf-8")


def alive(info: dict[str, Any]) -> bool:
    """Whether the process that a lock entry names runs, as far as this node can know."""
    host, _, command = info["cmd"].rpartition(": ")
    if host and host != socket.gethostname():
        return True
    try:
        return command.split()[-1] in " ".join(psutil.Process(info["pid"]).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
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
        save(stage, **options)

    return saved


class Shared(StageCache):
    """The run-cache, with the remote's behind it."""

    def pull(self, remote: str | None, odb: Any = None) -> list[tuple[str, str]]:
        return []

    def restore(self, stage: Stage, run_cache: bool = True, pull: bool = False, dry: bool = False) -> None:
        self.remote = self.repo.cloud.get_remote_odb(None, "fetch --run-cache", hash_name="md5-dos2unix") if pull else None
        super().restore(stage, run_cache, pull, dry)

    def _load(self, stage: Stage) -> Any:
        found = super()._load(stage)
        if found is None and self.remote is not None and (key := _get_stage_hash(stage)):
            self._fetch(key)
            found = super()._load(stage)
        return found

    def _fetch(self, key: str) -> None:
        """Copy the remote's runs of this command with these dependencies."""
        fs, there = self.remote.fs, self.remote.fs.join(self.remote.path, "runs", key[:2], key)
        if not fs.exists(there):
            return
        here = Path(self._get_cache_dir(key))
        here.mkdir(parents=True, exist_ok=True)
        for file in fs.find(there):
            temporary = here.parent / f".{os.getpid()}.tmp"
            fs.get_file(file, str(temporary))
            os.replace(temporary, here / fs.name(file))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[1])
    sys.exit(main(sys.argv[1]))
