"""Judge, reranker and training on every family: what shares work equals what does not, wherever images stand and however large they are."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
import polars as pl
import pytest
import torch
import training
from families import apart, image

from unime import artifacts, backbones, prompts
from unime.backbones.base import IGNORED
from unime.data.images import Decoding
from unime.data.items import Items
from unime.evaluate import rerank
from unime.judge import Question, shared_prefix, transformers_backend
from unime.judge.transformers_backend import TransformersJudge
from unime.train.data import Batch

MARK = prompts.IMAGE_MARK
# id -> (text, width and height of its image)
ITEMS = {
    "query-both": (f"{MARK}\nWhat color is the ring?\n", (90, 60)),
    "query-text": ("Find a small red ring\n", None),
    "query-image": (f"{MARK}\n", (260, 240)),
    "text": ("red", None),
    "sentence": ("a big blue cross at the top", None),
    "wide": (f"{MARK}\nRepresent the given image.\n", (200, 50)),
    "small": (f"{MARK}\nRepresent the given image.\n", (28, 28)),
    "large": (f"{MARK}\nRepresent the given image.\n", (230, 250)),
}
QUERIES = [id for id in ITEMS if id.startswith("query")]
CANDIDATES = tuple(id for id in ITEMS if not id.startswith("query"))


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Items:
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number, (id, (text, size)) in enumerate(ITEMS.items()):
        if size:
            image(*size, seed=number).save(folder / f"{id}.png")
        rows.append((id, text, str(folder) if size else "", f"{id}.png" if size else "", id if size else ""))
    return Items(pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row"), Decoding(10**6))


@pytest.fixture(scope="module", params=families.NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name, family):
    return backbones.load(family(name), models=families.MODELS)


def fed(backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass of the language model from here on."""
    tokens: list[int] = []
    whole = backbone.core.language_model.forward

    def counting(*given, **named):
        found = named.get("inputs_embeds", named.get("input_ids"))
        tokens.append(found.shape[:2].numel())
        return whole(*given, **named)

    monkeypatch.setattr(backbone.core.language_model, "forward", counting)
    return tokens


# The judge


def test_shared_prefixes_equal_one_sequence_at_a_time(name, backbone, items, monkeypatch):
    engine = TransformersJudge(backbone, items, 8192)
    asked = [Question(query, CANDIDATES) for query in QUERIES]
    groups = [engine.sequences(question) for question in asked]
    prefixes = [shared_prefix.common_prefix(group, backbone.image_token) for group in groups]
    tokens = fed(backbone, monkeypatch)
    shared = engine.answers(asked)
    lengths = [[len(sequence.ids) for sequence in group] for group in groups]
    assert sum(tokens) == sum(sum(row) - (len(row) - 1) * prefix for row, prefix in zip(lengths, prefixes, strict=True))
    assert all(prefix > 50 for prefix in prefixes) and sum(tokens) < 0.9 * sum(map(sum, lengths))
    plain = [engine.plain(question) for question in asked]
    assert np.concatenate(plain).std(axis=0).min() > 1e-2, "the answers are all alike"
    worst = max(np.abs(one - other).max() for one, other in zip(shared, plain, strict=True))
    print(f"{name}: judge's logits, shared prefixes: {worst:.1e}")
    assert worst < 1e-5


def test_the_order_and_number_of_questions_and_threads_change_no_answer(name, backbone, items, monkeypatch):
    engine = TransformersJudge(backbone, items, 8192)
    whole = dict(zip(CANDIDATES, engine.answers([Question(QUERIES[0], CANDIDATES)])[0], strict=True))
    others = [Question(QUERIES[2], CANDIDATES[:2]), Question(QUERIES[0], CANDIDATES[::-1]), Question(QUERIES[1], CANDIDATES[3:])]
    worst = 0.0
    for budget in (8192, 700, 1):
        found = TransformersJudge(backbone, items, budget).answers(others)[1]
        worst = max(worst, *(np.abs(whole[id] - answer).max() for id, answer in zip(CANDIDATES[::-1], found, strict=True)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # two blocks of questions side by side
    monkeypatch.setattr(transformers_backend, "BLOCK", {"cpu": 1})
    try:
        found = TransformersJudge(backbone, items, 8192).answers(others)[1]
    finally:
        torch.set_num_threads(before)
    worst = max(worst, *(np.abs(whole[id] - answer).max() for id, answer in zip(CANDIDATES[::-1], found, strict=True)))
    print(f"{name}: judge's logits, order and batches: {worst:.1e}")
    assert worst < 1e-5


def test_the_prefix_holds_the_querys_image_and_stops_before_a_candidates(backbone, items):
    engine = TransformersJudge(backbone, items, 8192)
    for query in QUERIES:
        sequences = engine.sequences(Question(query, ("wide", "small")))
        prefix = shared_prefix.common_prefix(sequences, backbone.image_token)
        own = [picture.tokens for picture in sequences[0].pictures]
        assert len(own) == 1 + items.has_image(query)
        marked = [int((part == backbone.image_token).sum()) for part in (sequences[0].ids[:prefix], sequences[0].ids[prefix:])]
        assert marked == [sum(own[:-1]), own[-1]]


def test_positions_of_suffixes_are_those_of_the_whole_sequences(backbone, items):
    engine = TransformersJudge(backbone, items, 8192)
    groups = [engine.sequences(Question(query, CANDIDATES)) for query in QUERIES]
    packed = shared_prefix.pack(groups, backbone)
    for span, group in zip(packed.spans, groups, strict=True):
        place = span.start + span.prefix
        for length, sequence in zip(span.suffixes, group, strict=True):
            whole = backbone.positions(backbone.collate([sequence]))[..., 0, :]
            assert torch.equal(packed.positions[..., span.start : span.start + span.prefix], whole[..., : span.prefix])
            assert torch.equal(packed.positions[..., place : place + length], whole[..., span.prefix :])
            place += length


# The reranker


def lists(backbone, items, seen: bool = False) -> list:
    """Two lists of unequal lengths."""
    found = []
    for query, shown in ((QUERIES[0], CANDIDATES), (QUERIES[1], CANDIDATES[:2])):
        prompt = rerank.prompt(backbone, items[query], [items[id] for id in shown])
        found.append(prompt._replace(images=tuple(backbone.see(i) for i in prompt.images)) if seen else prompt)
    return found


def test_likelihoods_of_all_answers_together_equal_whole_sequences(name, backbone, items, monkeypatch):
    texts = [prompts.list_answer(number) for number in range(1, len(CANDIDATES) + 1)]
    told = rerank.answer_tokens(backbone, len(CANDIDATES))
    shown = lists(backbone, items)
    tokens = fed(backbone, monkeypatch)
    found = rerank.branch_likelihoods(backbone, [backbone.encode(prompt) for prompt in shown], told)
    assert len(tokens) == 2 and tokens[1] < tokens[0] / 5  # every prompt once, and the ends of the answers
    with torch.no_grad():
        whole = torch.stack([torch.cat([backbone.log_likelihood(backbone.collate([p], [text])) for text in texts]) for p in shown])
    assert whole.std(dim=1).min() > 0.05, "answers of equal likelihood would prove nothing"
    seen = rerank.branch_likelihoods(backbone, [backbone.encode(prompt) for prompt in lists(backbone, items, seen=True)], told)
    print(f"{name}: log likelihoods of answers, branches: {apart(found, whole):.1e}; features in place of pixels: {apart(seen, found):.1e}")
    assert apart(found, whole) < 1e-4 and apart(seen, found) < 1e-4


def test_generated_answers_are_the_models_own_greedy_text(backbone, items, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(rerank, "ANSWER_TOKENS", 6)
    asked = rerank.Lists(backbone, items, QUERIES[:2], [list(CANDIDATES), list(CANDIDATES[:2])])
    rows = rerank.answers(asked, [0, 1], 4096)
    assert sorted(row for row, _, _ in rows) == [0, 1]
    for row, _, text in rows:
        prompt = lists(backbone, items)[row]
        start, said = backbone.encode(prompt), []
        while len(said) < 6:  # greedy, one whole forward pass a token
            longer = start._replace(ids=np.concatenate([start.ids, np.array(said, dtype=np.int64)]))
            with torch.no_grad():
                said.append(int(backbone.answer_logits(backbone.collate([longer]), range(backbone.head.out_features)).argmax()))
            if said[-1] in (backbone.end, backbone.pad, backbone.image_token):
                break
        if backbone.image_token not in said:  # random weights may "say" an image
            assert text == backbone.tokenizer.decode(said, skip_special_tokens=True)


def test_a_list_is_as_long_as_planned(backbone, items):
    asked = rerank.Lists(backbone, items, QUERIES, [list(CANDIDATES)] * 3)
    (longest, *_), *_ = asked.plan([0, 1, 2], 1, 0)
    lengths = {row: len(asked.encoded([row])[0].ids) for row in range(3)}
    assert lengths[longest] == max(lengths.values()) and len(set(lengths.values())) == 3
    for row, length in lengths.items():
        assert backbone.length(rerank.prompt(backbone, items[QUERIES[row]], [items.peek(id) for id in CANDIDATES])) == length


# Training


@pytest.mark.parametrize("kind", ["unime_v2", "reranker"])
def test_training_moves_the_language_models_adapter_alone(kind, name, family, tmp_path: Path):
    training.write_data(tmp_path, 12)
    model, accumulate = training.accumulator(kind, tmp_path, family(name), batch=2)
    loss, gradient = training.gradient_of(model, accumulate, Batch(0, 0, [0, 1]))
    assert np.isfinite(loss) and loss > 0 and gradient.isfinite().all() and gradient.abs().max() > 0
    assert all(("language_model" in key) == (parameter.grad is not None) for key, parameter in model.named_parameters() if "lora_" in key)
    assert all(parameter.grad is None for key, parameter in model.named_parameters() if "lora_" not in key)


def test_labels_of_an_answer_stand_behind_its_prompt(backbone, items):
    for prompt in lists(backbone, items):
        labels = backbone.collate([prompt], ["Ans: (2)"])["labels"][0]
        assert (labels[: len(backbone.encode(prompt).ids)] == IGNORED).all() and labels[-1] == backbone.end
