"""Paid answers of language models: one line each, appended at once, never changed.

A folder holds a file of JSON lines for each model. An answer is found by what was asked (`key`) and
the number of its sample; several answers to one sample are tries, in the order of asking. Processes
may share a folder: lines are written under a lock, and what one process asks for it claims, so that
no other asks for it too. A process that is killed leaves whole lines and no claim.
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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from microclip import runtime

logger = logging.getLogger(__name__)

_OFFSET_DIGITS = 15  # hex digits of a key that are its place in the file of claims
_claims: dict[Path, int] = {}  # open for good: closing such a file would give up its locks


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
    """A line of the cache: what is known of a batch; later lines of a part add to earlier ones."""

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
    """Return what names a question: who is asked, what, and with which parameters."""
    values = [service, model, list(messages), dict(parameters)]
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_of(folder: Path, model: str) -> Path:
    """Return the file of a model's answers, whatever stands in the model's name."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip(".") or "model"
    if plain != model:
        plain += "-" + hashlib.sha256(model.encode()).hexdigest()[:8]
    return folder / f"{plain}.jsonl"


class AnswerCache:
    """The answers of one model, as far as they were read."""

    def __init__(self, folder: Path, model: str) -> None:
        """Read what is there."""
        self.path = file_of(folder, model)
        self._read_to = 0
        self._answers: dict[tuple[str, int], list[AnswerRecord]] = defaultdict(list)
        self._requests: set[str] = set()
        self._batches: dict[str, BatchRecord] = {}
        self._guard = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Read what this and other processes have added."""
        with self._guard:
            if not self.path.is_file():
                return
            with self.path.open("rb") as stream:
                stream.seek(self._read_to)
                block = stream.read()
            whole = block[: block.rfind(b"\n") + 1]
            self._read_to += len(whole)
            for line in whole.splitlines():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            kind = record["kind"]
            if kind == "answer":
                self._answers[record["key"], int(record["sample"])].append(record)
                self._requests.add(str(record["request"]))
            elif kind == "batch":
                self._batches[record["part"]] = {**self._batches.get(record["part"], {}), **record}
        except (ValueError, KeyError, TypeError):
            if line.strip():
                logger.warning("%s holds a line that is no answer; it is left out", self.path)

    def answers(self, key: str, sample: int) -> list[AnswerRecord]:
        """Return the answers to a question's sample, in the order of asking."""
        with self._guard:
            return list(self._answers.get((key, sample), ()))

    def has_request(self, request: str) -> bool:
        """Return whether an answer to this very request was kept."""
        with self._guard:
            return request in self._requests

    def batches(self) -> list[BatchRecord]:
        """Return the batches that were begun, oldest first, each as it was last known."""
        with self._guard:
            return list(self._batches.values())

    def add(self, records: Iterable[AnswerRecord | BatchRecord]) -> None:
        """Append records; they are on the disk when this returns.

        Raises:
            ResourceError: the disk does not take them.
        """
        lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records]
        block = "".join(f"{line}\n" for line in lines).encode()
        with self._guard:
            try:
                self._append(block)
            except OSError as error:
                raise runtime.ResourceError(
                    f"answers cannot be kept in {self.path}: {error.strerror}; make room, or name "
                    "another folder with --answers, then run the same command"
                ) from error
            self.refresh()

    def _append(self, block: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as handle:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # a line that a crash cut
                block = b"\n" + block
            try:
                while block:
                    block = block[os.write(handle, block) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` that no other process is asking for; they are this one's now."""
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
        # One byte of this file stands for each key. The system drops a dead process's byte locks,
        # so a kill leaves no claim; `filelock` would need a file for every question.
        path = self.path.with_suffix(".claims").resolve()
        if path not in _claims:
            path.parent.mkdir(parents=True, exist_ok=True)
            _claims[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        return _claims[path]


def _place(key: str) -> int:
    return int(key[:_OFFSET_DIGITS], 16)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    # The lock is on the file of answers itself: `filelock` locks a second file, and an older
    # microclip that shares the folder would not see it.
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)
