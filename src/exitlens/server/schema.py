"""What a request may hold, as pydantic models: every field checked, none passed over in silence."""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from exitlens.server.replies import Refusal

__all__ = ["ChatRequest", "CompletionRequest", "LiveRequest", "Request", "Turn", "parse"]

Number = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]
MOST_CHOICES = 16
MOST_TOP = 20

# Fields that change nothing here.
_IGNORED = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
# Fields that may be sent with the value that changes nothing, and what to do instead of another value.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1, None), "use n"),
    "suffix": ((None, ""), "leave it out"),
    "frequency_penalty": ((0, None), "use repetition_penalty"),
    "presence_penalty": ((0, None), "use repetition_penalty"),
    "logit_bias": ((None, {}), "leave it out"),
    "tools": ((None, []), "this server calls no tools"),
    "tool_choice": ((None, "none", "auto"), "this server calls no tools"),
    "parallel_tool_calls": ((None, False, True), "this server calls no tools"),
    "functions": ((None, []), "this server calls no tools"),
    "function_call": ((None, "none", "auto"), "this server calls no tools"),
    "response_format": ((None, {"type": "text"}), "leave it out"),
    "modalities": ((None, ["text"]), "leave it out"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class StreamOptions(_Strict):
    """How a stream ends."""

    include_usage: StrictBool | None = None
    # Sent by some clients; the usage comes once, at the end.
    continuous_usage_stats: StrictBool | None = None


class Request(_Strict, ABC):
    """What both kinds of request share."""

    usual_tokens: ClassVar[int | None] = None  # answer tokens where none are asked for; None: all that fit

    model: StrictStr | None = None
    decoder: StrictStr | None = None
    max_tokens: StrictInt | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = None
    top_k: StrictInt | None = Field(None, ge=-1)
    min_p: Number | None = None
    repetition_penalty: Number | None = Field(None, gt=0, le=1e30)
    stop: StrictStr | list[StrictStr] | None = None
    seed: StrictInt | None = Field(None, ge=-(1 << 63), le=1 << 63)
    n: StrictInt | None = Field(None, ge=1, le=MOST_CHOICES)
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("max_tokens", "max_completion_tokens", check_fields=False)
    @classmethod
    def _all_that_fits(cls, value: int | None) -> int | None:
        return None if value == -1 else value  # -1 asks for as much as there is room for

    @property
    def asked_tokens(self) -> int | None:
        """Answer tokens asked for; None: nothing was said."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, empty ones left out (clients send them); raises :class:`Refusal` for too many or too long."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        stops = [stop for stop in given if stop]
        if len(stops) > 16 or any(len(stop) > 200 for stop in stops):
            raise Refusal(400, "stop holds too much: at most 16 texts of 200 characters", param="stop")
        return tuple(stops)

    @property
    @abstractmethod
    def top_logprobs_wanted(self) -> int | None:
        """Alternatives a token whose log-probabilities are asked for; None: no log-probabilities."""


class CompletionRequest(Request):
    """``POST /v1/completions``."""

    usual_tokens: ClassVar[int | None] = 16

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]] | None = None
    logprobs: StrictInt | None = Field(None, ge=0, le=MOST_TOP)
    echo: StrictBool | None = None

    @property
    def top_logprobs_wanted(self) -> int | None:
        """See :class:`Request`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many. Raises :class:`Refusal` where there is none."""
        given = self.prompt
        if given is None or given == []:
            raise Refusal(400, "prompt is missing: give a text or a list of token ids", param="prompt")
        if isinstance(given, str):
            return [given]
        if all(isinstance(one, int) for one in given):
            return [[one for one in given if isinstance(one, int)]]
        return [one for one in given if not isinstance(one, int)]


class TextPart(_Strict):
    """A piece of a turn's content."""

    type: Literal["text"]
    text: StrictStr


class Turn(BaseModel):
    """One message. Other fields of a message (``name``, ``refusal``, ...) say nothing to a chat template here."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[TextPart] | None = None
    tool_calls: list[Any] | None = None

    @property
    def text(self) -> str:
        """The content as one text; ``null`` is the empty one."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def as_message(self) -> dict[str, str]:
        """As a chat template takes it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MOST_TOP)
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def asked_tokens(self) -> int | None:
        """See :class:`Request`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """See :class:`Request`. Raises :class:`Refusal` for alternatives without log-probabilities."""
        if not self.logprobs and self.top_logprobs:
            raise Refusal(400, f"top_logprobs={self.top_logprobs} needs logprobs=true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class LiveRequest(_Strict):
    """``POST /live``: one answer with what every layer says on the way.

    ``form`` is how the text is put: as it is, as a question after worked examples, or by the chat template. Token ids
    (a fork) are taken as they are, and ``form`` says what they continue.
    """

    prompt: StrictStr | list[StrictInt]
    form: Literal["text", "question", "chat"] = "text"
    decoder: StrictStr | None = None
    max_tokens: StrictInt | None = None
    temperature: Number = Field(0, ge=0, le=2)
    seed: StrictInt | None = Field(None, ge=-(1 << 63), le=1 << 63)


Kind = TypeVar("Kind", bound=_Strict)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """A request's body as ``kind``. Raises :class:`Refusal` (400): one line that quotes the value."""
    found = _object(body)
    kept: dict[str, Any] = {}
    for name, value in found.items():
        if name in _IGNORED:
            continue
        if name in _NEUTRAL:
            allowed, remedy = _NEUTRAL[name]
            # `1 == True` and `0 == False` are no equal wishes; 0 and 0.0 are.
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                raise Refusal(400, f"{name}={_shown(value)} is not supported: {remedy}", param=name)
            continue
        kept[name] = value
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _refusal(kind, kept, error) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {str(error).splitlines()[0][:120]}") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"the body is a JSON {type(found).__name__}, not an object")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = str(error.object)[error.start : error.start + 1]
        raise Refusal(400, f"the body holds {half!r}, which is no character: send whole ones") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body holds what is no JSON value: {str(error)[:120]}") from None
    return found


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def _refusal(kind: type[_Strict], body: Mapping[str, Any], error: ValidationError) -> Refusal:
    """The first thing wrong, in the words of this interface."""
    # Of a union's branches the one that came nearest is named: the deepest place.
    details = max(
        error.errors(include_url=False, include_context=True), key=lambda one: (_unknown(one), len(one["loc"]))
    )
    name = str(details["loc"][0])[:60]
    if _unknown(details):
        nested = str(details["loc"][-1])[:60]
        names = StreamOptions.model_fields if name == "stream_options" else kind.model_fields
        close = difflib.get_close_matches(nested, names, n=1)
        return Refusal(
            400, f"unknown field {nested!r}: {f'did you mean {close[0]}?' if close else 'leave it out'}", param=nested
        )
    if name == "messages":
        return Refusal(400, _about_messages(body.get("messages")), param="messages")
    if name == "prompt":
        return Refusal(400, "prompt is missing: give a text or a list of token ids", param="prompt")
    value = body.get(name)
    if isinstance(value, dict) and len(details["loc"]) > 1 and str(details["loc"][1]) in value:
        name, value = str(details["loc"][1]), value[str(details["loc"][1])]
    return Refusal(400, f"{name}={_shown(value)} {_what_is_wrong(details)}", param=name)


def _unknown(details: ErrorDetails) -> bool:
    return details["type"] == "extra_forbidden" and details["loc"][0] != "messages"


def _what_is_wrong(details: ErrorDetails) -> str:
    """One clause about a value of the wrong type or out of range."""
    limits = details.get("ctx", {})
    ranges = {
        "greater_than_equal": ("ge", "at least"),
        "less_than_equal": ("le", "at most"),
        "greater_than": ("gt", "above"),
    }
    if details["type"] in ranges:
        key, words = ranges[details["type"]]
        return f"is out of range: {words} {limits[key]:g}"
    if details["loc"][0] == "stop":
        return "is not a text or a list of texts"
    wrong = {
        "int_type": "is not a whole number",
        "float_type": "is not a number",
        "finite_number": "is not a number",
        "bool_type": "is neither true nor false",
        "string_type": "is not a text",
        "literal_error": f"is not known: use {limits.get('expected')}",
        "dict_type": "is not an object",
        "model_type": "is not an object",
        "model_attributes_type": "is not an object",
    }
    last = str(details["loc"][-1])
    if last in ("float", "int") and details["type"] in ("int_type", "float_type"):
        return "is not a number"  # a union of both
    return wrong.get(details["type"], f"cannot be used: {details['msg']}")


def _about_messages(messages: Any) -> str:
    """What is wrong with the first unfit turn."""
    if not isinstance(messages, list) or not messages:
        return "messages is missing or empty: give a list of {role, content}"
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            return f"{where} is not an object with role and content"
        role, content = message.get("role"), message.get("content")
        if role in ("tool", "function"):
            return f"{where} has role '{role}': this server calls no tools, leave such turns out"
        if role not in ("system", "developer", "user", "assistant"):
            return f"{where} has role {role!r:.60}: use system, user, assistant"
        if isinstance(content, list):
            return f"{where} holds something other than text: only text is read"
        if content is not None and not isinstance(content, str):
            return f"{where} has content {_shown(content)}: give a text"
    return "messages cannot be used: give a list of {role, content}"
