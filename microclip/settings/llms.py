"""Who writes class descriptions: `config/llms/<name>.yaml`, and how a language model is asked."""

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
_SECRET_HINT = "a key stands in an environment variable, which `key_variable` names; not here"
_OWN_KEYS = ("model", "messages", "prompt", "n", "stream", "functions", "tools", "response_format")


class Prices(Frozen):
    """What a model's tokens cost, in US dollars a million, on a day."""

    date: datetime.date = Field(description="day on which the prices were read")
    source: str = Field(description="where they were read")
    input_usd: float = Field(ge=0, description="a million prompt tokens")
    output_usd: float = Field(ge=0, description="a million tokens of answers")
    batch_factor: float = Field(0.5, ge=0, le=1, description="price in a batch, of the price above")


class BatchSettings(Frozen):
    """How requests are cut into batches, and how often these are looked at."""

    tokens: int = Field(
        90_000, ge=1, description="prompt tokens in one batch; services limit what may wait"
    )
    requests: int = Field(50_000, ge=1, le=50_000, description="requests in one batch")
    poll_s: float = Field(30.0, gt=0, description="seconds between two looks at a batch")


class AskSettings(Frozen):
    """How a language model is asked, and how much it may cost. The key is no setting."""

    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="of the request, as the service names them, above the prompt set's; "
        "null takes one of these away",
    )
    samples: int | None = Field(
        None, ge=1, description="answers to each prompt; None: what the prompt set says"
    )
    answers: AnswerMode | None = Field(
        None, description="how answers are read; None: as the prompt set says"
    )
    domain: str | None = Field(None, description="what the classes are, for prompts that say it")
    tries: int = Field(3, ge=1, description="answers asked for until one can be used")
    allow_quarantined: bool = Field(
        default=False, description="describe classes without a usable answer by templates"
    )
    base_url: str | None = Field(None, description="of a service that speaks OpenAI's protocol")
    key_variable: str | None = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; None: no key"
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests under way at once")
    timeout_s: float = Field(60.0, gt=0, description="seconds that one request may take")
    attempts: int = Field(6, ge=1, description="sendings of a request that meets faults")
    backoff_s: float = Field(0.5, gt=0, description="first wait after a fault; it doubles")
    max_wait_s: float = Field(60.0, gt=0, description="longest wait after a fault")
    batch: BatchSettings = BatchSettings.model_validate({})
    prices: Prices | None = Field(None, description="None: unknown, nothing is reckoned")
    max_cost_usd: float | None = Field(None, ge=0, description="of one command; None: no limit")

    @field_validator("parameters")
    @classmethod
    def _not_ours(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key in _OWN_KEYS:
            if key in values:
                raise ValueError(f"{key!r} is set by the project, not among the parameters")
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
        """Return what decides the sentences; not who serves them, how fast, or for how much."""
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
        "{sentence}", description="what is encoded, of {name} and {sentence}; CuPL: the sentence"
    )
    ask: AskSettings | None = Field(None, description="of the engines that ask a language model")

    @property
    def asks(self) -> bool:
        """Return whether a language model is asked, not a file read."""
        return self.engine in ASKING

    @property
    def reads_file(self) -> bool:
        """Return whether the sentences stand in a file that is given."""
        return self.engine in READING

    def identity(self) -> dict[str, Any]:
        """Return what decides the sentences, as plain values; what is not used is left out."""
        values = self.model_dump(mode="json", exclude={"title", "ask"})
        return values if self.ask is None else {**values, "ask": self.ask.identity()}

    @model_validator(mode="after")
    def _frame_holds_the_sentence(self) -> DescriptionSettings:
        try:
            filled = self.frame.format(name="fox", sentence="\0")
        except (KeyError, IndexError, ValueError):
            filled = ""
        if "\0" not in filled:
            raise ValueError(f"frame {self.frame!r} must hold {{sentence}}, and may hold {{name}}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _is_asked_somehow(cls, values: Any) -> Any:
        is_asked = isinstance(values, dict) and values.get("engine") in ASKING
        return {**values, "ask": values.get("ask") or {}} if is_asked else values

    @model_validator(mode="after")
    def _has_what_its_engine_needs(self) -> DescriptionSettings:
        if not self.asks and self.ask is not None:
            raise ValueError(f"engine {self.engine!r} asks no one and takes no 'ask'")
        if self.engine == "templates" and self.files:
            raise ValueError(
                "engine 'templates' fills the dataset's templates and takes no 'files'"
            )
        if self.reads_file and not self.files:
            raise ValueError(f"engine {self.engine!r} needs 'files', where the descriptions are")
        return self
