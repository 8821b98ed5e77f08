"""A hub server for the real client: revision, tree, and files with their headers."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from dataclasses import dataclass, field

from tests.file_server import Answer, FileServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/shapes"


@dataclass
class HubCopy:
    """A dataset's repository, served by `server`."""

    server: FileServer
    files: dict[str, bytes]
    commit: str = COMMIT
    large: tuple[str, ...] = (".parquet", ".tar")  # kept by LFS, with a stated SHA-256
    refusal: tuple[int, str] = (0, "")  # status and X-Error-Code of all files
    is_absent: bool = False
    lies: set[str] = field(default_factory=set)  # files that are sent with other bytes
    cut: list[str] = field(default_factory=list)  # files of which the next answer breaks off
    stalls: bool = False  # such an answer stays open

    def __post_init__(self) -> None:
        self.server.answer = self.answer

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        """Answer the client's API calls; the file server sends the files."""
        path = urllib.parse.unquote(path.partition("?")[0])
        api = f"/api/datasets/{REPOSITORY}"
        if self.is_absent:
            return Answer(status=401, headers={"X-Error-Code": "RepoNotFound"})
        if path.startswith(f"{api}/revision/"):
            return _json({"id": REPOSITORY, "sha": self.commit, "siblings": []})
        if path == f"{api}/tree/{self.commit}":
            return _json([self._entry(name) for name in sorted(self.files)])
        resolve = f"/datasets/{REPOSITORY}/resolve/{self.commit}/"
        if path.startswith(resolve):
            return self._file(method, path.removeprefix(resolve), headers.get("range", ""))
        return Answer(status=404, headers={"X-Error-Code": "RevisionNotFound"})

    def _entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        entry: dict[str, object] = {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }
        if name.endswith(self.large):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"size": len(content), "oid": sha256, "pointerSize": 130}
        return entry

    def _file(self, method: str, name: str, wanted: str) -> Answer | None:
        status, code = self.refusal
        if status:
            return Answer(status=status, headers={"X-Error-Code": code})
        if name not in self.files:
            return Answer(status=404, headers={"X-Error-Code": "EntryNotFound"})
        content = self.files[name]
        sent = content[::-1] if name in self.lies else content
        digest = hashlib.sha256 if name.endswith(self.large) else hashlib.sha1
        headers = {
            "X-Repo-Commit": self.commit,
            "ETag": f'"{digest(content).hexdigest()}"',
            "Content-Type": "application/octet-stream",
        }
        answer = Answer(body=sent, headers=headers)
        if wanted:
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(sent) - 1}/{len(sent)}"
            answer.body, answer.status = sent[begin:], 206
        if name in self.cut and method == "GET":
            self.cut.remove(name)
            answer.cut_at, answer.stalls = len(answer.body) // 2, self.stalls
        return answer


def _json(value: object) -> Answer:
    return Answer(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})
