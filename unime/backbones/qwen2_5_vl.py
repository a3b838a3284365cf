"""Qwen2.5-VL: as Qwen2-VL, with a vision tower that attends in windows.  Positions are Qwen2-VL's, in chat prompts and in raw text: the
time scale that the model adds applies to videos only."""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration

from unime.backbones.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    MODEL = Qwen2_5_VLForConditionalGeneration
