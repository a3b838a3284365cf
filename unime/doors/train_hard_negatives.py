"""Train an embedder on the mined negatives with a one-hot target, the ablation's row."""

from __future__ import annotations

from unime.doors._train import mined

DOOR = mined("hard_negatives")
