"""The reranker: all best candidates of a query in one prompt, the answer `Ans: (i)` names the best (paper, section 3.4).

likelihood  Every answer (1)..(n) is scored by its exact log likelihood, the end of the turn included, which orders all n and cannot
            fail to parse.  The answers share the prompt and, up to the number, their own first tokens: that part runs once, its keys
            and values stay, and the n remainders run together behind it, each seeing the prompt and itself.
generate    Greedy text, the first `(number)` in it is put first, the others keep their order; an answer that cannot be read, or whose
            number is not in the list, counts as wrong.  As in the public code, whose reading of `(0)` is kept too: the last candidate.
pairwise    No list: each candidate is asked for alone, and its score is the log odds of Yes against No.  As in the public code for
            SugarCrepe, where P(Yes) of the true caption must be above that of the false one.  P(Yes) grows with the log odds, which,
            unlike it, do not all become 1.0 where the model is sure.

Candidates are shown best first, as the public code does, although a listwise reader may favour a place; training draws the place of
the right one uniformly.  What was refused: n copies of each prompt in a batch (n times the work), candidates shuffled for each query
(another quantity than the published one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from unime import artifacts, prompts, shards
from unime.backbones import Backbone, Encoded, Prompt
from unime.backbones.base import IGNORED
from unime.data.items import Content, Items
from unime.embed import Lanes
from unime.judge import Question
from unime.judge.transformers_backend import TransformersJudge

SHARD = 128
"""Queries of a shard; a killed run loses one shard at most, and batches do not reach over shards, so they are the same every time."""

ANSWER_TOKENS = 128
"""Tokens of a generated answer, at most (public code: Embedding/eval_rerank.py)."""

_SCORES = {"row": pl.Int64, "scores": pl.List(pl.Float64), "text": pl.String}
Track = Callable[..., Iterable]
Result = tuple[int, list[float], str]
"""Row, scores of its candidates, generated text."""


def prompt(backbone: Backbone, query: Content, candidates: Sequence[Content], form: str = prompts.UNIME) -> Prompt:
    """The listwise prompt, candidates numbered from 1 in the given order; `form` is a name of `prompts.FORMATS`."""
    return backbone.chat_prompt(prompts.list_turn(query.parts, [c.parts for c in candidates], form))


@dataclass(frozen=True)
class Lists:
    """What is to be ordered: candidate ids of each query, best first, the reranker that does it, and its prompt format."""

    backbone: Backbone
    items: Items
    queries: Sequence[str]
    lists: Sequence[Sequence[str]]
    form: str = prompts.UNIME

    def plan(self, rows: Sequence[int], batch_tokens: int, extra: int) -> list[list[int]]:
        """Rows in batches of at most `batch_tokens` tokens, padding and `extra` tokens a row included; longest first."""
        contents = ((self.items.peek(self.queries[row]), [self.items.peek(i) for i in self.lists[row]]) for row in rows)
        lengths = [self.backbone.length(prompt(self.backbone, *shown, self.form)) + extra for shown in contents]
        return [[rows[place] for place in batch] for batch in shards.batches(lengths, batch_tokens)]

    def encoded(self, batch: Sequence[int]) -> list[Encoded]:
        """Prompts of these rows.  Raises ValueError naming the query whose list is too long."""
        found = []
        for row in batch:
            try:
                shown = prompt(self.backbone, self.items[self.queries[row]], [self.items[i] for i in self.lists[row]], self.form)
                found.append(self.backbone.encode(shown))
            except ValueError as error:
                raise ValueError(f"query {self.queries[row]} with {len(self.lists[row])} candidates: {error}") from error
        return found


def score(asked: Lists, *, mode: str, batch_tokens: int, scratch: Path, track: Track) -> tuple[np.ndarray, list[bool]]:
    """Scores (Q, n) float64 of the candidates of each query, and which queries got no readable answer (mode `generate`).

    `likelihood`: log likelihoods; `generate`: 1 for the named candidate, 0 for the others, all equal where unread; `pairwise`: log odds of
    Yes.  -inf behind the end of a shorter list.  Finished shards of `SHARD` queries are kept in the folder `scratch` and not computed
    again.
    """
    read = reader(mode)
    parts = shards.run(
        shards.cut(range(len(asked.queries)), SHARD),
        scratch,
        "rerank",
        make=lambda rows: pl.DataFrame(sorted(read(asked, rows, batch_tokens)), schema=_SCORES, orient="row"),
        write=lambda table, place: artifacts.write_table(table, place, _SCORES),
        read=lambda place: artifacts.read_table(place, _SCORES),
        track=track,
    )
    found = np.full((len(asked.queries), max(len(row) for row in asked.lists)), -np.inf)
    unread = [False] * len(asked.queries)
    for row, scores, text in pl.concat(parts).iter_rows():
        found[row, : len(scores)] = scores
        unread[row] = mode == "generate" and prompts.read_list_answer(text, len(scores)) is None
    return found, unread


def reader(mode: str) -> Callable[[Lists, Sequence[int], int], list[Result]]:
    """The function that reads some rows' candidates in a mode of `evaluate.rerank_mode`, with so many tokens in a forward pass."""
    return {"likelihood": likelihoods, "generate": answers, "pairwise": log_odds}[mode]


def likelihoods(asked: Lists, rows: Sequence[int], batch_tokens: int) -> list[Result]:
    """For each row: the log likelihood of every answer, and no text.  Batches run side by side (`embed.Lanes`)."""
    told = answer_tokens(asked.backbone, max(len(asked.lists[row]) for row in rows))
    plan = asked.plan(rows, batch_tokens, sum(len(tokens) for tokens in told))

    def work(batch: list[int]) -> np.ndarray:
        encoded = asked.encoded(batch)
        with lanes.turn:
            return branch_likelihoods(asked.backbone, encoded, told).double().cpu().numpy()

    with Lanes(asked.backbone.device) as lanes:
        done = list(zip(plan, shards.spread(plan, work, lanes.count), strict=True))
    return [(row, values[: len(asked.lists[row])].tolist(), "") for batch, found in done for row, values in zip(batch, found, strict=True)]


@torch.no_grad()
def answers(asked: Lists, rows: Sequence[int], batch_tokens: int) -> list[Result]:
    """For each row: 1 for the candidate that the greedy answer names and 0 for the others, and the answer's text.

    One batch after the other: transformers keeps a state of the running generation in the model.
    """
    backbone, results = asked.backbone, []
    for chosen in asked.plan(rows, batch_tokens, ANSWER_TOKENS):
        batch = backbone.collate(asked.encoded(chosen))
        # Sampling settings of the folder's generation_config are taken back, or transformers warns that greedy search ignores them.
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        tokens = backbone.model.generate(**batch, **greedy, max_new_tokens=ANSWER_TOKENS, pad_token_id=backbone.pad)
        texts = backbone.tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(chosen, texts, strict=True):
            number = prompts.read_list_answer(text, len(asked.lists[row]))
            results.append((row, [float(place == number) for place in range(1, len(asked.lists[row]) + 1)], text))
    return results


def log_odds(asked: Lists, rows: Sequence[int], batch_tokens: int) -> list[Result]:
    """For each row: the log odds of Yes against No for each of its candidates, asked for alone, and no text.

    Asked in the judge's words, of the reranker, and packed as the judge packs them: a query's candidates share the tokens before them.
    """
    reader = TransformersJudge(asked.backbone, asked.items, batch_tokens, asked.form)
    questions = [Question(asked.queries[row], tuple(dict.fromkeys(asked.lists[row]))) for row in rows]
    results = []
    for row, question, logits in zip(rows, questions, reader.answers(questions), strict=True):
        odds = logits.astype(np.float64)[:, 0] - logits[:, 1]
        known = dict(zip(question.candidates, odds.tolist(), strict=True))
        results.append((row, [known[candidate] for candidate in asked.lists[row]], ""))
    return results


def answer_tokens(backbone: Backbone, count: int) -> list[list[int]]:
    """Tokens of the answers (1)..(count), each with the turn's end, as training has them in its labels."""
    texts = [prompts.list_answer(number) for number in range(1, count + 1)]
    labels = backbone.collate([Encoded(np.array([backbone.end]))] * count, texts)["labels"]
    return [row[row != IGNORED].tolist() for row in labels]


@torch.no_grad()
def branch_likelihoods(backbone: Backbone, encoded: Sequence[Encoded], told: Sequence[Sequence[int]]) -> Tensor:
    """(B, n) float32: log likelihood of each of n answers (token ids, the turn's end included) after each of B prompts.

    Equal to `backbone.log_likelihood` of B x n whole sequences.  L prompt tokens with the answers' common beginning, R tokens of all
    remainders together.
    """
    shared = min(_common(told), min(len(tokens) for tokens in told) - 1)
    head = list(told[0][:shared])
    batch = backbone.collate([e._replace(ids=np.concatenate([e.ids, np.array(head, dtype=np.int64)])) for e in encoded])
    out = backbone.run(batch, use_cache=True)
    hidden = out.last_hidden_state[:, -shared - 1 :]  # (B, shared + 1, D): each predicts the next token of the answers
    found = torch.log_softmax(backbone.head(hidden).float(), dim=-1)
    base = sum((found[:, k, token] for k, token in enumerate(head)), start=torch.zeros(len(encoded), device=found.device))
    total = base[:, None] + found[:, -1, [tokens[shared] for tokens in told]]  # (B, n)
    rest = [list(tokens[shared:]) for tokens in told]
    sizes = [len(tokens) - 1 for tokens in rest]
    if not any(sizes):
        return total
    fed = torch.tensor([token for tokens in rest for token in tokens[:-1]], device=total.device)
    after = torch.tensor([token for tokens in rest for token in tokens[1:]], device=total.device)
    depth = torch.tensor([k for tokens in rest for k in range(len(tokens) - 1)], device=total.device)
    owner = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)], device=total.device)
    hidden = backbone.core.language_model(
        input_ids=fed.expand(len(encoded), -1),
        attention_mask=_mask(batch["attention_mask"], owner, out.last_hidden_state.dtype),
        position_ids=backbone.positions(batch)[..., -1:] + 1 + depth,  # the last token is text: a position's axes are equal there
        past_key_values=out.past_key_values,
        use_cache=True,
    ).last_hidden_state  # (B, R, D)
    gains = torch.log_softmax(backbone.head(hidden).float(), dim=-1)[:, torch.arange(len(after)), after]  # (B, R)
    return total + torch.stack([part.sum(dim=1) for part in gains.split(sizes, dim=1)], dim=1)


def _mask(prompt_mask: Tensor, owner: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, R, L + R) additive: a token of a remainder sees the prompt without its padding, and its own remainder up to itself."""
    size = len(owner)
    own = (owner[:, None] == owner[None, :]) & torch.ones(size, size, dtype=torch.bool, device=owner.device).tril()
    before = prompt_mask.bool()[:, None, :].expand(-1, size, -1)
    seen = torch.cat([before, own.expand(len(prompt_mask), -1, -1)], dim=2)
    return torch.zeros(seen.shape, dtype=dtype, device=owner.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _common(told: Sequence[Sequence[int]]) -> int:
    """How many tokens all answers begin with."""
    count = 0
    for tokens in zip(*told, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
