"""Run in vLLM's environment: the judge's questions to the real engine, what it made of the prompts, what it answered.

usage: python tests/vllm_driver.py ASKED.json SAID.json      (ASKED: items, model, questions, settings of judge.vllm, models)
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace


def main(asked: Path, said: Path) -> None:
    from unime.backbones import load
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.judge import Question
    from unime.judge.vllm_backend import VllmJudge

    given = json.loads(asked.read_text())
    backbone = load(given["model"], models=SimpleNamespace(**given["models"]), image_size=given["image_size"], weights=False)
    judge = VllmJudge(backbone, Items.open(given["items"], Decoding(1 << 22)), SimpleNamespace(**given["vllm"]), logging.getLogger("unime"))
    generate, ids = judge.engine.generate, []

    def watched(*arguments: object, **named: object) -> list:
        outputs = generate(*arguments, **named)
        ids.extend(output.prompt_token_ids for output in outputs)
        return outputs

    judge.engine.generate = watched
    answers = judge.answers([Question(query, tuple(candidates)) for query, candidates in given["questions"]])
    said.write_text(json.dumps({"ids": [list(map(int, one)) for one in ids], "answers": [rows.tolist() for rows in answers]}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
