"""The losses, as functions of cosines.  Each returns one value a query, float32; a batch's loss is their mean.

All work on logarithms (`log_softmax`), so nothing overflows and no log of zero is taken at tau = 0.02, where logits reach 50.  They
compute in float64: a logit near 50 is rounded to 4e-6 in float32.

A table has one number for a query and a candidate.  Over a query's own candidates it is small; where each of 1,024 queries sees the nine
candidates of all, one is 75 MB, and a loss holds several.  Measured there on a CPU, inputs included: the soft loss has about ten at its
peak (0.8 GB) and keeps half of them for the backward pass; the one-hot loss has three (0.23 GB).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FLAT = 0.99
"""A target is called flat when its entropy is at least this share of the largest possible: it hardly tells candidates apart."""


def soft_label_loss(cosines: Tensor, scores: Tensor, tau: float, smoothing: float = 0.0, left_out: Tensor | None = None) -> Tensor:
    """The symmetric KL divergence between the model's and the judge's distribution over a query's candidates: (B,) float32.

    With P = softmax(cosines / tau), Q = softmax(scores / tau) and eps = `smoothing`:

        1/2 [ sum P (log P - log(Q + eps)) + sum Q (log Q - log(P + eps)) ]

    eps = 0 is equation (4) of the paper.  The public code (Embedding/src/loss.py) has eps = 1e-8 inside both of its calls of `log`, which
    are the logarithms of the other distribution; `kl_div` takes the logarithm of its target itself, without eps.

    `cosines` and `scores` are (B, C), the columns in any order.  Columns that `left_out` (B, C) bool marks take no part in a row; each row
    needs one that does.  log(P + eps) is computed from log P, so no value and no gradient overflows where P underflows.
    """
    log_p = _log_softmax(cosines, tau, left_out)
    log_q = _log_softmax(scores, tau, left_out)
    p, q = log_p.exp(), log_q.exp()
    if left_out is not None:  # their probability is 0, and 0 times minus infinity is not a number
        log_p, log_q = log_p.masked_fill(left_out, 0.0), log_q.masked_fill(left_out, 0.0)
    p_to_q = p * (log_p - _smoothed(log_q, smoothing))
    q_to_p = q * (log_q - _smoothed(log_p, smoothing))
    return 0.5 * (p_to_q + q_to_p).sum(dim=-1).float()


def _smoothed(log_p: Tensor, smoothing: float) -> Tensor:
    """log(p + smoothing) of log p."""
    if smoothing == 0:
        return log_p
    return torch.logaddexp(log_p, log_p.new_tensor(math.log(smoothing)))


def _log_softmax(values: Tensor, tau: float, left_out: Tensor | None) -> Tensor:
    """log softmax(values / tau) over the last dimension, float64; minus infinity in columns that are left out."""
    values = values.double()
    if left_out is not None:
        values = values.masked_fill(left_out, -math.inf)
    return functional.log_softmax(values / tau, dim=-1)


def one_hot_loss(cosines: Tensor, tau: float, right: Tensor | None = None, left_out: Tensor | None = None) -> Tensor:
    """Cross entropy with one right answer a row: (B, C) cosines -> (B,) float32.

    `right` (B,) int64 is the right answer's column, column 0 if it is not given.  Columns that `left_out` (B, C) bool marks are no
    negatives of a row; the right answer must not be among them.
    """
    if right is None:
        right = torch.zeros(len(cosines), dtype=torch.int64, device=cosines.device)
    log_p = _log_softmax(cosines, tau, left_out)
    return functional.nll_loss(log_p, right, reduction="none").float()


def in_batch_loss(queries: Tensor, positives: Tensor, tau: float, left_out: Tensor | None = None) -> Tensor:
    """InfoNCE over the batch, from query to candidate (VLM2Vec, version 1): (B, D) unit rows twice -> (B,) float32.

    Every other query's positive is a negative unless `left_out` (B, B) bool marks it.  VLM2Vec marks none, so there a positive with the
    same content as the own one is a negative too.
    """
    own = torch.arange(len(queries), device=queries.device)
    return one_hot_loss(queries.float() @ positives.float().T, tau, own, left_out)


def check_teacher(pairs: list[str], scores: np.ndarray) -> None:
    """Raise ValueError naming the first pair whose judge scores (N, 1 + k), the positive first, are NaN or outside [0, 1]."""
    good = (scores >= 0) & (scores <= 1)  # NaN is neither
    if not good.all():
        row, column = (int(i) for i in np.argwhere(~good)[0])
        what = "sigma" if column == 0 else f"the score of negative {column - 1}"
        raise ValueError(f"pair {pairs[row]}: {what} is {scores[row, column]}, outside [0, 1]; run the judge stage again for this pair")


def flat_share(scores: np.ndarray, tau: float) -> float:
    """Share of rows (N, 1 + k) whose target softmax(score / tau) is flat, see FLAT."""
    log_q = functional.log_softmax(torch.from_numpy(scores).double() / tau, dim=-1)
    entropy = -(log_q.exp() * log_q).sum(dim=-1)
    return float((entropy >= FLAT * math.log(scores.shape[1])).double().mean())
