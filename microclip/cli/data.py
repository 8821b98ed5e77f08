"""The commands `microclip data get|verify|list`: public datasets on this machine.

Heavy imports are inside the functions, so that `--help` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from microclip import runtime, settings
from microclip.cli import app, say
from microclip.settings.errors import SettingsError

if TYPE_CHECKING:
    from microclip.settings import DatasetCard, DatasetSettings

data = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Public datasets: get, verify, list."
)
app.add_typer(data, name="data")

NamesArgument = Annotated[
    list[str] | None, typer.Argument(help="datasets, by their file names in config/datasets")
]
_LICENCE_WIDTH = 34
_FAILURES = (  # of one dataset among several: the others are still tried
    runtime.MissingDataError,
    runtime.ServiceError,
    runtime.ResourceError,
    runtime.VerificationError,
    SettingsError,
)


@dataclass(frozen=True)
class Row:
    """A public dataset as `data list` shows it."""

    dataset: str
    classes: int | None
    is_here: bool
    where: str  # layout and folder, or the ways to get it
    licence: str
    split: str
    train: int | None  # expected images
    test: int | None
    counts_source: str
    differences: tuple[str, ...]  # what is wrong with what is here


@data.command(name="list")
def list_(
    *, is_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False
) -> None:
    """List the public datasets: which are here, what is wrong with them, how to get the others."""
    rows = [_row(dataset, card) for dataset, card in _public(None)]
    if is_json:
        print(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False))
        return
    for line in _table(rows):
        print(line)
    for row in rows:
        for difference in row.differences:
            print(f"! {row.dataset}: {difference}")
    print(_next(rows))


@data.command()
def get(
    names: NamesArgument = None,
    *,
    is_all: Annotated[bool, typer.Option("--all", help="every public dataset")] = False,
    route: Annotated[
        Literal["archive", "hub", "local"] | None, typer.Option(help="use only this kind of route")
    ] = None,
    is_offline: Annotated[
        bool, typer.Option("--offline", help="unpack what is here without using the network")
    ] = False,
    is_again: Annotated[
        bool, typer.Option("--again", help="repeat it where it is here, to restore missing files")
    ] = False,
) -> None:
    """Fetch, check, unpack and count public datasets. Resumes an interrupted download."""
    if bool(names) == is_all:
        raise SettingsError(
            "name the datasets to get, or give --all; `microclip data list` names them"
        )
    chosen = _public(names)
    failures = []
    for dataset, card in chosen:
        try:
            if route == "local":
                _check_placed(dataset, card)
            else:
                _get(dataset, card, _Wishes(route or "", is_offline, is_again))
        except _FAILURES as error:
            if len(chosen) == 1:
                raise
            say(f"{dataset.name}: {error}")
            failures.append(error)
    if failures:
        raise type(failures[-1])(f"could not get {len(failures)} of {len(chosen)} datasets")


@data.command()
def verify(names: NamesArgument = None) -> None:
    """Check the hashes of archives, copies and images; exit 6 if one differs, 3 if one is missing.

    Without names, checks all public datasets that are here.
    """
    from microclip.data.public import sources

    chosen = _public(names or None)
    if not names:
        chosen = [(d, c) for d, c in chosen if sources.locate(_files_of(d), c) is not None]
        if not chosen:
            raise runtime.MissingDataError("no public dataset is here; see `microclip data list`")
    verdicts = []
    for dataset, card in chosen:
        for finding in (
            *sources.verify(dataset.name, _files_of(dataset), card),
            *sources.verify_passport(dataset),
        ):
            print(f"{finding.verdict:8} {dataset.name}: {finding.text}", flush=True)
            verdicts.append(finding.verdict)
    n_wrong, n_missing = verdicts.count("wrong"), verdicts.count("missing")
    remedy = "`microclip data get NAME --again` restores the files of its archive or copy"
    if n_wrong:
        raise runtime.VerificationError(f"{n_wrong} things differ, {n_missing} missing; {remedy}")
    if n_missing:
        raise runtime.MissingDataError(f"{n_missing} things are missing; {remedy}")


@dataclass(frozen=True)
class _Wishes:
    route: str
    is_offline: bool
    is_again: bool


def _get(dataset: DatasetSettings, card: DatasetCard, wishes: _Wishes) -> None:
    from microclip.data.public import sources

    name = _files_of(dataset)
    found = sources.get(
        name, card, only=wishes.route, offline=wishes.is_offline, again=wishes.is_again
    )
    how = sources.KINDS[found.route]
    how = how if how.startswith("by ") else f"by {how}"
    say(f"{dataset.name}: {found.layout} in {found.folder}, {how}")
    for line in _counted(dataset, card):
        print(line, flush=True)


def _check_placed(dataset: DatasetSettings, card: DatasetCard) -> None:
    """Say what to place where, and what of it lacks; count the images if nothing does.

    Raises:
        MissingDataError: a needed path is missing.  VerificationError: see `read_public`.
    """
    from microclip.data.public import sources

    name = _files_of(dataset)
    found = sources.locate(name, card)
    if found is None:
        print("\n".join(sources.recipe_lines(name, card)), flush=True)
        lacks = sources.partly_placed(name, card) or f"{name} is not in {sources.home(name)}"
        raise runtime.MissingDataError(f"{lacks}; place it as said, then run the same command")
    say(f"{dataset.name}: all that the layout {found.layout} needs is in {found.folder}")
    for line in _counted(dataset, card):
        print(line, flush=True)


def _counted(dataset: DatasetSettings, card: DatasetCard) -> list[str]:
    """Count the split's images as a run would read them, and compare with the expected counts."""
    from microclip.data.public.splits import read_public
    from microclip.data.vocabulary import load_vocabulary

    assert isinstance(dataset.source, settings.PublicSource)
    read = read_public(dataset)
    n_classes = len(load_vocabulary(dataset).class_names)
    counted = {"classes": n_classes, "train": len(read.split.train), "test": len(read.split.test)}
    split = dataset.source.split
    lines = [
        f"{dataset.name}: split {split}: {counted['train']} training and {counted['test']} test "
        f"images, {n_classes} classes"
    ]
    expected = card.counts.get(split)
    for what, n in counted.items() if expected else ():
        wanted = getattr(expected, what)
        if wanted is not None and wanted != n:
            assert expected is not None
            lines.append(f"! {dataset.name}: {n} {what}, expected {wanted} ({expected.source})")
    return lines + [f"note {dataset.name}: {note}" for note in read.notes]


def _public(names: Sequence[str] | None) -> list[tuple[DatasetSettings, DatasetCard]]:
    """The named public datasets, or all of them.

    Raises: SettingsError for a name that is unknown or not of a public dataset.
    """
    found = []
    for name in names if names is not None else settings.known("datasets"):
        dataset = settings.load_dataset(name)
        if isinstance(dataset.source, settings.PublicSource):
            found.append((dataset, settings.load_card(dataset.source)))
        elif names is not None:
            raise SettingsError(
                f"{name} is not a public dataset (its images are drawn or your own); see "
                "`microclip data list`"
            )
    return found


def _files_of(dataset: DatasetSettings) -> str:
    assert isinstance(dataset.source, settings.PublicSource)
    return dataset.source.dataset


def _row(dataset: DatasetSettings, card: DatasetCard) -> Row:
    from microclip.data.public import sources

    assert isinstance(dataset.source, settings.PublicSource)
    split = dataset.source.split
    expected = card.counts.get(split)
    found = sources.locate(dataset.source.dataset, card)
    return Row(
        dataset=dataset.name,
        classes=None if expected is None else expected.classes,
        is_here=found is not None,
        where=sources.ways(card) if found is None else f"{found.layout} in {found.folder}",
        licence=card.licence,
        split=split,
        train=None if expected is None else expected.train,
        test=None if expected is None else expected.test,
        counts_source="" if expected is None else expected.source,
        differences=_differences(dataset.name, dataset.source.dataset, card),
    )


def _differences(name: str, files: str, card: DatasetCard) -> tuple[str, ...]:
    """Known problems of a dataset's files, found without reading them."""
    from microclip.data import passport
    from microclip.data.public import sources

    try:
        found = list(passport.differences(name))
    except SettingsError as error:
        found = [str(error)]
    if sources.is_unfinished(files, card):
        found.append(f"a download stopped halfway; `microclip data get {name}` continues")
    if (sources.home(files) / sources.RECORD).is_file():
        route = sources.locate(files, card)
        if route is None or route.route == "local":
            found.append(f"some files were removed; run `microclip data get {name} --again`")
    return tuple(found)


def _table(rows: Sequence[Row]) -> list[str]:
    head = ("dataset", "classes", "", "how", "split", "train", "test", "licence")
    cells = [
        (
            row.dataset,
            _number(row.classes),
            "here" if row.is_here else "missing",
            row.where,
            row.split,
            _number(row.train),
            _number(row.test),
            row.licence
            if len(row.licence) <= _LICENCE_WIDTH
            else row.licence[: _LICENCE_WIDTH - 1] + "…",
        )
        for row in rows
    ]
    widths = [max(len(line[k]) for line in (head, *cells)) for k in range(len(head))]
    numbers = {k for k, title in enumerate(head) if title in ("classes", "train", "test")}
    return [
        "  ".join(
            cell.rjust(width) if k in numbers else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *cells)
    ]


def _number(n: int | None) -> str:
    return "?" if n is None else f"{n:,}"


def _next(rows: Sequence[Row]) -> str:
    missing = [row for row in rows if not row.is_here]
    if not missing:
        return f"all {len(rows)} public datasets are here; `microclip data verify` hashes them"
    by_hand = [row.dataset for row in missing if row.where.startswith("by hand")]
    fetched = [row.dataset for row in missing if row.dataset not in by_hand]
    parts = [f"{len(rows) - len(missing)} of {len(rows)} public datasets are here"]
    if fetched:
        parts.append(f"`microclip data get {' '.join(fetched)}` fetches what is missing")
    if by_hand:
        parts.append(
            f"`microclip data get {' '.join(by_hand)} --route local` says what to place where"
        )
    return "; ".join(parts)
