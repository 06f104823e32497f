"""Entropy of correct and incorrect answers at every layer: means, differences, AUROC, corrected over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exitlens import stats
from exitlens.studies.entropy.columns import ENTROPY_LAYERS

__all__ = ["answer_means", "entropy_by_layer"]

COLUMNS = tuple(ENTROPY_LAYERS.columns)


def answer_means(entropy_tokens: pd.DataFrame) -> tuple[list[str], NDArray[np.int64], list[int], NDArray[np.float64]]:
    """Question ids, tokens per answer ``[n]``, layers, and mean entropy ``[n, layers]`` of each answer's tokens."""
    wide = entropy_tokens.pivot_table(index="question_id", columns="layer", values="entropy", aggfunc="mean", sort=True)
    layers = [int(layer) for layer in wide.columns]
    first = entropy_tokens[entropy_tokens["layer"] == layers[0]] if layers else entropy_tokens
    counts = first.groupby("question_id", sort=True).size().reindex(wide.index)
    tokens: NDArray[np.int64] = np.asarray(counts, dtype=np.int64)
    values: NDArray[np.float64] = np.asarray(wide, dtype=np.float64)
    return [str(i) for i in wide.index], tokens, layers, values


def entropy_by_layer(
    entropy_tokens: pd.DataFrame,
    judge: str,
    correct: dict[str, bool],
    *,
    estimators: Sequence[str] = ("per-group",),
    seed: int = 0,
) -> pd.DataFrame:
    """Table ``entropy_layers`` of one judge.

    ``correct``: verdict by question id; answers without verdict or without tokens are left out. Difference, AUROC and
    Cohen's d are incorrect against correct (AUROC above ½: incorrect answers have the higher entropy). p-values are
    corrected over the layers. Where a group is empty the numbers are missing.
    """
    ids, tokens, layers, values = answer_means(entropy_tokens)
    kept = [i for i, question in enumerate(ids) if question in correct]
    is_correct = np.array([correct[ids[i]] for i in kept], dtype=bool)
    values, tokens = values[kept], tokens[kept]
    if not kept:
        return pd.DataFrame(columns=list(COLUMNS))
    incorrect = ~is_correct
    auroc = stats.auroc_intervals(values, incorrect)
    d = stats.cohens_d(values, incorrect)
    adjusted = stats.adjusted_difference(values, incorrect, tokens.astype(np.float64))
    frames = []
    for estimator in estimators:
        means = stats.group_token_mean(values, tokens, is_correct, estimator, seed=seed)
        table: dict[str, Any] = {
            "judge": judge,
            "estimator": estimator,
            "layer": layers,
            "n_correct": means.n_correct,
            "n_incorrect": means.n_incorrect,
        }
        shown = (("correct", means.correct), ("incorrect", means.incorrect), ("difference", means.difference))
        for name, found in shown:
            table |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        table |= {
            "auroc": auroc.value,
            "auroc_low": auroc.low,
            "auroc_high": auroc.high,
            "cohens_d": d,
            "p": means.p,
            "p_holm": stats.holm(means.p),
            "p_bh": stats.benjamini_hochberg(means.p),
            "adjusted_difference": adjusted.value,
            "adjusted_p": adjusted.p,
        }
        frames.append(pd.DataFrame(table)[list(COLUMNS)])
    return pd.concat(frames, ignore_index=True)
