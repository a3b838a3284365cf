"""Train UniME-V2's embedder on the mined negatives, the judge's scores as soft target."""

from __future__ import annotations

from unime.doors._train import mined

DOOR = mined("unime_v2")
