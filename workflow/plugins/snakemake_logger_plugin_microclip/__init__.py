"""The project's logger plugin for Snakemake, `snakemake --logger microclip`.

Snakemake imports every package of such a name before it reads its command line; this one puts
targets that follow `--resources` apart first, see `command_line`. Its handler is a place for a
live view, and adds nothing yet to what Snakemake shows itself.
"""

from __future__ import annotations

from logging import LogRecord

from snakemake_interface_logger_plugins.base import LogHandlerBase

from snakemake_logger_plugin_microclip import command_line

__all__ = ["LogHandler"]


class LogHandler(LogHandlerBase):
    """A handler that shows nothing; Snakemake's own lines stay."""

    def emit(self, record: LogRecord) -> None:
        """Show nothing."""

    @property
    def writes_to_stream(self) -> bool:
        """Whether it replaces Snakemake's own lines."""
        return False

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


command_line.put_targets_apart()
