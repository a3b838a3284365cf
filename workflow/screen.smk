"""What a run says on screen: the plan, a line when a stage starts and one when it is made, progress, errors.

Snakemake's own account of every job stays in .snakemake/log; a dry run and --verbose show it all.
"""

import logging

from snakemake_interface_logger_plugins.common import LogEvent

HIDDEN = LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.SHELLCMD, LogEvent.RESOURCES_INFO
CHATTER = "Select jobs to execute", "Execute ", "Touching output file"


def worth_a_line(record):
    return getattr(record, "event", None) not in HIDDEN and not record.getMessage().startswith(CHATTER)


if workflow.is_main_process:
    for handler in logging.getLogger("snakemake.logging").handlers:
        all_of_it = any(getattr(own, name, False) for own in handler.filters for name in ("dryrun", "verbose"))
        if handler.name == "DefaultStreamHandler" and not all_of_it:
            handler.addFilter(worth_a_line)
