"""Who writes class descriptions, and how a language model is asked: `config/llms/<name>.yaml`."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from microclip.settings.base import SECRET, Frozen, Name

Engine = Literal["shipped", "file", "templates", "chat", "batch", "completions"]
AnswerMode = Literal["strict", "official", "single"]
ASKING = ("chat", "batch", "completions")
READING = ("shipped", "file")  # "templates" needs neither: the dataset's prompts, filled
_SECRET_HINT = "put the key in the environment variable that `key_variable` names, not here"
# Set from the prompts, or would change the form of an answer, or who pays for it.
_OWN_KEYS = ("model", "messages", "prompt", "n", "stream", "functions", "tools", "response_format")


class Prices(Frozen):
    """What a model's tokens cost, in US dollars per million, on a given day."""

    date: datetime.date = Field(description="day on which the prices were looked up")
    source: str = Field(description="where they were looked up")
    input_usd: float = Field(ge=0, description="per million prompt tokens")
    output_usd: float = Field(ge=0, description="per million answer tokens")
    batch_factor: float = Field(
        0.5, ge=0, le=1, description="a batch costs this fraction of the prices above"
    )


class BatchSettings(Frozen):
    """How requests are divided into batches, and how often a batch is polled."""

    tokens: int = Field(
        90_000, ge=1, description="prompt tokens per batch; services limit what may be queued"
    )
    requests: int = Field(50_000, ge=1, le=50_000, description="requests per batch")
    poll_s: float = Field(30.0, gt=0, description="seconds between two polls of a batch")


class AskSettings(Frozen):
    """How a language model is asked, and how much it may cost. The key is not a setting."""

    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="request parameters, as the service names them; they override the prompt "
        "set's, and null removes one of those",
    )
    samples: int | None = Field(
        None, ge=1, description="answers to each prompt; None: as the prompt set says"
    )
    answers: AnswerMode | None = Field(
        None, description="how answers are read; None: as the prompt set says"
    )
    domain: str | None = Field(None, description="what the classes are, for prompts with {domain}")
    tries: int = Field(3, ge=1, description="how often to ask for a usable answer")
    allow_quarantined: bool = Field(
        default=False, description="describe classes without a usable answer by templates"
    )
    base_url: str | None = Field(
        None, description="address of a service that speaks OpenAI's protocol"
    )
    key_variable: str | None = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; None: no key"
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests in flight at once")
    timeout_s: float = Field(60.0, gt=0, description="seconds that one request may take")
    attempts: int = Field(6, ge=1, description="how often to send a request that keeps failing")
    backoff_s: float = Field(0.5, gt=0, description="first wait after a failure; it doubles")
    max_wait_s: float = Field(60.0, gt=0, description="longest wait after a failure")
    batch: BatchSettings = BatchSettings.model_validate({})
    prices: Prices | None = Field(None, description="None: unknown, so no cost is estimated")
    max_cost_usd: float | None = Field(
        None, ge=0, description="limit for one command; None: no limit"
    )

    @field_validator("parameters")
    @classmethod
    def _not_ours(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key in _OWN_KEYS:
            if key in values:
                raise ValueError(f"microclip sets {key!r} itself; remove it from the parameters")
        if any("key" in key.lower() or "auth" in key.lower() for key in values):
            raise PydanticCustomError(SECRET, _SECRET_HINT)
        return values

    @field_validator("base_url")
    @classmethod
    def _is_an_address_alone(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise PydanticCustomError(SECRET, _SECRET_HINT)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        return value.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", value):
            raise PydanticCustomError(SECRET, _SECRET_HINT)
        return value

    def identity(self) -> dict[str, Any]:
        """What decides the sentences; not who serves them, how fast, or at what price."""
        decides = {"parameters", "samples", "answers", "domain", "tries", "allow_quarantined"}
        return self.model_dump(mode="json", include=decides)


class DescriptionSettings(Frozen):
    """Who wrote the class descriptions, and with which prompts."""

    name: Name
    title: str
    engine: Engine = "shipped"
    model: str = Field(description="language model as its vendor names it")
    prompts: Name = Field(description="prompt set, for the record and the path")
    files: Annotated[
        str, Field(description="path of a dataset's descriptions, with {dataset} or {drawings}")
    ] = ""
    frame: str = Field(
        "{sentence}",
        description="the text that is encoded, made from {name} and {sentence}, or {clause}: the "
        "sentence after 'which has'; CuPL: {sentence}, CLIP-D: '{name}, {clause}'",
    )
    ask: AskSettings | None = Field(None, description="for engines that ask a language model")

    @property
    def asks(self) -> bool:
        """Whether the engine asks a language model."""
        return self.engine in ASKING

    @property
    def reads_file(self) -> bool:
        """Whether the engine reads the sentences from a given file."""
        return self.engine in READING

    def identity(self) -> dict[str, Any]:
        """Everything that decides the sentences, as plain values; unused settings are left out."""
        values = self.model_dump(mode="json", exclude={"title", "ask"})
        return values if self.ask is None else {**values, "ask": self.ask.identity()}

    @model_validator(mode="after")
    def _frame_holds_the_sentence(self) -> DescriptionSettings:
        try:
            filled = self.frame.format(name="fox", sentence="\0", clause="\0")
        except (KeyError, IndexError, ValueError):
            filled = ""
        if "\0" not in filled:
            raise ValueError(
                f"frame {self.frame!r} must contain {{sentence}} or {{clause}}, and may contain "
                "{name}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _is_asked_somehow(cls, values: Any) -> Any:
        is_asked = isinstance(values, dict) and values.get("engine") in ASKING
        return {**values, "ask": values.get("ask") or {}} if is_asked else values

    @model_validator(mode="after")
    def _has_what_its_engine_needs(self) -> DescriptionSettings:
        if not self.asks and self.ask is not None:
            raise ValueError(f"engine {self.engine!r} asks no language model; remove 'ask'")
        if self.engine == "templates" and self.files:
            raise ValueError(
                "engine 'templates' fills the dataset's templates and reads no file; remove 'files'"
            )
        if self.reads_file and not self.files:
            raise ValueError(f"engine {self.engine!r} needs 'files', the path of the descriptions")
        return self
