"""What a probe must beat: labels that mean nothing, the words alone, and the model's own answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData
from exitlens.probes.splits import Split
from exitlens.stats.arrays import Numbers, flags

__all__ = [
    "FLOOR",
    "Baseline",
    "calibrated",
    "from_scores",
    "lm_baselines",
    "on_rows",
    "random_label_data",
    "text_floor",
]

FLOOR = "text only (TF-IDF)"


@dataclass(frozen=True)
class Baseline:
    """P(true) ``[n]`` of every data row (NaN where it says nothing), under a name."""

    name: str
    probability: NDArray[np.float64]


def random_label_data(data: ProbeData, seed: int = 0) -> ProbeData:
    """The same states with labels drawn once for each group (Hewitt and Liang 2019): nothing to learn but the entity.

    Half of the groups get 1, so both labels occur.
    """
    values, code = np.unique(data.groups, return_inverse=True)
    if len(values) < 2:
        raise ProbeError(f"one group over {data.n} rows: random labels per group need at least two groups")
    coin = np.zeros(len(values), np.int64)
    coin[np.random.default_rng(seed).permutation(len(values))[: len(values) // 2]] = 1
    return replace(data, labels=coin[code])


def text_floor(texts: Sequence[str], labels: NDArray[np.int64], split: Split, *, c: float = 1.0) -> Baseline:
    """TF-IDF of words and word pairs, then logistic regression, fitted on each fold's training texts.

    What can be told from the words without any model. ``labels [n]``; rows that no fold tests are NaN.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len(texts) != len(labels):
        raise ProbeError(f"{len(texts)} texts for {len(labels)} labels: the text-only floor needs one a row")
    words = np.array(list(texts), dtype=object)
    out = np.full(len(labels), np.nan)
    for fold in split.folds:
        # The pattern keeps one-letter words and digits: "6" against "7" is all that some statements differ in.
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+", sublinear_tf=True),
            LogisticRegression(C=c, max_iter=1000),
        )
        model.fit(words[fold.train], labels[fold.train])
        out[fold.test] = model.predict_proba(words[fold.test])[:, 1]
    return Baseline(FLOOR, out)


def calibrated(name: str, scores: Numbers, labels: NDArray[np.int64], split: Split) -> Baseline:
    """One number a row as a baseline under the probes' own protocol: a logistic line fitted on each training fold.

    ``scores [n]``, larger or smaller for true rows: the training rows decide. Raises ProbeError for a score that is
    not finite; rows that no fold tests are NaN.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.asarray(scores, dtype=np.float64).reshape(-1, 1)
    if len(x) != len(labels) or not np.isfinite(x).all():
        raise ProbeError(f"baseline '{name}' needs a finite number for each of {len(labels)} rows")
    out = np.full(len(labels), np.nan)
    for fold in split.folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0))
        model.fit(x[fold.train], labels[fold.train])
        out[fold.test] = model.predict_proba(x[fold.test])[:, 1]
    return Baseline(name, out)


def from_scores(name: str, probability: Numbers, n: int) -> Baseline:
    """A baseline from P(true) of each row (a bool array counts as 0 and 1); NaN means "says nothing"."""
    p = np.asarray(probability, dtype=np.float64)
    if p.shape != (n,):
        raise ProbeError(f"baseline '{name}' has shape {p.shape} for {n} rows: give one number a row")
    known = p[~np.isnan(p)]
    if known.size and (known.min() < 0 or known.max() > 1):
        raise ProbeError(f"baseline '{name}' holds {known.min():.3g}..{known.max():.3g}: give probabilities in 0..1")
    return Baseline(name, p)


def lm_baselines(
    labels: Numbers,
    next_token_right: Numbers | None = None,
    p_true: Numbers | None = None,
) -> tuple[Baseline, ...]:
    """The model's own answer as baselines, from what was read at the answer position of each statement.

    ``next_token_right [n]``: the top-1 token is the correct word (anything else is incorrect, so it is scored
    as P(true) 1 or 0 on the correct or the incorrect side). ``p_true [n]``: P(" true") / (P(" true") + P(" false")).

    Raises InputError for labels or flags other than 0 and 1, ProbeError for another number of them.
    """
    out: list[Baseline] = []
    truth = flags(labels, len(labels), "labels").astype(np.int64)
    if next_token_right is not None:
        right = flags(next_token_right, len(truth), "next_token_right")
        out.append(from_scores("LM next token", np.where(right, truth, 1 - truth), len(truth)))
    if p_true is not None:
        out.append(from_scores("LM token probability", p_true, len(truth)))
    return tuple(out)


def on_rows(baselines: Mapping[str, Baseline], rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """P(true) ``[1, m]`` of each baseline on the tested rows; :class:`ProbeError` when one says nothing about a row."""
    out = {}
    for name, b in baselines.items():
        p = b.probability[rows]
        if np.isnan(p).any():
            first = rows[np.isnan(p)][0]
            raise ProbeError(f"baseline '{name}' says nothing about example {first}: give it for all tested rows")
        out[name] = torch.from_numpy(p).float()[None]
    return out
