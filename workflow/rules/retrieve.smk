"""The base embedder, its vectors of the training items, and the best candidates of every query."""


rule train_in_batch:
    input:
        needs("train_in_batch"),
        ancient("results/data/train"),
        ancient(CONFIG.models.base),
    output:
        directory("results/train/in_batch"),
        touch(done("train_in_batch")),
    log:
        "logs/dvc/train_in_batch.log",
    benchmark:
        "logs/benchmarks/train_in_batch.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=720,
        gpu=GPU,
    shell:
        repro("train_in_batch")


rule embed_train:
    input:
        needs("embed_train"),
        ancient("results/data/train"),
        ancient("results/train/in_batch"),
        ancient(CONFIG.models.base),
    output:
        directory("results/embed/train"),
        touch(done("embed_train")),
    log:
        "logs/dvc/embed_train.log",
    benchmark:
        "logs/benchmarks/embed_train.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=720,
        gpu=GPU,
    shell:
        repro("embed_train")


rule retrieve:
    input:
        needs("retrieve"),
        ancient("results/data/train"),
        ancient("results/embed/train"),
    output:
        directory("results/retrieve"),
        touch(done("retrieve")),
    log:
        "logs/dvc/retrieve.log",
    benchmark:
        "logs/benchmarks/retrieve.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=120,
    shell:
        repro("retrieve")
