"""How probable a decoder finds given continuations: for multiple choice, and for other people's harnesses.

What all texts begin with is run once; so is what the answers of one question share. The answers then go side by side,
those of one question beside those of others of like length, padded on the right, where nothing sees the padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.arguments import as_numbers, wrong_kind
from exitlens.decoding.contexts import open_contexts
from exitlens.decoding.contrast import BoundDecoder, Decoder, Vanilla
from exitlens.errors import ContextError, InputError
from exitlens.models.native.runner import logits_of
from exitlens.models.protocol import LayeredModel

_T = TypeVar("_T")

__all__ = ["FLOOR", "ContinuationScorer", "Scored", "score"]

FLOOR = -1000.0
"""The least that a token counts, above all a filtered one, as in the published code: such a sum stays a number."""

_BLOCK_BYTES = 64 << 20  # logits of all layers that are held at once
_AHEAD = 4  # contexts that are run together, in batches: enough of their continuations to find some of equal length


@dataclass(frozen=True, slots=True)
class Scored:
    """One continuation: its score at each token ``[tokens]`` (float64), and whether each was the decoder's choice."""

    logprobs: NDArray[np.float64]
    greedy: bool

    @property
    def total(self) -> float:
        """The sum over the tokens."""
        return float(self.logprobs.sum())


class ContinuationScorer:
    """Scores continuations of contexts that all begin with ``shared`` token ids (there may be none).

    ``post_softmax``: log-probabilities of the decoder's own distribution (the softmax of its scores). Otherwise the
    scores themselves, of whatever size they are (for DoLa ``log p − log q``); vanilla gives log-probabilities either
    way. Filtered tokens count :data:`FLOOR`. The filter comes before the softmax, except for DoLa with
    ``choice=reference``, where it comes after it, as in the published evaluation.
    """

    def __init__(
        self,
        lm: LayeredModel,
        decoder: str | Decoder = "vanilla",
        *,
        shared: Sequence[int] = (),
        post_softmax: bool = True,
    ) -> None:
        self.lm = lm
        self._scores = BoundDecoder(lm, decoder, scoring=True)
        self.decoder = self._scores.decoder
        self.shared = tuple(shared)
        self._layers = sorted({*self._scores.early, lm.n_layers})
        self._softmax = post_softmax or isinstance(self.decoder, Vanilla)
        self._contexts = open_contexts(lm, self.shared, self._layers)
        self._logits = logits_of(lm)
        per_row = 4 * lm.vocab_size * (len(self._layers) + 3)
        self._block = max(1, _BLOCK_BYTES // per_row)

    @torch.no_grad()
    def score(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 16) -> list[Scored]:
        """One :class:`Scored` for each ``(context ids, continuation ids)``; contexts begin with ``shared``.

        Requests of equal context are run over one pass of it; ``batch_size`` rows go at a time. Raises
        :class:`InputError` for an empty context or continuation, :class:`ContextError` for one that does not fit.
        """
        p = len(self.shared)
        groups: dict[tuple[int, ...], list[int]] = {}
        for at, (context, continuation) in enumerate(requests):
            self._check(context, continuation)
            groups.setdefault(tuple(context), []).append(at)
        out: list[Scored | None] = [None] * len(requests)
        alone: list[int] = []
        held: list[tuple[int, ...]] = []
        for key, members in groups.items():
            if len(members) == 1 or len(key) - p < 2:
                alone += members
            else:
                held.append(key)
        held.sort(key=len)
        for keys in _portions(held, groups, _AHEAD * batch_size if self._contexts.many else 1):
            # The context's last token goes with each answer, since its logits choose the answer's first token.
            begun = self._contexts.hold([key[p:-1] for key in keys])
            asked = [(i, number) for number, key in enumerate(keys) for i in groups[key]]
            asked.sort(key=lambda pair: -len(requests[pair[0]][1]))
            for part in _cut(asked, batch_size):
                pairs = [((keys[number][-1],), requests[i][1]) for i, number in part]
                states = begun.run([number for _, number in part], _texts(pairs))
                self._rows(pairs, [i for i, _ in part], states, out)
        alone.sort(key=lambda i: -len(requests[i][0]) - len(requests[i][1]))
        for rows in _cut(alone, batch_size):
            rest = [(requests[i][0][p:], requests[i][1]) for i in rows]
            self._rows(rest, rows, self._contexts.run(_texts(rest)), out)
        return [scored for scored in out if scored is not None]

    def _check(self, context: Sequence[int], continuation: Sequence[int]) -> None:
        if tuple(context[: len(self.shared)]) != self.shared or len(context) <= len(self.shared):
            raise InputError("a context must begin with the shared token ids and go on after them")
        if not continuation:
            raise InputError("a continuation is empty: there is nothing to score")
        limit = self.lm.context
        # The last token is only looked up, never run.
        if limit is not None and len(context) + len(continuation) - 1 > limit:
            raise ContextError(
                f"a context of {len(context)} tokens and a continuation of {len(continuation)} do not fit the context "
                f"of {limit} of {self.lm.name}: shorten the prompt"
            )

    def _rows(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        rows: Sequence[int],
        hidden: dict[int, Tensor],
        out: list[Scored | None],
    ) -> None:
        """Put into ``out`` what ``hidden``, the states of each row's text, says of its continuation."""
        row, column, target = [], [], []
        for i, (rest, continuation) in enumerate(pairs):
            for k, token in enumerate(continuation):
                row.append(i)
                column.append(len(rest) - 1 + k)
                target.append(token)
        device = self.lm.device
        where = torch.tensor(row, device=device), torch.tensor(column, device=device)
        wanted = {layer: h[where] for layer, h in hidden.items()}
        values, best = self._values(wanted, torch.tensor(target, device=device))
        at = 0
        for i, (_, continuation) in zip(rows, pairs, strict=True):
            n = len(continuation)
            out[i] = Scored(values[at : at + n], bool(best[at : at + n].all()))
            at += n

    def _values(self, hidden: dict[int, Tensor], targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        lm = self.lm
        values, best = [], []
        for a in range(0, len(targets), self._block):
            b = slice(a, a + self._block)
            final = self._logits(hidden[lm.n_layers][b], lm.n_layers).float()
            scored = self._scores.scores(final, {j: h[b] for j, h in hidden.items()})
            scores, late = scored.scores, scored.late_filter
            if self._softmax:
                scores = scores.log_softmax(-1)
            if late is not None:
                scores = scores.masked_fill(~late, -torch.inf)
            best.append((scores.argmax(-1) == targets[b]).cpu().numpy())
            found = scores.gather(-1, targets[b, None]).squeeze(-1)
            values.append(found.clamp_min(FLOOR).cpu().double().numpy())
        return np.concatenate(values), np.concatenate(best)


def _cut(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[a : a + size] for a in range(0, len(items), size)]


def _texts(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[int]]:
    """What is run of each pair: the last token is only looked up."""
    return [[*rest, *continuation][:-1] for rest, continuation in pairs]


def _portions(
    keys: Sequence[tuple[int, ...]], groups: dict[tuple[int, ...], list[int]], most: int
) -> list[list[tuple[int, ...]]]:
    """Contexts to be run together: no more than have ``most`` continuations, but one at least."""
    portions: list[list[tuple[int, ...]]] = []
    count = most
    for key in keys:
        if count + len(groups[key]) > most:
            portions.append([])
            count = 0
        portions[-1].append(key)
        count += len(groups[key])
    return portions


def score(
    lm: LayeredModel,
    prompt: str | Sequence[int],
    continuations: Sequence[str | Sequence[int]] | str,
    decoder: str | Decoder = "vanilla",
    post_softmax: bool = True,
    *,
    batch_size: int = 16,
) -> list[NDArray[np.float64]]:
    """How probable texts are after a prompt, token by token.

    Args:
        lm: The model.
        prompt: A text, or token ids taken as they are.
        continuations: What may follow, each a text (with the space before it, if there is to be one) or token ids.
        decoder: Whose distribution is asked, in the grammar of :func:`~exitlens.decoding.parse_decoder`.
        post_softmax: Log-probabilities of the decoder's distribution [nats]; otherwise its scores themselves.
        batch_size: Continuations in one pass.

    Returns:
        One array ``[tokens]`` for each continuation; its sum is the log-probability of the whole.

    Raises:
        InputError: An empty prompt or continuation, or an unknown decoder.
        ContextError: Prompt and continuation do not fit the model's context.
    """
    context = lm.encode(prompt) if isinstance(prompt, str) else as_numbers(prompt, "the prompt's token ids")
    if isinstance(continuations, str):
        continuations = [continuations]
    elif not isinstance(continuations, Iterable):
        raise wrong_kind("the continuations", continuations, "give texts, or lists of token ids")
    follow: list[Sequence[int]] = []
    for each in continuations:
        if not isinstance(each, str):
            follow.append(as_numbers(each, "a continuation's token ids"))
        elif isinstance(prompt, str) and (whole := lm.encode(prompt + each))[: len(context)] == context:
            follow.append(whole[len(context) :])  # tokenised together, as it would have been written
        else:
            follow.append(lm.encode(each, special=False))
    scorer = ContinuationScorer(lm, decoder, post_softmax=post_softmax)
    return [s.logprobs for s in scorer.score([(context, ids) for ids in follow], batch_size=batch_size)]
