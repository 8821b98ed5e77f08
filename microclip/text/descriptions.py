"""Class descriptions: sentences about what a class looks like, read, checked and recorded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microclip import paths, provenance, runtime
from microclip.data.vocabulary import Vocabulary, load_vocabulary
from microclip.settings import DatasetSettings, DescriptionSettings, IconSource, SettingsError
from microclip.text.prompts import readable

logger = logging.getLogger(__name__)

_SHOWN = 3  # names listed in an error


@dataclass(frozen=True)
class Descriptions:
    """Sentences by class name, who wrote them, and where they were read."""

    sentences: Mapping[str, tuple[str, ...]]
    where: str
    record: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> Descriptions:
    """Return a descriptions file.

    Two forms are read: the project's `{"model", "prompts", "date", "descriptions": {class:
    [sentence]}}` and CuPL's plain `{class: [sentence]}`.

    Raises:
        SettingsError: missing file, not JSON, or not lists of non-empty sentences.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"descriptions {path} do not exist; write them or correct `files` in config/llms/"
        ) from None
    except ValueError as error:
        raise SettingsError(f"descriptions {path} are not JSON: {error}; mend the file") from error
    if not isinstance(values, dict):
        raise SettingsError(
            f"descriptions {path} must map class names to lists of sentences, got "
            f"{type(values).__name__}; see resources/descriptions/"
        )
    record: dict[str, Any] = {}
    if isinstance(values.get("descriptions"), dict):
        record = {key: value for key, value in values.items() if key != "descriptions"}
        values = values["descriptions"]
    return Descriptions(_sentences(values, str(path)), str(path), record)


def select(
    descriptions: Descriptions, vocabulary: Vocabulary, *, unused_level: int = logging.WARNING
) -> dict[str, tuple[str, ...]]:
    """Return the sentences of every class of `vocabulary`, in label order, duplicates kept.

    Underscores and spaces are the same in a name. Descriptions of other classes are only logged,
    at `unused_level`.

    Raises:
        SettingsError: a class has no description.
    """
    by_name = {readable(name): sentences for name, sentences in descriptions.sentences.items()}
    missing = [name for name in vocabulary.class_names if readable(name) not in by_name]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:_SHOWN])
        raise SettingsError(
            f"descriptions lack {len(missing)} of {len(vocabulary)} classes ({shown}"
            f"{', …' if len(missing) > _SHOWN else ''}) in {descriptions.where}; "
            f"add them, or rename them to match {vocabulary.where}"
        )
    wanted = {readable(name) for name in vocabulary.class_names}
    unused = [name for name in by_name if name not in wanted]
    if unused:
        logger.log(
            unused_level,
            "%d descriptions in %s belong to no class of %s (first: %r); they are not used",
            len(unused),
            descriptions.where,
            vocabulary.where,
            unused[0],
        )
    return {name: by_name[readable(name)] for name in vocabulary.class_names}


def source_file(dataset: DatasetSettings, descriptions: DescriptionSettings) -> Path:
    """Return the file in which a dataset's descriptions are shipped or given."""
    drawings = dataset.source.drawings if isinstance(dataset.source, IconSource) else dataset.name
    path = Path(descriptions.files.format(dataset=dataset.name, drawings=drawings))
    return path if path.is_absolute() else paths.project_root() / path


def identity(dataset: DatasetSettings, descriptions: DescriptionSettings) -> list[Any]:
    """Return what decides the texts of a dataset, as plain values.

    Its templates, who describes it, and the file that is read; of a language model's descriptions,
    the prompts and the classes instead of a file.
    """
    author = {"title": descriptions.title, **descriptions.identity()}
    if not descriptions.asks:
        read_from = provenance.content(source_file(dataset, descriptions))
        return [dataset.templates, author, read_from]
    prompts = paths.project_root() / "config" / "prompts"
    written = [provenance.content(prompts / f"{descriptions.prompts}{end}") for end in ("", ".yaml")]
    try:
        names: tuple[str, ...] = load_vocabulary(dataset).class_names
    except SettingsError:
        names = ()  # the job says what is wrong with them
    return [dataset.templates, author, written, names]


def write(dataset: DatasetSettings, descriptions: DescriptionSettings) -> Path:
    """Check a dataset's descriptions, write them with their provenance, and return the file.

    Raises:
        SettingsError: see `read` and `select`.
    """
    source = source_file(dataset, descriptions)
    found = read(source)
    is_part = isinstance(dataset.source, IconSource) and dataset.source.classes is not None
    level = logging.INFO if is_part else logging.WARNING  # a part of the set leaves some unused
    sentences = select(found, load_vocabulary(dataset), unused_level=level)
    root = paths.project_root()
    target = _target(dataset, descriptions)
    runtime.write_json(
        target,
        {
            "model": descriptions.model,
            "prompts": descriptions.prompts,
            **found.record,
            "dataset": dataset.name,
            "engine": descriptions.engine,
            "source": str(source.relative_to(root) if source.is_relative_to(root) else source),
            "source_sha256": runtime.sha256(source),
            "n_sentences": sum(map(len, sentences.values())),
            "descriptions": sentences,
        },
    )
    return target


def load(dataset: DatasetSettings, descriptions: DescriptionSettings) -> dict[str, tuple[str, ...]]:
    """Return what `write` wrote, framed, restricted to the dataset's classes, in label order.

    Raises:
        MissingDataError: not written yet.  SettingsError: see `read` and `select`.
    """
    path = _target(dataset, descriptions)
    if not path.is_file():
        raise runtime.MissingDataError(
            f"descriptions {path} are not there; run `microclip describe {dataset.name}`"
        )
    sentences = select(read(path), load_vocabulary(dataset))
    return {name: framed(name, own, descriptions.frame) for name, own in sentences.items()}


def framed(class_name: str, sentences: Sequence[str], frame: str) -> tuple[str, ...]:
    """Return the sentences as they are encoded: with {name} and {sentence} of `frame` filled."""
    name = readable(class_name)
    return tuple(frame.format(name=name, sentence=sentence) for sentence in sentences)


def _target(dataset: DatasetSettings, descriptions: DescriptionSettings) -> Path:
    return Path(paths.DESCRIPTIONS.format(descriptions=descriptions.name, dataset=dataset.name))


def checked(values: Mapping[str, Sequence[str]], where: str) -> Descriptions:
    """Return sentences given in memory. Raises SettingsError as `read` does."""
    return Descriptions(_sentences(values, where), where)


def _sentences(values: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """Return `values` as tuples of sentences, or say which class is wrong."""
    for name, sentences in values.items():
        is_list = isinstance(sentences, list | tuple) and len(sentences) > 0
        if not is_list or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise SettingsError(
                f"class {name!r} in {where} needs a list of sentences, got "
                f"{json.dumps(sentences)[:60]}; give at least one non-empty sentence"
            )
    return {name: tuple(sentences) for name, sentences in values.items()}
