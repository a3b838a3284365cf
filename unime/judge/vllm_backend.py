"""The judge on vLLM's offline engine: requests batched step by step, prefixes and images from its caches, several GPUs.

1. A prompt is the transformers backend's, token for token: the folder's chat template and tokenizer run here, and images are squashed
   here.  vLLM repeats the image tokens and computes pixels; that it comes to as many tokens is checked for every request.
2. A question's candidates go in one after the other, instruction and query first in each, so that a prompt finds the blocks of its
   prefix in the key-value cache, the query's image included.
3. One token is asked for, with the values of Yes and No by their ids.  The engine runs with `logprobs_mode="raw_logits"` and the head in
   float32, so these are the logits that the transformers backend gives, before any penalty.

What was refused: `allowed_token_ids` with `logprobs=2` (gives the two best words of the unmasked distribution, in which No is often
missing), and `vllm` with the torch model beside it (the weights would be there twice: the backbone is opened without them).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from unime import devices, prompts, shards
from unime.backbones import Backbone, ModelError, load
from unime.data.images import squashed
from unime.data.items import Items
from unime.judge import Question, blocks, guard
from unime.judge.tokens import Tokens

BLOCK = 1024
"""Requests of one call of the engine, or a few more: so many candidates' images are decoded before they are needed."""

ENVIRONMENT = {
    "VLLM_CONFIGURE_LOGGING": "0",  # vLLM's own setup closes every handler that is there: this job's log would end here
    "VLLM_NO_USAGE_STATS": "1",  # nothing of a run is reported to anybody
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads by now, and a fork of it may hang
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # on a CPU: the threads that this job has been given, not a core each of the machine's
}
REMEDY = (
    "use judge.backend transformers, or install it: `snakemake --use-conda` does (envs/judge-vllm.yaml), and by hand `pip install "
    "vllm==0.32.0` beside the rest, which takes numpy back to 2.3"
)


class Request(NamedTuple):
    """One pair as the engine takes it: `ids` with one placeholder per image, its images, and the `length` that it must come to."""

    query: str
    candidate: str
    ids: list[int]
    images: tuple[Image.Image, ...]
    length: int


def open_judge(folder: str | Path, items: Items, settings: Any, *, models: Any, log: logging.Logger) -> VllmJudge:
    """See `unime.judge.backends.open_backend`."""
    backbone = load(folder, models=models, image_size=settings.image_size, weights=False)
    return VllmJudge(backbone, items, settings.vllm, log, settings.prompt)


class VllmJudge:
    """See `unime.judge.Backend`.  `backbone` is open without weights; the engine starts with the first question.  `form` is a name of
    `prompts.FORMATS`."""

    def __init__(self, backbone: Backbone, items: Items, settings: Any, log: logging.Logger, form: str = prompts.UNIME):
        self.backbone, self.items, self.settings, self.log, self.form = backbone, items, settings, log, form
        self.words = [backbone.token(prompts.YES), backbone.token(prompts.NO)]
        self.tokens = Tokens(backbone)

    def answers(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Raises ValueError naming the pair where a prompt is too long, or vLLM's is another; ModelError where vLLM is not there."""
        from_here, engine = self._counted(), self.engine
        start, rows = time.monotonic(), []
        for requests in shards.spread(blocks(questions, BLOCK), self.requests, 1):  # the next block is prepared as this one runs
            rows += self._values(requests, engine)
        seconds = time.monotonic() - start
        asked, hit = (after - before for after, before in zip(self._counted(), from_here, strict=True))
        said = "vllm: %d pairs in %.1f s, %.1f a second; prefix cache hit rate %.3f (%d of %d tokens)"
        self.log.info(said, len(rows), seconds, len(rows) / max(seconds, 1e-9), hit / max(asked, 1), hit, asked)
        sizes = [len(question.candidates) for question in questions]
        return np.split(np.array(rows, dtype=np.float32).reshape(-1, 2), np.cumsum(sizes)[:-1])

    def requests(self, questions: Sequence[Question]) -> list[Request]:
        """The questions' pairs in order; an image is decoded and squashed once, and is one object wherever it is shown."""
        ids = dict.fromkeys(id for question in questions for id in (question.query, *question.candidates) if self.items.has_image(id))
        places = {self.items.image_place(id): id for id in ids}
        decoded = shards.spread(places.values(), self._image, torch.get_num_threads())
        images = dict(zip(places, decoded, strict=True))
        return [self._request(question.query, candidate, images) for question in questions for candidate in question.candidates]

    @cached_property
    def engine(self) -> Any:
        """vLLM's engine on the backbone's folder."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.backbone.models.device != "cpu":
            devices.claim(self.settings.tensor_parallel)
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ModelError(f"judge.backend is 'vllm', and vllm cannot be imported ({error}); {REMEDY}") from error
        settings, models = self.settings, self.backbone.models
        if models.device not in ("auto", has := current_platform.device_type):
            raise ModelError(f"models.device is {models.device!r} and this vllm runs on {has!r}; use 'auto', or vLLM's build for it")
        self.guard = guard.start()
        positions = self.backbone.core.language_model.config.max_position_embeddings
        return LLM(
            model=str(self.backbone.folder),
            dtype=models.dtype,
            max_model_len=min(models.max_length + 1, positions),  # the answer's token counts
            max_num_batched_tokens=max(settings.batch_tokens, models.max_length + 1),
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_memory_bytes=int(settings.cache_gib * 2**30) if settings.cache_gib else None,
            block_size=settings.block_size,
            tensor_parallel_size=settings.tensor_parallel,
            enforce_eager=settings.enforce_eager,
            enable_prefix_caching=True,
            limit_mm_per_prompt={"image": 2, "video": 0},
            logprobs_mode="raw_logits",
            hf_overrides={"head_dtype": "float32"},
            disable_log_stats=False,  # the hit rate is among them
            seed=0,
        )

    def _request(self, query: str, candidate: str, images: dict[tuple[str, str], Image.Image]) -> Request:
        def parts(id: str) -> list[Any]:
            return prompts.parts(self.items.text(id), images[self.items.image_place(id)] if self.items.has_image(id) else None)

        backbone = self.backbone
        prompt = backbone.chat_prompt(prompts.judge_turn(parts(query), parts(candidate), self.form))
        length = backbone.length(prompt, self.tokens.ids(prompt.text))
        try:
            backbone.check_length(length, prompt)
        except ValueError as error:
            raise ValueError(f"query {query} with a candidate: {error}") from error
        bare = prompt.text.replace(backbone.IMAGE_TEXT.format(backbone.IMAGE_TOKEN), backbone.IMAGE_TOKEN)  # vLLM puts the rest around
        return Request(query, candidate, self.tokens.ids(bare).tolist(), prompt.images, length)

    def _image(self, id: str) -> Image.Image:
        return squashed(self.items[id].image, self.backbone.image_size)

    def _values(self, requests: Sequence[Request], engine: Any) -> list[list[float]]:
        """Per request the values of Yes and of No."""
        from vllm import SamplingParams

        asked = [
            {"prompt_token_ids": one.ids} | ({"multi_modal_data": {"image": list(one.images)}} if one.images else {}) for one in requests
        ]
        wanted = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=self.words, detokenize=False)
        rows = []
        for one, output in zip(requests, engine.generate(asked, wanted, use_tqdm=False), strict=True):
            if len(output.prompt_token_ids) != one.length:
                raise ValueError(
                    f"query {one.query}, candidate {one.candidate}: {len(output.prompt_token_ids)} tokens in vLLM, {one.length} here; its "
                    "processor cuts images otherwise, so use judge.backend transformers for this model"
                )
            told = output.outputs[0].logprobs[0]
            if absent := [word for word in self.words if word not in told]:
                raise ValueError(
                    f"query {one.query}, candidate {one.candidate}: vLLM's answer lacks token {absent[0]} of {self.words}; take version "
                    "0.32, for which this was written"
                )
            rows.append([told[word].logprob for word in self.words])
        return rows

    def _counted(self) -> tuple[int, int]:
        """Tokens looked up in the prefix cache so far, and tokens found there."""
        counts = dict.fromkeys(("vllm:prefix_cache_queries", "vllm:prefix_cache_hits"), 0)
        for metric in self.engine.get_metrics():
            if metric.name in counts:
                counts[metric.name] += metric.value
        return tuple(counts.values())
