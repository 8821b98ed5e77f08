"""CLIP zero-shot: an image is the class whose filled templates are nearest.

Paper: Radford et al., ICML 2021, openai/CLIP. Upstream read: open_clip's zero-shot classifier.
Supervision: none. Departs: nothing; `text_norm: joint` is microCLIP's way to average the templates.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from microclip.methods.base import DeclaredMethod, Task, Tracker, ViewPlan, Views
from microclip.model.token_fusion import cosine_similarity
from microclip.settings.methods.clip import DECLARATION, ClipSettings


class LinearClassifier:
    """Fixed class vectors on frozen embeddings."""

    views = ViewPlan("embedding")

    def __init__(self, vectors: Float[Tensor, "classes embedding"]) -> None:
        """Classify by cosine with `vectors`."""
        self._vectors = vectors

    @property
    def vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return the class vectors."""
        return self._vectors

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return cosine similarities."""
        if views.embeddings is None:
            raise ValueError("this classifier reads embeddings, got images; follow its ViewPlan")
        return cosine_similarity(views.embeddings, self._vectors.to(views.embeddings.device))

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return nothing: the vectors are made of text."""
        return {}


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
