"""The paper's figures on MMEB (arXiv 2510.13515v3, tables 1, 3 and 5), to stand beside a run of the same 36 tasks.

Precision@1 in percent, to one decimal as published.  Tables 3 and 5 give the mean over all tasks only.
"""

from __future__ import annotations

from unime.evaluate.tasks import MEANS

_FULL = """
VLM2Vec (Qwen2-VL 2B)           59.0 49.4 65.4 73.4 66.0 52.6 60.1
VLM2Vec (Qwen2-VL 7B)           62.6 57.8 69.9 81.7 72.2 57.8 65.8
LLaVE (LLaVA-OneVision 7B)      65.7 65.4 70.9 91.9 75.0 64.4 70.3
QQMM (LLaVA-OneVision 7B)       66.8 66.8 70.5 90.4 74.7 65.6 70.7
UniME (Qwen2-VL 2B)             59.0 53.4 64.9 69.6 65.5 54.6 60.6
UniME (Qwen2-VL 7B)             64.7 59.0 71.6 82.7 72.2 61.4 67.4
UniME (LLaVA-OneVision 7B)      66.8 66.6 70.5 90.9 74.6 65.8 70.7
UniME-V2 (Qwen2-VL 2B)          62.1 56.3 68.0 72.7 67.4 58.9 63.6
UniME-V2 (Qwen2-VL 7B)          64.0 60.1 73.1 82.8 72.0 63.0 68.0
UniME-V2 (LLaVA-OneVision 7B)   65.3 67.6 72.9 90.2 74.8 66.7 71.2
"""
_OVERALL = """
in-batch only (Qwen2-VL 2B, ablation)           60.1
hard negatives (Qwen2-VL 2B, ablation)          61.6
UniME-V2 (Qwen2-VL 2B) + LamRA's reranker       67.3
UniME-V2 (Qwen2-VL 7B) + LamRA's reranker       69.1
UniME-V2 (Qwen2-VL 2B) + reranker               67.6
UniME-V2 (Qwen2-VL 7B) + reranker               69.6
"""


def _rows(block: str, means: tuple[str, ...]) -> dict[str, dict[str, float]]:
    rows = {}
    for line in block.strip().splitlines():
        words = line.split()
        name, figures = words[: -len(means)], words[-len(means) :]
        rows[" ".join(name)] = {mean: float(figure) for mean, figure in zip(means, figures, strict=True)}
    return rows


PUBLISHED: dict[str, dict[str, float]] = _rows(_FULL, MEANS) | _rows(_OVERALL, ("overall",))
"""Row -> mean -> percent; only the means that the paper gives."""
