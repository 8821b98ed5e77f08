"""A signal is heard even where Python drops what its handler raises."""

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
    """Its end is told to stop, and what is raised there goes nowhere."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, processes.Terminated), (signal.SIGINT, KeyboardInterrupt)],
)
def test_what_a_finaliser_drops_is_raised_at_the_next_step(
    number: signal.Signals, error: type[BaseException]
) -> None:
    processes.heed()
    Dropping(number)
    with pytest.raises(error):
        processes.heed()


def test_a_process_made_deaf_to_ctrl_c_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.listen()
    os.kill(os.getpid(), signal.SIGINT)
    processes.heed()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
