"""What the layers said while answers were written, as the same kind of trace that reading a text gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitlens.arguments import wrong_kind
from exitlens.decoding.generation import Generation
from exitlens.errors import InputError
from exitlens.lenses import Trace
from exitlens.lenses.statistics import missing
from exitlens.models.protocol import LayeredModel

__all__ = ["trace_answer", "trace_answers"]


def trace_answer(answer: Generation) -> Trace:
    """:func:`trace_answers` of one answer, by the texts that it holds itself: no model is needed, and none is named."""
    return _traced([answer], lambda i: answer.vocabulary.get(i, ""), "")


def trace_answers(lm: LayeredModel, answers: Sequence[Generation]) -> Trace:
    """A trace of answers that were generated with ``read=...``, without another pass.

    A trace's position describes what the layers predict *after* its token. So each text here is the prompt's last token
    and then the answer's: position i is what token i + 1 was chosen from, and ``logprob`` and ``rank`` are that
    token's, as in a trace of prompt and answer from the prompt's last token on. After the last token nothing was
    chosen: that position holds NaN (−1, False).

    Args:
        lm: The model that generated them.
        answers: Answers of :func:`exitlens.generate`, all with the same ``read``, layers and lens.

    Returns:
        A :class:`~exitlens.lenses.Trace`; its arrays are ``[answers, layers, positions, …]``.

    Raises:
        InputError: No answers, answers that were not read, or that were read in different ways.
    """
    return _traced(answers, lm.token, lm.name)


def _traced(answers: Sequence[Generation], text_of: Callable[[int], str], model: str) -> Trace:
    if not answers:
        raise InputError("no answers were given: there is nothing to trace")
    first = answers[0]
    for i, answer in enumerate(answers):
        if not isinstance(answer, Generation):
            raise wrong_kind(f"answer {i}", answer, "give what generate returned")
        if not answer.read_layers:
            raise InputError(f"answer {i} was not read: ask generate for it with read=('entropy', ...)")
        if (answer.read_layers, answer.read_lens) != (first.read_layers, first.read_lens):
            raise InputError(f"answers 0 and {i} were read at other layers or through other lenses: trace them apart")
    known = next((answer.reads for answer in answers if answer.reads), None)
    if known is None:
        raise InputError("all answers are empty: there is nothing to trace")
    positions = 1 + max(len(answer.token_ids) for answer in answers)
    values: dict[str, NDArray[Any]] = {}
    for name, example in known.items():
        shape = (len(answers), len(example), positions, *example.shape[2:])
        values[name] = np.full(shape, missing(example.dtype.kind), dtype=example.dtype)
        for i, answer in enumerate(answers):
            if answer.reads:
                values[name][i, :, : len(answer.token_ids)] = answer.reads[name]
    ids = tuple((answer.prompt_ids[-1], *answer.token_ids) for answer in answers)
    words = tuple(tuple(text_of(token) for token in text) for text in ids)
    vocabulary = {i: text for answer in answers for i, text in answer.vocabulary.items()}
    return Trace(
        values, first.read_layers, first.read_lens, model, ids, words,
        extra={"source": "answers"}, vocabulary=vocabulary,
    )  # fmt: skip
