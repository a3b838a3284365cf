"""Every model on every task, one job a task, and what people read."""


rule evaluate:
    input:
        needs("evaluate@{task}"),
        ancient("results/data/eval"),
        ancient("results/train/in_batch"),
        ancient("results/train/hard_negatives"),
        ancient("results/train/unime_v2"),
        ancient("results/train/reranker"),
        ancient(model(CONFIG.models.base)),
        ancient(model(CONFIG.models.reranker)),
    output:
        directory("results/evaluate/{task}"),
        touch(done("evaluate@{task}")),
    log:
        "logs/dvc/evaluate.{task}.log",
    benchmark:
        "logs/benchmarks/evaluate.{task}.tsv"
    wildcard_constraints:
        task=one_of(TASKS),
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
        gpu=GPU,
    shell:
        repro("evaluate@{wildcards.task}")


rule crossmodal:
    input:
        needs("crossmodal@{task}"),
        ancient("results/data/eval"),
        ancient("results/train/in_batch"),
        ancient("results/train/hard_negatives"),
        ancient("results/train/unime_v2"),
        ancient("results/train/reranker"),
        ancient(model(CONFIG.models.base)),
        ancient(model(CONFIG.models.reranker)),
    output:
        directory("results/evaluate/{task}"),
        touch(done("crossmodal@{task}")),
    log:
        "logs/dvc/crossmodal.{task}.log",
    benchmark:
        "logs/benchmarks/crossmodal.{task}.tsv"
    wildcard_constraints:
        task=one_of(CROSSMODAL),
    conda:
        "../../envs/torch.yaml"
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("crossmodal"),
        runtime=minutes("crossmodal"),
        gpu=GPU,
    shell:
        repro("crossmodal@{wildcards.task}")


rule report:
    input:
        needs("report"),
        ancient(expand("results/evaluate/{task}", task=[*TASKS, *CROSSMODAL])),
        ancient("results/data/eval"),
        ancient("results/data/train"),
        ancient(f"results/mining_report/{CONFIG.mine.source}"),
        ancient(expand("results/train/{model}", model=["in_batch", "hard_negatives", "unime_v2", "reranker"])),
    output:
        "results/mmeb_table.csv",
        "results/mmeb_table.md",
        "results/crossmodal_table.csv",
        "results/crossmodal_table.md",
        "results/metrics.json",
        directory("results/charts"),
        "results/report.html",
        "results/warnings.json",
        touch(done("report")),
    log:
        "logs/dvc/report.log",
    benchmark:
        "logs/benchmarks/report.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=memory("report"),
        runtime=minutes("report"),
    shell:
        repro("report")


rule export:
    input:
        needs("export@{model}"),
        ancient("results/train/{model}"),
        ancient(lambda wildcards: model(CONFIG.export[wildcards.model])),
        ancient("results/metrics.json"),
        ancient("results/warnings.json"),
    output:
        directory("results/export/{model}"),
        touch(done("export@{model}")),
    log:
        "logs/dvc/export.{model}.log",
    benchmark:
        "logs/benchmarks/export.{model}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("export"),
        runtime=minutes("export"),
    shell:
        repro("export@{wildcards.model}")
