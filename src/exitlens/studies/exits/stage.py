"""What every exit showed at each token of the answers: one full pass over prompt and answer, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from exitlens.exits.heads import ExitHeads
from exitlens.exits.replay_policies import Signals, signals_of
from exitlens.exits.shortlist import ExitReader
from exitlens.lenses.lens import Lens, as_lens
from exitlens.models.forward import passes
from exitlens.models.protocol import LayeredModel

__all__ = ["AnswerRecord", "ExitStage", "signals_from"]

_KINDS = ("probability", "margin", "entropy", "cosine", "patience", "classifier")


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """A question's prompt and the tokens of the answer given."""

    id: str
    prompt: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ExitStage:
    """Table ``exit_signals``: a row a token and layer (the exits, then N; a head at N is an exit).

    Step 0, the token that the prompt's own pass gives, is not there: decoding gets it at full depth anyway.
    """

    name: ClassVar[str] = "exits"
    version: ClassVar[int] = 2

    layers: tuple[int, ...]
    heads: ExitHeads | None = None
    lens: str | Lens = "logit"

    def settings(self) -> dict[str, Any]:
        """See :class:`exitlens.runs.engine.Stage`."""
        lens = as_lens(self.lens).identity
        kept = {} if lens == "logit" else {"lens": lens}  # what was kept before there were other lenses still counts
        return {"layers": self.layers, "heads": None if self.heads is None else _digest(self.heads), **kept}

    def identify(self, record: AnswerRecord) -> Any:
        """See :class:`exitlens.runs.engine.Stage`."""
        return [record.id, record.prompt, record.token_ids]

    def run(self, lm: LayeredModel, batch: Sequence[AnswerRecord]) -> dict[str, pd.DataFrame]:
        """See :class:`exitlens.runs.engine.Stage`. Raises ContextError for an answer that does not fit."""
        prompts = [lm.encode(record.prompt) for record in batch]
        texts = [[*prompt, *record.token_ids] for prompt, record in zip(prompts, batch, strict=True)]
        starts = [len(prompt) for prompt in prompts]
        reader = ExitReader(lm, self.heads, lens=self.lens)
        n = lm.n_layers
        frames: dict[int, pd.DataFrame] = {}
        needed = max(0, min(starts) - 1)
        for part in passes(lm, texts, layers=tuple(dict.fromkeys((*self.layers, n))), positions="all", needed=needed):
            for row, i in enumerate(part.index):
                begin = starts[i] - part.start
                states = {j: h[row, begin:] for j, h in part.hidden.items()}
                if not len(states[n]):
                    continue
                steps = np.arange(1, len(states[n]) + 1)
                places = begin + part.start + np.arange(len(steps))
                found = signals_of(
                    lm,
                    states,
                    np.zeros(len(steps)),
                    steps,
                    layers=self.layers,
                    reader=reader,
                    texts=[texts[i]],
                    places=places,
                )
                confidence = _final_probability(lm, states[n])
                frames[i] = _long(batch[i].id, found, confidence)
        ordered = [frames[i] for i in sorted(frames)]
        table = pd.concat(ordered, ignore_index=True) if ordered else pd.DataFrame(columns=list(_columns()))
        return {"exit_signals": table}


def signals_from(table: pd.DataFrame, n_layers: int) -> tuple[Signals, NDArray[Any], list[str]]:
    """Signals, the full model's probability of its top token ``[T]``, and the questions' ids (``question`` counts)."""
    ids = list(dict.fromkeys(table["question_id"]))
    place = {key: i for i, key in enumerate(ids)}
    # Rows of one token stand together, layers in order; N stands there twice where a head may exit at N.
    first = table.iloc[0]
    rows = int(((table["question_id"] == first["question_id"]) & (table["step"] == first["step"])).sum())
    layers = [int(j) for j in table["layer"].iloc[:rows]]
    shaped = {name: table[name].to_numpy().reshape(-1, rows).T for name in ("top", *_KINDS) if name in table}
    last = table.iloc[rows - 1 :: rows]
    values = {
        name: shaped[name][:-1].astype(np.float64)
        for name in _KINDS
        if name in shaped and not np.isnan(shaped[name][:-1].astype(np.float64)).all()
    }
    question = np.array([place[key] for key in last["question_id"]], dtype=np.int64)
    top, step = shaped["top"].astype(np.int64), last["step"].to_numpy()
    signals = Signals(tuple(layers[:-1]), n_layers, top, values, question, step)
    return signals, last["probability"].to_numpy(dtype=np.float64), ids


def _columns() -> tuple[str, ...]:
    return ("question_id", "step", "layer", "top", *_KINDS)


def _long(question_id: str, found: Signals, confidence: NDArray[Any]) -> pd.DataFrame:
    rows = len(found.layers) + 1
    columns: dict[str, Any] = {
        "question_id": [question_id] * (rows * found.tokens),
        "step": np.repeat(found.step, rows),
        "layer": np.tile([*found.layers, found.n_layers], found.tokens),
        "top": found.top.T.reshape(-1),
    }
    nothing = np.full((1, found.tokens), np.nan)
    for kind in _KINDS:
        values = found.values.get(kind, np.full((rows - 1, found.tokens), np.nan))
        last = confidence[None] if kind == "probability" else nothing
        columns[kind] = np.concatenate([values, last]).T.reshape(-1).astype(np.float64)
    return pd.DataFrame(columns)


@torch.no_grad()
def _final_probability(lm: LayeredModel, states: torch.Tensor) -> NDArray[Any]:
    out = [
        lm.logits(states[at : at + 64], lm.n_layers).float().softmax(-1).amax(-1).cpu().numpy()
        for at in range(0, len(states), 64)
    ]
    return np.concatenate(out)


def _digest(heads: ExitHeads) -> str:
    digest = hashlib.sha256()
    for tensor in heads.to_tensors()[0].values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
