"""`gallery.html` of a run: its test images, their predictions, and where the tokens look.

The file is self-contained: pictures and maps are embedded, and a script in the page filters, sorts
and draws the maps over the pictures. The same run gives the same bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
_LEVELS = "0123456789abcdef"  # a map's values, one digit per patch


@dataclass(frozen=True)
class Card:
    """One test image; `top` and the maps are empty for a run without tokens.

    A map has one character per patch, row by row: 16 levels from its least to its greatest value,
    or 0 and 1 for the mask.
    """

    index: int
    file: str
    class_name: str
    prediction: str
    confidence: float
    is_correct: bool
    picture: str  # data URI
    top: tuple[tuple[str, float], ...] = ()
    global_map: str = ""
    local_map: str = ""
    mask: str = ""


@dataclass(frozen=True, eq=False)
class _Looks:
    """Top classes and maps of some images, in the cards' form."""

    top: list[tuple[tuple[str, float], ...]]
    global_map: list[str]
    local_map: list[str]
    mask: list[str]


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
        looks = _looks(fused, indices)
        cards = _cards(tested, indices, fused.pictures(indices, largest), looks)
        return _render(tested, cards, n_columns=fused.after.fusion.backbone.patch_grid[1])
    drawn = tested.pictures(indices, min(largest, tested.shorter_side(indices)))
    cards = _cards(tested, indices, [drawn[index] for index in indices], None)
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
    tested: TestedRun, indices: Sequence[int], pictures: Sequence[Pixels], looks: _Looks | None
) -> list[Card]:
    """The cards, in test-set order."""
    n_marks = 0 if looks is None else sum(len(text[0]) for text in _maps_of(looks))
    budget = MAX_BYTES - _FIXED_BYTES - len(indices) * (_CARD_BYTES + n_marks)
    addresses = encoded(pictures, budget)
    cards = []
    for place, index in enumerate(indices):
        row = tested.predictions.iloc[index]
        card = Card(
            index=index,
            file="/".join(PurePath(tested.test.files[index]).parts[-2:]),
            class_name=tested.class_of("label", index),
            prediction=tested.class_of("prediction", index),
            confidence=float(row["confidence"]),
            is_correct=bool(row["correct"]),
            picture=addresses[place],
        )
        cards.append(card if looks is None else _with_look(card, looks, place))
    return cards


def _maps_of(looks: _Looks) -> tuple[list[str], ...]:
    return looks.global_map, looks.local_map, looks.mask


def _with_look(card: Card, looks: _Looks, place: int) -> Card:
    return replace(
        card,
        top=looks.top[place],
        global_map=looks.global_map[place],
        local_map=looks.local_map[place],
        mask=looks.mask[place],
    )


def _looks(run: FusedRun, indices: Sequence[int]) -> _Looks:
    """Top classes and maps of the test images, from the trained network."""
    looks = _Looks([], [], [], [])
    for images in _batches(run.each_view(indices)):
        maps = token_maps(run.after.fusion, images, run.generator())
        looks.top.extend(_top_classes(maps, run.tested.class_names))
        looks.global_map.extend(as_text(min_max(maps.global_map)))
        looks.local_map.extend(as_text(min_max(maps.local_map)))
        looks.mask.extend(as_text(maps.mask.float(), n_levels=2))
    return looks


def _batches(views: Iterable[Tensor]) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """Yield single views in batches."""
    rest = iter(views)
    while batch := list(islice(rest, _BATCH)):
        yield torch.cat(batch)


def _top_classes(
    maps: TokenMaps, class_names: Sequence[str]
) -> Iterator[tuple[tuple[str, float], ...]]:
    """Yield the likeliest classes of each image with their probabilities."""
    likely = (CONFIDENCE_SCALE * maps.output.logits.double()).softmax(dim=-1)
    values, labels = likely.topk(min(_TOP, len(class_names)), dim=-1)
    for own_values, own_labels in zip(values.tolist(), labels.tolist(), strict=True):
        names = (class_names[label] for label in own_labels)
        yield tuple(zip(names, own_values, strict=True))


def as_text(maps: Float[Tensor, "batch row column"], n_levels: int = len(_LEVELS)) -> Iterator[str]:
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
