"""Truth and polarity directions (TTPD; Bürger, Hamprecht and Nadler 2024, arXiv 2407.12831).

On states centred within their topic, ``x ≈ τ t_G + τ p t_P`` with truth τ = ±1 and polarity p = ±1 (affirmed,
negated), by least squares. The general truth direction ``t_G`` and a direction that tells polarity (logistic
regression on the states) span a plane; a logistic regression in that plane decides. All of it is linear in x, so the
result is a linear probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.probes.dataset import ProbeData
from exitlens.probes.kinds.base import FittedStack, Kind, LinearStack, mask
from exitlens.probes.kinds.logistic import fit_path

__all__ = ["TTPD"]


@dataclass(frozen=True, kw_only=True)
class TTPD(Kind):
    """TTPD. ``polarity_c``: scikit-learn's C of the polarity direction's regression."""

    name: str = "ttpd"
    both_polarities: bool = True
    polarity_c: float = 0.1

    def fit(
        self,
        states: Tensor,
        data: ProbeData,
        trains: Sequence[Tensor],
        seeds: Sequence[int],  # noqa: ARG002  # the interface of random kinds; this kind has no chance in it
    ) -> list[FittedStack]:
        """One stack a layer. :class:`ProbeError` when a fold's training rows are all affirmed or all negated."""
        if data.negated is None:
            raise ProbeError("TTPD needs affirmed and negated statements: give 'negated', or drop ttpd")
        negated = torch.from_numpy(data.negated)
        for rows in trains:
            share = float(negated[rows].double().mean())
            if share in (0.0, 1.0):
                word = "affirmed" if share == 0 else "negated"
                raise ProbeError(f"all {len(rows)} training statements are {word}: TTPD needs both polarities")
        topics = torch.from_numpy(data.topics)
        one_hot = torch.nn.functional.one_hot(topics).to(states.dtype)
        return [self._fit_layer(x, data, trains, negated, one_hot) for x in states]

    def _fit_layer(
        self, x: Tensor, data: ProbeData, trains: Sequence[Tensor], negated: Tensor, one_hot: Tensor
    ) -> LinearStack:
        y = data.y.to(x.dtype)
        member = mask(trains, data.n, x.dtype)
        polarity_weight, _ = fit_path(x, 1 - negated.to(x.dtype), member, [self.polarity_c])
        weights, biases = [], []
        for f, rows in enumerate(trains):
            xs, side = x[rows], one_hot[rows]
            topic_means = (side.T @ xs) / side.sum(0).clamp_min(1)[:, None]
            centred = xs - side @ topic_means
            truth = 2 * y[rows] - 1
            design = torch.stack([truth, truth * (1 - 2 * negated[rows].to(x.dtype))], 1)
            t_general = torch.linalg.lstsq(design, centred).solution[0]
            plane = torch.stack([t_general, polarity_weight[f, 0]])
            w2, b2 = fit_path(xs @ plane.T, y[rows], torch.ones(1, len(rows), dtype=x.dtype), [1.0])
            weights.append(w2[0] @ plane)
            biases.append(b2[0])
        return LinearStack(self.name, torch.stack(weights), torch.stack(biases))
