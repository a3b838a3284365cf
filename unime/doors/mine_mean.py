"""Sift the candidates of all training sets by the mean of several judges' scores."""

from __future__ import annotations

from unime.doors._mine import all_sets

DOOR = all_sets("judge.means", "results/judge_means")
