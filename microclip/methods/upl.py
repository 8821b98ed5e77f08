"""UPL: context vectors trained on the images that zero-shot CLIP is surest of.

Paper: Huang, Chu, Wei, arXiv:2204.03649. Upstream: tonyhuang2022/UPL@97f671f, by the numbers
recorded from it. Supervision: unlabelled training images. Departs: fidelity.md#upl.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microclip import runtime
from microclip.adaptation.losses import Losses, self_training_loss
from microclip.adaptation.pseudo_labels import Selection, most_confident
from microclip.adaptation.schedules import recipe_of
from microclip.adaptation.teacher import FixedLabels, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, ViewBatch, augmented, image_embeddings
from microclip.data.views import Crop
from microclip.methods.base import DeclaredMethod, Task, Tracker, ViewPlan, Views, Watching
from microclip.methods.linear import PromptClassifier
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.prompts import ContextPrompts, check_fit
from microclip.model.token_fusion import cosine_similarity
from microclip.model.trained import TrainedModule
from microclip.settings.methods.upl import DECLARATION, UplSettings


class PromptEnsemble(TrainedModule):
    """Prompts that are trained side by side; they share towers and labels, nothing else."""

    def __init__(self, members: Sequence[ContextPrompts]) -> None:
        """Hold `members`, at least one."""
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def backbone(self) -> Backbone:
        """The frozen network of all members."""
        return self.prompts[0].prompts.backbone

    @property
    def prompts(self) -> list[ContextPrompts]:
        """The members."""
        return [each for each in self.members if isinstance(each, ContextPrompts)]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return each member's context, by its number."""
        return {f"context_{number}": each.context for number, each in enumerate(self.prompts)}


class EnsembleClassifier:
    """The mean of the members' similarities.

    Source: tonyhuang2022/UPL averages logits, which are cosines times one scale.
    """

    def __init__(self, network: PromptEnsemble, settings: UplSettings) -> None:
        """Classify by the prompts of `network`, in their present state."""
        is_squashed = settings.image_shape == "squash"
        self.views = ViewPlan("image", "squash") if is_squashed else ViewPlan("embedding")
        self._network = network
        self._members = [PromptClassifier(each) for each in network.prompts]

    @torch.no_grad()
    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return the mean of the members' cosines."""
        if self.views.kind == "image":
            embeddings = self._network.backbone.encode_global(views.needed_images())
        else:
            embeddings = views.needed_embeddings()
        return mean_over_members(
            [cosine_similarity(embeddings, each.vectors) for each in self._members]
        )

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return the context vectors of all members."""
        return self._network.trained_state()


def mean_over_members(
    logits: Sequence[Float[Tensor, "batch classes"]],
) -> Float[Tensor, "batch classes"]:
    """Return the mean of logits, not of probabilities."""
    return torch.stack(list(logits)).mean(dim=0)


class EnsembleViews:
    """Batches of all members, one after another in one batch; each has order and crops of its own.

    As SGD and AdamW move each number by its own gradient, one training of all members is the same
    as one training of each.
    """

    def __init__(self, views: Sequence[TrainingViews]) -> None:
        """Join the views of the members, which must have equal numbers of images and batches."""
        self._views = tuple(views)
        self.seed = views[0].seed
        self.device = views[0].device
        self.n_batches = views[0].n_batches

    def identity(self) -> dict[str, object]:
        """Everything that determines the batches."""
        return {"members": [each.identity() for each in self._views]}

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[ViewBatch]:
        """Yield the joint batches of some epochs."""
        for parts in zip(
            *(each.batches(first_epoch, last_epoch) for each in self._views), strict=True
        ):
            yield ViewBatch(
                indices=torch.cat([part.indices for part in parts]),
                weak=torch.cat([part.weak for part in parts]),
                crops=torch.cat([part.crops for part in parts]),
            )


class EnsembleLosses(Losses[ViewBatch]):
    """Each member's cross-entropy on its own part of the batch."""

    def __init__(self, network: PromptEnsemble) -> None:
        """Train `network`."""
        self._network = network
        self._scale = network.backbone.logit_scale

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the term "ce", or one for each member of several."""
        del generator
        assert teaching.labels is not None
        members = self._network.prompts
        found = [
            self_training_loss(member.similarity(views), labels, self._scale)
            for member, views, labels in zip(
                members,
                batch.weak.chunk(len(members)),
                teaching.labels.chunk(len(members)),
                strict=True,
            )
        ]
        if len(found) == 1:
            return {"ce": found[0]}
        return {f"ce_{number}": term for number, term in enumerate(found)}


class Upl(DeclaredMethod[UplSettings]):
    """UPL."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: UplSettings, tracker: Tracker) -> EnsembleClassifier:
        """Return the classifier of prompts that were trained on the surest images.

        Raises:
            SettingsError: a prompt does not fit the text tower's context.
        """
        if task.images is None:
            raise ValueError("upl chooses among images, got none; give the training images")
        network = _network(task, settings)
        probabilities = zero_shot_probabilities(task, settings)
        chosen = most_confident(probabilities, settings.per_class)
        tracker.message(_chosen_line(chosen, task.class_names, settings.per_class))
        trainer = Trainer(
            network,
            FixedLabels(probabilities.argmax(dim=-1).to(task.device)),
            EnsembleLosses(network),
            recipe_of(settings),
            EnsembleViews(_views(task, settings, chosen)),
            settings=settings.model_dump(mode="json"),
            precision=task.precision,
        )
        classifier = EnsembleClassifier(network, settings)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: UplSettings, state: Mapping[str, Tensor]
    ) -> EnsembleClassifier:
        """Return the classifier with the trained contexts put back."""
        network = _network(task, settings)
        network.load_trained_state(dict(state))
        return EnsembleClassifier(network, settings)


METHOD = Upl()


@torch.no_grad()
def zero_shot_probabilities(task: Task, settings: UplSettings) -> Float[Tensor, "image classes"]:
    """Return frozen CLIP's class probabilities of the training images, at its own temperature.

    With `voters` they are the mean over the task's backbone and these (UPL*).
    """
    assert task.backbone is not None
    vectors = task.texts.templates if not settings.template else None
    own = _probabilities(task.backbone, task, settings, vectors)
    voters = (load_backbone(name, task.device) for name in settings.voters)
    return mean_over_backbones([own, *(_probabilities(each, task, settings) for each in voters)])


def mean_over_backbones(
    probabilities: Sequence[Float[Tensor, "image classes"]],
) -> Float[Tensor, "image classes"]:
    """Return the mean of probabilities, as UPL* averages them: neither logits nor votes."""
    return torch.stack(list(probabilities)).mean(dim=0)


def _probabilities(
    backbone: Backbone,
    task: Task,
    settings: UplSettings,
    vectors: Float[Tensor, "classes embedding"] | None = None,
) -> Float[Tensor, "image classes"]:
    """Return one backbone's probabilities, by `vectors` or by the settings' template."""
    assert task.images is not None
    crop: Crop = "squash" if settings.image_shape == "squash" else "center"
    embeddings = image_embeddings(backbone, task.images, crop)
    if vectors is None:
        names = [name.replace("_", " ") for name in task.class_names]
        sentences = [settings.template.format(name) for name in names]
        check_fit(backbone, sentences, "template")
        vectors = backbone.encode_text(sentences)
    cosines = cosine_similarity(embeddings, vectors.to(embeddings.device))
    return (backbone.logit_scale * cosines).softmax(dim=-1)


def _views(task: Task, settings: UplSettings, chosen: Selection) -> list[TrainingViews]:
    """Return the training views of each member."""
    assert task.images is not None
    assert task.backbone is not None
    is_squashed = settings.image_shape == "squash"
    return [
        TrainingViews(
            task.images,
            augmented(seed, task.backbone, is_squashed=is_squashed),
            batch_size=settings.batch_size,
            device=task.device,
            drop_last=settings.drop_last,
            chosen=chosen.indices.tolist(),
            is_strong=False,
        )
        for seed in _seeds(task, settings)
    ]


def _network(task: Task, settings: UplSettings) -> PromptEnsemble:
    """Return the prompts before training, on the task's frozen backbone."""
    if task.backbone is None:
        raise ValueError("upl reads its prompts with a backbone, got none; give one to the task")
    return PromptEnsemble(
        [
            ContextPrompts.untrained(
                task.backbone, task.class_names, settings, runtime.generator(seed, "context")
            )
            for seed in _seeds(task, settings)
        ]
    )


def _seeds(task: Task, settings: UplSettings) -> list[int]:
    """Return the members' seeds; the first member is the training without an ensemble."""
    others = [runtime.derive_seed(task.seed, "member", n) for n in range(1, settings.ensemble)]
    return [task.seed, *others]


def _chosen_line(chosen: Selection, class_names: Sequence[str], per_class: int) -> str:
    """Say how many images were chosen, and which classes have fewer than asked for."""
    counts: Int[Tensor, " classes"] = torch.bincount(chosen.labels, minlength=len(class_names))
    found = f"{len(chosen.indices)} images of {int((counts > 0).sum())} classes chosen"
    n_few, n_empty = int((counts < per_class).sum()), int((counts == 0).sum())
    if n_few == 0:
        return found
    empty = f", {n_empty} of them none, as zero-shot never predicts them" if n_empty else ""
    first = class_names[int((counts < per_class).nonzero()[0])]
    few = f"{n_few} of {len(counts)} classes have fewer than {per_class}"
    return f"{found}; {few}{empty} ({first!r} and so on)"
