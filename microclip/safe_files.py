"""Files that may run code when they are read, refused before they are opened as what they claim."""

from __future__ import annotations

from pathlib import Path

from microclip.settings import SettingsError

TENSORS = (
    "a .safetensors file (safetensors.torch.save_file writes one, where the source is trusted)"
)
_SUFFIXES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
_ZIP = b"PK\x03\x04"  # torch.save has written archives of a pickle since 1.6
_PROTOCOLS = tuple(bytes([0x80, number]) for number in range(2, 6))  # how a pickle begins


def refuse_pickle(path: Path, wanted: str = TENSORS) -> None:
    """Refuse a file whose name or first bytes say that it is a pickle; nothing else is read of it.

    Raises:
        SettingsError: it is one; the message names the safe kind of file, `wanted`.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        head = stream.read(9)
    # the length that opens a safetensors file may look like a pickle's beginning; JSON follows it
    is_pickle = head[:2] in _PROTOCOLS and head[8:] != b"{"
    if path.suffix.lower() in _SUFFIXES or head.startswith(_ZIP) or is_pickle:
        raise SettingsError(
            f"{path} is a pickled file, which may run code when it is loaded, and was not loaded; "
            f"give {wanted}"
        )
