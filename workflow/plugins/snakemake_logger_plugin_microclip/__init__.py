"""The project's logger plugin for Snakemake: one live view of a study, or a line for each event.

Snakemake imports every package of such a name before it reads its command line; this one makes
itself the logger of the project's Snakefile, unless the command line names another, and puts
targets that follow `--resources` apart and names the default profile (see `command_line`).
`--logger snakemake` shows Snakemake's own lines. Snakemake's log file in `.snakemake/log` is the
same with all of them.
"""

from __future__ import annotations

import logging
import sys
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_microclip import command_line, screen
from snakemake_logger_plugin_microclip.progress import Job, Progress

__all__ = ["LogHandler"]

_LOGGER = "snakemake.logging"
_INTERRUPTED = "Terminating processes on user request"
# What Snakemake says of its own work; its log file has it.
_MUTED = (
    *("Assuming unrestricted shared", "Building DAG", "Using shell", "Provided cores", "Rules "),
    *("Conda environments", "Singularity containers", "Group jobs", "Select jobs", "Execute "),
    *("Shutting down", "host:", "Shell command", "Elapsed time", "Finished job", "Trying to"),
)
# Said of failed jobs, each of which has a line with the reason.
_OF_FAILURES = (
    *("RuleException:\nCalledProcessError", "Exiting because a job execution failed"),
    "WorkflowError:\nAt least one job did not complete",
)
_MUTED_EVENTS = {
    LogEvent.WORKFLOW_STARTED,
    LogEvent.RESOURCES_INFO,
    LogEvent.PROGRESS,
    LogEvent.SHELLCMD,
    LogEvent.JOB_STARTED,
    LogEvent.RULEGRAPH,
}


class _Start(logging.Handler):
    """Opens the view before the first job starts: plugins get records later, in another thread."""

    def __init__(self, owner: LogHandler) -> None:
        super().__init__()
        self._owner = owner

    def emit(self, record: LogRecord) -> None:
        """Take in the number of jobs."""
        if getattr(record, "event", None) == LogEvent.RUN_INFO:
            self._owner.open(dict(record.__dict__["stats"]))


def _log_file() -> Path | None:
    """Snakemake's own log file."""
    handlers = logging.getLogger(_LOGGER).handlers
    files = [Path(one.baseFilename) for one in handlers if isinstance(one, logging.FileHandler)]
    return files[0] if files else None


class LogHandler(LogHandlerBase):
    """Shows a study's progress in place of Snakemake's lines."""

    def __post_init__(self) -> None:
        """Stand aside where people want Snakemake's own lines: dry runs, and verbose ones."""
        own = self.common_settings
        self._is_aside = bool(
            own.dryrun or own.printshellcmds or own.quiet or own.debug_dag or own.verbose
        )
        self._progress = Progress()
        self._shown = screen.Lines(self._progress, sys.stdout if own.stdout else sys.stderr)
        self._is_open = False
        if not self._is_aside:
            logging.getLogger(_LOGGER).addHandler(_Start(self))

    def open(self, stats: dict[str, int]) -> None:
        """The workflow begins, with so many jobs of each rule."""
        self._progress.plan(stats)
        if not self._is_open and screen.has_terminal():
            self._shown = screen.Screen(self._progress, sys.stderr, _log_file())
        if not self._is_open:
            self._is_open = True
            self._shown.start()

    def emit(self, record: LogRecord) -> None:
        """Show what a record says."""
        if self._is_aside:
            return
        try:
            self._emit(record)
        except Exception:  # as all handlers do: a message must not end a study
            self.handleError(record)

    def _emit(self, record: LogRecord) -> None:
        values = record.__dict__
        event = values.get("event")
        if event == LogEvent.JOB_INFO:
            self._begin(values["jobid"], Job.of(record))
        elif event == LogEvent.JOB_FINISHED:
            self._end(values["job_id"])
        elif event == LogEvent.JOB_ERROR:
            self._fail(values["jobid"])
        elif event not in {*_MUTED_EVENTS, LogEvent.RUN_INFO}:
            self._say(record)

    def _begin(self, number: int, job: Job) -> None:
        self._progress.start(number, job)
        if job.rule != "all":
            self._shown.event("start", job)

    def _end(self, number: int) -> None:
        job = self._progress.finish(number)
        if job is not None:
            done, planned = self._progress.counts
            left = screen.time_left(self._progress)
            self._shown.event("done", job, f" ({done} of {planned} jobs{left and ', ' + left})")

    def _fail(self, number: int) -> None:
        job = self._progress.fail(number)
        if job is not None:
            logs = ", ".join(job.log)
            self._shown.event("FAILED", job, f": {job.last_line() or 'no log'} (log: {logs})")

    def _say(self, record: LogRecord) -> None:
        text = self.format(record)
        if text.startswith(_INTERRUPTED):
            self._progress.is_interrupted = True
            text = "interrupted: waiting for the jobs to end"
        muted = _MUTED if record.levelno <= logging.INFO else _OF_FAILURES
        if text not in ("", "None") and not text.startswith(muted):
            self._shown.message(text)

    def close(self) -> None:
        """Give the terminal back, and say what is kept if not all is done."""
        if self._is_open:
            self._is_open = False
            self._shown.close()
            for line in screen.farewell(self._progress):
                self._shown.message(line)
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        """Whether it replaces Snakemake's own lines."""
        return not self._is_aside

    @property
    def writes_to_file(self) -> bool:
        """Whether it writes a log file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Whether it chooses its records itself."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Whether it formats its records itself."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """Whether it needs the graph of rules."""
        return False


command_line.mend()
