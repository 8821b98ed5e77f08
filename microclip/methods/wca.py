"""WCA: crops of an image against sentences of a class, each weighted by its likeness to the whole.

Paper: Li et al., ICML 2024. Upstream: tmlr-group/WCA@dfb4e6f, by the numbers recorded from it.
Supervision: none; nothing is trained. Departs: fidelity.md#wca.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip import runtime
from microclip.adaptation.multi_view import aggregate_views, weighted_views
from microclip.data.crops import CropDraw
from microclip.methods.base import REPEAT, DeclaredMethod, Task, Tracker, ViewPlan, Views
from microclip.model.backbone import unit_norm
from microclip.model.prompts import check_fit
from microclip.model.sentences import encode, encode_classes
from microclip.settings.methods.wca import DECLARATION, WcaSettings
from microclip.text.classifier import ClassEmbeddings, anchored_sums
from microclip.text.prompts import fill


def draw_crops(
    n_crops: int, n_drawn: int, n_repeats: int, generator: torch.Generator
) -> Int[Tensor, "repeat drawn"]:
    """Draw numbers of crops with replacement, repeat by repeat.

    Source: tmlr-group/WCA, whose main program seeds the generator and then draws these.
    """
    draws = [torch.randint(n_crops, (n_drawn,), generator=generator) for _ in range(n_repeats)]
    return torch.stack(draws)


def class_vectors(
    sentences: ClassEmbeddings, anchors: Float[Tensor, "classes embedding"], settings: WcaSettings
) -> Float[Tensor, "classes embedding"]:
    """Return each class's sentences, weighted by their likeness to the anchor and summed."""
    sums = anchored_sums(sentences, anchors, settings.text_scale)
    return unit_norm(sums) if settings.sums == "normalised" else sums


class CropClassifier:
    """Class vectors against the weighted crops of an image."""

    def __init__(
        self,
        vectors: Float[Tensor, "classes embedding"],
        settings: WcaSettings,
        draws: Int[Tensor, "repeat drawn"],
    ) -> None:
        """Classify by `vectors` and, in each repeat, by the crops of the numbers in `draws`."""
        self.views = ViewPlan("embedding", squares=CropDraw(settings.n_crops, settings.crop_scale))
        self._vectors = vectors
        self._settings = settings
        self._draws = draws

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return the scores of the first draw."""
        return self._scores(views, 0)

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the scores of every draw; the first is the prediction."""
        numbers = range(1, len(self._draws))
        repeats = {f"{REPEAT}{number + 1}": self._scores(views, number) for number in numbers}
        return {"fused": self.logits(views), **repeats}

    def trained_state(self) -> dict[str, Tensor]:
        """Return the class vectors: a saved classifier has no sentences to make them from."""
        return {"vectors": self._vectors}

    def _scores(self, views: Views, repeat: int) -> Float[Tensor, "batch classes"]:
        """Return the weighted sum of cosines between crops and sentences."""
        if views.squares is None:
            raise ValueError(
                "this classifier reads embeddings of crops, got none; follow its ViewPlan"
            )
        whole, settings = views.needed_embeddings(), self._settings
        drawn = views.squares[:, self._draws[repeat].to(whole.device)]
        summed = aggregate_views if settings.sums == "normalised" else weighted_views
        image = summed(whole, drawn, 1 / settings.image_scale)
        return image @ self._vectors.to(whole.device).T


class Wca(DeclaredMethod[WcaSettings]):
    """WCA."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: WcaSettings, tracker: Tracker) -> CropClassifier:
        """Return the classifier of the task's sentences; there is nothing to train.

        Raises:
            SettingsError: an anchor does not fit the text tower's context.
        """
        tracker.message(f"no training: {settings.n_crops} crops per image against descriptions")
        return self.restore(task, settings, {"vectors": _encoded(task, settings)})

    def restore(
        self, task: Task, settings: WcaSettings, state: Mapping[str, Tensor]
    ) -> CropClassifier:
        """Return the classifier of given class vectors."""
        draws = draw_crops(
            settings.n_crops,
            settings.n_drawn,
            settings.n_repeats,
            runtime.generator(task.seed, "drawn-crops"),
        )
        return CropClassifier(state["vectors"], settings, draws)


METHOD = Wca()


def _encoded(task: Task, settings: WcaSettings) -> Float[Tensor, "classes embedding"]:
    """Return the class vectors of the task's sentences."""
    if task.backbone is None or not task.sentences:
        raise ValueError("wca encodes sentences, got none or no backbone; give both to the task")
    anchors = [own[0] for own in fill([settings.anchor], task.class_names)]
    check_fit(task.backbone, anchors, "anchor")
    store = task.sentence_store
    sentences, _ = encode_classes(task.backbone, task.sentences, store)
    return class_vectors(sentences, encode(task.backbone, anchors, store).raw, settings)
