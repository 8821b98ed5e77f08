"""The forward pass of a vision transformer, block by block, as functions of its modules.

One pass serves two purposes. In the last block the class token attends to all tokens (one query row
instead of n+1), and each patch takes the value path: the block with its attention matrix replaced
by the identity.

They are functions, not methods, because compiled code is shared by all blocks and all networks of a
shape.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from microclip.model.frozen_linear import linear
from microclip.model.lora import updated

# For text towers. With cuDNN's attention, which torch 2.11 prefers in bf16, POUF's training of one
# ended with NaN, or with an access to memory that is not the program's; without, it did not.
_NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def enter_tower(
    visual: Any, images: Float[Tensor, "batch 3 rows columns"]
) -> Float[Tensor, "batch token width"]:
    """Return all tokens of images as they enter the first block."""
    hidden: Tensor = visual.ln_pre(embedded(visual, images))
    return hidden


def embedded(visual: Any, images: Tensor) -> Tensor:
    """Return class token and patches with their positions."""
    patches = _patches(visual.conv1, images)
    cls = visual.class_embedding.expand(images.shape[0], 1, -1)
    place = visual.positional_embedding
    # Positions are added in float32, which keeps the residual stream float32 under autocast.
    return torch.cat([cls + place[:1], patches + place[1:]], dim=1)


def _patches(
    conv: nn.Conv2d, images: Float[Tensor, "batch 3 rows columns"]
) -> Float[Tensor, "batch patch width"]:
    """Return the embedded patches, row by row."""
    is_map = conv.kernel_size == conv.stride and not any(conv.padding)
    if images.device.type == "cuda" and is_map:
        return patches_by_product(conv, images)
    return conv(images).flatten(2).mT  # type: ignore[no-any-return]


def patches_by_product(
    conv: nn.Conv2d, images: Float[Tensor, "batch 3 rows columns"]
) -> Float[Tensor, "batch patch width"]:
    """Return what a convolution makes of patches that do not overlap, as a matrix product.

    On an H200, cuDNN's convolution takes 5 (float32) to 20 times (bf16) as long.
    """
    rows, columns = conv.stride
    cut = rearrange(images, "b c (y r) (x k) -> b (y x) (c r k)", r=rows, k=columns)
    return functional.linear(cut, conv.weight.flatten(1), conv.bias)


def _packed(attention: Any, tokens: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
    """Return the maps `first` to `last` of (query, key, value), from the packed projection."""
    width = tokens.shape[-1]
    rows = slice(first * width, last * width)
    packed = linear(tokens, attention.in_proj_weight, attention.in_proj_bias, rows)
    return updated(attention, tokens, first, packed.chunk(last - first, dim=-1))


def run_block(
    block: Any, hidden: Float[Tensor, "batch token width"], *, is_causal: bool = False
) -> Float[Tensor, "batch token width"]:
    """Return a plain block's output for all tokens."""
    query, key, value = _packed(block.attn, block.ln_1(hidden), 0, 3)
    return _finish(block, hidden, _attend(block.attn, query, key, value, is_causal=is_causal))


def finish_tower(
    visual: Any, hidden: Float[Tensor, "batch token width"], *, with_patches: bool
) -> Float[Tensor, "batch kept width"]:
    """Return what the last block and the LayerNorm after it make of the tokens that are kept."""
    block = visual.transformer.resblocks[-1]
    normed = block.ln_1(hidden)
    (query,) = _packed(block.attn, normed[:, :1], 0, 1)
    key, value = _packed(block.attn, normed, 1, 3)
    mixed = _attend(block.attn, query, key, value)
    if with_patches:
        mixed = torch.cat([mixed, value[:, 1:]], dim=1)
    kept: Tensor = visual.ln_post(_finish(block, hidden[:, : mixed.shape[1]], mixed))
    return kept


def _attend(attention: Any, *parts: Tensor, is_causal: bool = False) -> Tensor:
    """Multi-head attention of (query, key, value), heads side by side."""
    query, key, value = (
        rearrange(part, "b n (h d) -> b h n d", h=attention.num_heads) for part in parts
    )
    if is_causal and query.device.type == "cuda":
        with sdpa_kernel(_NOT_CUDNN):
            gathered = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        gathered = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    return rearrange(gathered, "b h n d -> b n (h d)")


def _finish(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Return a block's output: output projection, residual, MLP, residual."""
    out = block.attn.out_proj
    (projected,) = updated(block.attn, mixed, 3, [linear(mixed, out.weight, out.bias)])
    hidden = hidden + block.ls_1(projected)
    inner = block.ln_2(hidden)
    for layer in block.mlp:
        is_map = isinstance(layer, nn.Linear)
        inner = linear(inner, layer.weight, layer.bias) if is_map else layer(inner)
    finished: Tensor = hidden + block.ls_2(inner)
    return finished


def is_plain(block: Any) -> bool:
    """True for a block of LayerNorm, attention, LayerNorm, MLP and nothing else."""
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
