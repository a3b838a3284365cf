"""The paper's figures on MMEB and on the cross-modal sets (arXiv 2510.13515v3), to stand beside a run of the same tasks.

Precision@1, Recall@1 and SugarCrepe's accuracy in percent, to one decimal as published.  Tables 3 and 5 give the mean over all of MMEB
and the cross-modal groups' means only.

Directions: of each pair of columns the paper marks the first as image to text.  Its public code (`evaluate_recall`) prints under that
mark what it computes with captions as queries and images as the pool, so the first figure is text to image, and stands as `_t2i` here.
The figures say the same: an image may hit any of five captions in Flickr30K and COCO, which makes image to text the easier direction.
A mean is the same either way.
"""

from __future__ import annotations

from collections.abc import Sequence

from unime.evaluate.tasks import CAPTIONS, MEANS

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
_COLUMNS = (
    "Flickr30K_t2i Flickr30K_i2t COCO_t2i COCO_i2t ShareGPT4V_t2i ShareGPT4V_i2t Urban1K_t2i Urban1K_i2t "
    "SugarCrepe_replace SugarCrepe_swap SugarCrepe_add"
).split()
_CROSSMODAL = """
UniME-V2 (Qwen2-VL 2B)          79.8 89.9 53.7 65.1 91.6 94.2 95.6 92.2 70.9 51.2 70.2
UniME-V2 (Qwen2-VL 7B)          84.6 93.5 57.3 70.3 94.3 95.2 97.2 96.3 77.8 62.2 79.0
UniME-V2 (LLaVA-OneVision 7B)   85.5 93.7 60.9 74.1 95.1 94.1 96.3 96.7 88.6 73.7 90.5
"""
_GROUPS = """
in-batch only (Qwen2-VL 2B, ablation)           63.4 82.2 60.0
hard negatives (Qwen2-VL 2B, ablation)          68.9 89.8 63.7
UniME-V2 (Qwen2-VL 2B)                          72.1 93.4 64.1
UniME-V2 (Qwen2-VL 7B)                          76.4 95.8 73.0
UniME-V2 (Qwen2-VL 2B) + LamRA's reranker       76.4 96.4 87.4
UniME-V2 (Qwen2-VL 7B) + LamRA's reranker       78.3 97.2 87.4
UniME-V2 (Qwen2-VL 2B) + reranker               76.4 96.9 94.8
UniME-V2 (Qwen2-VL 7B) + reranker               78.7 97.5 94.8
"""


def _rows(block: str, means: Sequence[str]) -> dict[str, dict[str, float]]:
    rows = {}
    for line in block.strip().splitlines():
        words = line.split()
        name, figures = words[: -len(means)], words[-len(means) :]
        rows[" ".join(name)] = {mean: float(figure) for mean, figure in zip(means, figures, strict=True)}
    return rows


PUBLISHED: dict[str, dict[str, float]] = _rows(_FULL, MEANS) | _rows(_OVERALL, ("overall",))
"""Row -> mean -> percent; only the means that the paper gives."""

_BY_COLUMN, _BY_GROUP = _rows(_CROSSMODAL, _COLUMNS), _rows(_GROUPS, tuple(CAPTIONS))
PUBLISHED_CROSSMODAL: dict[str, dict[str, float]] = {
    name: _BY_GROUP.get(name, {}) | _BY_COLUMN.get(name, {}) for name in PUBLISHED if name in _BY_GROUP or name in _BY_COLUMN
}
"""Row -> group (its mean) or cross-modal column -> percent; only what the paper gives."""

_ABLATIONS = """
components  in-batch only                60.1 63.4 82.2 60.0
components  + mined hard negatives       61.6 68.9 89.8 63.7
components  + soft scores (UniME-V2)     63.6 72.1 93.4 64.1
judge       judged by Qwen2.5-VL-7B      63.6 72.1 93.4 64.1
judge       judged by InternVL3-8B       58.5 70.2 91.3 64.1
judge       judged by InternVL3-14B      63.2 72.9 93.1 63.2
negatives   k = 4                        61.3 69.2 91.0 62.4
negatives   k = 6                        61.8 70.8 91.7 61.2
negatives   k = 8                        63.6 72.1 93.4 64.1
negatives   k = 10                       63.0 72.0 93.4 63.4
tau         tau = 0.03                   61.9 70.6 92.0 65.8
tau         tau = 0.02                   63.6 72.1 93.4 64.1
tau         tau = 0.01                   62.1 70.1 91.1 66.5
"""
ABLATIONS = [
    (name.split()[0], f"{' '.join(name.split()[1:])} (Qwen2-VL 2B)", figures)
    for name, figures in _rows(_ABLATIONS, ("overall", *CAPTIONS)).items()
]
"""(block, row, column -> percent) of the paper's ablations, all on Qwen2-VL 2B."""
