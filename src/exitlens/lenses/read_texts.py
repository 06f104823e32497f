"""Texts → hidden states → statistics: length-sorted batches, only real positions through the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.arguments import as_count, as_id_rows, as_texts
from exitlens.errors import InputError
from exitlens.layer_range import Layers, resolve_layers
from exitlens.lenses.lens import Lens, as_lens
from exitlens.lenses.read_hidden import Readout, readout
from exitlens.lenses.statistics import missing
from exitlens.lenses.trace import Trace
from exitlens.models.forward import Window, padded, plan_windows, window_batches
from exitlens.models.protocol import LayeredModel

__all__ = ["BATCH_TOKENS", "read", "read_ids", "read_windows"]

BATCH_TOKENS = 512  # padded tokens in a forward pass


def read(
    lm: LayeredModel,
    texts: Sequence[str] | str,
    *,
    layers: Layers = "all",
    lens: str | Lens = "logit",
    stats: Sequence[str] = ("entropy",),
    targets: Literal["next"] | None = "next",
    choices: Sequence[Sequence[int]] | None = None,
    top_k: int = 5,
    reference: int | None = None,
    precision: str = "exact",
    long: Literal["refuse", "split"] = "refuse",
    overlap: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """Read texts layer by layer: statistics of each layer's distribution at every token.

    Args:
        lm: The model.
        texts: One text, or several.
        layers: Which layers, as numbers or in the grammar of :mod:`exitlens.layer_range` (``"0,8,16-20"``, ``"all"``).
        lens: How a layer is read: ``logit``, ``raw``, or a lens of this model.
        stats: Names of :data:`exitlens.lenses.STATS`, such as ``entropy`` and ``kl`` [nats].
        targets: ``next``: ``logprob`` and ``rank`` are those of each text's next token (NaN and −1 at its last).
        choices: Sets of token ids, for the statistic ``choices``.
        top_k: Tokens that the statistic ``top_k`` keeps.
        reference: The layer that ``kl``, ``jsd`` and ``tv`` compare with; None: the last.
        precision: ``exact`` (float32 products) or ``fast`` (bf16 products where the machine has them).
        long: ``split`` runs a text longer than the model's context in windows; ``refuse`` raises.
        overlap: Tokens that two windows share; None: a quarter of the context.
        batch_tokens: Tokens in one forward pass.
        memory_limit: Memory for a block of rows [bytes]; None: by the device.
        progress: Called with tokens done and tokens in all.

    Returns:
        A :class:`Trace`; its arrays are ``[texts, layers, positions, …]``.

    Raises:
        InputError: No text, an empty text, an unknown statistic or lens, or a value out of range.
        ContextError: A text longer than the model's context, with ``long="refuse"``.
        LayerError: A layer that the model does not have.
    """
    texts = as_texts(texts)
    if not texts:
        raise InputError("no text was given: give at least one")
    ids: list[list[int]] = []
    for i, text in enumerate(texts):
        if not text:
            raise InputError(f"text {i} is empty (''): give at least one character")
        found = lm.encode(text)
        if not found:
            raise InputError(f"text {i} ({text[:20]!r}) gives no tokens: give other text")
        ids.append(list(found))
    return read_ids(
        lm,
        ids,
        layers=layers,
        lens=lens,
        stats=stats,
        targets=targets,
        choices=choices,
        top_k=top_k,
        reference=reference,
        precision=precision,
        long=long,
        overlap=overlap,
        batch_tokens=batch_tokens,
        memory_limit=memory_limit,
        progress=progress,
    )


def read_ids(
    lm: LayeredModel,
    ids: Sequence[Sequence[int]],
    *,
    layers: Layers = "all",
    lens: str | Lens = "logit",
    stats: Sequence[str] = ("entropy",),
    targets: Literal["next"] | None = "next",
    choices: Sequence[Sequence[int]] | None = None,
    top_k: int = 5,
    reference: int | None = None,
    precision: str = "exact",
    long: Literal["refuse", "split"] = "refuse",
    overlap: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """As :func:`read`, of token ids. Raises :class:`InputError` for an id out of the vocabulary."""
    ids = as_id_rows(ids)
    wanted = resolve_layers(layers, lm.n_layers, owner=lm.name)
    as_count(batch_tokens, "batch_tokens")
    lens = as_lens(lens, lm)
    lens.check_layers([layer for layer in wanted if layer < lm.n_layers])
    for i, text in enumerate(ids):
        for v in text:
            if not 0 <= v < lm.vocab_size:
                raise InputError(
                    f"text {i} holds token id {v}, out of the vocabulary of {lm.name} (0..{lm.vocab_size - 1})"
                )
    lengths = [len(text) for text in ids]
    windows = plan_windows(lengths, lm.context, overlap, long=long)
    notes = (
        [f"{len(windows) - len(ids)} more windows: texts over the context were split"]
        if len(windows) > len(ids)
        else []
    )
    store = _Store(len(ids), max(lengths, default=0))
    product = torch.float32
    done = 0
    options: dict[str, Any] = {"targets": targets, "choices": choices, "top_k": top_k, "reference": reference}
    options |= {"precision": precision, "memory_limit": memory_limit, "batch_tokens": batch_tokens}
    for batch, found in read_windows(lm, ids, windows, wanted, lens=lens, stats=stats, **options):
        product = found.product
        notes += [note for note in found.notes if note not in notes]
        store.put(batch, found)
        done += sum(w.stop - w.keep for w in batch)
        if progress is not None:
            progress(done, sum(lengths))
    words = {v: lm.token(v) for text in ids for v in text}
    return Trace(
        store.arrays,
        wanted,
        lens.name,
        lm.name,
        tuple(tuple(text) for text in ids),
        tuple(tuple(words[v] for v in text) for text in ids),
        tuple(notes),
        str(product).removeprefix("torch."),
        vocabulary=_texts_of(lm, store.arrays.get("top_ids")),
    )


def _texts_of(lm: LayeredModel, ids: NDArray[Any] | None) -> dict[int, str]:
    """The text of each different token id, so that a trace can be read without its model; ids under 0 are none."""
    found = [] if ids is None else [int(v) for v in np.unique(ids) if v >= 0]
    return {v: lm.token(v) or f"<{v}>" for v in found}


def read_windows(
    lm: LayeredModel,
    ids: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    windows: Sequence[Window],
    layers: Sequence[int],
    *,
    lens: str | Lens = "logit",
    stats: Sequence[str] = ("entropy",),
    targets: Literal["next"] | None = "next",
    batch_tokens: int = BATCH_TOKENS,
    **options: Any,
) -> Iterator[tuple[list[Window], Readout]]:
    """Statistics of windows, batch by batch: those of a batch's kept positions, window after window.

    ``ids[window.text]`` are the tokens of a whole text. ``options`` are those of :func:`.read_hidden.readout`.
    """
    for batch in window_batches(windows, batch_tokens, apart=lm.rows_apart):
        hidden, following = _run(lm, ids, batch, layers)
        goal = following if targets == "next" else None
        yield batch, readout(lm, hidden, lens=lens, stats=stats, targets=goal, **options)


def _run(
    lm: LayeredModel,
    ids: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    batch: Sequence[Window],
    layers: Sequence[int],
) -> tuple[dict[int, Tensor], Tensor]:
    """Hidden states ``{layer: [real positions, d]}`` of a batch, window after window, and each one's next token."""
    tokens, mask = padded([ids[w.text][w.start : w.stop] for w in batch])
    real = mask.clone()
    following: list[int] = []
    for row, w in enumerate(batch):
        text = ids[w.text]
        real[row, : w.keep - w.start] = False
        following += [*text[w.keep + 1 : w.stop + 1], *([-1] if w.stop == len(text) else [])]
    # No mask where nothing is padded: attention is faster without one, and every model takes it.
    attention = None if bool(mask.all()) else mask.long().to(lm.device)
    with torch.no_grad():
        hidden = lm.forward(tokens.to(lm.device), attention, layers=layers).hidden
    places = real.flatten().nonzero()[:, 0]
    return {j: hidden[j].flatten(0, 1)[places.to(hidden[j].device)] for j in layers}, torch.tensor(following)


class _Store:
    """Results of batches, put back to where their tokens stand."""

    def __init__(self, texts: int, positions: int) -> None:
        self.texts, self.positions = texts, positions
        self.arrays: dict[str, NDArray[Any]] = {}

    def put(self, batch: Sequence[Window], found: Readout) -> None:
        for name, value in found.items():
            piece = value.cpu().numpy()
            if name not in self.arrays:
                shape = (self.texts, piece.shape[0], self.positions, *piece.shape[2:])
                self.arrays[name] = np.full(shape, missing(piece.dtype.kind), dtype=piece.dtype)
            at = 0
            for w in batch:
                n = w.stop - w.keep
                self.arrays[name][w.text, :, w.keep : w.stop] = piece[:, at : at + n]
                at += n
