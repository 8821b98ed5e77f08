"""CoOp: context vectors before the class names, trained on a few labelled images.

Paper: Zhou, Yang, Loy, Liu, IJCV 2022. Upstream: KaiyangZhou/CoOp@ff61507 and its toolbox Dassl, by
the numbers recorded from them. Supervision: few-shot. Departs: fidelity.md#coop.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from microclip import runtime
from microclip.methods.base import DeclaredMethod, Task, Tracker, Watching
from microclip.methods.few_shot import labelled, prompt_trainer
from microclip.methods.linear import PromptClassifier
from microclip.model.prompts import ContextPrompts
from microclip.settings.methods.coop import DECLARATION, CoopSettings


class Coop(DeclaredMethod[CoopSettings]):
    """CoOp."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: CoopSettings, tracker: Tracker) -> PromptClassifier:
        """Return the classifier of the trained prompts.

        Raises:
            SettingsError: a prompt does not fit the text tower's context.
        """
        examples = labelled(task, settings.shots, tracker)
        network = _network(task, settings)
        trainer = prompt_trainer(task, settings, network, examples)
        classifier = PromptClassifier(network)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: CoopSettings, state: Mapping[str, Tensor]
    ) -> PromptClassifier:
        """Return the classifier with the trained context put back."""
        network = _network(task, settings)
        network.load_trained_state(dict(state))
        return PromptClassifier(network)


METHOD = Coop()


def _network(task: Task, settings: CoopSettings) -> ContextPrompts:
    """Return the prompts before training, on the task's frozen backbone."""
    if task.backbone is None:
        raise ValueError("coop reads its prompts with a backbone, got none; give one to the task")
    generator = runtime.generator(task.seed, "context")
    return ContextPrompts.untrained(task.backbone, task.class_names, settings, generator)
