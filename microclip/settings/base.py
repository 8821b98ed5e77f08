"""Read and check files that people write, those under `config/` first; name values by a digest."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from microclip import paths
from microclip.settings.complaints import LONGEST, NAME, explain
from microclip.settings.complaints import SECRET as SECRET
from microclip.settings.complaints import cut as cut
from microclip.settings.errors import MissingFileError as MissingFileError
from microclip.settings.errors import SettingsError as SettingsError

logger = logging.getLogger(__name__)

# libyaml, ten times faster than Python's parser, if the installed PyYAML was built with it.
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PlainLoader: type[yaml.BaseLoader | yaml.CBaseLoader] = getattr(
    yaml, "CBaseLoader", yaml.BaseLoader
)
_MERGE = "tag:yaml.org,2002:merge"  # the key <<, which may be given more than once

Name = Annotated[str, StringConstraints(pattern=NAME)]


class Frozen(BaseModel):
    """Base of all settings: immutable; unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _off(cls, values: Any) -> Any:
        """Take False for "off": YAML 1.1, which Snakemake reads too, means it by a bare `off`."""
        names = _with_off(cls) if isinstance(values, Mapping) else ()
        wrong = {name: "off" for name in names if values.get(name) is False}
        return {**values, **wrong} if wrong else values

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value(cls, values: Any) -> Any:
        """Make true and false texts where numbers are due: Pydantic takes them for 1 and 0."""
        names = _with_numbers(cls) if isinstance(values, Mapping) else ()
        wrong = {name: _spelt(values[name]) for name in names if name in values}
        return {**values, **wrong} if wrong else values


def _spelt(value: Any) -> Any:
    """A value with its truth values as YAML spells them."""
    if isinstance(value, dict):
        return {key: _spelt(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(inner) for inner in value]
    return str(value).lower() if isinstance(value, bool) else value


@cache
def _with_numbers(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields that hold numbers, and neither truth values nor values of any type."""
    kinds = {name: _kinds(field.annotation) for name, field in model.model_fields.items()}
    return tuple(
        name for name, found in kinds.items() if found & {int, float} and not found & {bool, Any}
    )


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation: int and None of `tuple[int, ...] | None`."""
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return {annotation}.union(*map(_kinds, inner))


@cache
def _with_off(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields that may be "off"."""
    fields = model.model_fields.items()
    return tuple(name for name, field in fields if "off" in get_args(field.annotation))


def _known_device(name: Any) -> Any:
    if name in ("auto", "cpu", "cuda"):
        return name
    reason = "must be 'auto', 'cpu' or 'cuda'"
    if numbered := re.fullmatch(r"cuda:(\d+)", str(name)):
        number = numbered[1]
        reason = f"choose a GPU by its number in CUDA_VISIBLE_DEVICES={number}, and write 'cuda'"
    elif str(name).partition(":")[0] == "mps":
        reason = "mps, Apple's GPU, is not offered, as no parity test has run on it; write 'cpu'"
    raise PydanticCustomError("device", "{reason}", {"reason": reason})


Device = Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_known_device)]


class _DeviceName(Frozen):
    device: Device


Model = TypeVar("Model", bound=BaseModel)


def without_defaults(
    model: BaseModel, dump: SerializerFunctionWrapHandler, *names: str
) -> dict[str, Any]:
    """Values of a model without fields that came later and have their defaults.

    So older runs keep their digests.
    """
    values: dict[str, Any] = dump(model)
    fields = type(model).model_fields
    later = {name for name in names if values[name] == fields[name].default}
    return {name: value for name, value in values.items() if name not in later}


@contextlib.contextmanager
def readable(where: str, remedy: str) -> Iterator[None]:
    """Read values that may be damaged: what any part of another type raises is one SettingsError.

    Raises:
        SettingsError: `where` cannot be read, why, and the remedy.
    """
    try:
        yield
    except SettingsError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise SettingsError(f"{where} cannot be read ({cut(repr(error))}); {remedy}") from error


def validated(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Return `values` as `model`. Raises SettingsError, in one line, if they do not fit."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise explain(error, model, values, where) from error


def check_device(name: Any, where: str) -> str:
    """Return the name of a device: auto, cpu or cuda. Raises SettingsError for any other."""
    return validated(_DeviceName, {"device": name}, where).device


def read_record(model: type[Model], path: Path, *, remedy: str) -> Model:
    """Read a JSON file that the project wrote.

    Raises:
        SettingsError: it is damaged (the message ends in `remedy`), or has other fields.
    """
    try:
        values = dict(loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} is damaged ({cut(str(error))}); {remedy}") from error
    return validated(model, values, str(path))


MAX_TEXT_BYTES = 64 * 2**20  # CuPL's largest file has 2 MB; more is another kind of file
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY = (  # whose first bytes are text too
    (b"PK\x03\x04", "a ZIP archive, as spreadsheets (.xlsx) and documents (.docx) are"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"{\\rtf", "a rich text (RTF)"),
    (b"%PDF-", "a PDF"),
    (b"SQLite format 3\0", "a database"),
)
_SHOWN = 40  # characters of a line in an error


def read_text(path: Path, what: str) -> str:
    r"""A text file that people bring, in UTF-8, or in UTF-16 or UTF-32 by its byte order mark.

    Line ends become \n. `what` names the file in errors: "class list". Without a mark, UTF-16 is
    known by its zero bytes. Other encodings, such as Latin-1, are not guessed, because most bytes
    of one are letters in the others too.

    Raises:
        FileNotFoundError: no such file.
        SettingsError: not such a text, with the line; or it is too large, or cannot be opened.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:  # a device has a size of 0, and no end
            content = stream.read(MAX_TEXT_BYTES + 1) if size <= MAX_TEXT_BYTES else b""
        size = max(size, len(content))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a ValueError for a NUL in its name
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"{what} {path} cannot be read ({reason}); correct its name or permissions"
        ) from None
    if size > MAX_TEXT_BYTES:
        raise SettingsError(
            f"{what} {path} has {size / 2**20:.0f} MiB, at most {MAX_TEXT_BYTES // 2**20} are "
            "read; name another file"
        )
    if kind := next((name for mark, name in _BINARY if content.startswith(mark)), None):
        raise SettingsError(f"{what} {path} is {kind}; save it as plain text (UTF-8), CSV or JSON")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or _unmarked(content))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{what} {path} {_undecodable(error)}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unmarked(content: bytes) -> str:
    """Encoding of a text without a mark: UTF-16 if every second byte or so is zero."""
    even, odd = content[::2].count(0), content[1::2].count(0)
    if len(content) % 2 or max(even, odd) < len(content) / 5 or min(even, odd):
        return "utf-8"
    return "utf-16-le" if odd else "utf-16-be"


def _undecodable(error: UnicodeDecodeError) -> str:
    """What is wrong with a text, where, and what to do."""
    content: bytes = error.object
    if not error.encoding.startswith("utf-8"):
        name = "-".join(error.encoding.upper().split("-")[:2])
        return f"is not text in {name}, as its first bytes say; save it as UTF-8"
    number = content.count(b"\n", 0, error.start) + 1
    start = content.rfind(b"\n", 0, error.start) + 1
    line = content[start:].split(b"\n", 1)[0].strip()[:_SHOWN]
    try:
        shown = line.decode("cp1252")
    except UnicodeDecodeError:
        shown = ""
    guess = f" ({shown!r} if that is Windows-1252 or Latin-1)" if shown.isprintable() else ""
    return (
        f"is not UTF-8 text: line {number} has the byte 0x{content[error.start]:02x}{guess}; save "
        "it as UTF-8"
    )


@cache
def say_once(text: str) -> None:
    """Log a warning, once a process: a study reads the same files many times."""
    logger.warning("%s", text)


Pairs = Callable[[list[tuple[str, Any]]], Any]  # makes an object of its keys and values
MAX_DEPTH = 100  # lists and mappings within each other
_MAX_VALUES = 10**6  # of a YAML file, once its aliases are written out
_OPENING = re.compile(r"[\[{]|[-?]\s")  # may begin a list or a mapping within a line


def loads(text: str | bytes, pairs: Pairs | None = None) -> Any:
    """The values of a JSON text. Raises ValueError if it is not JSON, or nested too deeply."""
    try:
        values = json.loads(text, object_pairs_hook=pairs)
        _check_extent(values)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return values


def parsed_json(text: str, where: str, pairs: Pairs | None = None) -> Any:
    """The values of a JSON text. Raises SettingsError, with the line, if it is not JSON.

    `where` begins the message: "descriptions own.json are".
    """
    try:
        return loads(text, pairs)
    except ValueError as error:
        raise SettingsError(f"{where} not JSON: {error}; fix the file") from error


def parsed_yaml(text: str, where: str, *, is_plain: bool = False) -> Any:
    """The values of a YAML text; with `is_plain`, every scalar is a text ("no", "1e3").

    `where` begins the message: "class list names.yaml is".

    Raises:
        SettingsError: it is not YAML, has a key twice, is nested too deeply, or its aliases lead
            back to themselves or multiply without end.
    """
    loader = None
    try:
        _check_nesting(text)
        loader = (_PlainLoader if is_plain else _Loader)(text)
        node = loader.get_single_node()
        repeated = _repeated(node)
        values = None if node is None else loader.construct_document(node)
        _check_extent(values)
    except RecursionError:
        raise SettingsError(f"{where} not YAML: nested too deeply; fix it") from None
    # PyYAML's constructors raise others for what is no date, "!!int x", or an unknown "!!bool".
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingsError(f"{where} not YAML: {_unreadable(error, text)}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if repeated:
        raise SettingsError(f"{where} ambiguous: {repeated}; keep one of them")
    return values


def _unreadable(error: Exception, text: str) -> str:
    """What PyYAML found wrong, and what to do."""
    mark: Any = getattr(error, "problem_mark", None)
    read = "" if mark is None else text[: mark.index + 1].rpartition("\n")[2]
    if re.search(r"^\s*\t|\t$", read):
        return f"line {mark.line + 1} has a tab; YAML wants spaces"
    reason = re.sub(r'\s+in "<[a-z ]+>"', "", str(error))  # PyYAML's name for a text
    return f"{cut(reason, LONGEST)}; quote or fix it"


def _repeated(root: yaml.Node | None) -> str:
    """Say where a key is given twice: YAML forbids it, PyYAML keeps the last value; "" if none."""
    left, seen = [root], set[int]()
    while left:
        node = left.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias is the same node again
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            left += key, value
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in first:
                    said = f"line {line} has the key {cut(key.value)!r}"
                    return f"{said} of line {first[name]} again"
                first[name] = line
    return ""


def _check_nesting(text: str) -> None:
    """Refuse text that libyaml would follow down until the stack ends, which kills the process.

    Nesting by indentation alone takes more bytes than a file may have.
    """
    if sum(1 for _ in _OPENING.finditer(text)) <= MAX_DEPTH:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError


def _check_extent(values: Any) -> None:
    """Refuse values that are nested too deeply or, written out, too many: aliases share them."""
    if _extent(values, 0, {}) > _MAX_VALUES:
        raise ValueError(f"its aliases stand for more than {_MAX_VALUES} values")


def _extent(values: Any, depth: int, known: dict[int, int]) -> int:
    """Number of values within a value, itself included."""
    if not isinstance(values, dict | list | tuple):
        return 1
    if depth > MAX_DEPTH:  # so is what leads back to itself
        raise RecursionError
    if id(values) not in known:
        inner = values.values() if isinstance(values, dict) else values
        known[id(values)] = 1 + sum(_extent(value, depth + 1, known) for value in inner)
    return known[id(values)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises SettingsError if the file is missing, broken or no mapping."""
    try:
        values = parsed_yaml(read_text(path, "the file"), f"{path} is")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist; create it or name another file") from None
    if values is None:
        raise SettingsError(f"{path} is empty; write keys with values, or name another file")
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} must be a mapping of keys to values; got {type(values).__name__}"
        )
    return values


def known(kind: str) -> list[str]:
    """Names of the files in `config/<kind>/`, sorted."""
    return sorted(path.stem for path in (paths.project_root() / "config" / kind).glob("*.yaml"))


def load_named(kind: str, name: str, model: type[Model]) -> Model:
    """Load `config/<kind>/<name>.yaml`. Raises SettingsError if it is missing or wrong."""
    found = _load(kind, name, model, paths.project_root())
    assert isinstance(found, model)
    return found


# The root is an argument so that a change of project, as in tests, does not hit the old cache.
@cache
def _load(kind: str, name: str, model: type[BaseModel], root: Path) -> BaseModel:
    path = root / "config" / kind / f"{name}.yaml"
    if not path.is_file():
        names = known(kind)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
        raise SettingsError(f"unknown {kind[:-1]} {name!r}, no config/{kind}/{name}.yaml; {hint}")
    values = read_yaml(path)
    return validated(model, {"name": name, **values}, f"config/{kind}/{name}.yaml")


def digest(values: Any) -> str:
    """Digest of a JSON-able value, 16 hex digits; the order of keys does not matter."""
    return digest_of_text(json.dumps(values, sort_keys=True, default=str))


def digest_of_text(text: str) -> str:
    """Digest of a text, 16 hex digits; that of values is the digest of their sorted JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


TENSORS = (
    "a .safetensors file (safetensors.torch.save_file writes one, where the source is trusted)"
)
_SUFFIXES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
_ZIP = b"PK\x03\x04"  # torch.save has written archives of a pickle since 1.6
_PROTOCOLS = tuple(bytes([0x80, number]) for number in range(2, 6))  # how a pickle begins


def refuse_pickle(path: Path, wanted: str = TENSORS) -> None:
    """Refuse a file whose name or first nine bytes say that it is a pickle.

    Raises:
        SettingsError: it is one; the message names the kind of file to use instead, `wanted`.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        head = stream.read(9)
    # A safetensors file starts with a length that may look like the start of a pickle, but after
    # these eight bytes comes JSON.
    is_pickle = head[:2] in _PROTOCOLS and head[8:] != b"{"
    if path.suffix.lower() in _SUFFIXES or head.startswith(_ZIP) or is_pickle:
        raise SettingsError(
            f"{path} is a pickled file, which may run code when it is loaded, so it was not "
            f"loaded; give {wanted}"
        )
