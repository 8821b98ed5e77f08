"""Run one `adapt` command and write its folder: predictions, model card, gallery, classifier.

`run` goes from checked inputs to files; the model card (`README.md`) and the gallery
(`gallery.html`) follow in the order in which a reader opens them. `adapted.json` is written last
and marks the folder as complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from microclip import paths, runtime
from microclip.data.decoding import Pixels
from microclip.data.files import write_bad_files
from microclip.data.loading import UnlabelledImages, ViewRecipe, evaluation_views
from microclip.data.store import StoreRules, open_store, write_store
from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.measure.gallery import Look, TopClasses, encoded, looks
from microclip.measure.trained_runs import as_pixels, token_maps
from microclip.measure.typesetting import template
from microclip.methods.fusion import FusionClassifier
from microclip.own_images.inputs import Materials, Texts, closest_classes
from microclip.own_images.record import (
    RECORD,
    TEXTS,
    WEIGHTS,
    OwnSettings,
    read_adapted,
    refuse_pickles,
    write_adapted,
)
from microclip.own_images.results import (
    Predictions,
    Results,
    label_first_csv,
    most_uncertain,
    predictions_csv,
)
from microclip.own_images.training import Outcome, Place, Start, adapt_images
from microclip.settings.base import SettingsError
from microclip.tracking.run import RunClock, RunTracker, read_history

PREDICTIONS, LABEL_FIRST = "predictions.csv", "label_these_first.csv"
GALLERY, CARD = "gallery.html", "README.md"
_STORE = "images"  # folder of decoded images, beside the checkpoint
_SHOWN = 20  # classes listed in the card's table

FILES = (  # what the card says of each file
    (PREDICTIONS, "one row per image: class, confidence, runner-up, zero-shot's class"),
    (LABEL_FIRST, "the most uncertain images, spread over the classes"),
    (GALLERY, "images with predictions and attention maps; works offline"),
    (WEIGHTS, "trained tensors: the image tower's LayerNorms, class vectors, pooling"),
    (TEXTS, "the encoded texts"),
    (RECORD, "description of the classifier, for `microclip.load` and `microclip predict`"),
    (paths.RUN_SETTINGS, "all settings, and the digest that identifies them"),
    (paths.RUN_HISTORY, "one row per epoch: losses and the signs behind the verdict"),
    (paths.RUN_FIRST_BATCH, "what training saw first: pixels, tokens, labels, losses, gradients"),
    (paths.RUN_JOURNAL, "what happened when"),
    (paths.BAD_FILES, "files that were skipped, and why; absent if there were none"),
    (paths.RUN_SCORES, "accuracy on the labelled images; absent without labels"),
)
MIRRORED = (  # files that MLflow shows, too
    *(CARD, GALLERY, PREDICTIONS, LABEL_FIRST, paths.BAD_FILES, paths.RUN_SCORES),
    *(RECORD, WEIGHTS, TEXTS, paths.RUN_SETTINGS, paths.RUN_HISTORY, paths.RUN_FIRST_BATCH),
)
MAX_IMAGES = 240  # a third uncertain, a third unlike zero-shot, the rest spread over the classes
_PICTURE_BYTES = 2_400_000  # all pictures together, so that the page opens quickly
_LARGEST_PX = 160
_BATCH = 64
_TOP = 3


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a command needs, checked before training starts."""

    start: Start
    materials: Materials
    texts: Texts
    settings: OwnSettings


def run(prepared: Prepared, out: Path, tracker: RunTracker) -> Results:
    """Adapt, judge, write every file, and report to MLflow; resumes an interrupted command.

    Raises:
        SettingsError, MissingDataError: an image or a checkpoint was damaged in the meantime.
    """
    start, materials = prepared.start, prepared.materials
    clock, folder = RunClock(out), out / paths.RUN_CHECKPOINT
    past = read_history(out) if (folder / "last.safetensors").is_file() else []
    write_bad_files(materials.survey.bad, out / paths.BAD_FILES, step="survey")
    rules = StoreRules(stretch=start.record.stretch)
    images = _stored(materials, folder / _STORE, rules)
    outcome = adapt_images(start, images, Place(tracker, clock, folder, past))
    pair, _ = closest_classes(start.record.class_names, start.texts)
    results = Results(
        materials=materials,
        texts=prepared.texts,
        settings=prepared.settings,
        outcome=outcome,
        n_cut=start.texts.n_truncated,
        closest=(pair.first, pair.second, pair.cosine),
        seconds=clock.seconds(),
    )
    _write_files(results, images, start, out)
    shutil.rmtree(folder, ignore_errors=True)
    tracker.finish(_mlflow_numbers(results))
    return results


def damage(out: Path) -> str:
    """What a complete folder lacks, or what is damaged in it; "" if nothing.

    Raises:
        SettingsError: it holds a pickle, which writing the files again would not remove.
    """
    refuse_pickles(out)
    # The pages may have been taken away on purpose: they are not worth training again.
    for name in (PREDICTIONS, WEIGHTS, TEXTS):
        if not (out / name).is_file():
            return f"{out / name} is missing"
    try:
        record, _, _ = read_adapted(out)
    except SettingsError as error:
        return str(error).partition("; ")[0]  # the advice is for those who cannot adapt again
    return "" if "verdict" in record.about else f"{out / RECORD} names no verdict"


def _stored(materials: Materials, folder: Path, rules: StoreRules) -> UnlabelledImages:
    """The decoded images, kept on disk until the command is complete."""
    write_store(materials.images, folder, materials.images_sha256, rules)
    store = open_store(folder, materials.images_sha256)
    return UnlabelledImages(store, tuple(range(len(materials.images))))


def _write_files(results: Results, images: UnlabelledImages, start: Start, out: Path) -> None:
    """Write all files; the record, which marks the folder as complete, comes last."""
    names, files = results.class_names, results.files
    found, count = results.found, len(results.unsure)
    written = {
        PREDICTIONS: predictions_csv(found, files, names),
        LABEL_FIRST: label_first_csv(found, files, names, count),
        GALLERY: gallery(results, images),
        CARD: model_card(results),
    }
    for name, text in written.items():
        runtime.write_text(out / name, text)
    if (scores := results.scores()) is not None:
        runtime.write_json(out / paths.RUN_SCORES, scores)
    record = replace(results.outcome.record, about=results.as_dict())
    write_adapted(out, record, start.texts, results.outcome.classifier)


def _mlflow_numbers(results: Results) -> dict[str, object]:
    """The numbers MLflow shows for a finished command."""
    signs = {f"verdict_{name}": value for name, value in results.outcome.verdict.numbers.items()}
    scores = results.scores() or {}
    return {
        "digest": results.settings.digest(),
        "verdict": results.outcome.verdict.kind,
        "n_images": len(results.files),
        "not_as_zero_shot_pct": results.changed_pct,
        "seconds": results.seconds,
        **signs,
        **{name: value for name, value in scores.items() if isinstance(value, int | float)},
    }


def model_card(results: Results) -> str:
    """The model card as Markdown."""
    parts = (
        _head(results),
        _verdict(results),
        _made_from(results),
        _classes(results),
        _use(),
        _limits(results),
        _settings(results),
    )
    return "\n".join(line for part in parts for line in part)


def _head(results: Results) -> Iterator[str]:
    record = results.outcome.record
    yield f"# A classifier for {_plain(results.title)}"
    yield ""
    kept, n_learned = results.outcome.verdict.keeps_zero_shot, len(results.outcome.learned)
    seen = f"adapted to {len(results.files)} images without labels"
    if n_learned:
        seen = f"trained on {n_learned} labelled ones of {len(results.files)} images"
    what = "Zero-shot" if kept else f"Method `{record.method}`"
    yield (
        f"{what} on the backbone `{record.backbone}`, for {len(record.class_names)} classes, "
        f"{seen} by microclip {runtime.version()}."
    )
    yield ""


def _verdict(results: Results) -> Iterator[str]:
    verdict = results.outcome.verdict
    yield f"**Verdict, reached without labels: {verdict.kind}.** {'; '.join(verdict.reasons)}."
    if verdict.keeps_zero_shot:
        yield ""
        yield (
            "The adapted network was discarded. Saved here is the zero-shot classifier, which "
            "compares images with the texts and was not trained on these images."
        )
    yield ""
    if verdict.numbers:
        yield "| sign | at the end of training |"
        yield "|---|---|"
        yield from (f"| {name} | {value:.4g} |" for name, value in verdict.numbers.items())
        yield ""
    if (scores := results.scores()) is not None:
        how = "saw without their labels" if scores["seen_in_training"] else "did not see"
        yield (
            f"Accuracy on {scores['n_labelled']} labelled images, which training {how}: "
            f"**{scores['top1_pct']:.2f} %**, zero-shot "
            f"{scores['top1_zero_shot_pct']:.2f} %."
        )
        yield ""


def _made_from(results: Results) -> Iterator[str]:
    materials, texts = results.materials, results.texts
    survey = materials.survey
    yield "## Made from"
    yield ""
    yield (
        f"- {len(results.files)} images ({survey.described() or 'kinds not counted'}); SHA-256 of "
        f"their names and bytes `{materials.images_sha256}`; {len(survey.bad)} bad files skipped"
    )
    yield (
        f"- {texts.n_sentences} sentences for {len(results.class_names)} classes, from "
        f"{_plain(texts.where)}; {results.n_cut} were truncated to fit the text tower"
    )
    first, second, cosine = results.closest
    yield f"- most similar texts: {_plain(first)} and {_plain(second)} (cosine {cosine:.3f})"
    yield f"- class names from {_plain(materials.vocabulary.where)}"
    yield ""


def _classes(results: Results) -> Iterator[str]:
    counts = results.per_class()
    yield "## Predicted classes"
    yield ""
    yield f"{len(counts)} of {len(results.class_names)} classes are predicted at least once."
    yield ""
    yield "| class | images |"
    yield "|---|---|"
    yield from (f"| {_plain(name)} | {n} |" for name, n in counts[:_SHOWN])
    if len(counts) > _SHOWN:
        yield f"| {len(counts) - _SHOWN} more | {sum(n for _, n in counts[_SHOWN:])} |"
    yield ""


def _use() -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "```"
    yield "microclip predict THIS_FOLDER image.jpg folder/"
    yield "```"
    yield ""
    yield "```python"
    yield "import microclip"
    yield 'microclip.load("THIS_FOLDER").predict(["image.jpg"])'
    yield "```"
    yield ""
    yield "| file | what it holds |"
    yield "|---|---|"
    yield from (f"| `{name}` | {what} |" for name, what in FILES)
    yield ""


def _limits(results: Results) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield (
        "- Every image gets one of the classes, even an image that shows none of them. High "
        "confidence means that the classes are well separated, not that the answer is right."
    )
    yield (
        "- The verdict is inferred from pseudo-labels: it detects collapse, not errors shared by "
        "all views of an image. To measure accuracy, label some of `label_these_first.csv`."
    )
    if results.outcome.record.backbone.startswith("icon-clip"):
        yield (
            f"- The backbone {results.outcome.record.backbone} is small and was trained on "
            "drawings of icons; for photographs, use `--backbone vit-b-32`."
        )
    yield "- CLIP's unchanged weights are not included; loading needs the same backbone."
    yield ""


def _settings(results: Results) -> Iterator[str]:
    record = runtime.record()
    yield "## Settings and versions"
    yield ""
    yield "| setting | value |"
    yield "|---|---|"
    rows = {
        "requested method": results.settings.spec.method,
        "seed": results.settings.spec.seed,
        "digest": results.settings.digest(),
        "backbone key": results.outcome.record.backbone_key,
        **results.settings.method,
    }
    yield from (f"| {name} | {value} |" for name, value in rows.items())
    versions = {
        "microclip": runtime.version(),
        "commit": record["commit"],
        "python": record["python"],
    }
    versions |= {name: version for name, version in record["packages"].items() if version}
    yield from (f"| {name} | {value} |" for name, value in versions.items())
    yield ""


def _plain(text: str) -> str:
    """A name escaped for Markdown, tables included."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text


@dataclass(frozen=True)
class Card:
    """One image on the page."""

    file: str
    prediction: str
    zero_shot: str
    confidence: float
    kinds: str  # "unsure", "changed", both or neither
    top: TopClasses
    picture: str = ""  # data URI
    look: Look = Look()


def chosen_images(
    found: Predictions, unsure: Sequence[int], at_most: int = MAX_IMAGES
) -> list[int]:
    """Images to show: uncertain ones, those unlike zero-shot, then some of every class."""
    if len(found) <= at_most:
        return list(range(len(found)))
    third = at_most // 3
    picked = dict.fromkeys(list(unsure)[:third])
    changed = torch.nonzero(found.first != found.zero_shot).flatten().tolist()
    changed.sort(key=lambda image: float(found.margin[image]))
    picked.update(dict.fromkeys(changed[:third]))
    for image in most_uncertain(_reversed(found), len(found)):  # per class, the most certain first
        if len(picked) == at_most:
            break
        picked.setdefault(image)
    return list(picked)


def gallery(results: Results, images: UnlabelledImages) -> str:
    """The page as HTML; the template escapes every text."""
    outcome, found = results.outcome, results.found
    indices = chosen_images(found, results.unsure)
    seen = list(_looks(outcome, images.part(indices)))
    pictures = encoded(_pictures(images.part(indices)), _PICTURE_BYTES)
    shown = zip(indices, pictures, seen or [Look()] * len(indices), strict=True)
    cards = [
        replace(_card(results, image), picture=picture, look=look) for image, picture, look in shown
    ]
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
        grid_columns=outcome.tower.patch_grid[1] if seen else 0,
    )


def _card(results: Results, image: int) -> Card:
    """An image's card, without picture and maps."""
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
    """Predictions with negated margins: `most_uncertain` then starts with the most certain."""
    return Predictions(found.first, found.second, found.confidence, -found.margin, found.zero_shot)


def _pictures(images: UnlabelledImages) -> list[Pixels]:
    """The central square of each image, as the classifier sees it, as pixels."""
    plain = ViewRecipe(0, _LARGEST_PX, (0.0,) * 3, (1.0,) * 3)
    views = evaluation_views(images, plain, crop="center", batch_size=_BATCH)
    return [as_pixels(view) for batch in views for view in batch]


def _looks(outcome: Outcome, images: UnlabelledImages) -> Iterator[Look]:
    """Yield each image's attention maps; nothing for methods without local tokens."""
    classifier = outcome.classifier
    if not isinstance(classifier, FusionClassifier) or "local" not in outcome.heads:
        return
    tower, seed = outcome.tower, outcome.record.seed
    recipe = ViewRecipe(seed, tower.image_size, tower.mean, tower.std)
    for batch in evaluation_views(
        images, recipe, crop="center", batch_size=_BATCH, device=tower.device
    ):
        maps = token_maps(classifier.fusion, batch, runtime.generator(seed, "test-query"))
        yield from looks(maps)
