"""Embedders that differ from the run's own: the paper's ablations, and other mining rules and losses.

`snakemake results/ablations.csv`; nothing else asks for them.
"""


rule ablation_train:
    input:
        needs("ablation_train@{variant}"),
        ancient("results/data/train"),
        ancient(lambda wildcards: negatives_of(CONFIG.ablations.embedders[wildcards.variant])),
        ancient(model(CONFIG.models.base)),
    output:
        directory("results/ablations/train/{variant}"),
        touch(done("ablation_train@{variant}")),
    log:
        "logs/dvc/ablation_train.{variant}.log",
    benchmark:
        "logs/benchmarks/ablation_train.{variant}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: CONFIG.train.gpus_per_node * BESIDE
    resources:
        **SPREAD,
        cpus_per_task=CONFIG.train.gpus_per_node * BESIDE,
        mem_mb=memory("ablation_train"),
        runtime=minutes("ablation_train"),
        gpu=TRAINING,
    shell:
        repro("ablation_train@{wildcards.variant}", ABLATIONS)


rule ablation_evaluate:
    input:
        needs("ablation_evaluate@{variant}"),
        ancient("results/data/eval"),
        ancient("results/ablations/train/{variant}"),
        ancient(model(CONFIG.models.base)),
    output:
        directory("results/ablations/evaluate/{variant}"),
        touch(done("ablation_evaluate@{variant}")),
    log:
        "logs/dvc/ablation_evaluate.{variant}.log",
    benchmark:
        "logs/benchmarks/ablation_evaluate.{variant}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("ablation_evaluate"),
        runtime=minutes("ablation_evaluate"),
        gpu=GPU,
    shell:
        repro("ablation_evaluate@{wildcards.variant}", ABLATIONS)


rule ablations:
    input:
        needs("ablations"),
        ancient(expand("results/evaluate/{task}", task=[*TASKS, *CROSSMODAL])),
        ancient(expand("results/ablations/evaluate/{variant}", variant=CONFIG.ablations.embedders)),
    output:
        "results/ablations.csv",
        "results/ablations.md",
        touch(done("ablations")),
    log:
        "logs/dvc/ablations.log",
    benchmark:
        "logs/benchmarks/ablations.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=memory("ablations"),
        runtime=minutes("ablations"),
    shell:
        repro("ablations", ABLATIONS)
