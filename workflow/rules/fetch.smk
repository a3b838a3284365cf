"""Published data and weights, downloaded or linked from copies.  These run where Snakemake runs: compute nodes often see no network."""


localrules:
    fetch_train,
    fetch_crossmodal,
    fetch_scores,
    fetch_model,


rule fetch_train:
    input:
        needs("fetch_train@{set}"),
    output:
        f"{CONFIG.data.root}/train/{{set}}/source.json",
        touch(done("fetch_train@{set}")),
    log:
        "logs/dvc/fetch_train.{set}.log",
    benchmark:
        "logs/benchmarks/fetch_train.{set}.tsv"
    wildcard_constraints:
        set=one_of(CONFIG.fetch.train_sets),
    conda:
        "../../envs/fetch.yaml"
    threads: 1
    resources:
        mem_mb=memory("fetch_train"),
        runtime=minutes("fetch_train"),
    shell:
        repro("fetch_train@{wildcards.set}")


if CONFIG.fetch.eval:  # it has no wildcard that its configuration could bound

    localrules:
        fetch_eval,

    rule fetch_eval:
        input:
            needs("fetch_eval@MMEB-eval"),
        output:
            f"{CONFIG.data.root}/eval/source.json",
            touch(done("fetch_eval@MMEB-eval")),
        log:
            "logs/dvc/fetch_eval.MMEB-eval.log",
        benchmark:
            "logs/benchmarks/fetch_eval.MMEB-eval.tsv"
        conda:
            "../../envs/fetch.yaml"
        threads: 1
        resources:
            mem_mb=memory("fetch_eval"),
            runtime=minutes("fetch_eval"),
        shell:
            repro("fetch_eval@MMEB-eval")


rule fetch_crossmodal:
    input:
        needs("fetch_crossmodal@{benchmark}"),
    output:
        f"{CONFIG.data.root}/crossmodal/{{benchmark}}/source.json",
        touch(done("fetch_crossmodal@{benchmark}")),
    log:
        "logs/dvc/fetch_crossmodal.{benchmark}.log",
    benchmark:
        "logs/benchmarks/fetch_crossmodal.{benchmark}.tsv"
    wildcard_constraints:
        benchmark=one_of(CONFIG.fetch.crossmodal),
    conda:
        "../../envs/fetch.yaml"
    threads: 1
    resources:
        mem_mb=memory("fetch_crossmodal"),
        runtime=minutes("fetch_crossmodal"),
    shell:
        repro("fetch_crossmodal@{wildcards.benchmark}")


rule fetch_scores:
    input:
        needs("fetch_scores@{scores}"),
    output:
        "data/scores/{scores}/source.json",
        touch(done("fetch_scores@{scores}")),
    log:
        "logs/dvc/fetch_scores.{scores}.log",
    benchmark:
        "logs/benchmarks/fetch_scores.{scores}.tsv"
    wildcard_constraints:
        scores=one_of(CONFIG.fetch.scores),
    conda:
        "../../envs/fetch.yaml"
    threads: 1
    resources:
        mem_mb=memory("fetch_scores"),
        runtime=minutes("fetch_scores"),
    shell:
        repro("fetch_scores@{wildcards.scores}")


rule fetch_model:
    input:
        needs("fetch_model@{model}"),
    output:
        "models/{model}/source.json",
        touch(done("fetch_model@{model}")),
    log:
        "logs/dvc/fetch_model.{model}.log",
    benchmark:
        "logs/benchmarks/fetch_model.{model}.tsv"
    wildcard_constraints:
        model=one_of(CONFIG.fetch.models),
    conda:
        "../../envs/fetch.yaml"
    threads: 1
    resources:
        mem_mb=memory("fetch_model"),
        runtime=minutes("fetch_model"),
    shell:
        repro("fetch_model@{wildcards.model}")
