"""What a method says of itself, apart from its code, so that a study can be planned without torch.

`settings/methods/<name>.py` holds a method's `DECLARATION`, `methods/<name>.py` its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

MethodSettings = TypeVar("MethodSettings", bound=BaseModel)


class Supervision(StrEnum):
    """What a method may see of the dataset besides class names and descriptions."""

    NONE = "none"
    UNLABELLED = "unlabelled"
    TRANSDUCTIVE = "transductive"
    FEW_SHOT = "few-shot"
    LABELS = "labels"  # of all training images: an upper bound, not a competitor


@dataclass(frozen=True)
class Work:
    """What adapting a method computes, in views of an image, so that its time can be estimated.

    Attributes:
        epochs: passes over the images that it may see; a function if their number decides. After
            each it is tested.
        steps: a number of steps, divided among the epochs, however many passes they are.
        batch_size: images per step.
        encoded_once: views of an image that are encoded before the first epoch.
        encoded: views per epoch that are encoded to the class token, without gradient.
        fused: views per epoch that are read with their patches, without gradient.
        trained: views per epoch with a backward pass.
        prompts: texts of a class that each step sends through the text tower, with a backward pass.
        prompt_tokens: their length, about; None: the tower's whole context.
        tested: views of a test image that are encoded for its prediction; 0: its frozen embedding
            is kept.
        reads_patches: training and testing read patches, not the class token alone.
        is_cut: patches are cut into two sides wherever they are read.
    """

    epochs: int | Callable[[int], int] = 0
    steps: int | None = None
    batch_size: int = 1
    encoded_once: int = 0
    encoded: int = 0
    fused: int = 0
    trained: int = 0
    prompts: int = 0
    prompt_tokens: int | None = None
    tested: int = 1
    reads_patches: bool = False
    is_cut: bool = False

    def n_epochs(self, n_images: int) -> int:
        """Return the passes over so many images."""
        return self.epochs(n_images) if callable(self.epochs) else self.epochs

    def n_steps(self, n_images: int) -> int:
        """Return the steps of a training on so many images."""
        if self.steps is not None:
            return self.steps
        return self.n_epochs(n_images) * self._n_batches(n_images)

    def n_passes(self, n_images: int) -> float:
        """Return how often so many images are gone through, whether epochs or steps count it."""
        return self.n_steps(n_images) / self._n_batches(n_images)

    def _n_batches(self, n_images: int) -> int:
        return -(-n_images // self.batch_size)


@dataclass(frozen=True)
class Declaration(Generic[MethodSettings]):
    """What planning a study needs to know of a method.

    Attributes:
        settings: the model of its settings. A few-shot method has a setting `shots`: labelled
            images per class.
        supervision: what it may see.
        supervision_with: what it may see with some settings, if those decide it (ReCLIP).
        reads: the frozen [CLS] embeddings alone, or images and the backbone.
        recipe: raised whenever the same settings mean other numbers.
        revised: values of settings that came to mean other numbers; they raise the recipe of the
            runs with that value alone.
        evaluation_fields: settings that only change how a trained classifier is tested.
        work: what adapting with some settings computes; without it, `microclip plan` gives no time
            for the method's runs.
        follows: a method whose settings this one takes, as far as both have them: from its file,
            from a dataset's block and from a study's. So a bound trains like what it bounds.
        also_loads: names of further backbones that it loads with some settings (UPL's voters).
    """

    settings: type[MethodSettings]
    supervision: Supervision
    reads: Literal["embeddings", "images"]
    recipe: int = 1
    revised: Mapping[str, object] = field(default_factory=dict)
    evaluation_fields: frozenset[str] = frozenset()
    work: Callable[[MethodSettings], Work] | None = None
    follows: str | None = None
    supervision_with: Callable[[MethodSettings], Supervision] | None = None
    also_loads: Callable[[MethodSettings], tuple[str, ...]] | None = None

    def sees(self, settings: Mapping[str, object] | BaseModel) -> Supervision:
        """Return what the method may see with some settings."""
        if self.supervision_with is None:
            return self.supervision
        return self.supervision_with(self.settings.model_validate(settings))
