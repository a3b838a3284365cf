"""Rows that no model of the run could read are found before anything is embedded: pictures by their shape, prompts by their length."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import yaml
from families import NAMES
from PIL import Image

from unime import artifacts, prompts
from unime.__main__ import open_door
from unime.backbones import Prompt, load
from unime.config import parse
from unime.data.images import Decoding
from unime.data.items import Items
from unime.data.rows import DataError
from unime.doors._filter import _pair, each
from unime.job import Job
from unime.limits import cut
from unime.limits.lengths import ImageSizes, Reader, TextLengths

ROOT = Path(__file__).resolve().parent.parent


# The cut


def worst(query: int, positive: int, pool: list[int], others: int, own: bool) -> int:
    """The longest prompt of a pair, by trying every choice of other candidates."""
    places = [place for place in range(len(pool)) if not (own and place == positive)]
    most = max(sum(pool[place] for place in some) for some in itertools.combinations(places, min(others, len(places))))
    return query + most + (pool[positive] if own else 0)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("others", [1, 2, 4])
def test_a_cut_leaves_only_prompts_that_fit_and_loses_the_fewest_pairs(own: bool, others: int) -> None:
    rng, cuts, whole = np.random.default_rng(others + 10 * own), 0, 0

    def lost(gone: int) -> int:
        """Pairs that are lost where the `gone` longest candidates are, counted by trying every prompt."""
        left = np.sort(np.argsort(-pool)[gone:]).tolist()
        at = {place: number for number, place in enumerate(left)}
        count = 0
        for q, p in zip(query.tolist(), positive.tolist(), strict=True):
            count += p not in at or worst(q, at[p], pool[left].tolist(), others, own) > room
        return count

    for _ in range(150):
        pool = rng.permutation(np.arange(1, 30))[: int(rng.integers(2, 8))]
        positive = rng.permutation(np.concatenate([np.arange(len(pool)), rng.integers(0, len(pool), size=3)]))
        query = rng.integers(1, 30, size=len(positive))
        room = int(rng.integers(20, 120))
        found = cut(query, positive, pool, room, others, own=own)
        needs = [worst(int(q), int(p), pool.tolist(), others, own) for q, p in zip(query, positive, strict=True)]
        if max(needs) <= room:
            assert not found.pairs.any() and not found.candidates.any()
            assert found.needed.tolist() == needs
            whole += 1
            continue
        cuts += 1
        assert found.pairs.any()
        left = np.flatnonzero(~found.candidates)
        at = {int(place): number for number, place in enumerate(left)}
        kept = np.flatnonzero(~found.pairs)
        assert all(int(positive[pair]) in at for pair in kept)
        for pair in kept:
            assert worst(int(query[pair]), at[int(positive[pair])], pool[left].tolist(), others, own) <= room
        for pair in np.flatnonzero(found.pairs & ~found.candidates[positive]):  # of those with a candidate that stays, only the ones over
            assert worst(int(query[pair]), at[int(positive[pair])], pool[left].tolist(), others, own) > room
        assert found.pairs.sum() == min(lost(gone) for gone in range(len(pool) - 1))
        assert found.candidates.sum() == min(range(len(pool) - 1), key=lost), "no candidate goes without need"
    assert cuts > 20 and whole > 20


def test_of_equally_long_candidates_those_go_first_that_cost_fewer_pairs() -> None:
    found = cut(np.full(5, 10), np.array([0, 0, 1, 2, 3]), np.array([90, 90, 5, 5]), 105, 1, own=False)
    assert not found.pairs.any()
    found = cut(np.full(5, 10), np.array([0, 0, 1, 2, 3]), np.array([90, 90, 5, 5]), 170, 1, own=True)
    assert np.flatnonzero(found.candidates).tolist() == [1] and np.flatnonzero(found.pairs).tolist() == [2]


def test_one_long_query_goes_alone_and_so_does_one_long_candidate() -> None:
    short = np.full(50, 10)
    long_query = np.where(np.arange(50) == 7, 900, 10)
    assert np.flatnonzero(cut(long_query, np.arange(50), short, 200, 4, own=True).pairs).tolist() == [7]
    long_candidate = np.where(np.arange(50) == 3, 900, 10)
    found = cut(short, np.arange(50), long_candidate, 200, 4, own=True)
    assert np.flatnonzero(found.pairs).tolist() == [3] and np.flatnonzero(found.candidates).tolist() == [3]


# Lengths


TEXTS = ["a", "red.", "  two words ", "(1) 7", "\nWhat color is it?\n", "What color is it?.!", "é ü 漢字", "x" * 50, "1 2 3", "'s"]
TEXTS += ["<|im_end|>" * 9, "<image> <s><|vision_start|>"]  # text like any other, so many tokens each


@pytest.mark.parametrize("name", ["nano", *NAMES])
@pytest.mark.parametrize("form", ["unime", "public"])
def test_lengths_add_up_to_those_of_real_prompts(name: str, form: str, nano: Path, family, tmp_path: Path) -> None:
    models = SimpleNamespace(dtype="float32", device="cpu", attention="sdpa", max_length=4096)
    backbone = load(nano if name == "nano" else family(name), models=models, weights=False)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("0.png", png((60, 30)))
        archive.writestr("turned.png", png((200, 30), turned=True))
    place, turned = (str(tmp_path / "images.zip"), "0.png", "0"), (str(tmp_path / "images.zip"), "turned.png", "1")
    rows = [(f"t{number}", text, "", "", "") for number, text in enumerate(TEXTS)]
    rows += [
        ("p0", prompts.IMAGE_MARK + "a red ring", *place),
        ("p1", prompts.IMAGE_MARK, *place),
        ("p2", f"see {prompts.IMAGE_MARK}\nit", *place),
        ("p3", prompts.IMAGE_MARK, *turned),
    ]
    items = Items(pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row"), Decoding(10_000))
    for turn, counts in ((functools.partial(_pair, form=form), [1]), (functools.partial(prompts.list_turn, form=form), [2, 3])):
        reader = Reader("it", backbone, items, TextLengths(backbone, items), ImageSizes(items), "image_size", turn)
        rng, checked = np.random.default_rng(0), 0
        for count in counts:
            for _ in range(25):
                query, *shown = rng.choice(items.ids, count + 1).tolist()
                content = [items[id].parts for id in (query, *shown)]
                real = backbone.length(backbone.chat_prompt(turn(content[0], content[1:])))
                parts = [reader.as_candidate(id, last=False) for id in shown[:-1]] if count > 1 else []
                added = reader.frame(count) + reader.as_query(query) + sum(parts) + reader.as_candidate(shown[-1])
                assert added == real, (query, shown)
                assert reader.frame(count) + int(reader.upper_bounds([query, *shown]).sum()) >= real
                checked += 1
        assert checked >= 25


@pytest.mark.parametrize(("images", "remedy"), [(0, "or shorten the text: 'word"), (1, "or shrink images with image_size")])
def test_a_prompt_that_is_too_long_all_the_same_is_answered_with_the_remedy_that_fits(nano: Path, images: int, remedy: str) -> None:
    models = SimpleNamespace(dtype="float32", device="cpu", attention="sdpa", max_length=5)
    backbone = load(nano, models=models, weights=False)
    with pytest.raises(ValueError, match=remedy):
        backbone.encode(Prompt("word word word" + backbone.IMAGE_TOKEN * images, (Image.new("RGB", (56, 56)),) * images))


# The stages on own data


def png(size: tuple[int, int], colour: int = 0, turned: bool = False) -> bytes:
    """An image; `turned`: whose EXIF data say that it is to be shown turned by 90 degrees."""
    out, exif = io.BytesIO(), Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.new("RGB", size, (colour, 80, 120)).save(out, "PNG", exif=exif)
    return out.getvalue()


class Run:
    """The data stages and the filters of a folder of own data, as the command line runs them, on the nano MLLM."""

    def __init__(self, root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        monkeypatch.chdir(root)
        self.raw = yaml.safe_load((ROOT / "presets/own-data.yaml").read_text())
        self.own = f"own-{root.parent.name}-{root.name}"  # an archive that this process has read is known by its path
        self.raw["data"] |= {"root": self.own, "train_sets": ["S"]}
        self.raw["evaluate"] |= {"tasks": ["S"], "crossmodal": [], "rerank_mode": "likelihood"}
        (root / "models").mkdir()
        (root / "models/nano-mllm").symlink_to(model.resolve())

    def rows(self, part: str, rows: list[dict], images: dict[str, bytes]) -> None:
        folder = self.root / self.own / part / "S"
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for name, data in images.items():
                archive.writestr(name, data)

    def stage(self, name: str, item: str | None = None) -> str:
        door, config = open_door(name), parse(self.raw)
        view = door.view(config, item)
        outputs = door.paths(door.outputs, view, item)
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self.root / "scratch", ignore_errors=True)
        (self.root / "scratch").mkdir()
        job = Job(item, 1, self.root / "scratch", log=logging.getLogger("test"))
        return door.run(view, job, door.paths(door.inputs, view, item), outputs)

    def train(self) -> tuple[str, pl.DataFrame, dict]:
        self.stage("data_train", "S")
        said = self.stage("filter_train")
        folder = self.root / "results/data/train/S"
        return said, artifacts.read_table(folder / "pairs.parquet", artifacts.PAIRS), artifacts.read_json(folder / "report.json")

    def eval(self) -> tuple[str, pl.DataFrame, dict]:
        self.stage("data_eval", "S")
        said = self.stage("filter_eval")
        folder = self.root / "results/data/eval/S"
        return said, artifacts.read_table(folder / "queries.parquet", artifacts.TASKS), artifacts.read_json(folder / "report.json")


@pytest.fixture
def run(tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, nano, monkeypatch)


GOOD = [{"query_text": f"at the top a ring number {number}", "positive_image": f"{number}.png"} for number in range(8)]
IMAGES = {f"{number}.png": png((40, 30), number) for number in range(8)}

LONG = "word " * 10000
TOO_LONG = r".* tokens are more than models.max_length \(4,096\).*shorten"
BAD = {
    "thin positive": (
        {"query_text": "a line", "positive_image": "x.png"},
        (2000, 8),
        "the positive: its image of 2000x8 .*judge.image_size",
    ),
    "tall query": ({"query_image": "x.png", "positive_text": "a line"}, (8, 1700), "the query: its image of 8x1700 .*train.image_size"),
    "long query": ({"query_text": LONG, "positive_image": "0.png"}, None, f"the query: {TOO_LONG}"),
    "long positive": ({"query_text": "what?", "positive_text": LONG}, None, f"the positive: {TOO_LONG}"),
    "no room": ({"query_text": "word " * 1350, "positive_text": "b"}, None, "its query of .* and the longest other candidate of the set"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_training_row_that_a_model_cannot_read_is_left_out_with_file_and_row_and_the_others_go_on(run: Run, what: str) -> None:
    row, size, reason = BAD[what]
    images = IMAGES | ({"x.png": png(size)} if size else {})
    run.rows("train", [*GOOD[:3], row, *GOOD[3:]], images)
    said, pairs, report = run.train()
    assert pairs["row"].to_list() == [0, 1, 2, 4, 5, 6, 7, 8] and "1 left out that one could not read (S 1; report.json)" in said
    (listed,) = report["left_out"]["listed"]
    assert (listed["file"], listed["row"], report["left_out"]["count"]) == (f"{run.own}/train/S/rows.jsonl", 4, 1)
    assert pl.Series([listed["reason"]]).str.contains(reason).all(), listed["reason"]
    assert "image" in listed["reason"] if size else "shrink" not in listed["reason"] and "image_size" not in listed["reason"]
    items = artifacts.read_table("results/data/train/S/items.parquet", artifacts.ITEMS)
    assert set(items["id"]) == set(pairs["query"]) | set(pairs["positive"]) and report["pairs"] == 8
    assert report["modalities"] == {"text -> image": 8} and "places" not in report

    run.raw["data"]["bad_rows"] = "fail"
    with pytest.raises(DataError, match=f"{run.own}/train/S/rows.jsonl: row 4: {reason}.*data.bad_rows: skip"):
        run.stage("filter_train")


def test_squashed_images_have_no_shape_that_a_model_refuses(run: Run) -> None:
    run.rows("train", [*GOOD, BAD["thin positive"][0]], IMAGES | {"x.png": png((2000, 8))})
    for section in (run.raw["train"], run.raw["embed"], run.raw["judge"], run.raw["train"]["reranker"]):
        section["image_size"] = 56
    said, pairs, report = run.train()
    assert len(pairs) == 9 and report["left_out"]["count"] == 0 and "left out" not in said


def test_a_set_that_fits_keeps_every_byte(run: Run) -> None:
    run.rows("train", GOOD, IMAGES)
    run.rows("eval", GOOD, IMAGES)
    run.train()
    run.eval()
    compared = 0
    for part in ("train", "eval"):
        for file in (run.root / "results/data" / part / "S").glob("*.parquet"):
            assert file.read_bytes() == (run.root / "results/rows" / part / "S" / file.name).read_bytes()
            compared += 1
    assert compared == 5


def longest_list(run: Run, texts: list[str], query: str, count: int) -> int:
    """Tokens of the reranker's prompt with the `count` longest of the texts, by the real prompt in every order of the last."""
    models = SimpleNamespace(dtype="float32", device="cpu", attention="sdpa", max_length=4096)
    backbone = load(run.raw["models"]["reranker"], models=models, weights=False)
    some = sorted(texts, key=lambda text: len(backbone.tokenizer.encode(text)))[-count:]
    orders = [[*some[:place], *some[place + 1 :], some[place]] for place in range(count)]
    return max(backbone.length(backbone.chat_prompt(prompts.list_turn([query], [[text] for text in order]))) for order in orders)


def test_a_list_is_measured_to_the_token(run: Run) -> None:
    texts = [f"answer {number} " + "a small red ring " * (5 + number) for number in range(9)]
    run.rows("train", [{"query_text": "one question", "positive_text": text} for text in texts], {})
    need = longest_list(run, texts, "one question", 1 + run.raw["train"]["reranker"]["list_negatives"])
    run.raw["models"]["max_length"] = need
    _, pairs, _ = run.train()
    assert len(pairs) == 9
    run.raw["models"]["max_length"] = need - 1
    _, pairs, report = run.train()
    assert len(pairs) == 8 and report["left_out"]["count"] == 1
    assert report["left_out"]["listed"][0]["row"] == 9, "the longest goes"


def test_where_no_list_fits_the_stage_stops_before_anything_is_paid_and_says_what_helps(run: Run) -> None:
    texts = [f"answer {number} " + "at the top left a small red square and a big blue ring " * 165 for number in range(12)]
    run.rows("train", [{"query_text": f"question {number}", "positive_text": text} for number, text in enumerate(texts)], {})
    with pytest.raises(
        DataError, match=r"none of the 12 pairs.*rows.jsonl: row 1: .*4 longest other candidates.*lower train.reranker.list_neg"
    ):
        run.train()
    run.raw["models"]["max_length"] = 16384
    _, pairs, _ = run.train()
    assert len(pairs) == 12


def test_only_the_stages_that_run_are_asked_what_they_can_read(run: Run) -> None:
    run.rows("train", [*GOOD, BAD["thin positive"][0]], IMAGES | {"x.png": png((2000, 8))})
    for section in (run.raw["train"], run.raw["embed"], run.raw["train"]["reranker"]):
        section["image_size"] = 56
    _, pairs, report = run.train()
    reason = report["left_out"]["listed"][0]["reason"]
    assert len(pairs) == 8 and "cannot be read by the judge" in reason and "set judge.image_size, which" in reason
    run.raw["judge"]["backend"] = "openai"  # whose tokenizer and bounds are the server's
    assert len(run.train()[1]) == 9
    run.raw["judge"]["backend"] = "transformers"
    run.raw["fetch"]["scores"] = {"published": "Qwen25VL_7B"}
    run.raw["mine"]["source"] = "published"  # nothing is judged
    assert len(run.train()[1]) == 9


def test_a_set_with_one_distinct_positive_is_refused_by_the_data_stage_and_by_the_filter_where_the_others_went(run: Run) -> None:
    run.rows("train", [{"query_text": f"question {number}", "positive_text": "a shape"} for number in range(5)], {})
    with pytest.raises(
        DataError, match=f"{run.own}/train/S: its 5 pairs have one distinct positive, nothing to tell apart.*data.train_sets"
    ):
        run.train()
    shutil.rmtree(run.own)
    run.rows("train", [{"query_text": "a", "positive_text": "b"}, {"query_text": "c", "positive_text": "word " * 10000}], {})
    with pytest.raises(DataError, match="one distinct positive"):
        run.train()


# Evaluation tasks


def task_rows(wrong: list[dict]) -> list[dict]:
    return [row | {"candidates": [*wrong, *({"image": f"{(number + 1) % 8}.png"} for _ in range(1))]} for number, row in enumerate(GOOD)]


def test_a_wrong_candidate_that_no_model_can_read_leaves_its_lists_and_costs_no_query(run: Run) -> None:
    run.rows("eval", task_rows([{"image": "x.png"}, {"text": "word " * 10000}]), IMAGES | {"x.png": png((2000, 8))})
    said, queries, report = run.eval()
    assert len(queries) == 8 and queries["candidates"].list.len().to_list() == [2] * 8 and queries["right"].to_list() == [0] * 8
    assert report["candidates_left_out"]["count"] == 16 and report["left_out"]["count"] == 0 and "16 rows or candidates left out" in said
    listed = report["candidates_left_out"]["listed"][0]
    assert (listed["file"], listed["row"]) == (f"{run.own}/eval/S/rows.jsonl", 1) and listed["reason"].startswith(
        "candidate 1: its image of 2000x8"
    )
    assert report["candidates"]["most"] == 2
    run.raw["data"]["bad_rows"] = "fail"
    with pytest.raises(DataError, match=f"{run.own}/eval/S/rows.jsonl: row 1: candidate 1: its image"):
        run.stage("filter_eval")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query_text": "a line", "positive_image": "x.png"}, "the right answer: its image of 2000x8"),
        ({"query_image": "x.png", "positive_text": "a line"}, "the query: its image of 2000x8"),
        ({"query_text": "word " * 10000, "positive_text": "a line"}, "the query: .* more than models.max_length"),
        ({"query_text": "a", "positive_text": "word " * 10000}, "the right answer: .* more than models.max_length"),
        ({"query_text": "word " * 1340, "positive_text": "b"}, "its query, its right answer and its candidates make a prompt of"),
    ],
)
def test_a_query_that_no_model_can_read_is_left_out_with_file_and_row(run: Run, row: dict, reason: str) -> None:
    run.rows(
        "eval", [*task_rows([])[:2], row | {"candidates": [{"image": "0.png"}]}, *task_rows([])[2:]], IMAGES | {"x.png": png((2000, 8))}
    )
    _, queries, report = run.eval()
    assert queries["row"].to_list() == [0, 1, 3, 4, 5, 6, 7, 8]
    (listed,) = report["left_out"]["listed"]
    assert listed["row"] == 3 and pl.Series([listed["reason"]]).str.contains(reason).all(), listed["reason"]


@pytest.mark.parametrize("mode", ["likelihood", "pairwise"])
def test_the_rerankers_lists_are_bounded_by_the_longest_candidates_of_each_query(run: Run, mode: str) -> None:
    texts = ["a small red ring " * (5 + number) for number in range(12)]
    long = "a small red ring " * 40
    rows = [{"query_text": "one question", "positive_text": texts[0], "candidates": [{"text": text} for text in texts[1:]]}]
    rows += [{"query_text": "one question", "positive_text": texts[1], "candidates": [{"text": text} for text in [*texts[2:], long]]}]
    run.rows("eval", rows, {})
    run.raw["evaluate"] |= {"rerank": 5, "rerank_mode": mode}
    _, queries, report = run.eval()
    assert report["candidates_left_out"]["count"] == 0 and queries["candidates"].list.len().to_list() == [12, 12]
    need = longest_list(run, texts, "one question", 5)
    run.raw["models"]["max_length"] = need
    _, queries, report = run.eval()
    assert queries["candidates"].list.len().to_list() == [12, 11 if mode == "likelihood" else 12]
    assert report["candidates_left_out"]["count"] == (mode == "likelihood")
    if mode == "likelihood":
        run.raw["models"]["max_length"] = need - 1
        _, queries, _ = run.eval()
        assert queries["candidates"].list.len().to_list() == [11, 10], "the longest of the first list goes too"


def test_a_long_candidate_leaves_a_short_list_and_a_query_goes_where_most_of_its_list_would_have_to(run: Run) -> None:
    short, long = [{"text": f"ring {number}"} for number in range(3)], {"text": "word " * 1340}
    rows = [{"query_text": f"question {number}", "positive_text": "a ring"} for number in range(4)]
    rows[0]["candidates"] = [long, short[0]]
    rows[1]["candidates"] = [*short, long]
    rows[2] |= {"query_text": "word " * 1352, "candidates": short}
    rows[3]["candidates"] = [long]
    run.rows("eval", rows, {})
    _, queries, report = run.eval()
    assert queries["row"].to_list() == [0, 1] and queries["candidates"].list.len().to_list() == [2, 4]
    dropped = [(one["row"], one["reason"][:40]) for one in report["candidates_left_out"]["listed"]]
    assert dropped == [(1, "candidate 1: with its query and the next"), (2, "candidate 4: with its query and the next")]
    reasons = {one["row"]: one["reason"] for one in report["left_out"]["listed"]}
    assert list(reasons) == [3, 4] and all(reason.startswith("its query, its right answer and its can") for reason in reasons.values())
    assert report["modalities"]["query"] == {"text": 2}


# Captions


def captions(run: Run, rows: list[tuple[bytes, list[str]]]) -> None:
    folder = run.root / run.own / "crossmodal/C"
    folder.mkdir(parents=True)
    table = pl.DataFrame({"image": [{"bytes": data} for data, _ in rows], "text": [texts for _, texts in rows]})
    table.write_parquet(folder / "captions.parquet")


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_pictures_and_captions_that_no_model_can_read_leave_a_caption_column(run: Run, direction: str) -> None:
    rows = [(png((40, 30), number), [f"a ring {number}", f"a circle {number}"]) for number in range(6)]
    rows[1] = (png((2000, 8)), ["a line", "a long line"])
    rows[4] = (rows[4][0], ["a ring 4", "word " * 10000])
    captions(run, rows)
    run.raw["evaluate"]["crossmodal"] = [f"C_{direction}"]
    run.rows("eval", GOOD, IMAGES)
    run.stage("data_eval", "S")
    run.stage("data_crossmodal", f"C_{direction}")
    run.stage("filter_eval")
    folder = run.root / f"results/data/eval/C_{direction}"
    queries = artifacts.read_table(folder / "queries.parquet", artifacts.CAPTION_QUERIES)
    pool = artifacts.read_table(folder / "pool.parquet", artifacts.POOL)
    report = artifacts.read_json(folder / "report.json")
    listed = [(one["row"], one["reason"]) for one in report["left_out"]["listed"]]
    single = report["captions_left_out"]
    assert report["candidates"] - report["duplicates"] == report["distinct"] == len(pool)
    if direction == "i2t":  # the picture goes as a query; of row 4 one caption stays, and answers it
        assert queries["row"].to_list() == [0, 2, 3, 4, 5] and len(pool) == 11 and queries["right"].list.len().to_list() == [2, 2, 2, 1, 2]
        assert [row for row, _ in listed] == [1]
        assert [(one["row"], one["reason"].split(":")[0]) for one in single["listed"]] == [(4, "a candidate")] and single["count"] == 1
        assert report["right"] == {"fewest": 1, "most": 2}
    else:  # the picture goes as a candidate, and both its captions with it
        assert queries["row"].to_list() == [0, 1, 4, 5, 6, 7, 8, 10, 11] and len(pool) == 5
        assert [row for row, _ in listed] == [1, 1, 4] and "the query: " in listed[2][1] and single["count"] == 0
    assert all(one["file"] == f"{run.own}/crossmodal/C/captions.parquet" for one in report["left_out"]["listed"])
    assert set(pool["id"]) | set(queries["query"]) == set(artifacts.read_table(folder / "items.parquet", artifacts.ITEMS)["id"])


@pytest.mark.parametrize(
    ("long", "reason"), [(10000, "tokens are more than models.max_length"), (1340, "tokens it would make prompts over")]
)
def test_a_caption_too_long_leaves_the_pool_also_where_it_costs_no_query(run: Run, long: int, reason: str) -> None:
    rows = [(png((40, 30), number), [f"a ring {number}", f"a circle {number}"]) for number in range(6)]
    rows[4] = (rows[4][0], ["a ring 4", "word " * long])
    captions(run, rows)
    run.raw["evaluate"]["crossmodal"] = ["C_i2t"]
    run.rows("eval", GOOD, IMAGES)
    run.stage("data_eval", "S")
    run.stage("data_crossmodal", "C_i2t")
    said = run.stage("filter_eval")
    folder = run.root / "results/data/eval/C_i2t"
    assert len(artifacts.read_table(folder / "pool.parquet", artifacts.POOL)) == 11 and "1 rows or candidates left out" in said
    queries = artifacts.read_table(folder / "queries.parquet", artifacts.CAPTION_QUERIES)
    assert queries["right"].list.len().to_list() == [2, 2, 2, 2, 1, 2]
    report = artifacts.read_json(folder / "report.json")
    (listed,) = report["captions_left_out"]["listed"]
    assert listed["row"] == 4 and listed["reason"].startswith("a candidate: ") and reason in listed["reason"]
    assert report["left_out"]["count"] == 0
    run.raw["data"]["bad_rows"] = "fail"
    with pytest.raises(DataError, match=f"{run.own}/crossmodal/C/captions.parquet: row 4: a candidate: "):
        run.stage("filter_eval")


# Kills


def test_after_a_kill_the_sets_that_were_measured_are_not_measured_again(tmp_path: Path) -> None:
    job = Job(None, 1, tmp_path / "scratch", log=logging.getLogger("test"))
    job.scratch.mkdir()
    measured: list[str] = []

    def one(name: str, out: Path) -> None:
        measured.append(name)
        (out / "pairs").write_text(name)
        if measured == ["A", "B"]:
            raise KeyboardInterrupt
        (out / "report").write_text(name)

    with pytest.raises(KeyboardInterrupt):
        each(["A", "B", "C"], "sets", job, tmp_path / "out", one)
    assert not (tmp_path / "out").exists()
    each(["A", "B", "C"], "sets", job, tmp_path / "out", one)
    assert measured == ["A", "B", "B", "C"]
    assert {path.name: path.joinpath("report").read_text() for path in (tmp_path / "out").iterdir()} == {"A": "A", "B": "B", "C": "C"}
