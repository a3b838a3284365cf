"""The judge reads every query with its candidates; its scores sift them into hard negatives."""


rule judge:
    input:
        needs("judge"),
        ancient("results/data/train"),
        ancient("results/retrieve"),
        ancient(CONFIG.models.judge),
    output:
        directory("results/judge"),
        touch(done("judge")),
    log:
        "logs/dvc/judge.log",
    benchmark:
        "logs/benchmarks/judge.tsv"
    conda:
        "../../envs/judge.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=GPU,
    shell:
        repro("judge")


rule mine:
    input:
        needs("mine"),
        ancient("results/data/train"),
        ancient("results/retrieve"),
        ancient("results/judge"),
    output:
        directory("results/mine"),
        touch(done("mine")),
    log:
        "logs/dvc/mine.log",
    benchmark:
        "logs/benchmarks/mine.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        repro("mine")


rule mining_report:
    input:
        needs("mining_report"),
        ancient("results/data/train"),
        ancient("results/retrieve"),
        ancient("results/judge"),
        ancient("results/mine"),
        ancient("data/nano"),
    output:
        directory("results/mining_report"),
        touch(done("mining_report")),
    log:
        "logs/dvc/mining_report.log",
    benchmark:
        "logs/benchmarks/mining_report.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        repro("mining_report")
