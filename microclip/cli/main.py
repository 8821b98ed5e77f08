"""The command line's entry point: its exit code, signals, and an error in one line.

What a verb needs is imported once one is named, so that `--help` is fast.
"""

from __future__ import annotations

import contextlib
import sys

from microclip import warm
from microclip.cli import escape_what_output_lacks, one_line, plain, say
from microclip.cli.tree import Tree

_SIGNALLED = 128  # exit codes above it: a signal ended this process, or its worker


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line without `--debug`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    escape_what_output_lacks()
    if all(word.startswith("-") for word in given):  # no verb
        return _call(given)
    import logging

    from microclip import processes

    processes.remember(given)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(capture=True)
    processes.listen(warm.ENDING)
    warm.set_library_variables()
    try:
        code = _call(given)
    except processes.Terminated as ended:
        code = ended.code
    # Typer turns Ctrl-C into an exit code.
    if code > _SIGNALLED and not processes.is_worker():  # a worker's parent reports it
        with contextlib.suppress(OSError):  # the terminal is closed
            say("microclip: interrupted; the same command continues")
    return code


def _call(given: list[str]) -> int:
    try:
        result = Tree()([word for word in given if word != "--debug"], standalone_mode=False)
    except Exception as error:
        if "--debug" in given:
            raise
        return _explain(error)
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> int:
    usage = getattr(error, "format_message", None)
    if usage is not None:  # click's own errors: unknown option, missing argument
        if text := usage():  # without a verb click has printed the help, and has no more to say
            say(f"microclip: {one_line(plain(text))}")
        return 2
    from microclip.cli import failures

    return failures.explain(error)
