"""Embeddings of the test images by the frozen tower, computed once for the runs of a workflow.

Every run that reads images begins with them: they are the accuracy before adaptation, and what
methods with trained texts are tested on. On a CPU they take a twentieth of a long run and half of a
short one. A run leaves them in the folder of the workflow's warm process (`warm`), where the next
run with the same images, weights and CPU finds them, to the last bit what it would have computed.

Decoded test images are not shared: to make them takes a hundredth of a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from microclip import runtime, warm
from microclip.data.manifest import read_manifest
from microclip.data.passport import file_sha256
from microclip.model import embeddings, weights
from microclip.model.backbone import Backbone
from microclip.study import RunSettings

# The folder is in TMPDIR, which may be memory. 64 MiB are 32,768 images with 512 numbers each.
MOST_BYTES = 64 * 2**20  # of one file
ALL_BYTES = 256 * 2**20  # of a workflow's files, and of as many more as jobs write at a time
_SUFFIX = ".frozen"
_NAME = "embeddings"


class FrozenEmbeddings:
    """Those of one run, taken from runs before it if there are any."""

    def __init__(self, tower: Backbone | None = None, key: tuple[str | int, ...] = ()) -> None:
        """Remember the tower as it is before training, and all that decides its embeddings' bits.

        Without a key, nothing is shared.
        """
        self._tower = tower
        self._key = key
        self._untrained = self._sums() if key else ()

    @classmethod
    def of(cls, settings: RunSettings, tower: Backbone) -> FrozenEmbeddings:
        """Those of a run with these settings; on a GPU, which computes them in no time, its own."""
        if tower.device.type != "cpu" or warm.note(_NAME) is None:
            return cls()
        key = (
            weights.backbone_key(settings.backbone),
            embeddings.weights_sha256(settings.backbone) or "",
            settings.compile,
            settings.dataset.model_dump_json(),  # also how its images are stored
            read_manifest(settings.dataset.name).images_sha256,
            file_sha256(settings.dataset.name),  # which of them are test images
            # The program, its packages and its variables are those of the warm process.
            torch.backends.cpu.get_cpu_capability(),
            torch.get_num_threads(),
        )
        return cls(tower, key)

    def get(self, batch_size: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` returns, which encodes so many images at a time.

        The number is part of the key: a matrix product may sum in another order for another number.
        """
        path = self._path(batch_size)
        if path is None:
            return compute()
        with contextlib.suppress(SafetensorError, OSError, KeyError):  # none there, or damaged
            return load_file(path)[_NAME].clone()  # in memory that is aligned as usual
        found = compute()
        if found.nbytes <= MOST_BYTES and _shared_bytes(path.parent) + found.nbytes <= ALL_BYTES:
            # A full disk, or the warm process is gone: the run itself needs none of it.
            with contextlib.suppress(OSError, runtime.ResourceError):
                _write(path, found)
        return found

    def _path(self, batch_size: int) -> Path | None:
        """The file; None if nothing is shared, or the tower has been trained."""
        if not self._key or self._sums() != self._untrained:
            return None
        note = warm.note(_NAME, batch_size, *self._key)
        return None if note is None else note.with_suffix(_SUFFIX)

    def _sums(self) -> tuple[tuple[str, float], ...]:
        """Sums of the tower's tensors: other ones after any training, and quick to compute."""
        assert self._tower is not None
        state: dict[str, Tensor] = self._tower.visual.state_dict()
        return tuple((name, float(value.sum(dtype=torch.float64))) for name, value in state.items())


def _write(path: Path, found: Tensor) -> None:
    content = save({_NAME: found.contiguous()})
    with runtime.atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _shared_bytes(folder: Path) -> int:
    """Bytes of all shared files; other runs may write one at this moment."""
    return sum(path.stat().st_size for path in folder.glob(f"*{_SUFFIX}"))
