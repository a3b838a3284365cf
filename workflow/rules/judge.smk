"""The judge reads every query with its candidates; its scores sift them into hard negatives."""


rule judge:
    input:
        needs("judge@{set}"),
        ancient("results/data/train/{set}"),
        ancient("results/retrieve/{set}"),
        ancient(model(CONFIG.models.judge)),
    output:
        directory("results/judge/{set}"),
        touch(done("judge@{set}")),
    log:
        "logs/dvc/judge.{set}.log",
    benchmark:
        "logs/benchmarks/judge.{set}.tsv"
    conda:
        f"../../envs/judge-{CONFIG.judge.backend}.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=GPU,
    shell:
        repro("judge@{wildcards.set}")


rule mine:
    input:
        needs("mine@{set}"),
        ancient("results/data/train/{set}"),
        ancient("results/retrieve/{set}"),
        ancient("results/judge/{set}"),
    output:
        directory("results/mine/judge/{set}"),
        touch(done("mine@{set}")),
    log:
        "logs/dvc/mine.{set}.log",
    benchmark:
        "logs/benchmarks/mine.{set}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        repro("mine@{wildcards.set}")


rule mining_report:
    input:
        needs("mining_report"),
        ancient(expand("results/data/train/{set}", set=SETS)),
        ancient(expand("results/retrieve/{set}", set=SETS)),
        ancient(expand("results/judge/{set}", set=SETS)),
        ancient(expand("results/mine/judge/{set}", set=SETS)),
    output:
        directory("results/mining_report/judge"),
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
