"""Types and bounds of the sections `train.*`: adapters, optimizer, losses, reranker."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from unime.config.types import BRANCH, MOST, Count, LearningRate, Positive, PromptFormat, Rate, Section, Side, Temperature

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


class Epochs(Section):
    """A number of optimizer steps that depends on the number of training rows."""

    epochs: Rate = Field(description="passes over the training rows")
    min: Positive = Field(description="fewest steps: a small table is seen more often")
    max: Positive = Field(description="most steps")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Epochs:
        if self.min > self.max:
            raise ValueError(f"min {self.min} must be at most max {self.max}")
        return self

    def steps(self, rows: int, batch: int) -> int:
        """Optimizer steps for so many rows in batches of this size."""
        wanted = round(self.epochs * rows / max(1, batch))
        return min(self.max, max(self.min, wanted))

    def __str__(self) -> str:
        return f"{self.epochs:g} epochs, {self.min:,} to {self.max:,} steps"


class UpTo(Section):
    """A batch of so many queries, or of all training rows if there are fewer."""

    max: Positive = Field(description="most queries in an optimizer step")

    def __str__(self) -> str:
        return f"up to {self.max:,}"


NUMBER, SECTION, SHARE = f"{BRANCH}number", f"{BRANCH}section", f"{BRANCH}share"


def _number_or_section(value: Any) -> str:
    return SECTION if isinstance(value, dict | Section) else NUMBER


def _number_or_share(value: Any) -> str:
    return SHARE if isinstance(value, float) else NUMBER


Number = Annotated[Positive, Tag(NUMBER)]
TwoOrMore = Annotated[int, Field(ge=2, le=MOST), Tag(NUMBER)]
Steps = Annotated[Number | Annotated[Epochs, Tag(SECTION)], Discriminator(_number_or_section)]
Batch = Annotated[Number | Annotated[UpTo, Tag(SECTION)], Discriminator(_number_or_section)]
BatchOfPairs = Annotated[TwoOrMore | Annotated[UpTo, Tag(SECTION)], Discriminator(_number_or_section)]
Share = Annotated[float, Field(gt=0, lt=1), Tag(SHARE)]
Warmup = Annotated[Annotated[Count, Tag(NUMBER)] | Share, Discriminator(_number_or_share)]


class Optimizer(Section):
    steps: Steps = Field(description="optimizer steps, or {epochs, min, max}: passes over the training rows, with bounds of the steps")
    batch: Batch = Field(
        description="queries in an optimizer step; {max: N}: N, or all training rows if there are fewer.  A number above the number of "
        "training rows is refused before anything runs"
    )
    micro: Positive = Field(description="queries (in-batch: items) in one forward pass; does not change the result")
    lr: LearningRate = Field(description="peak learning rate of AdamW")
    warmup: Warmup = Field(description="steps of linear warm-up; below 1: this share of the steps")
    decay: Literal["linear", "cosine"]
    checkpoint: Positive = Field(description="steps between two checkpoints")

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> Optimizer:
        fewest = self.steps if isinstance(self.steps, int) else self.steps.min
        if self.warmup >= fewest:
            raise ValueError(f"warmup {self.warmup} must be below steps {fewest}")
        return self

    def resolved(self, rows: int) -> Self:
        """These settings for a training table of so many rows: steps, batch and warmup are whole numbers.  Settings that are numbers
        already stay as they are, also a batch that is larger than the table."""
        batch = self.batch if isinstance(self.batch, int) else min(self.batch.max, rows)
        steps = self.steps if isinstance(self.steps, int) else self.steps.steps(rows, batch)
        warmup = self.warmup if isinstance(self.warmup, int) else min(round(self.warmup * steps), steps - 1)
        return self.model_copy(update={"batch": batch, "steps": steps, "warmup": warmup})

    @property
    def follows_rows(self) -> bool:
        """Whether steps or batch depend on the number of training rows."""
        return not (isinstance(self.steps, int) and isinstance(self.batch, int))


Mask = Literal["none", "equal", "labelled"]


class InBatch(Optimizer):
    batch: BatchOfPairs = Field(description="as of the other trainings, but 2 or more: one query alone has no negative")
    tau: Temperature = Field(description="temperature of the in-batch InfoNCE loss")
    mask: Mask = Field(
        description="other queries' positives that are no negatives. none: all are (VLM2Vec); equal: those with the own positive's content "
        "are not; labelled: nor are those labelled as positives of the same query in another pair"
    )

    @model_validator(mode="after")
    def _a_batch_has_negatives(self) -> InBatch:
        if isinstance(self.batch, UpTo) and self.batch.max < 2:
            raise ValueError(f"batch.max {self.batch.max} must be 2 or more: one query alone has no negative")
        return self


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
