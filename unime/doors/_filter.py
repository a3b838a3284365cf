"""What the two doors that leave out rows no model could read share: the readers of a run, and a data stage's report after them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl

    from unime.backbones import Backbone
    from unime.config import View
    from unime.data.items import Items
    from unime.job import Job
    from unime.limits.lengths import Reader, TextLengths, Turn


LEFT_OUT = ("left_out", "candidates_left_out", "captions_left_out")
"""The lists of what is left out in the report of a set, a task or a caption column."""


class Readers:
    """The readers of a run, whose model folders are opened once, without weights."""

    def __init__(self, config: View) -> None:
        self._config = config
        self._backbones: dict[tuple[Path, int, int | None], Backbone] = {}

    def of_set(
        self, items: Items, base: Path, judge: Path, reranker: Path, embedder: Path
    ) -> tuple[list[Reader], list[tuple[Reader, int, bool]]]:
        """The readers of items alone, and those of prompts (reader, other candidates, whether the positive is shown too)."""
        import functools

        from unime import prompts

        config, own = self._config, OfItems(self, items)
        settings = config.train.reranker
        alone = [own.reader("the base embedder", base, "train.image_size", config.train.image_size)]
        shown: list[tuple[Reader, int, bool]] = []
        if config.mine.source == "judge":
            alone.append(own.reader("the embedder that finds candidates", embedder, "embed.image_size", config.embed.image_size))
            if config.judge.backend != "openai":  # a server's model, tokenizer and bounds are not known here
                turn = functools.partial(_pair, form=config.judge.prompt)
                shown.append((own.reader("the judge", judge, "judge.image_size", config.judge.image_size, turn=turn), 1, False))
        listed = own.reader(
            "the reranker",
            reranker,
            "train.reranker.image_size",
            settings.image_size,
            max_tokens=settings.max_tokens,
            turn=functools.partial(prompts.list_turn, form=settings.prompt),
            remedy="lower train.reranker.list_negatives",
        )
        return alone, [*shown, (listed, settings.list_negatives, True)]

    def of_task(self, items: Items, base: Path, reranker: Path, compositional: bool) -> tuple[Reader, Reader, int]:
        """The base embedder, the reranker, and how many candidates one of the reranker's prompts shows."""
        import functools

        from unime import prompts
        from unime.evaluate.tasks import rerank_image_size, rerank_mode

        config, own = self._config, OfItems(self, items)
        embedder = own.reader("the base embedder", base, "evaluate.image_size", config.evaluate.image_size)
        settings = config.train.reranker
        pairwise = rerank_mode(config.evaluate, compositional) == "pairwise"
        turn = functools.partial(_pair if pairwise else prompts.list_turn, form=settings.prompt)
        of_its_own = config.evaluate.rerank_image_size is not None
        listed = own.reader(
            "the reranker",
            reranker,
            "evaluate.rerank_image_size" if of_its_own else "train.reranker.image_size",
            rerank_image_size(config),
            max_tokens=settings.max_tokens,
            turn=turn,
            remedy="" if pairwise else "lower evaluate.rerank",
        )
        size = 1 if pairwise else min(2, config.evaluate.rerank) if compositional else config.evaluate.rerank
        return embedder, listed, size

    def backbone(self, folder: Path, side: int, max_tokens: int | None) -> Backbone:
        """The model of a folder, with images of `side` pixels (0: as they are) or of at most `max_tokens` tokens."""
        from unime.backbones import load

        key = (folder, side, max_tokens)
        if key not in self._backbones:
            self._backbones[key] = load(folder, models=self._config.models, image_size=side, max_tokens=max_tokens, weights=False)
        return self._backbones[key]


class OfItems:
    """Readers of one set's or task's items, which measure each image once, and each text once for every model folder."""

    def __init__(self, readers: Readers, items: Items) -> None:
        from unime.limits.lengths import ImageSizes

        self._readers, self._items = readers, items
        self._sizes = ImageSizes(items)
        self._texts: dict[Path, TextLengths] = {}

    def reader(
        self,
        name: str,
        folder: Path,
        setting: str,
        side: int,
        max_tokens: int | None = None,
        turn: Turn | None = None,
        remedy: str = "",
    ) -> Reader:
        """The reader `name`, whose images the setting makes `side` pixels wide and high."""
        from unime.limits.lengths import Reader, TextLengths

        backbone = self._readers.backbone(folder, side, max_tokens)
        if folder not in self._texts:
            self._texts[folder] = TextLengths(backbone, self._items)
        return Reader(name, backbone, self._items, self._texts[folder], self._sizes, setting, turn, remedy)


def each(names: Sequence[str], label: str, job: Job, out: Path, one: Callable[[str, Path], None]) -> None:
    """Write all sets or tasks, each by `one(name, folder)`.

    A finished folder stays in scratch until all are, so that the next run after a kill does not measure its rows again.
    """
    import os
    import shutil

    for name in job.track(names, len(names), label):
        done, half = job.scratch / name, job.scratch / f".{name}"
        if not done.is_dir():
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            one(name, half)
            os.replace(half, done)
    out.mkdir(parents=True)
    for name in names:
        os.replace(job.scratch / name, out / name)


def lost(names: Sequence[str], before: Path, after: Path) -> dict[str, int]:
    """How many rows and candidates of each set or task were left out between two folders of sets, where any was."""
    from unime import artifacts

    def count(folder: Path) -> int:
        report = artifacts.read_json(folder / "report.json")
        return sum(report[key]["count"] for key in LEFT_OUT if key in report)

    counts = {name: count(after / name) - count(before / name) for name in names}
    return {name: count for name, count in counts.items() if count}


def _pair(query: Any, candidates: Any, form: str) -> list[Any]:
    """The judge's turn, with its one candidate in a list as in a turn of several."""
    from unime import prompts

    (candidate,) = candidates
    return prompts.judge_turn(query, candidate, form)


def copied(folder: Path, out: Path, report: dict[str, Any]) -> None:
    """Write a set's or task's tables as they are, where nothing is left out, and its report."""
    import shutil

    from unime import artifacts

    for file in folder.glob("*.parquet"):
        shutil.copy(file, out / file.name)
    artifacts.write_json(report, out / "report.json")


def with_left_out(report: dict[str, Any], bad: pl.DataFrame, key: str = "left_out") -> dict[str, Any]:
    """The report in which these rows (file, row, reason) were left out too."""
    from unime.data.rows import LISTED

    before = report[key]
    listed = [*before["listed"], *bad.to_dicts()][:LISTED]
    return report | {key: {"count": before["count"] + len(bad), "listed": listed}}


def named(lost: dict[str, int]) -> str:
    """`A 3, B 1`: how many rows of which sets or tasks, the most first."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(lost.items(), key=lambda one: -one[1]))


def used(items: pl.DataFrame, *ids: pl.Series) -> pl.DataFrame:
    """The rows of ITEMS with one of these ids."""
    import polars as pl

    wanted = pl.concat([one.rename("id") for one in ids]).drop_nulls().unique()
    return items.filter(pl.col("id").is_in(wanted.implode()))
