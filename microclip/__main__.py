"""Run the command line with `python -m microclip`.

In a workflow, its warm process runs the verb, and this process only waits; so nothing else is
imported before that is known.
"""

import atexit
import os
import sys

from microclip import warm

_ended: list[int] = []  # the exit code, once the verb has ended in order


def _leave() -> None:
    """End without taking the interpreter apart, as the very last of the exit functions.

    With torch loaded that takes over a second; in a child of the warm process it also copies most
    of the memory that they share. The system frees all of it at once.
    """
    if _ended:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # Python says what could not be written
            return
        os._exit(_ended[0])


def _run(arguments: list[str]) -> int:
    if arguments[:1] == [warm.VERB]:
        taken = warm.serve(arguments[1], int(arguments[2]))
        if taken is None:
            return 0
        arguments = taken  # this is a child now
    elif (code := warm.ask(arguments)) is not None:
        return code
    from microclip.cli.main import main

    code = main(arguments)
    warm.returned(code)
    return code


if __name__ == "__main__":
    atexit.register(_leave)  # the first to be registered is the last to be called
    _ended.append(_run(sys.argv[1:]))
    sys.exit(_ended[0])
