"""The judge against one pair a sequence: python benchmarks/judge.py [rounds]

The peer does what batch scoring usually does: every pair is a whole prompt with its pictures, prompts of like length are batched (8 or
32 at a time; the better size is found first, in one round), every picture is decoded, cut into patches and seen by the vision tower for
every pair, and only the last position's two logits are taken.  Both run the same weights, threads and float32; their scores are
compared first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import material
import numpy as np
import torch
from harness import Section, main, ratio, turns

from unime import prompts
from unime.backbones import load
from unime.data.items import Items
from unime.judge import Question, score
from unime.judge.transformers_backend import TransformersJudge


def plain(judge: TransformersJudge, questions: Sequence[Question], size: int) -> np.ndarray:
    """(pairs, 2) logits, `size` pairs a batch, longest first."""
    backbone, pairs = judge.backbone, [(one.query, candidate) for one in questions for candidate in one.candidates]
    peeked = {id: judge.items.peek(id).parts for pair in pairs for id in pair}
    lengths = [backbone.length(backbone.chat_prompt(prompts.judge_turn(peeked[q], peeked[c]))) for q, c in pairs]
    order = sorted(range(len(pairs)), key=lambda at: -lengths[at])
    found = np.empty((len(pairs), 2), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), size):
            some = order[start : start + size]
            turns_ = [prompts.judge_turn(judge.items[pairs[at][0]].parts, judge.items[pairs[at][1]].parts) for at in some]
            batch = backbone.collate([backbone.chat_prompt(turn) for turn in turns_])
            found[some] = backbone.answer_logits(batch, judge.words).cpu().numpy()
    return found


def compared(name: str, folder: Path, items: Items, questions: list[Question], rounds: int) -> list[str]:
    """A row of the table: this judge and the peer on the same questions."""

    def shared() -> np.ndarray:
        """A new judge each time: nothing that an earlier round has seen is at hand."""
        return np.concatenate(TransformersJudge(backbone, items, 8192).answers(questions))

    backbone = load(folder, models=material.MODELS)
    judge = TransformersJudge(backbone, items, 8192)
    ours, theirs = shared(), plain(judge, questions, 8)
    difference = np.abs(score(ours[:, 0], ours[:, 1], "exact") - score(theirs[:, 0], theirs[:, 1], "exact")).max()
    if not difference < 1e-5 or np.ptp(theirs[:, 0] - theirs[:, 1]) < 1e-3:
        sys.exit(f"{name}: scores differ by {difference}; nothing to compare")
    tried = turns({size: lambda size=size: plain(judge, questions, size) for size in (8, 32)}, 1, warmup=0)
    best = min(tried, key=tried.get)
    times = turns({"shared": shared, "plain": lambda: plain(judge, questions, best)}, rounds, warmup=0)
    speed, peer = (len(ours) / sorted(times[way])[rounds // 2] for way in ("shared", "plain"))
    return [name, ratio(times["plain"], times["shared"]), f"{speed:.1f}", f"{peer:.1f} (batches of {best})", f"{difference:.1e}"]


def run(rounds: int) -> Section:
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        small, nano = material.model(place / "small"), material.wide(place / "nano")
        items, texts, pictures = material.items(place / "items", material.words(rng, 100, 1, 4), [448] * 24)
        short = [Question(picture, tuple(texts[at] for at in rng.permutation(len(texts))[:50])) for picture in pictures[:2]]
        shown = [Question(text, tuple(pictures[at] for at in rng.permutation(24)[:16])) for text in texts[:3]]
        both = [Question(picture, tuple(one for one in pictures if one != picture)[:16]) for picture in pictures[:2]]
        for folder in (small, nano):
            opened = load(folder, models=material.MODELS)
            name = f"{sum(weight.numel() for weight in opened.model.parameters()) / 1e6:.1f} M parameters"
            if (seen := opened.look(items[pictures[0]].image).tokens) != 256:
                sys.exit(f"{name}: a picture is {seen} tokens, 256 are needed")
            rows.append(compared(f"{name}: a picture of 256 tokens, 50 short texts", folder, items, short, rounds))
            rows.append(compared(f"{name}: a text, 16 pictures of 256 tokens", folder, items, shown, rounds))
            rows.append(compared(f"{name}: a picture and 16 others", folder, items, both, rounds))
        tiny, texts, pictures = material.items(place / "tiny", material.words(rng, 100, 5, 12), [84] * 24)
        asked = [Question(picture, tuple(texts[at] for at in rng.permutation(len(texts))[:50])) for picture in pictures]
        rows.append(compared("nano as the embedded suite has it: 9 tokens, 50 texts", material.NANO, tiny, asked, rounds))
    text = (
        "the judge on transformers against batches of one pair a sequence (see the script); float32 on the CPU, "
        f"{torch.get_num_threads()} threads; scores compared first."
    )
    header = ["questions", "speed against the peer, median (min to max)", "pairs/s", "pairs/s of the peer", "largest difference of scores"]
    return Section("Judge: shared prefixes against one pair a sequence", text, header, rows, ["torch", "transformers"])


if __name__ == "__main__":
    main(run, 3)
