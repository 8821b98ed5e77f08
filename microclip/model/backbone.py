"""The CLIP that everything stands on: any open_clip vision transformer, one forward pass.

The last block is computed for two purposes at once: the class token attends to all tokens (one
query row instead of n+1), and each patch goes through the value path, that is the block with its
attention matrix replaced by the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from microclip.model.weights import Tokenizer, load_open_clip, read_backbone
from microclip.settings import BackboneSettings

_CPU_SLICE = 32  # images at a time without gradient: activations stay in the cache, 1.4 x as fast


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What the image tower says about a batch.

    Attributes:
        embedding: the projected class token, unit norm.
        cls: the class token after the final LayerNorm.
        patches: the value path's patch tokens after the final LayerNorm, row by row.
    """

    embedding: Float[Tensor, "batch embedding"]
    cls: Float[Tensor, "batch width"]
    patches: Float[Tensor, "batch patch width"]


def unit_norm(vectors: Float[Tensor, "*lead size"]) -> Float[Tensor, "*lead size"]:
    """Return vectors of length one, in float32 or better; a zero vector stays zero."""
    return functional.normalize(
        vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1
    )


class Backbone(nn.Module):
    """An open_clip ViT with the two outputs that this project needs.

    Attributes:
        model: the wrapped open_clip network.
        width: of the image tower's tokens.
        embedding_dim: of the space shared by images and texts.
        patch_grid: rows and columns of patches.
        image_size: side of the square input, px.
        mean: of the channels, in [0, 1], that images are normalised with.
        std: likewise.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None = None) -> None:
        """Wrap `model`; without `tokenizer` it must use open_clip's own vocabulary.

        Raises:
            ValueError: the image tower is no plain vision transformer with a class token.
        """
        super().__init__()
        _check_tower(model)
        self.model = model
        self._tokenizer = tokenizer
        visual = self.visual
        self.width = int(visual.class_embedding.shape[-1])
        self.embedding_dim = self.width if visual.proj is None else int(visual.proj.shape[1])
        self.patch_grid: tuple[int, int] = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.image_size = int(visual.image_size[0])
        preprocessing = getattr(visual, "preprocess_cfg", None) or {}
        self.mean: tuple[float, ...] = tuple(preprocessing.get("mean", OPENAI_DATASET_MEAN))
        self.std: tuple[float, ...] = tuple(preprocessing.get("std", OPENAI_DATASET_STD))

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.visual.class_embedding.device
        return device

    @property
    def logit_scale(self) -> float:
        """The temperature that CLIP was trained with, 100 for OpenAI's; reading it syncs a GPU."""
        model: Any = self.model
        return float(model.logit_scale.detach().exp())

    def encode_image(self, images: Float[Tensor, "batch 3 rows columns"]) -> ImageTokens:
        """Return embedding, class token and value-path patch tokens of normalised images.

        Source: Eq. 1 and 2, arXiv:2510.02270v1, with the LayerNorms, biases and output projection
        of the released code. Departs: fidelity.md#patch-tokens.

        Raises:
            ValueError: images of another size than `image_size`.
        """
        tokens = self._encode(images, with_patches=True)
        cls = tokens[:, 0]
        return ImageTokens(unit_norm(self.project(cls)), cls, tokens[:, 1:])

    def encode_global(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch embedding"]:
        """Return the embedding alone, without the patches' share of the last block.

        Raises:
            ValueError: images of another size than `image_size`.
        """
        return unit_norm(self.project(self._encode(images, with_patches=False)[:, 0]))

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], batch_size: int = 256
    ) -> Float[Tensor, "text embedding"]:
        """Return unit embeddings of sentences; texts too long for the tower are cut.

        Raises:
            ValueError: the tower's vocabulary is not open_clip's and no tokenizer was given.
        """
        parts = [
            self.encode_tokens(self.tokenize(list(texts[start : start + batch_size])))
            for start in range(0, len(texts), batch_size)
        ]
        return torch.cat([torch.empty(0, self.embedding_dim, device=self.device), *parts])

    @torch.no_grad()
    def encode_tokens(
        self, tokens: Int[Tensor, "text context"], *, normalize: bool = True
    ) -> Float[Tensor, "text embedding"]:
        """Return embeddings of token ids, unit norm or of the length that the tower gives them."""
        model: Any = self.model
        raw: Tensor = model.encode_text(tokens.to(self.device))
        return unit_norm(raw) if normalize else raw

    def layer_norms(self) -> dict[str, nn.Parameter]:
        """Return the gains and biases of all LayerNorms of the image tower, by their name in it."""
        return {
            f"{path}.{name}": parameter
            for path, module in self.visual.named_modules()
            if isinstance(module, nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False)
        }

    def project(self, tokens: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead embedding"]:
        """Return tokens in the joint space, not normalised; float32 under autocast too."""
        with torch.autocast(device_type=tokens.device.type, enabled=False):
            tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            projection = self.visual.proj
            projected: Tensor = tokens if projection is None else tokens @ projection
            return projected

    def tokenize(self, texts: list[str]) -> Int[Tensor, "text context"]:
        """Return token ids, padded with 0; texts too long for the tower are cut."""
        if self._tokenizer is None:
            model: Any = self.model
            tokenizer = SimpleTokenizer(context_length=model.context_length)
            if tokenizer.vocab_size != model.vocab_size:
                raise ValueError(
                    f"open_clip's tokenizer has {tokenizer.vocab_size} words, this network "
                    f"{model.vocab_size}; pass its own tokenizer to from_open_clip"
                )
            self._tokenizer = tokenizer
        return self._tokenizer(texts)

    def _encode(self, images: Tensor, *, with_patches: bool) -> Tensor:
        """Return the tokens kept by the last block, computed in parts that a CPU's cache holds."""
        is_whole = torch.is_grad_enabled() or images.device.type != "cpu"
        parts = (images,) if is_whole else torch.split(images, _CPU_SLICE)
        kept = [self._last_block(self._hidden(p), with_patches=with_patches) for p in parts]
        return torch.cat(kept)

    def _hidden(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch token width"]:
        """Return all tokens as they enter the last block."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be {self.image_size} x {self.image_size} px, got "
                f"{images.shape[-2]} x {images.shape[-1]}; resize them for this backbone"
            )
        visual = self.visual
        patches = visual.conv1(images).flatten(2).mT
        cls = visual.class_embedding.expand(images.shape[0], 1, -1)
        place = visual.positional_embedding
        # adding the places in their own precision keeps the residual stream float32 under autocast
        hidden: Tensor = visual.ln_pre(torch.cat([cls + place[:1], patches + place[1:]], dim=1))
        for block in visual.transformer.resblocks[:-1]:
            normed = block.ln_1(hidden)
            query, key, value = _packed(block.attn, normed, 0, 3)
            hidden = _finish(block, hidden, _attend(block.attn, query, key, value))
        return hidden

    def _last_block(
        self, hidden: Float[Tensor, "batch token width"], *, with_patches: bool
    ) -> Float[Tensor, "batch kept width"]:
        """Return the class token by attention, then the patches by the value path if wanted."""
        block = self.visual.transformer.resblocks[-1]
        normed = block.ln_1(hidden)
        (query,) = _packed(block.attn, normed[:, :1], 0, 1)
        key, value = _packed(block.attn, normed, 1, 3)
        mixed = _attend(block.attn, query, key, value)
        if with_patches:
            mixed = torch.cat([mixed, value[:, 1:]], dim=1)
        kept: Tensor = self.visual.ln_post(_finish(block, hidden[:, : mixed.shape[1]], mixed))
        return kept


def from_open_clip(model: nn.Module, tokenizer: Tokenizer | None = None) -> Backbone:
    """Return a Backbone around any open_clip ViT CLIP, sharing its weights, in evaluation mode.

    Raises:
        ValueError: the image tower is no plain vision transformer with a class token.
    """
    return Backbone(model, tokenizer).eval()


def load_backbone(backbone: str | BackboneSettings, device: str | torch.device = "cpu") -> Backbone:
    """Return a backbone by its settings, its name in `config/backbones`, or a YAML file's path.

    A run passes the settings that it holds: its class vectors and features are keyed by them,
    and the YAML file of that name may have changed since.

    Raises:
        FileNotFoundError: a file is missing, or pretrained weights cannot be fetched.
        ValueError: the description or the weights are damaged, or of an unsuitable network.
    """
    declared = read_backbone(backbone) if isinstance(backbone, str) else backbone
    model, tokenizer = load_open_clip(declared)
    return from_open_clip(model, tokenizer).to(device)


def _packed(attention: Any, tokens: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
    """Return the maps `first` to `last` of (query, key, value), from the packed projection."""
    width = tokens.shape[-1]
    rows = slice(first * width, last * width)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
    packed = functional.linear(tokens, attention.in_proj_weight[rows], bias)
    return packed.chunk(last - first, dim=-1)


def _attend(attention: Any, *parts: Tensor) -> Tensor:
    """Return what each row of (query, key, value)'s query gathers, heads side by side."""
    query, key, value = (
        rearrange(part, "b n (h d) -> b h n d", h=attention.num_heads) for part in parts
    )
    gathered = functional.scaled_dot_product_attention(query, key, value)
    return rearrange(gathered, "b h n d -> b n (h d)")


def _finish(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Return a block's output: output projection, residual, MLP, residual."""
    hidden = hidden + block.ls_1(block.attn.out_proj(mixed))
    finished: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return finished


def _check_tower(model: nn.Module) -> None:
    """Refuse image towers that the forward pass above does not describe."""
    tower = getattr(model, "visual", None)
    if not isinstance(tower, VisionTransformer):
        raise ValueError(  # noqa: TRY004  a wrong network, as the other refusals here
            f"the backbone must be an open_clip vision transformer, got {type(tower).__name__}; "
            "the method uses patch tokens, take for example ViT-B-32-quickgelu or ViT-B-16"
        )
    visual: Any = tower
    blocks = list(visual.transformer.resblocks)
    problems = {
        "pools without its class token": visual.attn_pool is not None or visual.pool_type != "tok",
        "takes images that are not square": visual.image_size[0] != visual.image_size[1],
        "has no block": not blocks,
        "has attention of a special kind": any(not _is_plain(block) for block in blocks),
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise ValueError(
            f"the image tower must be a plain ViT with a class token, this one {found[0]}; "
            "take for example ViT-B-32-quickgelu or ViT-B-16"
        )


def _is_plain(block: Any) -> bool:
    """Return whether a block is LayerNorm, attention, LayerNorm, MLP and nothing else."""
    attention = block.attn
    norms = (getattr(attention, name, None) for name in ("ln_q", "ln_k", "ln_inner"))
    return (
        getattr(attention, "in_proj_weight", None) is not None
        and getattr(attention, "bias_k", None) is None
        and not getattr(attention, "add_zero_attn", False)
        and getattr(attention, "logit_scale", None) is None
        and getattr(attention, "head_scale", None) is None
        and isinstance(getattr(block, "ln_attn", nn.Identity()), nn.Identity)
        and all(norm is None or isinstance(norm, nn.Identity) for norm in norms)
    )
