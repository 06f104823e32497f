"""What may a request hold? Every field checked, none passed over in silence; refusals in OpenAI's form."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from exitlens.server.replies import Refusal

__all__ = ["ChatRequest", "CompletionRequest", "GenerationRequest", "read_json", "read_request", "whole_number"]

ROLES = ("system", "user", "assistant")
_UNSUPPORTED = "unsupported"  # said before what is wrong with a value: the field cannot be used here at all


def _refused(text: str, kind: str = "refused") -> PydanticCustomError:
    """A validator's error; the text is never read as a template."""
    return PydanticCustomError(kind, "{text}", {"text": text})


def whole_number(value: Any, name: str, least: int | None = None) -> int:
    """``value`` itself when it is a whole number of at least ``least``; refused otherwise."""
    if type(value) is not int or abs(value) > 1 << 63:
        raise _refused(f"{name}={json.dumps(value)[:60]} is not a whole number")
    if least is not None and value < least:
        raise _refused(f"{name}={value} is out of range: at least {least}")
    return value


def _whole(least: int | None = None) -> BeforeValidator:
    return BeforeValidator(lambda v, info: None if v is None else whole_number(v, info.field_name, least))


def _number(value: Any, info: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1e30:
        raise _refused(f"{info.field_name}={json.dumps(value)[:60]} is not a number")
    return float(value)


def _flag(value: Any, info: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _refused(f"{info.field_name}={json.dumps(value)[:60]} is neither true nor false")
    return bool(value)


def _within(good: Callable[[float], bool], bounds: str) -> AfterValidator:
    def check(value: float | None, info: Any) -> float | None:
        if value is not None and not good(value):
            raise _refused(f"{info.field_name}={value} is out of range: {bounds}")
        return value

    return AfterValidator(check)


def _only(*accepted: Any, instead: str = "leave it out") -> AfterValidator:
    """A field that may be sent with the one value that changes nothing; 0 and 0.0 are the same wish."""

    def check(value: Any, info: Any) -> Any:
        for one in accepted:
            if value == one and (type(value) is type(one) or (type(one) is int and isinstance(value, float))):
                return value
        shown = json.dumps(value)[:60]
        raise _refused(f"{info.field_name}={shown} is not supported: {instead}", _UNSUPPORTED)

    return AfterValidator(check)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _refused("stop is not a text or a list of texts")
    if len(stops) > 16 or any(len(stop) > 200 for stop in stops):
        raise _refused("stop holds too much: at most 16 texts of 200 characters")
    return tuple(stops)


def _decoder(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _refused(f"decoder={json.dumps(value)[:60]} is not a text such as 'dola:high'")
    return value


def _stream_options(value: Any) -> Any:
    if value and not isinstance(value, dict):
        raise _refused("stream_options is not an object")
    return value or {}


def _turns(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _refused("messages is missing or empty: give a list of {role, content}")
    return [_turn(f"messages[{i}]", message) for i, message in enumerate(value)]


def _turn(where: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _refused(f"{where} is not an object with role and content")
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise _refused(f"{where} has role {role!r}: use {', '.join(ROLES)}")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise _refused(f"{where} holds something other than text: only text is read")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _refused(f"{where} has no content: give a text")
    return {"role": role, "content": content}


Flag = Annotated[bool, BeforeValidator(_flag)]
Number = Annotated[float | None, BeforeValidator(_number)]
_SEED, _PENALTY = "send the request again with another seed", "use repetition_penalty"


class _Harmless(BaseModel):
    """Fields that change nothing here, and fields that may be sent with a value that changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    user: Any = None
    metadata: Any = None
    store: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    service_tier: Any = None
    n: Annotated[Any, _only(1, None, instead=_SEED)] = None
    best_of: Annotated[Any, _only(1, None, instead=_SEED)] = None
    echo: Annotated[Any, _only(False, None)] = None
    suffix: Annotated[Any, _only(None, "")] = None
    logprobs: Annotated[Any, _only(None, False)] = None
    top_logprobs: Annotated[Any, _only(None, 0)] = None
    frequency_penalty: Annotated[Any, _only(0, None, instead=_PENALTY)] = None
    presence_penalty: Annotated[Any, _only(0, None, instead=_PENALTY)] = None
    logit_bias: Annotated[Any, _only(None, {})] = None
    tools: Annotated[Any, _only(None, [])] = None
    tool_choice: Annotated[Any, _only(None, "none")] = None
    functions: Annotated[Any, _only(None, [])] = None
    response_format: Annotated[Any, _only(None, {"type": "text"})] = None
    modalities: Annotated[Any, _only(None, ["text"])] = None


class StreamOptions(BaseModel):
    """How a stream ends: ``include_usage`` adds an event that counts its tokens."""

    include_usage: Flag = False


class GenerationRequest(_Harmless):
    """What both addresses take. ``decoder`` and ``repetition_penalty`` are ours, ``top_k`` and ``min_p`` vLLM's too."""

    model: Any = None
    max_tokens: Any = None  # checked where the room in the context is known; chat has two names for it
    temperature: Annotated[Number, _within(lambda v: 0.0 <= v <= 2.0, "0 (greedy) to 2")] = None
    repetition_penalty: Annotated[Number, _within(lambda v: v > 0.0, "above 0")] = None
    decoder: Annotated[str | None, BeforeValidator(_decoder)] = None
    stream_options: Annotated[StreamOptions, BeforeValidator(_stream_options)] = StreamOptions()
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    top_p: Number = None
    top_k: Annotated[int | None, _whole(0)] = None
    min_p: Number = None
    seed: Annotated[int | None, _whole()] = None
    stream: Flag = False


class CompletionRequest(GenerationRequest):
    """A request to ``/v1/completions``. ``prompt``: a text, or token ids, or a list with one of either."""

    prompt: Any = None


class ChatRequest(GenerationRequest):
    """A request to ``/v1/chat/completions``."""

    messages: Annotated[list[dict[str, str]], BeforeValidator(_turns)] = []
    max_completion_tokens: Any = None


R = TypeVar("R", bound=GenerationRequest)


def read_json(body: bytes) -> dict[str, Any]:
    """The body as an object. Raises :class:`Refusal` (400)."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"the body is a JSON {type(found).__name__}, not an object")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = str(error.object)[error.start : error.start + 1]
        raise Refusal(400, f"the body holds {half!r}, which is no character: send whole ones") from None
    return found


def read_request(form: type[R], body: Mapping[str, Any]) -> R:
    """The body as a request. Raises :class:`Refusal` (400) for the first thing that is wrong with it."""
    try:
        return form.model_validate(dict(body))
    except ValidationError as failed:
        errors = failed.errors(include_url=False, include_input=False)
    first = min(errors, key=lambda error: error["type"] not in ("extra_forbidden", _UNSUPPORTED))
    name = str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        known = [field for field in form.model_fields if field not in _Harmless.model_fields]
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {close[0]}?" if close else "leave it out"
        raise Refusal(400, f"unknown field {name[:60]!r}: {remedy}", param=name[:60])
    raise Refusal(400, str(first["msg"]), param=name)
