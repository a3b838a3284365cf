"""Sift the candidates of all training sets by a further judge's scores."""

from __future__ import annotations

from unime.doors._mine import all_sets

DOOR = all_sets("judge.models", "results/judges")
