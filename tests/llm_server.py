"""A real HTTP server that speaks OpenAI's protocol and has, when told to, each of its faults.

Chat completions, completions, files and batches. It counts what it was sent and what it answered
whole (which is what a service is paid for). An answer names the class and its own number, so that a
test can tell answers apart.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.fixtures.servers import listening

KEY = "sk-test-5f1d8c0a7b3e49d2"
# What can go wrong with one request; each can be injected by its name.
STATUS_FAULTS = {
    "429": (429, {}, {"message": "slow down", "code": "rate_limit_exceeded"}),
    "429-after": (429, {"Retry-After": "0.2"}, {"message": "slow down", "code": "rate_limit"}),
    "429-long": (429, {"Retry-After": "7200"}, {"message": "daily limit", "code": "rate_limit"}),
    "500": (500, {}, {"message": "our fault"}),
    "502": (502, {}, {"message": "bad gateway"}),
    "503": (503, {"Retry-After": "0"}, {"message": "overloaded"}),
    "quota": (429, {}, {"message": "no money left", "code": "insufficient_quota"}),
    "revoked": (
        401,
        {},
        {"message": "Incorrect API key provided: {key}", "code": "invalid_api_key"},
    ),
    "no-model": (404, {}, {"message": "no such model", "code": "model_not_found"}),
    "policy": (400, {}, {"message": "not that", "code": "content_policy_violation"}),
}
ANSWER_FAULTS = ("empty", "refusal", "unnumbered", "too-few", "too-many")
WIRE_FAULTS = ("time-out", "dropped", "cut-json", "html")
PASSING = ("429", "429-after", "500", "502", "503", "dropped", "cut-json", "html")


@dataclass
class Sent:
    """One request for an answer, and what became of it."""

    question: str
    n: int
    fault: str | None
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)
    is_paid: bool = False  # an answer went out whole


class Server:
    """The server's state; `fault` decides by the number of a request, from 0, what goes wrong."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.fault: Callable[[int, str], str | None] = lambda number, question: None
        self.items = 10
        self.choices_at_most = 1000  # some servers give one, however many are asked for
        self.tells_usage = True
        self.needs_key = True
        self.repeats_key = False  # in every answer: a server that is careless
        self.hold: Callable[[int], bool] = lambda number: False  # never answer this one
        self.batch_fault: Callable[[int, str], str | None] = lambda batch, question: None
        self.batch_polls = 2  # looks at a batch until it has ended
        self.batch_end: Callable[[int], str] = lambda batch: "completed"
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.wire_faults: list[str] = []  # of requests about files and batches, in turn
        self.is_deaf_once = False  # the next batch is made, and its maker does not hear of it
        self.posted: Counter[str] = Counter()
        self.guard = threading.RLock()
        self.http: ThreadingHTTPServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def paid(self) -> Counter[str]:
        """Return how often each question was answered whole."""
        with self.guard:
            return Counter(one.question for one in self.sent if one.is_paid)

    def text_for(self, question: str, number: int, fault: str | None) -> str:
        """Return an answer to a question, with a fault of answers if it is one."""
        name = " ".join(re.sub(r"[^\w\s-]", " ", question).split()[-4:])
        lines = [
            f"{i + 1}. The {name} shows mark {i + 1} of answer {number}." for i in range(self.items)
        ]
        match fault:
            case "empty":
                return ""
            case "unnumbered":
                return "It is lovely to look at and has no number at all."
            case "too-few":
                return "\n".join(lines[:-1]) if self.items > 1 else "Nothing."
            case "too-many":
                return "\n".join([*lines, f"{self.items + 1}. One more."])
        return "\n".join(lines)

    def completion(self, body: dict[str, Any], number: int, fault: str | None) -> dict[str, Any]:
        """Return the body of an answer to a request."""
        is_chat = "messages" in body
        question = question_of(body)
        choices = []
        for index in range(min(int(body.get("n", 1)), self.choices_at_most)):
            text = self.text_for(question, number, fault)
            if not is_chat and fault is None:
                text = f"\n\nA thing seen from side {number}-{index}"
            if self.repeats_key:
                text = f"{text}\nYour key is {KEY}" if is_chat else f"{text} {KEY}"
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if fault == "refusal":
                message = {"role": "assistant", "content": None, "refusal": "I cannot do that."}
            said = {"message": message} if is_chat else {"text": text}
            choices.append({"index": index, "finish_reason": "stop", **said})
        answer = {
            "id": f"answer-{number}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 1_760_000_000,
            "model": body["model"] + "-2024-08-06",
            "system_fingerprint": "fp_1",
            "choices": choices,
        }
        if self.tells_usage:
            answer["usage"] = {
                "prompt_tokens": 20,
                "completion_tokens": 100 * len(choices),
                "total_tokens": 20 + 100 * len(choices),
            }
        return answer

    def run_batch(self, batch: dict[str, Any]) -> None:
        """Answer the lines of a batch as far as its end lets it."""
        order = list(self.batches).index(batch["id"])
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        end = self.batch_end(order)
        n_answered = {"completed": len(lines), "failed": 0}.get(end, len(lines) // 2)
        good, bad = [], []
        for number, line in enumerate(lines):
            question = question_of(line["body"])
            fault = self.batch_fault(order, question)
            one = Sent(question, int(line["body"].get("n", 1)), fault, line["body"])
            self.sent.append(one)
            entry = {"id": f"r-{number}", "custom_id": line["custom_id"]}
            if number >= n_answered:
                one.fault = "expired"
                bad.append({**entry, "response": None, "error": {"code": "batch_expired"}})
            elif fault in STATUS_FAULTS:
                status, _, error = STATUS_FAULTS[fault]
                response = {"status_code": status, "body": {"error": error}}
                bad.append({**entry, "response": response, "error": None})
            else:
                one.is_paid = True
                body = self.completion(line["body"], number, fault)
                response = {"status_code": 200, "request_id": "r", "body": body}
                good.append({**entry, "response": response, "error": None})
        batch["status"] = end
        batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        if end == "failed":
            batch["errors"] = {"data": [{"code": "token_limit_exceeded", "message": "too many"}]}
            return
        good.reverse()  # the order of a result file is not that of the requests
        for field_name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[field_name] = f"file-{field_name}-{batch['id']}"
                text = "\n".join(json.dumps(row) for row in rows) + "\n"
                self.files[batch[field_name]] = text.encode()


def question_of(body: dict[str, Any]) -> str:
    """Return what a request asks."""
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def reply(self, values: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def drop(self) -> None:
        """Cut the connection with a reset."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def has_key(self) -> bool:
        is_right = self.headers.get("Authorization") == f"Bearer {KEY}"
        return is_right or not self.state.needs_key

    def status_fault(self, fault: str) -> None:
        status, headers, error = STATUS_FAULTS[fault]
        told = {**error, "message": error["message"].replace("{key}", KEY)}
        self.reply({"error": {"type": "error", **told}}, status, headers)

    def wire_fault(self, fault: str) -> None:
        match fault:
            case "time-out":
                time.sleep(1.5)
                self.drop()
            case "dropped":
                self.drop()
            case "cut-json":
                self.reply(b'{"id": "x", "choices": [{"index": 0, "mess')
            case "html":
                self.reply(b"<html><body>Please log in</body></html>")

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.removeprefix("/v1")
        self.state.posted[path] += 1
        if not self.has_key():
            return self.status_fault("revoked")
        if path in ("/chat/completions", "/completions"):
            return self.answer(json.loads(data))
        if fault := self.take_wire_fault():
            return self.status_fault(fault) if fault in STATUS_FAULTS else self.wire_fault(fault)
        if path == "/files":
            return self.keep_file(data)
        if path == "/batches":
            return self.make_batch(json.loads(data))
        if path.endswith("/cancel"):
            batch = self.state.batches[path.split("/")[2]]
            with self.state.guard:
                self.state.batch_end = lambda _: "cancelled"
                self.state.run_batch(batch)
            return self.reply(batch)
        return self.reply({"error": {"message": f"no {path}"}}, 404)

    def take_wire_fault(self) -> str | None:
        with self.state.guard:
            return self.state.wire_faults.pop(0) if self.state.wire_faults else None

    def answer(self, body: dict[str, Any]) -> None:
        state = self.state
        with state.guard:
            number = len(state.sent)
            question = question_of(body)
            fault = state.fault(number, question)
            one = Sent(question, int(body.get("n", 1)), fault, body)
            state.sent.append(one)
        if state.hold(number):
            time.sleep(30)
            return self.drop()
        if fault in STATUS_FAULTS:
            return self.status_fault(str(fault))
        if fault in WIRE_FAULTS:
            return self.wire_fault(str(fault))
        one.is_paid = True
        with contextlib.suppress(OSError):
            self.reply(state.completion(body, number, fault))
        return None

    def keep_file(self, data: bytes) -> None:
        content = data.split(b"\r\n\r\n")
        lines = next(part for part in content if part.lstrip().startswith(b"{"))
        with self.state.guard:
            name = f"file-{len(self.state.files)}"
            self.state.files[name] = lines.split(b"\r\n--")[0]
        self.reply({"id": name, "object": "file", "purpose": "batch", "bytes": 1, "filename": "x"})

    def make_batch(self, body: dict[str, Any]) -> None:
        with self.state.guard:
            name = f"batch_{len(self.state.batches)}"
            self.state.batches[name] = {
                "id": name,
                "object": "batch",
                "status": "validating",
                "polls": 0,
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
                **body,
            }
        if self.state.is_deaf_once:
            self.state.is_deaf_once = False
            return self.drop()
        return self.reply(self.state.batches[name])

    def do_GET(self) -> None:
        path = self.path.removeprefix("/v1").split("?")[0]
        if not self.has_key():
            return self.status_fault("revoked")
        if fault := self.take_wire_fault():
            return self.status_fault(fault) if fault in STATUS_FAULTS else self.wire_fault(fault)
        if path == "/batches":
            found = list(self.state.batches.values())
            return self.reply({"object": "list", "data": found, "has_more": False})
        if path.startswith("/batches/"):
            with self.state.guard:
                batch = self.state.batches[path.split("/")[2]]
                batch["polls"] += 1
                if batch["status"] in ("validating", "in_progress"):
                    batch["status"] = "in_progress"
                    if batch["polls"] > self.state.batch_polls:
                        self.state.run_batch(batch)
            return self.reply(batch)
        if path.startswith("/files/"):
            return self.reply(self.state.files[path.split("/")[2]])
        return self.reply({"error": {"message": f"no {path}"}}, 404)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port of this machine until the block ends."""
    state = Server()
    with listening(Handler, state) as state.http:
        yield state
