"""A result that means nothing says so: on the stage's line, in the report, in the card.  A good one says nothing."""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from unime import artifacts, caution
from unime.__main__ import open_door
from unime.caution import Score
from unime.config import load
from unime.evaluate import chance
from unime.evaluate.tasks import MODELS
from unime.job import Job
from unime.report import mining, page, warned
from unime.report import table as tables
from unime.train import card

ROOT = Path(__file__).resolve().parent.parent


# Rules, on both sides of their bounds


@pytest.mark.parametrize(("mean", "count"), [(0.045, 1), (0.499, 1), (0.5, 0), (0.629, 0), (1.0, 0), (None, 0), (math.nan, 0)])
def test_a_judge_that_gives_right_answers_low_scores_is_warned_of(mean: float | None, count: int) -> None:
    found = caution.of_sigma(mean)
    assert len(found) == count and all(f"{mean:.3f}" in one and "models.judge" in one for one in found)


def judged_table(positives: list[float], candidates: list[float]) -> pl.DataFrame:
    rows = [("p", "c", True, 0.0, 0.0, score) for score in positives] + [("p", "c", False, 0.0, 0.0, score) for score in candidates]
    return pl.DataFrame(rows, schema=artifacts.JUDGEMENTS, orient="row")


def test_a_judge_whose_scores_do_not_tell_right_answers_from_others_is_warned_of_though_they_are_high() -> None:
    rng = np.random.default_rng(0)
    high, higher = (rng.normal(mean, 0.05, 400).clip(0, 1).tolist() for mean in (0.8, 0.85))
    (one,) = caution.of_judged(judged_table(high, high), "S: ")
    assert (
        one.startswith("S: the judge gives the labelled positives 0.80 on average and the other candidates 0.80") and "models.judge" in one
    )
    (one,) = caution.of_judged(judged_table(high, higher))
    assert "0.80 on average and the other candidates 0.85" in one, "they are told apart, the wrong way round"
    assert caution.of_judged(judged_table(higher, high)) == []
    (one,) = caution.of_judged(judged_table([0.4] * 30, [0.4] * 30))
    assert "below 0.5" in one, "low and no gap: one warning, not two"
    assert caution.of_judged(judged_table([0.9] * 19, [0.9] * 400)) == [], "too few positives tell nothing"
    assert caution.of_judged(judged_table([0.9] * 400, [])) == [], "and so do no candidates"
    assert caution.of_judged(judged_table([], [])) == []


def test_a_gap_is_twice_its_standard_error_and_histograms_say_the_same() -> None:
    wide = caution.Spread(0.7, 0.04, 400)
    error = math.sqrt(0.04 / 400 + 0.04 / 400)
    for errors, count in ((1.99, 1), (2.01, 0)):
        assert len(caution.of_gap(wide._replace(mean=0.7 + errors * error), wide)) == count
    assert caution.of_bins([0, 0, 1, 1]) == caution.Spread(0.75, 1 / 64, 2) and caution.of_bins([0] * 20).n == 0


@pytest.mark.parametrize(
    ("fallback", "rows", "count"), [(690, 1000, 1), (250, 1000, 1), (249, 1000, 0), (179, 1000, 0), (0, 10, 0), (0, 0, 0)]
)
def test_many_random_negatives_are_warned_of(fallback: int, rows: int, count: int) -> None:
    found = caution.of_fallback(fallback, rows)
    assert len(found) == count and all(f"{100 * fallback / rows:.0f} %" in one for one in found)


def test_a_loss_that_rises_or_never_falls_is_warned_of() -> None:
    steps = range(40)
    assert caution.of_losses([3 - step / 40 for step in steps]) == []
    (flat,) = caution.of_losses([math.log(8)] * 40)
    assert "never falls: 2.0794" in flat, "where there is one answer the loss stays at the logarithm of the batch"
    jitter = 1e-5 * np.random.default_rng(1).standard_normal(40)
    assert caution.of_losses((math.log(8) + jitter - 1e-6 * np.arange(40)).tolist()), "and dropout moves it in the last digits"
    (risen,) = caution.of_losses([1 + step / 40 for step in steps])
    assert "rises: 1.1125 in the first 10 steps, 1.8625 in the last" in risen
    wave = [1 + 0.5 * (-1) ** step for step in steps]
    assert caution.of_losses([value - 0.001 * step for step, value in zip(steps, wave, strict=True)]) == [], "it falls, under noise"
    # a reranker that answers well from its first step on: 0.43 +- 0.05 throughout, the last ten a little above the first
    rng = np.random.default_rng(0)
    noise = 0.43 + 0.05 * rng.standard_normal(70)
    error = math.sqrt((noise[:10].var(ddof=1) + noise[-10:].var(ddof=1)) / 10)
    for errors, count in ((1.9, 0), (2.1, 1)):
        moved = noise.copy()
        moved[-10:] += noise[:10].mean() + errors * error - noise[-10:].mean()
        assert len(caution.of_losses(moved.tolist())) == count
    assert caution.of_losses([1.0] * 19) == [] and caution.of_losses([1.0] * 20), "too few steps tell nothing"
    assert caution.of_losses([]) == []


def test_a_score_within_two_standard_errors_of_chance_is_chance() -> None:
    error = math.sqrt(0.1 * 0.9 / 400)
    for errors, expected in ((-3.0, True), (0.0, True), (1.99, True), (2.01, False), (9.0, False)):
        assert caution.at_chance([Score(0.1 + errors * error, 400, 0.1)]) is expected
    weak = Score(0.1 + 1.5 * error, 400, 0.1)
    assert caution.at_chance([weak]) and not caution.at_chance([weak] * 4), "four weak signs together are a strong one"


def test_a_task_is_warned_of_where_every_trained_model_guesses_and_a_model_where_it_guesses_everywhere() -> None:
    guess, good = Score(0.11, 400, 0.1), Score(0.4, 400, 0.1)
    assert caution.of_task("T", {"UniME-V2": guess, "UniME-V2 + reranker": good}) == []
    (one,) = caution.of_task("T", {"UniME-V2": guess, "UniME-V2 + reranker": guess})
    assert "T: every trained model" in one and "10.0 %" in one and "400 queries" in one
    (one,) = caution.of_models({"T": {"a": guess, "b": good}, "U": {"a": guess, "b": guess}})
    assert one.startswith("a: over all 2 tasks")
    (one,) = caution.of_models({"T": {"a": guess}})
    assert one.startswith("a: in the only task within 2 standard errors of chance")
    assert caution.of_task("T", {}) == [] and caution.of_models({}) == []


@pytest.mark.parametrize(("pairs", "images", "count"), [(0, 0, 0), (9, 9, 0), (10, 0, 1), (0, 10, 1), (667, 667, 2)])
def test_answers_that_were_trained_on_are_warned_of_with_their_share(pairs: int, images: int, count: int) -> None:
    found = caution.of_leaks("T", 1000, pairs, images)
    assert len(found) == count
    assert all(f"({100 * max(pairs, images) / 1000:.0f} %)" in one for one in found)


# Chance and leaks, from tables


def task(rows: list[tuple[str, list[str], int]]) -> pl.DataFrame:
    return pl.DataFrame([("T", n, *row) for n, row in enumerate(rows)], schema=artifacts.TASKS, orient="row")


def captions(rows: list[tuple[str, list[str], list[str]]]) -> pl.DataFrame:
    return pl.DataFrame([("C", n, *row, "") for n, row in enumerate(rows)], schema=artifacts.CAPTION_QUERIES, orient="row")


def items(rows: dict[str, str]) -> pl.DataFrame:
    found = [(id, "text", "images.zip" if member else "", member, member) for id, member in rows.items()]
    return pl.DataFrame(found, schema=artifacts.ITEMS, orient="row")


def pairs(rows: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame([(f"p{n}", "S", n, *row) for n, row in enumerate(rows)], schema=artifacts.PAIRS, orient="row")


NO_POOL = pl.DataFrame(schema=artifacts.POOL)


def test_chance_is_that_of_a_random_choice_among_the_distinct_candidates() -> None:
    assert chance.chance(task([("q", ["a", "b"], 0), ("r", ["a", "b", "c", "d", "d"], 0)]), NO_POOL) == pytest.approx((1 / 2 + 1 / 4) / 2)
    pool = pl.DataFrame({"id": list("abcdefghij")})
    assert chance.chance(captions([("q", ["a", "b"], []), ("r", ["c"], [])]), pool) == pytest.approx((2 / 10 + 1 / 10) / 2)
    assert chance.chance(captions([("q", ["a"], ["a", "b"])]), NO_POOL) == 0.5


def test_leaks_are_pairs_by_content_and_answers_whose_picture_was_trained_on_and_no_labels() -> None:
    queries = task([("q1", ["x", "pic1"], 1), ("q2", ["label", "x"], 0), ("q3", ["pic2", "x"], 0), ("q4", ["pic3", "x"], 0)])
    own = items({"q1": "", "q2": "", "q3": "", "q4": "", "x": "", "label": "", "pic1": "1", "pic2": "2", "pic3": "3"})
    trained = pairs([("q1", "pic1"), ("other", "label"), ("pic2", "label"), ("q4", "else")])
    assert chance.leaks(queries, own, trained, own) == (1, 2), "pic1 with its query, pic2 as a query of training; the label is no leak"
    assert chance.leaks(captions([("q1", ["x", "pic1"], []), ("q4", ["pic3"], [])]), own, trained, own) == (1, 1)
    assert chance.leaks(queries, own, pairs([("a", "b")]), own) == (0, 0)
    other = items({"query": "3", "a": "", "b": ""})
    assert chance.leaks(queries, own, pairs([("query", "b")]), other) == (0, 1), "the same picture beside another text"
    assert chance.leaks(queries, own, pairs([("a", "b")]), other) == (0, 0), "an item of no pair is not trained on"


# Where they are shown

LOG = [{"step": step + 1, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "items": 8 * step} for step in range(30)]
VIEW = SimpleNamespace(seed=1, dump=lambda: {"seed": 1})


def mined(sigma: float, fallback: int) -> pl.DataFrame:
    """Ten pairs of ten negatives, `fallback` of them random in each."""
    reasons = ["fallback"] * fallback + ["kept"] * (10 - fallback)
    rows = [(f"p{n}", "S", f"q{n}", f"t{n}", sigma, [f"c{k}" for k in range(10)], [0.1] * 10, list(range(10)), reasons) for n in range(10)]
    return pl.DataFrame(rows, schema=artifacts.MINED, orient="row")


def test_the_card_and_the_line_of_a_training_show_what_is_wrong_and_nothing_where_all_is_well() -> None:
    bad, good = mined(0.045, 7), mined(0.8, 1)
    falling = [record | {"loss": 2.0 - record["step"] / 100} for record in LOG]
    warnings = card.warnings(LOG, bad)
    assert len(warnings) == 3 and card.warnings(falling, good) == []
    text = card.text("unime_v2", LOG, VIEW, ["S"] * 10, {}, "models/x", warnings)
    assert "## Warnings" in text and all(f"- {one}" in text for one in warnings) and text.index("## Warnings") < text.index("| what |")
    assert "Warnings" not in card.text("unime_v2", falling, VIEW, ["S"] * 10, {}, "models/x", [])
    line = card.line(LOG, bad).splitlines()
    assert len(line) == 4 and all(one.startswith("warning: ") for one in line[1:]) and "\n" not in card.line(falling, good)
    assert card.warnings(LOG, pairs([("q", "a"), ("r", "b")])) == caution.of_losses([2.0] * 30), "pairs have no scores"
    exported = card.exported("unime_v2", text, {}, "abc", None, ["T: 24 of 36 queries"])
    assert "## Warnings\n" in exported and "## Warnings of the run\n\n- T: 24 of 36 queries" in exported
    again = card.exported("unime_v2", text, {}, "abc", None, warnings)
    assert "## Warnings of the run" not in again and all(again.count(one) == 1 for one in warnings), "said once"
    assert "Warnings" not in card.exported("unime_v2", card.text("unime_v2", falling, VIEW, ["S"], {}, "x"), {}, "abc")


def test_the_line_of_mining_shows_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    door, config = open_door("mine"), load(ROOT / "config.yaml")
    view = door.view(config, "NanoColor")
    for sigma, warned_of in ((0.045, 2), (0.9, 0)):
        own = pairs([(f"q{n}", f"t{n}") for n in range(12)])
        hits = [(f"p{n}", f"t{k}", rank, 0.5) for n in range(12) for rank, k in enumerate(k for k in range(12) if k != n)]
        judged = [(f"p{n}", f"t{k}", n == k, 0.0, 0.0, sigma if n == k else 0.3) for n in range(12) for k in range(12)]
        for folder, name, table, schema in (
            ("data", "pairs", own, artifacts.PAIRS),
            ("hits", "hits", pl.DataFrame(hits, schema=artifacts.HITS, orient="row"), artifacts.HITS),
            ("judged", "judgements", pl.DataFrame(judged, schema=artifacts.JUDGEMENTS, orient="row"), artifacts.JUDGEMENTS),
        ):
            artifacts.write_table(table, Path(folder) / f"{name}.parquet", schema)
        said = door.run(
            view, Job("NanoColor", 1, tmp_path, log=logging.getLogger("test")), [Path("data"), Path("hits"), Path("judged")], [Path("out")]
        )
        assert said.count("\nwarning: ") == warned_of
        shutil.rmtree("out")


def test_a_judge_that_cannot_see_is_warned_of_as_soon_as_it_has_judged(tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nano MLLM on pictures of a kind that it has never seen."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"images/{number}.png")
        rows.append((f"q{number}", f"Find me the product: running shoe model {number}", "", "", ""))
        rows.append((f"t{number}", "<|image_1|>", "images", f"{number}.png", str(number)))
    artifacts.write_table(pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row"), "data/items.parquet", artifacts.ITEMS)
    artifacts.write_table(pairs([(f"q{n}", f"t{n}") for n in range(8)]), "data/pairs.parquet", artifacts.PAIRS)
    artifacts.write_table(pl.DataFrame(schema=artifacts.HITS), "hits/hits.parquet", artifacts.HITS)
    door, config = open_door("judge"), load(ROOT / "config.yaml")
    view = door.view(config, "NanoColor")
    said = door.run(
        view, Job("NanoColor", 1, tmp_path / "s", log=logging.getLogger("test")), [Path("data"), Path("hits"), nano], [Path("out")]
    )
    assert "\nwarning: the judge gives the labelled positives 0." in said


def test_the_screen_keeps_the_warnings_of_a_line(tmp_path: Path) -> None:
    log = tmp_path / "mine.log"
    told = caution.said("10 pairs", caution.of_fallback(690, 1000))
    before, after = "Running stage 'mine@S':\n> exec python -m unime mine S\n", "Updating lock file 'dvc.lock'\n\nUse `dvc push`\n"
    log.write_text(f"{before}made results/mine/judge/S: {told}\n{after}")
    shown = subprocess.run(
        ["awk", "-v", "stage=mine", "-f", ROOT / "workflow/summary.awk", log], capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines() == ["made results/mine/judge/S: 10 pairs", f"warning: {caution.of_fallback(690, 1000)[0]}"]


def figures(sigma: float, fallback: int) -> dict:
    told = {"sigmas": [0] * 19 + [100], "scores": [5000] + [0] * 19}
    bad = {"name": "A", "sigma": sigma, "fallback": fallback, "rows": 1000, **told}
    good = {"name": "B", "sigma": 0.9, "fallback": 0, "rows": 9000, **told}
    return {"sets": [bad, good], "all": {"name": "all", "sigma": 0.9, "fallback": fallback, "rows": 10_000, **told}}


def test_the_mining_report_names_a_single_bad_set_among_good_ones() -> None:
    assert [one[:3] for one in mining.warnings(figures(0.2, 700))] == ["A: ", "A: "]
    assert mining.warnings(figures(0.8, 100)) == []
    blind = figures(0.9, 0)
    blind["sets"][0]["scores"] = [0] * 19 + [5000]
    (one,) = mining.warnings(blind)
    assert one.startswith("A: the judge gives the labelled positives 0.97 on average and the other candidates 0.97")
    whole = figures(0.2, 700)
    whole["all"] |= {"sigma": 0.045, "fallback": 6900}
    assert len(mining.warnings(whole)) == 2 and not any(one.startswith("A: ") for one in mining.warnings(whole))
    assert warned.of_mining({"rows": 3}) == [], "published negatives"
    assert warned.of_mining({"rows": 3, "warnings": ["S: low"]}) == ["S: low"], "what their import has found"


def finished(root: Path, value: float, loss: float) -> list[Path]:
    """What the report reads of a run with one task, in which every model has this score and each loss ends so."""
    config = load(ROOT / "config.yaml")
    names = [f"t{n}" for n in range(10)]
    for name in [*config.evaluate.tasks, *config.evaluate.crossmodal]:
        folder = root / "eval" / name
        own = items({f"q{n}": "" for n in range(10)} | {f"{name}-{one}": f"{name}-{one}" for one in names})
        others = {n: [f"{name}-{one}" for one in names if one != f"t{n}"] for n in range(10)}
        queries, schema, metric = task([(f"q{n}", [f"{name}-t{n}", *others[n]], 0) for n in range(10)]), artifacts.TASKS, "precision@1"
        if name in config.evaluate.crossmodal:
            queries, schema = captions([(f"q{n}", [f"{name}-t{n}"], []) for n in range(10)]), artifacts.CAPTION_QUERIES
            metric = "accuracy" if "Crepe" in name else "recall@1"
            artifacts.write_table(pl.DataFrame({"id": [f"{name}-{one}" for one in names]}), folder / "pool.parquet", artifacts.POOL)
        artifacts.write_table(queries, folder / "queries.parquet", schema)
        artifacts.write_table(own, folder / "items.parquet", artifacts.ITEMS)
        found = [(name, model, metric, value, 10, "content") for model in MODELS]
        scores = pl.DataFrame(found, schema=artifacts.SCORES, orient="row")
        artifacts.write_table(scores, root / "evaluate" / name / "scores.parquet", artifacts.SCORES)
    for model in ("in_batch", "unime_v2"):
        (root / model).mkdir(parents=True)
        lines = [f"{step},{2.0 + (loss - 2.0) * step / 30},0.1,1,8" for step in range(30)]
        (root / model / "log.csv").write_text("step,loss,lr,grad_norm,items\n" + "\n".join(lines) + "\n")
    return [root / "in_batch", root / "unime_v2"]


@pytest.mark.parametrize(("value", "loss", "count"), [(0.1, 3.0, 2), (0.9, 1.0, 0)])
def test_the_run_s_warnings_are_those_of_its_trainings_scores_and_data(tmp_path: Path, value: float, loss: float, count: int) -> None:
    folders, config = finished(tmp_path, value, loss), load(ROOT / "config.yaml")
    tasks, columns = config.evaluate.tasks, config.evaluate.crossmodal
    assert len(warned.of_trainings(folders)) == count
    assert [one.partition(":")[0] for one in warned.of_trainings(folders)] == [MODELS["in_batch"], MODELS["unime_v2"]][:count]
    scores = artifacts.read_tables(tmp_path / "evaluate", [*tasks, *columns], "scores.parquet", artifacts.SCORES)
    found = warned.of_scores(scores, tmp_path / "eval", tasks, columns)
    assert len(found) == (0 if value > 0.5 else len(MODELS) - 1 + len(tasks) + len(columns)) and not any(
        "base zero-shot" in one for one in found
    )
    assert warned.of_data(tmp_path / "eval", [*tasks, *columns], pairs([("x", "y")]), items({"x": "", "y": "1"})) == []
    leaked = pairs([(f"q{n}", f"{tasks[0]}-t{n}") for n in range(4)])
    (first, second) = warned.of_data(tmp_path / "eval", tasks, leaked, items({f"{tasks[0]}-t{n}": f"{tasks[0]}-t{n}" for n in range(4)}))
    assert first.startswith(f"{tasks[0]}: 4 of 10 queries are training pairs") and "(40 %)" in first and "image is trained on" in second


@pytest.mark.parametrize(("value", "count"), [(0.1, 1), (0.9, 0)])
def test_an_ablation_that_guesses_everywhere_is_warned_of(
    tmp_path: Path, value: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are real, the scores are made up: an embedder that has learned nothing, and one that has."""
    from unime.evaluate import one
    from unime.evaluate.tasks import RERANKED, column

    finished(tmp_path, value, 1.0)
    config = load(ROOT / "config.yaml")

    def scored(name: str, metric: str) -> pl.DataFrame:
        return pl.DataFrame([(name, RERANKED, metric, value, 10, "content")], schema=artifacts.SCORES, orient="row")

    monkeypatch.setattr(one, "score_task", lambda task, items, *rest: scored(task["task"][0], "precision@1"))
    places = iter(config.evaluate.crossmodal)

    def captions_scored(queries: pl.DataFrame, *rest: object) -> pl.DataFrame:
        name = next(places)
        return scored(name, column(name).metric)

    monkeypatch.setattr(one, "score_captions", captions_scored)
    door, name = open_door("ablation_evaluate"), next(iter(config.ablations.embedders))
    job = Job(name, 1, tmp_path / "s", log=logging.getLogger("test"))
    said = door.run(door.view(config, name), job, [tmp_path / "eval", tmp_path, tmp_path], [tmp_path / "out"])
    assert said.count("\nwarning: ") == count
    tasks = len(config.evaluate.tasks) + len(config.evaluate.crossmodal)
    assert not count or f"\nwarning: {name}: over all {tasks} tasks together within 2 standard errors of chance" in said


def test_the_page_shows_warnings_before_everything_else_and_no_heading_without_them() -> None:
    names = ["NanoObject"]
    rows = [("NanoObject", model, "precision@1", 0.5, 10, "content") for model in MODELS]
    results = tables.build(pl.DataFrame(rows, schema=artifacts.SCORES, orient="row"), names)
    text = page.page(results, {}, "# Mining report\n\nnothing\n", [], [], warnings=["the <judge> gives 0.045"])
    assert '<h2 id="warnings">Warnings</h2>' in text and "the &lt;judge&gt; gives 0.045" in text
    assert text.index("gives 0.045") < text.index('<h2 id="results">')
    long = " ".join(["word"] * 200) + " remedy"
    assert long in page.page(results, {}, "# Mining report\n\nnothing\n", [], [], warnings=[long]), "whole, since the remedy comes last"
    assert "Warnings" not in page.page(results, {}, "# Mining report\n\nnothing\n", [], [])


@pytest.mark.parametrize(("value", "loss", "sigma"), [(0.1, 3.0, 0.045), (0.9, 1.0, 0.9)])
def test_the_report_stage_says_it_on_its_line_on_the_page_and_to_the_cards(tmp_path: Path, value: float, loss: float, sigma: float) -> None:
    config = load(ROOT / "config.yaml")
    folders = finished(tmp_path, value, loss)
    counted = {"count": 0, "listed": []}
    common = {"rows": 10, "queries": 10, "left_out": counted, "candidates_left_out": counted, "captions_left_out": counted}
    for name in config.data.train_sets:
        more = {"name": name, "sampled": 10, "pairs": 10, "candidates": 10, "duplicate_pairs": 0, "modalities": {"text -> text": 10}}
        artifacts.write_json(common | more, tmp_path / "train" / name / "report.json")
        artifacts.write_table(pairs([(f"{name}-q", f"{name}-a")]), tmp_path / "train" / name / "pairs.parquet", artifacts.PAIRS)
        artifacts.write_table(items({f"{name}-q": "", f"{name}-a": "x"}), tmp_path / "train" / name / "items.parquet", artifacts.ITEMS)
    for name in [*config.evaluate.tasks, *config.evaluate.crossmodal]:
        more = {"name": name, "distinct": 10, "duplicates": 0, "duplicate_candidates": {"candidates": 0}, "candidates": 10}
        if name in config.evaluate.tasks:
            more |= {
                "candidates": {"fewest": 10, "most": 10, "distinct": 10},
                "modalities": {"query": {"text": 10}, "candidate": {"text": 10}},
            }
        artifacts.write_json(common | more, tmp_path / "eval" / name / "report.json")
    artifacts.write_json(figures(sigma, 100) | {"all": figures(sigma, 0)["sets"][0] | {"name": "all"}}, tmp_path / "mining/mining.json")
    (tmp_path / "mining/mining.md").write_text("# Mining report\n\nnothing\n")
    door = open_door("report")
    outputs = [tmp_path / "out" / Path(path).name for path in door.outputs]
    outputs[0].parent.mkdir()
    inputs = [tmp_path / name for name in ("evaluate", "mining", "train", "eval")]
    said = door.run(door.view(config, None), Job(None, 1, tmp_path / "s", log=logging.getLogger("test")), [*inputs, *folders], outputs)

    shown = [line.removeprefix("warning: ") for line in said.splitlines() if line.startswith("warning: ")]
    assert json.loads((tmp_path / "out/warnings.json").read_text()) == {"warnings": shown}
    html = (tmp_path / "out/report.html").read_text()
    if value > 0.5:
        assert shown == [] and "Warnings" not in html
    else:
        assert "gives the labelled positives 0.045" in shown[0] and sum("training loss rises" in one for one in shown) == 2
        assert sum("chance" in one for one in shown) > len(config.evaluate.tasks) and "gives the labelled positives 0.045" in html
    assert "results/warnings.json" in open_door("export").inputs


def test_much_data_left_out_is_told_of_sets_tasks_lists_and_columns() -> None:
    def report(name: str, lost: int, entries: int = 0, captions: int = 0) -> dict:
        counts = {"left_out": {"count": lost}, "candidates_left_out": {"count": entries}, "captions_left_out": {"count": captions}}
        return {"name": name, "sampled": 100, "rows": 100, "queries": 100 - lost, **counts}

    lists, pool = {"candidates": {"most": 10}}, {"candidates": 95}
    assert warned.of_left_out([report("A", 4)], [report("B", 4, 40) | lists], [report("C", 4, 0, 4) | pool]) == []
    shown = warned.of_left_out([report("A", 5)], [report("B", 6, 60) | lists], [report("C", 7, 0, 5) | pool])
    figures = ["A: 5 of 100 rows (5 %)", "B: 6 of 100 rows (6 %)", "C: 7 of 100 rows (7 %)"]
    figures += ["B: 60 of 1,000 list entries (6 %)", "C: 5 of 100 candidates (5 %)"]
    assert [one.split(" are left out")[0] for one in shown] == figures
