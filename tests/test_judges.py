"""Several judges: their mean is one more judge, mining takes any of them, and the agreement report counts what a plain loop counts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from unime import artifacts
from unime import config as config_module
from unime.__main__ import main, open_door
from unime.artifacts import ArtifactError
from unime.mine import judges, mine
from unime.report import agreement

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("other", "judge")
SETS = ["NanoColor", "NanoEdit"]


def table(scores: dict[str, tuple[float, Sequence[float]]]) -> pl.DataFrame:
    """JUDGEMENTS of pairs: name -> (sigma, the candidates' scores); logits that tell the rows apart."""
    rows = []
    for pair, (sigma, others) in scores.items():
        rows.append((pair, f"t{pair}", True, 1.0, -1.0, sigma))
        rows += [(pair, f"c{place}", False, score, place, score) for place, score in enumerate(others)]
    return pl.DataFrame(rows, schema=artifacts.JUDGEMENTS, orient="row")


# The mean


def test_the_mean_of_judges_is_the_arithmetic_mean_of_each_column():
    one, two, three = (table({"p": (0.9, [0.1, step])}) for step in (0.2, 0.5, 0.8))
    found = judges.mean({"a": one, "b": two, "c": three})
    artifacts.check(found, artifacts.JUDGEMENTS, "mean")
    assert found["score"].to_list() == pytest.approx([0.9, 0.1, 0.5]) and found["yes"].to_list() == pytest.approx([1.0, 0.1, 0.5])
    assert found["no"].to_list() == [-1, 0, 1] and found.select(judges.KEY).equals(one.select(judges.KEY))


def test_the_order_of_a_judges_rows_does_not_matter():
    one, two = table({"p": (0.9, [0.1, 0.2, 0.3]), "q": (0.5, [0.6])}), table({"p": (0.7, [0.2, 0.9, 0.4]), "q": (0.1, [0.8])})
    mixed = two.sample(fraction=1, shuffle=True, seed=1)
    assert not mixed.equals(two)
    assert judges.mean({"a": one, "b": mixed}).equals(judges.mean({"a": one, "b": two}))
    assert agreement.report([("A", one, mixed)], NAMES, beta=0.01) == agreement.report([("A", one, two)], NAMES, beta=0.01)


def compared(one: pl.DataFrame, two: pl.DataFrame) -> None:
    agreement.report([("A", one, two)], NAMES, beta=0.01)


@pytest.mark.parametrize("use", [lambda one, two: judges.mean({"other": one, "judge": two}), compared])
def test_tables_of_different_pairs_are_refused_with_pair_and_candidate(use):
    whole = table({"p": (0.9, [0.1, 0.2]), "q": (0.8, [0.3])})
    less = whole.filter((pl.col("pair") != "p") | (pl.col("candidate") != "c1"))
    with pytest.raises(ArtifactError, match=r"pair p, candidate c1 is judged by other and not by judge \(1 such\); .*: run the judges'"):
        use(whole, less)
    with pytest.raises(ArtifactError, match="pair p, candidate c1 is judged by judge and not by other"):
        use(less, whole)
    with pytest.raises(ArtifactError, match="pair q, candidate tq is there twice among the judgements of judge"):
        use(whole, pl.concat([whole, whole.filter(pl.col("candidate") == "tq")]))
    with pytest.raises(ArtifactError, match=r"pair q, candidate c0: score nan is not in \[0, 1\]"):
        use(whole, whole.with_columns(score=pl.when(pl.col("pair") == "q", ~pl.col("positive")).then(float("nan")).otherwise("score")))


# Agreement


def ranks(values: Sequence[float]) -> np.ndarray:
    """Places from 1; equal values share the mean of theirs."""
    return np.array([sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values])


def spearman(one: Sequence[float], two: Sequence[float]) -> float | None:
    a, b = (ranks(values) - (len(values) + 1) / 2 for values in (one, two))
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm else None


def test_agreement_on_a_hand_example():
    one = table({"p": (0.9, [0.1, 0.2, 0.3, 0.95]), "q": (0.5, [0.5, 0.2])})
    two = table({"p": (0.8, [0.2, 0.1, 0.4, 0.7]), "q": (0.5, [0.1, 0.45])})
    found = agreement.report([("A", one, two)], NAMES, beta=0.01)
    (own,), whole = found["sets"], found["all"]
    assert {**own, "name": "all"} == whole and (own["pairs"], own["candidates"], own["constant"]) == (2, 6, 0)
    # in p the ranks are 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15); in q they are 2 1 and 1 2
    assert own["rho_in_pair"] == pytest.approx((0.8 - 1.0) / 2)
    assert own["rho"] == pytest.approx(spearman([0.1, 0.2, 0.3, 0.95, 0.5, 0.2], [0.2, 0.1, 0.4, 0.7, 0.1, 0.45]))
    # one drops 0.95 > 0.89 and 0.5 > 0.49; two drops nothing: 0.7 < 0.79, 0.45 < 0.49
    assert (own["drops"], own["other_drops"], own["apart"]) == (pytest.approx(2 / 6), 0.0, pytest.approx(2 / 6))
    assert own["difference"] == pytest.approx((0.1 + 0.1 + 0.1 + 0.25 + 0.4 + 0.25) / 6)


def test_equal_scores_share_their_mean_rank_and_pairs_of_one_score_are_counted_apart():
    one = table({"p": (0.9, [0.1, 0.1, 0.2, 0.2]), "q": (0.5, [0.3, 0.3]), "r": (0.5, [0.3]), "s": (0.5, [])})
    two = table({"p": (0.9, [0.1, 0.2, 0.2, 0.2]), "q": (0.5, [0.1, 0.2]), "r": (0.5, [0.4]), "s": (0.5, [])})
    (own,) = agreement.report([("A", one, two)], NAMES, beta=0.01)["sets"]
    # ranks 1.5 1.5 3.5 3.5 and 1 3 3 3, less their mean 2.5
    assert own["rho_in_pair"] == pytest.approx(2 / np.sqrt(4 * 3)) and (own["pairs"], own["constant"]) == (3, 2)


def test_agreement_equals_a_plain_loop_on_random_tables_with_ties():
    rng = np.random.default_rng(0)
    sets = []
    for name, pairs in (("A", 40), ("B", 25)):
        sizes = [int(size) for size in rng.integers(0, 12, pairs)]
        both = [{f"{name}{i}": (float(rng.random()), np.round(rng.random(n), 1).tolist()) for i, n in enumerate(sizes)} for _ in NAMES]
        sets.append((name, *both))
    found = agreement.report([(name, table(one), table(two)) for name, one, two in sets], NAMES, beta=0.05)
    rows = [(pair, one[pair], two[pair]) for _, one, two in sets for pair in one]
    within = [spearman(one, two) for _, (_, one), (_, two) in rows if one]
    flat = [(a, b, a > sigma - 0.05, b > other - 0.05) for _, (sigma, one), (other, two) in rows for a, b in zip(one, two, strict=True)]
    whole, known = found["all"], [value for value in within if value is not None]
    assert (whole["pairs"], whole["candidates"], whole["constant"]) == (len(within), len(flat), within.count(None))
    assert within.count(None) > 1 and len({row[0] for row in flat}) < len(flat) / 5, "there are ties"
    assert whole["rho"] == pytest.approx(spearman([row[0] for row in flat], [row[1] for row in flat]))
    assert whole["rho_in_pair"] == pytest.approx(np.mean(known))
    assert whole["apart"] == pytest.approx(np.mean([one != two for _, _, one, two in flat])) and 0 < whole["apart"] < 1
    assert (whole["drops"], whole["other_drops"]) == pytest.approx([np.mean([row[at] for row in flat]) for at in (2, 3)])
    assert whole["difference"] == pytest.approx(np.mean([abs(row[0] - row[1]) for row in flat]))


def test_a_judge_agrees_with_itself_and_not_with_its_opposite():
    one = table({"p": (0.9, [0.1, 0.2, 0.95]), "q": (0.5, [0.7, 0.2])})
    whole = agreement.report([("A", one, one)], NAMES, beta=0.01)["all"]
    assert (whole["rho"], whole["rho_in_pair"], whole["apart"], whole["difference"]) == pytest.approx((1, 1, 0, 0)) and whole["drops"] > 0
    opposite = one.with_columns(score=1 - pl.col("score"))
    whole = agreement.report([("A", one, opposite)], NAMES, beta=0.01)["all"]
    assert (whole["rho"], whole["rho_in_pair"]) == pytest.approx((-1, -1))


def test_a_pair_without_one_positive_is_named():
    one = table({"p": (0.9, [0.1]), "q": (0.5, [0.7])})
    lost = one.filter((pl.col("pair") != "q") | ~pl.col("positive"))
    with pytest.raises(ArtifactError, match="pair q: its positive has no judgement; run the judges' stages again"):
        compared(lost, lost)
    two = one.with_columns(positive=pl.col("positive") | (pl.col("pair") == "q"))
    with pytest.raises(ArtifactError, match="pair q has two positives"):
        compared(two, two)


def test_the_report_has_a_row_a_set_and_one_for_all():
    one, none = table({"p": (0.9, [0.1, 0.2, 0.95])}), table({"q": (0.9, [])})
    figures = agreement.report([("A", one, one), ("B", none, none)], NAMES, beta=0.01)
    text = agreement.markdown(figures)
    assert "| A | 1 | 3 | 1.000 | 1.000 | 0 | 0.0 % | 33.3 % | 33.3 % | 0.000 |" in text
    assert "| B | 0 | 0 |  |  | 0 | none | none | none |  |" in text and "| all | 1 | 3 |" in text
    assert agreement.line(figures) == (
        "rho 1.000 over 3 candidates; 0.0 % on different sides of alpha (other drops 33.3 %, judge drops 33.3 %)"
    )


# The stages


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which two judges have judged two sets."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for name in SETS:
        pairs = [(f"{name}{row}", name, row, f"q{row}", f"t{name}{row}") for row in range(6)]
        hits = [(pair, f"c{rank}", rank, 0.9 - rank / 100) for pair, *_ in pairs for rank in range(12)]
        for rows, place, schema in (
            (pairs, f"results/data/train/{name}/pairs.parquet", artifacts.PAIRS),
            (hits, f"results/retrieve/{name}/hits.parquet", artifacts.HITS),
        ):
            artifacts.write_table(pl.DataFrame(rows, schema, orient="row"), place, schema)
        for folder in ("results/judge", "results/judges/nano-published"):
            judged = table({pair: (float(rng.random()), rng.random(12).tolist()) for pair, *_ in pairs})
            artifacts.write_table(judged, f"{folder}/{name}/judgements.parquet", artifacts.JUDGEMENTS)
    configure("results/judge")
    return tmp_path


def configure(judgements: str) -> config_module.Config:
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["data"]["train_sets"], values["judge"]["means"] = SETS, {"both": ["judge", "nano-published"]}
    values["mine"]["judgements"] = judgements
    Path("config.yaml").write_text(yaml.safe_dump(values))
    return config_module.parse(values)


def mined(judgements: pl.DataFrame, name: str) -> pl.DataFrame:
    pairs = artifacts.read_table(f"results/data/train/{name}/pairs.parquet", artifacts.PAIRS)
    hits = artifacts.read_table(f"results/retrieve/{name}/hits.parquet", artifacts.HITS)
    return mine(pairs, hits, judgements, beta=0.01, negatives=10, interval=5, order="similarity", seed=42)[0]


def judged(folder: str, name: str) -> pl.DataFrame:
    return artifacts.read_table(f"{folder}/{name}/judgements.parquet", artifacts.JUDGEMENTS)


def test_mining_takes_the_judgements_that_it_is_told_to_and_each_judge_has_mined_negatives_of_its_own(run: Path):
    Path("results/judge/NanoGone").mkdir()  # a set that is no longer asked for
    assert main(["judge_mean", "both"]) == 0 and not Path("results/judge/NanoGone").exists()
    found = {}
    for folder, stage in (("results/judge", ""), ("results/judges/nano-published", "mine_more"), ("results/judge_means/both", "mine_mean")):
        configure(folder)
        assert not stage or main([stage, Path(folder).name]) == 0
        for name in SETS:
            assert main(["mine", name]) == 0
            wanted = mined(judged(folder, name), name)
            found[folder, name] = wanted["scores"].to_list()
            for place in ["results/mine/judge", *([f"results/mine/{Path(folder).name}"] if stage else [])]:
                assert artifacts.read_table(f"{place}/{name}/mined.parquet", artifacts.MINED).equals(wanted), place
    assert len({repr(scores) for scores in found.values()}) == 6, "judges that mine the same would prove nothing"
    both = [judged(folder, "NanoEdit")["score"].to_numpy() for folder in ("results/judge", "results/judges/nano-published")]
    assert judged("results/judge_means/both", "NanoEdit")["score"].to_numpy() == pytest.approx(np.mean(both, axis=0))


def test_a_mean_that_does_not_tell_right_answers_from_others_is_warned_of_by_set(run: Path, capsys: pytest.CaptureFixture[str]):
    for folder in ("results/judge", "results/judges/nano-published"):
        for name, sigma in zip(SETS, (0.9, 0.7), strict=True):
            pairs = {f"{name}{row}": (sigma, [0.7] * 12) for row in range(30)}
            artifacts.write_table(table(pairs), f"{folder}/{name}/judgements.parquet", artifacts.JUDGEMENTS)
    assert main(["judge_mean", "both"]) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {SETS[1]}: the judge gives the labelled positives 0.70 on average and the other candidates 0.70")


def test_the_agreement_stage_writes_what_the_report_says_and_one_line(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["judge_agreement", "nano-published"]) == 0
    folder = Path("results/judge_agreement/nano-published")
    wanted = agreement.report(
        [(name, judged("results/judges/nano-published", name), judged("results/judge", name)) for name in SETS],
        ("nano-published", "judge"),
        beta=0.01,
    )
    assert json.loads((folder / "report.json").read_text()) == wanted and (folder / "report.md").read_text() == agreement.markdown(wanted)
    assert wanted["all"]["candidates"] == 2 * 6 * 12 and 0 < wanted["all"]["apart"] < 1
    shown = r"made \S+: rho -?0\.\d+ over 144 candidates; [\d.]+ % on different sides of alpha \(nano-published drops .*, judge drops .*\)"
    assert re.match(shown, capsys.readouterr().out)


def test_tables_of_another_run_are_refused_by_the_stages(run: Path, capsys: pytest.CaptureFixture[str]):
    less = judged("results/judge", "NanoEdit")[:-1]
    artifacts.write_table(less, "results/judge/NanoEdit/judgements.parquet", artifacts.JUDGEMENTS)
    for stage in (["judge_mean", "both"], ["judge_agreement", "nano-published"]):
        assert main(stage) == 1
        assert "pair NanoEdit5, candidate c11 is judged by nano-published and not by judge" in capsys.readouterr().err


def test_a_judge_or_a_mean_added_is_no_parameter_of_the_stages_that_are_there(config):
    values = config.model_dump(mode="json")
    values["judge"]["models"]["more"] = {"model": "models/more", "mode": "exact"}
    values["judge"]["means"]["both"] = ["judge", "more"]
    more = config_module.parse(values)
    changed = {}
    for stage in ("judge", "judge_more", "judge_agreement", "mine", "mine_more", "mining_report", "train_unime_v2", "settings"):
        door = open_door(stage)
        item = list(config_module.at(config, door.items))[0] if door.per_item else None
        changed[stage] = door.view(config, item).dump() != door.view(more, item).dump()
    assert [stage for stage, is_changed in changed.items() if is_changed] == ["settings"], "it writes down every setting"
    values["mine"]["judgements"] = "results/judge_means/both"
    moved, door = config_module.parse(values), open_door("mine")
    assert door.paths(door.inputs, door.view(moved, "NanoColor"), "NanoColor")[2] == Path("results/judge_means/both/NanoColor")
    assert door.view(moved, "NanoColor").dump() != door.view(more, "NanoColor").dump()


# The configuration


OTHER = {"model": "models/other", "mode": "exact"}
FOREIGN = {"loss": "unime_v2", "source": "bth", "negatives": 4, "tau": 0.02}
WRONG = {
    "an unknown folder": (
        {"mine.judgements": "results/judges/nano-publishd"},
        "'results/judges/nano-publishd' is none of results/judge, results/judges/nano-published, results/judge_means/both; "
        "nearest: 'results/judges/nano-published'",
    ),
    "a folder of nobody": ({"mine.judgements": "elsewhere"}, r"mine.judgements 'elsewhere' is none of .*results/judge_means/both$"),
    "a set's folder": ({"mine.judgements": "results/judge/NanoColor"}, "nearest: 'results/judge"),
    "an unknown judge": (
        {"judge.means.both": ["judge", "nano-publishd"]},
        "judge.means.both names 'nano-publishd', which is neither 'judge' nor a name of judge.models; nearest: 'nano-published'",
    ),
    "a mean of means": ({"judge.means.all": ["judge", "both"]}, "judge.means.all names 'both'"),
    "a judge twice": ({"judge.means.both": ["judge", "judge"]}, "judge.means.both names 'judge' twice"),
    "one judge": ({"judge.means.both": ["judge"]}, "judge.means.both has 1 judges; a mean needs at least 2 of: judge, nano-published"),
    "no judge": ({"judge.means.both": []}, "judge.means.both has 0 judges"),
    "a judge's reserved name": ({"judge.models.judge": OTHER}, "judge.models: 'judge' is the name of the run's own judge"),
    "a mean's reserved name": ({"judge.means.judge": ["judge", "nano-published"]}, "judge.means: 'judge' is the name"),
    "scores' reserved name": ({"fetch.scores.judge": "Qwen25VL_7B"}, "fetch.scores: 'judge' is the name"),
    "a judge and a mean": ({"judge.models.both": OTHER}, "'both' is in judge.models and in judge.means; both would write results/mine"),
    "a judge and scores": ({"fetch.scores.nano-published": "Qwen25VL_7B"}, "'nano-published' is in fetch.scores and in judge.models"),
    "a mean and scores": ({"fetch.scores.both": "Qwen25VL_7B"}, "'both' is in fetch.scores and in judge.means"),
    "a source of nobody": ({"ablations.embedders.k-4": FOREIGN}, "'bth' is unknown; nearest: 'both'"),
}


def changed(config: config_module.Config, changes: dict[str, object]) -> config_module.Config:
    values = config.model_dump(mode="json")
    values["judge"]["means"] = {"both": ["judge", "nano-published"]}
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return config_module.parse(values)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_judge_is_refused_with_value_and_remedy(what: str, config):
    changes, message = WRONG[what]
    with pytest.raises(config_module.ConfigError, match=message):
        changed(config, changes)


def test_every_judge_and_every_mean_may_be_mined_from_and_be_an_ablations_source(config):
    for folder in ("results/judge", "results/judges/nano-published", "results/judge_means/both"):
        source = Path(folder).name
        variant = {"loss": "unime_v2", "source": source, "negatives": 4, "tau": 0.02}
        found = changed(config, {"mine.judgements": folder, "ablations.embedders.k-4": variant})
        assert found.mine.judgements == folder and found.ablations.embedders["k-4"].source == source
