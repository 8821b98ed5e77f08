"""`gallery.html` of a run: its test images, their predictions, and where the tokens look.

The file is self-contained: pictures and maps are embedded, and a script in the page filters, sorts
and draws the maps over the pictures. The same run gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePath

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from microclip import paths, runtime
from microclip.data.decoding import Pixels
from microclip.data.loading import spread
from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.measure.trained_runs import FusedRun, TestedRun, TokenMaps, min_max, read, token_maps
from microclip.measure.typesetting import template

MAX_IMAGES = 800  # a larger test set is thinned to every k-th image
MAX_BYTES = 2_900_000  # of the whole page
_CARD_BYTES = 1_100  # upper bound for the average card without picture and maps
_FIXED_BYTES = 40_000  # the rest of the page
_SIZES = ((128, 80), (112, 75), (96, 70), (80, 65), (64, 60), (48, 50), (32, 40))  # px, quality
_BATCH = 64
_TOP = 3
TopClasses = tuple[tuple[str, float], ...]  # names and probabilities, the likeliest first
_LEVELS = "0123456789abcdef"  # a map's values, one digit per patch


@dataclass(frozen=True)
class Look:
    """An image's maps as text, one character per patch, row by row; empty without tokens.

    A map has 16 levels from its least to its greatest value, the mask 0 and 1.
    """

    global_map: str = ""
    local_map: str = ""
    mask: str = ""


@dataclass(frozen=True)
class Card:
    """One test image; `top` and `look` are empty for a run without tokens."""

    index: int
    file: str
    class_name: str
    prediction: str
    confidence: float
    is_correct: bool
    picture: str  # data URI
    top: TopClasses = ()
    look: Look = Look()


def write(run_folder: Path) -> Path:
    """Write the gallery of a complete run into its folder; return the file.

    Raises:
        MissingDataError: the run is not complete, or its dataset is gone.
        SettingsError: its inputs have changed since.
    """
    target = run_folder / Path(paths.RUN_GALLERY).name
    runtime.write_text(target, page(read(run_folder)))
    return target


def page(tested: TestedRun) -> str:
    """The gallery of a run as HTML. Raises SettingsError if the run's inputs have changed since."""
    indices = spread(len(tested.test), MAX_IMAGES)
    largest = _SIZES[0][0]
    if tested.has_tokens:
        fused = FusedRun(tested)
        seen = list(_seen(fused, indices))
        cards = _cards(tested, indices, fused.pictures(indices, largest), seen)
        return _render(tested, cards, n_columns=fused.after.fusion.backbone.patch_grid[1])
    drawn = tested.pictures(indices, min(largest, tested.shorter_side(indices)))
    cards = _cards(tested, indices, [drawn[index] for index in indices], [])
    return _render(tested, cards, n_columns=0)


def encoded(pictures: Sequence[Pixels], budget: int) -> list[str]:
    """Pictures as data URIs, at the largest size that fits `budget` characters in all.

    If none fits, the smallest size is used.
    """
    found: list[str] = []
    for size, quality in _SIZES:
        found = [_data_uri(picture, size, quality) for picture in pictures]
        if sum(map(len, found)) <= budget:
            break
    return found


def _cards(
    tested: TestedRun,
    indices: Sequence[int],
    pictures: Sequence[Pixels],
    seen: Sequence[tuple[TopClasses, Look]],
) -> list[Card]:
    """The cards, in test-set order; `seen` is empty for a run without tokens."""
    n_marks = sum(map(len, astuple(seen[0][1]))) if seen else 0
    budget = MAX_BYTES - _FIXED_BYTES - len(indices) * (_CARD_BYTES + n_marks)
    addresses = encoded(pictures, budget)
    cards = []
    for place, index in enumerate(indices):
        row = tested.predictions.iloc[index]
        top, look = seen[place] if seen else ((), Look())
        card = Card(
            index=index,
            file="/".join(PurePath(tested.test.files[index]).parts[-2:]),
            class_name=tested.class_of("label", index),
            prediction=tested.class_of("prediction", index),
            confidence=float(row["confidence"]),
            is_correct=bool(row["correct"]),
            picture=addresses[place],
            top=top,
            look=look,
        )
        cards.append(card)
    return cards


def _seen(run: FusedRun, indices: Sequence[int]) -> Iterator[tuple[TopClasses, Look]]:
    """Yield top classes and maps of the test images, from the trained network."""
    for images in _batches(run.each_view(indices)):
        maps = token_maps(run.after.fusion, images, run.generator())
        yield from zip(_top_classes(maps, run.tested.class_names), looks(maps), strict=True)


def looks(maps: TokenMaps) -> Iterator[Look]:
    """The maps of each image of a batch as text."""
    texts = (
        _as_text(min_max(maps.global_map)),
        _as_text(min_max(maps.local_map)),
        _as_text(maps.mask.float(), n_levels=2),
    )
    return itertools.starmap(Look, zip(*texts, strict=True))


def _batches(views: Iterable[Tensor]) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """Yield single views in batches."""
    rest = iter(views)
    while batch := list(itertools.islice(rest, _BATCH)):
        yield torch.cat(batch)


def _top_classes(maps: TokenMaps, class_names: Sequence[str]) -> Iterator[TopClasses]:
    """Yield the likeliest classes of each image with their probabilities."""
    likely = (CONFIDENCE_SCALE * maps.output.logits.double()).softmax(dim=-1)
    values, labels = likely.topk(min(_TOP, len(class_names)), dim=-1)
    for own_values, own_labels in zip(values.tolist(), labels.tolist(), strict=True):
        names = (class_names[label] for label in own_labels)
        yield tuple(zip(names, own_values, strict=True))


def _as_text(
    maps: Float[Tensor, "batch row column"], n_levels: int = len(_LEVELS)
) -> Iterator[str]:
    """Yield maps with values in [0, 1] as text, one character per patch."""
    for levels in ((n_levels - 1) * maps).round().long().flatten(1).tolist():
        yield "".join(_LEVELS[level] for level in levels)


def _data_uri(picture: Pixels, size: int, quality: int) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=6)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _render(tested: TestedRun, cards: Sequence[Card], n_columns: int) -> str:
    """The page; `n_columns` is the number of patches in a row of a map."""
    return template("gallery.html").render(
        spec=tested.settings.spec,
        cards=cards,
        classes=sorted({card.class_name for card in cards}, key=str.casefold),
        n_test=len(tested.test),
        n_correct=int(tested.predictions["correct"].sum()),
        grid_columns=n_columns,
    )
