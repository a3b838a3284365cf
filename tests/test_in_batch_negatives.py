"""Losses that see the whole batch: equal to a plain implementation under each mask, in one pass, through GradCache, over processes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import Accelerator
from test_processes import torchrun
from torch import Tensor, nn
from training import table_of, view_of, write_data

from unime import backbones
from unime.backbones import Backbone
from unime.config import View
from unime.data.images import Decoding
from unime.data.items import Items
from unime.lanes import ONE, GradientLanes
from unime.train import embedder, negatives
from unime.train.coupled import Coupled
from unime.train.data import Batch, Shown
from unime.train.queries import Mined

PAIRS = [
    ("q00", "c00"),
    ("q00", "c01"),  # the same query again: its two positives are both labelled
    ("q01", "c00"),  # another query with the same positive
    ("q02", "c02"),
    ("q03", "c03"),
    ("q04", "c04"),
    ("q05", "c05"),
    ("q06", "c06"),
    ("q02", "c03"),  # not in the batch, but q02 has c03, the positive of q03, as a labelled positive
]
BATCH = Batch(0, 0, [3, 0, 4, 1, 2, 7, 5, 6], 1)
KINDS = ("in_batch", "hard_negatives", "unime_v2")
MASKS = ("none", "equal", "labelled")
CASES = [(kind, mask, smoothing) for kind in KINDS for mask in MASKS for smoothing in ((0.0, 1e-8) if kind == "unime_v2" else (0.0,))]


def gradient_of(model: nn.Module, accumulate: Coupled, batch: Batch, lanes: GradientLanes = ONE) -> tuple[float, Tensor]:
    """The loss of a batch, and the gradient of all adapters in one vector."""
    model.zero_grad()
    loss, _ = accumulate(batch, lanes)
    parts = [parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad]
    return loss, torch.cat(parts)


class Setting(NamedTuple):
    """A backbone whose adapters are away from their start, and the items and rows that it is trained on."""

    backbone: Backbone
    items: Items
    table: pl.DataFrame


def setting_of(folder: Path, nano: Path, dropout: float = 0.0) -> Setting:
    view = view_of("unime_v2", folder, nano, lora__dropout=dropout)
    backbone = backbones.load(nano, models=view.models, train=True)
    backbone.add_lora(view.train.lora, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    backbone.model.train()
    queries, positives = zip(*PAIRS, strict=True)
    table = table_of(folder, "unime_v2").head(len(PAIRS)).with_columns(query=pl.Series(queries), positive=pl.Series(positives))
    return Setting(backbone, Items.open(folder, Decoding(10**6)), table)


def settings_of(kind: str, mask: str, smoothing: float, micro: int, folder: Path, nano: Path) -> View:
    changes = {"mask": mask, "micro": micro}
    if kind != "in_batch":
        changes |= {"in_batch_negatives": True, "negatives": 4}
    if kind == "unime_v2":
        changes |= {"smoothing": smoothing}
    return getattr(view_of(kind, folder, nano, **changes).train, kind)


def coupled(setting: Setting, kind: str, mask: str, smoothing: float, micro: int, folder: Path, nano: Path) -> Coupled:
    settings = settings_of(kind, mask, smoothing, micro, folder, nano)
    shown = Shown(setting.backbone, setting.items)
    return embedder.accumulator(kind, shown, setting.table, settings, Accelerator(cpu=True))


def plain_loss(kind: str, mask: str, smoothing: float, table: pl.DataFrame, vectors: dict[str, Tensor]) -> Tensor:
    """The batch's mean loss, one query and one candidate at a time, in float64."""
    pairs = set(zip(table["query"], table["positive"], strict=True))
    rows = [table.row(row, named=True) for row in BATCH.rows]
    lists = [[row["positive"], *(row["negatives"][:4] if kind != "in_batch" else [])] for row in rows]
    total = torch.zeros((), dtype=torch.float64)
    for place, row in enumerate(rows):
        own = lists[place]
        logits = [vectors[row["query"]] @ vectors[candidate] / 0.02 for candidate in own]
        scores = [row["sigma"], *row["scores"][: len(own) - 1]]
        for other, candidates in enumerate(lists):
            for candidate in candidates:
                if other == place or (mask != "none" and candidate in own):
                    continue
                if mask == "labelled" and (row["query"], candidate) in pairs:
                    continue
                logits.append(vectors[row["query"]] @ vectors[candidate] / 0.02)
                scores.append(0.0)
        p = torch.softmax(torch.stack(logits), 0)
        if kind != "unime_v2":
            total = total - p[0].log()
            continue
        q = torch.softmax(torch.tensor(scores, dtype=torch.float64) / 0.02, 0)
        total = total + 0.5 * (p * (p.log() - (q + smoothing).log())).sum() + 0.5 * (q * (q.log() - (p + smoothing).log())).sum()
    return total / len(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


@pytest.fixture(scope="module")
def setting(folder, nano) -> Setting:
    return setting_of(folder, nano)


@pytest.fixture(scope="module")
def plain(setting) -> dict[tuple[str, str, float], tuple[float, Tensor]]:
    """Loss and gradient of each case, from every item's embedding by itself."""
    backbone, items, table = setting
    shown = {id for row in table.iter_rows(named=True) for id in (row["query"], row["positive"], *row["negatives"])}
    vectors = {id: backbone.embed(backbone.collate([backbone.item_prompt(items[id])]))[0].double() for id in sorted(shown)}
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    found = {}
    for case in CASES:
        value = plain_loss(*case, table, vectors)
        gradient = torch.autograd.grad(value, parameters, retain_graph=True)
        found[case] = value.item(), torch.cat([part.flatten() for part in gradient])
    return found


def test_masks_and_forms_of_the_loss_differ_on_this_batch(plain):
    """By more than the 1e-5 of the largest gradient that the tests below allow; else they compare nothing."""
    for kind in KINDS:
        for one, other in itertools.combinations([case for case in CASES if case[0] == kind], 2):
            scale = plain[one][1].abs().max()
            assert scale > 1e-2 and (plain[one][1] - plain[other][1]).abs().max() > 3e-5 * scale, (one, other)


@pytest.mark.parametrize("micro", [1000, 3])
@pytest.mark.parametrize(("kind", "mask", "smoothing"), CASES)
def test_loss_and_gradient_equal_a_plain_implementation(setting, plain, folder, nano, kind, mask, smoothing, micro):
    """All queries in one forward pass, and GradCache over micro-batches."""
    accumulate = coupled(setting, kind, mask, smoothing, micro, folder, nano)
    assert len(accumulate.own_micro_batches(BATCH)) == (1 if micro == 1000 else 3 if kind != "in_batch" else 8)
    loss, gradient = gradient_of(setting.backbone.model, accumulate, BATCH)
    wanted, slope = plain[kind, mask, smoothing]
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert (gradient - slope).abs().max() < 1e-5 * slope.abs().max()


def test_without_in_batch_negatives_a_querys_loss_is_its_own(setting, folder, nano):
    settings = settings_of("unime_v2", "none", 0.0, 8, folder, nano).model_copy(update={"in_batch_negatives": False})
    accumulate = embedder.accumulator("unime_v2", Shown(setting.backbone, setting.items), setting.table, settings, Accelerator(cpu=True))
    assert type(accumulate) is Mined
    alone = [gradient_of(setting.backbone.model, accumulate, BATCH._replace(rows=[row]))[0] for row in BATCH.rows]
    whole = gradient_of(setting.backbone.model, accumulate, BATCH)[0]
    assert whole == pytest.approx(np.mean(alone), rel=1e-5)
    settings = settings.model_copy(update={"in_batch_negatives": True})
    accumulate = embedder.accumulator("unime_v2", Shown(setting.backbone, setting.items), setting.table, settings, Accelerator(cpu=True))
    assert gradient_of(setting.backbone.model, accumulate, BATCH)[0] != pytest.approx(whole, rel=1e-2)


@pytest.mark.parametrize("mask", ["equal", "labelled"])
def test_what_is_left_out_follows_the_rule_candidate_by_candidate(mask):
    rng = np.random.default_rng(0)
    ids = [f"c{k}" for k in range(12)]
    for _ in range(50):
        table = pl.DataFrame({"query": rng.choice(["q0", "q1", "q2", "q3"], 20), "positive": rng.choice(ids, 20)}).unique()
        pairs = set(table.iter_rows())
        rows = [table.row(row) for row in rng.permutation(len(table))[:6]]
        lists = [[query, positive, *rng.choice(ids, 2)] for query, positive in rows]
        found = negatives.left_out(mask, lists, negatives.labelled_positives(table))
        assert found.shape == (6, 18) and found.any()
        for row, column in itertools.product(range(6), range(18)):
            candidate = lists[column // 3][1 + column % 3]
            wanted = candidate in lists[row][1:] or (mask == "labelled" and (lists[row][0], candidate) in pairs)
            assert found[row, column] == (wanted and column // 3 != row)


@pytest.mark.parametrize("kind", ["in_batch", "hard_negatives", "unime_v2"])
def test_labels_that_the_trained_table_lacks_are_masked(setting, plain, folder, nano, kind):
    """Without its last pair (not mined, or left out by data.cap) the table does not say that c03 is right for q02; the labels do."""
    settings, shown = settings_of(kind, "labelled", 0.0, 1000, folder, nano), Shown(setting.backbone, setting.items)
    table = setting.table.head(len(PAIRS) - 1)
    pairs = setting.table.select("pair", "dataset", row=pl.int_range(pl.len(), dtype=pl.Int64), query="query", positive="positive")
    found = {}
    for name, known in (("table", None), ("pairs", pairs)):
        accumulate = embedder.accumulator(kind, shown, table, settings, Accelerator(cpu=True), labels=known)
        found[name] = gradient_of(setting.backbone.model, accumulate, BATCH)
    loss, gradient = plain[kind, "labelled", 0.0]
    largest = gradient.abs().max()
    assert found["pairs"][0] == pytest.approx(loss, rel=1e-5)
    assert (found["pairs"][1] - gradient).abs().max() < 1e-5 * largest
    assert (found["table"][1] - gradient).abs().max() > 1e-4 * largest, "the mined table knows all labels: nothing is compared"


def test_no_mask_leaves_nothing_out_and_labels_are_of_queries_in_several_pairs_only():
    table = pl.DataFrame({"query": ["a", "a", "b", "b"], "positive": ["x", "y", "z", "z"]})
    assert negatives.labelled_positives(table) == {"a": {"x", "y"}}
    more = pl.DataFrame({"query": ["b", "c"], "positive": ["w", "x"]})
    assert negatives.labelled_positives(table, more) == {"a": {"x", "y"}, "b": {"z", "w"}}
    assert negatives.left_out("none", [["a", "x"], ["b", "x"]], {}) is None
    assert negatives.left_out("equal", [["a", "x"], ["b", "x"], ["c", "y"]], {}).sum() == 2


SCRIPT = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
torch.set_num_threads(1)
folder, nano, out = map(Path, sys.argv[1:])
from test_in_batch_negatives import BATCH, CASES, coupled, gradient_of, setting_of
accelerator, setting = Accelerator(cpu=True), setting_of(folder, nano)
assert accelerator.num_processes == 2
found = {}
for number, case in enumerate(CASES):
    for queries in (4, 2):  # one micro-batch each, two each through GradCache
        micro = 2 * queries if case[0] == "in_batch" else queries
        loss, gradient = gradient_of(setting.backbone.model, coupled(setting, *case, micro, folder, nano), BATCH)
        sums = torch.cat([torch.tensor([loss], dtype=torch.float64), gradient.double()])
        found[f"{number} {queries}"] = accelerator.reduce(sums, reduction="sum")
if accelerator.is_main_process:
    save_file(found, out)
"""


@pytest.mark.slow
def test_two_processes_together_have_the_gradient_of_the_plain_implementation(plain, folder, nano, tmp_path):
    from safetensors.torch import load_file

    done = torchrun(2, tmp_path / "two.py", SCRIPT, folder, nano, tmp_path / "sums.safetensors")
    assert done.returncode == 0, done.stderr[-5000:]
    found = load_file(tmp_path / "sums.safetensors")
    assert len(found) == 2 * len(CASES)
    for name, sums in found.items():
        wanted, slope = plain[CASES[int(name.split()[0])]]
        assert sums[0].item() == pytest.approx(wanted, rel=1e-5), name
        assert (sums[1:] - slope).abs().max() < 1e-5 * slope.abs().max(), name
