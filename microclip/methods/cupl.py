"""CuPL: an image is the class whose described sentences are nearest on average.

Paper: Pratt et al., ICCV 2023, sarahpratt/CuPL. Supervision: none. Departs: nothing;
`weighting: similarity` is microCLIP's frozen W_LLM, for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from microclip.methods.base import DeclaredMethod, Task, Tracker
from microclip.methods.linear import LinearClassifier
from microclip.settings.methods.cupl import DECLARATION, CuplSettings


class Cupl(DeclaredMethod[CuplSettings]):
    """CuPL."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: CuplSettings, tracker: Tracker) -> LinearClassifier:
        """Return the classifier of the dataset's descriptions."""
        tracker.message("no training: descriptions alone")
        return self.restore(task, settings, {})

    def restore(
        self, task: Task, settings: CuplSettings, state: Mapping[str, Tensor]
    ) -> LinearClassifier:
        """Return the classifier; there is no state to put back."""
        del state
        texts = task.texts
        is_uniform = settings.weighting == "uniform"
        return LinearClassifier(texts.uniform if is_uniform else texts.similarity)


METHOD = Cupl()
