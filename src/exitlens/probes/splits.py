"""Which rows train and which are tested, and inside the training rows the inner folds that choose layer and setting.

Every protocol keeps a group (a true/false pair, an entity) on one side of each split, but for :func:`random_k_fold`,
which exists to show what leaks without that.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData
from exitlens.probes.grid import Fold
from exitlens.probes.names import PROTOCOLS

__all__ = [
    "ORIGINAL_TRAIN",
    "Split",
    "affirmed_to_negated",
    "fixed_split",
    "grouped_k_fold",
    "leave_one_topic_out",
    "make_split",
    "random_k_fold",
    "transfer",
]

Rows = NDArray[np.int64]
ORIGINAL_TRAIN = ("animals", "companies", "elements", "facts", "inventions")
MIN_ROWS = 20  # a topic below that gives an accuracy with an interval wider than ±.2
MIN_CLASS = 4


@dataclass(frozen=True)
class Split:
    """Outer folds, and for each its inner folds (both in row numbers of the data); ``notes`` are for the reader."""

    name: str
    folds: tuple[Fold, ...]
    inner: tuple[tuple[Fold, ...], ...]
    notes: tuple[str, ...] = ()


def _clean(data: ProbeData, name: str, train: Rows, test: Rows) -> Fold:
    """The fold without training rows whose group is also tested."""
    keep = train[~np.isin(data.groups[train], data.groups[test])]
    labels = data.labels[keep]
    if len(keep) == 0 or labels.min() == labels.max():
        left = "no row" if len(keep) == 0 else f"only label {labels[0]}"
        raise ProbeError(
            f"holding out '{name}' leaves {left} to train on, because groups reach across: "
            "use smaller groups (entity or pair), or another protocol"
        )
    return Fold(name, keep, test)


def _two_classes(data: ProbeData, rows: Rows, least: int = 1) -> bool:
    ones = int(data.labels[rows].sum())
    return min(ones, len(rows) - ones) >= least


def _deal(codes: Rows, k: int, rng: np.random.Generator) -> Rows:
    """A fold number for each row such that rows of one code share it and folds are of near equal size."""
    values, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    order = rng.permutation(len(values))
    order = order[np.argsort(-counts[order], kind="stable")]
    size, fold_of = np.zeros(k), np.zeros(len(values), np.int64)
    for g in order:
        fold_of[g] = int(size.argmin())
        size[fold_of[g]] += counts[g]
    return fold_of[inverse]


def _k_folds(data: ProbeData, rows: Rows, codes: Rows, k: int, seed: int, what: str) -> tuple[Fold, ...]:
    n_groups = len(np.unique(codes))
    if n_groups < k:
        raise ProbeError(
            f"{n_groups} group{'s' * (n_groups != 1)} over {len(rows)} rows cannot make {k} folds: "
            "groups span everything; use finer groups (entity or pair) or fewer folds"
        )
    fold = _deal(codes, k, np.random.default_rng(seed))
    folds = []
    for i in range(k):
        train, test = rows[fold != i], rows[fold == i]
        if not _two_classes(data, train):
            raise ProbeError(f"{what} {i + 1} of {k} leaves one class only to train on: use fewer folds")
        folds.append(Fold(f"{what} {i + 1}", train, test))
    return tuple(folds)


def inner_folds(
    data: ProbeData, rows: Rows, seed: int = 0, first_topic: int = 0, grouped: bool = True
) -> tuple[Fold, ...]:
    """Folds inside ``rows``: one topic out when they span three topics or more, else three grouped folds.

    Topics are taken alternately from both sides of ``first_topic``, so that a kind that affords only two inner folds
    shares each fit between two neighbours (holding out a and, inside, b trains what b and, inside, a trains).
    """
    present = [int(t) for t in np.unique(data.topics[rows])]
    good = [t for t in present if _two_classes(data, rows[data.topics[rows] == t], 2)]
    if len(present) >= 3 and len(good) >= 2:
        k = len(data.topic_names)
        ring = sorted(good, key=lambda t: (min((t - first_topic) % k, (first_topic - t) % k), (t - first_topic) % k))
        out = []
        for t in ring:
            test = rows[data.topics[rows] == t]
            train = rows[data.topics[rows] != t]
            train = train[~np.isin(data.groups[train], data.groups[test])]
            if len(train) and _two_classes(data, train, 2):
                out.append(Fold(data.topic_names[t], train, test))
        if len(out) >= 2:
            return tuple(out)
    codes = data.groups[rows] if grouped else np.arange(len(rows))
    k = min(3, len(np.unique(codes)))
    if k < 2:
        raise ProbeError(
            f"one group spans all {len(rows)} training rows: nothing is left to choose the layer on; use finer groups"
        )
    return _k_folds(data, rows, codes, k, seed, "inner fold")


def leave_one_topic_out(data: ProbeData, *, min_rows: int = MIN_ROWS, seed: int = 0) -> Split:
    """Each topic is tested by probes that never saw it (the default protocol)."""
    names = data.topic_names
    if len(names) < 2:
        raise ProbeError(f"one topic only ('{names[0]}'): leave-one-topic-out needs two; use grouped-k-fold")
    folds, inner = [], []
    for t, name in enumerate(names):
        test = np.flatnonzero(data.topics == t)
        if len(test) < min_rows or not _two_classes(data, test, MIN_CLASS):
            ones = int(data.labels[test].sum())
            raise ProbeError(
                f"topic '{name}' has {len(test)} rows ({ones} true): leave-one-topic-out needs {min_rows} "
                f"with {MIN_CLASS} of each label; add rows, drop the topic or use grouped-k-fold"
            )
        fold = _clean(data, name, np.flatnonzero(data.topics != t), test)
        folds.append(fold)
        inner.append(inner_folds(data, fold.train, seed, first_topic=t))
    lost = sum(int((data.topics != t).sum()) - len(f.train) for t, f in enumerate(folds))
    notes = (f"{lost} training rows left out because their group is tested",) if lost else ()
    return Split("leave-one-topic-out", tuple(folds), tuple(inner), notes)


def grouped_k_fold(data: ProbeData, k: int = 5, *, seed: int = 0) -> Split:
    """K folds of whole groups (entities, pairs), all topics in each."""
    folds = _k_folds(data, np.arange(data.n), data.groups, k, seed, "fold")
    inner = tuple(_k_folds(data, f.train, data.groups[f.train], min(3, k), seed, "inner fold") for f in folds)
    notes = () if data.has_groups else ("no groups given: each row is its own group, twins may leak",)
    return Split("grouped-k-fold", folds, inner, notes)


def random_k_fold(data: ProbeData, k: int = 5, *, seed: int = 0) -> Split:
    """K folds of single rows. Leaks when groups exist, and then warns."""
    rows = np.arange(data.n)
    notes: tuple[str, ...] = ()
    if data.has_groups and len(np.unique(data.groups)) < data.n:
        notes = ("random folds put rows of one group on both sides: the numbers leak; use grouped-k-fold",)
        warnings.warn(notes[0], UserWarning, stacklevel=2)
    folds = _k_folds(data, rows, rows, k, seed, "fold")
    inner = tuple(_k_folds(data, f.train, f.train, min(3, k), seed, "inner fold") for f in folds)
    return Split("random-k-fold", folds, inner, notes)


def _topic_rows(data: ProbeData, names: Sequence[str]) -> Rows:
    for name in names:
        if name not in data.topic_names:
            raise ProbeError(f"no topic '{name}' among {', '.join(data.topic_names)}: name one of those")
    return np.flatnonzero(np.isin(data.topics, [data.topic_names.index(n) for n in names]))


def fixed_split(
    data: ProbeData, test: Sequence[str] = ("cities",), train: Sequence[str] | None = None, *, seed: int = 0
) -> Split:
    """The original study's split: test on ``test`` topics, train on ``train``.

    None trains on the original's five topics where all are there, else on every other topic.
    """
    if train is None:
        known = tuple(n for n in ORIGINAL_TRAIN if n in data.topic_names and n not in test)
        train = known if len(known) == len(ORIGINAL_TRAIN) else tuple(n for n in data.topic_names if n not in test)
    return transfer(
        data, _topic_rows(data, train), _topic_rows(data, test), name="original", label="+".join(test), seed=seed
    )


def transfer(
    data: ProbeData, train: Rows, test: Rows, *, name: str = "transfer", label: str = "target", seed: int = 0
) -> Split:
    """Train on some rows, test on others (another data set, another form of statement)."""
    if len(test) == 0 or len(train) == 0:
        raise ProbeError(f"{len(train)} rows to train and {len(test)} to test: transfer needs both")
    if not _two_classes(data, test):
        raise ProbeError(f"the {len(test)} test rows of '{label}' hold one class only: accuracy would mean nothing")
    fold = _clean(data, label, train, test)
    first = int(data.topics[test[0]])
    return Split(name, (fold,), (inner_folds(data, fold.train, seed, first),))


def affirmed_to_negated(data: ProbeData, *, k: int = 5, seed: int = 0) -> Split:
    """Train on affirmed statements, test on negated ones whose group was not trained on (k folds of groups)."""
    if data.negated is None or data.negated.all() or not data.negated.any():
        raise ProbeError("affirmed → negated needs statements of both polarities: give 'negated' for each row")
    folds = []
    for fold in _k_folds(data, np.arange(data.n), data.groups, k, seed, "fold"):
        train, test = fold.train[~data.negated[fold.train]], fold.test[data.negated[fold.test]]
        if len(test):
            folds.append(_clean(data, fold.name, train, test))
    return Split("affirmed-to-negated", tuple(folds), tuple(inner_folds(data, f.train, seed) for f in folds))


def make_split(data: ProbeData, protocol: str, *, seed: int = 0, k: int = 5, test: Sequence[str] = ()) -> Split:
    """The split of that name, as in ``--protocol``."""
    if protocol == "leave-one-topic-out":
        return leave_one_topic_out(data, seed=seed)
    if protocol == "grouped-k-fold":
        return grouped_k_fold(data, k, seed=seed)
    if protocol == "random-k-fold":
        return random_k_fold(data, k, seed=seed)
    if protocol == "affirmed-to-negated":
        return affirmed_to_negated(data, k=k, seed=seed)
    if protocol == "original":
        return fixed_split(data, tuple(test) or ("cities",), seed=seed)
    known = ", ".join(name for name in PROTOCOLS if name != "transfer")  # that one takes two data sets
    raise ProbeError(f"unknown protocol '{protocol}': known are {known}")
