"""The judge's section: what holds for every backend, and the settings of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unime.config.types import Count, Positive, Rate, Section, Side

Mode = Literal["exact", "published"]


class TransformersJudge(Section):
    batch_tokens: Positive = Field(description="tokens, padding included, in a forward pass")


class VllmJudge(Section):
    batch_tokens: Positive = Field(description="tokens of a step of the engine, over all requests (max_num_batched_tokens)")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        description="share of a GPU's memory (without a GPU: of the machine's) for weights, activations and key-value cache"
    )
    cache_gib: Rate | None = Field(description="GiB of the key-value cache; null: what gpu_memory_utilization leaves")
    block_size: Positive | None = Field(
        description="tokens of a block of the key-value cache; prefixes are shared in whole blocks; null: vLLM's choice (a GPU: 16)"
    )
    tensor_parallel: Positive = Field(description="GPUs that share the model")
    enforce_eager: bool = Field(
        description="true: no compiled graphs; they pay where many tokens are generated, and a judge's prompt has one"
    )


class OpenaiJudge(Section):
    url: Annotated[str, Field(pattern=r"^https?://.+[^/]$")] = Field(
        description="where the API begins, no slash at its end; OPENAI_BASE_URL goes before it"
    )
    model: Annotated[str, Field(min_length=1)] = Field(description="the server's name of the model")
    top_logprobs: Annotated[int, Field(ge=2, le=20)] = Field(description="words to get log-probabilities of, the likeliest first")
    token_ids: bool = Field(description="true: ask for Yes and No by token id (vLLM's logprob_token_ids), whatever their rank")
    in_flight: Positive = Field(description="requests that wait for an answer at a time")
    rate: Rate | None = Field(description="requests begun in a second, at most; null: no limit")
    retries: Count = Field(description="further attempts after an answer of 408, 429 or 5xx, or none in time")
    timeout: Rate = Field(description="seconds that the server may take for an answer")


class Judge(Section):
    backend: Literal["transformers", "vllm", "openai"] = Field(description="engine that reads the pairs (docs/judge.md)")
    mode: Mode = Field(
        description="exact: float32 raw logits; published: bfloat16 logits after a repetition penalty of 1.05, as in the published scores"
    )
    image_size: Side
    shard: Positive = Field(description="pairs of a shard; a killed run loses one shard at most")
    transformers: TransformersJudge = Field(description="read where it is the backend; so are the next two")
    vllm: VllmJudge
    openai: OpenaiJudge

    @model_validator(mode="after")
    def _mode_can_be_had(self) -> Judge:
        if problem := mode_problem(self.backend, self.mode):
            raise ValueError(problem)
        return self


def mode_problem(backend: str, mode: str) -> str | None:
    """Why a backend cannot judge in this mode; None where it can."""
    if backend == "openai" and mode == "published":
        return (
            "mode 'published' rounds and penalizes logits, and backend 'openai' gets log-probabilities; set mode to 'exact', or backend to "
            "'transformers' or 'vllm'"
        )
    return None
