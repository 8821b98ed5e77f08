"""MaPLe: prompts in both towers, those of the image tower made from those of the text tower.

Paper: Khattak, Rasheed, Maaz, Khan, Khan, CVPR 2023. Upstream:
muzairkhattak/multimodal-prompt-learning@69bce21, by the numbers recorded from it. Supervision:
few-shot. Departs: fidelity.md#maple.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microclip import runtime
from microclip.methods.base import (
    DeclaredMethod,
    Task,
    Tracker,
    ViewPlan,
    Views,
    Watching,
)
from microclip.methods.few_shot import labelled, prompt_trainer
from microclip.model.backbone import Backbone, unit_norm
from microclip.model.prompts import (
    ClassPrompts,
    class_prompts,
    encode_prompted_images,
    random_vectors,
    word_embeddings,
)
from microclip.model.token_fusion import cosine_similarity
from microclip.model.trained import Remembered, TrainedModule
from microclip.settings.base import SettingsError
from microclip.settings.methods.maple import DECLARATION, MapleSettings


class CoupledPrompts(TrainedModule):
    """Prompt tokens before the first blocks of both towers, coupled by a linear map per block.

    The first prompt joins the input; each later one replaces it before its block. At its start the
    network is not the zero-shot classifier.
    """

    def __init__(
        self,
        prompts: ClassPrompts,
        context: Float[Tensor, "vector text_width"],
        depth: int,
        generator: torch.Generator,
    ) -> None:
        """Start from `context`; `depth` - 1 deeper prompts and the maps are drawn.

        Raises:
            SettingsError: `depth` is more than the blocks of a tower.
        """
        super().__init__()
        _check_depth(prompts.backbone, depth)
        self.prompts = prompts
        backbone, n = prompts.backbone, prompts.n_vectors
        self.context = nn.Parameter(context.detach().clone().float())
        self.coupling = _drawn_map(prompts.width, backbone.width, generator)
        self.deep_prompts = nn.ParameterList(
            random_vectors(n, prompts.width, generator=generator) for _ in range(depth - 1)
        )
        # The official code copies one map, so that all deep ones start equal.
        deep = _drawn_map(prompts.width, backbone.width, generator)
        self.deep_couplings = nn.ModuleList(_copied(deep) for _ in range(depth - 1))
        self.to(backbone.device)
        self.freeze_the_rest()

    def class_vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return the unit class vectors of the present prompts."""
        return self.prompts.encode(self.context, list(self.deep_prompts))

    def encode_image(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch embedding"]:
        """Return the unit embeddings of normalised images, read with the coupled prompts."""
        own = [self.coupling(self.context)]
        own += [
            coupling(prompt)
            for coupling, prompt in zip(self.deep_couplings, self.deep_prompts, strict=True)
        ]
        return unit_norm(encode_prompted_images(self.prompts.backbone, images, own, is_normed=True))

    def similarity(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the cosines of normalised images with the class vectors."""
        return cosine_similarity(self.encode_image(images), self.class_vectors())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the prompts and the maps, shallow ones first."""
        found = {"context": self.context}
        for name, parameter in self.coupling.named_parameters():
            found[f"coupling.{name}"] = parameter
        for number, prompt in enumerate(self.deep_prompts, start=1):
            found[f"deep_prompt_{number}"] = prompt
        for number, coupling in enumerate(self.deep_couplings, start=1):
            for name, parameter in coupling.named_parameters():
                found[f"deep_coupling_{number}.{name}"] = parameter
        return found


class CoupledClassifier:
    """CoupledPrompts in evaluation mode; the class vectors are kept while nothing changes."""

    views = ViewPlan("image")

    def __init__(self, network: CoupledPrompts) -> None:
        """Classify by `network`, in its present state."""
        self._network = network
        self._class_vectors = Remembered(network, network.class_vectors)

    @torch.no_grad()
    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return cosines."""
        embeddings = self._network.encode_image(views.needed_images())
        return cosine_similarity(embeddings, self._class_vectors())

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return prompts and maps."""
        return self._network.trained_state()


class Maple(DeclaredMethod[MapleSettings]):
    """MaPLe."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: MapleSettings, tracker: Tracker) -> CoupledClassifier:
        """Return the classifier of the trained prompts.

        Raises:
            SettingsError: deeper than a tower, or a prompt does not fit the text tower's context.
        """
        examples = labelled(task, settings.shots, tracker)
        network = untrained(task, settings)
        trainer = prompt_trainer(task, settings, network, examples)
        classifier = CoupledClassifier(network)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: MapleSettings, state: Mapping[str, Tensor]
    ) -> CoupledClassifier:
        """Return the classifier with prompts and maps put back."""
        network = untrained(task, settings)
        network.load_trained_state(dict(state))
        return CoupledClassifier(network)


METHOD = Maple()


def untrained(task: Task, settings: MapleSettings) -> CoupledPrompts:
    """Return the prompts before training, on the task's frozen backbone."""
    backbone = task.backbone
    if backbone is None:
        raise ValueError("maple prompts a backbone, got none; give one to the task")
    _check_depth(backbone, settings.depth)
    words = word_embeddings(backbone, settings.initial_words)
    has_words = len(words) >= settings.n_context
    prompts = class_prompts(
        backbone,
        task.class_names,
        n_vectors=settings.n_context,
        words=settings.initial_words if has_words else "",
    )
    generator = runtime.generator(task.seed, "context")
    start = (
        words[: settings.n_context]
        if has_words
        else random_vectors(settings.n_context, prompts.width, generator=generator)
    )
    return CoupledPrompts(prompts, start, settings.depth, generator)


def _check_depth(backbone: Backbone, depth: int) -> None:
    """Refuse more prompts than a tower has blocks."""
    n_text = len(backbone.model.transformer.resblocks)  # type: ignore[union-attr, arg-type]
    n_image = len(backbone.visual.transformer.resblocks)
    if depth > min(n_text, n_image):
        raise SettingsError(
            f"depth must be at most {min(n_text, n_image)} for this backbone ({n_image} blocks in "
            f"its image tower, {n_text} in its text tower), got {depth}; lower depth"
        )


def _drawn_map(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear map with torch's default start, drawn from `generator`."""
    drawn = _empty_map(n_in, n_out)
    bound = n_in**-0.5
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return drawn


def _copied(linear: nn.Linear) -> nn.Linear:
    """Return a map that starts equal."""
    found = _empty_map(linear.in_features, linear.out_features)
    found.load_state_dict(linear.state_dict())
    return found


def _empty_map(n_in: int, n_out: int) -> nn.Linear:
    """Return a map without values: torch would draw them from the global generator."""
    empty: nn.Linear = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
    return empty
