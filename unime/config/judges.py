"""The judge's section: what holds for every backend, the settings of each, and further judges."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from unime.config.types import Count, Folder, Name, Positive, PromptFormat, Rate, Section, Side, nearest

JUDGED = "judge"
"""The run's own judge in judge.means; `mine.source` of the negatives that are mined here."""

OWN = "results/judge"
"""`mine.judgements` of the run's own judge."""

Mode = Literal["exact", "published"]


class TransformersJudge(Section):
    batch_tokens: Positive = Field(description="tokens of a forward pass; shared ones count once")


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
    url: str = Field(description="where the API begins, no slash at its end; OPENAI_BASE_URL must be the same or not set")
    model: Annotated[str, Field(min_length=1)] = Field(description="the server's name of the model")
    top_logprobs: Annotated[int, Field(ge=2, le=20)] = Field(description="words to get log-probabilities of, the likeliest first")
    token_ids: bool = Field(description="true: ask for Yes and No by token id (vLLM's logprob_token_ids), whatever their rank")
    in_flight: Positive = Field(description="requests that wait for an answer at a time")
    rate: Rate | None = Field(description="requests begun in a second, at most; null: no limit")
    retries: Count = Field(description="further attempts after an answer of 408, 429 or 5xx, or none in time")
    timeout: Rate = Field(description="seconds that a request may take as a whole, from connecting to the answer's last byte")

    @field_validator("url")
    @classmethod
    def _url_is_an_address_alone(cls, url: str) -> str:
        if problem := url_problem(url):
            raise ValueError(problem)
        return url


class OtherJudge(Section):
    model: Folder = Field(description="folder of the MLLM that judges")
    mode: Mode = Field(description="as judge.mode")


class Judge(Section):
    backend: Literal["transformers", "vllm", "openai"] = Field(description="engine that reads the pairs (docs/judge.md)")
    mode: Mode = Field(
        description="exact: float32 raw logits; published: bfloat16 logits after a repetition penalty of 1.05, as in the published scores"
    )
    image_size: Side
    prompt: PromptFormat = Field(description="unime: the paper's question with blanks between its parts; public: the public code's strings")
    shard: Positive = Field(description="pairs of a shard; a killed run loses one shard at most")
    transformers: TransformersJudge = Field(description="read where it is the backend; so are the next two")
    vllm: VllmJudge
    openai: OpenaiJudge
    models: dict[Name, OtherJudge] = Field(description="further judges of all training sets, by name; made on request")
    means: dict[Name, list[Name]] = Field(
        description="name -> judges (judge: the run's own, or names of judge.models) whose mean score is one more judge's"
    )

    @model_validator(mode="after")
    def _mode_can_be_had(self) -> Judge:
        if problem := mode_problem(self.backend, self.mode):
            raise ValueError(problem)
        return self


def url_problem(url: str) -> str | None:
    """Why judge.openai.url cannot be used; None where it can.  A url that may hold a password is not shown."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        return "it is no url (its host or its port cannot be read); write one like http://127.0.0.1:8000/v1"
    if "@" in url:
        return "it holds a user or a password, and the url stands in logs and records; take that out, and put the key in OPENAI_API_KEY"
    if "?" in url or "#" in url:
        return "it ends in a query or a fragment ('?' or '#'), and paths are put at its end; write the address alone"
    if not url.isprintable() or " " in url:
        return f"{url!r} has a blank or a control character in it; write the address alone"
    labels = host.removesuffix(".").split(".")
    if not url.startswith(("http://", "https://")) or url.endswith("/") or port == 0 or not all(0 < len(label) < 64 for label in labels):
        return f"{url!r} is not http:// or https://, a host and a path without a slash at its end, like http://127.0.0.1:8000/v1"
    return None


def mode_problem(backend: str, mode: str) -> str | None:
    """Why a backend cannot judge in this mode; None where it can."""
    if backend == "openai" and mode == "published":
        return (
            "mode 'published' rounds and penalizes logits, and backend 'openai' gets log-probabilities; set mode to 'exact', or backend to "
            "'transformers' or 'vllm'"
        )
    return None


def judgement_folders(judge: Judge) -> list[str]:
    """Every folder of judgements that `mine.judgements` may name."""
    return [OWN, *(f"results/judges/{name}" for name in judge.models), *(f"results/judge_means/{name}" for name in judge.means)]


def check_judges(judge: Judge, scores: Iterable[str], judgements: str, rules: Iterable[str] = ()) -> None:
    """Raise ValueError where names clash (`scores`: those of fetch.scores; `rules`: those of mine.rules), a mean is not one of two judges
    or more that are there, or `judgements` (mine.judgements) is no folder that one of them makes."""
    named = {"fetch.scores": set(scores), "judge.models": set(judge.models), "judge.means": set(judge.means), "mine.rules": set(rules)}
    for kind, names in named.items():
        if JUDGED in names:
            raise ValueError(f"{kind}: {JUDGED!r} is the name of the run's own judge and of what is mined here; choose another")
    for (one, names), (other, others) in combinations(named.items(), 2):
        if both := names & others:
            raise ValueError(f"{min(both)!r} is in {one} and in {other}; both would write results/mine/{min(both)}: rename one")
    known = [JUDGED, *judge.models]
    for name, parts in judge.means.items():
        if unknown := [part for part in parts if part not in known]:
            raise ValueError(
                f"judge.means.{name} names {unknown[0]!r}, which is neither 'judge' nor a name of judge.models{nearest(unknown[0], known)}"
            )
        if twice := [part for part in parts if parts.count(part) > 1]:
            raise ValueError(f"judge.means.{name} names {twice[0]!r} twice; each judge once")
        if len(parts) < 2:
            raise ValueError(f"judge.means.{name} has {len(parts)} judges; a mean needs at least 2 of: {', '.join(known)}")
    folders = judgement_folders(judge)
    if judgements not in folders:
        near = nearest(judgements, folders)
        raise ValueError(f"mine.judgements {judgements!r} is none of {', '.join(folders)}" + (near if near.startswith("; nearest") else ""))
