"""Types and bounds of the sections `train.*`: adapters, optimizer, losses, reranker."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unime.config.types import MOST, Count, LearningRate, Positive, PromptFormat, Section, Side, Temperature

Ending = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
"""The end of a layer's name, in whole parts: `q_proj`, `self_attn.q_proj`."""


class Lora(Section):
    rank: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    dora: bool = Field(description="weight-decomposed LoRA, as in the public code")
    init: Literal["gaussian", "default"]
    targets: Literal["public", "language"] | Annotated[list[Ending], Field(min_length=1)] = Field(
        description="layers with adapters: language (all linear layers of the language model), public (the public code's list, matched "
        "with the end of a layer's name; of LLaVA-OneVision and Qwen2.5-VL that includes layers of the vision tower), or a list of endings"
    )


class Optimizer(Section):
    steps: Positive = Field(description="optimizer steps")
    batch: Positive = Field(description="queries in an optimizer step")
    micro: Positive = Field(description="queries (in-batch: items) in one forward pass; does not change the result")
    lr: LearningRate = Field(description="peak learning rate of AdamW")
    warmup: Count = Field(description="steps of linear warm-up")
    decay: Literal["linear", "cosine"]
    checkpoint: Positive = Field(description="steps between two checkpoints")

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> Optimizer:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} must be below steps {self.steps}")
        return self


Mask = Literal["none", "equal", "labelled"]


class InBatch(Optimizer):
    batch: Annotated[int, Field(ge=2, le=MOST)] = Field(description="queries in an optimizer step; one alone has no negative")
    tau: Temperature = Field(description="temperature of the in-batch InfoNCE loss")
    mask: Mask = Field(
        description="other queries' positives that are no negatives. none: all are (VLM2Vec); equal: those with the own positive's content "
        "are not; labelled: nor are those labelled as positives of the same query in another pair"
    )


class Mined(Optimizer):
    tau: Temperature = Field(description="temperature of P and of Q")
    negatives: Positive = Field(description="k, mined negatives a query (the paper: 8)")
    in_batch_negatives: bool = Field(
        description="true: the candidates of the batch's other queries are negatives too; under a soft target their score is 0"
    )
    mask: Mask = Field(description="as train.in_batch.mask, also for candidates equal to the own mined ones; read with in_batch_negatives")


class SoftLabels(Mined):
    smoothing: Annotated[float, Field(ge=0, le=0.001)] = Field(
        description="added to a probability before its logarithm is taken; 0: equation (4) of the paper; 1.0e-8: the public code"
    )


class Reranker(Optimizer):
    lora: Lora
    image_size: Side
    max_tokens: Annotated[int, Field(ge=4)] | None = Field(
        description="visual tokens of an image, at most, after image_size and with its aspect kept; null: the folder's own bounds"
    )
    prompt: PromptFormat = Field(description="format of the prompts, in training and in evaluation; public: the published reranker's")
    pair_negative: Literal["hardest", "first"] = Field(
        description="negative of the pair: the one with the highest score, or the first of the mined list (most similar; public code)"
    )
    list_order: Literal["hardest", "first"] = Field(description="which negatives a list shows first, by the same two rules")
    loss: Literal["sequence", "token"] = Field(
        description="sequence: mean over answer and turn's end of each sequence, L_pair + L_list; token: one mean over the tokens of a "
        "query's three sequences, chat header and last line end included (public code)"
    )
    list_negatives: Annotated[int, Field(ge=1)] = Field(description="negatives shown in a list, at most")
    list_fixed: bool = Field(description="true: always list_negatives of them; false: 1..list_negatives, drawn for each query")


class Passes(Section):
    batch_tokens: Positive = Field(description="tokens, padding included, in a forward pass; a longer sequence goes alone")
    gradient_checkpointing: bool = Field(description="keep each layer's input only: far less memory for one more forward pass")


class Train(Section):
    nodes: Annotated[int, Field(ge=1, le=1024)] = Field(description="machines that share each training; above 1 it runs under SLURM")
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = Field(
        description="processes on each of them, one a GPU (models.device cpu: so many on the CPU)"
    )
    parallel: Literal["ddp", "fsdp", "deepspeed"] = Field(
        description="ddp: each process holds the model; fsdp: the frozen weights are cut over the processes; deepspeed: ZeRO-2, which cuts "
        "the optimizer's state and gradients.  None changes a result but for rounding"
    )
    image_size: Side
    passes: Passes = Field(description="how a micro-batch goes through the model; changes no result but for rounding")
    lora: Lora = Field(description="of the three embedders")
    in_batch: InBatch = Field(description="base embedder and baseline row: VLM2Vec's recipe")
    hard_negatives: Mined = Field(description="ablation row: mined negatives, one-hot target")
    unime_v2: SoftLabels = Field(description="mined negatives, the judge's soft scores as target")
    reranker: Reranker
