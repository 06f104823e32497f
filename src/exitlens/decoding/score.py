"""How probable a decoder finds given continuations: for multiple choice, and for other people's harnesses.

What all texts begin with is run once; so is what the answers of one question share. The answers then go side by side,
padded on the right, where nothing sees the padding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.prompts import QA_PROMPT, PromptStyle, qa_prompt
from ..data.records import Question
from ..errors import ContextError, InputError
from ..models.native import KV, runner_of
from .decoders import Decoder, Vanilla
from .early import early_layers, early_logits
from .registry import parse_decoder

__all__ = ["FLOOR", "McScores", "Scored", "Scorer", "common_beginning", "mc_scores", "score_continuations"]

FLOOR = -1000.0
"""The least that a token counts, above all a filtered one, as in the published code: such a sum stays a number."""

_MIN_SHARED = 8  # a shorter common beginning costs more in copies than it saves
_BLOCK_BYTES = 128 << 20  # logits of all layers that are held at once


@dataclass(frozen=True, slots=True)
class Scored:
    """One continuation: its score at each token ``[tokens]`` (float64), and whether each was the decoder's choice."""

    logprobs: NDArray[np.float64]
    greedy: bool

    @property
    def total(self) -> float:
        """The sum over the tokens."""
        return float(self.logprobs.sum())


class Scorer:
    """Scores continuations of contexts that all begin with ``shared`` token ids (there may be none).

    ``post_softmax``: log-probabilities of the decoder's own distribution (the softmax of its scores). Otherwise the
    scores themselves, of whatever size they are (for DoLa ``log p − log q``); vanilla gives log-probabilities either
    way. Filtered tokens count :data:`FLOOR`.
    """

    def __init__(
        self, lm: Any, decoder: str | Decoder = "vanilla", *, shared: Sequence[int] = (), post_softmax: bool = True
    ) -> None:
        self.lm = lm
        self.decoder = parse_decoder(decoder)
        self.shared = tuple(shared)
        self._early = early_layers(lm, self.decoder)
        self._layers = sorted({*self._early, lm.n_layers})
        self._softmax = post_softmax or isinstance(self.decoder, Vanilla)
        self._pass = _Pass(lm, self.shared, self._layers)
        per_row = 4 * lm.vocab_size * (len(self._early) + 4)
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
        for key, members in groups.items():
            if len(members) == 1 or len(key) - p < 2:
                alone += members
                continue
            # The context's last token goes with each answer, since its logits choose the answer's first token.
            held = self._pass.extended(key[p:-1])
            members.sort(key=lambda i: -len(requests[i][1]))
            for rows in _cut(members, batch_size):
                self._rows([((key[-1],), requests[i][1]) for i in rows], rows, held, out)
        alone.sort(key=lambda i: -len(requests[i][0]) - len(requests[i][1]))
        for rows in _cut(alone, batch_size):
            self._rows([(requests[i][0][p:], requests[i][1]) for i in rows], rows, self._pass, out)
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
        pairs: list[tuple[Sequence[int], Sequence[int]]],
        rows: Sequence[int],
        held: _Pass,
        out: list[Scored | None],
    ) -> None:
        texts = [[*rest, *continuation][:-1] for rest, continuation in pairs]
        hidden = held.run(texts)
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
            final = lm.logits(hidden[lm.n_layers][b], lm.n_layers).float()
            if self._early:
                early = early_logits(lm, [hidden[j][b] for j in self._early], self._early, self.decoder)
            else:
                early = final.new_empty(0, *final.shape)
            scores = self.decoder(final, early, lm.n_layers).scores
            found = scores.gather(-1, targets[b, None]).squeeze(-1)
            best.append((scores.argmax(-1) == targets[b]).cpu().numpy())
            if self._softmax:
                found = found - scores.logsumexp(-1)
            values.append(found.clamp_min(FLOOR).cpu().double().numpy())
        return np.concatenate(values), np.concatenate(best)


class _Pass:
    """A beginning that has been run, in one row, on the native blocks or in the model's own cache."""

    def __init__(
        self, lm: Any, ids: Sequence[int], layers: Sequence[int], kv: KV | None = None, cache: Any = None, past: int = 0
    ) -> None:
        self.lm, self._layers, self._runner = lm, layers, runner_of(lm)
        self.past = past + len(ids)
        self._kv, self._cache = kv, cache
        if not ids:
            return
        tokens = torch.tensor([list(ids)], device=lm.device)
        if self._runner is not None:
            self._kv = self._copy(1, len(ids), past)
            where = self._runner.where(past, len(ids))
            self._runner.run(self._runner.embed(tokens, where), self._kv, where)
        else:
            self._cache = copy.deepcopy(cache) if cache is not None else lm.new_cache()
            self._cache = lm.forward(tokens, None, layers=(), cache=self._cache).cache

    def extended(self, ids: Sequence[int]) -> _Pass:
        """The same with ``ids`` after it."""
        return _Pass(self.lm, ids, self._layers, self._kv, self._cache, self.past) if len(ids) else self

    def run(self, texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """States ``{layer: [rows, longest, d_model]}`` of ``texts`` after the beginning, each row on its own."""
        width = max(map(len, texts))
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.tensor(list(text))
        ids = ids.to(self.lm.device)
        if self._runner is not None:
            kv = self._copy(len(texts), width, self.past)
            where = self._runner.where(self.past, width)
            return self._runner.run(self._runner.embed(ids, where), kv, where, keep=self._layers)
        if self._cache is None:
            return self.lm.forward(ids, None, layers=self._layers).hidden  # type: ignore[no-any-return]
        cache = copy.deepcopy(self._cache)
        if len(texts) > 1:
            cache.batch_repeat_interleave(len(texts))
        return self.lm.forward(ids, None, layers=self._layers, cache=cache).hidden  # type: ignore[no-any-return]

    def _copy(self, rows: int, room: int, past: int) -> KV:
        """A cache for ``rows`` rows with the first ``past`` positions filled in and ``room`` more."""
        if self._runner is None:
            raise RuntimeError("only native blocks have this cache")
        kv = self._runner.new_kv(rows, past + room)
        if self._kv is not None and past:
            for mine, theirs in zip((*kv.keys, *kv.values), (*self._kv.keys, *self._kv.values), strict=True):
                mine[:, :, :past] = theirs[:, :, :past]
        return kv


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[a : a + size] for a in range(0, len(items), size)]


def score_continuations(
    lm: Any,
    prefix_ids: Sequence[int],
    continuations_ids: Sequence[Sequence[int]],
    decoder: str | Decoder = "vanilla",
    post_softmax: bool = True,
) -> list[NDArray[np.float64]]:
    """Scores ``[tokens]`` of each continuation of one prefix, token by token; see :class:`Scorer`."""
    scorer = Scorer(lm, decoder, post_softmax=post_softmax)
    return [s.logprobs for s in scorer.score([(prefix_ids, c) for c in continuations_ids])]


@dataclass(frozen=True, slots=True)
class McScores:
    """Multiple choice, question by question: ``mc1``, ``mc2``, ``mc3`` ``[n]``, and the answers' scores.

    ``best[i]`` is one number, ``correct[i]`` and ``incorrect[i]`` one a reference answer, in the data's order.
    """

    mc1: NDArray[np.float64]
    mc2: NDArray[np.float64]
    mc3: NDArray[np.float64]
    best: NDArray[np.float64]
    correct: tuple[NDArray[np.float64], ...]
    incorrect: tuple[NDArray[np.float64], ...]
    decoder: str
    post_softmax: bool


def mc_scores(
    lm: Any,
    questions: Sequence[Question],
    decoder: str | Decoder = "vanilla",
    post_softmax: bool = True,
    *,
    style: PromptStyle | str = QA_PROMPT,
    batch_size: int = 16,
    progress: Any = None,
) -> McScores:
    """MC1, MC2 and MC3 of ``questions``: an answer's score is the sum over its tokens after ``A:``.

    The few-shot opening is run once, each question once, and a question's answers in one batch. ``progress(done,
    total)`` counts questions. Raises :class:`InputError` for a question without correct or incorrect answers.
    """
    from ..scoring.choice import choice_scores

    for question in questions:
        if not question.correct or not question.incorrect:
            raise InputError(
                f"question {question.id!r} has no {'incorrect' if question.correct else 'correct'} answers: "
                "multiple choice needs both"
            )
    contexts = [lm.encode("".join(qa_prompt(q, style))) for q in questions]
    scorer = Scorer(lm, decoder, shared=common_beginning(contexts), post_softmax=post_softmax)
    best, correct, incorrect = [], [], []
    for at, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        answers = list(dict.fromkeys((question.best, *question.correct, *question.incorrect)))
        text = "".join(qa_prompt(question, style))
        pairs = [(context, _answer_ids(lm, text, context, answer)) for answer in answers]
        found = dict(zip(answers, (s.total for s in scorer.score(pairs, batch_size=batch_size)), strict=True))
        best.append(found[question.best])
        correct.append(np.array([found[a] for a in question.correct]))
        incorrect.append(np.array([found[a] for a in question.incorrect]))
        if progress is not None:
            progress(at + 1, len(questions))
    made = choice_scores(best, correct, incorrect)
    return McScores(
        made.mc1,
        made.mc2,
        made.mc3,
        np.array(best),
        tuple(correct),
        tuple(incorrect),
        scorer.decoder.name,
        post_softmax,
    )


def _answer_ids(lm: Any, text: str, context: Sequence[int], answer: str) -> list[int]:
    """The tokens of ``" answer"`` after ``text``: those of the whole where it begins with the context's."""
    whole = lm.encode(f"{text} {answer.strip()}")
    if whole[: len(context)] == list(context):
        return list(whole[len(context) :])
    return list(lm.encode(f" {answer.strip()}", special=False))


def common_beginning(contexts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all contexts begin with, at least one token short of each; nothing when that is too little to pay."""
    if len(contexts) < 2:
        return ()
    rows = [tuple(context) for context in contexts]
    first, last = min(rows), max(rows)  # the least alike in dictionary order share what all share
    limit = min(map(len, rows)) - 1
    n = 0
    while n < limit and first[n] == last[n]:
        n += 1
    return first[:n] if n >= _MIN_SHARED else ()
