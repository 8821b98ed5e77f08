"""What a command says when it fails, in one line, and its exit code; imported only then."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from microclip import runtime
from microclip.cli import one_line, say
from microclip.settings.errors import MissingFileError, SettingsError

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
        error = _of_the_system(error)
    say(f"microclip: {one_line(str(error)) or type(error).__name__}")
    for kind, code in EXIT_CODES:
        if isinstance(error, kind):
            return code
    say("microclip: this is a bug in microclip; --debug shows the traceback")
    return 1


# An error of a file that somebody named or may mend; any other is a bug.
_UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ELOOP, errno.ENAMETOOLONG),
}


def _of_the_system(error: OSError) -> Exception:
    """The system's error, such as "[Errno 13]", as a sentence that says what to do, if it can."""
    named = error.filename if isinstance(error.filename, str) else None
    if full := runtime.disk_full(error, None if named is None else Path(named)):
        return full
    if named is None or type(error).__str__ is not OSError.__str__:
        return error
    if error.errno == errno.ENOENT:
        return MissingFileError(f"{named} does not exist; make it, or name another")
    if error.errno in _UNUSABLE:
        return SettingsError(
            f"{named} cannot be used ({error.strerror}); mend its permissions, or name another"
        )
    return error
