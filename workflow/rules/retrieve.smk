"""The base embedder, its vectors of the training items, and the best candidates of every query."""


rule train_in_batch:
    input:
        needs("train_in_batch"),
        ancient("results/data/train"),
        ancient(model(CONFIG.models.base)),
    output:
        directory("results/train/in_batch"),
        touch(done("train_in_batch")),
    log:
        "logs/dvc/train_in_batch.log",
    benchmark:
        "logs/benchmarks/train_in_batch.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: CONFIG.train.gpus_per_node * BOTH
    resources:
        **SPREAD,
        cpus_per_task=CONFIG.train.gpus_per_node * BOTH,
        mem_mb=memory("train_in_batch"),
        runtime=minutes("train_in_batch"),
        gpu=TRAINING,
    shell:
        repro("train_in_batch")


rule embed_part:
    input:
        needs("embed_train@{set}"),
        ancient("results/data/train"),
        ancient(model(CONFIG.embed.model)),
        ancient(model(CONFIG.embed.adapter)),
    output:
        touch(part("embed_train@{set}")),
    log:
        "logs/dvc/embed_train.{set}.{part}.log",
    benchmark:
        "logs/benchmarks/embed_train.{set}.{part}.tsv"
    wildcard_constraints:
        set=one_of(SETS),
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("embed_train"),
        runtime=minutes("embed_train"),
        gpu=GPU,
    shell:
        repro("embed_train@{wildcards.set}", part="{wildcards.part}")


rule embed_train:
    input:
        needs("embed_train@{set}"),
        parts("embed_train@{set}"),
        ancient("results/data/train"),
        ancient(model(CONFIG.embed.model)),
        ancient(model(CONFIG.embed.adapter)),
    output:
        directory("results/embed/train/{set}"),
        touch(done("embed_train@{set}")),
    log:
        "logs/dvc/embed_train.{set}.log",
    benchmark:
        "logs/benchmarks/embed_train.{set}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("embed_train"),
        runtime=minutes("embed_train"),
        gpu=0 if PARTS["embed_train"] > 1 else GPU,
    shell:
        repro("embed_train@{wildcards.set}")


rule retrieve:
    input:
        needs("retrieve@{set}"),
        ancient("results/data/train"),
        ancient("results/embed/train/{set}"),
    output:
        directory("results/retrieve/{set}"),
        touch(done("retrieve@{set}")),
    log:
        "logs/dvc/retrieve.{set}.log",
    benchmark:
        "logs/benchmarks/retrieve.{set}.tsv"
    conda:
        f"../../envs/{SEARCH}.yaml"
    threads: 1
    resources:
        mem_mb=memory("retrieve"),
        runtime=minutes("retrieve"),
        gpu=GPU,
    shell:
        repro("retrieve@{wildcards.set}")
