"""Log-probabilities of tokens, as OpenAI's two interfaces write them: the model's own, at the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exitlens.lenses import read_ids
from exitlens.models.protocol import LayeredModel

__all__ = ["TokenLogprob", "as_chat", "as_completion", "token_logprobs"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability given what stands before it (None: nothing does), and the likeliest instead."""

    token: str
    logprob: float | None
    top: tuple[tuple[str, float], ...]


def token_logprobs(lm: LayeredModel, ids: Sequence[int], first: int, top: int) -> list[TokenLogprob]:
    """One pass over ``ids``: the tokens from place ``first`` on, with the ``top`` likeliest at each place.

    The model's own distribution, before a decoder, a penalty or a temperature. A token that is among the likeliest
    has the very number that stands there, so that a client may compare them.

    Args:
        lm: The model.
        ids: Prompt and answer.
        first: Place of the first token wanted.
        top: How many of the likeliest at each place.

    Returns:
        One entry a token [nats]; the text's first token has no log-probability.
    """
    shown = _Names(lm)
    if len(ids) < 2:
        return [TokenLogprob(shown(i), None, ()) for i in ids[first:]]
    kept = max(1, top)
    trace = read_ids(lm, [list(ids)], layers=(lm.n_layers,), stats=("logprob", "top_k"), targets="next", top_k=kept)
    log_p, tops, values = (trace.values[name][0, 0] for name in ("logprob", "top_ids", "top_logprobs"))
    found = []
    for place in range(first, len(ids)):
        if place == 0:
            found.append(TokenLogprob(shown(ids[0]), None, ()))
            continue
        likely = {int(i): float(v) for i, v in zip(tops[place - 1], values[place - 1], strict=True)}
        own = likely.get(ids[place], float(log_p[place - 1]))
        listed = sorted(likely.items(), key=lambda pair: -pair[1])[:top]
        found.append(TokenLogprob(shown(ids[place]), own, tuple((shown(i), v) for i, v in listed)))
    return found


class _Names:
    """What a token is called: its text, or its own name where it is control or part of a character."""

    def __init__(self, lm: LayeredModel) -> None:
        self._lm = lm
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            text = self._lm.decode([token])
            # Bytes that are no character alone would all look alike.
            whole = bool(text) and "\ufffd" not in text
            self._known[token] = text if whole else str(self._lm.tokenizer.convert_ids_to_tokens(token))
        return self._known[token]


def as_completion(tokens: Sequence[TokenLogprob], top: int) -> dict[str, Any]:
    """As ``/v1/completions`` writes them. The chosen token is listed beside the likeliest, as there."""
    offsets, at = [], 0
    for one in tokens:
        offsets.append(at)
        at += len(one.token)
    return {
        "tokens": [one.token for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [
            None if one.logprob is None else {**dict(one.top), one.token: one.logprob} if top else {} for one in tokens
        ],
        "text_offset": offsets,
    }


def as_chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """As ``/v1/chat/completions`` writes them."""

    def entry(token: str, value: float | None) -> dict[str, Any]:
        return {"token": token, "logprob": value, "bytes": list(token.encode())}

    return {
        "content": [
            {**entry(one.token, one.logprob), "top_logprobs": [entry(name, value) for name, value in one.top]}
            for one in tokens
        ],
        "refusal": None,
    }
