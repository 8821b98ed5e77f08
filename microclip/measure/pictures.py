"""Pictures of images for figures: greyed ones with a map on top, masks, marks of right and wrong."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from torch import Tensor

from microclip.data.store import Pixels

HEAT = "viridis"  # perceptually even, and readable to colour-blind people
HEAT_SHARE = 0.62  # of the map's colour over the greyed image
MASK_COLOUR = "#D55E00"  # Okabe and Ito's vermilion
MASK_SHARE = 0.5
_RIGHT, _WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def greyed(picture: Pixels) -> Pixels:
    """Return a picture without colour, still in three channels."""
    luma = (picture.astype(np.float32) @ np.array(_GREY_WEIGHTS, np.float32))[..., None]
    return np.repeat(luma.round().astype(np.uint8), 3, axis=-1)


def heat_over(picture: Pixels, values: Float[Tensor, "height width"]) -> Pixels:
    """Return the greyed picture under the colours of a map with values in [0, 1]."""
    colours = matplotlib.colormaps[HEAT](values.numpy())[..., :3]
    return _blend(greyed(picture), 255 * colours, HEAT_SHARE)


def mask_over(picture: Pixels, mask: Tensor) -> Pixels:
    """Return the greyed picture with half of a colour where the mask is true."""
    share = MASK_SHARE * mask.numpy().astype(np.float32)[..., None]
    return _blend(greyed(picture), 255 * np.array(to_rgb(MASK_COLOUR)), share)


def show(axes: Axes, picture: Any, **options: Any) -> None:
    """Show a picture without ticks, with a thin frame; its text stays as it is."""
    axes.imshow(picture, **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.4, color="0.6")


def leave_empty(axes: Axes) -> None:
    """Show nothing but text in axes."""
    axes.set_axis_off()


def heat_scale() -> ScalarMappable:
    """Return what a colour bar of `heat_over` shows."""
    return ScalarMappable(matplotlib.colors.Normalize(0, 1), matplotlib.colormaps[HEAT])


def mark(*, is_right: bool) -> str:
    """Return a tick or a cross: told apart without colour."""
    return _RIGHT if is_right else _WRONG


def wrapped(text: str, width: int) -> str:
    """Return a text in lines of at most `width` characters; `$` is a plain sign."""
    return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")


def _blend(under: Any, over: Any, share: Any) -> Pixels:
    mixed: Pixels = ((1 - share) * under + share * over).round().astype(np.uint8)
    return mixed
