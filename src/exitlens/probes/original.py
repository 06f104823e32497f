"""The original study: an MLP at three layers and their majority, against the model's own answer.

Protocol: train on every topic but one (the original: animals, companies, elements, facts, inventions), test on the
topic held out (cities); 256-128-64 ReLU, Adam 1e-3, batch 16, 5 epochs. Train accuracy is measured after training
with the final weights, and test loss over the whole test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData, check_labels, make_data
from exitlens.probes.ensemble import majority
from exitlens.probes.grid import Fold, Progress
from exitlens.probes.kinds.mlp_training import forward, train_stack
from exitlens.probes.nested import middle_layers
from exitlens.probes.splits import fixed_split
from exitlens.stats import auroc, mean_interval
from exitlens.stats.arrays import Numbers

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OriginalStudy", "original_study"]

COLUMNS = (
    "setting", "method", "layer", "n_train", "n_test", "train_loss", "train_accuracy", "test_loss",
    "test_accuracy", "test_accuracy_low", "test_accuracy_high", "auroc",
)  # fmt: skip


@dataclass(frozen=True)
class OriginalStudy:
    """``probes`` and ``curves``: the tables of the same names; ``to_frame("probes" | "probe_curves")`` gives either."""

    probes: pd.DataFrame
    curves: pd.DataFrame

    def to_frame(self, table: str = "probes") -> pd.DataFrame:
        """Table ``probes`` or ``probe_curves``."""
        return self.probes if table == "probes" else self.curves


def _loss(z: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy ``[models]`` of log-odds ``z [models, n]``."""
    return torch.nn.functional.softplus(torch.where(y > 0.5, -z, z)).mean(-1)


def original_study(
    states_by_setting: Mapping[str, Tensor | NDArray[Any]],
    labels: Sequence[int] | NDArray[Any],
    topics: Sequence[str] | NDArray[Any],
    lm_next_token: Mapping[str, NDArray[Any]] | None = None,
    lm_token_prob: Mapping[str, NDArray[Any]] | None = None,
    *,
    layers: Sequence[int],
    probed_layers: Sequence[int] | None = None,
    test_topic: str | Sequence[str] = "cities",
    train_topics: Sequence[str] | None = None,
    groups: Numbers | None = None,
    seed: int = 0,
    epochs: int = 5,
    batch: int = 16,
    lr: float = 1e-3,
    resamples: int = 2000,
    progress: Progress | None = None,
) -> OriginalStudy:
    """The table of the original study, for each setting ("few-shot", "zero-shot").

    ``states_by_setting[setting]``: ``[layers, n, d]`` with ``layers`` naming axis 0. ``probed_layers``: the layers to
    train on (None: a half, five eighths and three quarters of the depth). ``lm_next_token[setting] [n]`` bool: the
    top-1 token is the correct word. ``lm_token_prob[setting] [n]``: P(" true") over P(" true") + P(" false").
    ``groups`` are kept off both sides and drawn whole in the intervals (None: each row is its own).

    Seeds: with the same seed the first weights and batches are the same at every layer and in every setting.
    Raises :class:`ProbeError` (no such topic, one class only, non-finite states, an unknown layer).
    """
    if not states_by_setting:
        raise ProbeError("no states: give at least one setting, for example 'few-shot'")
    probed = tuple(probed_layers) if probed_layers is not None else middle_layers(layers)
    for j in probed:
        if j not in layers:
            raise ProbeError(f"probed layer {j} is not among the states' layers {', '.join(map(str, layers))}")
    held = (test_topic,) if isinstance(test_topic, str) else tuple(test_topic)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    total = len(states_by_setting) * epochs
    for at, (setting, states) in enumerate(states_by_setting.items()):
        data = make_data(states, labels, groups, topics, layers=layers)
        fold = fixed_split(data, held, train_topics, seed=seed).folds[0]
        check_labels(data.labels[fold.train], "training rows")
        test = _Test(setting, data, fold, resamples, seed)
        if lm_next_token is not None and setting in lm_next_token:
            right = _given(lm_next_token[setting], data.n, "lm_next_token")[fold.test] > 0.5
            # Correct or incorrect is all it says: there is no ranking, so no AUROC.
            rows.append(test.row("LM next token", right) | {"n_train": 0})
        if lm_token_prob is not None and setting in lm_token_prob:
            p = _given(lm_token_prob[setting], data.n, "lm_token_prob")[fold.test]
            rows.append(test.row("LM token probability", (p > 0.5) == test.truth, p) | {"n_train": 0})
        x = data.states[[data.layers.index(j) for j in probed]].float()
        train = torch.from_numpy(fold.train)
        curve = _Curve(x[:, train], data.y.float()[train], at * epochs, total, progress)
        with torch.no_grad():
            network = train_stack(
                x, [(k, seed) for k in range(len(probed))], data.y.float(), train,
                epochs=epochs, batch=batch, lr=lr, on_epoch=curve,
            )  # fmt: skip
            rows += _network_rows(test, x, curve, network, probed)
        curves += [
            {
                "setting": setting, "layer": j, "epoch": e + 1,
                "train_loss": float(loss[k]), "train_accuracy": float(accuracy[k]),
            }
            for k, j in enumerate(probed)
            for e, (loss, accuracy) in enumerate(zip(curve.losses, curve.accuracies, strict=True))
        ]  # fmt: skip
    import pandas as pd

    probes = pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype({"layer": "Int64"})
    frame = pd.DataFrame(curves, columns=["setting", "layer", "epoch", "train_loss", "train_accuracy"])
    return OriginalStudy(probes, frame)


def _network_rows(
    test: _Test, x: Tensor, curve: _Curve, network: tuple[list[Tensor], list[Tensor]], probed: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for the network of each probed layer (``x [layers, n, d]``), and one for their vote."""
    unseen = torch.from_numpy(test.fold.test)
    z = forward(x[:, unseen], *network)
    test_loss = _loss(z, test.data.y.float()[unseen])
    p_train, p_test = torch.sigmoid(forward(curve.x, *network)), torch.sigmoid(z)
    rows = []
    for k, j in enumerate(probed):
        p = p_test[k].double().numpy()
        found: dict[str, Any] = {
            "layer": j,
            "train_loss": float(curve.losses[-1][k]),
            "train_accuracy": float(curve.accuracies[-1][k]),
            "test_loss": float(test_loss[k]),
        }
        rows.append(test.row("MLP", (p > 0.5) == test.truth, p) | found)
    vote = (majority(p_test) > 0.5).numpy()
    train_vote = ((majority(p_train) > 0.5) == (curve.y > 0.5)).double().mean()
    # The vote alone hardly ranks, so its AUROC is that of the layers' mean probability.
    ranked = p_test.mean(0).double().numpy()
    rows.append(test.row("majority", vote == test.truth, ranked) | {"train_accuracy": float(train_vote)})
    return rows


class _Curve:
    """Loss and accuracy of every layer over the whole training set, after each epoch, with that epoch's weights."""

    def __init__(self, x: Tensor, y: Tensor, done: int, total: int, progress: Progress | None) -> None:
        self.x, self.y, self.done, self.total, self.progress = x, y, done, total, progress
        self.losses: list[Tensor] = []
        self.accuracies: list[Tensor] = []

    def __call__(self, epoch: int, weights: list[Tensor], biases: list[Tensor]) -> None:
        z = forward(self.x, weights, biases)
        self.losses.append(_loss(z, self.y))
        self.accuracies.append(((z > 0) == (self.y > 0.5)).float().mean(-1))
        if self.progress is not None:
            self.progress(self.done + epoch, self.total)


@dataclass(frozen=True)
class _Test:
    """The test rows of one setting, and the row of the table that a method gets on them."""

    setting: str
    data: ProbeData
    fold: Fold
    resamples: int
    seed: int

    @property
    def truth(self) -> NDArray[np.bool_]:
        return self.data.labels[self.fold.test].astype(np.bool_)

    def row(
        self, method: str, right: NDArray[np.bool_], p: NDArray[np.float64] | None = None
    ) -> dict[str, str | int | float | None]:
        found = mean_interval(
            right.astype(np.float64), groups=self.data.groups[self.fold.test], n=self.resamples, seed=self.seed
        )
        return {
            "setting": self.setting,
            "method": method,
            "layer": None,
            "n_train": len(self.fold.train),
            "n_test": len(self.fold.test),
            "test_accuracy": found.value,
            "test_accuracy_low": found.low,
            "test_accuracy_high": found.high,
            "auroc": float("nan") if p is None else auroc(p, self.truth),
        }


def _given(values: NDArray[Any], n: int, what: str) -> NDArray[np.float64]:
    out = np.asarray(values, dtype=np.float64)
    if out.shape != (n,) or np.isnan(out).any():
        raise ProbeError(f"{what} has shape {out.shape} or holds NaN for {n} rows: give one number a row")
    return out
