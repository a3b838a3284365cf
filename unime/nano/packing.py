"""Groups of prompts as rows of tokens: the shared prefix once, each branch seeing the prefix and itself.

1. Every branch is rendered and tokenized whole, exactly as a judge would send it, so no token boundary depends on packing.
2. The longest run of tokens that all branches of a group begin with, less its last token, is its prefix.
3. Groups are laid into rows first fit, longest first; an attention mask keeps groups, and branches of a group, apart.
4. Positions (three numbers a token, Qwen2-VL's multimodal RoPE) are those of the unpacked sequence.
Packed and unpacked forward passes agree to rounding (a test).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from unime import prompts
from unime.nano import model as nano_model
from unime.nano.lessons import Branch, Group

INPUTS = ("input_ids", "position_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
"""What of a packed batch goes into the model."""

ROW = 320
"""Tokens of a packed row; a group that is longer gets a row of its own length."""

VERDICT, SO_FAR = 0.5, 0.2
"""Loss weights of a verdict at a candidate's last token and inside it; the answer itself has 1 (Yes, No) or 2 (a list's number)."""


class Encoded(NamedTuple):
    """One group: tokens, (3, n) positions, branch of each token (0: prefix), the token asked for at each, its loss weight, the weight of
    No beside it, the first token of the group that each sees, pictures."""

    tokens: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    against: np.ndarray
    first: np.ndarray
    pictures: list[np.ndarray]


def render(turn: Sequence[object]) -> tuple[str, list[np.ndarray]]:
    """One user turn in the chat template, image tokens expanded, up to where the assistant's answer begins."""
    text, pictures = _written(turn, nano_model.VISION_START, nano_model.VISION_END)
    return f"{nano_model.START}user\n{text}{nano_model.END}\n{nano_model.START}assistant\n", pictures


def render_item(turn: Sequence[object]) -> tuple[str, list[np.ndarray]]:
    """One item as an embedder shows it: raw text, image tokens expanded, nothing around them."""
    return _written(turn)


def _written(turn: Sequence[object], before: str = "", after: str = "") -> tuple[str, list[np.ndarray]]:
    """The parts as one text, each picture as its image tokens between `before` and `after`, and the pictures."""
    text, pictures = [], []
    for part in turn:
        if isinstance(part, str):
            text.append(part)
        else:
            text.append(before + nano_model.IMAGE * visual_tokens(part) + after)
            pictures.append(part)
    return "".join(text), pictures


def visual_tokens(picture: np.ndarray) -> int:
    """How many tokens a picture (H, W, 3) takes in a prompt."""
    side = nano_model.PATCH * nano_model.MERGE
    return (picture.shape[0] // side) * (picture.shape[1] // side)


def rope_positions(tokens: np.ndarray, image: int, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(3, n) positions: text counts on in all three; an image's tokens hold time still and count rows and columns."""
    found, at, i, left = np.empty((3, len(tokens)), np.int64), 0, 0, list(pictures)
    while i < len(tokens):
        if tokens[i] != image:
            found[:, i] = at
            at, i = at + 1, i + 1
            continue
        side = nano_model.PATCH * nano_model.MERGE
        rows, columns = (length // side for length in left.pop(0).shape[:2])
        y, x = np.divmod(np.arange(rows * columns), columns)
        found[:, i : i + rows * columns] = at + np.stack([np.zeros_like(y), y, x])
        at, i = at + max(rows, columns), i + rows * columns
    return found


def encode(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Tokenize whole branches and split each group into its prefix and the rest of every branch."""
    rendered = [[(render_item if branch.item else render)(branch.turn) for branch in group] for group in groups]
    asked = [text for group in rendered for text, _ in group]
    told = [branch.answer + nano_model.END for group in groups for branch in group]
    raw = tokenizer.backend_tokenizer
    asked_found = iter(raw.encode_batch(asked, add_special_tokens=False))
    told_ids = iter([e.ids for e in raw.encode_batch_fast(told, add_special_tokens=False)])
    image = tokenizer.convert_tokens_to_ids(nano_model.IMAGE)
    found = []
    for group, seen in zip(groups, rendered, strict=True):
        ids, asked_at = [], []
        for branch, (text, _) in zip(group, seen, strict=True):
            encoding = next(asked_found)
            ids.append((encoding.ids, next(told_ids)))
            asked_at.append(_asked_at(branch, text, encoding, image))
        verdicts = [{at: (raw.token_to_id(word), weight) for at, (word, weight) in asked.items()} for asked in asked_at]
        found.append(_encode_group(group, seen, ids, verdicts, image))
    return found


def _asked_at(branch: Branch, text: str, encoding: Encoding, image: int) -> dict[int, tuple[str, float]]:
    """Token of the turn -> the verdict that is asked there and its loss weight; at a candidate's last token its own verdict."""
    if branch.item:
        return {}
    found = {}
    visual = [at for at, token in enumerate(encoding.ids) if token == image]
    for at, verdict in zip(visual[len(visual) - len(branch.cells) :], branch.cells, strict=True):
        found[at] = (verdict, SO_FAR)
    end = text.rindex(nano_model.END)
    for back, verdict in branch.so_far:
        found[encoding.char_to_token(end - back)] = (verdict, SO_FAR)
    for character, verdict in zip(last_characters(text, len(branch.verdicts)), branch.verdicts, strict=True):
        found[encoding.char_to_token(character)] = (verdict, VERDICT)
    return found


def last_characters(text: str, count: int) -> list[int]:
    """Where in a rendered turn the last character of each of its `count` candidates stands (a judge's turn has one, a list more)."""
    if not count:
        return []
    end = text.rindex(nano_model.END)
    at, found = text.rindex(prompts.LIST) if count > 1 else 0, []
    for number in range(2, count + 1):
        at = text.index(prompts.mark(number), at)
        found.append(at - 1)
    return [*found, end - 1]


def _encode_group(
    group: Group,
    seen: list[tuple[str, list[np.ndarray]]],
    ids: list[tuple[list[int], list[int]]],
    verdicts: list[dict[int, tuple[int, float]]],
    image: int,
) -> Encoded:
    shared = 0
    first = ids[0][0]
    if len(ids) > 1:
        while all(shared < len(ask) and ask[shared] == first[shared] for ask, _ in ids):
            shared += 1
        shared = min(shared, *(len(ask) - 1 for ask, _ in ids))
        # A picture is never cut: where candidates are pictures, the prefix ends before the first of them.
        common = _common_pictures([pictures for _, pictures in seen])
        for (ask, _), (_, pictures) in zip(ids, seen, strict=True):
            shared = min(shared, _start_of_picture(ask, image, common, pictures))
        # The last shared token is left to the branches: it is what a candidate's first word is predicted from.
        shared -= 1
    else:
        common = 0
    tokens, positions, branch, targets, weights, against, firsts = [], [], [], [], [], [], []
    offset = 0
    for number, (lesson, (ask, told), (_, pictures), verdict) in enumerate(zip(group, ids, seen, verdicts, strict=True), start=1):
        whole = np.array(ask + told)
        at = np.tile(np.arange(len(whole)), (3, 1)) if lesson.item else rope_positions(whole, image, pictures)
        weight = np.zeros(len(whole), np.float32)  # of predicting token i + 1 from token i
        weight[len(ask) - 1 : len(whole) - 2] = lesson.weight
        weight[len(whole) - 2] = 0.05 * lesson.weight if verdict or lesson.item else lesson.weight
        target = np.append(whole[1:], whole[-1])
        if lesson.words:
            weight[shared : max(verdict)] = lesson.words
        for place, (token, importance) in verdict.items():
            weight[place], target[place] = importance, token
        no = np.zeros(len(whole), np.float32)
        if lesson.belief is not None:
            for place in (*verdict, len(ask) - 1):
                no[place] = weight[place] * (1 - lesson.belief)
                weight[place] *= lesson.belief
        start = shared if number > 1 else 0
        first_seen = np.zeros(len(whole), np.int64)
        if lesson.by_end:
            first_seen[len(ask) :] = offset + len(ask) - 1 - start
            weight[len(ask) - 1] = 0.0  # what comes first is no secret: the other branches ask this token for more
        offset += len(whole) - start
        against.append(no[start:])
        firsts.append(first_seen[start:])
        tokens.append(whole[start:])
        positions.append(at[:, start:])
        targets.append(target[start:])
        weights.append(weight[start:])
        owner = np.full(len(whole), number)
        owner[:shared] = 0
        branch.append(owner[start:])
    kept = list(seen[0][1]) + [picture for _, pictures in seen[1:] for picture in pictures[common:]]
    joined = (np.concatenate(parts) for parts in (branch, targets, weights, against, firsts))
    return Encoded(np.concatenate(tokens), np.concatenate(positions, axis=1), *joined, kept)


def _common_pictures(lists: list[list[np.ndarray]]) -> int:
    count = 0
    while all(count < len(pictures) and pictures[count] is lists[0][count] for pictures in lists):
        count += 1
    return count


def _start_of_picture(ask: list[int], image: int, common: int, pictures: list[np.ndarray]) -> int:
    """Where the picture after the `common` first ones begins (its vision-start token), or the end."""
    if len(pictures) == common:
        return len(ask)
    skip = sum(map(visual_tokens, pictures[:common]))
    return [i for i, token in enumerate(ask) if token == image][skip] - 1


def pack(groups: Sequence[Encoded], pad: int, image: int) -> dict[str, torch.Tensor]:
    """Rows of up to ROW tokens: input_ids (R, L), position_ids (3, R, L), attention_mask (R, 1, L, L) additive float32,
    mm_token_type_ids (R, L), pixel_values, image_grid_thw, and the loss's `targets`, `weights` and `against` (R, L)."""
    rows: list[list[Encoded]] = []
    free: list[int] = []
    for group in sorted(groups, key=lambda g: -len(g.tokens)):
        size = len(group.tokens)
        slot = next((i for i, room in enumerate(free) if room >= size), None)
        if slot is None:
            rows.append([])
            free.append(max(ROW, size))
            slot = len(rows) - 1
        rows[slot].append(group)
        free[slot] -= size
    length = max(sum(len(g.tokens) for g in row) for row in rows)
    shape = (len(rows), length)
    tokens, targets = np.full(shape, pad), np.full(shape, pad)
    positions, weights = np.zeros((3, *shape), np.int64), np.zeros(shape, np.float32)
    owner, branch = np.full(shape, -1), np.zeros(shape, np.int64)
    against, first = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    pictures: list[np.ndarray] = []
    for r, row in enumerate(rows):
        start = 0
        for g, group in enumerate(row):
            end = start + len(group.tokens)
            tokens[r, start:end], positions[:, r, start:end] = group.tokens, group.positions
            owner[r, start:end], branch[r, start:end] = g, group.branch
            weights[r, start:end] = group.weights
            against[r, start:end] = group.against
            first[r, start:end] = start + group.first
            targets[r, start:end] = group.targets
            pictures += group.pictures
            start = end
    _aim_prefix_ends(tokens, owner, branch, targets, weights)
    causal = np.tril(np.ones((length, length), bool))
    same = owner[:, :, None] == owner[:, None, :]
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    far = np.arange(length)[None, None, :] < first[:, :, None]
    allowed = causal & same & sees & ~far
    packed = {
        "input_ids": torch.from_numpy(tokens),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": torch.where(torch.from_numpy(allowed[:, None]), 0.0, torch.finfo(torch.float32).min),
        "mm_token_type_ids": torch.from_numpy((tokens == image).astype(np.int64)),
        "targets": torch.from_numpy(targets),
        "weights": torch.from_numpy(weights),
        "against": torch.from_numpy(against),
    }
    if pictures:
        packed["pixel_values"] = torch.from_numpy(np.concatenate([nano_model.patches(p) for p in pictures]))
        packed["image_grid_thw"] = torch.tensor([[1, p.shape[0] // nano_model.PATCH, p.shape[1] // nano_model.PATCH] for p in pictures])
    return packed


def hidden(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The (R, L, D) last hidden states of a packed batch."""
    return model.model(**{name: batch[name] for name in INPUTS if name in batch}).last_hidden_state


def _aim_prefix_ends(tokens: np.ndarray, owner: np.ndarray, branch: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
    """The last token of a branch, and of a prefix, is followed by another branch's first: it predicts nothing here."""
    cut = (branch[:, :-1] != branch[:, 1:]) | (owner[:, :-1] != owner[:, 1:])
    weights[:, :-1][cut] = 0.0
    targets[:, :-1][cut] = tokens[:, :-1][cut]
    weights[:, -1] = 0.0
