"""One command from materials to files; `adapted.json` comes last and says that all is there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from microclip import paths, runtime
from microclip.data.bad_files import BAD_FILES, write_bad_files
from microclip.data.datasets import UnlabelledImages
from microclip.data.store import open_store, write_store
from microclip.history import RunClock, read_history
from microclip.own_images import pages, report, tables
from microclip.own_images.command import OwnSettings
from microclip.own_images.inputs import Materials
from microclip.own_images.record import RECORD, TEXTS, WEIGHTS, write_adapted
from microclip.own_images.results import Results
from microclip.own_images.texts import Texts, closest
from microclip.own_images.training import Place, Start, adapt_images
from microclip.settings import SettingsError
from microclip.tracking.run import Mirror, RunTracker

PREDICTIONS, LABEL_FIRST = "predictions.csv", "label_these_first.csv"
GALLERY, CARD = "gallery.html", "README.md"
_STORE = "images"  # decoded images, beside the checkpoint


class OwnMirror(Mirror):
    """A command's run in MLflow."""

    files: ClassVar[Sequence[str]] = (
        *(CARD, GALLERY, PREDICTIONS, LABEL_FIRST, BAD_FILES, paths.RUN_SCORES),
        *(RECORD, WEIGHTS, TEXTS, paths.RUN_SETTINGS, paths.RUN_HISTORY),
    )
    hint: ClassVar[str] = "the run goes on, and its folder will be whole without it"


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that a command needs, checked before anything is trained."""

    start: Start
    materials: Materials
    texts: Texts
    settings: OwnSettings


def run(prepared: Prepared, out: Path, tracker: RunTracker) -> Results:
    """Adapt, judge, write every file, and tell MLflow; an interrupted command goes on here.

    Raises:
        SettingsError, MissingDataError: an image or a checkpoint was spoilt meanwhile.
    """
    start, materials = prepared.start, prepared.materials
    clock, folder = RunClock(out), out / paths.RUN_CHECKPOINT
    past = read_history(out) if (folder / "last.safetensors").is_file() else []
    write_bad_files(materials.survey.bad, out / BAD_FILES, step="survey")
    images = _stored(materials, folder / _STORE)
    outcome = adapt_images(start, images, Place(tracker, clock, folder, past))
    pair, _ = closest(start.record.class_names, start.texts)
    results = Results(
        materials=materials,
        texts=prepared.texts,
        settings=prepared.settings,
        outcome=outcome,
        n_cut=start.texts.n_truncated,
        closest=(pair.first, pair.second, pair.cosine),
        seconds=clock.seconds(),
    )
    _write(results, images, start, out)
    shutil.rmtree(folder, ignore_errors=True)
    tracker.finish(_numbers(results))
    return results


def _stored(materials: Materials, folder: Path) -> UnlabelledImages:
    """Return the decoded images, kept until the command is complete."""
    try:
        store = open_store(folder, materials.images_sha256)
    except (SettingsError, runtime.MissingDataError):
        write_store(materials.images, folder, materials.images_sha256)
        store = open_store(folder, materials.images_sha256)
    return UnlabelledImages(store, tuple(range(len(materials.images))))


def _write(results: Results, images: UnlabelledImages, start: Start, out: Path) -> None:
    """Write all files, those that stand for a complete folder last."""
    names, files = results.class_names, results.files
    found, count = results.found, len(results.unsure)
    written = {
        PREDICTIONS: tables.predictions_csv(found, files, names),
        LABEL_FIRST: tables.label_first_csv(found, files, names, count),
        GALLERY: pages.page(results, images),
        CARD: report.write(results),
    }
    for name, text in written.items():
        runtime.write_text(out / name, text)
    if (scores := results.scores()) is not None:
        runtime.write_json(out / paths.RUN_SCORES, scores)
    record = replace(results.outcome.record, about=results.as_dict())
    write_adapted(out, record, start.texts, results.outcome.classifier)


def _numbers(results: Results) -> dict[str, object]:
    """Return what MLflow shows of a complete command."""
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
