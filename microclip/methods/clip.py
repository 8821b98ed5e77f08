"""CLIP zero-shot: an image is the class whose filled templates are nearest.

Paper: Radford et al., ICML 2021, openai/CLIP. Upstream read: open_clip's zero-shot classifier.
Supervision: none. Departs: nothing; `text_norm: joint` is microCLIP's way to average the templates.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from microclip.methods.base import DeclaredMethod, Task, Tracker
from microclip.methods.linear import LinearClassifier
from microclip.settings.methods.clip import DECLARATION, ClipSettings


class Clip(DeclaredMethod[ClipSettings]):
    """CLIP zero-shot."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: ClipSettings, tracker: Tracker) -> LinearClassifier:
        """Return the zero-shot classifier of the dataset's templates."""
        tracker.message("no training: templates alone")
        return self.restore(task, settings, {})

    def restore(
        self, task: Task, settings: ClipSettings, state: Mapping[str, Tensor]
    ) -> LinearClassifier:
        """Return the classifier; there is no state to put back."""
        del state
        texts = task.texts
        return LinearClassifier(texts.anchors if settings.text_norm == "joint" else texts.templates)


METHOD = Clip()
