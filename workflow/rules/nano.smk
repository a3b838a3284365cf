"""The embedded suite, and the MLLM that is small enough for it."""


rule suite:
    input:
        needs("suite"),
    output:
        directory("data/nano"),
        touch(done("suite")),
    log:
        "logs/dvc/suite.log",
    benchmark:
        "logs/benchmarks/suite.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("suite"),
        runtime=minutes("suite"),
    shell:
        repro("suite")


rule nano_mllm:
    input:
        needs("nano_mllm"),
        ancient("assets/nano-mllm"),
    output:
        directory("models/nano-mllm"),
        touch(done("nano_mllm")),
    log:
        "logs/dvc/nano_mllm.log",
    benchmark:
        "logs/benchmarks/nano_mllm.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 2
    resources:
        cpus_per_task=2,
        mem_mb=memory("nano_mllm"),
        runtime=minutes("nano_mllm"),
    shell:
        repro("nano_mllm")
