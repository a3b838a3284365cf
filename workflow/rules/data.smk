"""MMEB's published layout, read once: items by content id, training pairs, evaluation queries."""


rule data_train:
    input:
        needs("data_train@{set}"),
        ancient(CONFIG.data.root),
    output:
        directory("results/data/train/{set}"),
        touch(done("data_train@{set}")),
    log:
        "logs/dvc/data_train.{set}.log",
    benchmark:
        "logs/benchmarks/data_train.{set}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    shell:
        repro("data_train@{wildcards.set}")


rule data_eval:
    input:
        needs("data_eval@{task}"),
        ancient(CONFIG.data.root),
    output:
        directory("results/data/eval/{task}"),
        touch(done("data_eval@{task}")),
    log:
        "logs/dvc/data_eval.{task}.log",
    benchmark:
        "logs/benchmarks/data_eval.{task}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    shell:
        repro("data_eval@{wildcards.task}")
