"""What people read while a command works: what was found, the plan, how it went, what is next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from microclip.adaptation.training import duration
from microclip.data.bad_files import BAD_FILES
from microclip.model.embeddings import TextClassifiers
from microclip.own_images.inputs import Materials, Wishes
from microclip.own_images.results import Results
from microclip.own_images.texts import Texts, closest
from microclip.own_images.timing import Estimate


def found(materials: Materials, out: Path) -> Iterator[str]:
    """Yield what the folder holds."""
    survey = materials.survey
    labelled = f"{len(materials.labels)} labels, for scoring alone" if materials.labels else ""
    yield (
        f"{len(survey.images)} images of {len(materials.vocabulary)} classes in "
        f"{materials.folder}: {survey.told()}; {labelled or 'no labels (fine)'}"
    )
    if survey.duplicates:
        yield f"  {survey.duplicates} images have the bytes of another one"
    if survey.others:
        others = ", ".join(f"{n} {kind}" for kind, n in survey.others.items())
        yield f"  passed over, no images: {others}"
    if survey.bad:
        yield f"  left out, cannot be used: {len(survey.bad)}, listed in {out / BAD_FILES}"


def texts(given: Texts, vectors: TextClassifiers, names: tuple[str, ...]) -> Iterator[str]:
    """Yield what the sentences are."""
    a_class = given.n_sentences / len(names)
    yield (
        f"texts: {len(names)} classes x {a_class:.3g} sentences from {given.where}; "
        f"{vectors.n_truncated} longer than the text tower reads"
    )
    pair, twins = closest(names, vectors)
    yield f"  most alike: {pair.first!r} and {pair.second!r} read {100 * pair.cosine:.0f} % alike"
    if twins:
        yield f"  warning: {len(twins)} pairs of classes cannot be told apart by their texts"
    yield from (f"  {note}" for note in given.notes)


def warnings(materials: Materials, settings: object) -> Iterator[str]:
    """Yield what is unusual about the number of images."""
    n_images, n_classes = len(materials.images), len(materials.vocabulary)
    batch = getattr(settings, "batch_size", 0)
    has_fairness = getattr(settings, "fairness", "off") != "off"
    if n_images < batch:
        yield f"  fewer images than a batch of {batch}: each step sees all {n_images}"
    if has_fairness and (n_images < n_classes or n_images < batch):
        yield (
            f"  warning: the fairness term wants all {n_classes} classes equally often, which "
            f"{n_images} images may not be; `--set fairness=off` leaves it out"
        )


def plan(wishes: Wishes, estimate: Estimate | None, device: str) -> Iterator[str]:
    """Yield what will be done, and how long it takes."""
    told = f"plan: {wishes.method} on {wishes.backbone}, seed {wishes.seed}, {device}"
    if estimate is None:
        yield f"{told}; going on where it was interrupted"
    else:
        seconds = duration(max(1.0, estimate.seconds))
        yield (
            f"{told}; about {seconds} (measured on {estimate.n_measured} "
            f"images), {estimate.peak_memory_mib / 1024:.1f} GiB memory, "
            f"{estimate.store_mib:.0f} MiB disk meanwhile, 0 USD"
        )
    if wishes.backbone == "icon-clip":
        yield (
            "  icon-clip was made for icons and drawings, and is offline; photographs want "
            "`--backbone vit-b-32`, fetched once"
        )


def done(results: Results, out: Path) -> Iterator[str]:
    """Yield how it went; the last line says what to do next."""
    verdict = results.outcome.verdict
    kept = {
        "healthy": "the adapted model is kept; only labels can tell whether it is better",
        "no evidence": "nothing says that the adapted model is better than zero-shot; it is kept",
        "collapsed": "the adapted model is put aside, ZERO-SHOT IS KEPT",
        "untrained": "nothing was trained",
    }[verdict.kind]
    took = duration(results.seconds)
    yield f"done in {took}; {verdict.kind}: {'; '.join(verdict.reasons)} -> {kept}"
    if verdict.numbers:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in verdict.numbers.items())
        yield f"  signs: {shown}"
    n_seen = len(results.per_class())
    yield (
        f"  {n_seen} of {len(results.class_names)} classes predicted; {results.changed_pct:.1f} % "
        "of the images are not what zero-shot says"
    )
    if (scores := results.scores()) is not None:
        yield (
            f"  {scores['top1_pct']:.2f} % of {scores['n_labelled']} labelled images are right, "
            f"zero-shot {scores['top1_zero_shot_pct']:.2f} %"
        )
    yield f"wrote {out}/: README.md predictions.csv gallery.html label_these_first.csv and more"
    yield (
        f"next: open {out}/gallery.html, then `microclip predict {out} IMAGES`; to measure, label "
        f"{out}/label_these_first.csv and give it with --labels"
    )
