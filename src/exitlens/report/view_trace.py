"""A trace as a map view: tokens across, layers up, in each cell what the layer would have said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.lenses.trace import Trace
from exitlens.report.text import shorten, visible
from exitlens.report.view_data import Values, View, quantised, view
from exitlens.report.words import counted, join

__all__ = ["MAP_STATS", "trace_view"]

MAP_STATS = ("entropy", "top_k", "margin", "logprob", "rank", "kl")  # what a map shows, as reading takes it
_PLAIN = ("entropy", "kl", "margin")


def trace_view(traces: Trace | Sequence[Trace], text: int = 0, *, title: str = "") -> View:
    """The map of one text of a trace.

    Args:
        traces: A trace, or several of the same text and layers through different lenses.
        text: Which of the trace's texts.
        title: Heading; by default the text's beginning.

    Returns:
        The view: top tokens, their probabilities (exp of ``top_logprobs``) and whichever of entropy, KL, margin, rank
        and probability of the text's next token the trace holds. Numbers have 16 bits between least and largest.

    Raises:
        InputError: No such text, traces that differ in text or layers, or nothing that a map could show.
    """
    given = [traces] if isinstance(traces, Trace) else list(traces)
    if not given:
        raise InputError("no trace was given: there is nothing to show")
    first = given[0]
    if not 0 <= text < len(first):
        raise InputError(f"text {text} is not in this trace: it holds {len(first)} (0 to {len(first) - 1})")
    for other in given[1:]:
        if (other.layers, other.token_ids) != (first.layers, first.token_ids):
            raise InputError("these traces are of different texts or layers: show them apart")
    written = first.tokens[text]
    # After the last token of an answer nothing was chosen: a map would end in a column of empty cells.
    length = max(len(written) - (first.extra.get("source") == "answers"), 1)
    tokens = written[:length]
    arrays: dict[str, Values] = {
        "lenses": _texts([each.lens for each in given]),
        "layers": np.asarray(first.layers, dtype=np.int64),
        "tokens": _texts(tokens),
    }
    if _all_hold(given, "top_ids", "top_logprobs") and all(each.vocabulary for each in given):
        arrays["top"] = np.stack([_top_texts(each, text, length) for each in given])
        arrays["top_p"] = quantised(np.exp(_stacked(given, "top_logprobs", text, length)))
    for name in _PLAIN:
        if _all_hold(given, name):
            arrays[name] = quantised(_stacked(given, name, text, length))
    after = (*written[1:], None)[:length]
    if _all_hold(given, "rank"):
        rank = _stacked(given, "rank", text, length)
        arrays |= {"next": _texts(after), "next_rank": np.where(rank < 0, np.nan, rank).astype(np.float32)}
    if _all_hold(given, "logprob"):
        arrays["next"] = _texts(after)
        arrays["next_p"] = quantised(np.exp(_stacked(given, "logprob", text, length)))
    if _all_hold(given, "pin_rank", "pin_logprob") and len({each.extra.get("pins") for each in given}) == 1:
        ids = json.loads(first.extra.get("pins", "[]"))
        arrays |= {
            "pins": _texts([first.vocabulary.get(i) for i in ids]),
            "pin_rank": _stacked(given, "pin_rank", text, length).astype(np.int64),
            "pin_p": quantised(np.exp(_stacked(given, "pin_logprob", text, length))),
        }
    if "top" not in arrays and not any(name in arrays for name in _PLAIN):
        raise InputError(f"this trace holds nothing that a map shows: read it with stats={MAP_STATS}")
    lenses = f"{join([each.lens for each in given])} lens{'es' * (len(given) > 1)}"
    heading = "".join(written).strip()
    return view(
        "map",
        arrays,
        title=title or shorten(heading, 90),
        caption=" · ".join(filter(None, [visible(first.model), lenses, counted(len(written), "token")])),
        model=first.model,
        notes=first.notes,
    )


def _all_hold(traces: Sequence[Trace], *names: str) -> bool:
    return all(name in each.values for each in traces for name in names)


def _stacked(traces: Sequence[Trace], name: str, text: int, length: int) -> NDArray[Any]:
    """``[lens, layer, position, …]`` as float64."""
    found = np.stack([np.asarray(each[name][text, :, :length], dtype=np.float64) for each in traces])
    # Of several targets a token, a map follows the first.
    return found[..., 0] if name in ("rank", "logprob") and found.ndim == 4 else found


def _top_texts(trace: Trace, text: int, length: int) -> NDArray[Any]:
    ids = trace["top_ids"][text, :, :length]
    known, places = np.unique(ids, return_inverse=True)
    texts = _texts([trace.vocabulary.get(int(i)) if i >= 0 else None for i in known])
    found: NDArray[Any] = texts[places].reshape(ids.shape)
    return found


def _texts(values: Sequence[str | None]) -> NDArray[Any]:
    out = np.empty(len(values), dtype=object)
    out[:] = list(values)
    return out
