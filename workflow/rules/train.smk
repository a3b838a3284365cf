"""Two embedders on the mined negatives (one-hot target; the judge's scores as target), and the reranker."""


rule train_hard_negatives:
    input:
        needs("train_hard_negatives"),
        ancient("results/data/train"),
        ancient(mined(CONFIG.mine.source)),
        ancient(model(CONFIG.models.base)),
    output:
        directory("results/train/hard_negatives"),
        touch(done("train_hard_negatives")),
    log:
        "logs/dvc/train_hard_negatives.log",
    benchmark:
        "logs/benchmarks/train_hard_negatives.tsv"
    priority: 1  # as train_unime_v2
    conda:
        "../../envs/torch.yaml"
    threads: CONFIG.train.gpus_per_node * BESIDE
    resources:
        **SPREAD,
        cpus_per_task=CONFIG.train.gpus_per_node * BESIDE,
        mem_mb=memory("train_hard_negatives"),
        runtime=minutes("train_hard_negatives"),
        gpu=TRAINING,
    shell:
        repro("train_hard_negatives")


rule train_unime_v2:
    input:
        needs("train_unime_v2"),
        ancient("results/data/train"),
        ancient(mined(CONFIG.mine.source)),
        ancient(model(CONFIG.models.base)),
    output:
        directory("results/train/unime_v2"),
        touch(done("train_unime_v2")),
    log:
        "logs/dvc/train_unime_v2.log",
    benchmark:
        "logs/benchmarks/train_unime_v2.tsv"
    priority: 1  # before the reranker, which takes two threads: so no core is left without work
    conda:
        "../../envs/torch.yaml"
    threads: CONFIG.train.gpus_per_node * BESIDE
    resources:
        **SPREAD,
        cpus_per_task=CONFIG.train.gpus_per_node * BESIDE,
        mem_mb=memory("train_unime_v2"),
        runtime=minutes("train_unime_v2"),
        gpu=TRAINING,
    shell:
        repro("train_unime_v2")


rule train_reranker:
    input:
        needs("train_reranker"),
        ancient("results/data/train"),
        ancient(mined(CONFIG.mine.source)),
        ancient(model(CONFIG.models.reranker)),
    output:
        directory("results/train/reranker"),
        touch(done("train_reranker")),
    log:
        "logs/dvc/train_reranker.log",
    benchmark:
        "logs/benchmarks/train_reranker.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: CONFIG.train.gpus_per_node * BOTH
    resources:
        **SPREAD,
        cpus_per_task=CONFIG.train.gpus_per_node * BOTH,
        mem_mb=memory("train_reranker"),
        runtime=minutes("train_reranker"),
        gpu=TRAINING,
    shell:
        repro("train_reranker")
