"""The classes of a dataset in label order, from class lists, class folders and lists of labels.

Label 3 is the fourth name, everywhere. Folders are matched with classes by name, never by position.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from microclip import paths
from microclip.data import class_lists
from microclip.settings.base import MissingFileError, SettingsError, read_text, say_once
from microclip.settings.datasets import DatasetSettings, FolderSource, IconSource, PublicSource
from microclip.text.prompts import class_key, invisible, visible

Layout = Literal["parts", "classes", "labels"]
PARTS = ("train", "test")


def source_folder(source: FolderSource) -> Path:
    """A source's folder, relative to the working directory; ~ is the home directory."""
    return source.folder.expanduser()


def beside(source: FolderSource, path: Path) -> Path:
    """A file that a source names: the path itself, or else below the source's folder."""
    named = path.expanduser()
    below = source_folder(source) / named
    return named if named.exists() or not below.exists() else below


def layout_of(source: FolderSource) -> Layout:
    """How to read a folder: by a list of labels, as `train/` and `test/`, or as class folders."""
    if source.labels is not None:
        return "labels"
    return "parts" if part_folders(source_folder(source)) else "classes"


# What people call the parts of a dataset -> what we call them. "val" is tested on, as in ImageNet,
# if there is no folder for testing.
_PART_NAMES = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
}
# As in training_set, train_images, train2017.
_BESIDE_PART_NAMES = {"set", "split", "part", "data", "dataset", "images", "imgs", "img"}


_MOST_ALIKE = 20  # folders that are looked into
_LIKE_A_PART = re.compile(r"(?i:(?:fold|split|part|set|cv|tr|te|va|dev)[\W_]*\d*)")


def part_folders(folder: Path) -> dict[str, Path]:
    """The folders of a folder's parts, "train" and "test", whatever they are called.

    Empty if the folders are classes: a class may be called "train", beside "boat" and "plane". A
    part's folder that should be there may be missing; folders beside the parts are left out.

    Raises:
        SettingsError: two folders could be the same part, or a part's folder lies beside one of
            another name that has the same folders.
    """
    there = subfolders(folder)
    found: dict[str, list[Path]] = {}
    for path in there:
        if kind := _part_of(path.name):
            found.setdefault(kind, []).append(path)
    others = [path for path in there if not _part_of(path.name)]
    if len(found) < 2 and others:
        _refuse_unknown_part(found, others)
        _warn_of_alike_folders(folder, there)
        return {}
    if not found:
        _warn_of_alike_folders(folder, there)
        return {}
    found["test"] = found.get("test") or found.pop("val", [])
    for part in PARTS:
        if len(same := found.get(part) or []) > 1:
            names = " and ".join(path.name for path in same)
            raise SettingsError(
                f"{folder} has {names}, which could both be the part {part!r}; keep one, or rename "
                f"them so that one is {part}/"
            )
    return {part: (found.get(part) or [folder / part])[0] for part in PARTS}


def _part_of(name: str) -> str:
    """The part that a folder's name stands for; "" for any other name."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    kept = [w for w in words if w not in _BESIDE_PART_NAMES]
    return _PART_NAMES.get(kept[0].removesuffix("set"), "") if len(kept) == 1 else ""


def _warn_of_alike_folders(folder: Path, there: Sequence[Path]) -> None:
    """Log a warning if all folders hold the same ones, as the folds of a dataset do.

    Raises:
        SettingsError: they are also called like parts: "tr" and "te", "fold1" and "fold2".
    """
    inner = [{path.name for path in subfolders(own)} for own in there[:_MOST_ALIKE]]
    if len(there) < 2 or len(inner[0]) < 2 or any(own != inner[0] for own in inner):
        return
    if any(map(_part_of, inner[0])):  # parts within each class's folder: said elsewhere
        return
    first, second = (path.name for path in there[:2])
    shown = ", ".join(sorted(inner[0])[:_SHOWN])
    said = f"{folder}: {first}/ and {second}/ hold the same folders ({shown})"
    if all(_LIKE_A_PART.fullmatch(path.name) for path in there):
        raise SettingsError(
            f"{said}, so they look like parts of a dataset and not like classes; lay out "
            "train/<class>/ and test/<class>/"
        )
    say_once(
        f"{said} and are taken as classes; if those are the classes, lay out train/<class>/ and "
        "test/<class>/"
    )


def _refuse_unknown_part(found: Mapping[str, Sequence[Path]], others: Sequence[Path]) -> None:
    """Refuse train/fox beside holdout/fox: a class called train would share no folder."""
    for part in (path for same in found.values() for path in same):
        own = {path.name for path in subfolders(part)}
        for other in others:
            if shared := own & {path.name for path in subfolders(other)}:
                raise SettingsError(
                    f"{part} and {other.name}/ both have the folder {min(shared)!r}, so they look "
                    "like parts of a dataset and not like classes; name them train/ and test/"
                )


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not paths.is_hidden(p.name))


def label_of_folder(folder_name: str, class_names: Sequence[str]) -> int | None:
    """Label of the class that a folder is named for, or None.

    The folder's name is the class's name, but spaces, underscores, hyphens and slashes are
    interchangeable: a folder's name cannot contain a slash and some copies have no spaces. `F-A-18`
    is "F/A-18", `pink_primrose` is "pink primrose". Letters may be decomposed, as a Mac writes
    them, and invisible signs do not count. If classes differ only in these characters, the folder
    must match exactly.
    """
    if folder_name in class_names:
        return class_names.index(folder_name)
    wanted = one_separator(folder_name)
    same = [label for label, name in enumerate(class_names) if one_separator(name) == wanted]
    return same[0] if len(same) == 1 else None


@lru_cache(maxsize=1 << 16)  # a long list of labels compares each of its names with every class
def one_separator(name: str) -> str:
    """A name as it prints, with hyphens in place of spaces, underscores and slashes."""
    return re.sub("[ _/-]", "-", visible(name))


# The names of the two columns, and what other programs call them.
_FILE_COLUMNS = ("file", "filename", "file_name", "file name")
_CLASS_COLUMNS = ("class", "classname", "class_name", "class name")
_SHOWN = 3  # faulty rows named in an error


@dataclass(frozen=True)
class LabelEntry:
    """A row of a list of labels: an image and its class."""

    line: int
    file: str  # below the folder of images
    class_name: str  # as it prints


def read_label_list(path: Path) -> tuple[LabelEntry, ...]:
    """Read a list of labels; columns other than `file` and `class` are ignored.

    They may be called as in `_FILE_COLUMNS` and `_CLASS_COLUMNS`, in any case, and lie between
    commas, semicolons, tabs or bars.

    Raises:
        MissingFileError: no such file.
        SettingsError: not text, no such columns, no row, or an empty cell.
    """
    try:
        text = read_text(path, "list of labels")
    except FileNotFoundError:
        raise MissingFileError(f"list of labels {path} does not exist; correct its name") from None
    try:
        rows = _label_rows(text, path)
    except csv.Error as error:
        raise SettingsError(f"list of labels {path} is not a CSV file ({error}); fix it") from None
    entries = tuple(LabelEntry(n, file.strip(), visible(name).strip()) for n, file, name in rows)
    gaps = [f"line {e.line}: an empty cell" for e in entries if not e.file or not e.class_name]
    _refuse(path, gaps)
    if not entries:
        raise SettingsError(f"list of labels {path} has no row; write file,class lines")
    return entries


def _label_rows(text: str, path: Path) -> list[tuple[int, str, str]]:
    """Line, file and class of every row that is not blank."""
    if text.startswith("sep="):  # Excel's; a blank line keeps the numbers of the others
        text = "\n" + text.partition("\n")[2]
    header = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = next((d for d in class_lists.DELIMITERS if _label_columns(header, d)), ",")
    columns = _label_columns(header, delimiter)
    if columns is None:
        got = ", ".join(cell.strip() for cell in header.split(",")) or "none"
        is_row = bool(Path(got.partition(",")[0]).suffix)  # a file's name is no column's
        remedy = "write file,class on a line above" if is_row else "rename them"
        raise SettingsError(
            f"line 1 of {path}: expected the columns file,class; got {got[:60]}; {remedy}"
        )
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    file, label = columns
    padded = [(n, [*row, "", ""] + [""] * max(columns)) for n, row in rows[1:]]
    return [(n, row[file], row[label]) for n, row in padded]


def _label_columns(header: str, delimiter: str) -> tuple[int, int] | None:
    """Numbers of the columns of files and of classes; None if either is missing or there twice."""
    heads = next(csv.reader([header], delimiter=delimiter), [])
    heads = [head.strip().casefold() for head in heads]
    found = []
    for names in (_FILE_COLUMNS, _CLASS_COLUMNS):
        # A column with the documented name wins over one with another.
        own = [k for k, head in enumerate(heads) if head == names[0]]
        own = own or [k for k, head in enumerate(heads) if head in names]
        found += own if len(own) == 1 else []
    return (found[0], found[1]) if len(found) == 2 else None


def match_label_list(
    path: Path, folder: Path, images: Sequence[Path], class_names: Sequence[str]
) -> dict[Path, int]:
    """Return the labels of the images below `folder` that the list `path` names.

    Classes may be spelled as in `label_of_folder`. File names are the same with composed and with
    decomposed letters, which a Mac writes.

    Raises:
        SettingsError: see `read_label_list`; also for an unknown class, a file that is not among
            `images`, or a file listed twice, with their line numbers.
    """
    find = finder(images)
    line_of: dict[Path, int] = {}
    labels: dict[Path, int] = {}
    faults = []
    for entry in read_label_list(path):
        named = folder / os.path.normpath(entry.file.replace("\\", os.sep))
        found = find(named)
        image = found[0] if len(found) == 1 else named
        label = label_of_folder(entry.class_name, class_names)
        if len(found) > 1:
            faults.append(
                f"line {entry.line}: {entry.file!r} may be {len(found)} files, whose names differ "
                "in composed and decomposed letters alone"
            )
        elif image in line_of:
            faults.append(f"line {entry.line}: {entry.file!r} is already on line {line_of[image]}")
        elif not found:
            near = _same_name(named, folder, images) if len(faults) < _HINTED else ""
            faults.append(f"line {entry.line}: {entry.file!r} is not an image in {folder}{near}")
        elif label is None:
            near = _near_class(entry.class_name, class_names) if len(faults) < _HINTED else ""
            faults.append(f"line {entry.line}: unknown class {entry.class_name!r}{near}")
        else:
            labels[image] = label
        line_of.setdefault(image, entry.line)
    _refuse(path, faults)
    return labels


_HINTED = 5  # faults whose cause is looked for; no more are shown


def _same_name(named: Path, folder: Path, images: Sequence[Path]) -> str:
    """The image that has the file's name in another folder, if there is one."""
    same = [image for image in images if image.name == named.name]
    return f" (is it {same[0].relative_to(folder).as_posix()!r}?)" if len(same) == 1 else ""


def _near_class(name: str, class_names: Sequence[str]) -> str:
    """The class that is most like a name."""
    folded = {one.casefold(): one for one in class_names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" (is it {folded[near[0]]!r}?)" if near else ""


def finder(images: Sequence[Path]) -> Callable[[Path], Sequence[Path]]:
    """Make a function that finds the image of a name, or all that have its letters composed."""
    known = set(images)
    composed: dict[str, list[Path]] = {}

    def find(named: Path) -> Sequence[Path]:
        if named in known:
            return [named]
        if not composed:  # made for the first name that is not there as it is written
            for image in images:
                composed.setdefault(unicodedata.normalize("NFC", str(image)), []).append(image)
        return composed.get(unicodedata.normalize("NFC", str(named)), [])

    return find


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        more = ", …" if len(faults) > _SHOWN else ""
        raise SettingsError(
            f"{len(faults)} rows of {path} cannot be used: {'; '.join(faults[:_SHOWN])}{more}; "
            "correct them, nothing was started"
        )


CLASS_FILE = "classes.txt"
CLASS_LISTS = "resources/classes"  # <dataset>.txt: one name per line; prompts drop a final "_"
MAX_CHARACTERS = 200  # of a name; the text tower reads about 70 words, some of them the prompt's
_NOT_PRINTED = ("Cc", "Cs", "Co", "Zl", "Zp")  # Unicode's control characters and line breaks


@dataclass(frozen=True)
class Vocabulary:
    """Class names in label order, and the file or folder they were read from."""

    class_names: tuple[str, ...]
    where: str
    is_benchmark: bool = False  # a published dataset: each split must have every class

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)


def load_vocabulary(dataset: DatasetSettings) -> Vocabulary:
    """Return the classes of `dataset`.

    For a public dataset, its list in `resources/classes`. For icons, as many lines of
    `resources/icons/<drawings>/classes.txt` as the source asks for. For a folder, the list that its
    source names, else `resources/classes/<dataset>.txt` if the project has it, else the folder's
    own `classes.txt`, else the sorted names of its class folders (below `train/` if it has one) or
    of the classes in its list of labels.

    Raises:
        SettingsError: no class list, too few names, or a name that is listed twice or unusable.
    """
    match dataset.source:
        case IconSource() as source:
            from microclip.icons.scenes import class_names  # late: the renderer is a heavy import

            names = class_names(source.drawings, source.classes, source.seed)
            return checked(names, f"resources/icons/{source.drawings}/{CLASS_FILE}")
        case PublicSource() as source:
            listed = f"{CLASS_LISTS}/{source.dataset}.txt"
            found = read_class_list(paths.project_root() / listed, listed)
            return replace(found, is_benchmark=True)
        case FolderSource() as source:
            listed = f"{CLASS_LISTS}/{dataset.name}.txt"
            if source.classes is None and (paths.project_root() / listed).is_file():
                found = read_class_list(paths.project_root() / listed, listed)
                return replace(found, is_benchmark=True)
            return _folder_vocabulary(source)


def checked(names: Sequence[str], where: str, lines: Sequence[int] = ()) -> Vocabulary:
    """Return `names` as a vocabulary; `lines` are their line numbers in `where`.

    Their letters are composed (NFC). A final underscore tells two names apart for people and files,
    although CLIP reads them alike.

    Raises:
        SettingsError: fewer than two names, two that CLIP reads alike, or an unusable name.
    """
    unit, units = ("line", "lines") if lines else ("entry", "entries")
    names = [unicodedata.normalize("NFC", name) for name in names]
    numbered = list(zip(lines or range(1, len(names) + 1), names, strict=True))
    if len(names) < 2:
        raise SettingsError(f"expected at least 2 classes, got {len(names)} in {where}; add names")
    seen: dict[tuple[str, int], tuple[int, str]] = {}
    for number, name in numbered:
        check_name(name, f"{unit} {number} of {where}")
        first, other = seen.setdefault(class_key(name), (number, name))
        if first == number:
            continue
        said = f"class {name!r} is listed twice in {where} ({units} {first} and {number})"
        if other != name:
            said = (
                f"classes {other!r} and {name!r} of {where} ({units} {first} and {number}) read "
                "alike: CLIP sees no difference in capitals, blanks and underscores"
            )
        raise SettingsError(
            f"{said}; labels would be ambiguous: remove one, tell them apart (as 'crane (bird)'), "
            f"or write {name + '_'!r} for one, which prompts read the same"
        )
    return Vocabulary(tuple(names), where)


def check_name(name: str, where: str) -> None:
    """Refuse a class name that is not one line of text; slashes, quotes and emoji are allowed.

    Raises:
        SettingsError: an invisible character, or more than 200 characters.
    """
    if any("\udc80" <= sign <= "\udcff" for sign in name):
        raise SettingsError(
            f"{where}: a class name is not UTF-8 ({name.encode(errors='backslashreplace')!r:.40}); "
            "rename it"
        )
    is_plain = name.isascii() and name.isprintable()
    if not is_plain and (
        invisible(name) or any(unicodedata.category(sign) in _NOT_PRINTED for sign in name)
    ):
        raise SettingsError(
            f"{where}: a class name contains a tab, a line break or another invisible character "
            f"({name[:30]!r}); use plain characters"
        )
    if len(name) > MAX_CHARACTERS:
        raise SettingsError(
            f"{where}: a class name of {len(name)} characters ({name[:30]!r}…), at most "
            f"{MAX_CHARACTERS} are allowed; shorten it, what the class looks like belongs in the "
            "descriptions"
        )


def _folder_vocabulary(source: FolderSource) -> Vocabulary:
    folder = source_folder(source)
    if source.classes is not None:
        listed = beside(source, source.classes)
        return read_class_list(listed)
    if (folder / CLASS_FILE).is_file():
        return read_class_list(folder / CLASS_FILE)
    layout = layout_of(source)
    if layout == "labels":
        assert source.labels is not None
        path = beside(source, source.labels)
        first: dict[str, int] = {}
        for entry in read_label_list(path):
            first.setdefault(entry.class_name, entry.line)
        names = sorted(first)
        return checked(names, str(path), [first[name] for name in names])
    place = part_folders(folder)[PARTS[0]] if layout == "parts" else folder
    names = [path.name for path in subfolders(place)]
    if not names:
        raise SettingsError(
            f"no class names for {folder}: expected {folder / CLASS_FILE} (one name per line) or "
            f"folders {place}/<class>; CLIP compares images with names"
        )
    if len(names) == 1 and subfolders(place / names[0]):
        raise SettingsError(
            f"{place} has only one folder, {names[0]}/, so one class; if the classes are in it, "
            f"name {place / names[0]} as the source's folder"
        )
    class_lists.warn_of_numbered_folders(names, str(place))
    return checked(names, str(place))


def read_class_list(path: Path, where: str = "") -> Vocabulary:
    """Read a list of class names, as `class_lists` does, and check them as `checked` does.

    Raises:
        MissingFileError: no such file.
        SettingsError: not a list of usable names, with the line.
    """
    where = where or str(path)
    try:
        found = class_lists.read(path, where)
    except FileNotFoundError:
        raise MissingFileError(
            f"class list {path} does not exist; create it, with one name per line"
        ) from None
    lines = [n for n, _ in found.numbered] if found.unit == "line" else ()
    return checked([name for _, name in found.numbered], where, lines)
