"""Every model on every task, one job a task, and what people read."""


rule evaluate:
    input:
        needs("evaluate@{task}"),
        ancient("results/data/eval/{task}"),
        ancient("results/train/in_batch"),
        ancient("results/train/hard_negatives"),
        ancient("results/train/unime_v2"),
        ancient("results/train/reranker"),
        ancient(CONFIG.models.base),
        ancient(CONFIG.models.reranker),
    output:
        directory("results/evaluate/{task}"),
        touch(done("evaluate@{task}")),
    log:
        "logs/dvc/evaluate.{task}.log",
    benchmark:
        "logs/benchmarks/evaluate.{task}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
        gpu=GPU,
    shell:
        repro("evaluate@{wildcards.task}")


rule report:
    input:
        needs("report"),
        ancient(expand("results/evaluate/{task}", task=TASKS)),
        ancient(expand("results/data/eval/{task}", task=TASKS)),
        ancient(expand("results/data/train/{set}", set=SETS)),
        ancient("results/mining_report"),
    output:
        "results/mmeb_table.csv",
        "results/mmeb_table.md",
        "results/metrics.json",
        directory("results/charts"),
        "results/report.html",
        touch(done("report")),
    log:
        "logs/dvc/report.log",
    benchmark:
        "logs/benchmarks/report.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    shell:
        repro("report")
