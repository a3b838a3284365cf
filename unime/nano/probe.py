"""What the nano MLLM can do on scenes that it never saw: the judge's AUC attribute by attribute, questions answered, lists read.

The mean over attributes would hide one that was not learned at all, so every (attribute, number of things) has its own figure, and so
has every kind of the suite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unime import prompts
from unime.nano import lessons, packing, scenes
from unime.nano import model as nano_model

LISTS = (2, 5, 10)
"""Lengths of the lists that are asked."""


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """Chance that a right pair scores above a wrong one, ties counting half (Mann-Whitney)."""
    right, wrong = np.asarray(right, np.float64), np.sort(np.asarray(wrong, np.float64))
    below = np.searchsorted(wrong, right, side="left")
    upto = np.searchsorted(wrong, right, side="right")
    return float((below + upto).sum() / (2 * len(right) * len(wrong)))


def probe(model: Any, tokenizer: Any, scenes_each: int = 200, seed: int = 99, split: str = "test") -> dict[str, Any]:
    """Figures on scenes of `split` that training never shows.

    Returns {"auc": {attribute: {"1": .., "2": .., "3": ..}}, "vqa": {question: share of exact answers}, "vqa_mean": share,
    "kinds": as `by_kind` does}.
    """
    rng = np.random.default_rng(seed)
    figures: dict[str, dict[str, float]] = {name: {} for name in scenes.ATTRIBUTES}
    query = lessons.KINDS["Caption_i2t"].phrasings[0]
    for count in (1, 2, 3):
        groups = []
        for _ in range(scenes_each):
            scene = scenes.draw_scene(rng, split, count)
            picture = [scenes.paint(rng, scene), f"\n{query}\n"]
            captions = [lessons.full_caption(scene)]
            captions += [lessons.full_caption(scenes.change(rng, scene, name)) for name in scenes.ATTRIBUTES]
            groups.append([lessons.Branch(prompts.judge_turn(picture, [c.text]), prompts.YES, 1.0, 0.0, (prompts.YES,)) for c in captions])
        scores = _scores(model, tokenizer, groups)
        for i, name in enumerate(scenes.ATTRIBUTES, start=1):
            figures[name][str(count)] = round(auc(scores[:, 0], scores[:, i]), 4)
    vqa = _vqa(model, tokenizer, rng, scenes_each, split)
    mean = round(float(np.mean(list(vqa.values()))), 4)
    return {"auc": figures, "vqa": vqa, "vqa_mean": mean, "kinds": by_kind(model, tokenizer, rng, scenes_each // 2, split)}


def by_kind(model: Any, tokenizer: Any, rng: np.random.Generator, rows: int, split: str) -> dict[str, dict[str, float]]:
    """{kind: {"auc": positive against a near miss, and for each of LISTS: share of lists of that length whose right number is found}}."""
    found: dict[str, dict[str, float]] = {}
    for name, kind in lessons.KINDS.items():
        judged, right = [], {count: 0 for count in LISTS}
        for _ in range(rows):
            row = kind.make(rng, split, kind.phrasings)
            pair = (row.positive, kind.wrong(rng, row))
            turns = [prompts.judge_turn(lessons.side_parts(row.query), lessons.side_parts(side)) for side in pair]
            judged.append([lessons.Branch(turn, prompts.YES, 1.0, 0.0, (prompts.YES,)) for turn in turns])
            for count in LISTS:
                right[count] += _reads(model, tokenizer, lessons.listed(rng, row, lessons.misses(rng, name, row, count - 1)))
        scores = _scores(model, tokenizer, judged)
        found[name] = {"auc": round(auc(scores[:, 0], scores[:, 1]), 4)} | {str(k): round(n / rows, 4) for k, n in right.items()}
    return found


@torch.inference_mode()
def _reads(model: Any, tokenizer: Any, branch: lessons.Branch) -> bool:
    """Whether each token of the branch's answer is the likeliest one, given those before it."""
    pad, image = (tokenizer.convert_tokens_to_ids(token) for token in (nano_model.PAD, nano_model.IMAGE))
    batch = packing.pack(packing.encode([[branch]], tokenizer), pad, image)
    hidden = packing.hidden(model, batch)[0]
    at = batch["weights"][0] == branch.weight
    return bool(((hidden[at] @ model.lm_head.weight.T).argmax(-1) == batch["targets"][0, at]).all())


@torch.inference_mode()
def _scores(model: Any, tokenizer: Any, groups: list[lessons.Group], rows: int = 16) -> np.ndarray:
    """Yes logit less No logit, (groups, branches) float32, read where each branch's answer begins."""
    pad, image, yes, no = (tokenizer.convert_tokens_to_ids(token) for token in (nano_model.PAD, nano_model.IMAGE, prompts.YES, prompts.NO))
    found = []
    for start in range(0, len(groups), rows):
        for group in packing.encode(groups[start : start + rows], tokenizer):
            batch = packing.pack([group], pad, image)
            hidden = packing.hidden(model, batch)
            at = batch["weights"][0] == 1.0
            logits = hidden[0, at] @ model.lm_head.weight[[yes, no]].T
            found.append((logits[:, 0] - logits[:, 1]).numpy())
    return np.stack(found)


def _vqa(model: Any, tokenizer: Any, rng: np.random.Generator, count: int, split: str) -> dict[str, float]:
    """Share of questions whose greedy answer is exactly the right text, by question."""
    pad, image, end = (tokenizer.convert_tokens_to_ids(token) for token in (nano_model.PAD, nano_model.IMAGE, nano_model.END))
    right: dict[str, list[bool]] = {}
    for _ in range(count):
        scene = scenes.draw_scene(rng, split)
        picture = scenes.paint(rng, scene)
        for question, value in lessons.ask(rng, scene):
            text, pictures = packing.render([picture, f"\n{question}"])
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == image).long(),
                pixel_values=torch.from_numpy(nano_model.patches(pictures[0])),
                image_grid_thw=torch.tensor([[1, picture.shape[0] // nano_model.PATCH, picture.shape[1] // nano_model.PATCH]]),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=pad,
            )
            said = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            name = next(key for key, form in lessons.QUESTIONS.items() if question.startswith(form.split("{")[0]))
            right.setdefault(name, []).append(said == value)
    return {name: round(float(np.mean(hits)), 4) for name, hits in sorted(right.items())}
