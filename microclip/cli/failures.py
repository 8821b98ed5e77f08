"""What a command says when it fails, in one line, and its exit code; imported only then."""

from __future__ import annotations

import sys

from microclip import runtime
from microclip.cli import one_line, say

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (runtime.MissingDataError, 3),
    (FileNotFoundError, 3),
    (runtime.ResourceError, 4),
    (MemoryError, 4),
    (runtime.ServiceError, 5),
    (runtime.VerificationError, 6),
    (ValueError, 2),
    (ArithmeticError, 1),  # a loss that is not finite: the run failed, the message says where
)


def explain(error: Exception) -> int:
    """Say what went wrong and what to do; return the exit code."""
    torch = sys.modules.get("torch")  # where it was not imported, it has not failed
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        say(
            "microclip: the GPU's memory is full outside a training step, most likely in a test; "
            "end what else uses that GPU, take a smaller backbone, or use a GPU with more memory "
            "(the checkpoint of the last epoch is kept)"
        )
        return 4
    if torch is not None and isinstance(error, torch.AcceleratorError):
        say(
            f"microclip: the GPU failed ({str(error).strip().splitlines()[0]}); see what "
            "`nvidia-smi` says of it, then run the same command again (the checkpoint of the last "
            "epoch is kept)"
        )
        return 4
    if isinstance(error, OSError):
        error = runtime.disk_full(error) or error
    say(f"microclip: {one_line(str(error)) or type(error).__name__}")
    for kind, code in EXIT_CODES:
        if isinstance(error, kind):
            return code
    say("microclip: this is a bug in microclip; --debug shows the traceback")
    return 1
