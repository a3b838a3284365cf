"""Types and bounds of every section of config.yaml; the descriptions are its documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from unime.config.jobs import Jobs
from unime.config.judges import JUDGED, Judge, check_judges
from unime.config.rules import Rule
from unime.config.training import Train
from unime.config.types import LONGEST_NAME, Count, Folder, LearningRate, Name, OwnFolder, Positive, Section, Seed, Side, nearest
from unime.config.variants import Ablations, check_variant

Caption = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*_(i2t|t2i|replace|swap|add)$", max_length=LONGEST_NAME)]

Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=LONGEST_NAME)]

Source = Literal["MMEB-train", "MMEB-eval", "Flickr30K", "COCO", "Urban1K", "ShareGPT4V", "SugarCrepe", "scores"]


NANO = "data/nano"


class Suite(Section):
    seed: Seed = Field(description="seed of the generator")
    train_rows: Positive = Field(description="rows of each training set")
    eval_rows: Positive = Field(description="queries of each evaluation task")
    candidates: Annotated[int, Field(ge=2)] = Field(description="candidates of a query where the task is not a label set")
    wrong_labels: Annotated[float, Field(ge=0, lt=1)] = Field(description="share of training pairs with a positive that is not right")


class Pretrain(Section):
    seed: Seed = Field(description="seed of the weights and of the sampled groups")
    steps: Positive = Field(description="optimizer steps of the first part: one skill after the other")
    groups: Positive = Field(description="groups (one shared prefix and its branches) in a step")
    lr: LearningRate = Field(description="peak learning rate of AdamW")
    refining_steps: Count = Field(description="optimizer steps of the second part: judging in degrees, lists, items told from one token")
    refining_lr: LearningRate = Field(description="peak learning rate of the second part")
    warmup: Count = Field(description="steps of linear warm-up of each part")
    checkpoint: Positive = Field(description="steps between two checkpoints")


class Nano(Section):
    suite: Suite
    retrain: bool = Field(description="train the nano MLLM here instead of using the weights in assets/nano-mllm")
    pretrain: Pretrain


class Repository(Section):
    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=LONGEST_NAME)] = Field(
        description="owner/name on the Hub"
    )
    revision: Revision = Field(description="commit, tag or branch; a branch is resolved to a commit when it is fetched")


class Fetch(Section):
    copies: OwnFolder | None = Field(description="folder with copies that you have, <copies>/<owner>/<name>/...; null: download")
    train_sets: list[Name] = Field(description="sets of MMEB-train to fetch into <data.root>/train")
    eval: list[Literal["MMEB-eval"]] = Field(
        max_length=1, description="MMEB-eval, to fetch the tasks of evaluate.tasks into <data.root>/eval"
    )
    crossmodal: list[Literal["Flickr30K", "COCO", "Urban1K", "ShareGPT4V", "SugarCrepe"]] = Field(
        description="caption benchmarks to fetch into <data.root>/crossmodal"
    )
    scores: dict[Name, Literal["Qwen25VL_7B", "InternVL3_8B", "InternVL3_14B"]] = Field(
        description="name -> judge whose published scores are fetched and imported to results/mine/<name>"
    )
    models: dict[Name, Repository] = Field(description="name -> repository of weights to fetch into models/<name>")
    revisions: dict[Source, Revision] = Field(description="data source -> commit; a branch is resolved to its commit when it is fetched")

    @model_validator(mode="after")
    def _all_revisions(self) -> Fetch:
        if absent := [name for name in get_args(Source) if name not in self.revisions]:
            raise ValueError(f"revisions lacks {absent[0]!r}; 'main' takes the newest, and source.json says which that was")
        return self


class Data(Section):
    root: OwnFolder = Field(description="folder, no slash at its end, that holds train/<set>/, eval/<task>/ and crossmodal/<benchmark>/")
    train_sets: list[Name] = Field(min_length=1, description="training sets, MMEB-train's or your own")
    instructions: Literal["original", "diverse_instruction"] = Field(description="which of MMEB-train's two files a set is read from")
    image_marks: Literal["public", "remove"] = Field(
        description="a text of MMEB that has an image mark and no image (the queries of WebQA and EDIS).  public: the mark stays, as one "
        "image token without pixels where the embedder reads raw text and as nothing in a chat; remove: the item has no mark"
    )
    caption_line_end: Literal["keep", "strip"] = Field(
        description="of a caption that is the first line of a file (Urban1K).  keep: as the public code; strip: no white space around it"
    )
    cap: Positive = Field(description="rows kept of each training set, drawn with the seed (the paper: 50,000)")
    max_pixels: Positive = Field(description="an image with more pixels is refused before it is decoded")
    pixels: Literal["as_seen", "as_public"] = Field(
        description="how an image file becomes pixels.  as_seen: as a viewer shows it, turned as EXIF says, transparent parts on white, "
        "16-bit grey scaled to 8 bits; as_public: as the public code reads it, with none of that"
    )
    copies: Literal["keep", "merge"] = Field(
        description="items of a set or task that are equal but for their form: texts by Unicode normal form, line ends and white space at "
        "the ends, pictures by their pixels.  keep: each is an item of its own, and the report counts them; merge: they are one item"
    )
    bad_rows: Literal["skip", "fail"] = Field(
        description="skip: list bad rows in the report and go on; fail: stop at the first set that has one"
    )


class Models(Section):
    base: Folder = Field(description="folder of the MLLM that the embedders start from")
    judge: Folder = Field(description="folder of the instruction-tuned MLLM that judges")
    reranker: Folder = Field(description="folder of the MLLM that the reranker starts from")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="type of the frozen weights and of the forward pass")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto takes the GPU where there is one")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        description="transformers' attention; flash_attention_2 needs that package and a GPU; judge.backend transformers has its own"
    )
    max_length: Positive = Field(description="tokens of a prompt; a longer one is an error that names the item")

    @model_validator(mode="after")
    def _attention_can_be_had(self) -> Models:
        if self.attention == "flash_attention_2" and self.device == "cpu":
            raise ValueError("attention flash_attention_2 needs a GPU, and device is cpu; set attention to sdpa, or device to cuda")
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError("attention flash_attention_2 reads bfloat16 or float16, and dtype is float32; set attention to sdpa, or dtype")
        return self


class Embed(Section):
    model: Folder = Field(description="folder of the MLLM that finds candidates (the paper: Qwen2-VL-7B)")
    adapter: Folder = Field(
        description="its adapter, or merged weights in its place; results/train/in_batch is the one trained here (the paper: VLM2Vec)"
    )
    image_size: Side
    batch_tokens: Positive = Field(description="tokens, padding included, in a forward pass")
    shard: Positive = Field(description="items of a shard; a killed run loses one shard at most")
    dtype: Literal["float32", "float16"] = Field(description="of the stored vectors; float16: half the disk, similarities off by 0.0005")


class Retrieve(Section):
    k: Positive = Field(description="candidates kept a query (Omega_p; the paper: 50)")
    pool: Literal["all", "same_modality"] = Field(
        description="which of its set's positives may be a query's candidates: all (the paper), or those that show what its own positive "
        "shows: a text, an image, or both"
    )
    delta: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        description="candidates with similarity >= delta are left out; null: off (the paper gives no value)"
    )
    index: Literal["exact", "ivf", "hnsw"] = Field(description="how candidates are searched; what the last two miss is measured")
    effort: Positive = Field(description="of ivf: lists that are searched; of hnsw: width of its walk")
    sample: Positive = Field(description="pairs a set whose recall is measured, where index is not exact")


class Mine(Section):
    source: str = Field(description="judge: the negatives mined here; or a name of fetch.scores: the published ones")
    judgements: str = Field(
        description="folder of the judgements that the negatives are mined from: results/judge, results/judges/<name of judge.models> or "
        "results/judge_means/<name of judge.means>"
    )
    beta: Annotated[float, Field(ge=0, le=1)] = Field(description="margin: alpha = sigma - beta")
    negatives: Positive = Field(description="n, negatives kept a query")
    interval: Positive = Field(description="every interval-th candidate of the ordered list is taken, cycling")
    order: Literal["similarity", "score"] = Field(description="the order in which candidates are taken")
    rules: dict[Name, Rule] = Field(description="mining rules without a judge, by name, to compare with; made on request (docs/mining.md)")


class Evaluate(Section):
    tasks: list[Name] = Field(min_length=1, description="MMEB-eval configurations or your own, one job each")
    crossmodal: list[Caption] = Field(description="caption benchmarks and their directions, one job each")
    image_size: Side
    rerank: Annotated[int, Field(ge=2, le=100)] = Field(
        description="best candidates that the reranker sees (the paper: 10, in its Table 3: 5)"
    )
    rerank_mode: Literal["likelihood", "generate", "pairwise"] = Field(
        description="likelihood: every answer (i) of the list scored exactly; generate: greedy text, the first (number) read, as in the "
        "public code; pairwise: no list, each candidate alone by P(Yes)"
    )
    rerank_image_size: Side | None = Field(description="as image_size, of the reranker's images; null: train.reranker.image_size")
    compositional_rerank: Literal["pairwise", "listwise"] = Field(
        description="SugarCrepe with reranker; pairwise: P(Yes) of each caption alone (public code); listwise: both captions in one list "
        "(by likelihood where rerank_mode shows no list)"
    )
    tie_rule: Literal["content", "vlm2vec_v1", "vlm2vec_v2", "unime_v2"] = Field(
        description="content: a candidate equal in content to the right one is right, other ties are wrong; vlm2vec_v1: the first index "
        "wins; vlm2vec_v2: the first of an argsort wins, right by name; unime_v2: the first of a partition wins, right by its place"
    )
    compare: dict[str, str] = Field(description="row of this run -> row of the paper that it is compared with")

    @field_validator("tie_rule", mode="before")
    @classmethod
    def _tie_rule_has_its_new_name(cls, value: Any) -> Any:
        if value == "first":
            raise ValueError("'first' is called vlm2vec_v1 now, the version of VLM2Vec that does so; write that")
        if value == "name":
            raise ValueError("'name' credited any tied candidate, as no public code does; write vlm2vec_v2, which looks at the first one")
        return value


class Experiment(Section):
    seed: Seed = Field(description="seed of sampling, LoRA initialisation, dropout and fallback rows")
    nano: Nano
    fetch: Fetch
    data: Data
    models: Models
    embed: Embed
    retrieve: Retrieve
    judge: Judge
    mine: Mine
    train: Train
    evaluate: Evaluate
    export: dict[Literal["in_batch", "hard_negatives", "unime_v2", "reranker"], Folder] = Field(
        description="what is exported as merged weights -> the MLLM that it was trained on"
    )
    ablations: Ablations
    jobs: Jobs

    @model_validator(mode="after")
    def _numbers_agree(self) -> Experiment:
        lists = {
            "data.train_sets": self.data.train_sets,
            "evaluate.tasks": self.evaluate.tasks,
            "evaluate.crossmodal": self.evaluate.crossmodal,
            "fetch.train_sets": self.fetch.train_sets,
            "fetch.crossmodal": self.fetch.crossmodal,
        }
        for name, values in lists.items():
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"{name} names {twice[0]!r} twice; each name once")
        if self.mine.interval > self.retrieve.k:
            raise ValueError(f"mine.interval {self.mine.interval} must be at most retrieve.k {self.retrieve.k}")
        if self.mine.negatives > self.retrieve.k:
            raise ValueError(f"mine.negatives {self.mine.negatives} must be at most retrieve.k {self.retrieve.k}")
        for row in ("hard_negatives", "unime_v2"):
            if (k := getattr(self.train, row).negatives) > self.mine.negatives:
                raise ValueError(f"train.{row}.negatives {k} must be at most mine.negatives {self.mine.negatives}")
        if (k := self.train.reranker.list_negatives) > self.mine.negatives:
            raise ValueError(f"train.reranker.list_negatives {k} must be at most mine.negatives {self.mine.negatives}")
        self._names_agree()
        self._places_agree()
        return self

    def _places_agree(self) -> None:
        fetched = [*self.fetch.train_sets, *self.fetch.eval, *self.fetch.crossmodal]
        if fetched and self.data.root == NANO:
            raise ValueError(f"data.root is {NANO}, which the embedded suite makes; fetch {fetched[0]} into another data.root")
        if fetched and self.data.root.startswith("../"):
            raise ValueError(
                f"data.root {self.data.root!r} lies outside the project, and {fetched[0]} would be fetched into it; fetch into a folder of "
                "the project, or write an absolute path"
            )
        if "nano-mllm" in self.fetch.models:
            raise ValueError("fetch.models: models/nano-mllm is made by the stage nano_mllm; choose another name")
        if self.embed.adapter == "results/train/in_batch" and self.embed.model != self.models.base:
            raise ValueError(
                f"embed.adapter is trained on models.base ({self.models.base}), so embed.model must be it, not {self.embed.model}"
            )
        for name, base in self.export.items():
            if base != (right := self.models.reranker if name == "reranker" else self.models.base):
                raise ValueError(f"export.{name} is {base}, but it is trained on {right}")
        if both := set(self.evaluate.tasks) & set(self.evaluate.crossmodal):
            raise ValueError(f"{min(both)!r} is in evaluate.tasks and in evaluate.crossmodal; name it in one")

    def _names_agree(self) -> None:
        sources, chosen = [JUDGED, *self.fetch.scores], self.mine.source
        if chosen not in sources:
            raise ValueError(f"mine.source {chosen!r} is neither 'judge' nor a name of fetch.scores{nearest(chosen, sources)}")
        check_judges(self.judge, self.fetch.scores, self.mine.judgements, self.mine.rules)
        known = [*sources, *self.judge.models, *self.judge.means, *self.mine.rules]
        for name, variant in self.ablations.embedders.items():
            check_variant(
                f"ablations.embedders.{name}",
                variant,
                getattr(self.train, variant.loss),
                sources=known,
                rules=self.mine.rules,
                negatives=self.mine.negatives,
            )
