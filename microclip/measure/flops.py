"""What a CLIP network costs, from its architecture alone: operations, weights, memory.

A multiplication and an addition are two operations (FLOP). Matrix products, convolutions and
attention are counted; LayerNorms, activations and softmaxes are not, as is usual. A test compares
the counts with torch's own counter on real networks. No torch is imported: a plan needs none.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microclip.runtime import MissingDataError
from microclip.settings.base import SettingsError
from microclip.settings.study import BackboneSettings

_FLOAT = 4  # bytes; weights and saved activations are float32


@dataclass(frozen=True)
class Network:
    """The shape of a CLIP network.

    Attributes:
        image_size: side of the square input, px.
        patch_size: side of a patch, px.
        mlp_width: of the hidden layer of an image block.
        is_quick_gelu: its activation keeps two tensors for the backward pass instead of one.
        context: tokens of a text, padding included.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    mlp_width: int
    embedding_dim: int
    is_quick_gelu: bool
    context: int
    vocabulary: int
    text_width: int
    text_layers: int

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.patches + 1

    def encoded(self) -> float:
        """FLOP to encode a view to its class token: the last block computes nothing else."""
        return self._stem() + (self.layers - 1) * self._block() + self._last_block(1) + self._head()

    def fused(self, n_classes: int) -> float:
        """FLOP of a view with patches, patch graph, pooling and both predictions, but no cut."""
        whole = self._stem() + (self.layers - 1) * self._block() + self._last_block(self.tokens)
        graph = 2 * self.patches**2 * self.width
        query = 2 * self.patches * self.width
        logits = 2 * 2 * n_classes * self.embedding_dim
        return whole + 2 * self._head() + graph + query + self._pooling() + logits

    def trained(self, n_classes: int, *, reads_patches: bool) -> float:
        """FLOP of a forward and backward pass on a view.

        Only LayerNorms, class vectors and pooling maps are trained. So the backward pass goes
        through the activations of every block, about as much as the forward pass, but makes no
        gradient of the blocks' weights, which would double it; nothing goes back into the patch
        embedding. Attention's two products have two gradients each.
        """
        kept = self.tokens if reads_patches else 1
        blocks = (self.layers - 1) * self._block() + self._last_block(kept)
        again = (self.layers - 1) * self._attention(self.tokens) + self._attention(1)
        logits = 2 * n_classes * self.embedding_dim
        if not reads_patches:
            return self._stem() + 2 * (blocks + self._head()) + again + 3 * logits
        heads = 2 * (2 * self._head()) + 3 * (2 * logits + self._pooling())
        graph = 2 * self.patches**2 * self.width
        query = 2 * 2 * self.patches * self.width
        return self._stem() + 2 * blocks + again + heads + graph + query

    def text(self, tokens: int | None = None) -> float:
        """FLOP to encode a text of so many tokens; by default the whole context, with padding."""
        width, n = self.text_width, min(tokens or self.context, self.context)
        block = 2 * n * 4 * width**2 + 4 * n**2 * width + 4 * n * width * 4 * width
        return self.text_layers * block + 2 * width * self.embedding_dim

    def n_weights(self) -> int:
        """Weights of both towers, up to biases and LayerNorms (less than one percent)."""
        image = self.layers * (4 * self.width**2 + 2 * self.width * self.mlp_width)
        image += self.width * (3 * self.patch_size**2 + self.tokens + self.embedding_dim)
        text = self.text_layers * 12 * self.text_width**2
        text += self.text_width * (self.vocabulary + self.context + self.embedding_dim)
        return image + text

    def n_trained(self, n_classes: int) -> int:
        """Trained weights: class vectors, pooling maps, LayerNorms."""
        norms = 2 * self.width * (2 * self.layers + 2)
        return n_classes * self.embedding_dim + 3 * self.width**2 + norms

    def saved_bytes(self) -> int:
        """Activations that a view keeps for the backward pass, float32.

        Of each block: the inputs of both LayerNorms, query, key, value and output of the
        attention, and one or two tensors of the activation. Linear layers keep nothing, as their
        weights are not trained.
        """
        activation = (2 if self.is_quick_gelu else 1) * self.mlp_width
        return _FLOAT * self.layers * self.tokens * (6 * self.width + activation)

    def passing_bytes(self) -> int:
        """Activations that are alive at once in a pass without gradient, float32: an MLP's."""
        return _FLOAT * self.tokens * (2 * self.width + 2 * self.mlp_width)

    def _stem(self) -> float:
        return 2 * self.patches * 3 * self.patch_size**2 * self.width

    def _attention(self, queries: int) -> float:
        return 2 * 2 * queries * self.tokens * self.width

    def _block(self) -> float:
        linear = 2 * self.tokens * self.width * (4 * self.width + 2 * self.mlp_width)
        return linear + self._attention(self.tokens)

    def _last_block(self, kept: int) -> float:
        """One query, all keys and values; then projection and MLP of the tokens that are kept."""
        packed = 2 * self.width**2 * (1 + 2 * self.tokens)
        rest = 2 * kept * self.width * (self.width + 2 * self.mlp_width)
        return packed + self._attention(1) + rest

    def _head(self) -> float:
        return 2 * self.width * self.embedding_dim

    def _pooling(self) -> float:
        return 3 * 2 * self.width**2 + 2 * 2 * self.patches * self.width


def network_of(backbone: BackboneSettings) -> Network:
    """Return the shape of a backbone's network.

    Raises:
        MissingDataError: its description does not exist.
        SettingsError: open_clip has no such architecture, or it is not a vision transformer.
    """
    config = read_config(backbone)
    where = str(backbone.config or backbone.model)
    image, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    try:
        width = int(image["width"])
        return Network(
            image_size=int(image["image_size"]),
            patch_size=int(image["patch_size"]),
            width=width,
            layers=int(image["layers"]),
            mlp_width=int(width * image.get("mlp_ratio", 4.0)),
            embedding_dim=int(config["embed_dim"]),
            is_quick_gelu=bool(config.get("quick_gelu", False)),
            context=int(text.get("context_length", 77)),
            vocabulary=int(text.get("vocab_size", 49408)),
            text_width=int(text["width"]),
            text_layers=int(text["layers"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{where} must describe a vision transformer with a text tower, got no usable {error}; "
            "take for example ViT-B-32-quickgelu"
        ) from error


def read_config(backbone: BackboneSettings) -> dict[str, Any]:
    """Return a backbone's open_clip configuration, without importing open_clip.

    Raises:
        MissingDataError: the file does not exist.  SettingsError: no such architecture.
    """
    path = backbone.files["config"] if backbone.model is None else _shipped(backbone.model)
    if not path.is_file():
        raise MissingDataError(f"network description {path} does not exist; correct 'config'")
    content = json.loads(path.read_text(encoding="utf-8"))
    return dict(content.get("model_cfg") or content.get("open_clip") or content)


def _shipped(model: str) -> Path:
    found = importlib.util.find_spec("open_clip")  # finds the folder; torch is not imported
    assert found is not None
    assert found.submodule_search_locations is not None
    path = Path(found.submodule_search_locations[0], "model_configs", f"{model}.json")
    if not path.is_file():
        raise SettingsError(
            f"open_clip knows no model '{model}', no {path.name}; see open_clip.list_models()"
        )
    return path
