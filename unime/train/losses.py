"""The losses, as functions of cosines.  Each returns one value a query, float32; a batch's loss is their mean.

All work on logarithms (`log_softmax`), so nothing overflows and no log of zero is taken at tau = 0.02, where logits reach 50.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FLAT = 0.99
"""A target is called flat when its entropy is at least this share of the largest possible: it hardly tells candidates apart."""


def soft_label_loss(cosines: Tensor, scores: Tensor, tau: float) -> Tensor:
    """Equation (4) of the paper: 1/2 [KL(P||Q) + KL(Q||P)] with P = softmax(cosines / tau), Q = softmax(scores / tau).

    `cosines` and `scores` are (B, 1 + k), the positive first.  Returns (B,) float32.  Both directions together are
    1/2 sum (P - Q)(log P - log Q), which is zero exactly where P = Q.
    """
    log_p = functional.log_softmax(cosines.float() / tau, dim=-1)
    log_q = functional.log_softmax(scores.float() / tau, dim=-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)


def one_hot_loss(cosines: Tensor, tau: float) -> Tensor:
    """Cross entropy with the positive (column 0) as the only right answer: (B, 1 + k) cosines -> (B,) float32."""
    return -functional.log_softmax(cosines.float() / tau, dim=-1)[:, 0]


def in_batch_loss(queries: Tensor, positives: Tensor, tau: float) -> Tensor:
    """InfoNCE over the batch, from query to candidate (VLM2Vec, version 1): (B, D) unit rows twice -> (B,) float32.

    Every other query's positive is a negative, also one with the same content as the own positive, as in VLM2Vec: nothing is masked.
    """
    logits = queries.float() @ positives.float().T / tau
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


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
