"""Losses that see the whole batch draw the same dropout whichever way a batch goes: lanes, GradCache, several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_in_batch_negatives import BATCH, KINDS, Setting, coupled, gradient_of, setting_of
from test_processes import torchrun
from torch import Tensor
from training import write_data

from unime.lanes import GradientLanes
from unime.train import dense, gradcache


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


class Cached(GradientLanes):
    """Sends a single micro-batch the way that several go."""

    def backward(self, embed: Callable, passes: Sequence, loss: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return gradcache.backward(embed, passes, loss)


@pytest.fixture(scope="module")
def dropping(folder, nano) -> Setting:
    """With the layers that small models get on a CPU, whose dropout draws from the pass's own generator where there is one."""
    setting = setting_of(folder, nano, dropout=0.1)
    assert dense.use(setting.backbone.model) > 0
    return setting


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_the_same_in_the_lanes_and_through_gradcache(dropping, folder, nano, kind):
    accumulate = coupled(dropping, kind, "none", 0.0, 1000, folder, nano)
    model = dropping.backbone.model
    assert len(accumulate.own_micro_batches(BATCH)) == 1, "the lanes are not used"
    loss, gradient = gradient_of(model, accumulate, BATCH)
    largest = gradient.abs().max()
    for lanes in (Cached(1), GradientLanes(2)):
        other_loss, other = gradient_of(model, accumulate, BATCH, lanes)
        assert other_loss == pytest.approx(loss, rel=1e-6), type(lanes)
        assert (other - gradient).abs().max() < 1e-6 * largest, type(lanes)
    redrawn, slope = gradient_of(model, accumulate, BATCH._replace(seed=2))
    assert abs(redrawn - loss) > 1e-4 * loss and (slope - gradient).abs().max() > 1e-3 * largest, "no dropout: nothing is compared"


DROPPING = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
torch.set_num_threads(1)
folder, nano, out = map(Path, sys.argv[1:])
from test_in_batch_negatives import BATCH, coupled, gradient_of, setting_of
from unime.train import dense
accelerator, setting = Accelerator(cpu=True), setting_of(folder, nano, dropout=0.1)
dense.use(setting.backbone.model)
accumulate = coupled(setting, "unime_v2", "labelled", 1e-8, 4, folder, nano)
assert accelerator.num_processes == 2 and len(accumulate.own_micro_batches(BATCH)) == 1
loss, gradient = gradient_of(setting.backbone.model, accumulate, BATCH)
sums = accelerator.reduce(torch.cat([torch.tensor([loss], dtype=torch.float64), gradient.double()]), reduction="sum")
if accelerator.is_main_process:
    save_file({"sums": sums}, out)
"""


@pytest.mark.slow
def test_two_processes_with_a_micro_batch_each_drop_what_one_with_both_drops(dropping, folder, nano, tmp_path):
    """They use the lanes, it uses GradCache."""
    from safetensors.torch import load_file

    accumulate = coupled(dropping, "unime_v2", "labelled", 1e-8, 4, folder, nano)
    assert len(accumulate.own_micro_batches(BATCH)) == 2
    loss, gradient = gradient_of(dropping.backbone.model, accumulate, BATCH)
    done = torchrun(2, tmp_path / "two.py", DROPPING, folder, nano, tmp_path / "sums.safetensors")
    assert done.returncode == 0, done.stderr[-5000:]
    sums = load_file(tmp_path / "sums.safetensors")["sums"]
    assert sums[0].item() == pytest.approx(loss, rel=1e-5)
    assert (sums[1:] - gradient).abs().max() < 1e-5 * gradient.abs().max()
