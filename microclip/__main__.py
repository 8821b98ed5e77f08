"""Run the command line with `python -m microclip`.

In a workflow, its warm process runs the verb, and this process only waits; so nothing else is
imported before that is known.
"""

import sys

from microclip import warm


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
    sys.exit(_run(sys.argv[1:]))
