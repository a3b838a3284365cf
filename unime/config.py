"""The experiment's configuration: typed, explained, refused with a reason when wrong.

config.yaml holds the values, the models below hold the types and the bounds.  Every message names the key, the value, the bound
and, for a key that nobody knows, the nearest one that exists.  A room never sees the whole configuration: it gets a `view` of the
sections that its door declares, which are also the parameters of its stage, so no room can depend on a value that its stage does
not record.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """The configuration asks for something that cannot be; the message names key, value, bound and remedy."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Suite(Section):
    seed: Count = Field(description="seed of the generator")
    train_rows: Positive = Field(description="rows of each training set")
    eval_rows: Positive = Field(description="queries of each evaluation task")
    candidates: Annotated[int, Field(ge=2)] = Field(description="candidates of a query where the task is not a label set")


class Pretrain(Section):
    seed: Count = Field(description="seed of the weights and of the sampled groups")
    steps: Positive = Field(description="optimizer steps")
    groups: Positive = Field(description="groups (one shared prefix and its branches) in a step")
    lr: Rate = Field(description="peak learning rate of AdamW")
    warmup: Count = Field(description="steps of linear warm-up")
    checkpoint: Positive = Field(description="steps between two checkpoints")


class Nano(Section):
    suite: Suite
    retrain: bool = Field(description="train the nano MLLM here instead of using the weights in assets/nano-mllm")
    pretrain: Pretrain


class Data(Section):
    root: str = Field(description="folder that holds MMEB-train/ and MMEB-eval/ in their published layout")
    train_sets: list[str] = Field(min_length=1, description="MMEB-train configurations")
    instructions: Literal["original", "diverse_instruction"] = Field(description="which of MMEB-train's two files a set is read from")
    cap: Positive = Field(description="rows kept of each training set, drawn with the seed (the paper: 50,000)")
    max_pixels: Positive = Field(description="an image with more pixels is refused before it is decoded")
    bad_rows: Literal["skip", "fail"] = Field(
        description="skip: list bad rows in the report and go on; fail: stop at the first set that has one"
    )


class Models(Section):
    base: str = Field(description="folder of the MLLM that the embedders start from")
    judge: str = Field(description="folder of the instruction-tuned MLLM that judges")
    reranker: str = Field(description="folder of the MLLM that the reranker starts from")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="type of the frozen weights and of the forward pass")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto takes the GPU where there is one")
    image_size: Count = Field(description="side in pixels that images are squashed to before the processor; 0 leaves them as they are")
    max_length: Positive = Field(description="tokens of a prompt; a longer one is an error that names the item")


class Embed(Section):
    batch_tokens: Positive = Field(description="tokens, padding included, in a forward pass")
    shard: Positive = Field(description="items of a shard; a killed run loses one shard at most")


class Retrieve(Section):
    k: Positive = Field(description="candidates kept a query (Omega_p; the paper: 50)")
    delta: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        description="candidates with similarity >= delta are left out; null: off (the paper gives no value)"
    )


class Judge(Section):
    backend: Literal["transformers"] = Field(description="engine that reads the pairs")
    mode: Literal["exact", "published"] = Field(
        description="exact: float32 raw logits; published: bfloat16 logits after a repetition penalty of 1.05, as in the published scores"
    )
    batch_tokens: Positive = Field(description="tokens, padding included, in a forward pass")
    shard: Positive = Field(description="pairs of a shard; a killed run loses one shard at most")


class Mine(Section):
    beta: Annotated[float, Field(ge=0, le=1)] = Field(description="margin: alpha = sigma - beta")
    negatives: Positive = Field(description="n, negatives kept a query")
    interval: Positive = Field(description="every interval-th candidate of the ordered list is taken, cycling")
    order: Literal["similarity", "score"] = Field(description="the order in which candidates are taken")


class Lora(Section):
    rank: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    dora: bool = Field(description="weight-decomposed LoRA, as in the public code")
    init: Literal["gaussian", "default"]


class Optimizer(Section):
    steps: Positive = Field(description="optimizer steps")
    batch: Positive = Field(description="queries in an optimizer step")
    micro: Positive = Field(description="queries (in-batch: items) in one forward pass; does not change the result")
    lr: Rate = Field(description="peak learning rate of AdamW")
    warmup: Count = Field(description="steps of linear warm-up")
    decay: Literal["linear", "cosine"]
    checkpoint: Positive = Field(description="steps between two checkpoints")

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> Optimizer:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} must be below steps {self.steps}")
        return self


class InBatch(Optimizer):
    tau: Rate = Field(description="temperature of the in-batch InfoNCE loss")


class Mined(Optimizer):
    tau: Rate = Field(description="temperature of P and of Q")
    negatives: Positive = Field(description="k, mined negatives a query (the paper: 8)")


class Reranker(Optimizer):
    lora: Lora
    list_negatives: Annotated[int, Field(ge=1)] = Field(description="hardest negatives shown in a list, at most")
    list_fixed: bool = Field(description="true: always list_negatives of them; false: 1..list_negatives, drawn for each query")


class Train(Section):
    lora: Lora = Field(description="of the three embedders")
    in_batch: InBatch = Field(description="base embedder and baseline row: VLM2Vec's recipe")
    hard_negatives: Mined = Field(description="ablation row: mined negatives, one-hot target")
    unime_v2: Mined = Field(description="mined negatives, the judge's soft scores as target")
    reranker: Reranker


class Evaluate(Section):
    tasks: list[str] = Field(min_length=1, description="MMEB-eval configurations, one job each")
    rerank: Annotated[int, Field(ge=2)] = Field(description="best candidates that the reranker sees (the paper: 10, in its Table 3: 5)")
    rerank_mode: Literal["likelihood", "generate"] = Field(
        description="likelihood: every answer (i) scored exactly; generate: greedy text, the first (number) read, as in the public code"
    )
    tie_rule: Literal["content", "first", "name"] = Field(
        description="content: a candidate equal in content to the right one is right, other ties are wrong; "
        "first: the first index wins (VLM2Vec v1); name: any tied candidate equal by text is right (VLM2Vec v2)"
    )


class Config(Section):
    seed: Count = Field(description="seed of sampling, LoRA initialisation, dropout and fallback rows")
    nano: Nano
    data: Data
    models: Models
    embed: Embed
    retrieve: Retrieve
    judge: Judge
    mine: Mine
    train: Train
    evaluate: Evaluate

    @model_validator(mode="after")
    def _numbers_agree(self) -> Config:
        for name, values in (("data.train_sets", self.data.train_sets), ("evaluate.tasks", self.evaluate.tasks)):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"{name} names {twice[0]!r} twice; each name once")
        if self.mine.negatives > self.retrieve.k:
            raise ValueError(f"mine.negatives {self.mine.negatives} must be at most retrieve.k {self.retrieve.k}")
        for row in ("hard_negatives", "unime_v2"):
            if (k := getattr(self.train, row).negatives) > self.mine.negatives:
                raise ValueError(f"train.{row}.negatives {k} must be at most mine.negatives {self.mine.negatives}")
        if (k := self.train.reranker.list_negatives) > self.mine.negatives:
            raise ValueError(f"train.reranker.list_negatives {k} must be at most mine.negatives {self.mine.negatives}")
        return self

    def view(self, sections: tuple[str, ...]) -> View:
        """The part of the configuration that a door declares, e.g. ("seed", "train.lora")."""
        return View(self, sections)


class View:
    """Read-only window on some sections; anything else is an AttributeError, so a stage's parameters are complete."""

    def __init__(self, config: Section, sections: tuple[str, ...]):
        self._config, self._sections = config, sections

    def __getattr__(self, name: str) -> Any:
        sections = self.__dict__["_sections"]
        if name in sections:
            return getattr(self._config, name)
        below = tuple(s[len(name) + 1 :] for s in sections if s.startswith(name + "."))
        if below:
            return View(getattr(self._config, name), below)
        raise AttributeError(f"this room does not declare the section {name!r}; it declares {', '.join(sections)}")

    def dump(self) -> dict[str, Any]:
        """Plain values by dotted section name, for digests and model cards."""
        found: dict[str, Any] = {}
        for section in self._sections:
            value: Any = self._config
            for part in section.split("."):
                value = getattr(value, part)
            found[section] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        return found


def load(path: str | Path = "config.yaml") -> Config:
    """Read and check a configuration file.  Raises ConfigError with one line per problem."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository's root or name the file with --config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    return parse(raw, str(path))


def parse(raw: Any, source: str = "config") -> Config:
    """Check plain values against the models.  Raises ConfigError with one line per problem."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: a mapping of sections is needed, found {type(raw).__name__}")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "config"
    value, kind = problem.get("input"), problem["type"]
    if kind == "extra_forbidden":
        names = list(_model_at(problem["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1, cutoff=0.4)
        hint = f"nearest: {near[0]!r}" if near else f"known: {', '.join(names)}"
        return f"{key}: unknown key ({hint})"
    if kind == "missing":
        return f"{key}: missing; config.yaml in the repository shows every key"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "), n=1)
        return f"{key}: {value!r} is not one of {problem['ctx']['expected']}" + (f"; nearest: {near[0]!r}" if near else "")
    remedy = ""
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        remedy = " (YAML reads 1e-4 as text: write 1.0e-4)" if "e" in value.lower() else " (write the number without quotes)"
    shown = "" if kind == "value_error" else f"{value!r}: "
    return f"{key}: {shown}{problem['msg'].removeprefix('Value error, ')}{remedy}"


def _model_at(loc: tuple[Any, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Config
    for part in loc:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return model


def nearest(name: str, known: list[str]) -> str:
    """`; nearest: 'X'` for messages about an unknown name, or the known names where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; nearest: {near[0]!r}" if near else f"; known: {', '.join(known)}"
