"""A real HTTP server of files that resumes, cuts, lies and stalls as it is told to.

Each answer to a path takes the next of that path's faults, if any is left:

    "404", "403", "503"   that status
    "cut"                 the length of all, 60 % of the bytes, then the connection is closed
    "page"                an HTML page with status 200
    "hidden-page"         likewise, called a file
    "wrong"               other bytes of the same length
    "deaf"                a request for the rest is answered with all
    "elsewhere"           a request for the rest is answered with another rest
    "slow"                nothing for a while, then the file
    "trickle"             a little of the file at a time
    "huge"                a length that no disk has room for
    "endless"             no length; the end of the connection is the end of the file
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from tests.fixtures.servers import listening

_PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"


@dataclass
class Asked:
    """A request, and the bytes of the file that went out."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class Answer:
    """What a path of the test's own answers."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None  # bytes after which the connection is closed
    stalls: bool = False  # instead of closing it, nothing comes any more


class FileServer:
    """The server's state."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[Asked] = []
        self.tags = True  # whether files have an ETag
        self.answer: Callable[[str, str, dict[str, str]], Answer | None] = lambda *_: None
        self.http: ThreadingHTTPServer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def sent(self, path: str) -> int:
        """Return the bytes of a file that went out, over all requests."""
        return sum(asked.sent for asked in self.asked if asked.path == f"/{path}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[FileServer]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers)
        self.state.asked.append(asked)
        own = self.state.answer(self.command, self.path, headers)
        if own is not None:
            headers_sent = {"Content-Length": str(len(own.body)), **own.headers}
            self._reply(own.status, headers_sent, own.body[: own.cut_at])
            self._break_off(own)
            return
        name = self.path.lstrip("/")
        faults = self.state.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        if fault.isdecimal() or name not in self.state.files:
            self._reply(int(fault or 404), {"Content-Type": "text/html"}, b"<html>no</html>")
        elif fault in ("page", "hidden-page"):
            kind = "text/html; charset=utf-8" if fault == "page" else "application/octet-stream"
            self._reply(200, {"Content-Type": kind}, _PAGE)
        else:
            self._send(asked, self.state.files[name], fault)

    def _break_off(self, own: Answer) -> None:
        if own.cut_at is None or self.command == "HEAD":
            return
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            if own.stalls:
                self.connection.settimeout(60)
                self.connection.recv(1)  # returns when the client is gone

    def _send(self, asked: Asked, content: bytes, fault: str) -> None:
        if fault == "slow":
            time.sleep(0.4)
        if fault == "wrong":
            content = bytes(len(content))
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        begin = self._begin(asked, content, tag, fault)
        if begin is not None and begin >= len(content):
            self._reply(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            return
        body = content[begin or 0 :]
        headers = {"Content-Length": str(10**17 if fault == "huge" else len(body))}
        if begin is not None:
            told = begin + (7 if fault == "elsewhere" else 0)
            headers["Content-Range"] = f"bytes {told}-{len(content) - 1}/{len(content)}"
        if fault == "endless":
            del headers["Content-Length"]
        self._head(200 if begin is None else 206, headers, tag)
        if fault == "cut":
            body = body[: int(len(body) * 0.6)]
        if self.command != "HEAD":
            self._write(asked, body, 0.02 if fault == "trickle" else 0)
        self.close_connection = fault in ("cut", "endless", "huge")

    def _head(self, status: int, headers: dict[str, str], tag: str) -> None:
        self.send_response(status)
        own = {"Content-Type": "application/octet-stream", **headers}
        for name, value in {**own, **({"ETag": tag} if self.state.tags else {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _begin(self, asked: Asked, content: bytes, tag: str, fault: str) -> int | None:
        """Return from where the rest is asked for, None if all is."""
        wanted = asked.headers.get("range", "")
        condition = asked.headers.get("if-range", tag)
        if not wanted.startswith("bytes=") or fault == "deaf" or condition != tag:
            return None
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    def _write(self, asked: Asked, body: bytes, pause_s: float) -> None:
        step = 1 << 16
        with contextlib.suppress(OSError):
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                self.wfile.flush()
                asked.sent += len(body[at : at + step])
                if pause_s:
                    time.sleep(pause_s)

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[FileServer]:
    """Serve on a free port of this machine until the block ends."""
    state = FileServer()
    with listening(_Handler, state) as state.http:
        yield state
