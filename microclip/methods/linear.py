"""What those methods share that compare frozen embeddings with one vector a class."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from microclip.methods.base import ViewPlan, Views
from microclip.model.prompts import ContextPrompts
from microclip.model.token_fusion import cosine_similarity
from microclip.model.trained import Remembered


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
        embeddings = views.needed_embeddings()
        return cosine_similarity(embeddings, self.vectors.to(embeddings.device))

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return nothing: the vectors are made of text."""
        return {}


class PromptClassifier(LinearClassifier):
    """The class vectors of trained prompts, in their present state, on frozen embeddings."""

    def __init__(self, network: ContextPrompts) -> None:
        """Classify by the prompts of `network`."""
        self._network = network
        self._class_vectors = Remembered(network, network.class_vectors)

    @property
    def vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return the class vectors; encoded again only after the context has changed."""
        return self._class_vectors()

    def trained_state(self) -> dict[str, Tensor]:
        """Return the context vectors."""
        return self._network.trained_state()
