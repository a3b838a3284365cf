"""Many sequences that begin alike, in one forward pass that computes each beginning once.

All candidates of a query share the tokens before the candidate: instruction, query, the query's image.  A block of groups becomes ONE
row of tokens without padding, [prefix, suffix 1, ..., suffix n] for each group, so every layer but attention works on exactly the
tokens that are needed.  Attention is replaced for the duration of the call: a prefix attends to itself, a suffix to its group's prefix
and to itself.  Positions are those of the whole sequences, so the result is that of running them one by one.

On a GPU in half precision the number of kernels counts as much as the work in them (`benchmarks/gpu.py`): there all groups of a row
attend in two calls of torch's flash attention for sequences of different lengths, every prefix and suffix to itself, and every suffix to
its prefix; a suffix's two results are put together by the sums of their exponentials.  Elsewhere groups go one by one.

What was refused: a key-value cache expanded to all candidates (copies the prefix n times in every layer and keeps it), and a block
mask over the packed row (computes n times more attention than it uses).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.attention.varlen import AuxRequest
from transformers.modeling_utils import AttentionInterface

from unime.backbones import Backbone, Encoded

NAME = "unime_shared_prefix"


class Span(NamedTuple):
    """Where a group lies in the row: `prefix` tokens from `start`, then suffixes of these lengths."""

    start: int
    prefix: int
    suffixes: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.prefix + sum(self.suffixes)


class Cuts(NamedTuple):
    """A row as flash attention takes it.

    `own` (m,) int32: where each prefix and each suffix begins, and the row's end; `longest` of them.  `tails` (t,) and `heads` (p,) int64:
    where the tokens of all suffixes and of all prefixes lie, of groups that have a prefix; `tail_cuts` and `head_cuts` (groups + 1,)
    int32: where each group begins in them; `longest_tails` and `longest_head` of a group.
    """

    own: Tensor
    longest: int
    tails: Tensor
    heads: Tensor
    tail_cuts: Tensor
    head_cuts: Tensor
    longest_tails: int
    longest_head: int

    @staticmethod
    def of(spans: Sequence[Span], device: torch.device) -> Cuts:
        lengths = np.concatenate([[span.prefix, *span.suffixes] for span in spans])
        lengths = lengths[lengths > 0]
        shared = [span for span in spans if span.prefix]
        heads = [np.arange(span.start, span.start + span.prefix) for span in shared] or [np.zeros(0, dtype=np.int64)]
        tails = [np.arange(span.start + span.prefix, span.stop) for span in shared] or [np.zeros(0, dtype=np.int64)]

        def places(runs: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(runs)).to(device)

        def cuts(sizes: Sequence[int]) -> Tensor:
            return torch.from_numpy(np.cumsum([0, *sizes]).astype(np.int32)).to(device)

        sizes = [len(run) for run in tails], [len(run) for run in heads]
        return Cuts(
            cuts(lengths), int(lengths.max()), places(tails), places(heads), cuts(sizes[0]), cuts(sizes[1]), max(sizes[0]), max(sizes[1])
        )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    spans: Sequence[Span],
    cuts: Cuts | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, H, T, d), key and value (1, G, T, d), G dividing H -> (1, T, H, d)."""
    if sliding_window is not None:
        raise ValueError(f"a sliding window of {sliding_window} tokens cannot share prefixes; use a model with full attention")
    if cuts is not None:
        return _flash(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), cuts, scaling)[None], None
    out = torch.empty_like(query[0])  # (H, T, d)
    for span in spans:
        middle = span.start + span.prefix
        own, rest = slice(span.start, middle), slice(middle, span.stop)
        if span.prefix:
            out[:, own] = nn.functional.scaled_dot_product_attention(
                query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, scale=scaling, enable_gqa=True
            )[0]
        tail = query[0, :, rest], key[0, :, rest], value[0, :, rest]
        out[:, rest] = _suffixes(*tail, key[0, :, own], value[0, :, own], span.suffixes, scaling)
    return out.transpose(0, 1)[None], None


def _flash(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scaling: float) -> Tensor:
    """The same for all groups at once: q (T, H, d), k and v (T, G, d) -> (T, H, d)."""
    how = {"return_aux": AuxRequest(lse=True), "scale": scaling, "enable_gqa": True}
    own, longest = cuts.own, cuts.longest
    out, own_sums = varlen.varlen_attn(q, k, v, own, own, longest, longest, window_size=(-1, 0), **how)  # sums: (H, T), logarithms
    if not len(cuts.tails):
        return out
    asked, keys, values = q[cuts.tails], k[cuts.heads], v[cuts.heads]
    sizes = cuts.tail_cuts, cuts.head_cuts, cuts.longest_tails, cuts.longest_head
    shared, sums = varlen.varlen_attn(asked, keys, values, *sizes, **how)
    share = torch.sigmoid(sums - own_sums[:, cuts.tails]).T[..., None].to(q.dtype)  # of the prefix in a token's attention
    return out.index_copy(0, cuts.tails, torch.lerp(out[cuts.tails], shared, share))


def _suffixes(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, lengths: Sequence[int], scaling: float) -> Tensor:
    """Each of n suffixes (laid end to end: q (H, t, d), k and v (G, t, d)) attends to the prefix (G, p, d) and to itself -> (H, t, d)."""
    heads, _, width = q.shape
    groups, before, _ = prefix_k.shape
    count, longest, share = len(lengths), max(lengths), heads // groups
    table = _padded(lengths).to(q.device)  # (n, S), -1 where a suffix has ended: behind its last token, which no token of it sees
    there, table = table >= 0, table.clamp(min=0)

    def keys(prefix: Tensor, tail: Tensor) -> Tensor:  # (n, G, p + S, d)
        return torch.cat([prefix.expand(count, -1, -1, -1), tail[:, table].transpose(0, 1)], dim=2)

    # Heads that share keys stand as more rows of one head: no key is copied for them.  (n, G, H/G * S, d)
    asked = q[:, table].view(groups, share, count, longest, width).permute(2, 0, 1, 3, 4).reshape(count, groups, share * longest, width)
    sees = torch.ones(longest, before + longest, dtype=torch.bool, device=q.device).tril(before).repeat(share, 1)
    found = nn.functional.scaled_dot_product_attention(asked, keys(prefix_k, k), keys(prefix_v, v), attn_mask=sees, scale=scaling)
    return found.view(count, groups, share, longest, width).permute(1, 2, 0, 3, 4).reshape(heads, count, longest, width)[:, there]


def _padded(lengths: Sequence[int]) -> Tensor:
    """(n, longest) positions in the concatenation of runs of these lengths, -1 where a run has ended."""
    sizes = np.asarray(lengths)
    steps = np.arange(sizes.max())
    table = (np.cumsum(sizes) - sizes)[:, None] + steps
    return torch.from_numpy(np.where(steps < sizes[:, None], table, -1))


AttentionInterface.register(NAME, attention)


@contextmanager
def installed(language_model: nn.Module) -> Iterator[None]:
    """The model attends by `attention` inside the block, and as before after it.  Enter it once, around all threads."""
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


class Packed(NamedTuple):
    """T tokens of a block: `ids` (T,), `positions` (..., T), `features` (V, D) of its image tokens in order, `last` (N,) where each
    sequence's last token lies, groups and their sequences in order; `cuts` where flash attention can be had."""

    ids: Tensor
    positions: Tensor
    features: Tensor | None
    spans: tuple[Span, ...]
    last: Tensor
    cuts: Cuts | None = None


def common_prefix(sequences: Sequence[Encoded], image_token: int) -> int:
    """Tokens that all sequences begin with, at least one of each sequence left over.  An image token equals another only if it shows
    the same part of the same picture."""
    numbers: dict[int, int] = {}
    keys = []
    for sequence in sequences:
        key = sequence.ids.copy()
        if sequence.pictures:
            counts = [len(picture.features) for picture in sequence.pictures]
            marks = [-1 - numbers.setdefault(id(picture), len(numbers)) for picture in sequence.pictures]
            key[key == image_token] = np.repeat(marks, counts)
        keys.append(key)
    shortest = min(len(key) for key in keys)
    table = np.stack([key[:shortest] for key in keys])
    differ = (table != table[0]).any(axis=0)
    return min(int(differ.argmax()) if differ.any() else shortest, shortest - 1)


def pack(groups: Sequence[Sequence[Encoded]], backbone: Backbone) -> Packed:
    """Lay out groups of sequences; every group's sequences share what they can."""
    ids, features, spans, last, rows, columns = [], [], [], [], [], []
    shapes: dict[tuple[Any, ...], tuple[int, Encoded]] = {}
    at = 0
    for group in groups:
        prefix = common_prefix(group, backbone.image_token)
        lengths = tuple(len(sequence.ids) - prefix for sequence in group)
        spans.append(Span(at, prefix, lengths))
        for number, sequence in enumerate(group):
            start = prefix if number else 0
            shape = _shape(sequence, backbone.image_token)
            row = shapes.setdefault(shape, (len(shapes), sequence))[0]
            ids.append(sequence.ids[start:])
            rows.append(np.full(len(sequence.ids) - start, row))
            columns.append(np.arange(start, len(sequence.ids)))
            if sequence.pictures:
                shown = torch.cat([picture.features for picture in sequence.pictures])
                features.append(shown[int((sequence.ids[:start] == backbone.image_token).sum()) :])
            at += len(sequence.ids) - start
            last.append(at - 1)
    positions = _positions([sequence for _, sequence in shapes.values()], backbone)
    place = torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(columns))
    device = backbone.device
    return Packed(
        torch.from_numpy(np.concatenate(ids)).to(device),
        positions[..., place[0], place[1]].to(device),
        torch.cat(features).to(device) if features else None,
        tuple(spans),
        torch.tensor(last, device=device),
        Cuts.of(spans, device) if _has_flash(device, backbone.head.weight.dtype) else None,
    )


def _has_flash(device: torch.device, kind: torch.dtype) -> bool:
    """Whether torch's flash attention runs there: half precision, Ampere or newer."""
    half = kind in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0)


def _shape(sequence: Encoded, image_token: int) -> tuple[Any, ...]:
    """What positions depend on: the length, where images begin, and their shapes."""
    if not sequence.pictures:
        return (len(sequence.ids),)
    marked = np.flatnonzero(sequence.ids == image_token)
    firsts = np.cumsum([0, *(len(picture.features) for picture in sequence.pictures[:-1])])
    return (len(sequence.ids), *marked[firsts].tolist(), *(tuple(picture.shape[0].tolist()) for picture in sequence.pictures))


def _positions(sequences: Sequence[Encoded], backbone: Backbone) -> Tensor:
    """(..., rows, longest): the positions of whole sequences, as the backbone gives them."""
    bare = [sequence._replace(pictures=tuple(p._replace(features=p.features[:0]) for p in sequence.pictures)) for sequence in sequences]
    return backbone.positions(backbone.collate(bare, side="right")).cpu()


@torch.inference_mode()
def last_hidden(packed: Packed, backbone: Backbone) -> Tensor:
    """(N, D): the last token's hidden state after the final norm, of every sequence of the block.  Only inside `installed`."""
    model = backbone.core.language_model
    embeds = model.get_input_embeddings()(packed.ids)
    if packed.features is not None:
        embeds[packed.ids == backbone.image_token] = packed.features.to(embeds.dtype)
    none = dict.fromkeys(getattr(model.config, "layer_types", None) or ["full_attention"])
    out = model(
        inputs_embeds=embeds[None],
        position_ids=packed.positions.unsqueeze(-2),
        attention_mask=none,
        use_cache=False,
        spans=packed.spans,
        cuts=packed.cuts,
    )
    return out.last_hidden_state[0, packed.last]
