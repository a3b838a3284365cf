"""Gradients: accumulated = full batch = plain formula, dense and lean layers = peft's, checkpointed = not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from training import KINDS, accumulator, gradient_of, table_of, write_data

from unime.train import dense, lean
from unime.train.data import batch_at
from unime.train.loop import prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_full_batchs_gradient(kind, folder, nano):
    found = {}
    for micro in (8 if kind != "in_batch" else 1000, 3):
        model, accumulate = accumulator(kind, folder, nano, micro=micro, lora__dropout=0.0)
        found[micro] = gradient_of(model, accumulate, batch_at(0, 24, 8, 1))
    (loss, full), *rest = found.values()
    assert full.abs().max() > 1e-3, "no gradient: nothing is compared"
    for other_loss, other in rest:
        assert other_loss == pytest.approx(loss, abs=1e-5 * max(1, loss))
        assert (other - full).abs().max() < 1e-5 * max(1, full.abs().max())


@pytest.mark.parametrize("smoothing", [0.0, 1e-8])
def test_the_soft_loss_over_a_batch_is_the_formula_item_by_item(folder, nano, smoothing):
    """No dedupe, no grouping, no cache: each query's items one at a time, in float64 after the embedding."""
    model, accumulate = accumulator("unime_v2", folder, nano, micro=8, lora__dropout=0.0, smoothing=smoothing)
    batch = batch_at(0, 24, 3, 1)
    loss, full = gradient_of(model, accumulate, batch)
    model.zero_grad()
    backbone, items, table = accumulate.backbone, accumulate.shown.items, table_of(folder, "unime_v2")
    total = 0
    for row in batch.rows:
        mined = table.row(row, named=True)
        ids = [mined["query"], mined["positive"], *mined["negatives"][:8]]
        query, *candidates = (backbone.embed(backbone.collate([backbone.item_prompt(items[id])]))[0].double() for id in ids)
        p = torch.softmax(torch.stack([query @ c for c in candidates]) / 0.02, 0)
        q = torch.softmax(torch.tensor([mined["sigma"], *mined["scores"][:8]], dtype=torch.float64) / 0.02, 0)
        total = total + 0.5 * ((p * (p / (q + smoothing)).log()).sum() + (q * (q / (p + smoothing)).log()).sum()) / 3
    total.backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert loss == pytest.approx(total.item(), rel=1e-5)
    assert (plain - full).abs().max() < 1e-5 * full.abs().max() and full.abs().max() > 1e-3


def test_dropout_changes_the_gradient(folder, nano):
    """Else the tests with dropout on compare nothing."""
    model, accumulate = accumulator("unime_v2", folder, nano, lora__dropout=0.1)
    batch = batch_at(0, 24, 8, 1)
    first = gradient_of(model, accumulate, batch)[1]
    assert torch.equal(first, gradient_of(model, accumulate, batch)[1])
    other = gradient_of(model, accumulate, batch._replace(seed=2))[1]
    assert (first - other).abs().max() > 1e-3 * first.abs().max()


@pytest.mark.parametrize(("dora", "dropout"), [(True, 0.1), (True, 0.0), (False, 0.0)])
def test_dense_layers_are_pefts(folder, nano, dora, dropout):
    """In float64, where only a wrong formula can differ; the same draws, because peft's layers are given the fast dropout too."""
    model, accumulate = accumulator("unime_v2", folder, nano, lora__dora=dora, lora__dropout=dropout)
    model.double()
    layers = [module for module in model.modules() if isinstance(module, dense.Linear)]
    for layer in layers if dropout else []:
        layer.lora_dropout["default"] = dense.Dropout(dropout).train()
    batch = batch_at(0, 24, 8, 1)
    loss, plain = gradient_of(model, accumulate, batch)
    for layer in layers if dropout else []:
        layer.lora_dropout["default"] = torch.nn.Dropout(dropout).train()
    assert dense.use(model) == len(layers) == 42
    found_loss, found = gradient_of(model, accumulate, batch)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert (found - plain).abs().max() < 1e-6 * plain.abs().max() and plain.abs().max() > 1e-3


def test_dense_leaves_lora_with_dropout_alone(folder, nano):
    model, _ = accumulator("unime_v2", folder, nano, lora__dora=False, lora__dropout=0.1)
    assert dense.use(model) == 0


@pytest.mark.parametrize(("dora", "dropout"), [(True, 0.1), (True, 0.0), (False, 0.1), (False, 0.0)])
def test_lean_layers_are_pefts(folder, nano, dora, dropout):
    """In float64, where only a wrong formula can differ; both take dropout's mask from torch's global generator."""
    model, accumulate = accumulator("unime_v2", folder, nano, lora__dora=dora, lora__dropout=dropout)
    model.double()
    batch = batch_at(0, 24, 8, 1)
    loss, plain = gradient_of(model, accumulate, batch)
    assert lean.use(model) == 42
    found_loss, found = gradient_of(model, accumulate, batch)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert (found - plain).abs().max() < 1e-6 * plain.abs().max() and plain.abs().max() > 1e-3


@pytest.mark.parametrize("foreach", [False, True])
def test_lean_layers_notice_an_optimizers_step(folder, nano, foreach):
    """What is kept from pass to pass may not outlive the weights that it was made of."""
    model, accumulate = accumulator("unime_v2", folder, nano, lora__dropout=0.0)
    lean.use(model)
    batch, trained = batch_at(0, 24, 8, 1), [p for p in model.parameters() if p.requires_grad]
    before = gradient_of(model, accumulate, batch)[0]
    torch.optim.AdamW(trained, lr=0.01, foreach=foreach).step()
    after, kept = gradient_of(model, accumulate, batch)
    lean.use(model)
    fresh, again = gradient_of(model, accumulate, batch)
    assert after == fresh and after != pytest.approx(before, rel=1e-3) and torch.equal(kept, again)


def test_lean_layers_train_in_bfloat16_as_in_float32(folder, nano):
    """Gradients are off by bfloat16's rounding, as peft's are, whose low-rank products are float32."""
    batch, found = batch_at(0, 24, 8, 1), {}
    for name, kind, layers in (("exact", torch.float32, lean), ("lean", torch.bfloat16, lean), ("peft", torch.bfloat16, None)):
        model, accumulate = accumulator("unime_v2", folder, nano, lora__dropout=0.0)
        for parameter in model.parameters():
            parameter.data = parameter.data if parameter.requires_grad else parameter.data.to(kind)
        if layers:
            layers.use(model)
        found[name] = gradient_of(model, accumulate, batch)[1]
    off = {name: ((found[name] - found["exact"]).norm() / found["exact"].norm()).item() for name in ("lean", "peft")}
    assert 0 < off["lean"] < 2 * off["peft"] < 0.2, off


@pytest.mark.parametrize("kind", ["unime_v2", "in_batch", "reranker"])
def test_a_layer_run_twice_gives_the_same_gradient(kind, folder, nano, monkeypatch):
    """Gradient checkpointing, with dropout: the second run of a layer must draw what the first drew."""
    batch, found, runs = batch_at(0, 24, 8, 1), {}, {}
    for twice in (False, True):
        model, accumulate = accumulator(kind, folder, nano, lora__dropout=0.1)
        runs[twice] = 0

        def counted(*_, twice=twice):
            runs[twice] += 1

        accumulate.backbone.core.language_model.layers[0].mlp.register_forward_pre_hook(counted)
        if twice:
            prepared(accumulate.backbone, SimpleNamespace(batch_tokens=4096, gradient_checkpointing=True), "ddp", accumulate.accelerator)
        else:
            lean.use(model)
        found[twice] = gradient_of(model, accumulate, batch)
    assert runs[True] > runs[False] > 0
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6)
    assert (found[True][1] - found[False][1]).abs().max() < 1e-6 * found[False][1].abs().max()


def test_small_passes_give_the_same_gradient(folder, nano):
    batch, found = batch_at(0, 24, 8, 1), {}
    for budget in (None, 40):
        model, accumulate = accumulator("unime_v2", folder, nano, lora__dropout=0.0)
        accumulate.budget = budget
        passes, _ = accumulate.passes([id for row in batch.rows for id in accumulate.items[row]])
        found[budget] = len(passes), gradient_of(model, accumulate, batch)[1]
    assert found[40][0] > found[None][0]
    assert (found[40][1] - found[None][1]).abs().max() < 1e-5 * found[None][1].abs().max()


def test_fast_dropout_drops_the_share_it_is_asked_to():
    layer, x = dense.Dropout(0.1), torch.ones(1000, 1001)
    torch.manual_seed(0)
    y = layer(x)
    dropped = (y == 0).float()
    assert dropped.mean().item() == pytest.approx(0.1, abs=0.001) and y.max().item() == pytest.approx(1 / 0.9)
    assert y.mean().item() == pytest.approx(1, abs=0.002)
    for place in range(4):  # the four draws of a word, and neighbours, are independent
        assert dropped.flatten()[place::4].mean().item() == pytest.approx(0.1, abs=0.002)
    assert (dropped.flatten()[1:] * dropped.flatten()[:-1]).mean().item() == pytest.approx(0.01, abs=0.0005)
    assert layer.eval()(x) is x
