"""One file per epoch, from which a run resumes as if it had never stopped.

Weights, the optimiser's moments, what teacher and losses remember, and the random state are tensors
of one safetensors file, replaced by a rename: there is never half a checkpoint, and nothing is
ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import Optimizer

from microclip import runtime
from microclip.settings.base import SettingsError, loads

logger = logging.getLogger(__name__)

FILE = "last.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after `epoch` epochs; `parts` are named `<teacher or losses>/<what>`."""

    epoch: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    rng: Tensor = field(default_factory=torch.get_rng_state)

    def part(self, name: str) -> dict[str, Tensor]:
        """What one part remembers."""
        return _below(self.parts, f"{name}/")


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's moments and step counts, named `<parameter number>/<what>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}/{what}": value
        for number, values in state.items()
        for what, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned; rates and decay stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, what = name.split("/", 1)
        state.setdefault(int(number), {})[what] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save(folder: Path, checkpoint: Checkpoint, key: str) -> Path:
    """Replace the last checkpoint; `key` names what the run depends on."""
    tensors = {
        **{f"weights/{name}": value for name, value in checkpoint.weights.items()},
        **{f"optimizer/{name}": value for name, value in checkpoint.optimizer.items()},
        **{f"parts/{name}": value for name, value in checkpoint.parts.items()},
        "rng/torch": checkpoint.rng,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    record = {"epoch": checkpoint.epoch, "key": key, "sha256": _hash(tensors)}
    path = folder / FILE
    with runtime.atomic_path(path) as target:
        target.write_bytes(to_bytes(tensors, metadata={"microclip": json.dumps(record)}))
    return path


def load(folder: Path, key: str) -> Checkpoint | None:
    """Return the last checkpoint, or None if there is none or it belongs to other settings.

    Raises:
        SettingsError: the file is damaged or cut short.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            record = loads((opened.metadata() or {})["microclip"])
            known, sha256, epoch = record["key"], record["sha256"], int(record["epoch"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if known != key:
        logger.warning("%s belongs to other settings or inputs; starting at epoch 0", path)
        return None
    if "rng/torch" not in tensors or _hash(tensors) != sha256:
        raise _damaged(path, "its tensors do not match the sha256 it names")
    return Checkpoint(
        epoch=epoch,
        weights=_below(tensors, "weights/"),
        optimizer=_below(tensors, "optimizer/"),
        parts=_below(tensors, "parts/"),
        rng=tensors["rng/torch"],
    )


def write_weights(path: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write trained tensors with a record and their hash; the same inputs give the same bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    # One key: safetensors does not keep their order.
    text = json.dumps({**record, "tensors_sha256": _hash(tensors)}, sort_keys=True)
    with runtime.atomic_path(path) as target:
        target.write_bytes(to_bytes(tensors, metadata={"microclip": text}))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_weights` wrote: the tensors and the record.

    Raises:
        SettingsError: the file is cut, or its tensors are not those that were written. A file from
            before hashes were recorded is not checked for the latter.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            record = dict(loads((opened.metadata() or {}).get("microclip", "{}")))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError) as error:
        raise _damaged_weights(path, " ".join(str(error).split())) from error
    if record.pop("tensors_sha256", None) not in (None, _hash(tensors)):
        raise _damaged_weights(path, "its tensors are not those that were written")
    return tensors, record


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes and values."""
    return _hash({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _hash(tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha256.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def _damaged_weights(path: Path, why: str) -> SettingsError:
    return SettingsError(
        f"weights {path} are damaged ({why}); run that run again, or put the file back"
    )


def _damaged(path: Path, why: str) -> SettingsError:
    return SettingsError(
        f"checkpoint {path} is damaged or cut short ({why}); delete it to begin at epoch 0"
    )
