"""Scores of every decoder's answers, compared in pairs, and what each decoder costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from exitlens import stats
from exitlens.data.records import Question
from exitlens.decoding import early_layers
from exitlens.models.protocol import LayeredModel
from exitlens.scoring import TextMetric, truthfulqa_scores
from exitlens.studies.context import Answers
from exitlens.studies.decoding.columns import DECODING, PARTINGS

__all__ = ["compare", "cost_table", "partings", "score"]

COLUMNS = tuple(DECODING.columns)


def score(
    decoder: str,
    answers: Sequence[str],
    questions: Sequence[Question],
    metrics: Sequence[TextMetric],
    protocol: str = "truthfulqa",
) -> pd.DataFrame:
    """Table ``scores``: decoder, question_id, metric (``bleu_max`` …), value (missing where it is not defined)."""
    wide = truthfulqa_scores(answers, questions, metrics, protocol)
    long = wide.melt(id_vars="question_id", var_name="metric", value_name="value")
    return long.assign(decoder=decoder)[["decoder", "question_id", "metric", "value"]]


def compare(
    scores: pd.DataFrame, penalties: dict[str, float], *, protocol: str = "truthfulqa", seed: int = 0
) -> pd.DataFrame:
    """Table ``decoding``: mean of each metric with its interval, and the paired difference to the first decoder.

    ``protocol`` is the one of the text metrics; multiple choice has none.

    Questions without a value of that metric are left out for every decoder alike. The first decoder has no difference.
    """
    rows: list[dict[str, Any]] = []
    decoders = list(dict.fromkeys(scores["decoder"]))
    for metric, mine in scores.groupby("metric", sort=False):
        wide = mine.pivot(index="question_id", columns="decoder", values="value")[decoders].dropna()
        if not len(wide):
            continue
        values = wide.to_numpy(dtype=np.float64)
        least, most = _bounds(str(metric))
        means = stats.mean_intervals(values, seed=seed).within(least, most)
        first = np.repeat(values[:, :1], len(decoders), axis=1)
        gaps = stats.paired_differences(values, first, seed=seed)
        for i, decoder in enumerate(decoders):
            row: dict[str, Any] = {
                "decoder": decoder,
                "metric": metric,
                "protocol": protocol if str(metric).endswith(("_max", "_diff", "_acc")) else None,
                "n": len(wide),
                "mean": float(means.value[i]),
                "low": float(means.low[i]),
                "high": float(means.high[i]),
                "repetition_penalty": penalties.get(decoder, float("nan")),
            }
            if i:
                row |= {
                    "difference": float(gaps.value[i]),
                    "difference_low": float(np.clip(gaps.low[i], least - most, most - least)),
                    "difference_high": float(np.clip(gaps.high[i], least - most, most - least)),
                    "p": float(gaps.p[i]),
                }
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({name: np.float64 for name in COLUMNS if name not in ("decoder", "metric", "protocol", "n")})


def _bounds(metric: str) -> tuple[float, float]:
    """The least and the largest value that a score can take; endless for one that is not of ours."""
    name, _, kind = metric.partition("_")
    if metric in ("mc1", "mc2", "mc3") or kind == "acc" or (kind == "max" and name in ("bleu", "rouge")):
        return 0.0, 1.0
    return (-1.0, 1.0) if kind == "diff" and name in ("bleu", "rouge") else (-math.inf, math.inf)


def cost_table(lm: LayeredModel, made: Sequence[Answers]) -> pd.DataFrame:
    """Table ``decoding_cost``: per decoder the tokens written and the layers unembedded at each beside the last."""
    return pd.DataFrame(
        [
            {
                "decoder": a.spec.text,
                "repetition_penalty": a.spec.penalty,
                "extra_unembeddings": len(early_layers(lm, a.spec.decoder)),
                "answers": len(a.answers),
                "tokens": int(a.answers["n_tokens"].sum()),
            }
            for a in made
        ]
    )


def partings(made: Sequence[Answers], token: Callable[[int], str]) -> pd.DataFrame:
    """Table ``decoding_partings``: where each decoder's answers leave the first one's, and what its layers said there.

    Only of decoders that choose a layer. ``token`` names a token id.
    """
    first, *others = made
    found = []
    for answers in others:
        if answers.steps is None or not len(answers.steps):
            continue
        rows = []
        for question, ids in answers.token_ids.items():
            usual = first.token_ids.get(question, ())
            at = next((i for i, each in enumerate(ids) if i >= len(usual) or each != usual[i]), None)
            if at is not None:
                rows.append((question, at, token(ids[at]), token(usual[at]) if at < len(usual) else None))
        places = pd.DataFrame(rows, columns=["question_id", "position", "token", "first_token"])
        found.append(places.merge(answers.steps, on=["question_id", "position"]).assign(decoder=answers.spec.text))
    names = [field.name for field in PARTINGS.fields]
    return pd.concat(found, ignore_index=True)[names] if found else pd.DataFrame(columns=names)
