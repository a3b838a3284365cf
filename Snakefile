"""UniME-V2, open: from raw data to the table.

    snakemake --cores all                  everything
    snakemake results/mmeb_table.csv       just the table and what it needs
    snakemake -n                           what would run, and why

config.yaml says what the experiment is, dvc.yaml what each stage depends on, workflow/dvc.smk how the two tools share the work.
"""

import sys

sys.path.insert(0, workflow.basedir)  # this checkout's library, whichever is installed

from unime.config import ConfigError, load
from unime.report.table import check_compare

if config:
    raise WorkflowError("--config and --configfile reach Snakemake only, DVC reads config.yaml: write the values there")
try:
    CONFIG = load("config.yaml")
    check_compare(CONFIG.evaluate.compare)
except ConfigError as problem:
    raise WorkflowError(str(problem)) from None


include: "workflow/names.smk"


rule all:
    input:
        "results/mmeb_table.csv",
        "results/crossmodal_table.csv",
        "results/report.html",
        "results/config.json",
        expand("results/export/{model}", model=CONFIG.export),


include: "workflow/screen.smk"
include: "workflow/dvc.smk"
include: "workflow/rules/nano.smk"  # the embedded suite and its MLLM
include: "workflow/rules/fetch.smk"  # published data and weights
include: "workflow/rules/data.smk"  # published layout -> items, pairs, tasks
include: "workflow/rules/retrieve.smk"  # base embedder -> vectors -> 50 candidates a query
include: "workflow/rules/judge.smk"  # an MLLM's yes or no, or several's -> hard negatives
include: "workflow/rules/train.smk"  # two embedders and the reranker
include: "workflow/rules/evaluate.smk"  # one job a task -> the table
include: "workflow/rules/ablations.smk"  # one setting changed at a time; only on request
