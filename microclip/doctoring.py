"""`microclip describe --check` and `--fix`: which file, whose classes, what is printed.

Heavy imports stand inside the functions, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from microclip import paths, runtime, settings
from microclip.cli import say
from microclip.settings import DatasetSettings, IconSource, SettingsError
from microclip.settings.llms import DescriptionSettings

if TYPE_CHECKING:
    from microclip.text.doctor import Options
    from microclip.text.findings import Report


@dataclass(frozen=True)
class DoctorOptions:
    """What the command line asks of the doctor."""

    is_fix: bool = False
    long: Literal["trim", "drop", "error"] = "trim"
    backbone: str = ""  # of config/backbones: compares classes by vectors
    out: Path | None = None  # the mended copy


@dataclass(frozen=True)
class Patient:
    """A file to be looked at: its classes, what is known of it, where its report goes."""

    path: Path
    class_names: tuple[str, ...] | None
    options: Options
    report: Path | None = None


def run_doctor(targets: Sequence[str], written: DescriptionSettings, wanted: DoctorOptions) -> None:
    """Check descriptions files or those of datasets, print the tables, and mend if asked to.

    Raises:
        VerificationError: there are errors, or after mending there are still some.
        SettingsError, MissingDataError: see `examination.examine`.
    """
    if wanted.out is not None and (len(targets) > 1 or not wanted.is_fix):
        raise SettingsError(
            f"--out {wanted.out} is one mended copy; give it with --fix and one file"
        )
    wrong = [target for target in targets if _examine(target, written, wanted).has_errors]
    if wrong:
        remedy = "write what is missing" if wanted.is_fix else "`--fix` mends a copy"
        raise runtime.VerificationError(
            f"errors that must not be embedded in {', '.join(wrong)}; {remedy}"
        )


def _examine(target: str, written: DescriptionSettings, wanted: DoctorOptions) -> Report:
    """Return the last report on a file: on its mended copy, if one was made."""
    from microclip.text import examination
    from microclip.text.doctor import Options

    options = Options(long=wanted.long, frame=written.frame)
    patient = _of_dataset(target, written, options) or _of_file(target, wanted)
    if wanted.backbone:
        runtime.use_all_cpus()
    if wanted.is_fix:
        found = examination.mend(
            patient.path,
            patient.class_names,
            options=patient.options,
            out=wanted.out,
            report=patient.report,
        )
    else:
        found = examination.examine(
            patient.path,
            patient.class_names,
            options=patient.options,
            backbone=wanted.backbone or None,
            report=patient.report,
        )
    print(found.text(), flush=True)
    for path in found.written:
        say(f"wrote {path}")
    return found.report if found.mended is None else found.mended.report


def _of_dataset(target: str, written: DescriptionSettings, options: Options) -> Patient | None:
    """Return the descriptions of a dataset, by one author; None if there is no such dataset."""
    if target not in settings.known("datasets"):
        return None
    from microclip.text import descriptions as texts
    from microclip.text import examination

    dataset = settings.load_dataset(target)
    kept = Path(paths.DESCRIPTIONS.format(descriptions=written.name, dataset=target))
    path = texts.source_file(dataset, written) if written.reads_file else kept
    if not path.is_file():
        raise runtime.MissingDataError(
            f"descriptions {path} are not there; run "
            f"`microclip describe {target} --descriptions {written.name}` or put them there"
        )
    names, options = examination.of_dataset(target, options)
    return Patient(path, _with_the_rest(dataset, path, names), options, kept.with_suffix(""))


def _with_the_rest(dataset: DatasetSettings, path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return a dataset's classes, and all others of its file if it takes a part of a set."""
    if not isinstance(dataset.source, IconSource) or dataset.source.classes is None:
        return names
    from microclip.text import examination

    keys = examination.read_raw(path).sentences
    return (*names, *(key for key in keys if key not in names))


def _of_file(target: str, wanted: DoctorOptions) -> Patient:
    """Return a file; if it is named as a dataset, or as a published file, with its classes."""
    from microclip.text import examination
    from microclip.text.doctor import Options

    path, options = Path(target), Options(long=wanted.long)
    if not path.is_file():
        known = ", ".join(settings.known("datasets")[:3])
        raise SettingsError(
            f"{target} is neither a file nor a dataset ({known}, …); name a JSON file of sentences"
        )
    dataset = _dataset_of(path)
    if dataset is None:
        say(f"{path}: each key is taken as a class; a file named <dataset>.json has its classes")
        return Patient(path, None, options)
    names, options = examination.of_dataset(dataset, options)
    say(f"{path}: taken as descriptions of {dataset}")
    return Patient(path, names, options)


def _dataset_of(path: Path) -> str | None:
    """Return the dataset that a file is of, by its name."""
    from microclip.text.published_descriptions import published_list

    stem = path.name.removesuffix(".json").removesuffix(".clean")
    if stem in settings.known("datasets"):
        return stem
    for own in published_list().files.values():
        for dataset, known in own.files.items():
            if known.file == f"{stem}.json":
                return dataset
    return None
