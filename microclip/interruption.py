"""Being told to stop: what a signal asks for is remembered until it is heeded.

Python raises from a signal's handler wherever the main thread happens to be. In a finaliser or a
callback of a library that is dropped ("Exception ignored in ..."), and the work would go on; a loop
that calls `heed` at each step stops at the next one.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

TERMINATED = 143  # exit code, as of a process that SIGTERM ends
INTERRUPTED = 130
_MAIN = os.getpid()
_told: list[type[BaseException]] = []


class Terminated(BaseException):
    """SIGTERM: the scheduler wants this process to end."""


_RAISED: dict[int, type[BaseException]] = {
    signal.SIGTERM: Terminated,
    signal.SIGINT: KeyboardInterrupt,
}


def listen() -> None:
    """Make SIGTERM and Ctrl-C raise, once at the signal and again at each `heed`.

    A shell that starts a job in the background makes it deaf to Ctrl-C; that is left so.
    """
    _told.clear()
    for number in _RAISED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def heed() -> None:
    """Raise what the last signal asked for, if one came. Costs nothing: call it at each step."""
    if _told:
        raise _told[-1]


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if os.getpid() != _MAIN and number == signal.SIGTERM:  # a worker that inherited this
        os._exit(TERMINATED)
    _told.append(_RAISED[number])
    raise _RAISED[number]
