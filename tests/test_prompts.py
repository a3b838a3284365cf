"""Prompt formats: the exact strings of every kind of item, and their tokens on every family, against the public rule written anew."""

from __future__ import annotations

import re
from typing import get_args

import families
import pytest
import torch
from families import apart, image

from unime import backbones, prompts
from unime.config.types import PromptFormat
from unime.data.items import Content
from unime.evaluate import rerank
from unime.judge import Question
from unime.judge.transformers_backend import TransformersJudge

MARK = "<|image_1|>"
# kind -> (text as the data have it, whether there is an image, its strings in the formats `unime` and `public`)
KINDS = {
    "text": ("Find a small red ring\n", False, "Find a small red ring\n", "Find a small red ring\n"),
    "image": (f"{MARK}\n", True, "<image>\n", "<image>"),
    "both": (f"{MARK}\nRepresent the given image.\n", True, "<image>\nRepresent the given image.\n", "<image>Represent the given image.\n"),
    "blank": (f"{MARK} Find an image caption.", True, "<image> Find an image caption.", "<image> Find an image caption."),
    "middle": (f"Is this {MARK} a cow?", True, "Is this <image> a cow?", "<image>Is this  a cow?"),
    "line": (f"Is this\n{MARK}\na cow?", True, "Is this\n<image>\na cow?", "<image>Is this\na cow?"),
    "last": (f"a red ring, as in {MARK}", True, "a red ring, as in <image>", "<image>a red ring, as in "),
}
PAIR = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of the query. "
    "If it does, respond with 'Yes'; if it doesn't, {} with 'No'."
)
LIST = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each candidate is "
    "independent of the others. Evaluate each candidate against the query, and respond with the number corresponding to the candidate "
    "that best meets the requirements of the query."
)


def content(kind: str, seed: int = 0) -> Content:
    text, has_image, _, _ = KINDS[kind]
    return Content(text, image(56 + 28 * seed, 56, seed) if has_image else None)


def shown(turn: list) -> str:
    return "".join(piece if isinstance(piece, str) else "<image>" for piece in turn)


def public(item: Content) -> str:
    """The public rule: the image before the text, of which every mark is cut out, one with a line end behind it together with that."""
    return ("<image>" if item.image else "") + re.sub(r"<\|image_1\|>\n?", "", item.text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_strings_of_every_kind_of_item_are_the_formats_own(kind):
    item, other = content(kind).parts, content("both").parts
    _, _, ours, theirs = KINDS[kind]
    assert theirs == public(content(kind))
    words = PAIR.format("respond")
    assert shown(prompts.judge_turn(item, other)) == f"{words} Query:{ours} Candidate:<image>\nRepresent the given image.\n"
    assert shown(prompts.judge_turn(other, item, "public")) == f"{words}Query:<image>Represent the given image.\nCandidate:{theirs}"
    found = shown(prompts.list_turn(item, [other, item]))
    assert found == f"{LIST} Query:{ours} Candidates:(1) <image>\nRepresent the given image.\n(2) {ours}"
    found = shown(prompts.list_turn(item, [other, item], "public"))
    assert found == f"{LIST}Query:{theirs}Candidates:(1) <image>Represent the given image.\n(2) {theirs}"


def test_only_the_public_pair_of_the_training_is_misspelled():
    item = content("text").parts
    for form, blank in (("unime", " "), ("public", "")):
        read, taught = (shown(prompts.judge_turn(item, item, form, taught=taught)) for taught in (False, True))
        assert read.startswith(PAIR.format("respond") + blank + "Query:")
        assert taught.startswith(PAIR.format("responed" if form == "public" else "respond") + blank + "Query:")
        assert taught.replace("responed", "respond") == read


def test_the_configuration_knows_every_format():
    assert get_args(PromptFormat) == tuple(prompts.FORMATS)


def test_an_items_parts_are_left_as_they_were():
    item = content("middle").parts
    before = list(item)
    prompts.list_turn(item, [item], "public")
    assert item == before


def test_a_number_is_read_as_the_public_code_reads_it():
    candidates = list("abcdefghij")
    for text in ("Ans: (3)", "(0)", "(10)", "(11)", "( 3 )", "3", "", "Ans: (2) or (5)", "Ans (07)", "(-1)", "((4))", "(99999)"):
        found = re.search(r"\((\d+)\)", text)
        index = int(found.group(1)) - 1 if found else None
        try:
            wanted = candidates[index]
        except (TypeError, IndexError):
            wanted = None
        number = prompts.read_list_answer(text, 10)
        assert (None if number is None else candidates[number - 1]) == wanted, text
    assert prompts.read_list_answer("(0)", 10) == 10 and prompts.read_list_answer("( 3 )", 10) is None


# Tokens

# Family -> what its chat template puts before the user's turn and behind it, and how an image of n tokens is written.
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN = (SYSTEM + "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
FRAMES = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "llava_onevision": ("<|im_start|>user \n", "<|im_end|><|im_start|>assistant\n", "", "<image>", ""),
    "internvl": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<img>", "<IMG_CONTEXT>", "</img>\n"),
}


@pytest.fixture(scope="module", params=families.NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name, family):
    return backbones.load(family(name), models=families.MODELS)


def whole_ids(backbone, name: str, text: str, images: list) -> list[int]:
    """Tokens of a chat prompt, written as one string with as many image tokens as the images have."""
    before, after, start, token, end = FRAMES[name]
    for one in images:
        text = text.replace("<image>", f"{start}{token.replace('<', '[') * backbone.look(one).tokens}{end}", 1)
    return backbone.tokenizer.encode(before + text.replace(token.replace("<", "["), token) + after, add_special_tokens=False)


def test_the_tokens_are_those_of_the_public_string(name, backbone):
    query, candidates = content("both"), [content(kind, seed) for seed, kind in enumerate(KINDS)]
    listed = f"{LIST}Query:{public(query)}Candidates:" + "".join(f"({n}) {public(one)}" for n, one in enumerate(candidates, 1))
    images = [one.image for one in (query, *candidates) if one.image]
    found = backbone.encode(rerank.prompt(backbone, query, candidates, "public")).ids.tolist()
    assert found == whole_ids(backbone, name, listed, images)
    assert found != backbone.encode(rerank.prompt(backbone, query, candidates)).ids.tolist()
    items = Held({"query": query, **dict(zip(KINDS, candidates, strict=True))})
    asked = TransformersJudge(backbone, items, 8192, "public").sequences(Question("query", tuple(KINDS)))
    for candidate, sequence in zip(candidates, asked, strict=True):
        pair = f"{PAIR.format('respond')}Query:{public(query)}Candidate:{public(candidate)}"
        shown_images = [one.image for one in (query, candidate) if one.image]
        assert sequence.ids.tolist() == whole_ids(backbone, name, pair, shown_images)


def test_both_formats_share_prefixes_and_equal_one_sequence_at_a_time(name, backbone):
    items = Held({kind: content(kind, seed) for seed, kind in enumerate(KINDS)})
    asked = [Question(query, tuple(KINDS)) for query in ("both", "text")]
    found = {}
    for form in prompts.FORMATS:
        engine = TransformersJudge(backbone, items, 8192, form)
        found[form] = torch.cat([torch.from_numpy(logits) for logits in engine.answers(asked)])
        plain = torch.cat([torch.from_numpy(engine.plain(question)) for question in asked])
        assert apart(found[form], plain) < 1e-4
    assert apart(found["unime"], found["public"]) > 0.01, "formats that are read alike would prove nothing"


def test_answers_behind_a_public_list_share_its_prompt(backbone):
    candidates = [content(kind, seed) for seed, kind in enumerate(KINDS)]
    prompt = rerank.prompt(backbone, content("both"), candidates, "public")
    told = rerank.answer_tokens(backbone, len(candidates))
    found = rerank.branch_likelihoods(backbone, [backbone.encode(prompt)], told)[0]
    texts = [prompts.list_answer(number) for number in range(1, len(candidates) + 1)]
    with torch.no_grad():
        whole = torch.cat([backbone.log_likelihood(backbone.collate([prompt], [text])) for text in texts])
    assert whole.std() > 0.05 and apart(found, whole) < 1e-4


class Held:
    """Items in memory."""

    def __init__(self, held: dict[str, Content]) -> None:
        self.held = held

    def __getitem__(self, id: str) -> Content:
        return self.held[id]

    def text(self, id: str) -> str:
        return self.held[id].text

    def has_image(self, id: str) -> bool:
        return self.held[id].image is not None

    def image_place(self, id: str) -> tuple[str, str]:
        return ("", id if self.has_image(id) else "")
