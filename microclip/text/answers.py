"""Answers of language models: what is wrong with a sentence, how answers are read and cached.

The rules for a single sentence come first; the description doctor shares them. `parse` then reads
the sentences of one answer. `AnswerCache` keeps paid answers: one line each, appended at once,
never changed. They are one module because an answer is usable or not by these rules each time it is
read from the cache; nothing else about it is stored.

A cache folder has one file of JSON lines per model. An answer is found by what was asked (`key`)
and the number of its sample; several answers to one sample are tries, in the order of asking.
Processes may share a folder: lines are written under a lock, and a process claims the questions
that it asks, so that no other process asks them too. A process that is killed leaves whole lines
and no claim.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict

from microclip import runtime
from microclip.settings.llms import AnswerMode
from microclip.text.reasoning import answer_alone

logger = logging.getLogger(__name__)

_WORD = re.compile(r"[^\W\d_]{2,}")
_ANY_WORD = re.compile(r"[^\W\d_]{2,}|\d+")
EMPHASIS = re.compile(r"\*\*|__|`")
_LIST_MARK = re.compile(r"^\s*(?:[•*·–—]\s*|-\s+|\(?\d{1,2}[.)]\s+(?=\S))")
_SMALL_WORDS = (
    "the an of and in is it this that there looks like image photo picture caption type kind"
)
_SMALL = frozenset(_SMALL_WORDS.split())
_URL = re.compile(r"https?:|\bwww\.|\b[\w-]+\.(?:com|org|net|edu|gov)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(?:"
    r"(?:i(?:'|’| a)?m )?(?:very |so )?sorry\b"
    r"|i (?:can(?:'|’)t|cannot|can not|could not|couldn(?:'|’)t|won(?:'|’)t|will not)\b"
    r"|i(?:(?:'|’)m| am) (?:unable|not able)\b"
    r"|i(?:(?:'|’)m| am) not (?:entirely |exactly |completely )?(?:sure|certain)\b"
    r"|i (?:do not|don(?:'|’)t) (?:know|have|understand)\b"
    r"|as an? (?:ai|artificial|(?:large )?language)\b"
    r"|unfortunately,? i\b"
    r"|n/a\b|unsure\b|unknown\W*$)",
    re.IGNORECASE,
)


def has_words(text: str) -> bool:
    """Whether a text says anything: one word of two letters is enough."""
    return _WORD.search(text) is not None


def has_url(text: str) -> bool:
    """Whether a text contains a web address, whole or cut."""
    return _URL.search(text) is not None


def is_refusal(text: str) -> bool:
    """Whether a text begins by saying that its writer cannot or will not answer."""
    return _REFUSAL.search(text) is not None


def folded(text: str) -> str:
    """A text without case, extra spaces and punctuation, which do not change its meaning."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def words(text: str) -> list[str]:
    """Words and numbers of a text in lower case, without the s of a plural."""
    found = (word.casefold() for word in _ANY_WORD.findall(text))
    return [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in found]


def names_class(text: str, class_name: str) -> bool:
    """Whether a text contains a class name, or all its words in any order."""
    if class_name.casefold() in text.casefold():
        return True
    return set(words(class_name)) - _SMALL <= set(words(text))


def is_name_alone(text: str, class_name: str) -> bool:
    """Whether a text says nothing but the name: "A photo of a BMW X5.", for BMW X5."""
    said = set(words(text)) - _SMALL
    return bool(said) and said <= set(words(class_name))


def tidy(text: str) -> str:
    """A sentence on one line, without list marks, emphasis and spaces at its ends."""
    return " ".join(_LIST_MARK.sub("", EMPHASIS.sub("", text)).split())


_OTHER_SCRIPT = 0.2  # share of letters that are not Latin
_ENOUGH_ENGLISH = 3  # common English words
_MIN_WORDS = 2  # common foreign words

_COMMON_ENGLISH = (
    "the a an and of in on with is are was it its this that to for from as by at or you your has "
    "have be can not they their which when while he she his her there these often usually very "
    "like more than into one two would will may looks look"
)
_COMMON_ELSEWHERE = (  # German, Swedish; French; Spanish, Portuguese, Italian; Dutch
    "der das und ist ein eine einen einer mit von den dem des auf sich sind wird nicht auch "
    "och är ett av för som med det "
    "le la les un une du est et dans avec pour sur qui que sont au aux par ce cette "
    "el los las una y es con por para del se su como o os as uma em com não é da na il lo gli di "
    "che è sono alla della nel "
    "het een is op te zijn met voor aan"
)
_ENGLISH = frozenset(_COMMON_ENGLISH.split())
_FOREIGN = frozenset(_COMMON_ELSEWHERE.split()) - _ENGLISH
_LETTERS = re.compile(r"[^\W\d_]+")


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return "LATIN" in unicodedata.name(letter, "")


def is_foreign(text: str) -> bool:
    """Whether a sentence is not English, as far as two rules can tell.

    Script: more than a fifth of the letters are not Latin, and fewer than three words are common
    English ones. Words: at least two are among the commonest of German, French, Spanish, Italian,
    Portuguese, Dutch or Swedish, and more than are common English ones. A foreign sentence without
    such words passes as English.
    """
    # Not a detector such as langdetect: it draws at random, so two checks of one file could differ.
    words = [word.casefold() for word in _LETTERS.findall(text)]
    english = sum(word in _ENGLISH for word in words)
    marks = [letter for letter in text if letter.isalpha()]
    elsewhere = sum(not _is_latin(letter) for letter in marks)
    if elsewhere > _OTHER_SCRIPT * len(marks) and english < _ENOUGH_ENGLISH:
        return True
    foreign = sum(word in _FOREIGN for word in words)
    return foreign >= _MIN_WORDS and foreign > english


Reason = Literal[
    "empty",
    "refused",
    "unnumbered",
    "wrong count",
    "two lists",
    "reasoning alone",
    "cut off",
    "broken off",
    "a tool call",
]

_SHOWN = 60  # characters of an answer in an error

# Why an answer ended, as services name it (`finish_reason`), in lower case. Others, such as stop,
# end_turn and eos, end a whole answer.
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length", "error_limit", "limit")
_FILTERED = ("content_filter", "safety", "refusal", "recitation", "prohibited_content", "spii")
_TOOLS = ("tool_calls", "tool_call", "tool_use", "function_call")
_BROKEN = ("error", "abort", "aborted", "cancelled", "insufficient_system_resource")
_LIMITS = ("max_tokens", "max_completion_tokens")  # parameters of a request

# Line separators that are no line break of JSON lines or of numbered lists.
_SEPARATORS = re.compile(r"[\v\f\x1c-\x1e\x85\u2028\u2029]+")
_SEPARATED_ITEM = re.compile(_SEPARATORS.pattern + r"(?=[ \t*_-]*\(?\d{1,4}[).:])")

# sathiiii/microCLIP: digits, then any of ) . - and spaces; up to the next line that starts so.
_OFFICIAL = re.compile(r"\d+[).\s-]+(.*?)(?=\n\d+[).\s-]+|\Z)", re.DOTALL)

# A numbered line: "1. x", "2) x", "3 - x", "(4) x", "- 5. x", "**6.** x", "### 7: x".
_NUMBERED = re.compile(
    r"^[\s>#*_•·–—-]*\(?(\d{1,4})"
    r"(?:(?:\s*\\?[).:]+|\s+[-–—](?=\s))[*_]*(?:\s+|$)|\ufe0f?\u20e3\s*|[、．：）][*_]*\s*)(.*)$"
)


class AnswerError(ValueError):
    """An answer without usable sentences; `reason` says why."""

    def __init__(self, reason: Reason, detail: str, text: str) -> None:
        shown = " ".join(text.split())
        shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
        super().__init__(f"answer {reason}: {detail}, got {shown!r}; ask again")
        self.reason: Reason = reason


def usable(record: AnswerRecord, *, items: int, mode: AnswerMode) -> list[str]:
    """The sentences of a stored answer, as `parse` reads them.

    Raises:
        AnswerError: as `parse`; also if the service filtered or cut the answer, or called a tool.
            An answer of "single" that ends at the request's own limit is whole: CuPL's is such.
    """
    text, end = record["text"], (record["finish_reason"] or "").casefold()
    if record["refused"] or end in _FILTERED:
        raise AnswerError("refused", "expected sentences", text)
    if end in _TOOLS:
        raise AnswerError("a tool call", "expected sentences", text)
    if end in _BROKEN:
        raise AnswerError("broken off", f"the service ended it with {end!r}", text)
    if end in _CUT and not is_cut_as_asked(record, mode):
        raise AnswerError("cut off", f"the service ended it with {end!r}", text)
    return parse(text, items=items, mode=mode)


def is_cut_as_asked(record: AnswerRecord, mode: AnswerMode) -> bool:
    """Whether an answer is one sentence that ended at the limit of tokens that was asked for."""
    is_cut = (record["finish_reason"] or "").casefold() in _CUT
    return is_cut and mode == "single" and any(record["asked"].get(name) for name in _LIMITS)


def parse(text: str | None, *, items: int, mode: AnswerMode) -> list[str]:
    """Read the sentences of one answer.

    "strict": lines numbered 1, 2, … as `strict_items` reads them, exactly `items` of them.
    "official": as `official_items` of sathiiii/microCLIP reads them, however many there are.
    "single": the whole answer is one sentence, as in sarahpratt/CuPL; `items` is not used.

    What `answer_alone` leaves out is no part of the answer.

    Raises:
        AnswerError: the answer says nothing, is a refusal, has no numbers, or has the wrong number
            of sentences.
    """
    whole = text or ""
    text = answer_alone(whole)
    if not has_words(text):
        reason: Reason = "reasoning alone" if has_words(whole) else "empty"
        raise AnswerError(reason, "expected sentences", whole)
    found = _READERS[mode](text)
    if is_refusal(found[0] if found else text):
        raise AnswerError("refused", "expected sentences", text)
    if not found:
        raise AnswerError("unnumbered", f"expected {items} numbered sentences", text)
    if not all(has_words(sentence) for sentence in found):
        raise AnswerError("empty", "an item is empty", text)
    if mode == "strict" and _has_second_list(text, len(found)):
        raise AnswerError("two lists", "expected one list, numbered once", text)
    if mode == "strict" and len(found) != items:
        raise AnswerError("wrong count", f"expected {items} sentences, found {len(found)}", text)
    return found


def single_sentence(text: str) -> str:
    """CuPL's sentence: without empty lines, and with the full stop at which generation stopped.

    CuPL keeps spaces at the ends and always adds a full stop. Here the ends are trimmed, and a full
    stop is added only if there is none, since engines other than GPT-3's may write it themselves.
    """
    joined = " ".join(text.replace("\n\n", "\n").split())
    return joined if joined.endswith((".", "!", "?")) else f"{joined}."


def official_items(text: str) -> list[str]:
    """Numbered items as microCLIP's notebook reads them, quirks included.

    A number anywhere starts the first item ("Here are 10 sentences:" gives "sentences:."), and a
    closing remark becomes part of the last. Source: sathiiii/microCLIP.
    """
    return [f"{found.strip().rstrip('.')}." for found in _OFFICIAL.findall(text)]


def strict_items(text: str) -> list[str]:
    """Items of a list whose lines are numbered 1, 2, 3 and so on.

    A preamble and closing remarks are left out, emphasis is removed, wrapped lines are joined. A
    line that starts with any other number, such as a year, belongs to the item before it.
    """
    lines: list[list[str]] = []
    is_open = False  # the last item may go on
    # Not str.splitlines(): it also splits within a sentence, at U+2028, U+0085 and others.
    separated = _SEPARATORS.sub(" ", _SEPARATED_ITEM.sub("\n", text))
    for line in re.split(r"\r\n|\r|\n", separated):
        numbered = _NUMBERED.match(line)
        if numbered and int(numbered[1]) == len(lines) + 1:
            lines.append([numbered[2]])
            is_open = True
        elif not line.strip():
            is_open = is_open and not any(part.strip() for part in lines[-1])
        elif is_open and not (_ends(lines[-1][-1]) and _is_remark(line)):
            lines[-1].append(line)
        else:
            is_open = False
    return [_cleaned(" ".join(own)) for own in lines]


def _has_second_list(text: str, found: int) -> bool:
    """Whether a list that is as long begins after the first one: which one is the answer?"""
    numbers = [int(m[1]) for line in text.splitlines() if (m := _NUMBERED.match(line))]
    again = [k for k, number in enumerate(numbers) if number == 1][1:]
    return found > 1 and any(numbers[k + 1 : k + 2] == [2] for k in again)


def _ends(text: str) -> bool:
    return text.rstrip(" *_`\"'”’)").endswith((".", "!", "?"))


def _is_remark(line: str) -> bool:
    """Whether a line after a finished sentence is not indented, so is not a wrapped item."""
    return not line[:1].isspace()


def _cleaned(item: str) -> str:
    plain = " ".join(EMPHASIS.sub("", item).split()).rstrip(".").rstrip()
    return plain if plain.endswith(("!", "?")) else f"{plain}."


_READERS: dict[str, Callable[[str], list[str]]] = {
    "strict": strict_items,
    "official": official_items,
    "single": lambda text: [single_sentence(text)],
}


_OFFSET_DIGITS = 15  # hex digits of a key: its byte in the claims file; an offset has 63 bits
# Kept open: POSIX drops a process's locks on a file as soon as it closes any handle to it.
_claims: dict[Path, int] = {}


class AnswerRecord(TypedDict):
    """A line of the cache: one answer, as the service gave it."""

    kind: Literal["answer"]
    key: str  # see `question_key`
    sample: int
    asked: dict[str, Any]  # the request's body, with parameters as the service names them
    text: str
    refused: bool
    finish_reason: str | None
    created: int  # seconds since 1970
    answered_by: str
    fingerprint: str | None
    prompt_tokens: int | None  # of the whole request, in its first sample; None: not reported
    completion_tokens: int | None
    engine: str
    request: str


class BatchRecord(TypedDict, total=False):
    """A line of the cache: the state of a batch; later lines about a part add to earlier ones."""

    kind: Literal["batch"]
    part: str
    state: Literal["intended", "sent", "lost", "collected"]
    id: str
    service: str
    requests: list[list[Any]]  # key, class name, sentences wanted, then the numbers of samples


class Message(TypedDict):
    """One message of a chat."""

    role: Literal["system", "user"]
    content: str


def question_key(
    service: str, model: str, messages: Sequence[Message | str], parameters: Mapping[str, Any]
) -> str:
    """Key of a question: digest of the service, the model, the messages and the parameters."""
    values = [service, model, list(messages), dict(parameters)]
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_of(folder: Path, model: str) -> Path:
    """File of a model's answers; any model name gives a valid and distinct file name."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip(".") or "model"
    if plain != model:
        plain += "-" + hashlib.sha256(model.encode()).hexdigest()[:8]
    return folder / f"{plain}.jsonl"


_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("key", "text", "answered_by", "request"), str),
    **dict.fromkeys(("sample", "created"), int),
    **dict.fromkeys(("finish_reason", "fingerprint"), str | None),
    **dict.fromkeys(("prompt_tokens", "completion_tokens"), int | None),
    "asked": dict,
    "refused": bool,
}


def _is_answer(record: Mapping[str, Any]) -> bool:
    """Whether a line has the fields of an answer; a damaged disk may turn any byte of it."""
    return record["kind"] == "answer" and all(
        isinstance(record[name], kind) for name, kind in _TYPES.items()
    )


def _is_batch(record: Mapping[str, Any]) -> bool:
    return record["kind"] == "batch" and all(
        isinstance(record[name], str) for name in ("part", "state")
    )


class AnswerCache:
    """The answers of one model, in step with its file up to the last `refresh`."""

    def __init__(self, folder: Path, model: str) -> None:
        """Read the answers that the file already has."""
        self.path = file_of(folder, model)
        self._read_to = 0
        self._answers: dict[tuple[str, int], list[AnswerRecord]] = defaultdict(list)
        self._requests: set[str] = set()
        self._batches: dict[str, BatchRecord] = {}
        # Reentrant: `add` holds it while it calls `refresh`. It is taken before the file's lock.
        self._guard = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Read what this and other processes have added since."""
        with self._guard:
            if not self.path.is_file():
                return
            with self.path.open("rb") as stream:
                stream.seek(self._read_to)
                block = stream.read()
            # Another process may be in the middle of a line: read it next time.
            whole = block[: block.rfind(b"\n") + 1]
            self._read_to += len(whole)
            for line in whole.split(b"\n"):
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            is_ours = _is_answer(record) or _is_batch(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            is_ours = False
        if not is_ours:
            if line.strip():
                logger.warning("ignored a line of %s that is not an answer", self.path)
        elif record["kind"] == "answer":
            self._answers[record["key"], record["sample"]].append(record)
            self._requests.add(record["request"])
        else:
            self._batches[record["part"]] = {**self._batches.get(record["part"], {}), **record}

    def answers(self, key: str, sample: int) -> list[AnswerRecord]:
        """Answers to a question's sample, in the order of asking."""
        with self._guard:
            return list(self._answers.get((key, sample), ()))

    def has_request(self, request: str) -> bool:
        """Whether the answer to this request is already stored."""
        with self._guard:
            return request in self._requests

    def batches(self) -> list[BatchRecord]:
        """All batches ever started, oldest first, each in its last known state."""
        with self._guard:
            return list(self._batches.values())

    def add(self, records: Iterable[AnswerRecord | BatchRecord]) -> None:
        """Append records; they are on disk when this returns.

        Raises:
            ResourceError: they cannot be written.
        """
        lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records]
        block = "".join(f"{line}\n" for line in lines).encode()
        with self._guard:
            try:
                self._append(block)
            except OSError as error:
                raise runtime.ResourceError(
                    f"answers cannot be saved in {self.path}: {error.strerror}; free some space, "
                    "or name another folder with --answers, then run the same command"
                ) from error
            self.refresh()

    def _append(self, block: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as handle:
            size = os.fstat(handle).st_size
            # A crash may have cut the last line: start a new one, or both would be unreadable.
            if size and os.pread(handle, 1, size - 1) != b"\n":
                block = b"\n" + block
            try:
                while block:
                    block = block[os.write(handle, block) :]
                # The answer is paid for: it must survive a power cut once we say it is saved.
                os.fsync(handle)
            except OSError:
                # On a full disk, remove the half-written line for the next writer.
                os.ftruncate(handle, size)
                raise

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Claim those of `keys` that no other process is asking, and return them."""
        handle = self._claims_file()
        mine = set()
        for key in keys:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
            except OSError:
                continue
            mine.add(key)
        return mine

    def release(self, keys: Iterable[str]) -> None:
        """Give up claims."""
        handle = self._claims_file()
        for key in keys:
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, _place(key))

    def _claims_file(self) -> int:
        # Each key locks one byte of this file. The system releases the byte locks of a dead
        # process, so a kill leaves no claim; `filelock` would need a file per question.
        path = self.path.with_suffix(".claims").resolve()
        if path not in _claims:
            path.parent.mkdir(parents=True, exist_ok=True)
            _claims[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        return _claims[path]


def _place(key: str) -> int:
    return int(key[:_OFFSET_DIGITS], 16)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    # The lock is on the answers file itself: `filelock` locks a second file, which an older
    # microclip that shares the folder would not check.
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)
