"""Two embedders on the mined negatives (one-hot target; the judge's scores as target), and the reranker."""


rule train_hard_negatives:
    input:
        needs("train_hard_negatives"),
        ancient(expand("results/data/train/{set}", set=SETS)),
        ancient(mined(CONFIG.mine.source)),
        ancient(model(CONFIG.models.base)),
    output:
        directory("results/train/hard_negatives"),
        touch(done("train_hard_negatives")),
    log:
        "logs/dvc/train_hard_negatives.log",
    benchmark:
        "logs/benchmarks/train_hard_negatives.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=GPU,
    shell:
        repro("train_hard_negatives")


rule train_unime_v2:
    input:
        needs("train_unime_v2"),
        ancient(expand("results/data/train/{set}", set=SETS)),
        ancient(mined(CONFIG.mine.source)),
        ancient(model(CONFIG.models.base)),
    output:
        directory("results/train/unime_v2"),
        touch(done("train_unime_v2")),
    log:
        "logs/dvc/train_unime_v2.log",
    benchmark:
        "logs/benchmarks/train_unime_v2.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=GPU,
    shell:
        repro("train_unime_v2")


rule train_reranker:
    input:
        needs("train_reranker"),
        ancient(expand("results/data/train/{set}", set=SETS)),
        ancient(mined(CONFIG.mine.source)),
        ancient(model(CONFIG.models.reranker)),
    output:
        directory("results/train/reranker"),
        touch(done("train_reranker")),
    log:
        "logs/dvc/train_reranker.log",
    benchmark:
        "logs/benchmarks/train_reranker.tsv"
    priority: 1  # the longest of the three: first, so that no core waits for it at the end
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=GPU,
    shell:
        repro("train_reranker")
