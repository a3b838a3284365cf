"""Take published scores for this run's mined negatives, so that nothing need be judged."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job, StageError


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts, caution
    from unime.data import mmeb
    from unime.data.images import Decoding
    from unime.mine import published
    from unime.report import imported

    scores, data, _ = inputs
    mined_folder, report_folder = outputs
    files = sorted(scores.glob("*.json"))
    if len(files) != 2:
        raise StageError(f"{scores}: {len(files)} JSON files, needed source.json and one of scores; delete the folder and fetch it again")
    (file,) = [one for one in files if one.name != "source.json"]
    names = config.data.train_sets
    tables = {
        name: (
            artifacts.read_table(data / name / "items.parquet", artifacts.ITEMS),
            artifacts.read_table(data / name / "pairs.parquet", artifacts.PAIRS),
        )
        for name in names
    }
    shelves = {name: mmeb.shelf(config.data.root, name) for name in names}
    mined, items, report = published.import_scores(
        file,
        tables,
        shelves,
        decoding=Decoding.of(config.data),
        bad_rows=config.data.bad_rows,
        job=job,
        image_marks=config.data.image_marks,
    )
    for name in names:
        artifacts.write_table(mined[name], mined_folder / name / "mined.parquet", artifacts.MINED)
        artifacts.write_table(items[name], mined_folder / name / "items.parquet", artifacts.ITEMS)
    warnings: list[str] = []
    for name in names:
        warnings += caution.of_mined(mined[name], f"{name}: ")
    if warnings:
        report["warnings"] = warnings  # the run's report shows them
    artifacts.write_json(report, report_folder / "mining.json")
    (report_folder / "mining.md").write_text(imported.markdown(report), encoding="utf-8")
    pairs, lost = sum(map(len, mined.values())), report["unmatched"]["count"]
    summary = f"{pairs:,} pairs of {report['rows']:,} published rows, {lost:,} rows of no pair here"
    return caution.said(summary, warnings)


DOOR = Door(
    sections=("data.root", "data.train_sets", "data.max_pixels", "data.pixels", "data.bad_rows", "data.image_marks", "fetch.scores.{key}"),
    inputs=("data/scores/{key}", "results/data/train", "{data.root}/train"),
    outputs=("results/mine/{key}", "results/mining_report/{key}"),
    items="fetch.scores",
    sweep={"results/data/train": "data.train_sets"},
    run=run,
)
