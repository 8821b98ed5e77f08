"""Language models behind OpenAI's protocol: what a request costs, what a fault means, retries.

The key is read from the environment here and goes only into the client. The service's own texts may
repeat it, so it is removed from them before anything else sees them.
"""

from __future__ import annotations

import email.utils
import logging
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
from openai import OpenAI

from microclip import runtime
from microclip.settings.base import SettingsError
from microclip.settings.llms import AskSettings, Prices

logger = logging.getLogger(__name__)

# The body of a request: model, messages or prompt, and parameters as each service names them. Not a
# record: a setting may pass on any parameter, and the body's JSON is part of the answers' keys.
Body = Mapping[str, Any]
SENTENCE_TOKENS = 25  # one numbered sentence of a description; GPT-4o's mean is lower
_CEILING = 3  # an answer without a limit may be this many times as long as expected
# Tokens are estimated by rule, on the high side: tiktoken downloads its vocabularies at first use
# and does not know other vendors' models.
_PIECE = re.compile(r"\w+|[^\w\s]")
_WORD_TOKENS = 6  # characters of a word per token, a low estimate for English
_MESSAGE_TOKENS = 4  # added to each chat message for its role and delimiters
_REPLY_TOKENS = 3  # added once, to start the answer


@dataclass(frozen=True)
class Tokens:
    """Number of tokens in one or more requests."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        """Add up prompts and completions."""
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)


def text_tokens(text: str) -> int:
    """Estimated number of tokens in a text; at least one per word and punctuation mark."""
    return sum(math.ceil(len(piece) / _WORD_TOKENS) for piece in _PIECE.findall(text))


def expected_tokens(body: Body, sentences: int) -> Tokens:
    """Expected tokens of a request; `sentences` is the number wanted in one answer."""
    texts = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
    prompt = sum(text_tokens(text) + _MESSAGE_TOKENS for text in texts) + _REPLY_TOKENS
    limit = _limit(body)
    wanted = sentences * SENTENCE_TOKENS
    each = wanted if limit is None else min(wanted, limit)
    return Tokens(prompt, int(body.get("n", 1)) * each)


def most_tokens(body: Body, sentences: int) -> Tokens:
    """Most tokens that a request may use: its own limit, else three times the expected length."""
    expected = expected_tokens(body, sentences)
    n = int(body.get("n", 1))
    limit = _limit(body)
    completion = expected.completion * _CEILING if limit is None else n * limit
    return Tokens(expected.prompt, completion)


def _limit(body: Body) -> int | None:
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return None if limit is None else int(limit)


def cost_usd(tokens: Tokens, prices: Prices | None, *, is_batch: bool) -> float | None:
    """Price of tokens in US dollars; None if prices are unknown."""
    if prices is None:
        return None
    million = tokens.prompt * prices.input_usd + tokens.completion * prices.output_usd
    return million / 1e6 * (prices.batch_factor if is_batch else 1.0)


class Budget:
    """The money that one command may spend: a request is sent only if it cannot exceed the limit.

    Each attempt reserves the most that it might cost, so that requests in flight together stay
    within the limit too.
    """

    def __init__(self, limit_usd: float | None) -> None:
        """Start with nothing spent."""
        self.limit_usd = limit_usd
        self.spent_usd = 0.0
        self.unheard_usd = 0.0  # the most that may be billed for attempts without an answer
        self._reserved: dict[int, float] = {}
        self._next = 0
        self._changed = threading.Condition()

    def reserve(self, most_usd: float | None, stop: threading.Event) -> int | None:
        """Reserve money for one attempt; None if it might exceed the limit, or `stop` is set.

        Waits as long as requests in flight may turn out cheaper than their reservations.
        """
        most = most_usd or 0.0
        with self._changed:
            while self._is_over(most):
                if not self._reserved or stop.is_set():
                    return None
                # With a time-out, because setting `stop` does not notify this condition.
                self._changed.wait(0.2)
            self._next += 1
            self._reserved[self._next] = most
            return self._next

    def settle(self, ticket: int, usd: float | None, *, is_unheard: bool = False) -> None:
        """Replace the reservation of an attempt by its actual cost.

        `is_unheard`: no answer arrived, but the service may bill one anyway; the whole reservation
        then counts against the limit for good.
        """
        with self._changed:
            reserved = self._reserved.pop(ticket)
            self.spent_usd += usd or 0.0
            self.unheard_usd += reserved if is_unheard else 0.0
            self._changed.notify_all()

    def allows(self, most_usd: float) -> bool:
        """Whether requests of this cost fit within the limit, beside those in flight."""
        with self._changed:
            return not self._is_over(most_usd)

    def charge(self, usd: float | None, *, is_unheard: bool = False) -> None:
        """Add the cost of a batch, or its possible cost if the answer cannot be read."""
        with self._changed:
            if is_unheard:
                self.unheard_usd += usd or 0.0
            else:
                self.spent_usd += usd or 0.0

    def over(self, most_usd: float) -> str:
        """The message for a request that would exceed the limit."""
        unheard = (
            f", and up to {self.unheard_usd:.4f} may be billed for attempts without an answer"
            if self.unheard_usd
            else ""
        )
        return (
            f"spent {self.spent_usd:.4f} of {self.limit_usd or 0.0:.4f} USD{unheard}; the "
            f"next request may cost {most_usd:.4f}, which would exceed the limit; all answers are "
            "saved, raise --max-cost and run the same command"
        )

    def _is_over(self, more: float) -> bool:
        if self.limit_usd is None:
            return False
        held = self.spent_usd + self.unheard_usd + sum(self._reserved.values())
        # The margin absorbs rounding: a request that costs exactly the rest is allowed.
        return held + more > self.limit_usd + 1e-12


Result = TypeVar("Result")
OPENAI_URL = "https://api.openai.com/v1"
_NO_KEY = "none"  # sent to your own server; the client insists on some key
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_REFUSALS = ("content_filter", "content_policy_violation", "moderation_blocked")
_SHOWN = 200  # characters of a service's own words in an error
# At level DEBUG these log whole requests, which could show the key.
for _name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class StoppedError(Exception):
    """Another request hit a fault that waiting will not fix; this one was not sent again."""


class UnansweredError(runtime.ServiceError):
    """One request failed each time it was sent."""


class RefusedError(Exception):
    """The service refuses this prompt; that counts as an unusable answer."""


@dataclass(frozen=True)
class Connection:
    """A client of a service; `service` is its name in keys of answers, "" for OpenAI itself."""

    client: OpenAI = field(repr=False)
    service: str
    scrub: Callable[[str], str] = field(repr=False)


@dataclass(frozen=True)
class Complaint:
    """A service's explanation of a failed request, in the form of OpenAI's errors."""

    message: str | None = None
    code: str | None = None
    type: str | None = None

    @classmethod
    def read(cls, values: Any) -> Complaint:
        """Read the complaint in a JSON object; empty if `values` is not an object."""
        if not isinstance(values, dict):
            return cls()
        return cls(values.get("message"), values.get("code"), values.get("type"))


@dataclass(frozen=True)
class Fault:
    """What a failed request means: wait and retry, stop everything, give up, or fix the request."""

    action: Literal["wait", "stop", "refused", "wrong"]
    name: str
    reason: str
    wait_s: float | None = None


def base_url_of(ask: AskSettings) -> str:
    """Address of the service: from the settings, else OPENAI_BASE_URL, else OpenAI's."""
    return (ask.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")


def service_of(ask: AskSettings) -> str:
    """Name of the service in keys of answers."""
    url = base_url_of(ask)
    return "" if url == OPENAI_URL else url


def connect(ask: AskSettings) -> Connection:
    """Make a client of the service; nothing is sent yet.

    A server on this machine needs no key. A key is never sent over plain http to another machine.

    Raises:
        SettingsError: no key in the environment, or an address that would expose it.
    """
    url = base_url_of(ask)
    parts = urlsplit(url)
    is_local = parts.hostname in _LOOPBACK
    key = os.environ.get(ask.key_variable, "").strip() if ask.key_variable else ""
    if not key and ask.key_variable and not is_local:
        raise SettingsError(
            f"no key for {parts.hostname}: set {ask.key_variable} in the environment, give the "
            "--base-url of your own server, or use --descriptions shipped"
        )
    if key and parts.scheme != "https" and not is_local:
        raise SettingsError(
            f"the key in {ask.key_variable} would go to {url} unencrypted; use https, or "
            f"unset {ask.key_variable} and set `key_variable: null` if the server needs none"
        )
    # No retries by the SDK; see `Caller` for the reasons.
    client = OpenAI(api_key=key or _NO_KEY, base_url=url, timeout=ask.timeout_s, max_retries=0)
    return Connection(client, service_of(ask), _scrubber(key))


def _scrubber(key: str) -> Callable[[str], str]:
    """Make a function that removes the key from a text."""
    return (lambda text: text.replace(key, "[key]")) if key else (lambda text: text)


def judge(error: Exception, scrub: Callable[[str], str]) -> Fault:
    """Interpret an error of the client; the fault's text does not contain the key."""
    complaint = Complaint.read(getattr(error, "body", None))
    said = scrub(" ".join(str(complaint.message or error).split()))[:_SHOWN]
    if isinstance(error, openai.APITimeoutError):
        return Fault("wait", "time-out", "it did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return Fault("wait", "connection", f"the connection failed ({said})")
    if isinstance(error, openai.APIStatusError):
        return _judge_status(error, said)
    return Fault("wait", "broken answer", f"its answer is cut or not JSON ({said})")


def _judge_status(error: openai.APIStatusError, said: str) -> Fault:
    codes = {str(error.code), str(error.type)}
    return _judged(error.status_code, codes, said, _retry_after(error))


def judge_complaint(status: int | None, complaint: Complaint, scrub: Callable[[str], str]) -> Fault:
    """Interpret the failure of one request in a batch; the fault's text contains no key."""
    said = scrub(" ".join(str(complaint.message or complaint.code or "no reason").split()))
    codes = {str(complaint.code), str(complaint.type)}
    return _judged(status or 500, codes, said[:_SHOWN], None)


def may_be_billed(error: Exception) -> bool:
    """Whether a service may bill an attempt that ended in this error.

    A time-out or a lost connection can come after a whole answer, and an unreadable answer is still
    an answer. An error status, or no connection at all, costs nothing.
    """
    if isinstance(error, openai.APIStatusError):
        return False
    unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
    return not isinstance(error.__cause__, unsent)


def _judged(status: int, codes: set[str], said: str, wait_s: float | None) -> Fault:
    # Before 429: OpenAI sends that status too when the money is gone, and waiting will not help.
    if status == 402 or codes & set(_QUOTA):
        return Fault("stop", "quota", f"the quota is exhausted ({said})")
    if status in (401, 403):
        return Fault("stop", "key", f"it refuses the key ({said})")
    if status == 429:
        return Fault("wait", "429", f"too many requests ({said})", wait_s)
    if status in (408, 409) or status >= 500:
        return Fault("wait", str(status), f"status {status} ({said})", wait_s)
    if codes & set(_REFUSALS):
        return Fault("refused", "refused", said)
    return Fault("wrong", str(status), f"status {status}: {said}")


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that a service asks to wait: in milliseconds, in seconds, or as a date."""
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


class Caller:
    """Repeats requests after passing faults, and stops all requests after other faults.

    The SDK's own `max_retries` stays off, because we could not control its attempts. It retries
    after the command was stopped, so that an answer is paid for and lost. It repeats a 429 that
    means "no money left". It ignores a Retry-After over a minute. It does not retry a status of 200
    with half an answer. Other threads keep sending after a 429. And neither the budget nor the
    usage file could count its attempts.
    """

    def __init__(self, ask: AskSettings, connection: Connection) -> None:
        """Nothing is sent yet."""
        self.connection = connection
        self.stop = threading.Event()
        self.faults: Counter[str] = Counter()
        self.n_sent = 0
        self._ask = ask
        self._not_before = 0.0  # no request is sent before this time, set by a 429
        self._guard = threading.Lock()

    def call(self, send: Callable[[], Result]) -> Result:
        """Return the result of `send`, called as often as the settings allow.

        Raises:
            UnansweredError: it failed each time.
            StoppedError: another request hit a fault that stops all.
            RefusedError: this prompt is refused.
            ServiceError: quota, key, or a wait that is too long.
            SettingsError: a wrong request.
        """
        fault = None
        for attempt in range(self._ask.attempts):
            self._wait(attempt, fault)
            done, fault = self._once(send)
            if fault is None:
                return done[0]
            self._raise_unless_passing(fault)
        assert fault is not None
        raise UnansweredError(
            f"{self._where()} failed to answer {self._ask.attempts} times, the last time because "
            f"{fault.reason}; run the same command later, it asks only for what is missing"
        )

    def _once(self, send: Callable[[], Result]) -> tuple[list[Result], Fault | None]:
        with self._guard:
            self.n_sent += 1
        try:
            return [send()], None
        except (openai.OpenAIError, ValueError) as error:
            fault = judge(error, self.connection.scrub)
        except (runtime.ResourceError, StoppedError):  # nothing was sent
            with self._guard:
                self.n_sent -= 1
            raise
        with self._guard:
            self.faults[fault.name] += 1
        return [], fault

    def _wait(self, attempt: int, fault: Fault | None) -> None:
        seconds = 0.0
        if fault is not None:
            # Random, so that threads that failed together do not return together.
            doubled = self._ask.backoff_s * 2 ** (attempt - 1) * random.uniform(1.0, 1.25)
            seconds = min(doubled, self._ask.max_wait_s) if fault.wait_s is None else fault.wait_s
            if fault.name == "429":
                with self._guard:
                    self._not_before = max(self._not_before, time.monotonic() + seconds)
        until = time.monotonic() + seconds
        # In a loop, because another thread's 429 may move `_not_before` while this one waits.
        while (left := max(until, self._not_before) - time.monotonic()) > 0:
            if self.stop.wait(left):
                break
        if self.stop.is_set():
            raise StoppedError

    def _raise_unless_passing(self, fault: Fault) -> None:
        """Raise the error that ends this request or all of them; a passing fault raises none."""
        later = "all answers are saved, the same command asks only for what is missing"
        match fault.action:
            case "refused":
                raise RefusedError(fault.reason)
            case "wrong":
                raise SettingsError(
                    f"{self._where()} rejects the request: {fault.reason}; correct the "
                    "model, its parameters (`ask.parameters` in config/llms/, where null removes "
                    f"one) or --base-url; {later}"
                )
            case "stop":
                raise runtime.ServiceError(
                    f"{self._where()}: {fault.reason}; {later}; or use --descriptions shipped"
                )
        if fault.wait_s is not None and fault.wait_s > self._ask.max_wait_s:
            raise runtime.ServiceError(
                f"{self._where()} asks to wait {fault.wait_s:.0f} s; run it again then: {later}"
            )

    def _where(self) -> str:
        return self.connection.service or OPENAI_URL
