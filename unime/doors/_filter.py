"""What the two doors that leave out rows no model could read share: the readers of a run, and a data stage's report after them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from unime.config import View
    from unime.data.items import Items
    from unime.limits.lengths import Reader


class Readers:
    """The readers of a run, whose model folders are opened once, without weights."""

    def __init__(self, config: View) -> None:
        self._config = config
        self._backbones: dict[tuple[str, int, int | None], Any] = {}

    def _reader(
        self, name: str, folder: Path, items: Items, sizes: Any, setting: str, side: int, max_tokens: int | None = None, **more: Any
    ) -> Reader:
        from unime.backbones import load
        from unime.limits.lengths import Reader

        key = (str(folder), side, max_tokens)
        if key not in self._backbones:
            self._backbones[key] = load(folder, models=self._config.models, image_size=side, max_tokens=max_tokens, weights=False)
        return Reader(name, self._backbones[key], items, sizes, setting, **more)

    def of_set(
        self, items: Items, base: Path, judge: Path, reranker: Path, embedder: Path
    ) -> tuple[list[Reader], list[tuple[Reader, int, bool]]]:
        """The readers of items alone, and those of prompts (reader, other candidates, whether the positive is shown too)."""
        import functools

        from unime import prompts
        from unime.limits.lengths import ImageSizes

        config, sizes = self._config, ImageSizes(items)
        settings = config.train.reranker
        alone = [self._reader("the base embedder", base, items, sizes, "train.image_size", config.train.image_size)]
        shown: list[tuple[Reader, int, bool]] = []
        if config.mine.source == "judge":
            alone.append(
                self._reader("the embedder that finds candidates", embedder, items, sizes, "embed.image_size", config.embed.image_size)
            )
            if config.judge.backend != "openai":  # a server's model, tokenizer and bounds are not known here
                turn = functools.partial(_pair, form=config.judge.prompt)
                one = self._reader("the judge", judge, items, sizes, "judge.image_size", config.judge.image_size, turn=turn)
                shown.append((one, 1, False))
        listed = self._reader(
            "the reranker",
            reranker,
            items,
            sizes,
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
        from unime.limits.lengths import ImageSizes

        config, sizes = self._config, ImageSizes(items)
        embedder = self._reader("the base embedder", base, items, sizes, "evaluate.image_size", config.evaluate.image_size)
        settings = config.train.reranker
        pairwise = rerank_mode(config.evaluate, compositional) == "pairwise"
        turn = functools.partial(_pair if pairwise else prompts.list_turn, form=settings.prompt)
        own = config.evaluate.rerank_image_size is not None
        listed = self._reader(
            "the reranker",
            reranker,
            items,
            sizes,
            "evaluate.rerank_image_size" if own else "train.reranker.image_size",
            rerank_image_size(config),
            max_tokens=settings.max_tokens,
            turn=turn,
            remedy="" if pairwise else "lower evaluate.rerank",
        )
        most = 1 if pairwise else min(2, config.evaluate.rerank) if compositional else config.evaluate.rerank
        return embedder, listed, most


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
