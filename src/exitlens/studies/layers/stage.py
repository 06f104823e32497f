"""The layer study: what every layer would have answered, as the probability of each choice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from exitlens.errors import InputError
from exitlens.layer_range import Layers, resolve_layers
from exitlens.lenses.lens import Lens, as_lens, lens_name
from exitlens.lenses.read_hidden import readout
from exitlens.models.forward import Batch, passes
from exitlens.models.protocol import LayeredModel
from exitlens.studies.layers.choices import ChoicePlan, Rule, plan_choices, spellings
from exitlens.studies.layers.records import LookRecord

__all__ = ["LayersStage", "check_layers", "pick_interesting"]


@dataclass(frozen=True)
class LayersStage:
    """Probability of each choice and the top tokens, at each layer, through each lens.

    Tables: ``layers`` (one row a question, lens, layer, choice) and ``layers_top`` (one row a rank; the token after the
    prompt and after what all choices begin with). A record without choices gives rows in ``layers_top`` only.
    """

    name: ClassVar[str] = "layers"
    version: ClassVar[int] = 2  # spellings of a choice are summed

    lenses: tuple[str | Lens, ...] = ("logit",)
    layers: tuple[int, ...] | str = "all"
    rule: Rule = "auto"
    top_k: int = 5

    def settings(self) -> dict[str, Any]:
        """See :class:`exitlens.runs.engine.Stage`."""
        return {
            "lenses": tuple(as_lens(lens).identity for lens in self.lenses),
            "layers": self.layers,
            "rule": self.rule,
            "top_k": self.top_k,
        }

    def identify(self, record: LookRecord) -> Any:
        """See :class:`exitlens.runs.engine.Stage`."""
        return [record.id, record.question, record.prompt, record.choices, record.correct]

    def run(self, lm: LayeredModel, batch: Sequence[LookRecord]) -> dict[str, pd.DataFrame]:
        """See :class:`exitlens.runs.engine.Stage`. Raises InputError for choices that collide, ContextError."""
        layers = check_layers(lm, self.layers)
        found = [_found(lm, record, self.rule, len(self.lenses), len(layers)) for record in batch]
        reads = [read for place, each in enumerate(found) for read in _reads(place, each)]
        needed = min(read.first for read in reads)
        for part in passes(lm, [read.text for read in reads], layers=layers, positions="all", needed=needed):
            self._read(lm, part, reads, found)
        return {
            "layers": _frame([row for r, f in zip(batch, found, strict=True) for row in self._rows(lm, r, f, layers)]),
            "layers_top": _frame(
                [row for r, f in zip(batch, found, strict=True) for row in self._tops(lm, r, f, layers)]
            ),
        }

    def _read(self, lm: LayeredModel, part: Batch, reads: Sequence[_Read], found: Sequence[_Found]) -> None:
        """One readout per lens for all positions of a batch that predict a choice's token."""
        mine = [reads[i] for i in part.index]
        hidden = {
            j: torch.cat([h[row, read.first - part.start :] for row, read in enumerate(mine)])
            for j, h in part.hidden.items()
        }
        widest = max(len(targets) for read in mine for targets in read.targets)
        padded = [[*targets, *([-1] * (widest - len(targets)))] for read in mine for targets in read.targets]
        targets = torch.tensor(padded, device=lm.device)
        for lens_index, lens in enumerate(self.lenses):
            out = readout(lm, hidden, lens=lens, stats=("logprob", "top_k"), targets=targets, top_k=self.top_k)
            log_p = out["logprob"].double().cpu().numpy()
            ids, probabilities = out["top_ids"].cpu().numpy(), out["top_logprobs"].double().exp().cpu().numpy()
            end = 0
            for read in mine:
                begin, end = end, end + len(read.targets)
                here = found[read.owner]
                if read.choice is None:
                    # p(choice) = Σ p(token) over its spellings; the tokens lie side by side in the columns.
                    stops = np.cumsum([len(tokens) for tokens in here.tokens])
                    for choice, (stop, tokens) in enumerate(zip(stops, here.tokens, strict=True)):
                        columns = log_p[:, begin, stop - len(tokens) : stop]
                        here.scores[lens_index, :, choice] = np.logaddexp.reduce(columns, axis=1)
                else:
                    here.scores[lens_index, :, read.choice] = log_p[:, begin:end, 0].sum(axis=1)
                here.tops.setdefault(lens_index, (ids[:, begin], probabilities[:, begin]))

    def _rows(
        self, lm: LayeredModel, record: LookRecord, found: _Found, layers: Sequence[int]
    ) -> Iterator[dict[str, Any]]:
        correct = record.correct or (False,) * len(record.choices)
        spelt = [json.dumps([lm.token(t) for t in tokens], ensure_ascii=False) for tokens in found.tokens]
        apart = _disjoint(found.plan.targets)
        for lens_index, lens in enumerate(self.lenses):
            share = _softmax(found.scores[lens_index])
            probability = np.exp(found.scores[lens_index])
            mass = probability[:, apart].sum(axis=1)
            for row, layer in enumerate(layers):
                for column, choice in enumerate(record.choices):
                    yield {
                        "question_id": record.id,
                        "question": record.question,
                        "lens": lens_name(lens),
                        "layer": layer,
                        "choice": choice,
                        "correct": bool(correct[column]),
                        "rule": found.plan.rule,
                        "spellings": spelt[column] if spelt else "[]",
                        "probability": float(probability[row, column]),
                        "share": float(share[row, column]),
                        "mass": float(mass[row]),
                    }

    def _tops(
        self, lm: LayeredModel, record: LookRecord, found: _Found, layers: Sequence[int]
    ) -> Iterator[dict[str, Any]]:
        for lens_index, lens in enumerate(self.lenses):
            ids, probabilities = found.tops[lens_index]
            for row, layer in enumerate(layers):
                for rank in range(ids.shape[1]):
                    token = int(ids[row, rank])
                    yield {
                        "question_id": record.id,
                        "lens": lens_name(lens),
                        "layer": layer,
                        "rank": rank,
                        "token_id": token,
                        "token": lm.token(token) or f"<{token}>",
                        "probability": float(probabilities[row, rank]),
                    }


def check_layers(lm: LayeredModel, layers: Layers) -> list[int]:
    """Sorted layer numbers of this model. Raises LayerError for one out of range, InputError for bad text."""
    return sorted(resolve_layers(layers, lm.n_layers, owner=lm.name))


def pick_interesting(layers: pd.DataFrame, *, lens: str | None = None, most: int = 3) -> pd.DataFrame:
    """The most interesting correct and incorrect answers, ``most`` of each: table ``layers_picks``.

    Interest is how far the correct choices' share moves between some earlier layer and the last one, in the direction
    of the verdict: for a correct answer ``share_N - min_j share_j``, for an incorrect one ``max_j share_j - share_N``
    (a layer leaned to the truth and the model ended elsewhere). Questions whose correct choice is not known are left
    out.
    """
    picks: list[dict[str, Any]] = []
    lens = lens if lens is not None else (str(layers["lens"].iloc[0]) if len(layers) else "")
    for question_id, rows in layers[layers["lens"] == lens].groupby("question_id", sort=False):
        if not bool(rows["correct"].any()):
            continue
        last = rows[rows["layer"] == rows["layer"].max()]
        best = last.loc[last["share"].idxmax()]
        truth = rows[rows["correct"]].groupby("layer")["share"].sum().sort_index()
        final = float(truth.iloc[-1])
        verdict = "correct" if bool(best["correct"]) else "incorrect"
        picks.append(
            {
                "question_id": question_id,
                "question": best["question"],
                "verdict": verdict,
                "answer": best["choice"],
                "correct_choice": last[last["correct"]].iloc[0]["choice"],
                "interest": final - float(truth.min()) if verdict == "correct" else float(truth.max()) - final,
                "lens": lens,
            }
        )
    table = pd.DataFrame(
        picks, columns=["question_id", "question", "verdict", "answer", "correct_choice", "interest", "lens"]
    )
    table = table.sort_values(["verdict", "interest", "question_id"], ascending=[True, False, True], kind="stable")
    return table.groupby("verdict", sort=False).head(most).reset_index(drop=True)


def accuracy_by_layer(layers: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Share of questions whose top choice is correct, at each layer, with an interval by question.

    Columns: lens, layer, n, accuracy, low, high, chance (mean share of a question's choices that are correct),
    correct_share (mean share of the correct choices), mass (mean probability of all choices together).
    """
    from exitlens.stats import mean_interval

    known = layers[layers.groupby(["question_id", "lens"])["correct"].transform("any")]
    rows: list[dict[str, Any]] = []
    for (lens, layer), here in known.groupby(["lens", "layer"], sort=True):
        best = here.loc[here.groupby("question_id")["share"].idxmax()]
        hit = best["correct"].to_numpy(dtype=float)
        interval = mean_interval(hit, seed=seed)
        share = here[here["correct"]].groupby("question_id")["share"].sum()
        rows.append(
            {
                "lens": lens,
                "layer": int(str(layer)),
                "n": len(hit),
                "accuracy": interval.value,
                "low": interval.low,
                "high": interval.high,
                "chance": float(here.groupby("question_id")["correct"].mean().mean()),
                "correct_share": float(share.mean()),
                "mass": float(best["mass"].mean()),
            }
        )
    return pd.DataFrame(
        rows, columns=["lens", "layer", "n", "accuracy", "low", "high", "chance", "correct_share", "mass"]
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A text to run: positions from ``first`` on each predict one of ``targets`` (or, alone, all first tokens)."""

    owner: int
    choice: int | None
    text: tuple[int, ...]
    first: int
    targets: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _Found:
    lenses: int
    layers: int
    plan: ChoicePlan
    tokens: tuple[tuple[int, ...], ...]
    """The tokens summed for each choice; none where choices are whole sequences."""
    scores: NDArray[np.float64] = field(init=False)
    tops: dict[int, tuple[NDArray[Any], NDArray[Any]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.scores = np.zeros((self.lenses, self.layers, len(self.plan.targets)))


def _found(lm: LayeredModel, record: LookRecord, rule: Rule, lenses: int, layers: int) -> _Found:
    if record.choices:
        plan = plan_choices(lm, record.prompt, record.choices, rule)
        return _Found(lenses, layers, plan, spellings(lm, record.prompt, record.choices, plan))
    context = tuple(lm.encode(record.prompt))
    if not context:
        raise InputError(f"prompt '{record.id}' is empty: give a text")
    return _Found(lenses, layers, ChoicePlan("first-token", context, ()), ())


def _disjoint(targets: Sequence[tuple[int, ...]]) -> list[int]:
    """The choices that begin with no other choice: a sequence's probability holds all of its continuations'."""
    return [
        i for i, whole in enumerate(targets) if not any(t == whole[: len(t)] for j, t in enumerate(targets) if j != i)
    ]


def _reads(owner: int, found: _Found) -> list[_Read]:
    plan = found.plan
    first = len(plan.context) - 1
    if plan.rule == "first-token":
        together = tuple(token for tokens in found.tokens for token in tokens)
        return [_Read(owner, None, plan.context, first, (together or (0,),))]
    return [
        _Read(owner, i, (*plan.context, *target[:-1]), first, tuple((token,) for token in target))
        for i, target in enumerate(plan.targets)
    ]


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis, with the largest taken out first so that nothing overflows."""
    if scores.shape[-1] == 0:
        return scores
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return total


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows)
