"""The judge's shared beginnings give what one sequence at a time gives, its scores are the paper's, a killed run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from published import job, read_sets

from unime import artifacts, backbones, judge, prompts
from unime.artifacts import ArtifactError
from unime.data.images import Decoding
from unime.data.items import Items
from unime.judge import Question, backends, shared_prefix, transformers_backend
from unime.judge.tokens import Tokens

SETS = ["NanoColor", "NanoCaption_i2t", "NanoCaption_t2i", "NanoEdit", "NanoPhrase"]  # text, image and both, on either side


@pytest.fixture(scope="module")
def data(suite: Path, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    items, pairs, _ = read_sets(suite, SETS, "original", 12, 0, Decoding.of(config.data), "fail", job(folder))
    return Items(items, Decoding.of(config.data)), pairs


@pytest.fixture(scope="module")
def backbone(nano: Path, config) -> backbones.Backbone:
    return backbones.load(nano, models=config.models)


@pytest.fixture
def engine(data, backbone) -> transformers_backend.TransformersJudge:
    return transformers_backend.TransformersJudge(backbone, data[0], 8192)


def questions(pairs: pl.DataFrame, count: int = 2, candidates: int = 7) -> list[Question]:
    found = []
    for name in pairs["dataset"].unique(maintain_order=True):
        own = pairs.filter(pl.col("dataset") == name)
        pool = own["positive"].unique(maintain_order=True).to_list()[:candidates]
        found += [Question(query, tuple(pool)) for query in own["query"].unique(maintain_order=True).to_list()[:count]]
    return found


def fed(backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass of the language model from here on."""
    tokens: list[int] = []
    whole = backbone.core.language_model.forward

    def counting(*given, **named):
        tokens.append(named["inputs_embeds"].shape[:2].numel())
        return whole(*given, **named)

    monkeypatch.setattr(backbone.core.language_model, "forward", counting)
    return tokens


def test_shared_prefixes_equal_one_sequence_at_a_time(data, backbone, engine, monkeypatch: pytest.MonkeyPatch):
    asked = questions(data[1])
    lengths = [[len(sequence.ids) for sequence in engine.sequences(question)] for question in asked]
    tokens = fed(backbone, monkeypatch)
    shared = engine.answers(asked)
    # First that it is shared: each group's prefix went through the model once, and the forward passes are few.
    prefixes = [shared_prefix.common_prefix(engine.sequences(question), backbone.image_token) for question in asked]
    assert all(prefix > 60 for prefix in prefixes)
    assert sum(tokens) == sum(sum(row) - (len(row) - 1) * prefix for row, prefix in zip(lengths, prefixes, strict=True))
    assert sum(tokens) < sum(map(sum, lengths)) / 2 and len(tokens) < len(asked)
    tokens.clear()
    plain = [engine.plain(question) for question in asked]
    assert sorted(tokens) == sorted(sum(lengths, []))
    for one, other in zip(shared, plain, strict=True):
        assert one.shape == other.shape and one.dtype == np.float32
        assert np.abs(one - other).max() < 1e-5
    assert np.concatenate(plain).std(axis=0).min() > 1e-3  # the answers differ


def test_the_prefix_holds_the_querys_image_and_stops_before_a_candidates(data, backbone, engine):
    items, pairs = data
    for name, of_query, of_candidate in (("NanoEdit", 4, 4), ("NanoCaption_i2t", 4, 0), ("NanoCaption_t2i", 0, 4)):
        (question,) = questions(pairs.filter(pl.col("dataset") == name), 1)
        sequences = engine.sequences(question)
        prefix = shared_prefix.common_prefix(sequences, backbone.image_token)
        counts = [int((part == backbone.image_token).sum()) for part in (sequences[0].ids[:prefix], sequences[0].ids[prefix:])]
        assert counts == [of_query, of_candidate]
        assert items.has_image(question.query) == bool(of_query)


def test_positions_of_suffixes_are_those_of_the_whole_sequences(data, backbone, engine):
    groups = [engine.sequences(question) for question in questions(data[1])]
    packed = shared_prefix.pack(groups, backbone)
    at = [(span.start, span.prefix, span.suffixes) for span in packed.spans]
    for (start, prefix, suffixes), group in zip(at, groups, strict=True):
        place = start + prefix
        for length, sequence in zip(suffixes, group, strict=True):
            batch = backbone.collate([sequence])
            if sequence.pictures:
                names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
                whole = backbone.core.get_rope_index(**{name: batch[name] for name in names})[0][:, 0]
            else:
                whole = torch.arange(len(sequence.ids)).expand(3, -1)
            assert torch.equal(packed.positions[:, start : start + prefix], whole[:, :prefix])
            assert torch.equal(packed.positions[:, place : place + length], whole[:, prefix:])
            place += length


@pytest.mark.parametrize("budget", [1, 130, 300])
def test_a_token_budget_cuts_questions_and_changes_nothing(budget: int, data, backbone, engine, monkeypatch: pytest.MonkeyPatch):
    asked = questions(data[1], 1)
    tokens = fed(backbone, monkeypatch)
    whole = engine.answers(asked)
    passes = len(tokens)
    tokens.clear()
    longest = max(len(sequence.ids) for question in asked for sequence in engine.sequences(question))
    cut = transformers_backend.TransformersJudge(backbone, data[0], budget).answers(asked)
    assert max(tokens) <= max(budget, longest) and len(tokens) > passes
    assert budget > 1 or len(tokens) == sum(len(question.candidates) for question in asked)
    for one, other in zip(cut, whole, strict=True):
        assert np.abs(one - other).max() < 1e-5


def test_one_candidate_and_equal_candidates_are_fine(data, engine):
    (question,) = questions(data[1].filter(pl.col("dataset") == "NanoEdit"), 1)
    one = Question(question.query, question.candidates[:1])
    twice = Question(question.query, question.candidates[:1] * 2)
    alone, doubled = engine.answers([one, twice])
    assert np.abs(alone - engine.plain(one)).max() < 1e-5
    assert np.abs(doubled - alone).max() < 1e-5


def test_tokens_in_pieces_equal_the_tokens_of_the_whole_text(data, backbone):
    items, pairs = data
    tokens = Tokens(backbone)
    assert not tokens._whole
    for query, candidate in zip(pairs["query"], pairs["positive"].reverse(), strict=True):
        prompt = backbone.chat_prompt(prompts.judge_turn(items[query].parts, items[candidate].parts))
        found, whole = backbone.encode(prompt, tokens.ids(prompt.text)), backbone.encode(prompt)
        assert np.array_equal(found.ids, whole.ids) and len(found.pictures) == len(whole.pictures)
    assert len(tokens._known) < 3 * len(pairs)


def test_each_image_goes_through_the_vision_tower_once(data, backbone, monkeypatch: pytest.MonkeyPatch):
    items, pairs = data
    asked = questions(pairs, count=3)
    seen = []
    see = backbone.see
    monkeypatch.setattr(backbone, "see", lambda image: (seen.append(1), see(image))[1])
    first = transformers_backend.TransformersJudge(backbone, items, 8192).answers(asked)
    shown = {items.image_place(id) for question in asked for id in (question.query, *question.candidates) if items.has_image(id)}
    assert len(seen) == len(shown) > 10
    monkeypatch.setitem(transformers_backend.STORED, "cpu", 8)  # room for two pictures: others come again
    second = transformers_backend.TransformersJudge(backbone, items, 8192).answers(asked)
    assert len(seen) > 2 * len(shown)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(first, second, strict=True))


def test_attention_is_as_before_afterwards(data, backbone, engine):
    before = backbone.core.language_model.config._attn_implementation
    engine.answers(questions(data[1], 1))
    assert backbone.core.language_model.config._attn_implementation == before != shared_prefix.NAME


def test_scores_are_the_softmax_of_yes_and_no():
    yes, no = np.float32([1.5, -40, 90, 3]), np.float32([0.5, 60, -90, 3])
    expected = np.exp(yes.astype(float)) / (np.exp(yes.astype(float)) + np.exp(no.astype(float)))
    assert judge.score(yes, no, "exact") == pytest.approx(expected, rel=1e-12)
    assert judge.score(np.float32([1e4]), np.float32([-1e4]), "exact") == [1.0]


def test_published_scores_are_of_the_published_form():
    rng = np.random.default_rng(0)
    yes, no = (rng.uniform(16.1, 31.9, 500).astype(np.float32) for _ in range(2))
    scores = judge.score(yes, no, "published")
    steps = np.log(scores / (1 - scores)) * 1.05 / 0.125
    assert np.abs(steps - np.round(steps)).max() < 1e-6
    assert len(np.unique(np.round(steps))) < 260 < len(np.unique(judge.score(yes, no, "exact")))  # ties are common
    rounded = [torch.tensor(logits).bfloat16().float().numpy() for logits in (yes, no)]
    assert steps == pytest.approx((rounded[0] - rounded[1]) / 0.125, abs=1e-6)
    # A negative logit is multiplied: -2 and 4 become -2.1 and 4 / 1.05.
    assert judge.score(np.float32([-2]), np.float32([4]), "published") == pytest.approx(1 / (1 + np.exp(2.1 + 4 / 1.05)))


def tables(pairs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Four pairs a set, each with up to five others of the set as hits."""
    some = pairs.group_by("dataset", maintain_order=True).head(4).select(pairs.columns)
    rows = []
    for pair, name, _, _, positive in some.iter_rows():
        pool = pairs.filter((pl.col("dataset") == name) & (pl.col("positive") != positive))["positive"].unique(maintain_order=True)
        rows += [(pair, candidate, rank, 0.5) for rank, candidate in enumerate(pool[:5])]
    return some, pl.DataFrame(rows, schema=artifacts.HITS, orient="row")


def run(pairs, hits, engine, scratch: Path, mode: str = "exact", shard: int = 3) -> pl.DataFrame:
    return judge.judge(pairs, hits, engine, mode=mode, shard=shard, scratch=scratch, track=job(scratch).track)


def test_every_pair_has_its_positive_and_then_its_hits_in_order(data, engine, tmp_path: Path):
    pairs, hits = tables(data[1])
    table = run(pairs, hits.sample(fraction=1, shuffle=True, seed=0), engine, tmp_path)
    artifacts.check(table, artifacts.JUDGEMENTS, "judgements")
    expected = []
    for pair, _, _, _, positive in pairs.iter_rows():
        expected += [(pair, positive, True), *((pair, one, False) for one in hits.filter(pl.col("pair") == pair)["candidate"])]
    assert list(table.select("pair", "candidate", "positive").iter_rows()) == expected
    logits = {(q.query, c): pair for q in questions(pairs, 4, 99) for c, pair in zip(q.candidates, engine.plain(q), strict=True)}
    query = dict(pairs.select("pair", "query").iter_rows())
    for row in table.join(pairs, on="pair").filter(pl.col("positive")).iter_rows(named=True):
        yes, no = logits[query[row["pair"]], row["candidate"]]
        assert (row["yes"], row["no"]) == pytest.approx((yes, no), abs=1e-5)
        assert row["score"] == pytest.approx(1 / (1 + np.exp(float(no) - float(yes))), abs=1e-5)
    published = run(pairs, hits, engine, tmp_path / "published", "published")
    assert published["yes"].equals(table["yes"]) and not published["score"].equals(table["score"])


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(data, backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    items, pairs = data
    pairs, hits = tables(pairs)

    def fresh() -> transformers_backend.TransformersJudge:
        return transformers_backend.TransformersJudge(backbone, items, 8192)

    whole = run(pairs, hits, fresh(), tmp_path / "whole")
    dying, calls = fresh(), []
    answers = dying.answers

    def dies(asked):
        calls.append(asked)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answers(asked)

    monkeypatch.setattr(dying, "answers", dies)
    with pytest.raises(KeyboardInterrupt):
        run(pairs, hits, dying, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("judge-*"))) == 3
    later = fresh()
    calls.clear()
    answers = later.answers
    monkeypatch.setattr(later, "answers", lambda asked: (calls.append(asked), answers(asked))[1])
    resumed = run(pairs, hits, later, tmp_path / "cut")
    assert len(calls) == -(-len(pairs) // 3) - 3
    for name, table in (("a", whole), ("b", resumed)):
        artifacts.write_table(table, tmp_path / name, artifacts.JUDGEMENTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_number_of_threads_does_not_change_a_bit(data, engine, tmp_path: Path):
    pairs, hits = tables(data[1])
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(pairs, hits, engine, tmp_path / str(threads), shard=64))
        assert found[0].equals(found[1])
    finally:
        torch.set_num_threads(before)


def test_equal_questions_of_a_shard_are_judged_once(data, tmp_path: Path):
    pairs, hits = tables(data[1])
    again = pairs.head(2).with_columns(pair=pl.format("{}-again", "pair"))
    both = pl.concat([pairs.head(2), again])
    hits = hits.join(pairs.head(2).select("pair"), on="pair", how="semi", maintain_order="left")
    hits = pl.concat([hits, hits.with_columns(pair=pl.format("{}-again", "pair"))])
    asked: list[Question] = []

    class Counting:
        def answers(self, questions):
            asked.extend(questions)
            return [np.zeros((len(question.candidates), 2), dtype=np.float32) for question in questions]

    table = run(both, hits, Counting(), tmp_path, shard=10)
    assert len(table) == 2 * sum(len(question.candidates) for question in asked) and len(asked) == 2


def test_a_logit_that_is_not_finite_names_pair_and_candidate(data, tmp_path: Path):
    pairs, hits = tables(data[1])

    class Broken:
        def answers(self, questions):
            return [np.full((len(question.candidates), 2), np.nan, dtype=np.float32) for question in questions]

    with pytest.raises(ArtifactError, match=f"pair {pairs['pair'][0]}, candidate {pairs['positive'][0]}: its logits are not finite"):
        run(pairs, hits, Broken(), tmp_path)


def test_tables_of_different_runs_and_unknown_backends_are_refused(data, config, nano: Path, engine, tmp_path: Path):
    pairs, hits = tables(data[1])
    with pytest.raises(ArtifactError, match=r"hits: pair [0-9a-f]{32} is not in pairs"):
        run(pairs.tail(3), hits, engine, tmp_path)
    settings, log = config.judge, job(tmp_path).log
    with pytest.raises(ValueError, match="judge.backend 'vlm' is not known; known: 'transformers', 'vllm', 'openai'"):
        backends.open_backend(settings.model_copy(update={"backend": "vlm"}), nano, data[0], models=config.models, log=log)
    opened = backends.open_backend(settings, nano, data[0], models=config.models, log=log)
    assert isinstance(opened, transformers_backend.TransformersJudge) and opened.batch_tokens == settings.transformers.batch_tokens


@pytest.mark.parametrize("backend", ["transformers", "vllm", "openai"])
@pytest.mark.parametrize("form", ["unime", "public"])
def test_every_backend_asks_in_the_format_of_the_configuration(backend, form, data, config, nano: Path, tmp_path: Path):
    settings = config.judge.model_copy(update={"backend": backend, "prompt": form})
    opened = backends.open_backend(settings, nano, data[0], models=config.models, log=job(tmp_path).log)
    assert opened.form == form


def test_a_prompt_that_is_too_long_names_its_query(data, nano: Path, config):
    short = backbones.load(nano, models=config.models.model_copy(update={"max_length": 50}))
    (question, *_) = questions(data[1], 1)
    with pytest.raises(ValueError, match=f"query {question.query}.*models.max_length"):
        transformers_backend.TransformersJudge(short, data[0], 8192).answers([question])
