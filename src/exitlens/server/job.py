"""What is generated for a request: its prompt as tokens, its limits against the model's context and the server's."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

from exitlens.decoding import Decoder, Sampling, parse_decoder
from exitlens.errors import InputError
from exitlens.models import LayeredModel
from exitlens.server.limits import Limits
from exitlens.server.replies import Refusal
from exitlens.server.schema import ChatRequest, CompletionRequest, GenerationRequest, whole_number

__all__ = ["Job", "job_of"]

_USUAL = 16  # new tokens of a completion that names no number, as at OpenAI


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


def job_of(lm: LayeredModel, request: CompletionRequest | ChatRequest, limits: Limits, default: str) -> Job:
    """What a request asks of this model; ``default`` is the decoder where it names none. Raises :class:`Refusal`."""
    chat = isinstance(request, ChatRequest)
    ids = _chat_ids(lm, request) if isinstance(request, ChatRequest) else _prompt_ids(lm, request.prompt)
    if not ids:
        raise Refusal(400, "the prompt is empty: there is nothing to continue", param="prompt")
    new = _new_tokens(lm, request, limits, len(ids), None if chat else _USUAL)
    try:
        return Job(
            ids=tuple(ids),
            decoder=parse_decoder(default if request.decoder is None else request.decoder),
            new_tokens=new,
            stop=request.stop,
            sampling=Sampling(
                temperature=1.0 if request.temperature is None else request.temperature,
                top_p=1.0 if request.top_p is None else request.top_p,
                top_k=request.top_k or 0,
                min_p=request.min_p or 0.0,
            ),
            seed=secrets.randbelow(1 << 62) if request.seed is None else request.seed,
            penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
            stream=request.stream,
            usage=request.stream_options.include_usage,
        )
    except InputError as error:
        raise Refusal(400, str(error)) from None


def _prompt_ids(lm: LayeredModel, prompt: Any) -> list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return list(lm.encode(prompt))
    if isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
        if not all(0 <= i < lm.vocab_size for i in prompt):
            raise Refusal(400, f"prompt has token ids outside 0..{lm.vocab_size - 1}", param="prompt")
        return prompt
    if isinstance(prompt, list) and prompt:
        raise Refusal(400, f"{len(prompt)} prompts in one request: send one request a prompt", param="prompt")
    raise Refusal(400, "prompt is missing: give a text or a list of token ids", param="prompt")


def _chat_ids(lm: LayeredModel, request: ChatRequest) -> list[int]:
    if not request.messages:
        raise Refusal(400, "messages is missing or empty: give a list of {role, content}", param="messages")
    tokenizer: Any = lm.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise Refusal(400, f"{lm.name} has no chat template: use /v1/completions", param="messages")
    from jinja2 import TemplateError

    try:
        made = tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=True)
    except (TemplateError, ValueError, TypeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise Refusal(400, f"the chat template of {lm.name} refuses these messages: {line}", param="messages") from None
    return list(made["input_ids"] if hasattr(made, "keys") else made)


def _new_tokens(lm: LayeredModel, request: GenerationRequest, limits: Limits, length: int, usual: int | None) -> int:
    """How many tokens may come; ``usual`` where the request does not say, None for as many as fit."""
    most = min(x for x in (limits.prompt_tokens, lm.context, 1 << 30) if x is not None)
    if length > most:
        raise Refusal(400, f"the prompt has {length} tokens, at most {most} are taken", "context_length_exceeded")
    room = limits.new_tokens if lm.context is None else min(limits.new_tokens, lm.context - length)
    asked = getattr(request, "max_completion_tokens", None)
    asked = request.max_tokens if asked is None else asked
    if asked is None:
        new = room if usual is None else min(usual, max(room, 1))
    else:
        try:
            new = whole_number(asked, "max_tokens", 1)
        except PydanticCustomError as error:
            raise Refusal(400, error.message(), param="max_tokens") from None
        if new > limits.new_tokens:
            raise Refusal(400, f"max_tokens={new} is above {limits.new_tokens}, the most this server generates")
    if new < 1 or new > room:
        raise Refusal(
            400,
            f"a prompt of {length} tokens leaves room for {max(room, 0)} in the context of {lm.context}, "
            f"not for {max(new, 1)}: shorten it or lower max_tokens",
            "context_length_exceeded",
        )
    return new
