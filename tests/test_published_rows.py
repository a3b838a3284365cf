"""MMEB's rows in their published shapes: every set is read, every item's prompt is the public code's, and a mark without an image goes
through all rooms as one word of the prompt."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import families
import polars as pl
import pytest
import torch
import yaml
from mmeb_rows import EVAL, TRAIN, WIKI_QUESTION, WITHOUT_IMAGE, picture, write_eval, write_train
from published import LIMIT, MARK, job, png, task, train_set, zipped

from unime import artifacts, backbones, config, door, prompts
from unime.backbones import Backbone
from unime.data import mmeb, own, sets
from unime.data.items import Content, Items
from unime.data.rows import DataError
from unime.doors import (
    data_eval,
    data_train,
    embed_train,
    evaluate,
    filter_eval,
    filter_train,
    import_scores,
    judge,
    mine,
    retrieve,
    train_reranker,
    train_unime_v2,
)
from unime.evaluate import rerank
from unime.evaluate.tasks import TASKS
from unime.judge import Question
from unime.judge.openai_backend import OpenaiJudge
from unime.judge.transformers_backend import TransformersJudge
from unime.judge.vllm_backend import VllmJudge
from unime.mine import published as published_scores
from unime.report import page, warned

EMPTY = {"OK-VQA": 1, "A-OKVQA": 1}
"""Rows with an empty side, which no reader can keep."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmeb")
    write_train(folder)
    write_eval(folder)
    return folder


def read_train(root: Path, name: str, image_marks: str = "public"):
    return sets.read_train(str(root), name, "original", 1000, 0, LIMIT, "skip", job(root), image_marks)


def read_eval(root: Path, name: str, image_marks: str = "public"):
    return sets.read_eval(str(root), name, LIMIT, "fail", job(root), image_marks)


def references(name: str, part: str) -> Iterator[tuple[str, str]]:
    """Text and image path of every item that a set's rows show."""
    if part == "train":
        for query, query_path, positive, positive_path in TRAIN[name]:
            if (query or query_path) and (positive or positive_path):
                yield query, query_path
                yield positive, positive_path
        return
    for query, path, texts, paths in EVAL[name]:
        yield query, path
        yield from zip(texts, paths, strict=True)


# ---- the readers


def test_the_fixtures_are_all_sets_and_tasks_of_mmeb() -> None:
    assert len(TRAIN) == 20 and set(EVAL) == {name for name, one in TASKS.items() if one.suite == "mmeb"} and len(EVAL) == 36


@pytest.mark.parametrize("name", TRAIN)
def test_a_training_set_is_read_in_its_published_shape(root: Path, name: str) -> None:
    items, pairs, report, _ = read_train(root, name)
    lost = EMPTY.get(name, 0)
    assert len(pairs) == len(TRAIN[name]) - lost and report["left_out"]["count"] == lost
    expected = {artifacts.content_id(text, picture(path) if path else None) for text, path in references(name, "train")}
    assert set(items["id"]) == expected
    marked = len(pairs) if name in WITHOUT_IMAGE else 0
    assert (f"training set {name} {marked}." in page.data_markdown([report], [])) == bool(marked)
    assert report["marks_without_image"] == {"query": marked, "positive": 0}


@pytest.mark.parametrize("name", EVAL)
def test_a_task_is_read_in_its_published_shape(root: Path, name: str) -> None:
    items, queries, report = read_eval(root, name)
    assert len(queries) == len(EVAL[name]) and report["left_out"]["count"] == report["candidates_left_out"]["count"] == 0
    assert [len(row) for row in queries["candidates"]] == [len(texts) for _, _, texts, _ in EVAL[name]]
    assert set(items["id"]) == {artifacts.content_id(text, picture(path) if path else None) for text, path in references(name, "eval")}
    assert report["marks_without_image"] == {"query": len(queries) if name in WITHOUT_IMAGE else 0, "candidate": 0}


def test_marks_can_be_taken_out_of_texts_that_have_no_image(root: Path) -> None:
    kept, _, _, _ = read_train(root, "WebQA")
    items, pairs, report, _ = read_train(root, "WebQA", "remove")
    texts = {text for text in items["text"] if text.startswith("Find")}
    assert texts == {query.removeprefix(MARK) for query, _, _, _ in TRAIN["WebQA"]}, "the mark and its line end, nothing else"
    assert not texts & set(kept["text"]) and report["marks_without_image"]["query"] == len(pairs) == 2
    positives = set(items.filter(pl.col("member") != "")["text"])
    assert positives and all(text.startswith(MARK) for text in positives), "a mark whose image is there stays"
    queries, _, _ = read_eval(root, "EDIS", "remove")
    assert EVAL["EDIS"][0][0].removeprefix(MARK) in queries["text"].to_list()


def test_a_users_own_row_with_a_mark_and_no_image_stays_a_bad_row(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "S"
    folder.mkdir(parents=True)
    lines = [
        {"query_text": MARK + "q", "positive_text": "t"},
        {"query_text": "q", "positive_text": " "},
        {"query_text": "q", "positive_text": "t"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for setting in ("public", "remove"):
        _, pairs, report, _ = read_train(tmp_path, "S", setting)
        assert len(pairs) == 1
        assert [(one["row"], one["reason"]) for one in report["left_out"]["listed"]] == [
            (1, "the query its text has an image mark but there is no image"),
            (2, "the positive has neither text nor image"),
        ]
        assert all(one["file"].endswith("rows.jsonl") for one in report["left_out"]["listed"])


def test_a_text_of_white_space_alone_is_kept_as_the_public_code_keeps_it(tmp_path: Path, family) -> None:
    task(tmp_path, "S", [("q", "", ["a", " ", "b"], ["", "", ""])])
    train_set(tmp_path, "S", [("q", "", " ", "")], {})
    items, queries, report = read_eval(tmp_path, "S")
    blank = artifacts.content_id(" ", None)
    assert queries["candidates"][0].to_list()[1] == blank and report["candidates_left_out"]["count"] == 0
    assert read_train(tmp_path, "S")[1]["positive"].to_list() == [blank]
    content = Items(items, LIMIT)[blank]
    opened = {name: backbones.load(family(name), models=families.MODELS) for name in ("qwen2_vl", "llava_onevision")}
    texts = {name: backbone.item_prompt(content).text for name, backbone in opened.items()}
    assert texts == {"qwen2_vl": " ", "llava_onevision": public_turn("", None)}
    assert all(len(backbone.encode(backbone.item_prompt(content)).ids) for backbone in opened.values())


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["q", "r", "t", "u", ""])])
def test_categories_are_the_strings_that_they_stand_for(kind: pl.DataType, tmp_path: Path) -> None:
    rows_ = [("q", "", "t", ""), ("r", "", "u", "")]
    file = train_set(tmp_path, "S", rows_, {})
    _, plain, _, _ = read_train(tmp_path, "S")
    pl.read_parquet(file).cast(dict.fromkeys(("qry", "qry_image_path", "pos_text"), kind)).write_parquet(file)
    assert isinstance(pl.read_parquet_schema(file)["qry"], (pl.Categorical, pl.Enum)) or pl.read_parquet(file)["qry"].dtype != pl.String
    assert read_train(tmp_path, "S")[1].equals(plain) and len(plain) == 2
    file = task(tmp_path, "S", [("q", "", ["t", "u"], ["", ""])])
    frame = pl.read_parquet(file)
    _, listed, _ = read_eval(tmp_path, "S")
    frame.with_columns(pl.col("tgt_text").cast(pl.Array(pl.String, 2))).write_parquet(file)
    assert read_eval(tmp_path, "S")[1].equals(listed)
    folder = tmp_path / "train" / "Own"
    folder.mkdir()
    pl.DataFrame({"query_text": ["q"], "positive_text": ["t"]}, schema_overrides={"query_text": kind}).write_parquet(folder / "a.parquet")
    assert len(read_train(tmp_path, "Own")[1]) == 1


def test_one_string_in_place_of_a_list_is_kept_where_it_is_empty_and_a_bad_row_where_not(tmp_path: Path) -> None:
    paths = [["S/0.png", "S/1.png"], ["S/1.png", "S/0.png"]]
    file = task(tmp_path, "S", [("q", "", ["", ""], paths[0]), ("r", "", ["", ""], paths[1])])
    zipped(tmp_path / "eval/images.zip", {f"S/{number}.png": png(number) for number in range(2)})
    _, listed, _ = read_eval(tmp_path, "S")
    frame = pl.read_parquet(file)
    frame.with_columns(tgt_text=pl.lit("")).write_parquet(file)
    assert read_eval(tmp_path, "S")[1].equals(listed)
    frame.with_columns(tgt_text=pl.Series(["", "a word"])).write_parquet(file)
    _, queries, report = sets.read_eval(str(tmp_path), "S", LIMIT, "skip", job(tmp_path))
    assert queries["row"].to_list() == [0] and report["left_out"]["count"] == 1
    assert report["left_out"]["listed"][0]["reason"].startswith("tgt_text is one string, a word, where tgt_img_path is a list")


# ---- whole downloads


def test_the_older_file_beside_the_two_instructions_is_passed_by(root: Path) -> None:
    names = sorted(file.name.split("-")[0] for file in (root / "train/WebQA").glob("*.parquet"))
    assert names == ["diverse_instruction", "original", "train"]
    file = root / "train/WebQA/train-00000-of-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])  # it is not even opened for its rows
    try:
        assert len(read_train(root, "WebQA")[1]) == 2
    finally:
        file.write_bytes(whole)


def test_the_older_file_alone_is_named_as_what_it_is(tmp_path: Path) -> None:
    train_set(tmp_path, "S", [("q", "", "t", "")], {}, stem="train")
    with pytest.raises(
        DataError, match="no original-.*; found train-00000-of-00001.parquet: MMEB-train's first upload.*download original-"
    ):
        read_train(tmp_path, "S")


def test_a_users_own_file_may_be_called_train_too(tmp_path: Path) -> None:
    file = tmp_path / "train" / "S" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    pl.DataFrame({"query_text": ["q"], "positive_text": ["t"]}).write_parquet(file)
    assert not own.published(file) and len(read_train(tmp_path, "S")[1]) == 1


@pytest.mark.parametrize("place", ["images", "train/images", "images_zip", "train/images_zip"])
def test_images_of_all_sets_in_one_folder_are_found(place: str, tmp_path: Path) -> None:
    """As the script in MMEB-train unpacks them, or as its archives lie before it; another set's pictures are found there, too."""
    shown = MARK + "Represent the given image.\n"
    found = ("find it\n", "", shown, "images/CIRR/Train/0.png"), ("find the other\n", "", shown, "images/NIGHTS/Train/0.png")
    train_set(tmp_path, "CIRR", list(found), {})
    (tmp_path / "train/CIRR/images.zip").unlink()
    for seed, name in enumerate(("CIRR", "NIGHTS")):
        if place.endswith("zip"):
            zipped(tmp_path / place / f"{name}.zip", {f"images/{name}/Train/0.png": png(seed)})
        else:
            file = tmp_path / place / name / "Train" / "0.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(png(seed))
    items, pairs, report, _ = read_train(tmp_path, "CIRR")
    assert report["left_out"]["count"] == 0 and pairs["positive"].to_list() == [artifacts.content_id(shown, png(seed)) for seed in range(2)]
    assert Items(items, LIMIT)[pairs["positive"][0]].image.size == (28, 28)


@pytest.mark.parametrize("place", ["eval/eval_images", "eval_images", "images", "eval/images"])
def test_images_of_all_tasks_in_one_folder_are_found(place: str, tmp_path: Path) -> None:
    task(tmp_path, "S", [(MARK + "q", "S/0.png", ["a", "b"], ["", ""])])
    file = tmp_path / place / "S" / "0.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(png(0))
    assert read_eval(tmp_path, "S")[1]["query"].to_list() == [artifacts.content_id(MARK + "q", png(0))]


# ---- prompts


def public_turn(text: str, image: object) -> str:
    """LLaVA-OneVision's turn by the public rule: the picture, then the text on a line of its own, white space around it gone."""
    return "<|im_start|>user " + ("<image>" if image else "") + "\n" + text + "<|im_end|><|im_start|>assistant\n"


def public_prompt(name: str, text: str, path: str) -> str:
    """The public code's prompt of a row's text, before image tokens are repeated (Embedding/src/dataset.py and model_utils.py)."""
    if name == "llava_onevision":
        text = text.replace("<|image_1|>", "<image>")
        return public_turn(text.replace("<image>\n", "").replace("<image>", "").strip(), path)
    return text.replace("<|image_1|>", "<|image_pad|>")


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "llava_onevision"])
def backbone(request: pytest.FixtureRequest, family) -> Backbone:
    return backbones.load(family(request.param), models=families.MODELS, image_size=56)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.callspec.params["backbone"]


@pytest.fixture(scope="module")
def tables(root: Path) -> dict[tuple[str, str], Items]:
    found = {("train", one): Items(read_train(root, one)[0], LIMIT) for one in TRAIN}
    return found | {("eval", one): Items(read_eval(root, one)[0], LIMIT) for one in EVAL}


def test_every_items_prompt_is_the_public_codes_string_and_tokens(name: str, backbone: Backbone, tables: dict) -> None:
    compared, bare, squeezed = set(), 0, backbone._tokens(56, 56)
    for (part, one), items in tables.items():
        for text, path in references(one, part):
            found = items[artifacts.content_id(text, picture(path) if path else None)]
            prompt, expected = backbone.item_prompt(found), public_prompt(name, text, path)
            assert prompt.text == expected, (part, one)
            assert len(prompt.images) == bool(path)
            repeated = expected.replace(backbone.IMAGE_TOKEN, backbone.IMAGE_TOKEN * squeezed) if path else expected
            ids = backbone.tokenizer(repeated, add_special_tokens=False)["input_ids"]
            assert backbone.encode(prompt).ids.tolist() == ids and backbone.length(prompt) == len(ids), (part, one)
            compared.add(expected)
            bare += not path and backbone.IMAGE_TOKEN in expected
    assert squeezed > 1 and len(compared) > 100
    assert bare == (0 if name == "llava_onevision" else 4), "two queries of WebQA's training set, one of its task, one of EDIS"


@torch.no_grad()
def test_a_bare_image_token_keeps_its_word_embedding_beside_items_with_images(name: str, backbone: Backbone) -> None:
    """The public forward pass splits a batch by whether a row has pixels, and leaves the words of those without as they are."""
    asked = Content(WIKI_QUESTION.format("Is the dome green?"), None)
    without = Content(prompts.unmarked(asked.text), None)
    seen = Content(MARK + "What color is the ring?\n", families.image(70, 40))
    bare, plain, shown = (backbone.item_prompt(content) for content in (asked, without, seen))
    alone = torch.cat([backbone.embed(backbone.collate([prompt])) for prompt in (bare, plain, shown)])
    if name == "llava_onevision":
        assert bare == plain, "nothing stands for the mark"
        return
    assert families.apart(alone[0], alone[1]) > 1e-3, "the token is seen"
    assert (alone[0] @ alone[2]) < 0.999
    own = backbone.model.model(**backbone.collate([bare])).last_hidden_state[0, -1]
    assert families.apart(alone[0], torch.nn.functional.normalize(own, dim=0)) < 1e-6
    for side in ("left", "right"):
        together = backbone.collate([shown, bare, plain], side=side)
        assert int(together["picture_tokens"].sum()) == backbone._tokens(56, 56)
        assert families.apart(backbone.embed(together), alone[[2, 0, 1]]) < 1e-5
    vision = backbone.collate([shown])
    assert "picture_tokens" not in vision, "a batch without such a token is what it was"


@torch.no_grad()
def test_the_judge_and_the_reranker_are_shown_no_mark_without_an_image(family, tables: dict) -> None:
    backbone = backbones.load(family("qwen2_vl"), models=families.MODELS, image_size=56)
    items = tables["train", "WebQA"]
    rows_ = TRAIN["WebQA"]
    queries = [artifacts.content_id(row[0], None) for row in rows_]
    positives = [artifacts.content_id(row[2], picture(row[3])) for row in rows_]
    turn = prompts.judge_turn(items[queries[0]].parts, items[positives[0]].parts)
    words = "".join(piece for piece in turn if isinstance(piece, str))
    assert prompts.IMAGE_MARK not in words and prompts.unmarked(rows_[0][0]) in words and len(turn) > 1
    assert len(backbone.chat_prompt(turn).images) == 1
    engine = TransformersJudge(backbone, items, 8192)
    question = Question(queries[0], tuple(positives))
    (shared,) = engine.answers([question])
    assert abs(shared - engine.plain(question)).max() < 1e-4 and abs(shared[0] - shared[1]).max() > 1e-4

    # the other two backends show the same words
    own = engine.sequences(question)
    settings = config.load(Path(__file__).resolve().parents[1] / "config.yaml").judge
    vllm = VllmJudge(backbone, items, settings.vllm, logging.getLogger("test")).requests([question])
    assert [one.length for one in vllm] == [len(sequence.ids) for sequence in own]
    assert all(one.ids.count(backbone.image_token) == len(one.images) == 1 for one in vllm)
    shown = OpenaiJudge(items, settings.openai, 0, logging.getLogger("test"))._parts([question])
    assert shown[queries[0]] == [prompts.unmarked(rows_[0][0])]
    asked = rerank.prompt(backbone, items[queries[0]], [items[id] for id in positives])
    assert prompts.IMAGE_MARK not in asked.text and len(asked.images) == asked.text.count(backbone.IMAGE_TOKEN) == len(positives)


# ---- published scores


def scored() -> list[dict[str, object]]:
    """A published row for every pair of the fixtures, as the public code's examples are: ten negatives from the whole of the data, so
    pictures of other sets and texts among pictures; few ones repeated in turn; the query's own picture; scores near 0.
    """
    pairs = [row for name in TRAIN for row in TRAIN[name] if (row[0] or row[1]) and (row[2] or row[3])]
    found = []
    for number, (query, query_path, positive, positive_path) in enumerate(pairs):
        others = [[text, path] for _, _, text, path in pairs[number + 1 :] + pairs[:number] if [text, path] != [positive, positive_path]]
        if query_path and positive_path:
            others[3] = [positive, query_path]
        if number % 5 == 4:
            others = others[:2] * 5
        negatives = others[:10]
        found.append(
            {
                "query_text": query,
                "query_image": query_path,
                "pos_text": positive,
                "pos_image": positive_path,
                "query_pos_scores": 0.7215937972068787,
                "hard_negatives": negatives,
                "hard_negatives_scores": [8.232426625909284e-05 * 2**place for place in range(10)],
            }
        )
    return found


@pytest.mark.parametrize("image_marks", ["public", "remove"])
@pytest.mark.parametrize("cap", [1000, 1])
def test_published_rows_of_every_set_are_imported_whole(root: Path, tmp_path: Path, image_marks: str, cap: int) -> None:
    """Also where the sample has another row of the set, so that queries and negatives have to be read and hashed."""
    rows_ = scored()
    bare = [row for row in rows_ if prompts.IMAGE_MARK in row["query_text"] and not row["query_image"]]
    assert len(rows_) == sum(map(len, TRAIN.values())) - 2 and len(bare) == 2
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(rows_))
    tables = {}
    for name in TRAIN:
        drawn = 1000 if name in EMPTY else cap
        items, pairs, _, _ = sets.read_train(str(root), name, "original", drawn, 0, LIMIT, "skip", job(root), image_marks)
        tables[name] = items, pairs
    shelves = {name: mmeb.shelf(str(root), name) for name in TRAIN}
    mined, _, report = published_scores.import_scores(
        file, tables, shelves, decoding=LIMIT, bad_rows="fail", job=job(tmp_path), image_marks=image_marks
    )
    assert report["rows"] == report["mined"] == sum(map(len, mined.values())) == len(rows_)
    assert [report[key]["count"] for key in ("left_out", "negatives_left_out", "unmatched")] == [0, 0, 0]
    assert (report["new_pairs"] > 0) == (cap == 1)
    texts = [row["query_text"] if image_marks == "public" else prompts.unmarked(row["query_text"]) for row in bare]
    assert set(mined["WebQA"]["query"]) == {artifacts.content_id(text, None) for text in texts}


# ---- all rooms

SMALL = {"steps": 1, "batch": 4, "micro": 4, "warmup": 0, "checkpoint": 1}
ROWS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Path:
    """A working folder with a training set WebQA of a few rows, the tasks WebQA and EDIS, published scores, and small settings."""
    folder = tmp_path_factory.mktemp("run")
    make = [
        (
            WIKI_QUESTION.format(f"Which tower has {n} bells?"),
            "",
            TRAIN["WebQA"][0][2].replace("2010", str(n)),
            f"images/WebQA/Train/{n}.jpg",
        )
        for n in range(ROWS)
    ]
    train_set(folder / "data", "WebQA", make, {row[3]: picture(row[3]) for row in make})
    write_eval(folder / "data", ["WebQA", "EDIS"])
    raw = yaml.safe_load((Path(__file__).resolve().parents[1] / "config.yaml").read_text())
    raw["data"] |= {"root": "data", "train_sets": ["WebQA"]}
    raw["models"] |= {"base": str(nano), "judge": str(nano), "reranker": str(nano), "device": "cpu"}
    raw["embed"] |= {"model": str(nano), "adapter": str(nano)}
    raw["mine"] |= {"negatives": 4, "interval": 1}
    raw["evaluate"] |= {"tasks": ["WebQA", "EDIS"], "crossmodal": [], "rerank": 2}
    raw["export"], raw["ablations"], raw["fetch"]["scores"] = {}, {"embedders": {}}, {"published": "Qwen25VL_7B"}
    for kind in ("in_batch", "hard_negatives", "unime_v2", "reranker"):
        raw["train"][kind] |= SMALL
    for kind in ("hard_negatives", "unime_v2"):
        raw["train"][kind]["negatives"] = 2
    raw["train"]["reranker"]["list_negatives"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    others = [[[row[2], row[3]] for row in make if row is not one] for one in make]
    scores = [
        dict(zip(("query_text", "query_image", "pos_text", "pos_image"), row, strict=True))
        | {"query_pos_scores": 0.7, "hard_negatives": wrong, "hard_negatives_scores": [0.1 * k for k in range(len(wrong))]}
        for row, wrong in zip(make, others, strict=True)
    ]
    source = folder / "data/scores/published"
    source.mkdir(parents=True)
    (source / "source.json").write_text("{}")
    (source / "train_data_Qwen25VL_7B_scores.json").write_text(json.dumps(scores))
    return folder


STAGES = [
    (data_train, "WebQA"),
    (data_eval, "WebQA"),
    (data_eval, "EDIS"),
    (filter_train, None),
    (filter_eval, None),
    (embed_train, "WebQA"),
    (retrieve, "WebQA"),
    (judge, "WebQA"),
    (mine, "WebQA"),
    (import_scores, "published"),
    (train_unime_v2, None),
    (train_reranker, None),
]


def enter(stage: ModuleType, item: str | None) -> None:
    door.enter(stage.__name__.rpartition(".")[2], stage.DOOR, item, Path("config.yaml"), [])


def test_webqa_and_edis_go_through_all_rooms(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    for stage, item in STAGES:
        enter(stage, item)
    for other in ("in_batch", "hard_negatives"):  # one embedder is enough to see that the rows can be trained on
        shutil.copytree("results/train/unime_v2", f"results/train/{other}")
    for name in ("WebQA", "EDIS"):
        enter(evaluate, name)
    texts = pl.read_parquet(run / "results/data/train/WebQA/items.parquet").filter(pl.col("member") == "")["text"]
    assert len(texts) == ROWS and all(text.startswith(MARK) for text in texts)
    judged = pl.read_parquet(run / "results/judge/WebQA/judgements.parquet")
    assert len(judged) == ROWS * ROWS and judged["score"].is_between(0, 1).all() and judged["score"].std() > 0
    imported = json.loads((run / "results/mining_report/published/mining.json").read_text())
    assert (imported["mined"], imported["texts_exact"], imported["left_out"]["count"]) == (ROWS, ROWS * (ROWS + 1), 0)
    assert imported["negatives_left_out"]["count"] == imported["unmatched"]["count"] == imported["new_pairs"] == 0
    for name in ("WebQA", "EDIS"):
        scores = pl.read_parquet(run / f"results/evaluate/{name}/scores.parquet")
        assert scores["model"].n_unique() == 5 and scores["value"].is_between(0, 1).all()


def test_the_same_stages_run_with_the_marks_removed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published rows, which have their marks, still find the items, which have none."""
    for part in ("data", "config.yaml"):
        (shutil.copytree if part == "data" else shutil.copy)(run / part, tmp_path / part)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    values["data"]["image_marks"] = "remove"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    for stage, item in ((data_train, "WebQA"), (filter_train, None), (data_eval, "EDIS"), (import_scores, "published")):
        enter(stage, item)
    items = pl.read_parquet("results/data/train/WebQA/items.parquet")
    assert not any(prompts.IMAGE_MARK in text for text in items.filter(pl.col("member") == "")["text"])
    imported = json.loads(Path("results/mining_report/published/mining.json").read_text())
    assert (imported["mined"], imported["texts_exact"], imported["new_pairs"]) == (ROWS, ROWS * (ROWS + 1), 0)


@pytest.mark.parametrize(("sigma", "count"), [(0.2, 1), (0.9, 0)])
def test_published_scores_that_say_no_to_right_answers_are_warned_of(
    sigma: float, count: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the stage's line, and in what the run's report reads."""
    shutil.copytree(run / "data", tmp_path / "data")
    shutil.copy(run / "config.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    (file,) = Path("data/scores/published").glob("train_data_*")
    scores = json.loads(file.read_text())
    file.write_text(json.dumps([row | {"query_pos_scores": sigma} for row in scores]))
    for stage, item in ((data_train, "WebQA"), (filter_train, None)):
        enter(stage, item)
    said = door.enter("import_scores", import_scores.DOOR, "published", Path("config.yaml"), [])
    figures = json.loads(Path("results/mining_report/published/mining.json").read_text())
    shown = [line.removeprefix("warning: ") for line in said.splitlines() if line.startswith("warning: ")]
    assert len(shown) == count and warned.of_mining(figures) == shown
    assert all(one.startswith(f"WebQA: the judge gives the labelled positives {sigma:.3f}") for one in shown)


def test_the_presets_keep_the_marks_as_the_public_code_does() -> None:
    folder = Path(__file__).resolve().parents[1] / "presets"
    for name in ("qwen2vl-2b", "qwen2vl-7b", "llava-onevision-7b"):
        data = config.load(folder / f"{name}.yaml").data
        assert (data.image_marks, data.caption_line_end) == ("public", "keep")
