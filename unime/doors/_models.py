"""What every door that opens a model knows of the configuration, beside the model's folder."""

from __future__ import annotations

MODEL = ("models.dtype", "models.device", "models.max_length")
