"""Decoders: from the final logits and the early ones to scores for the next token, each row on its own.

Sources: DoLa (Chuang et al. 2023, arXiv 2309.03883), SLED (Zhang et al. 2024), ACD (Gera et al. 2023), END (Wu et al.
2025), DeLTa. In every one ``final`` is ``[batch, vocab]`` in float32 and ``early`` is ``[layers, batch, vocab]`` in the
model's own type, both logits after the model's own last transformation. Early layers are taken one by one: all of them
in float32 at once would cost more time in fresh memory than in arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from exitlens.errors import InputError, LayerError, layer_range_error

__all__ = [
    "ACD",
    "END",
    "SLED",
    "DeLTa",
    "Decoder",
    "DoLa",
    "Scores",
    "Vanilla",
    "candidate_layers",
    "plausible",
]

Candidates = Literal["low", "high", "all"] | tuple[int, ...]

_LEAST = -650.0  # its exponential is as good as 0, but can be taken the logarithm of


@dataclass(slots=True)
class Scores:
    """Scores ``[batch, vocab]`` (−inf: never), and what the step reports: one value or row of values a row."""

    scores: Tensor
    info: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Decoder(Protocol):
    """What a decoder reads and how it scores."""

    @property
    def name(self) -> str:
        """The text that asks for it."""
        ...

    @property
    def lens(self) -> Literal["raw", "logit"]:
        """How early layers are read."""
        ...

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The early layers (0..N−1) that are read, in order."""
        ...

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:
        """Scores for the next token."""
        ...


def candidate_layers(wanted: Candidates, n_layers: int, tied: bool, *, every: int = 2) -> tuple[int, ...]:
    """Even layers of the lower (``low``) or upper (``high``) half, or a list as given.

    With tied embeddings layer 0 only repeats the input token, so it is left out unless asked for by number.
    Raises :class:`LayerError` for a layer outside 0..N−1 and :class:`InputError` for an empty set.
    """
    if isinstance(wanted, tuple):
        for layer in wanted:
            if not 0 <= layer < n_layers:
                raise layer_range_error(layer, 0, n_layers - 1, what="candidate layer")
        found = wanted
    else:
        half = n_layers / 2
        start = every if tied else 0
        bounds = {"low": (start, half), "high": (half, n_layers), "all": (start, n_layers)}
        if wanted not in bounds:
            raise InputError(f"unknown candidate layers {wanted!r}: use low, high, all or a list such as 4/8/12")
        low, high = bounds[wanted]
        found = tuple(j for j in range(0, n_layers, every) if low <= j < high)
    if not found:
        raise InputError(f"no candidate layers in {wanted!r} for a model of {n_layers} layers: give a list such as 1/2")
    return found


def plausible(log_p: Tensor, relative_top: float) -> Tensor:
    """The plausibility filter ``[batch, vocab]``: True where ``log p ≥ max log p + log α``.

    α = 0 keeps every token that the model can emit at all (``log p > −inf``).
    """
    if relative_top <= 0.0:
        return log_p > -math.inf
    return log_p >= log_p.amax(-1, keepdim=True) + math.log(relative_top)


def _hashed(final: Tensor, choices: int) -> Tensor:
    """A number ``[batch]`` below ``choices`` from each row's three most probable tokens.

    Only their order counts, so that rounding, which differs with the size of a batch, changes nothing.
    """
    key = torch.zeros(final.shape[0], dtype=torch.long, device=final.device)
    for token in final.topk(min(3, final.shape[-1]), dim=-1).indices.unbind(-1):
        key = (key * 1_000_003 + token + 1) % 2_147_483_647
        key = (key * 48_271) % 2_147_483_647
    return key % choices


def _check_top(relative_top: float) -> None:
    if not 0.0 <= relative_top <= 1.0:
        raise InputError(f"relative_top {relative_top} is out of range: it is a share of the top probability, 0 to 1")


@dataclass(frozen=True, slots=True)
class Vanilla:
    """The model's own logits."""

    name: str = "vanilla"
    lens: Literal["raw", "logit"] = "logit"

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:  # noqa: ARG002 (the protocol's arguments)
        """None."""
        return ()

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002
        """The final logits."""
        return Scores(final)


@dataclass(frozen=True, slots=True)
class DoLa:
    """DoLa: ``log p − log q_j`` within the plausible tokens, ``j`` the candidate furthest from the final layer.

    ``choice``: ``jsd`` (the paper's Jensen–Shannon divergence) or ``reference`` (what the published code computes:
    ``½[mean KL(m‖p) + mean KL(m‖q_j)]``, and raw logits subtracted when α = 0). One candidate makes it static;
    ``pick="random"`` is the control that ignores divergence: a hash of the three most probable tokens picks.
    """

    candidates: Candidates = "high"
    choice: Literal["jsd", "reference"] = "jsd"
    relative_top: float = 0.1
    lens: Literal["raw", "logit"] = "raw"
    pick: Literal["divergence", "random"] = "divergence"
    name: str = "dola"

    def __post_init__(self) -> None:
        _check_top(self.relative_top)
        if self.choice not in ("jsd", "reference"):
            raise InputError(f"unknown DoLa choice {self.choice!r}: use jsd or reference")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The candidate layers."""
        return candidate_layers(self.candidates, n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002
        """Contrast with the chosen candidate; ``info``: ``choice`` (index), ``divergence`` ``[batch, k]``, ``kept``."""
        log_p = final.log_softmax(-1)
        info: dict[str, Tensor] = {}
        if early.shape[0] == 1:
            index = torch.zeros(final.shape[0], dtype=torch.long, device=final.device)
        elif self.pick == "random":
            index = _hashed(final, early.shape[0])
        else:
            divergence = self.divergence(log_p, early)
            info["divergence"] = divergence
            index = divergence.argmax(-1)
        chosen = early[index, torch.arange(final.shape[0], device=final.device)].to(final.dtype)
        mask = plausible(log_p, self.relative_top)
        if self.relative_top == 0.0 and self.choice == "reference":
            scores = final - chosen
        else:
            scores = log_p - chosen.log_softmax(-1)
        return Scores(scores.masked_fill_(~mask, -math.inf), {**info, "choice": index, "kept": mask.sum(-1)})

    def divergence(self, log_p: Tensor, early: Tensor) -> Tensor:
        """``[batch, k]``: how far each candidate lies from the final layer, by ``choice``."""
        if self.choice == "jsd":
            return _jsd(log_p, early)
        out = []
        p = log_p.exp()
        for z in early:
            log_q = z.to(log_p.dtype).log_softmax(-1)
            m = p.add(log_q.exp()).mul_(0.5)
            # Target and input as in the published code, so that near ties fall the same way.
            kl = torch.nn.functional.kl_div
            value = kl(log_p, m, reduction="none").nansum(-1) + kl(log_q, m, reduction="none").nansum(-1)
            out.append(0.5 * value / log_p.shape[-1])
        return torch.stack(out, -1)


def _jsd(log_p: Tensor, early: Tensor) -> Tensor:
    """JSD of ``p`` and ``softmax(early[j])``, float64 ``[batch, k]``, as ``H(m) − ½ H(p) − ½ H(q)``.

    In float64 throughout: raw early layers are nearly uniform, and their divergences differ in the sixth decimal.
    """
    device = log_p.device
    if device.type == "mps":  # it has no float64
        log_p, early = log_p.cpu(), early.cpu()
    p = log_p.double().softmax(-1)
    h_p = torch.special.entr(p).sum(-1)
    x, y = torch.empty_like(p), torch.empty_like(p)  # reused: a fresh one a layer costs half as much again
    out = []
    for z in early:
        x.copy_(z).sub_(x.amax(-1, keepdim=True)).clamp_min_(_LEAST)
        total = torch.exp(x, out=y).sum(-1)
        h_q = total.log() - x.mul_(y).sum(-1) / total
        m = y.mul_((0.5 / total)[:, None]).add_(p, alpha=0.5)
        h_m = -torch.log(m, out=x).mul_(m).sum(-1)
        out.append((h_m - 0.5 * (h_p + h_q)).clamp_min_(0.0))
    found = torch.stack(out, -1)
    return found.float().to(device) if device.type == "mps" else found


@dataclass(frozen=True, slots=True)
class SLED:
    """Self logits evolution: the top-k logits move against the direction in which early layers still differ."""

    k: int = 10
    rate: float = 2.0
    candidates: Candidates | None = None
    floor: float = -1000.0
    lens: Literal["raw", "logit"] = "raw"
    name: str = "sled"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"SLED k={self.k} is out of range: use 5 to 20")
        if not 0.0 < self.rate < math.inf:
            raise InputError(f"SLED rate={self.rate} is out of range: use 0.5 to 3")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """All early layers, unless a list is given."""
        if self.candidates is None:
            return tuple(range(n_layers))
        return candidate_layers(self.candidates, n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002
        """One step of the evolution on the top-k of ``p``; every other token goes to the floor."""
        k = min(self.k, final.shape[-1])
        p = final.softmax(-1)
        top = final.topk(k, dim=-1).indices  # not of p, in which far tokens all round to 0
        top_p = p.gather(-1, top)
        m = _agreements(final, early, top)
        # w_j · (m normalised over i) = m, so the normalisation over tokens cancels with the layer's weight
        weighted = m.sum(0)
        total = weighted.sum(-1)
        shift = torch.where(total[:, None] > 0, -weighted / total.clamp_min(1e-30)[:, None], torch.zeros_like(weighted))
        moved = final.gather(-1, top) - self.rate * (top_p + shift)
        scores = torch.full_like(final, self.floor).scatter_(-1, top, moved)
        return Scores(scores, {"kept": torch.full((final.shape[0],), k, device=final.device)})


def _agreements(final: Tensor, early: Tensor, top: Tensor) -> Tensor:
    """SLED's ``m``, ``[layers, batch, k]``: ``max(cos(q_j − onehot_i, Z_j − z), 0)²`` for i in ``top``.

    Without writing the one-hot matrix out. The token of ``top`` that q likes best is summed apart, so that nothing
    cancels when q is nearly one-hot itself.
    """
    dead = final.isneginf()
    closed = bool(dead.any())
    d, q, both = torch.empty_like(final), torch.empty_like(final), torch.empty_like(final)
    q_top, d_top, at, rest, along, squared, length = [], [], [], [], [], [], []
    for z in early:
        torch.softmax(d.copy_(z), -1, out=q)
        d.sub_(final)
        if closed:
            d.masked_fill_(dead, 0.0)  # −inf − −inf: nothing to move
        q_top.append(q.gather(-1, top))
        d_top.append(d.gather(-1, top))
        at.append(q_top[-1].argmax(-1, keepdim=True))
        q.scatter_(-1, top.gather(-1, at[-1]), 0.0)
        # Products and sums apart: a matrix product of one row with one column takes ten times as long.
        rest.append(q.sum(-1))
        along.append(torch.mul(q, d, out=both).sum(-1))
        squared.append(torch.mul(q, q, out=both).sum(-1))
        length.append(torch.linalg.vector_norm(d, dim=-1))
    qs, ds, best = torch.stack(q_top), torch.stack(d_top), torch.stack(at)
    q_best, d_best = qs.gather(-1, best), ds.gather(-1, best)
    left, dot, norm = (torch.stack(part)[..., None] for part in (rest, along, squared))
    towards = (dot + q_best * d_best - ds).scatter(-1, best, dot - left * d_best)
    size = (norm + q_best * q_best - 2 * qs + 1.0).scatter(-1, best, norm + left * left)
    size = size.sqrt() * torch.stack(length)[..., None]
    cosine = torch.where(size > 0, towards / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
    return cosine.clamp(0.0, 1.0).square()


@dataclass(frozen=True, slots=True)
class ACD:
    """Auto-contrastive decoding: plausible tokens share their own mass as ``softmax(log p − log q_j)``."""

    layer: int | None = None
    relative_top: float = 0.1
    lens: Literal["raw", "logit"] = "logit"
    name: str = "acd"

    def __post_init__(self) -> None:
        _check_top(self.relative_top)

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """One early layer: the given one, else three quarters of the depth."""
        return candidate_layers((round(0.75 * n_layers) if self.layer is None else self.layer,), n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002
        """Log-probabilities of the mixed distribution."""
        log_p = final.log_softmax(-1)
        mask = plausible(log_p, self.relative_top)
        # An early −inf would make the contrast +inf, and infinities do not share a mass.
        log_q = early[0].to(final.dtype).log_softmax(-1).clamp_min_(torch.finfo(final.dtype).min / 2)
        contrast = (log_p - log_q).masked_fill_(~mask, -math.inf)
        mass = log_p.masked_fill(~mask, -math.inf).logsumexp(-1, keepdim=True)
        return Scores(torch.where(mask, contrast.log_softmax(-1) + mass, log_p), {"kept": mask.sum(-1)})


@dataclass(frozen=True, slots=True)
class END:
    """Cross-layer entropy: ``z(v) − λ·H(softmax over layers of Z_j(v))`` for plausible tokens, others unchanged."""

    weight: float = 1.0
    candidates: Candidates = "high"
    relative_top: float = 0.01
    lens: Literal["raw", "logit"] = "logit"
    name: str = "end"

    def __post_init__(self) -> None:
        _check_top(self.relative_top)
        if not math.isfinite(self.weight):
            raise InputError(f"END weight={self.weight} is out of range: use a finite number, 1 by default")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """Even layers of the upper half, unless told otherwise; the final layer joins them."""
        return candidate_layers(self.candidates, n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002
        """Final logits less the entropy of each plausible token's growth over the layers."""
        mask = plausible(final.log_softmax(-1), self.relative_top)
        rows, tokens = mask.nonzero(as_tuple=True)
        growth = torch.cat([early[:, rows, tokens].to(final.dtype), final[rows, tokens][None]])
        entropy = torch.special.entr(growth.softmax(0)).sum(0)
        scores = final.clone()
        scores[rows, tokens] -= self.weight * entropy
        return Scores(scores, {"kept": mask.sum(-1)})


@dataclass(frozen=True, slots=True)
class DeLTa:
    """Logit trajectory: a least-squares line through the logits of layers M..N, read off at a layer beyond N."""

    start: int | None = None
    at: float | None = None
    relative_top: float = 0.1
    lens: Literal["raw", "logit"] = "logit"
    name: str = "delta"

    def __post_init__(self) -> None:
        _check_top(self.relative_top)

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """Layers M..N−1; M is half the depth unless given. The virtual layer must lie beyond N."""
        if self.at is not None and not n_layers < self.at < math.inf:
            raise LayerError(f"DeLTa at={self.at} is out of range: a virtual layer beyond {n_layers}, the last one")
        start = n_layers // 2 if self.start is None else self.start
        return candidate_layers(tuple(range(start, n_layers)) or (start,), n_layers, tied)

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:
        """The line's value at the virtual layer, for plausible tokens only."""
        k = early.shape[0]
        # Layers are N−k..N; distances from N keep the formula free of N itself.
        x = torch.arange(-k, 1, dtype=torch.float64)
        where = 0.1 * n_layers if self.at is None else self.at - n_layers
        centred = x - x.mean()
        w = (1.0 / (k + 1) + (where - x.mean()) * centred / centred.square().sum()).to(final.dtype)
        scores = final * w[-1]
        for weight, z in zip(w[:-1].tolist(), early, strict=True):
            scores = scores.add_(z.to(final.dtype), alpha=weight)
        mask = plausible(final.log_softmax(-1), self.relative_top)
        return Scores(scores.masked_fill_(~mask, -math.inf), {"kept": mask.sum(-1)})
