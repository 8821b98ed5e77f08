"""Classify image files: read them, run the classifier, return classes with confidences."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from microclip.data.decoding import darkness
from microclip.data.files import image_files, survey
from microclip.data.loading import UnlabelledImages
from microclip.data.store import StoreRules, open_store, write_store
from microclip.measure.evaluation import CONFIDENCE_SCALE, ViewReader, collect_heads
from microclip.methods.base import Classifier
from microclip.model.backbone import Backbone
from microclip.settings.base import MissingFileError, SettingsError

logger = logging.getLogger(__name__)

TOP = 5  # classes returned per image
_SHOWN = 20  # bad files named in an error

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Heads = dict[str, Float[Tensor, "image classes"]]


class Prediction(NamedTuple):
    """The prediction for one file.

    Attributes:
        file: path of the image, as found.
        class_name: the most probable class.
        confidence: its probability, at CLIP's temperature.
        top: the most probable classes with their probabilities, starting with `class_name`.
        fg_class: prediction of the fine-grained token alone; None for methods without one.
        cls_class: prediction of the class token alone; None for methods without two tokens.
    """

    file: str
    class_name: str
    confidence: float
    top: tuple[tuple[str, float], ...] = ()
    fg_class: str | None = None
    cls_class: str | None = None

    @property
    def second_class(self) -> str | None:
        """The runner-up, or None if only one class was asked for."""
        return self.top[1][0] if len(self.top) > 1 else None

    @property
    def margin(self) -> float | None:
        """Probability of the first class minus that of the second."""
        return self.confidence - self.top[1][1] if len(self.top) > 1 else None

    def __str__(self) -> str:
        """Classes as text: "Willow Tit 0.71, Marsh Tit 0.22"."""
        shown = self.top or ((self.class_name, self.confidence),)
        return ", ".join(f"{name} {confidence:.2f}" for name, confidence in shown)


def heads(
    classifier: Classifier, tower: Backbone, images: UnlabelledImages, seed: int = 0
) -> Heads:
    """Cosine similarities of all images, by head; "fused" is the one that predicts."""
    views = ViewReader(images, seed, tower=tower, device=tower.device)
    return collect_heads(classifier, views(classifier.views))


def from_heads(
    files: Sequence[Path], found: Heads, class_names: Sequence[str], top: int = TOP
) -> list[Prediction]:
    """Predictions for files, from the similarities that `heads` computed for them."""
    probabilities = (CONFIDENCE_SCALE * found["fused"]).softmax(dim=-1)
    ordered = probabilities.sort(dim=-1, descending=True, stable=True)  # ties: the first class
    confidences, labels = ordered.values[:, : max(top, 1)], ordered.indices[:, : max(top, 1)]
    single = {name: found[name].argmax(dim=-1).tolist() for name in found if name != "fused"}
    predictions = []
    for row, (file, own, values) in enumerate(
        zip(files, labels.tolist(), confidences.tolist(), strict=True)
    ):
        names = [class_names[label] for label in own]
        fg, cls = (
            class_names[single[head][row]] if head in single else None
            for head in ("local", "global")
        )
        likeliest = tuple(zip(names, values, strict=True))
        predictions.append(Prediction(str(file), names[0], values[0], likeliest, fg, cls))
    return predictions


_SKIP = "remove them, or skip them (predict --skip-bad, skip_bad=True)"


def usable(
    images: Images, *, skip_bad: bool = False, stretch: bool = False, advice: str = _SKIP
) -> list[Path]:
    """Readable image files among those named; folders are searched recursively.

    With `skip_bad`, unreadable files are skipped with a warning each. `stretch`: see `decode`.
    `advice` says what to do about such files where they are not skipped.

    Raises:
        SettingsError: nothing named, a path that does not exist, a folder without images; files
            that cannot be read (with `skip_bad`: if no readable file remains).
    """
    named = [images] if isinstance(images, str | os.PathLike) else list(images)
    if not named:
        raise SettingsError("expected at least one image, got an empty list; name some files")
    files = [file for path in map(Path, named) for file in _below(path)]
    found = survey(files, stretch=stretch)
    if found.bad and (not skip_bad or not found.images):
        shown = "; ".join(f"{bad.path} ({bad.reason})" for bad in found.bad[:_SHOWN])
        more = f"; and {len(found.bad) - _SHOWN} more" if len(found.bad) > _SHOWN else ""
        advice = "name others" if skip_bad else advice
        raise SettingsError(
            f"{len(found.bad)} of {len(files)} images cannot be read: {shown}{more}; {advice}"
        )
    for bad in found.bad:
        logger.warning("skipped %s: %s", bad.path, bad.reason)
    if said := darkness(found.modes):
        logger.warning("%s", said)
    return list(found.images)


def _below(path: Path) -> list[Path]:
    if path.is_dir():
        return image_files(path)
    if not path.is_file():
        raise MissingFileError(f"image {path} does not exist; correct the path")
    return [path]


@contextmanager
def stored(files: Sequence[Path], *, stretch: bool = False) -> Iterator[UnlabelledImages]:
    """Yield the decoded images of some files from a temporary store, deleted after the block.

    Raises:
        SettingsError: images that cannot be read, each named.
    """
    with tempfile.TemporaryDirectory(prefix="microclip-") as name:
        write_store(files, Path(name), "", StoreRules(stretch=stretch))
        yield UnlabelledImages(open_store(Path(name)), tuple(range(len(files))))
