"""What every door that opens a model knows of the configuration, beside the model's folder."""

from __future__ import annotations

MODEL = ("models.dtype", "models.device", "models.attention", "models.max_length")
# Of the backends' settings only the chosen one's.
JUDGE = ("judge.backend", "judge.image_size", "judge.prompt", "judge.shard", "judge.{judge.backend}")
