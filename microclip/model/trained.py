"""Networks of which only some tensors are trained: kept, put back, and what is made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

_SHOWN = 3  # names in an error


class TrainedModule(nn.Module, ABC):
    """A network that names the tensors it trains; all others are frozen."""

    @abstractmethod
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return exactly what is trained, by name."""

    def freeze_the_rest(self) -> None:
        """Let only `trained_parameters()` require a gradient."""
        self.requires_grad_(requires_grad=False)
        for parameter in self.trained_parameters().values():
            parameter.requires_grad = True

    def trained_state(self) -> dict[str, Tensor]:
        """Return copies of what is trained, on the CPU, ready to be written to a file."""
        return {
            name: parameter.detach().cpu().clone()
            for name, parameter in self.trained_parameters().items()
        }

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trained_state` returned.

        Raises:
            ValueError: names or shapes differ from those of this network.
        """
        expected = self.trained_parameters()
        differs = difference(expected, state)
        if differs is not None:
            raise ValueError(
                f"the state to load holds {differs}; use the backbone, classes and options it was "
                "trained with"
            )
        for name, parameter in expected.items():
            parameter.copy_(state[name])

    def state_version(self) -> tuple[int, ...]:
        """Return a number per trained tensor that each change in place raises."""
        return tuple(parameter._version for parameter in self.trained_parameters().values())


class Remembered:
    """A tensor made of what a network trains, without gradient; made again only after a change."""

    def __init__(self, network: TrainedModule, make: Callable[[], Tensor]) -> None:
        """Remember what `make` returns while nothing that `network` trains has changed."""
        self._network, self._make = network, make
        self._version: tuple[int, ...] | None = None
        self._made = torch.empty(0)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Return the tensor, which is lent: do not write into it."""
        version = self._network.state_version()
        if version != self._version:
            self._made, self._version = self._make(), version
        return self._made


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return in words how `found` differs from `expected` by names and shapes, or None.

    Gives both counts, then the first few names that differ.
    """
    parts = [
        f"{word} {_named(sorted(names))}"
        for word, names in (
            ("missing", expected.keys() - found.keys()),
            ("unknown", found.keys() - expected.keys()),
        )
        if names
    ]
    parts += [
        f"'{name}' has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in sorted(expected.items())
        if name in found and found[name].shape != tensor.shape
    ][:_SHOWN]
    if not parts:
        return None
    return f"{len(found)} tensors where {len(expected)} are expected; {', '.join(parts)}"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return " ".join(f"'{name}'" for name in names[:_SHOWN]) + more
