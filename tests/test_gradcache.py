"""GradCache equals plain backward, dropout on: same chunks, same random draws, same gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unime import backbones
from unime.data.items import Content
from unime.train import dense, gradcache, losses


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def in_batch(embeddings: Tensor) -> Tensor:
    half = len(embeddings) // 2
    return losses.in_batch_loss(embeddings[:half], embeddings[half:], 0.02).mean()


def compare(model: nn.Module, embed, chunks) -> None:
    """Plain and cached gradients agree to 1e-5, and neither the dropout nor the replay is idle."""
    model.train()
    torch.manual_seed(3)
    value = in_batch(torch.cat([embed(chunk) for chunk in chunks]))
    value.backward()
    after, plain = torch.get_rng_state(), gradients(model)
    model.zero_grad()

    torch.manual_seed(3)
    cached = gradcache.backward(embed, chunks, in_batch)
    found = gradients(model)
    assert cached.item() == pytest.approx(value.item(), abs=1e-6) and not cached.requires_grad
    assert torch.equal(torch.get_rng_state(), after), "the random state is not where a plain pass leaves it"
    scale = max(gradient.abs().max() for gradient in plain.values())
    assert scale > 1e-3, "no gradient: nothing is compared"
    for name, gradient in plain.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * max(1, scale), name

    model.zero_grad()
    torch.manual_seed(4)
    gradcache.backward(embed, chunks, in_batch)
    other = gradients(model)
    assert max((other[n] - plain[n]).abs().max() for n in plain) > 1e-3 * scale, "dropout does nothing: replay is not tested"


def test_a_small_network_with_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.3), nn.Tanh(), nn.Linear(32, 4))
    data = torch.randn(12, 6)
    compare(model, lambda x: nn.functional.normalize(model(x), dim=1), data.split([5, 4, 1, 2]))


@pytest.mark.parametrize(("dora", "fast"), [(True, False), (True, True), (False, False)])
def test_a_backbone_with_lora_dropout(nano, config, dora, fast):
    backbone = backbones.load(nano, models=config.models.model_copy(update={"device": "cpu"}), train=True)
    backbone.add_lora(config.train.lora.model_copy(update={"dora": dora, "dropout": 0.1, "rank": 4}), 0)
    with torch.no_grad():  # LoRA starts at zero, where dropout has no effect on the output
        for parameter in [p for p in backbone.model.parameters() if p.requires_grad]:
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert not fast or dense.use(backbone.model) == 42
    words = ["ring", "a red circle", "cross", "a small blue triangle at the top", "big square", "star", "a", "green ring at the left"]
    encoded = [backbone.encode(backbone.item_prompt(Content(word, None))) for word in words]
    compare(backbone.model, lambda chunk: backbone.embed(backbone.collate(chunk)), [encoded[:3], encoded[3:4], encoded[4:]])


def test_one_chunk_is_enough():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    compare_to = torch.randn(4, 3)
    in_batch(nn.functional.normalize(model(compare_to), dim=1)).backward()
    plain = gradients(model)
    model.zero_grad()
    gradcache.backward(lambda x: nn.functional.normalize(model(x), dim=1), [compare_to], in_batch)
    assert all(torch.allclose(plain[n], g, atol=1e-6) for n, g in gradients(model).items())
