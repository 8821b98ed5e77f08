"""What layouts with the publisher's own lists share: parts, ids, files in any case, extra files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import SHOWN, Item, Listing, any_case, existing, images_below
from microclip.settings import SettingsError


def inside(folder: Path, *names: str) -> Path:
    """Return a path below a folder, each of its names in whatever case it is written."""
    for name in names:
        folder = any_case(folder, name)
    return folder


def part_of_each(lists: Mapping[str, Sequence[str]], where: Path) -> dict[str, str]:
    """Return the part of each image, in order of names, from the images of each part.

    Raises: SettingsError for an image that stands twice.
    """
    parts: dict[str, str] = {}
    for part, names in lists.items():
        for name in names:
            if name in parts:
                raise SettingsError(
                    f"{name} is listed twice below {where}: in {parts[name]} and in {part}; "
                    "get the dataset again"
                )
            parts[name] = part
    return dict(sorted(parts.items()))


def check_same(names: Iterable[str], others: Iterable[str], *, of: str, other: Path) -> None:
    """Hold what was read against another list of the same images: one that was cut is found.

    Raises: MissingDataError with how many differ, and some of them.
    """
    differ = sorted(set(names) ^ set(others))
    if differ:
        raise runtime.MissingDataError(
            f"{of} and {other} differ in {_some(differ)}; one was cut or changed, "
            "get the dataset again"
        )


def labels_of_ids(ids: Iterable[int], class_names: Sequence[str], where: Path) -> list[int]:
    """Return labels from 0 for the publisher's ids from 1.

    Raises: SettingsError for an id of no class, or a class that no id is of.
    """
    given = [int(one) for one in ids]
    wrong = sorted(set(given) - set(range(1, len(class_names) + 1)))
    absent = sorted(set(range(1, len(class_names) + 1)) - set(given))
    if wrong or absent:
        raise SettingsError(
            f"{where} has {len(set(given))} class ids, expected 1 to {len(class_names)}: "
            + (f"{_some(wrong)} not in the class list" if wrong else f"{_some(absent)} missing")
            + "; see that the file is the publisher's"
        )
    return [one - 1 for one in given]


@dataclass(frozen=True)
class ImageFiles:
    """The image files below a folder, to be found by name in whatever case they are written."""

    folder: Path
    by_name: Mapping[str, Path]  # name below the folder, casefolded -> file

    @classmethod
    def below(cls, folder: Path) -> ImageFiles:
        """List a folder. Raises MissingDataError if it is not there."""
        return cls(
            folder,
            {path.relative_to(folder).as_posix().casefold(): path for path in images_below(folder)},
        )

    def path(self, name: str) -> Path:
        """Return the file of a name, or where it should be."""
        exact = self.folder / name
        return exact if exact.is_file() else self.by_name.get(name.casefold(), exact)


def listing(items: Iterable[Item], files: Sequence[ImageFiles], what: str) -> Listing:
    """Return the listed images in order of names; a note tells of those that no list names.

    Raises: MissingDataError, naming some, if files are not there.
    """
    found = existing(sorted(items, key=lambda item: item.name), what)
    used = {item.path for item in found}
    extra = [path for each in files for path in each.by_name.values() if path not in used]
    if not extra:
        return Listing(found)
    return Listing(found, (f"images that no list names were left out: {_some(extra)}",))


def _some(values: Sequence[object]) -> str:
    """Return how many there are, and the first of them."""
    shown = ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")
    return f"{len(values)} ({shown})"
