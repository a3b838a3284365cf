"""Losses: equal to the plain formula in float64, known values, safe at tau = 0.02; the teacher is checked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unime.train import losses

TAU = 0.02


def softmax64(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def equation_4(cosines: np.ndarray, scores: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """The paper's formula as written, and its gradient by hand, in float64 numpy.

    With L = 1/2 sum_i [P_i (log P_i - log Q_i) + Q_i (log Q_i - log P_i)] and dP_i/dz_j = P_i (1[i=j] - P_j), z = cos / tau:
    dL/dz_j = 1/2 [P_j (d_j - sum_i P_i d_i) + P_j - Q_j], d = log P - log Q.
    """
    p, q = softmax64(cosines / tau), softmax64(scores / tau)
    d = np.log(p) - np.log(q)
    loss = 0.5 * ((p * d).sum(axis=1) + (q * -d).sum(axis=1))
    gradient = 0.5 * (p * (d - (p * d).sum(axis=1, keepdims=True)) + p - q) / tau
    return loss, gradient


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    return rng.uniform(-0.2, 0.9, (32, 9)), rng.uniform(0, 1, (32, 9))


@pytest.mark.parametrize("tau", [0.02, 0.1, 1.0])
def test_soft_label_loss_and_gradient_equal_the_formula(drawn, tau):
    cosines, scores = drawn
    given = torch.from_numpy(cosines).float().requires_grad_()
    # float32 inputs: the formula must see the same rounded numbers
    wanted, slope = equation_4(given.detach().double().numpy(), torch.from_numpy(scores).float().double().numpy(), tau)
    found = losses.soft_label_loss(given, torch.from_numpy(scores).float(), tau)
    found.mean().backward()
    assert wanted.min() > 1e-4 and np.abs(slope).max() > 1e-3
    assert found.dtype == torch.float32 and found.shape == (32,)
    assert np.abs(found.detach().double().numpy() - wanted).max() <= 1e-6 * max(1, np.abs(wanted).max())
    assert np.abs(given.grad.double().numpy() - slope / 32).max() <= 1e-6 * max(1, np.abs(slope / 32).max())


def test_soft_label_gradient_equals_float64_autograd_of_the_formula(drawn):
    cosines, scores = (torch.from_numpy(x) for x in drawn)
    plain = cosines.clone().requires_grad_()
    p, q = torch.softmax(plain / TAU, 1), torch.softmax(scores / TAU, 1)
    forward, backward = (p * (p / q).log()).sum(1).mean(), (q * (q / p).log()).sum(1).mean()  # KL(P||Q), KL(Q||P)
    ((forward + backward) / 2).backward()
    _, by_hand = equation_4(cosines.numpy(), scores.numpy(), TAU)
    assert np.abs(plain.grad.numpy() - by_hand / len(cosines)).max() < 1e-9
    assert abs(forward.item() - backward.item()) > 1e-3, "the two directions are alike: half of the loss is not tested"


def test_soft_label_loss_is_zero_where_cosines_equal_scores_up_to_a_constant(drawn):
    _, scores = drawn
    given = torch.from_numpy(scores).float()
    shifted = (given - 0.3).requires_grad_()
    loss = losses.soft_label_loss(shifted, given, TAU)
    loss.sum().backward()
    assert loss.abs().max() < 1e-5 and shifted.grad.abs().max() < 1e-3
    assert losses.soft_label_loss(given.flip(1), given, TAU).min() > 0.01


def test_closed_form_of_two_candidates():
    """P = (a, 1 - a), Q = (b, 1 - b): the loss is 1/2 (a - b)(logit a - logit b), here with logits 1 and -2."""
    a, b = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    found = losses.soft_label_loss(torch.tensor([[TAU, 0.0]]), torch.tensor([[0.0, 2 * TAU]]), TAU)
    assert found.item() == pytest.approx(0.5 * (a - b) * (1 + 2), rel=1e-5)


def test_closed_forms_of_equal_cosines():
    same = torch.full((3, 9), 0.4)
    assert torch.allclose(losses.soft_label_loss(same, torch.full((3, 9), 0.7), TAU), torch.zeros(3), atol=1e-6)
    assert torch.allclose(losses.one_hot_loss(same, TAU), torch.full((3,), math.log(9)))
    rows = torch.nn.functional.normalize(torch.ones(5, 4), dim=1)
    assert torch.allclose(losses.in_batch_loss(rows, rows, TAU), torch.full((5,), math.log(5)))


def test_losses_and_gradients_are_finite_at_the_ends(drawn):
    """Cosines of -1 and 1 and scores of 0 and 1 at tau 0.02: logits 100 apart, where exp alone gives 0 and its log minus infinity."""
    cosines = torch.tensor([[-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]], requires_grad=True)
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    loss = losses.soft_label_loss(cosines, scores, TAU)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(cosines.grad).all() and loss.min() > 10
    one = losses.one_hot_loss(cosines, TAU)
    assert one[0].item() == pytest.approx(100 + math.log(2), rel=1e-5)


def test_half_precision_cosines_are_computed_in_float32(drawn):
    cosines, scores = (torch.from_numpy(x).float() for x in drawn)
    found = losses.soft_label_loss(cosines.bfloat16(), scores, TAU)
    assert found.dtype == torch.float32
    assert torch.equal(found, losses.soft_label_loss(cosines.bfloat16().float(), scores, TAU))


def test_one_hot_loss_is_the_soft_loss_of_a_sure_teacher_in_one_direction(drawn):
    cosines = drawn[0]
    wanted = -np.log(softmax64(cosines / TAU))[:, 0]
    assert np.abs(losses.one_hot_loss(torch.from_numpy(cosines), TAU).numpy() - wanted).max() < 1e-4


def test_in_batch_loss_equals_the_formula_from_query_to_candidate(drawn):
    rng = np.random.default_rng(1)
    q, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 16, 8)))
    wanted = -np.log(np.diag(softmax64(q @ c.T / 0.1)))
    found = losses.in_batch_loss(torch.from_numpy(q), torch.from_numpy(c), 0.1)
    assert np.abs(found.numpy() - wanted).max() < 1e-5
    other = -np.log(np.diag(softmax64(c @ q.T / 0.1)))
    assert np.abs(other - wanted).max() > 0.1


def test_in_batch_loss_does_not_mask_equal_positives():
    """As VLM2Vec: two queries with one positive share the probability."""
    q = torch.nn.functional.normalize(torch.ones(2, 3), dim=1)
    assert torch.allclose(losses.in_batch_loss(q, q, TAU), torch.full((2,), math.log(2)))


@pytest.mark.parametrize("bad", [float("nan"), -0.01, 1.01, float("inf")])
def test_a_bad_teacher_score_names_its_pair(bad):
    scores = np.full((3, 4), 0.5)
    losses.check_teacher(["a", "b", "c"], scores)
    losses.check_teacher(["a"], np.array([[0.0, 1.0]]))
    scores[1, 2] = bad
    with pytest.raises(ValueError, match=r"pair b: the score of negative 1 is .*outside \[0, 1\]"):
        losses.check_teacher(["a", "b", "c"], scores)
    scores[0, 0] = bad
    with pytest.raises(ValueError, match="pair a: sigma is"):
        losses.check_teacher(["a", "b", "c"], scores)


def test_flat_share_counts_rows_that_tell_nothing_apart():
    rows = np.array([[0.9] * 9, [0.001] * 9, [1.0] + [0.5] * 8, [0.9] + [0.8] * 8])
    assert losses.flat_share(rows, TAU) == 0.5
