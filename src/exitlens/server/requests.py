"""From a request's JSON to what the generation loop is asked: every field checked, none passed over in silence."""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exitlens.decoding import Decoder, Sampling, parse_decoder
from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel
from exitlens.server.limits import Limits
from exitlens.server.replies import Refusal

__all__ = ["Job", "read_chat", "read_completion", "read_json"]

# Fields that change nothing here, and fields that may be sent with the one value that changes nothing.
_IGNORED = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
_INSTEAD = {
    "n": "send the request again with another seed",
    "best_of": "send the request again with another seed",
    "frequency_penalty": "use repetition_penalty",
    "presence_penalty": "use repetition_penalty",
}
_COMMON = {
    "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "stream", "stream_options",
    "repetition_penalty", "decoder",
}  # fmt: skip
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to be generated. ``ids``: the prompt's tokens; ``new_tokens``: most to come."""

    ids: tuple[int, ...]
    decoder: Decoder
    new_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    seed: int
    penalty: float
    stream: bool
    usage: bool


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


def read_completion(lm: LayeredModel, body: Mapping[str, Any], limits: Limits, default: str) -> Job:
    """A request to ``/v1/completions``. Raises :class:`Refusal` (400)."""
    _fields(body, _COMMON | {"prompt"})
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        ids = lm.encode(prompt)
    elif isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
        ids = prompt
        if not all(0 <= i < lm.vocab_size for i in ids):
            raise Refusal(400, f"prompt has token ids outside 0..{lm.vocab_size - 1}", param="prompt")
    elif isinstance(prompt, list) and prompt:
        raise Refusal(400, f"{len(prompt)} prompts in one request: send one request a prompt", param="prompt")
    else:
        raise Refusal(400, "prompt is missing: give a text or a list of token ids", param="prompt")
    return _job(lm, body, limits, default, ids, body.get("max_tokens"), 16)


def read_chat(lm: LayeredModel, body: Mapping[str, Any], limits: Limits, default: str) -> Job:
    """A request to ``/v1/chat/completions``. Raises :class:`Refusal` (400)."""
    _fields(body, _COMMON | {"messages", "max_completion_tokens"})
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages is missing or empty: give a list of {role, content}", param="messages")
    turns = [_turn(i, message) for i, message in enumerate(messages)]
    if not getattr(lm.tokenizer, "chat_template", None):
        raise Refusal(400, f"{lm.name} has no chat template: use /v1/completions", param="messages")
    from jinja2 import TemplateError

    try:
        made = lm.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
    except (TemplateError, ValueError, TypeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise Refusal(400, f"the chat template of {lm.name} refuses these messages: {line}", param="messages") from None
    ids = list(made["input_ids"] if hasattr(made, "keys") else made)
    asked = body.get("max_completion_tokens")
    return _job(lm, body, limits, default, ids, body.get("max_tokens") if asked is None else asked, None)


def _turn(i: int, message: Any) -> dict[str, str]:
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        raise Refusal(400, f"{where} is not an object with role and content", param="messages")
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if role not in _ROLES:
        raise Refusal(400, f"{where} has role {role!r}: use {', '.join(_ROLES)}", param="messages")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise Refusal(400, f"{where} holds something other than text: only text is read", param="messages")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Refusal(400, f"{where} has no content: give a text", param="messages")
    return {"role": role, "content": content}


def _fields(body: Mapping[str, Any], known: set[str]) -> None:
    for name, value in body.items():
        if name in _ONLY:
            if not any(type(value) is type(one) and value == one for one in _ONLY[name]):
                # 0 and 0.0 are the same wish
                if isinstance(value, float) and value in [v for v in _ONLY[name] if type(v) is int]:
                    continue
                shown = json.dumps(value)[:60]
                raise Refusal(400, f"{name}={shown} is not supported: {_INSTEAD.get(name, 'leave it out')}", param=name)
        elif name not in known and name not in _IGNORED:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "leave it out"
            raise Refusal(400, f"unknown field {name[:60]!r}: {remedy}", param=name[:60])


def _job(
    lm: LayeredModel,
    body: Mapping[str, Any],
    limits: Limits,
    default: str,
    ids: list[int],
    asked: Any,
    usual: int | None,
) -> Job:
    if not ids:
        raise Refusal(400, "the prompt is empty: there is nothing to continue", param="prompt")
    most = min(x for x in (limits.prompt_tokens, lm.context, 1 << 30) if x is not None)
    if len(ids) > most:
        raise Refusal(400, f"the prompt has {len(ids)} tokens, at most {most} are taken", "context_length_exceeded")
    room = limits.new_tokens if lm.context is None else min(limits.new_tokens, lm.context - len(ids))
    if asked is None:
        new = room if usual is None else min(usual, max(room, 1))
    else:
        new = _whole(asked, "max_tokens", 1)
        if new > limits.new_tokens:
            raise Refusal(400, f"max_tokens={new} is above {limits.new_tokens}, the most this server generates")
    if new < 1 or new > room:
        raise Refusal(
            400,
            f"a prompt of {len(ids)} tokens leaves room for {max(room, 0)} in the context of {lm.context}, "
            f"not for {max(new, 1)}: shorten it or lower max_tokens",
            "context_length_exceeded",
        )
    temperature = _number(body, "temperature", 1.0)
    if not 0.0 <= temperature <= 2.0:
        raise Refusal(400, f"temperature={temperature} is out of range: 0 (greedy) to 2", param="temperature")
    penalty = _number(body, "repetition_penalty", 1.0)
    if not penalty > 0.0:
        raise Refusal(400, f"repetition_penalty={penalty} is out of range: above 0", param="repetition_penalty")
    decoder = body.get("decoder")
    if decoder is not None and not isinstance(decoder, str):
        raise Refusal(400, f"decoder={json.dumps(decoder)[:60]} is not a text such as 'dola:high'", param="decoder")
    seed = body.get("seed")
    top_k = body.get("top_k")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refusal(400, "stream_options is not an object", param="stream_options")
    try:
        return Job(
            ids=tuple(ids),
            decoder=parse_decoder(default if decoder is None else decoder),
            new_tokens=new,
            stop=_stops(body.get("stop")),
            sampling=Sampling(
                temperature=temperature,
                top_p=_number(body, "top_p", 1.0),
                top_k=0 if top_k is None else _whole(top_k, "top_k", 0),
                min_p=_number(body, "min_p", 0.0),
            ),
            seed=secrets.randbelow(1 << 62) if seed is None else _whole(seed, "seed", None),
            penalty=penalty,
            stream=_flag(body, "stream"),
            usage=_flag(options, "include_usage"),
        )
    except InputError as error:
        raise Refusal(400, str(error)) from None


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise Refusal(400, "stop is not a text or a list of texts", param="stop")
    if len(stops) > 16 or any(len(stop) > 200 for stop in stops):
        raise Refusal(400, "stop holds too much: at most 16 texts of 200 characters", param="stop")
    return tuple(stops)


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1e30:
        raise Refusal(400, f"{name}={json.dumps(value)[:60]} is not a number", param=name)
    return float(value)


def _whole(value: Any, name: str, least: int | None) -> int:
    if type(value) is not int or abs(value) > 1 << 63:
        raise Refusal(400, f"{name}={json.dumps(value)[:60]} is not a whole number", param=name)
    if least is not None and value < least:
        raise Refusal(400, f"{name}={value} is out of range: at least {least}", param=name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, f"{name}={json.dumps(value)[:60]} is neither true nor false", param=name)
    return bool(value)
