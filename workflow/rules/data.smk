"""Raw data, read once: items by content id, training pairs, evaluation queries; rows that no model can read; published negatives; what the run is."""


rule data_train:
    input:
        needs("data_train@{set}"),
        ancient(TRAIN),
    output:
        directory("results/rows/train/{set}"),
        touch(done("data_train@{set}")),
    log:
        "logs/dvc/data_train.{set}.log",
    benchmark:
        "logs/benchmarks/data_train.{set}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("data_train"),
        runtime=minutes("data_train"),
    shell:
        repro("data_train@{wildcards.set}")


rule data_eval:
    input:
        needs("data_eval@{task}"),
        ancient(raw("eval")),
    output:
        directory("results/rows/eval/{task}"),
        touch(done("data_eval@{task}")),
    log:
        "logs/dvc/data_eval.{task}.log",
    benchmark:
        "logs/benchmarks/data_eval.{task}.tsv"
    wildcard_constraints:
        task=one_of(TASKS),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("data_eval"),
        runtime=minutes("data_eval"),
    shell:
        repro("data_eval@{wildcards.task}")


rule data_crossmodal:
    input:
        needs("data_crossmodal@{task}"),
        ancient(CAPTIONS),
    output:
        directory("results/rows/eval/{task}"),
        touch(done("data_crossmodal@{task}")),
    log:
        "logs/dvc/data_crossmodal.{task}.log",
    benchmark:
        "logs/benchmarks/data_crossmodal.{task}.tsv"
    wildcard_constraints:
        task=one_of(CROSSMODAL),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("data_crossmodal"),
        runtime=minutes("data_crossmodal"),
    shell:
        repro("data_crossmodal@{wildcards.task}")


rule filter_train:
    input:
        needs("filter_train"),
        ancient(expand("results/rows/train/{set}", set=SETS)),
        ancient(model(CONFIG.models.base)),
        ancient(model(CONFIG.models.judge)),
        ancient(model(CONFIG.models.reranker)),
        ancient(model(CONFIG.embed.model)),
    output:
        directory("results/data/train"),
        touch(done("filter_train")),
    log:
        "logs/dvc/filter_train.log",
    benchmark:
        "logs/benchmarks/filter_train.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("filter_train"),
        runtime=minutes("filter_train"),
    shell:
        repro("filter_train")


rule filter_eval:
    input:
        needs("filter_eval"),
        ancient(expand("results/rows/eval/{task}", task=[*TASKS, *CROSSMODAL])),
        ancient(model(CONFIG.models.base)),
        ancient(model(CONFIG.models.reranker)),
    output:
        directory("results/data/eval"),
        touch(done("filter_eval")),
    log:
        "logs/dvc/filter_eval.log",
    benchmark:
        "logs/benchmarks/filter_eval.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("filter_eval"),
        runtime=minutes("filter_eval"),
    shell:
        repro("filter_eval")


rule import_scores:
    input:
        needs("import_scores@{scores}"),
        ancient("data/scores/{scores}/source.json"),
        ancient(TRAIN),
        ancient("results/data/train"),
    output:
        directory("results/mine/{scores}"),
        directory("results/mining_report/{scores}"),
        touch(done("import_scores@{scores}")),
    log:
        "logs/dvc/import_scores.{scores}.log",
    benchmark:
        "logs/benchmarks/import_scores.{scores}.tsv"
    wildcard_constraints:
        scores=one_of(CONFIG.fetch.scores),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("import_scores"),
        runtime=minutes("import_scores"),
    shell:
        repro("import_scores@{wildcards.scores}")


localrules:
    settings,


rule settings:
    input:
        needs("settings"),
        ancient("results/data/train"),
        ancient("results/data/eval"),
        ancient(f"results/mining_report/{CONFIG.mine.source}"),
        ancient(model(CONFIG.models.base)),
        ancient(model(CONFIG.models.reranker)),
    output:
        "results/config.json",
        touch(done("settings")),
    log:
        "logs/dvc/settings.log",
    benchmark:
        "logs/benchmarks/settings.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("settings"),
        runtime=minutes("settings"),
    shell:
        repro("settings")
