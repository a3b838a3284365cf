"""Losses: equal to the plain formula in float64, known values, safe at tau = 0.02; the teacher is checked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unime import config
from unime.train import losses

ROOT = Path(__file__).resolve().parents[1]
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


def published_like(rows: int, seed: int) -> np.ndarray:
    """Scores (rows, 9) that look like the published ones: sigmoid(n * 0.125 / 1.05), n whole; sigma .65, negatives .18 in the mean."""
    rng = np.random.default_rng(seed)
    sigma = np.round(rng.normal(6.5, 10.5, (rows, 1)))
    negatives = np.round(rng.normal(-19.5, 18.0, (rows, 8)))
    steps = np.concatenate([sigma, np.minimum(negatives, sigma - 1)], axis=1)
    return 1 / (1 + np.exp(-steps * 0.125 / 1.05))


def plain_loss(cosines: torch.Tensor, scores: torch.Tensor, tau: float, smoothing: float) -> torch.Tensor:
    """One loss a row, float64, straight from the formula: torch's KL divergence of plain logarithms of plain softmaxes."""
    p, q = torch.softmax(cosines / tau, dim=1), torch.softmax(scores / tau, dim=1)
    q_to_p = torch.nn.functional.kl_div((p + smoothing).log(), q, reduction="none").sum(dim=1)
    p_to_q = torch.nn.functional.kl_div((q + smoothing).log(), p, reduction="none").sum(dim=1)
    return 0.5 * (p_to_q + q_to_p)


def value_and_gradient(loss, cosines: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of a function that gives one loss a row: (rows,) and (rows, C)."""
    given = cosines.clone().requires_grad_()
    found = loss(given)
    found.sum().backward()
    return found.detach().double().numpy(), given.grad.double().numpy()


@pytest.mark.parametrize("smoothing", [0.0, 1e-8])
@pytest.mark.parametrize("spread", ["sd .03", "sd .06", "sd .15", "sd .3", "trained"])
def test_both_forms_equal_float64_on_published_like_scores(smoothing, spread):
    scores = published_like(300, 0)
    gaps = scores[:, :1] - scores[:, 1:]
    assert abs(scores[:, 0].mean() - 0.65) < 0.04 and abs(scores[:, 1:].mean() - 0.18) < 0.03 and gaps.max() > 0.95
    rng = np.random.default_rng(1)
    if spread == "trained":
        cosines = 0.2 + 0.5 * scores + 0.06 * rng.standard_normal(scores.shape)
    else:
        cosines = np.clip(0.5 + float(spread.removeprefix("sd ")) * rng.standard_normal(scores.shape), -1, 1)
    given, target = torch.from_numpy(cosines).float(), torch.from_numpy(scores).float()
    found, slope = value_and_gradient(lambda c: losses.soft_label_loss(c, target, TAU, smoothing), given)
    wanted, wanted_slope = value_and_gradient(lambda c: plain_loss(c, target.double(), TAU, smoothing), given.double())
    assert wanted.max() > 1 and np.abs(wanted_slope).max() > 1
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert np.abs(slope - wanted_slope).max() <= 1e-6 * np.abs(wanted_slope).max()


def test_the_two_forms_differ_where_scores_are_far_apart_and_agree_where_they_are_near():
    """Below 1e-8 the smoothed target asks for nothing more; at tau = 0.02 that is a gap of 0.37 between two scores."""
    rng = np.random.default_rng(2)
    cosines = torch.from_numpy(0.5 + 0.03 * rng.standard_normal((300, 9))).float()
    scores = torch.from_numpy(published_like(300, 0)).float()
    exact, exact_slope = value_and_gradient(lambda c: losses.soft_label_loss(c, scores, TAU), cosines)
    public, public_slope = value_and_gradient(lambda c: losses.soft_label_loss(c, scores, TAU, 1e-8), cosines)
    assert exact.mean() > 1.3 * public.mean()
    assert np.linalg.norm(exact_slope) > 1.3 * np.linalg.norm(public_slope)
    near = torch.from_numpy(rng.uniform(0.4, 0.6, (300, 9))).float()
    exact, exact_slope = value_and_gradient(lambda c: losses.soft_label_loss(c, near, TAU), cosines)
    public, public_slope = value_and_gradient(lambda c: losses.soft_label_loss(c, near, TAU, 1e-8), cosines)
    assert exact.mean() > 0.1
    assert np.abs(exact - public).max() < 1e-3 * exact.max() and np.abs(exact_slope - public_slope).max() < 1e-3 * np.abs(exact_slope).max()


@pytest.mark.parametrize("smoothing", [0.0, 1e-8])
def test_both_forms_are_finite_and_right_at_the_ends(smoothing):
    """Probabilities that underflow float32: cosines of -1 and 1, scores of 0 and 1, at temperatures down to 0.005."""
    cosines = torch.tensor([[-1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    for tau in (0.02, 0.005):
        assert torch.softmax(cosines / 0.005, dim=1).min() == 0, "nothing underflows: nothing is tested"
        found, slope = value_and_gradient(lambda c, tau=tau: losses.soft_label_loss(c, scores, tau, smoothing), cosines)
        assert np.isfinite(found).all() and np.isfinite(slope).all() and found.max() > 5
        log_p, log_q = (torch.log_softmax(x.double() / tau, dim=1) for x in (cosines, scores))
        p, q = log_p.exp(), log_q.exp()
        over_p, over_q = ((p + smoothing).log(), (q + smoothing).log()) if smoothing else (log_p, log_q)
        wanted = 0.5 * (p * (log_p - over_q) + q * (log_q - over_p)).sum(dim=1)
        assert np.abs(found - wanted.numpy()).max() <= 1e-6 * wanted.max()


@pytest.mark.parametrize("smoothing", [0.0, 1e-8])
def test_columns_that_are_left_out_are_as_if_they_were_not_there(drawn, smoothing):
    cosines, scores = (torch.from_numpy(x).float() for x in drawn)
    left_out = torch.zeros(cosines.shape, dtype=torch.bool)
    left_out[:, [2, 5]] = True
    rest = [0, 1, 3, 4, 6, 7, 8]
    whole = value_and_gradient(lambda c: losses.soft_label_loss(c, scores, TAU, smoothing, left_out), cosines)
    short = value_and_gradient(lambda c: losses.soft_label_loss(c, scores[:, rest], TAU, smoothing), cosines[:, rest])
    other = value_and_gradient(lambda c: losses.soft_label_loss(c, scores, TAU, smoothing), cosines)
    assert np.abs(other[0] - whole[0]).max() > 0.1
    assert np.allclose(whole[0], short[0], rtol=1e-6) and np.allclose(whole[1][:, rest], short[1], rtol=1e-5, atol=1e-6)
    assert (whole[1][:, [2, 5]] == 0).all()
    right = torch.full((len(cosines),), 3)
    whole = value_and_gradient(lambda c: losses.one_hot_loss(c, TAU, right, left_out), cosines)
    short = value_and_gradient(lambda c: losses.one_hot_loss(c, TAU, torch.full_like(right, 2)), cosines[:, rest])
    assert np.allclose(whole[0], short[0], rtol=1e-6) and np.allclose(whole[1][:, rest], short[1], rtol=1e-5, atol=1e-6)
    assert (whole[1][:, [2, 5]] == 0).all()


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


def test_in_batch_loss_masks_nothing_but_what_it_is_told_to():
    """As VLM2Vec: two queries with one positive share the probability; left out, the other query's positive takes none."""
    q = torch.nn.functional.normalize(torch.ones(2, 3), dim=1)
    assert torch.allclose(losses.in_batch_loss(q, q, TAU), torch.full((2,), math.log(2)))
    assert torch.allclose(losses.in_batch_loss(q, q, TAU, ~torch.eye(2, dtype=torch.bool)), torch.zeros(2))


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


def test_settings_of_the_losses_are_bounded():
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    found = config.parse(values).train
    assert (found.unime_v2.smoothing, found.in_batch.mask, found.unime_v2.in_batch_negatives) == (1e-8, "labelled", False)
    values["train"]["unime_v2"]["smoothing"] = 0
    assert config.parse(values).train.unime_v2.smoothing == 0
    values["train"]["unime_v2"] |= {"smoothing": -1e-8}
    values["train"]["in_batch"] |= {"mask": "labeled"}
    values["train"]["hard_negatives"] |= {"smoothing": 0.0}
    with pytest.raises(config.ConfigError) as refused:
        config.parse(values)
    said = str(refused.value)
    assert "train.unime_v2.smoothing: -1e-08: Input should be greater than or equal to 0" in said
    assert "train.in_batch.mask: 'labeled' is not one of 'none', 'equal' or 'labelled'; nearest: 'labelled'" in said
    assert "train.hard_negatives.smoothing: unknown key" in said, "a one-hot target has none"
