"""`gallery.html`: some of one's own images, what they are taken for, and where the tokens look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from microclip import runtime
from microclip.data.datasets import UnlabelledImages
from microclip.data.decoding import Pixels
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.measure.attention_maps import min_max, token_maps
from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.measure.gallery import as_text, encoded, template
from microclip.measure.trained_runs import as_pixels
from microclip.methods.microclip import FusionClassifier
from microclip.own_images.results import Results
from microclip.own_images.tables import Predictions, most_uncertain
from microclip.own_images.training import Outcome

MAX_IMAGES = 240  # a third unsure, a third not as zero-shot, the rest spread over the classes
_PICTURE_BYTES = 2_400_000  # of all pictures together
_LARGEST_PX = 160
_BATCH = 64
_TOP = 3


@dataclass(frozen=True)
class Look:
    """Where the tokens of an image look: a character a patch, see `measure.gallery.Card`."""

    global_map: str = ""
    local_map: str = ""
    mask: str = ""


@dataclass(frozen=True)
class Card:
    """One image on the page."""

    file: str
    prediction: str
    zero_shot: str
    confidence: float
    kinds: str  # of "unsure" and "changed"
    top: tuple[tuple[str, float], ...]
    picture: str = ""  # data URI
    global_map: str = ""
    local_map: str = ""
    mask: str = ""


def chosen(found: Predictions, unsure: Sequence[int], at_most: int = MAX_IMAGES) -> list[int]:
    """Return the images to show: unsure ones, those unlike zero-shot, then some of every class."""
    if len(found) <= at_most:
        return list(range(len(found)))
    third = at_most // 3
    picked = dict.fromkeys(list(unsure)[:third])
    changed = torch.nonzero(found.first != found.zero_shot).flatten().tolist()
    changed.sort(key=lambda image: float(found.margin[image]))
    picked.update(dict.fromkeys(changed[:third]))
    for image in most_uncertain(_reversed(found), len(found)):  # of each class the surest first
        if len(picked) == at_most:
            break
        picked.setdefault(image)
    return list(picked)


def page(results: Results, images: UnlabelledImages) -> str:
    """Return the page as HTML; every word in it is escaped."""
    outcome, found = results.outcome, results.found
    indices = chosen(found, results.unsure)
    looks = list(_looks(outcome, images.part(indices)))
    pictures = encoded(_pictures(images.part(indices)), _PICTURE_BYTES)
    cards = [
        replace(_card(results, image), picture=picture)
        for image, picture in zip(indices, pictures, strict=True)
    ]
    if looks:
        cards = [replace(c, **vars(look)) for c, look in zip(cards, looks, strict=True)]
    record, verdict = outcome.record, outcome.verdict
    is_kept = not verdict.keeps_zero_shot
    return template("own_gallery.html").render(
        title=results.title,
        cards=cards,
        n_images=len(results.files),
        n_classes=len(results.class_names),
        made_by=f"method {record.method} on {record.backbone}, seed {record.seed}",
        is_bad=not is_kept,
        verdict=f"{verdict.kind}:" if is_kept else "Adaptation collapsed, this is zero-shot:",
        reasons="; ".join(verdict.reasons),
        classes=sorted({card.prediction for card in cards}, key=str.casefold),
        grid_columns=outcome.tower.patch_grid[1] if looks else 0,
    )


def _card(results: Results, image: int) -> Card:
    """Return an image's card, without picture and maps."""
    found, names = results.found, results.class_names
    likely = (CONFIDENCE_SCALE * results.outcome.heads["fused"][image].double()).softmax(dim=-1)
    values, labels = likely.topk(min(_TOP, len(names)))
    top = zip((names[label] for label in labels.tolist()), values.tolist(), strict=True)
    is_changed = bool(found.first[image] != found.zero_shot[image])
    kinds = {"unsure": image in results.unsure, "changed": is_changed}
    return Card(
        file=results.files[image],
        prediction=names[int(found.first[image])],
        zero_shot=names[int(found.zero_shot[image])],
        confidence=float(found.confidence[image]),
        kinds=" ".join(kind for kind, is_so in kinds.items() if is_so),
        top=tuple(top),
    )


def _reversed(found: Predictions) -> Predictions:
    """Return predictions with the surest first in the order of uncertainty."""
    return Predictions(found.first, found.second, found.confidence, -found.margin, found.zero_shot)


def _pictures(images: UnlabelledImages) -> list[Pixels]:
    """Return the central squares that the classifier looks at, for people."""
    plain = ViewRecipe(0, _LARGEST_PX, (0.0,) * 3, (1.0,) * 3)
    views = evaluation_views(images, plain, crop="center", batch_size=_BATCH)
    return [as_pixels(view) for batch in views for view in batch]


def _looks(outcome: Outcome, images: UnlabelledImages) -> Iterator[Look]:
    """Yield where the tokens of each image look; nothing for a classifier without tokens."""
    classifier = outcome.classifier
    if not isinstance(classifier, FusionClassifier) or "local" not in outcome.heads:
        return
    tower, seed = outcome.tower, outcome.record.seed
    recipe = ViewRecipe(seed, tower.image_size, tower.mean, tower.std)
    for batch in evaluation_views(
        images, recipe, crop="center", batch_size=_BATCH, device=tower.device
    ):
        yield from _batch_looks(classifier, batch, seed)


def _batch_looks(
    classifier: FusionClassifier, batch: Float[Tensor, "batch 3 size size"], seed: int
) -> Iterator[Look]:
    maps = token_maps(classifier.fusion, batch, runtime.generator(seed, "test-query"))
    texts = (
        as_text(min_max(maps.global_map)),
        as_text(min_max(maps.local_map)),
        as_text(maps.mask.float(), n_levels=2),
    )
    for global_map, local_map, mask in zip(*texts, strict=True):
        yield Look(global_map, local_map, mask)
