"""Attention over shared prefixes: group by group, and all groups at once by flash attention, is attention over whole sequences."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import varlen

from unime.judge import shared_prefix
from unime.judge.shared_prefix import Cuts, Span

HEADS, GROUPS, WIDTH, SCALE = 4, 2, 32, 0.2
SPANS = (Span(0, 5, (3, 1, 4)), Span(13, 1, (2,)), Span(16, 0, (6,)), Span(22, 9, (2, 2)))  # the third shares nothing
TOKENS = SPANS[-1].stop


def row(device: str, kind: torch.dtype) -> list[torch.Tensor]:
    """query (1, H, T, d), key and value (1, G, T, d)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, TOKENS, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, kind) for shape in shapes]


def whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(1, T, H, d): every sequence of every group by itself, in float64."""
    out = torch.full((TOKENS, HEADS, WIDTH), float("nan"), dtype=torch.float64)
    for span in SPANS:
        end = span.start + span.prefix
        for suffix in span.suffixes:
            at = torch.cat([torch.arange(span.start, span.start + span.prefix), torch.arange(end, end + suffix)])
            q, k, v = (part[0, :, at.to(part.device)].double().cpu() for part in (query, key, value))
            weights = q @ k.repeat_interleave(HEADS // GROUPS, 0).transpose(1, 2) * SCALE
            weights = weights.masked_fill(torch.ones(len(at), len(at)).triu(1).bool(), -torch.inf).softmax(-1)
            out[at] = (weights @ v.repeat_interleave(HEADS // GROUPS, 0)).transpose(0, 1)
            end += suffix
    assert torch.isfinite(out).all()
    return out[None]


def flash(q, k, v, cuts_q, cuts_k, longest_q, longest_k, *, return_aux, scale, enable_gqa, window_size=(-1, -1)):
    """What torch's kernel computes on a GPU, by its documentation."""
    assert return_aux.lse and enable_gqa and longest_q == cuts_q.diff().max() and longest_k == cuts_k.diff().max()
    out, sums = torch.empty_like(q), torch.empty(q.shape[1], len(q), dtype=torch.float32)
    for begin, end, first, last in zip(cuts_q[:-1], cuts_q[1:], cuts_k[:-1], cuts_k[1:], strict=True):
        keys, values = (part[first:last].repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        weights = torch.einsum("qhd,khd->hqk", q[begin:end], keys) * scale
        if window_size == (-1, 0):
            weights = weights.masked_fill(torch.ones(weights.shape[1:]).triu(1).bool(), -torch.inf)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights.softmax(-1), values)
        sums[:, begin:end] = weights.logsumexp(-1)
    return out, sums


def test_groups_one_by_one_are_whole_sequences():
    q, k, v = row("cpu", torch.float32)
    found, _ = shared_prefix.attention(torch.nn.Identity(), q, k, v, None, SCALE, SPANS)
    assert (found - whole(q, k, v)).abs().max() < 1e-5


def test_all_groups_at_once_are_whole_sequences(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", flash)
    q, k, v = row("cpu", torch.float64)
    found, _ = shared_prefix.attention(torch.nn.Identity(), q, k, v, None, SCALE, SPANS, Cuts.of(SPANS, torch.device("cpu")))
    assert (found - whole(q, k, v)).abs().max() < 1e-6
    alone = (Span(0, 0, (TOKENS,)),)  # nothing is shared: no second call
    found, _ = shared_prefix.attention(torch.nn.Identity(), q, k, v, None, SCALE, alone, Cuts.of(alone, torch.device("cpu")))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)
    assert (found - plain.transpose(1, 2)).abs().max() < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: flash attention has no CPU kernel")
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_on_a_gpu_all_groups_at_once_are_whole_sequences(kind):
    q, k, v = row("cuda", kind)
    found, _ = shared_prefix.attention(torch.nn.Identity(), q, k, v, None, SCALE, SPANS, Cuts.of(SPANS, torch.device("cuda")))
    wanted = whole(q, k, v)
    assert (found.double().cpu() - wanted).norm() < 1e-2 * wanted.norm()
