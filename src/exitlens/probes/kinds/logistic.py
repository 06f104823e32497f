"""L2-regularised logistic regression: all folds and the whole path of penalties of a layer in one L-BFGS run.

Objective of each model, as scikit-learn writes it, on states standardised over its own training rows:
``mean_i log(1 + exp(-s_i z_i)) + |w|² / (2 C n)``, ``z = w·x + b``, the intercept free.

Why it is fast: the models of a layer share one matrix X [n, d], so a step of all of them is two matrix products
(X times [d, models], X^T times [n, models]) that run at the machine's full rate, where one model alone would be
bound by reading X from memory; standardisation per fold is folded into the small side. The Gram matrix's eigenvectors
(one decomposition a layer) precondition every fold and penalty, so some twenty steps do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.probes.dataset import ProbeData
from exitlens.probes.kinds.base import FittedStack, Kind, LinearStack, mask

__all__ = ["Logistic", "fit_path"]

HISTORY = 8


@dataclass
class _Problem:
    """The models still running, one a column. ``x [n, d]`` is shared; the rest has models last."""

    x: Tensor
    y: Tensor  # [n, 1]
    weight: Tensor  # [n, models]: 1 / n_train where the row trains, else 0
    shift: Tensor  # [d, models]: mean of the fold, in x's coordinates
    scale: Tensor  # [d, models]: spread of the fold
    penalty: Tensor  # [models]: 1 / (C n_train)
    vectors: Tensor  # [d, d] eigenvectors of x's correlation
    values: Tensor  # [d, 1]

    def take(self, keep: Tensor) -> _Problem:
        return _Problem(
            self.x, self.y, self.weight[:, keep], self.shift[:, keep], self.scale[:, keep], self.penalty[keep],
            self.vectors, self.values,
        )  # fmt: skip

    def logits(self, w: Tensor, b: Tensor) -> Tensor:
        u = w / self.scale
        return (self.x @ u).add_(b - (self.shift * u).sum(0))

    def gradient(self, residual: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = residual.sum(0)
        g = (self.x.T @ residual).sub_(self.shift * total).div_(self.scale).addcmul_(w, self.penalty)
        return g, total

    def residual(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z).sub_(self.y).mul_(self.weight)

    def precondition(self, g: Tensor, curvature: Tensor) -> Tensor:
        rotated = self.vectors.T @ g
        return self.vectors @ rotated.div_(curvature * self.values + self.penalty)


def _solve(problem: _Problem, tol: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """Weights ``[d, models]`` and intercepts ``[models]`` in each model's standardised coordinates."""
    d, m = problem.shift.shape
    out_w, out_b = problem.x.new_zeros(d, m), problem.x.new_zeros(m)
    running = torch.arange(m)
    p = problem
    w, b = out_w.clone(), out_b.clone()
    z = p.x.new_zeros(p.x.shape[0], m)
    r = p.residual(z)
    g, gb = p.gradient(r, w)
    curvature = p.x.new_full((m,), 0.25)
    pairs: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(max_iter):
        # Two-loop recursion over [w; b]; every dot product is one number a model.
        q, qb = g.clone(), gb.clone()
        alphas: list[Tensor] = []
        for s, sb, y, yb, rho in reversed(pairs):
            alpha = rho * ((s * q).sum(0) + sb * qb)
            q.sub_(y * alpha)
            qb.sub_(yb * alpha)
            alphas.append(alpha)
        q, qb = p.precondition(q, curvature), qb / curvature
        for (s, sb, y, yb, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            beta = alpha - rho * ((y * q).sum(0) + yb * qb)
            q.add_(s * beta)
            qb.add_(sb * beta)
        dw, db = q.neg_(), qb.neg_()
        slope0 = (g * dw).sum(0) + gb * db
        dz = p.logits(dw, db)
        wd, dd = (w * dw).sum(0), (dw * dw).sum(0)
        # Convex along the line: look for a point where the slope has shrunk well; regula falsi when it has not.
        t = torch.ones_like(b)
        low, high = torch.zeros_like(b), torch.full_like(b, float("inf"))
        slope_low, slope_high = slope0, torch.zeros_like(b)
        for _ in range(12):
            trial = p.residual(torch.addcmul(z, dz, t))
            slope = torch.einsum("nm,nm->m", trial, dz) + p.penalty * (wd + t * dd)
            bad = slope.abs() > 0.7 * slope0.abs()
            if not bool(bad.any()):
                break
            past = slope > 0
            high, slope_high = torch.where(past, t, high), torch.where(past, slope, slope_high)
            low, slope_low = torch.where(past, low, t), torch.where(past, slope_low, slope)
            bounded = torch.isfinite(high)
            # The weighted mean of the bracket's ends, kept off the ends so that it always shrinks.
            share = (slope_low / (slope_low - slope_high)).clamp(0.1, 0.9)
            inside = low + share * (torch.where(bounded, high, low) - low)
            t = torch.where(bad, torch.where(bounded, inside, 3 * t), t)
        z.addcmul_(dz, t)
        step, step_b = dw * t, db * t
        w, b = w + step, b + step_b
        new_g, new_gb = p.gradient(trial, w)
        y, yb = new_g - g, new_gb - gb
        dot = (step * y).sum(0) + step_b * yb
        rho = torch.where(dot > 0, 1 / dot.clamp_min(torch.finfo(dot.dtype).tiny), torch.zeros_like(dot))
        pairs.append((step, step_b, y, yb, rho))
        pairs = pairs[-HISTORY:]
        g, gb = new_g, new_gb
        # Mean p(1-p) over a model's training rows: how much flatter its likelihood has become than at the start.
        prob = trial.abs()
        curvature = (prob.sum(0) - (prob.square_() / p.weight.clamp_min(1e-30)).sum(0)).clamp_min(1e-4)
        done = torch.maximum(g.abs().amax(0), gb.abs()) <= tol
        if bool(done.all()):
            break
        if int(done.sum()) * 5 >= len(done):
            out_w[:, running[done]], out_b[running[done]] = w[:, done], b[done]
            keep = ~done
            running, p = running[keep], p.take(keep)
            w, b, z, g, gb, curvature = w[:, keep], b[keep], z[:, keep], g[:, keep], gb[keep], curvature[keep]
            pairs = [(s[:, keep], sb[keep], y[:, keep], yb[keep], rho[keep]) for s, sb, y, yb, rho in pairs]
    out_w[:, running], out_b[running] = w, b
    return out_w, out_b


def fit_path(
    x: Tensor,
    y: Tensor,
    member: Tensor,
    penalties: Sequence[float],
    *,
    standardize: bool = True,
    tol: float = 1e-5,
    max_iter: int = 500,
) -> tuple[Tensor, Tensor]:
    """Fit every fold at every penalty.

    ``x [n, d]``, ``y [n]`` 0/1, ``member [folds, n]`` 1 where a row trains, ``penalties``: values of scikit-learn's C.
    Returns ``weight [folds, C, d]`` and ``bias [folds, C]`` that act on ``x`` itself. ``tol`` bounds the largest
    component of the gradient, as scikit-learn's lbfgs does.

    Folds that share no row, directly or through others (topics trained one by one), are fitted apart on their own
    rows: together every step would go over rows that most of them do not train on.
    """
    apart = _apart(member)
    if len(apart) > 1 or not bool(member.any(0).all()):
        weight = x.new_empty(len(member), len(penalties), x.shape[1])
        bias = x.new_empty(len(member), len(penalties))
        for folds in apart:
            rows = member[folds].any(0)
            weight[folds], bias[folds] = _fit_path(
                x[rows], y[rows], member[folds][:, rows], penalties, standardize, tol, max_iter
            )
        return weight, bias
    return _fit_path(x, y, member, penalties, standardize, tol, max_iter)


def _apart(member: Tensor) -> list[Tensor]:
    """Indices of the folds ``[folds, n]`` in classes: two folds that share a training row are in one class."""
    shares = (member @ member.T) > 0
    left = torch.ones(len(member), dtype=torch.bool)
    out: list[Tensor] = []
    while bool(left.any()):
        inside = torch.zeros_like(left)
        inside[left.nonzero()[0, 0]] = True
        while True:
            grown = inside | shares[inside].any(0)
            if bool((grown == inside).all()):
                break
            inside = grown
        out.append(inside.nonzero()[:, 0])
        left &= ~inside
    return out


def _fit_path(
    x: Tensor, y: Tensor, member: Tensor, penalties: Sequence[float], standardize: bool, tol: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    centre = x.mean(0)
    spread = x.std(0, correction=0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread)) if standardize else torch.ones_like(spread)
    xs = (x - centre).div_(spread)
    counts = member.sum(1, keepdim=True)
    shift = member @ xs / counts
    if standardize:
        scale = (member @ xs.square() / counts - shift.square()).clamp_min(0).sqrt()
        # A feature constant over the training rows is left at its own size, as StandardScaler leaves it.
        scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    else:
        scale = torch.ones_like(shift)
    values, vectors = torch.linalg.eigh(xs.T @ xs / x.shape[0])
    h = len(penalties)
    c = torch.tensor(list(penalties), dtype=x.dtype).repeat(len(member))
    n_train = counts[:, 0].repeat_interleave(h)
    problem = _Problem(
        xs,
        y[:, None],
        (member / counts).repeat_interleave(h, 0).T.contiguous(),
        shift.repeat_interleave(h, 0).T.contiguous(),
        scale.repeat_interleave(h, 0).T.contiguous(),
        1 / (c * n_train),
        vectors,
        values.clamp_min(0)[:, None],
    )
    w, b = _solve(problem, tol, max_iter)
    u = w / problem.scale
    weight = (u / spread[:, None]).T
    bias = b - (problem.shift * u).sum(0) - weight @ centre
    return weight.reshape(-1, h, x.shape[1]), bias.reshape(-1, h)


@dataclass(frozen=True, kw_only=True)
class Logistic(Kind):
    """Logistic regression on standardised states; ``settings`` are the values of C tried."""

    name: str = "logistic"
    settings: tuple[float | None, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    standardize: bool = True
    tol: float = 1e-5

    def fit(
        self,
        states: Tensor,
        data: ProbeData,
        trains: Sequence[Tensor],
        seeds: Sequence[int],  # noqa: ARG002  # the interface of random kinds; this kind has no chance in it
    ) -> list[FittedStack]:
        """One stack a layer; ``seeds`` change nothing (a convex problem has one answer)."""
        member = mask(trains, data.n, states.dtype)
        y = data.y.to(states.dtype)
        penalties = [float(c) for c in self.settings if c is not None]
        stacks: list[FittedStack] = []
        for x in states:
            weight, bias = fit_path(x, y, member, penalties, standardize=self.standardize, tol=self.tol)
            stacks.append(LinearStack(self.name, weight, bias))
        return stacks
