"""What a probe must beat: labels that mean nothing, the words alone, and the model's own answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData
from exitlens.probes.grid import fit_grid
from exitlens.probes.kinds.base import Kind
from exitlens.probes.nested import KindRun
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
    "random_label_probes",
    "text_floor",
]

FLOOR = "text only (TF-IDF)"
DRAWS = 5  # of random labels
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Baseline:
    """P(true) ``[n]`` of every data row (NaN where it says nothing), under a name."""

    name: str
    probability: NDArray[np.float64]


def random_label_data(data: ProbeData, seed: int = 0) -> ProbeData:
    """The same states with labels drawn once for each group (Hewitt and Liang 2019): nothing to learn but the entity.

    Each group's label is a fair coin of its own, drawn again only where all fall alike. Drawing exactly half would make
    the labels of training and test rows depend on each other: a majority in one is a minority in the other, and a probe
    that learned nothing would fall below chance.
    """
    values, code = np.unique(data.groups, return_inverse=True)
    if len(values) < 2:
        raise ProbeError(f"one group over {data.n} rows: random labels per group need at least two groups")
    rng = np.random.default_rng(seed)
    coin = rng.integers(0, 2, len(values))
    while coin.min() == coin.max():
        coin = rng.integers(0, 2, len(values))
    return replace(data, labels=coin[code])


def random_label_probes(kind: Kind, run: KindRun, data: ProbeData, split: Split, seed: int = 0) -> tuple[Tensor, Rows]:
    """A kind that was run, fitted again on :data:`DRAWS` draws of random labels with the settings that it chose.

    One draw says little: with some sixty groups its accuracy is off by six points, and over thirty layers some are off
    by more. Fold by fold and layer by layer each fit has the setting of the real probe, so the inner folds are not run
    again.

    Returns:
        P(true) ``[layers, draws, m]`` of the rows tested, and their labels ``[draws, m]``.

    Raises:
        ProbeError: So few groups that no draw leaves both labels in every fold's training rows.
    """
    said, labels = [], []
    for draw in range(DRAWS):
        drawn = _drawn(data, split, seed * 1_000_003 + draw)
        grid = fit_grid(kind, drawn, split.folds, seeds=run.seeds[:1])
        places = [[kind.settings.index(value) for value in chosen] for chosen in run.layer_settings]
        layers = torch.arange(len(run.layers))
        said.append(torch.cat([p[layers, at, 0] for p, at in zip(grid.probabilities, places, strict=True)], -1))
        labels.append(drawn.labels[run.rows])
    return torch.stack(said, 1), np.stack(labels)


def _drawn(data: ProbeData, split: Split, seed: int) -> ProbeData:
    for attempt in range(100):
        drawn = random_label_data(data, seed + attempt * 7919)
        if all(0 < drawn.labels[fold.train].mean() < 1 for fold in split.folds):
            return drawn
    raise ProbeError(
        f"{len(np.unique(data.groups))} groups are too few for random labels: no draw leaves both in every fold"
    )


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
