"""Long work in shards: each is written whole to scratch, and a rerun after a kill makes only those that are not there.

The scratch folder is keyed by a stage's inputs, code and parameters, so a shard that lies in it is valid; a torn one cannot be,
because artifacts are renamed into place.  The result is put together from the files in every case, so an interrupted and an
uninterrupted run give the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from unime import artifacts
from unime.artifacts import ArtifactError
from unime.job import Part, PartMade

T = TypeVar("T")
R = TypeVar("R")


def cut(things: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive runs of `size` things, the last one shorter."""
    return [things[start : start + size] for start in range(0, len(things), size)]


def run(
    shards: Sequence[T],
    scratch: Path,
    name: str,
    *,
    make: Callable[[T], R],
    write: Callable[[R, Path], None],
    read: Callable[[Path], R],
    track: Callable[..., Iterable[Any]],
    part: Part | None = None,
) -> list[R]:
    """`make` of every shard, in order, kept as scratch/<name>-<number>; what is there already is read instead.

    With a `part`, only its shards are made, every `count`-th of them, and PartMade is raised.
    `write` must make its file (or folder) whole or not at all; `track(iterable, total, label)` shows progress.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    places = [scratch / f"{name}-{number:06d}-of-{len(shards):06d}" for number in range(len(shards))]
    mine = range(len(places)) if part is None else range(part.number - 1, len(places), part.count)
    missing = [number for number in mine if not places[number].exists()]
    for number in track(missing, len(missing), name):
        write(make(shards[number]), places[number])
    if part:
        raise PartMade(f"{len(missing)} of its {len(mine)} shards, {len(mine) - len(missing)} were there")
    return [_whole(shard, place, make, write, read) for shard, place in zip(shards, places, strict=True)]


def _whole(shard: T, place: Path, make: Callable[[T], R], write: Callable[[R, Path], None], read: Callable[[Path], R]) -> R:
    """The kept shard; made again where it cannot be read, as after a loss of power before its bytes were on the disk."""
    try:
        return read(place)
    except ArtifactError:
        artifacts.remove(place)
        write(make(shard), place)
        return read(place)


def spread(tasks: Iterable[T], work: Callable[[T], R], threads: int) -> Iterator[R]:
    """`work` of every task, in order, on this many threads; at most two tasks a thread are begun before their turn."""
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[R]] = deque()
        try:
            for task in tasks:
                begun.append(pool.submit(work, task))
                if len(begun) > 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for waiting in begun:  # after an error or Ctrl-C: what has not begun will not
                waiting.cancel()


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of `lengths`, longest first, in batches of at most `budget` tokens, padding to a batch's longest included.

    One that is longer than the budget goes alone.  Ties keep their order, so equal input gives equal batches.
    """
    found: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= budget:
            found[-1].append(position)
        else:
            found.append([position])
    return found
