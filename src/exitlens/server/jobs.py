"""One request as work: prompts, choices, what is generated, and what comes back piece by piece."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from exitlens.decoding import Decoder, Generation, Sampling, parse_decoder, stream
from exitlens.errors import InputError
from exitlens.models.protocol import LayeredModel
from exitlens.server.limits import Limits
from exitlens.server.logprobs import TokenLogprob, token_logprobs
from exitlens.server.prompts import chat_ids, completion_ids
from exitlens.server.replies import Refusal
from exitlens.server.schema import ChatRequest, CompletionRequest, Request

__all__ = ["Answer", "Job", "Piece", "Usage"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of choice ``index`` as it comes."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice, whole. ``finish``: ``stop`` or ``length``."""

    index: int
    text: str
    finish: str
    tokens: int
    logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class Usage:
    """Tokens read and written, over all prompts and choices."""

    prompt: int = 0
    written: int = 0

    def as_json(self) -> dict[str, int]:
        """As both interfaces write it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
        }


@dataclass(frozen=True, slots=True)
class _Settings:
    decoder: Decoder
    sampling: Sampling
    stops: tuple[str, ...]
    penalty: float
    seed: int


class Job:
    """The work of one request; :meth:`run` belongs into the worker's thread, where tokenizer and model are."""

    def __init__(
        self, lm: LayeredModel, request: Request, limits: Limits, default: str, generation_config: str | None = None
    ) -> None:
        """Check what needs neither tokenizer nor model. Raises :class:`Refusal` (400)."""
        self._lm, self._request, self._limits = lm, request, limits
        self._generation_config = generation_config
        self.top = request.top_logprobs_wanted
        asked = request.asked_tokens
        self._echo = isinstance(request, CompletionRequest) and bool(request.echo)
        least = 0 if self._echo else 1  # with echo, 0 scores the prompt alone
        if asked is not None and asked < least:
            raise Refusal(400, f"max_tokens={asked} is out of range: at least {least}, or -1 for all that fits")
        if asked is not None and asked > limits.new_tokens:
            raise Refusal(400, f"max_tokens={asked} is above {limits.new_tokens}, the most this server generates")
        try:
            self._settings = _Settings(
                decoder=parse_decoder(default if request.decoder is None else request.decoder),
                sampling=Sampling(
                    temperature=1.0 if request.temperature is None else float(request.temperature),
                    top_p=1.0 if request.top_p is None else float(request.top_p),
                    top_k=max(0, request.top_k or 0),  # -1 is every token, as 0 is
                    min_p=0.0 if request.min_p is None else float(request.min_p),
                ),
                stops=request.stops,
                penalty=1.0 if request.repetition_penalty is None else float(request.repetition_penalty),
                seed=secrets.randbelow(1 << 62) if request.seed is None else request.seed,
            )
        except InputError as error:
            raise Refusal(400, str(error)) from None
        if self.top is not None and self._settings.decoder.name != "vanilla":
            raise Refusal(
                400,
                f"logprobs are the model's own and not those of decoder {self._settings.decoder.name!r}: leave them "
                "out, use decoder 'vanilla', or score with exitlens lm-eval",
                param="logprobs",
            )
        self.usage = Usage()

    def run(self, alive: Callable[[], bool]) -> Iterator[Piece | Answer]:
        """Pieces and answers, choice by choice; ends early when ``alive`` says no. Raises :class:`Refusal`."""
        index = 0
        for ids, new in self.prompts():
            self.usage.prompt += len(ids)
            for choice in range(self._request.n or 1):
                if not alive():
                    return
                yield from self._choice(index, ids, new, self._settings.seed + choice, alive)
                index += 1

    def prompts(self) -> list[tuple[list[int], int]]:
        """Token ids of each prompt, and how many tokens its answer may have. Raises :class:`Refusal`."""
        request, lm = self._request, self._lm
        most = min(x for x in (self._limits.prompt_tokens, lm.context, 1 << 30) if x is not None)
        if isinstance(request, CompletionRequest):
            prompts = completion_ids(lm, request, most)
        else:
            assert isinstance(request, ChatRequest)
            prompts = [chat_ids(lm, request, most)]
        return [(ids, self._room(len(ids), most)) for ids in prompts]

    def options(self, new: int, seed: int | None = None) -> dict[str, Any]:
        """The request's settings as the generation loop takes them, for at most ``new`` tokens."""
        settings = self._settings
        return {
            "decoder": settings.decoder,
            "max_new_tokens": new,
            "stop": settings.stops,
            "repetition_penalty": settings.penalty,
            "sampling": settings.sampling,
            "generation_config": self._generation_config,
            "seed": settings.seed if seed is None else seed,
        }

    def _room(self, length: int, most: int) -> int:
        """Tokens to generate after a prompt of ``length``; raises :class:`Refusal` where it does not fit."""
        lm, limits = self._lm, self._limits
        if not length:
            raise Refusal(400, "the prompt is empty: there is nothing to continue", param="prompt")
        if length > most:
            raise Refusal(400, f"the prompt has {length} tokens, at most {most} are taken", "context_length_exceeded")
        room = limits.new_tokens if lm.context is None else min(limits.new_tokens, lm.context - length)
        asked, usual = self._request.asked_tokens, type(self._request).usual_tokens
        unsaid = "max_tokens" not in self._request.model_fields_set
        new = asked if asked is not None else min(usual, max(room, 1)) if usual is not None and unsaid else room
        if (new < 1 and not self._echo) or new > room:
            raise Refusal(
                400,
                f"a prompt of {length} tokens leaves room for {max(room, 0)} in the context of {lm.context}, "
                f"not for {max(new, 1)}: shorten it or lower max_tokens",
                "context_length_exceeded",
            )
        return new

    def _choice(
        self, index: int, ids: list[int], new: int, seed: int, alive: Callable[[], bool]
    ) -> Iterator[Piece | Answer]:
        lm = self._lm
        begun = lm.decode(ids) if self._echo else ""
        if begun:
            yield Piece(index, begun)
        if new == 0:
            yield Answer(index, begun, "length", 0, self._scored(ids, (), None))
            return
        try:
            for piece in stream(lm, ids, alive=alive, **self.options(new, seed)):
                if isinstance(piece, Generation):
                    self.usage.written += len(piece.token_ids)
                    finish = "length" if piece.finish == "length" else "stop"
                    scored = self._scored(ids, piece.token_ids, piece.finish)
                    yield Answer(index, begun + piece.text, finish, len(piece.token_ids), scored)
                else:
                    yield Piece(index, piece)
        except InputError as error:
            raise Refusal(400, str(error)) from None

    def _scored(self, ids: list[int], new: tuple[int, ...], finish: str | None) -> list[TokenLogprob] | None:
        """Log-probabilities of what the client sees.

        With ``echo`` the token that ended the text is listed too: whoever scores a prompt through it (an evaluation
        harness) counts on one generated token after it.
        """
        if self.top is None:
            return None
        first = 0 if self._echo else len(ids)
        end = list(self._lm.eos_ids)[:1] if self._echo and finish == "eos" else []
        shown = [*ids, *new, *end]
        if first == len(shown):
            return []
        return token_logprobs(self._lm, shown, first, self.top)
