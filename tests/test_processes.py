"""A signal takes effect even where Python drops what its handler raises."""

import os
import signal
from collections.abc import Iterator

import pytest

from microclip import processes


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    processes.listen()
    yield
    processes.listen()
    for number, handler in before.items():
        signal.signal(number, handler)


class Dropping:
    """Its finaliser receives the signal, and Python drops what is raised there."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, processes.Terminated), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_dropped_in_a_finaliser_is_raised_at_the_next_step(
    number: signal.Signals, error: type[BaseException]
) -> None:
    processes.raise_pending()
    Dropping(number)
    with pytest.raises(error):
        processes.raise_pending()


def test_a_process_that_ignores_ctrl_c_still_ignores_it() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.listen()
    os.kill(os.getpid(), signal.SIGINT)
    processes.raise_pending()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
