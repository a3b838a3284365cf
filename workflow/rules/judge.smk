"""The judge reads every query with its candidates; its scores sift them into hard negatives.

On request, or where mine.judgements names them: further judges (judge.models), means of judges (judge.means), and how far two agree.
On request: negatives by a rule that needs no judge (mine.rules).
"""


rule judge_part:
    input:
        needs("judge@{set}"),
        ancient("results/data/train"),
        ancient("results/retrieve/{set}"),
        ancient(model(CONFIG.models.judge)),
    output:
        touch(part("judge@{set}")),
    log:
        "logs/dvc/judge.{set}.{part}.log",
    benchmark:
        "logs/benchmarks/judge.{set}.{part}.tsv"
    wildcard_constraints:
        set=one_of(SETS),
    conda:
        f"../../envs/judge-{CONFIG.judge.backend}.yaml"
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("judge"),
        runtime=minutes("judge"),
        gpu=JUDGING,
        nodes=1,
    shell:
        repro("judge@{wildcards.set}", part="{wildcards.part}")


rule judge:
    input:
        needs("judge@{set}"),
        parts("judge@{set}"),
        ancient("results/data/train"),
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
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("judge"),
        runtime=minutes("judge"),
        gpu=0 if PARTS["judge"] > 1 else JUDGING,
        nodes=1,
    shell:
        repro("judge@{wildcards.set}")


rule judge_more:
    input:
        needs("judge_more@{judge}"),
        ancient("results/data/train"),
        ancient(expand("results/retrieve/{set}", set=SETS)),
        ancient(lambda wildcards: model(CONFIG.judge.models[wildcards.judge].model)),
    output:
        directory("results/judges/{judge}"),
        touch(done("judge_more@{judge}")),
    log:
        "logs/dvc/judge_more.{judge}.log",
    benchmark:
        "logs/benchmarks/judge_more.{judge}.tsv"
    conda:
        f"../../envs/judge-{CONFIG.judge.backend}.yaml"
    threads: BESIDE
    resources:
        cpus_per_task=BESIDE,
        mem_mb=memory("judge_more"),
        runtime=minutes("judge_more"),
        gpu=JUDGING,
        nodes=1,
    shell:
        repro("judge_more@{wildcards.judge}", ABLATIONS)


rule judge_mean:
    input:
        needs("judge_mean@{mean}"),
        ancient(expand("results/judge/{set}", set=SETS)),
        ancient(expand("results/judges/{judge}", judge=CONFIG.judge.models)),
    output:
        directory("results/judge_means/{mean}"),
        touch(done("judge_mean@{mean}")),
    log:
        "logs/dvc/judge_mean.{mean}.log",
    benchmark:
        "logs/benchmarks/judge_mean.{mean}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("judge_mean"),
        runtime=minutes("judge_mean"),
    shell:
        repro("judge_mean@{wildcards.mean}", ABLATIONS)


rule judge_agreement:
    input:
        needs("judge_agreement@{judge}"),
        ancient(expand("results/judge/{set}", set=SETS)),
        ancient("results/judges/{judge}"),
    output:
        directory("results/judge_agreement/{judge}"),
        touch(done("judge_agreement@{judge}")),
    log:
        "logs/dvc/judge_agreement.{judge}.log",
    benchmark:
        "logs/benchmarks/judge_agreement.{judge}.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=memory("judge_agreement"),
        runtime=minutes("judge_agreement"),
    shell:
        repro("judge_agreement@{wildcards.judge}", ABLATIONS)


rule mine:
    input:
        needs("mine@{set}"),
        ancient("results/data/train"),
        ancient("results/retrieve/{set}"),
        ancient(judged("{set}")),
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
        mem_mb=memory("mine"),
        runtime=minutes("mine"),
    shell:
        repro("mine@{wildcards.set}")


rule mine_more:
    input:
        needs("mine_more@{judge}"),
        ancient("results/data/train"),
        ancient(expand("results/retrieve/{set}", set=SETS)),
        ancient("results/judges/{judge}"),
    output:
        directory("results/mine/{judge}"),
        touch(done("mine_more@{judge}")),
    log:
        "logs/dvc/mine_more.{judge}.log",
    benchmark:
        "logs/benchmarks/mine_more.{judge}.tsv"
    wildcard_constraints:
        judge=one_of(CONFIG.judge.models),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("mine_more"),
        runtime=minutes("mine_more"),
    shell:
        repro("mine_more@{wildcards.judge}", ABLATIONS)


rule mine_mean:
    input:
        needs("mine_mean@{mean}"),
        ancient("results/data/train"),
        ancient(expand("results/retrieve/{set}", set=SETS)),
        ancient("results/judge_means/{mean}"),
    output:
        directory("results/mine/{mean}"),
        touch(done("mine_mean@{mean}")),
    log:
        "logs/dvc/mine_mean.{mean}.log",
    benchmark:
        "logs/benchmarks/mine_mean.{mean}.tsv"
    wildcard_constraints:
        mean=one_of(CONFIG.judge.means),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("mine_mean"),
        runtime=minutes("mine_mean"),
    shell:
        repro("mine_mean@{wildcards.mean}", ABLATIONS)


rule mine_rule:
    input:
        needs("mine_rule@{rule}"),
        ancient("results/data/train"),
        ancient(expand("results/retrieve/{set}", set=SETS)),
    output:
        directory("results/mine/{rule}"),
        touch(done("mine_rule@{rule}")),
    log:
        "logs/dvc/mine_rule.{rule}.log",
    benchmark:
        "logs/benchmarks/mine_rule.{rule}.tsv"
    wildcard_constraints:
        rule=one_of(CONFIG.mine.rules),
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=memory("mine_rule"),
        runtime=minutes("mine_rule"),
    shell:
        repro("mine_rule@{wildcards.rule}", ABLATIONS)


rule mining_report:
    input:
        needs("mining_report"),
        ancient("results/data/train"),
        ancient(expand("results/retrieve/{set}", set=SETS)),
        ancient(expand(judged("{set}"), set=SETS)),
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
        mem_mb=memory("mining_report"),
        runtime=minutes("mining_report"),
    shell:
        repro("mining_report")
