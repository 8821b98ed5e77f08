"""ReCLIP: labels spread from class names to images; two copies of CLIP learn where they agree.

Paper: Hu et al., WACV 2024, arXiv:2308.03793. Upstream: michiganleon/ReCLIP_WACV, by the numbers
recorded from it. Supervision: unlabelled training images, or with `adapt_to: test` the test images.
Departs: fidelity.md#reclip.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microclip.adaptation.feature_bank import (
    GraphOptions,
    Propagation,
    class_centroids,
    propagate_labels,
    text_subspace,
)
from microclip.adaptation.losses import Losses
from microclip.adaptation.schedules import OptimizerRecipe, constant
from microclip.adaptation.teacher import Look, Teacher, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import (
    TrainingViews,
    UnlabelledImages,
    ViewBatch,
    ViewRecipe,
    evaluation_views,
)
from microclip.methods.base import DeclaredMethod, Task, Tracker, ViewPlan, Views, Watching
from microclip.model import frozen_linear
from microclip.model.backbone import Backbone
from microclip.model.prompts import ClassPrompts, text_layer_norms
from microclip.model.token_fusion import cosine_similarity
from microclip.model.trained import Remembered, TrainedModule
from microclip.settings.methods.reclip import DECLARATION, ReclipSettings
from microclip.text.classifier import template_classifier
from microclip.text.prompts import fill

_LABEL_BATCH = 64

Pictures = Callable[[], Iterable[Float[Tensor, "batch 3 size size"]]]


class _ImageTower(nn.Module):
    """A network that is an image tower alone."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


class TwoCopies(TrainedModule):
    """Two copies of CLIP: one learns the text tower's LayerNorms, one the image tower's.

    Attributes:
        text: the copy whose text tower learns; its image tower never changes.
        visual: the copy whose image tower learns; its classifier are class centroids.
        centroids: rows of unit length, made by the label passes and not by gradient.
    """

    centroids: Float[Tensor, "classes embedding"]
    tokens: Int[Tensor, "classes template context"]

    def __init__(self, backbone: Backbone, tokens: Int[Tensor, "classes template context"]) -> None:
        """Copy the image tower of `backbone`, whose text tower is trained in place.

        The first template alone is the text copy's classifier; labels spread from the mean of all.

        Raises:
            ValueError: the text tower is not CLIP's own.
        """
        super().__init__()
        self.text = backbone
        self.visual = Backbone(_ImageTower(copy.deepcopy(backbone.visual)))
        first = tokens[:, 0]
        self._prompts = [ClassPrompts(backbone, first, [0] * len(first), n_vectors=0)]
        self.register_buffer("tokens", tokens, persistent=False)
        self._class_vectors = Remembered(self, self.class_vectors)
        self._text_matrix = Remembered(self, self._encoded_templates)
        self.register_buffer("centroids", self.text_matrix().clone(), persistent=False)
        self.freeze_the_rest()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the LayerNorms of the one copy's text tower and of the other's image tower."""
        text, visual = text_layer_norms(self.text), self.visual.layer_norms()
        return {
            **{f"text.{name}": parameter for name, parameter in text.items()},
            **{f"visual.{name}": parameter for name, parameter in visual.items()},
        }

    def trained_state(self) -> dict[str, Tensor]:
        """Return copies of LayerNorms and centroids, on the CPU."""
        return {**super().trained_state(), "centroids": self.centroids.cpu().clone()}

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trained_state` returned.

        Raises:
            ValueError: names or shapes differ from those of this network.
        """
        own = dict(state)
        centroids = own.pop("centroids", torch.empty(0))
        if centroids.shape != self.centroids.shape:
            raise ValueError(
                f"the state to load holds centroids of shape {tuple(centroids.shape)}, expected "
                f"{tuple(self.centroids.shape)}; use the classes and backbone it was trained with"
            )
        super().load_trained_state(own)
        self.centroids.copy_(centroids)

    def class_vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return the unit vectors of the first template, with gradient where it is asked for."""
        (prompts,) = self._prompts
        return prompts.encode(self.centroids.new_empty(0, prompts.width))

    def known_class_vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return `class_vectors` without gradient, encoded again only if a copy has changed."""
        return self._class_vectors()

    def text_matrix(self) -> Float[Tensor, "classes embedding"]:
        """Return the class vectors of all templates, each normalised before their mean.

        They are encoded again only if a copy has changed: ImageNet has 80,000 filled templates.
        """
        return self._text_matrix()

    def _encoded_templates(self) -> Float[Tensor, "classes embedding"]:
        n_classes, n_templates, _ = self.tokens.shape
        rows = torch.split(self.tokens.flatten(0, 1), 256)
        encoded = torch.cat([self.text.encode_tokens(own) for own in rows])
        return template_classifier(list(encoded.reshape(n_classes, n_templates, -1)))


class CopiesClassifier:
    """The mean of what both copies say."""

    views = ViewPlan("image")

    def __init__(self, network: TwoCopies) -> None:
        """Classify by `network`."""
        self._network = network

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return the mean of both copies' cosines."""
        return self.heads(views)["fused"]

    @torch.no_grad()
    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the mean, and the cosines of the text and of the visual copy."""
        images, network = views.needed_images(), self._network.eval()
        text = cosine_similarity(network.text.encode_global(images), network.known_class_vectors())
        visual = cosine_similarity(network.visual.encode_global(images), network.centroids)
        return {"fused": 0.5 * (text + visual), "text": text, "visual": visual}

    def trained_state(self) -> dict[str, Tensor]:
        """Return both copies' LayerNorms, and the centroids."""
        return self._network.trained_state()


@dataclass(frozen=True, eq=False)
class LabelPass:
    """What an epoch learns from.

    Attributes:
        texts: class vectors of the text copy, the text nodes of its graph.
        text: the text copy's propagation.
        visual: the visual copy's propagation.
        centroids: the visual copy's classifier in this epoch.
        labels: of the images, by the text copy.
        is_agreed: where both copies have the same label; on the CPU.
    """

    texts: Float[Tensor, "classes embedding"]
    text: Propagation
    visual: Propagation
    centroids: Float[Tensor, "classes embedding"]
    labels: Int[Tensor, " image"]
    is_agreed: Bool[Tensor, " image"]


class PropagationTeacher(Teacher[ViewBatch]):
    """Labels all images before each epoch, and teaches those on which both copies agree."""

    def __init__(self, network: TwoCopies, settings: ReclipSettings, pictures: Pictures) -> None:
        """Teach `network`; `pictures` gives all images in order, as they are tested."""
        self._network = network
        self._pictures = pictures
        self._cut = settings.cut
        self._options = GraphOptions(settings.neighbours, settings.alpha, settings.iterations)
        # The visual copy's text nodes stay those of the untrained network, even in a resumed run:
        # this comes before the trainer loads a checkpoint.
        self._start = network.text_matrix()
        self._features: Tensor | None = None
        self._pass: LabelPass | None = None

    @property
    def features(self) -> Float[Tensor, "image embedding"]:
        """Features of the text copy, whose image tower never changes."""
        if self._features is None:
            self._features = self._encode(self._network.text)
        return self._features

    @property
    def label_pass(self) -> LabelPass:
        """The labels of this epoch."""
        assert self._pass is not None, "the images are labelled at the start of an epoch"
        return self._pass

    def start_epoch(self, epoch: int) -> None:
        """Label all images, and give the visual copy the centroids of its labels."""
        # Before the first step the two image towers are the same.
        visual = self.features if epoch == 1 else self._encode(self._network.visual)
        self._pass = self.label(visual)
        self._network.centroids.copy_(self._pass.centroids)

    def label(self, visual_features: Float[Tensor, "image embedding"]) -> LabelPass:
        """Return the labels of both copies; nothing of the network is changed."""
        texts = self._network.text_matrix()
        text = self._propagate(texts, self.features)
        visual = self._propagate(self._start, visual_features)
        nodes = torch.cat([self._start, visual_features])
        return LabelPass(
            texts=texts,
            text=text,
            visual=visual,
            # A class that lost all nodes, its own text among them, keeps its vector.
            centroids=class_centroids(nodes, visual.node_labels, self._network.centroids),
            labels=text.labels,
            is_agreed=(text.labels == visual.labels).cpu(),
        )

    def _propagate(
        self, texts: Float[Tensor, "classes embedding"], features: Float[Tensor, "image embedding"]
    ) -> Propagation:
        return propagate_labels(texts, features, text_subspace(texts, self._cut), self._options)

    @torch.no_grad()
    @frozen_linear.packed()
    def _encode(self, tower: Backbone) -> Float[Tensor, "image embedding"]:
        return torch.cat([tower.encode_global(images) for images in self._pictures()])

    def teach(self, batch: ViewBatch, generator: torch.Generator | None = None) -> Teaching | None:
        """Return the labels of a batch, with weight 0 where the copies disagree.

        None if they agree on no image: then neither copy moves.
        """
        del generator
        found, indices = self.label_pass, batch.indices
        agreed = found.is_agreed[indices]
        if not agreed.any():
            return None
        place = indices.to(found.labels.device, non_blocking=True)
        weights = agreed.to(found.labels.device, torch.float32, non_blocking=True)
        own = found.labels[place]
        return Teaching(
            own,
            weights=weights,
            parts={"text": own, "visual": found.visual.labels[place]},
            measures={"agreement": weights},
            look=lambda: Look({"unreached": (~found.text.is_reached).float()}),
        )


class CopiesLosses(Losses[ViewBatch]):
    """Cross-entropy of each copy on the images with agreed labels.

    Source: michiganleon/ReCLIP_WACV. The visual copy's loss is divided by the batch size as well
    there; `visual_loss: mean` leaves that out.
    """

    def __init__(
        self, network: TwoCopies, settings: ReclipSettings, teacher: PropagationTeacher
    ) -> None:
        """Train `network`; the text copy's image features are the teacher's."""
        self._network = network
        self._settings = settings
        self._teacher = teacher

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms "text" and "visual", one for each copy."""
        del generator
        assert teaching.weights is not None
        text, visual = self.cross_entropies(batch, teaching)
        n_agreed, n = teaching.weights.sum(), len(batch.indices)
        extra = n if self._settings.visual_loss == "as-coded" else 1
        return {
            "text": (teaching.weights * text).sum() / n_agreed,
            "visual": (teaching.weights * visual).sum() / extra / n_agreed,
        }

    def cross_entropies(
        self, batch: ViewBatch, teaching: Teaching
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return the cross-entropy of each image, by each copy with its own labels."""
        text, visual = self.logits(batch)
        return (
            functional.cross_entropy(text, teaching.parts["text"], reduction="none"),
            functional.cross_entropy(visual, teaching.parts["visual"], reduction="none"),
        )

    def logits(
        self, batch: ViewBatch
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Return the logits of a batch, by the text and by the visual copy."""
        network, scale = self._network, self._settings.temperature
        features = self._teacher.features
        own = features[batch.indices.to(features.device, non_blocking=True)]
        text = cosine_similarity(own, network.class_vectors())
        visual = cosine_similarity(network.visual.encode_global(batch.weak), network.centroids)
        return scale * text.float(), scale * visual.float()


class Reclip(DeclaredMethod[ReclipSettings]):
    """ReCLIP."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: ReclipSettings, tracker: Tracker) -> CopiesClassifier:
        """Return the classifier, trained on the task's unlabelled images."""
        if task.images is None:
            raise ValueError("reclip trains on images, got none; give the images to adapt to")
        network = _network(task, settings)
        recipe = replace(ViewRecipe.of(network.text, task.seed), weak="center")
        views = TrainingViews(
            task.images,
            recipe,
            batch_size=settings.batch_size,
            device=task.device,
            is_strong=False,
        )
        teacher = PropagationTeacher(network, settings, _in_order(task.images, recipe, task.device))
        trainer = Trainer(
            network,
            teacher,
            CopiesLosses(network, settings, teacher),
            optimizer_recipe(settings, len(task.images)),
            views,
            settings=settings.model_dump(mode="json"),
            precision=task.precision,
        )
        classifier = CopiesClassifier(network)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: ReclipSettings, state: Mapping[str, Tensor]
    ) -> CopiesClassifier:
        """Return the classifier with trained tensors put back."""
        network = _network(task, settings)
        network.load_trained_state(state)
        return CopiesClassifier(network)


METHOD = Reclip()


def optimizer_recipe(settings: ReclipSettings, n_images: int) -> OptimizerRecipe:
    """Return how the trained tensors move: one optimiser whose two groups share nothing."""
    rate = settings.text_learning_rate
    return OptimizerRecipe(
        schedule=constant(rate),
        epochs=settings.n_epochs(n_images),
        kind=settings.optimizer,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        factors=(("visual.", settings.visual_learning_rate / rate),),
    )


def _network(task: Task, settings: ReclipSettings) -> TwoCopies:
    """Return both copies before training. It changes the task's backbone in place."""
    if task.backbone is None:
        raise ValueError("reclip trains the backbone, got none; give one to the task")
    if not task.templates:
        raise ValueError("reclip encodes the templates itself, got none; give them to the task")
    first = (settings.first_template,) if settings.first_template else ()
    templates = (*first, *task.templates)
    prompts = [task.backbone.tokenize(own) for own in fill(templates, task.class_names)]
    return TwoCopies(task.backbone, torch.stack(prompts).to(task.device))


def _in_order(images: UnlabelledImages, recipe: ViewRecipe, device: str) -> Pictures:
    return lambda: evaluation_views(
        images, recipe, crop="center", batch_size=_LABEL_BATCH, device=device
    )
