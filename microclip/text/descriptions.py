"""Descriptions files: sentences about what a class looks like, found, fetched, checked, recorded.

A location is a path or a web address; `#sha256=<64 hex digits>` at its end gives the hash of its
content. For files listed in `config/published/descriptions.yaml` the hash is known. The module is
long because it follows a file all the way, from its location to the sentences of a dataset.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from microclip import paths, runtime
from microclip.data.vocabulary import Vocabulary, load_vocabulary
from microclip.settings.base import (
    Frozen,
    MissingFileError,
    Name,
    SettingsError,
    read_yaml,
    refuse_pickle,
    say_once,
    validated,
)
from microclip.settings.datasets import DatasetSettings, IconSource
from microclip.settings.llms import DescriptionSettings
from microclip.text.prompts import Matches, fill, match_keys, readable, relative_clause
from microclip.text.sentence_files import read_sentences

logger = logging.getLogger(__name__)

LIST = "config/published/descriptions.yaml"
MAX_BYTES = 64 * 2**20  # CuPL's largest file is 2 MB; this stops a wrong address
_TRIES, _TIMEOUT_S, _CHUNK = 3, 60.0, 1 << 16
_HASH = re.compile(r"#sha256=([0-9a-fA-F]{64})$")


class PublishedFile(Frozen):
    """A file in an author's repository."""

    file: str = Field(description="its name in the repository")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of its content")


class PublishedSet(Frozen):
    """The files of one author."""

    repository: str
    files: dict[Name, PublishedFile] = Field(description="by dataset")


class PublishedList(Frozen):
    """`config/published/descriptions.yaml`."""

    files: dict[Name, PublishedSet] = Field(default_factory=dict, description="by prompt set")
    keys: dict[Name, dict[str, str]] = Field(
        default_factory=dict, description="by dataset: the key of each class"
    )
    unused: dict[Name, tuple[str, ...]] = Field(
        default_factory=dict, description="by dataset: keys that belong to no class"
    )


@dataclass(frozen=True)
class Source:
    """An existing file: its path, the name of it in records, its hash."""

    path: Path
    shown: str
    sha256: str


class Publication(TypedDict, total=False):
    """Who published a file, as recorded with the descriptions; empty if unknown."""

    published_by: str
    is_as_published: bool


def published_list() -> PublishedList:
    """The list of published files; empty if the project has none."""
    return _read_list(paths.project_root() / LIST)


@cache
def _read_list(path: Path) -> PublishedList:
    return validated(PublishedList, read_yaml(path) if path.is_file() else {}, LIST)


def published_file(prompts: str, dataset: str) -> PublishedFile | None:
    """Entry of a dataset's file by one author, or None."""
    own = published_list().files.get(prompts)
    return None if own is None else own.files.get(dataset)


def publication(source: Source, prompts: str, dataset: str) -> Publication:
    """Who published a file, and whether it is unchanged; empty if unknown."""
    known = published_file(prompts, dataset)
    if known is None:
        return {}
    repository = published_list().files[prompts].repository
    is_same = source.sha256 == known.sha256
    if not is_same:
        logger.warning("%s differs from the file that %s published", source.shown, repository)
    return {"published_by": repository, "is_as_published": is_same}


def is_url(location: str) -> bool:
    """Whether a location is a web address."""
    return location.startswith(("http://", "https://"))


def local_path(location: str, known_sha256: str | None = None) -> Path:
    """Path of a location's content, now or once it is fetched."""
    place, expected = _split(location)
    if is_url(place):
        named = expected or known_sha256 or hashlib.sha256(place.encode()).hexdigest()
        return Path(paths.PUBLISHED_DESCRIPTIONS.format(sha256=named))
    path = Path(place)
    return path if path.is_absolute() else paths.project_root() / path


def fetch(location: str, known_sha256: str | None = None) -> Source:
    """Get a location's file, downloaded once if it is a web address, and check its hash.

    A local file is checked only against a hash in `location`: it may have been edited on purpose.

    Raises:
        MissingDataError: no such file.
        SettingsError: no hash for a web address, or a wrong one.
        ServiceError: the download fails.
    """
    place, expected = _split(location)
    path = local_path(location, known_sha256)
    if not is_url(place):
        root = paths.project_root()
        shown = str(path.relative_to(root) if path.is_relative_to(root) else path)
        return Source(path, shown, _checked_local(path, expected))
    expected = expected or known_sha256
    if path.is_file() and expected is not None and runtime.sha256(path) == expected:
        return Source(path, _shown(place), expected)
    content = download(place)
    found = hashlib.sha256(content).hexdigest()
    if expected is None:
        raise SettingsError(
            f"{_shown(place)} needs a sha256, so that later runs use the same content; today's is "
            f"{found}: look at the file, then write {_shown(place)}#sha256={found}"
        )
    if found != expected:
        raise SettingsError(
            f"{_shown(place)} has sha256 {found}, expected {expected}; it is not the published "
            "file, correct the address or the hash"
        )
    with runtime.atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Source(path, _shown(place), expected)


def _checked_local(path: Path, expected: str | None) -> str:
    if not path.is_file():
        raise runtime.MissingDataError(
            f"descriptions {path} do not exist; write them or correct `files` in config/llms/"
        )
    found = runtime.sha256(path)
    if expected is not None and found != expected:
        raise SettingsError(f"{path} has sha256 {found}, expected {expected}; fetch it again")
    return found


def download(url: str) -> bytes:
    """Download the content of a web address, with three tries if a fault may pass.

    Raises:
        ServiceError: no answer, a refusal, or more than `MAX_BYTES`.
    """
    # Not the resuming download of `data`: a file here is small, is fetched whole or not at all, and
    # may have no known hash yet. Not urllib3's `Retry`: it does not cover a body that is read in
    # pieces, which `MAX_BYTES` requires.
    for attempt in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                return _read_all(answer, url)
        except urllib.error.HTTPError as error:
            reason, is_passing = f"status {error.code}", error.code in (429, 500, 502, 503, 504)
        except (OSError, http.client.HTTPException) as error:
            reason, is_passing = " ".join(str(error).split()) or type(error).__name__, True
        if not is_passing or attempt == _TRIES:
            break
        logger.warning("%s: %s; trying again", _shown(url), reason)
        time.sleep(attempt)
    raise runtime.ServiceError(
        f"{_shown(url)} could not be fetched ({reason}); download it some other way and put its "
        "path in `files` of config/llms/"
    )


def _read_all(answer: http.client.HTTPResponse, url: str) -> bytes:
    """Read a body. Raises ServiceError if it is too large, HTTPException if it is cut short."""
    parts, size = [], 0
    while part := answer.read(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise runtime.ServiceError(
                f"{_shown(url)} has more than {MAX_BYTES // 2**20} MiB, too large for a "
                "descriptions file; correct the address"
            )
    # `read` returns an empty part both at the end and when the connection breaks off.
    announced = answer.headers.get("Content-Length")
    if announced is not None and size < int(announced):
        raise http.client.IncompleteRead(b"", int(announced) - size)
    return b"".join(parts)


def _split(location: str) -> tuple[str, str | None]:
    """Split off the hash at the end of a location."""
    if is_url(location) and "@" in urlsplit(location).netloc:
        raise SettingsError(
            f"{_shown(location)} contains a user name or password, which must not be in a setting; "
            "download the file and give its path"
        )
    named = _HASH.search(location)
    if named:
        return location[: named.start()], named[1].lower()
    if "#sha256" in location:
        raise SettingsError(
            f"{_shown(location)} must end with #sha256= and 64 hex digits; correct the hash"
        )
    return location, None


def _shown(url: str) -> str:
    """An address without the parts that may be secret: user, password, query."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.hostname:
        return url
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, f"{parts.hostname}{port}", parts.path, "", ""))


_SHOWN = 3  # names listed in an error


@dataclass(frozen=True)
class Descriptions:
    """Sentences by class name, and the file that they come from."""

    sentences: Mapping[str, tuple[str, ...]]
    where: str
    record: Mapping[str, object] = field(default_factory=dict)  # other keys of the file, copied on


def read(path: Path) -> Descriptions:
    """Read a descriptions file, in one of the forms that `sentence_files` knows.

    Raises:
        SettingsError: missing file, not JSON, or not lists of non-empty sentences.
    """
    refuse_pickle(path, "JSON, class name to sentences")
    try:
        found = read_sentences(path)
    except FileNotFoundError:
        raise MissingFileError(
            f"descriptions {path} do not exist; write them or correct `files` in config/llms/"
        ) from None
    twice = [f"class {name!r} appears twice; its sentences were joined" for name in found.twice]
    if notes := (*found.notes, *twice):
        say_once(f"{path}: {'; '.join(notes)}")
    return Descriptions(_sentences(found.sentences, str(path)), str(path), found.record)


def select(
    descriptions: Descriptions, vocabulary: Vocabulary, *, unused_level: int = logging.WARNING
) -> dict[str, tuple[str, ...]]:
    """Sentences of every class of `vocabulary`, in label order, including duplicates.

    Names may differ in underscores, case and punctuation; see `match_keys`. Descriptions of other
    classes are only logged, at `unused_level`.

    Raises:
        SettingsError: a class has no description.
    """
    matches = match_keys(tuple(descriptions.sentences), vocabulary.class_names)
    if matches.by_rule:
        logger.info("%s: %s", descriptions.where, "; ".join(map(str, matches.by_rule)))
    _require_all(matches, descriptions.where, vocabulary)
    if matches.unused:
        logger.log(
            unused_level,
            "ignored %d descriptions in %s that belong to no class of %s (first: %r)",
            len(matches.unused),
            descriptions.where,
            vocabulary.where,
            matches.unused[0],
        )
    return {match.class_name: descriptions.sentences[match.key] for match in matches.found}


def _require_all(matches: Matches, where: str, vocabulary: Vocabulary) -> None:
    """Raise SettingsError if a class has no description."""
    if not matches.missing:
        return
    shown = ", ".join(repr(name) for name in matches.missing[:_SHOWN])
    more = ", …" if len(matches.missing) > _SHOWN else ""
    between = [
        f"; for {name!r} choose between {', '.join(keys)}"
        for name, keys in list(matches.doubtful.items())[:1]
    ]
    raise SettingsError(
        f"descriptions lack {len(matches.missing)} of {len(vocabulary)} classes ({shown}{more}) in "
        f"{where}; add them, or rename them to match {vocabulary.where}{''.join(between)}"
    )


def location(dataset: DatasetSettings, descriptions: DescriptionSettings) -> str:
    """Path or web address of a dataset's descriptions, from `files` in config/llms.

    {published} is the name of the file in its author's repository, {published.stem} the same
    without ".json". A file named <dataset>.json in the same place will do too.
    """
    drawings = dataset.source.drawings if isinstance(dataset.source, IconSource) else dataset.name
    own = f"{dataset.name}.json"
    known = published_file(descriptions.prompts, dataset.name)
    names = (own,) if known is None else (known.file, own)
    places = [
        descriptions.files.format(dataset=dataset.name, drawings=drawings, published=Path(name))
        for name in names
    ]
    there = [place for place in places if local_path(place).is_file()]
    return there[0] if there else places[0]


def source_file(dataset: DatasetSettings, descriptions: DescriptionSettings) -> Path:
    """File with a dataset's descriptions, whether shipped, given or downloaded."""
    return local_path(location(dataset, descriptions), _known_hash(dataset, descriptions))


def is_remote(dataset: DatasetSettings, descriptions: DescriptionSettings) -> bool:
    """Whether a dataset's descriptions come from a web address."""
    return is_url(location(dataset, descriptions))


def _known_hash(dataset: DatasetSettings, descriptions: DescriptionSettings) -> str | None:
    known = published_file(descriptions.prompts, dataset.name)
    return None if known is None else known.sha256


def notice(pairs: Iterable[tuple[DatasetSettings, DescriptionSettings]]) -> str:
    """One line on the descriptions files that are missing here; empty if none is."""
    files = {
        source_file(dataset, written): None
        for dataset, written in pairs
        if written.reads_file and not is_remote(dataset, written)
    }
    missing = [path for path in files if not path.is_file()]
    if not missing:
        return ""
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return (
        f"descriptions: {len(files) - len(missing)} of {len(files)} files here; missing: "
        f"{', '.join(map(str, missing[:_SHOWN]))}{more}; docs/reproduce-the-paper.md says where to "
        "get them"
    )


def identity(dataset: DatasetSettings, descriptions: DescriptionSettings) -> list[Any]:
    """Everything that decides the texts of a dataset, as plain values.

    These are its templates, the author of its descriptions, the content of their file, and which
    key of a published file stands for which class. For a language model they include the prompts
    and the classes instead of a file; for filled templates, only the classes.
    """
    author = {"title": descriptions.title, **descriptions.identity()}
    if descriptions.reads_file:
        is_fetched = is_remote(dataset, descriptions)  # its path already contains its hash
        read_from = "" if is_fetched else runtime.content(source_file(dataset, descriptions))
        listed = published_list().keys.get(dataset.name)
        return [dataset.templates, author, read_from, *([listed] if listed else [])]
    prompts = paths.project_root() / "config" / "prompts"
    ends = ("", ".yaml") if descriptions.asks else ()
    written = [runtime.content(prompts / f"{descriptions.prompts}{end}") for end in ends]
    try:
        names: tuple[str, ...] = load_vocabulary(dataset).class_names
    except SettingsError:
        names = ()  # the workflow only plans here; the job will report what is wrong
    return [dataset.templates, author, written, names]


def write(dataset: DatasetSettings, descriptions: DescriptionSettings) -> Path:
    """Check a dataset's descriptions, write them with their provenance, and return the path.

    Raises:
        SettingsError: see `read` and `select`.
    """
    if descriptions.engine == "templates":
        return _write_templates(dataset, descriptions)
    source = fetch(location(dataset, descriptions), _known_hash(dataset, descriptions))
    vocabulary = load_vocabulary(dataset)
    found, renamed = _under_class_names(read(source.path), dataset, vocabulary)
    is_part = isinstance(dataset.source, IconSource) and dataset.source.classes is not None
    # A dataset that uses part of an icon set never uses all of the set's descriptions.
    level = logging.INFO if is_part else logging.WARNING
    sentences = select(found, vocabulary, unused_level=level)
    target = _target(dataset, descriptions)
    runtime.write_json(
        target,
        {
            "model": descriptions.model,
            "prompts": descriptions.prompts,
            **found.record,
            "dataset": dataset.name,
            "engine": descriptions.engine,
            "source": source.shown,
            "source_sha256": source.sha256,
            **_publication(source, found, dataset, descriptions),
            **({"keys": renamed} if renamed else {}),
            "n_sentences": sum(map(len, sentences.values())),
            "descriptions": sentences,
        },
    )
    return target


def _write_templates(dataset: DatasetSettings, descriptions: DescriptionSettings) -> Path:
    """Write the dataset's templates, filled with each class's name, as its descriptions."""
    names = load_vocabulary(dataset).class_names
    filled = dict(zip(names, fill(dataset.templates, names), strict=True))
    target = _target(dataset, descriptions)
    runtime.write_json(
        target,
        {
            "model": descriptions.model,
            "prompts": descriptions.prompts,
            "dataset": dataset.name,
            "engine": descriptions.engine,
            "templates": dataset.templates,
            "n_sentences": sum(map(len, filled.values())),
            "descriptions": filled,
        },
    )
    return target


def _under_class_names(
    found: Descriptions, dataset: DatasetSettings, vocabulary: Vocabulary
) -> tuple[Descriptions, dict[str, dict[str, str]]]:
    """Rename keys to class names; also return each renamed key with the rule that matched it.

    Keys known to belong to no class of the dataset are left out.
    """
    known = published_list()
    listed = known.keys.get(dataset.name)
    matches = match_keys(tuple(found.sentences), vocabulary.class_names, listed)
    _require_all(matches, found.where, vocabulary)
    if matches.by_rule:
        logger.warning(
            "%d of %d classes of %s have another key in %s: %s",
            len(matches.by_rule),
            len(vocabulary),
            dataset.name,
            found.where,
            "; ".join(map(str, matches.by_rule)),
        )
    ignored = known.unused.get(dataset.name, ())
    by_class = {match.class_name: found.sentences[match.key] for match in matches.found}
    others = {key: found.sentences[key] for key in matches.unused if key not in ignored}
    renamed = {
        match.class_name: {"key": match.key, "rule": match.rule} for match in matches.by_rule
    }
    return Descriptions({**others, **by_class}, found.where, found.record), renamed


def _publication(
    source: Source,
    found: Descriptions,
    dataset: DatasetSettings,
    descriptions: DescriptionSettings,
) -> Publication:
    """Who published a file; empty for a fixed copy, which records its original itself."""
    if "cleaned" in found.record:
        return {}
    return publication(source, descriptions.prompts, dataset.name)


def load(dataset: DatasetSettings, descriptions: DescriptionSettings) -> dict[str, tuple[str, ...]]:
    """Load what `write` wrote, in its frame, for the dataset's classes in label order.

    Raises:
        MissingDataError: not written yet.
        SettingsError: see `read` and `select`.
    """
    path = _target(dataset, descriptions)
    if not path.is_file():
        raise runtime.MissingDataError(
            f"descriptions {path} do not exist; run `microclip describe {dataset.name}`"
        )
    sentences = select(read(path), load_vocabulary(dataset))
    return {name: framed(name, own, descriptions.frame) for name, own in sentences.items()}


def framed(class_name: str, sentences: Sequence[str], frame: str) -> tuple[str, ...]:
    """Sentences as they are encoded: `frame` with its words in braces filled in."""
    name = readable(class_name)
    return tuple(
        frame.format(name=name, sentence=sentence, clause=relative_clause(sentence))
        for sentence in sentences
    )


def _target(dataset: DatasetSettings, descriptions: DescriptionSettings) -> Path:
    return Path(paths.DESCRIPTIONS.format(descriptions=descriptions.name, dataset=dataset.name))


def checked(values: Mapping[str, Sequence[str]], where: str) -> Descriptions:
    """Check sentences given in memory. Raises SettingsError as `read` does."""
    return Descriptions(_sentences(values, where), where)


def _sentences(values: Mapping[str, object], where: str) -> dict[str, tuple[str, ...]]:
    """Convert `values` to tuples of sentences. Raises SettingsError that names a wrong class."""
    found: dict[str, tuple[str, ...]] = {}
    for name, given in values.items():
        sentences = given if isinstance(given, list | tuple) else ()
        if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise SettingsError(
                f"class {name!r} in {where} needs a list of sentences, got "
                f"{json.dumps(given)[:60]}; give at least one non-empty sentence"
            )
        found[name] = tuple(sentences)
    return found
