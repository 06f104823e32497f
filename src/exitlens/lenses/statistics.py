"""Every statistic of a layer's distribution, one record each: its name, unit and bounds, what it needs, its formula.

The readout computes what the records say; traces and tables take columns and missing values from them; the help of
``exitlens read`` and docs/lens.md list them. A new statistic is one entry here, or one call in a script of one's own:

    register_statistic(Statistic(
        "collision", "Rényi entropy of order 2, −ln Σ p²", (Column("collision", "nats", 0.0, "ln V"),),
        Needs(logits=True), formula=lambda rows: -rows.sum(lambda log_p: (2 * log_p).exp()).log(),
    ))

p = p_j is a layer's distribution over the V tokens, p_ref the one it is compared with, N the last layer. Logarithms are
natural; 0 ln 0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from exitlens.arguments import wrong_kind
from exitlens.errors import InputError

# Only for annotations: the command line lists the statistics without the seconds that importing torch takes.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from exitlens.lenses._rows import AcrossLayers, PairTile, Rows, Term

__all__ = [
    "STATS",
    "TOP_K",
    "Column",
    "Needs",
    "Statistic",
    "is_missing",
    "known",
    "missing",
    "register_statistic",
    "table",
]

TOP_K = -1  # as many of the largest logits as the caller asks for
EXACT = 1e-4  # nats (or the unit) from float64 with a float32 product; docs/lens.md has what was measured
Kind = Literal["float", "int", "bool"]
Axis = Literal["rank", "target", "choice"]

_BOUNDS: Mapping[str, Callable[[int, int], float]] = MappingProxyType(
    {
        "ln V": lambda vocab, _last: math.log(vocab),
        # Reeb and Wolf 2015 (arXiv 1409.4280): no distribution over V outcomes varies more.
        "¼ ln² V + 1": lambda vocab, _last: 0.25 * math.log(vocab) ** 2 + 1,
        "ln 2": lambda _vocab, _last: math.log(2),
        "V − 1": lambda vocab, _last: vocab - 1,
        "N": lambda _vocab, last: last,
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """A named result ``[layers, t]``, with a fourth axis ``[layers, t, …]`` where ``axis`` names one.

    ``low``, ``high``: its bounds, in words where they depend on V (tokens of the vocabulary) or N (the last layer).
    ``fast``: how far a bf16 product may leave it from the exact one. ``shared``: one value a token, ``[1, t]``.
    """

    name: str
    unit: str = ""
    low: float = 0.0
    high: float | str = math.inf
    kind: Kind = "float"
    axis: Axis | None = None
    fast: float | None = None
    shared: bool = False

    def bounds(self, vocab: int, last: int) -> tuple[float, float]:
        """``(low, high)`` for a model with so many tokens and layers."""
        high = _BOUNDS[self.high](vocab, last) if isinstance(self.high, str) else self.high
        return self.low, high


@dataclass(frozen=True, slots=True)
class Needs:
    """What a formula looks at; the readout makes only these passes.

    ``first``, ``second``: Σ p z and Σ p z². ``top``: so many of the largest logits. ``logits``: all logits, kept for a
    look back. ``single``: single logits. ``given``: what the caller has to give. ``reference``: the rows of another
    layer; with ``terms`` both distributions are compared token by token, with ``mean`` Σ p_ref z is enough where logits
    are linear in the state (no soft-cap). ``last``: layer N among the layers.
    """

    first: bool = False
    second: bool = False
    top: int = 0
    logits: bool = False
    single: bool = False
    given: Literal["targets", "choices"] | None = None
    reference: Literal["mean", "terms"] | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic. ``meaning`` is a line for help and docs, ``source`` the paper that defines it.

    ``formula`` gives a block's values ``[m]`` (``[m, k]`` with an axis), a tuple of them for several columns;
    ``term`` is what it sums over pairs of distributions ``[layers, t, v]``; ``across`` gives ``[layers, t]`` from all
    layers at once, for statistics that no single row determines.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    needs: Needs = field(default_factory=Needs)
    formula: Callable[[Rows], Tensor | tuple[Tensor, ...]] | None = None
    term: Term | None = None
    across: Callable[[AcrossLayers], Tensor] | None = None
    source: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Its own name and those of its columns."""
        return frozenset({self.name, *(c.name for c in self.columns)})


# ---- formulas


def _varentropy(rows: Rows) -> Tensor:
    # Var(−ln p) = Var(z): ln p differs from z by a constant of the row. Clamped to its bound against rounding.
    return (rows.mean_square - rows.mean_logit**2).clamp_(min=0.0)


def _top_k(rows: Rows) -> tuple[Tensor, Tensor]:
    return rows.top_ids[:, : rows.top_k], rows.top_logprobs[:, : rows.top_k]


def _margin(rows: Rows) -> Tensor:
    p = rows.top_logprobs[:, :2].exp()
    return p[:, 0] - p[:, 1] if p.shape[1] > 1 else p[:, 0]


def _logprob(rows: Rows) -> Tensor:
    return rows.logprobs_at(rows.target_ids, rescored=True).masked_fill_(rows.no_target, math.nan)


def _rank(rows: Rows) -> Tensor:
    return rows.larger_than(rows.target_ids).masked_fill_(rows.no_target, -1)


def _choices(rows: Rows) -> tuple[Tensor, Tensor]:
    logp = rows.logprobs_at(rows.choice_ids.expand(rows.m, -1))
    empty = logp.new_zeros(rows.m, int(rows.choice_of.max()) + 1)
    total = empty.index_add(1, rows.choice_of, logp.exp())
    # The share from logarithms: probabilities of both choices may vanish in float32 and still have a ratio.
    part = empty.index_add(1, rows.choice_of, (logp - logp.amax(1, keepdim=True)).exp())
    return total, part / part.sum(1, keepdim=True)


def _kl_term(tile: PairTile) -> Tensor:
    return tile.subtract(tile.log_p, tile.log_q).mul_(tile.p)


def _kl(rows: Rows) -> Tensor:
    # With logits linear in the state Σ p_ref z_j costs one product a token for all layers; a soft-cap breaks that.
    found = (rows.cross_entropy() - rows.reference_entropy).clamp_(min=0.0) if rows.linear else rows.terms["kl"]
    return rows.zero_at_reference(found)


def _jsd_term(tile: PairTile) -> Tensor:
    middle = tile.add(tile.p, tile.q).mul_(0.5)
    return middle.xlogy_(middle)


def _jsd(rows: Rows) -> Tensor:
    # ½KL(p‖m) + ½KL(q‖m) = H(m) − ½H(p) − ½H(q), m = ½(p + q); clamped to its bounds against rounding.
    found = -rows.terms["jsd"] - 0.5 * (rows.entropy + rows.reference_entropy)
    return rows.zero_at_reference(found.clamp_(0.0, math.log(2.0)))


def _tv_term(tile: PairTile) -> Tensor:
    return tile.subtract(tile.p, tile.q).abs_()


def _saturation(every: AcrossLayers) -> Tensor:
    import torch

    numbers = torch.tensor(every.layers, device=every.same.device)
    order = numbers.argsort(descending=True)
    held = every.same[order].long().cumprod(0).bool()
    return torch.where(held, numbers[order][:, None], every.last).amin(0)[None]


def _cosine(every: AcrossLayers) -> Tensor:
    import torch

    states = [every.hidden[j] for j in every.layers]
    last = torch.full((len(states[0]),), math.nan, device=every.device)
    # Each pair where its second lies: of a model spread over devices, states cross at a border alone.
    pairs = ((a.to(b.device).float(), b.float()) for a, b in pairwise(states))
    steps = [torch.nn.functional.cosine_similarity(a, b, dim=-1).to(every.device) for a, b in pairs]
    return torch.stack([*steps, last])


# ---- the records, in the order of results

_RECORDS = (
    Statistic(
        "entropy", "H(p) = −Σ p ln p", (Column("entropy", "nats", 0.0, "ln V", fast=0.05),),
        Needs(first=True), lambda rows: rows.entropy,
    ),
    Statistic(
        "varentropy", "variance of −ln p under p", (Column("varentropy", "nats²", 0.0, "¼ ln² V + 1"),),
        Needs(first=True, second=True), _varentropy,
    ),
    Statistic(
        "top_k", "the k most probable tokens, largest first; equal logits: lower id first",
        (Column("top_ids", "token id", 0.0, "V − 1", "int", "rank"),
         Column("top_logprobs", "nats", -math.inf, 0.0, axis="rank", fast=0.05)),
        Needs(top=TOP_K), _top_k,
    ),
    Statistic(
        "max_probability", "largest probability p(1)", (Column("max_probability", "", 0.0, 1.0, fast=0.01),),
        Needs(top=1), lambda rows: rows.top_logprobs[:, 0].exp(),
    ),
    Statistic("margin", "p(1) − p(2)", (Column("margin", "", 0.0, 1.0, fast=0.01),), Needs(top=2), _margin),
    Statistic(
        "logprob", "ln p of each target (of a text: its next token); NaN where there is none",
        (Column("logprob", "nats", -math.inf, 0.0, axis="target", fast=0.05),),
        Needs(single=True, given="targets"), _logprob,
    ),
    Statistic(
        "rank", "how many tokens are more probable than each target, 0 = the best; −1 where there is none",
        (Column("rank", "", 0.0, "V − 1", "int", "target"),),
        Needs(logits=True, given="targets"), _rank,
    ),
    Statistic(
        "choices", "Σ p over each set of token ids, and its share of the mass on all sets",
        (Column("choice_probability", "", 0.0, 1.0, axis="choice", fast=0.02),
         Column("choice_share", "", 0.0, 1.0, axis="choice", fast=0.02)),
        Needs(logits=True, given="choices"), _choices,
    ),
    Statistic(
        "kl", "KL(p_ref‖p)", (Column("kl", "nats", fast=0.05),), Needs(first=True, reference="mean"), _kl, _kl_term,
        source="the tuned lens' loss, Belrose et al. 2023",
    ),
    Statistic(
        "jsd", "Jensen–Shannon divergence of p and p_ref", (Column("jsd", "nats", 0.0, "ln 2", fast=0.02),),
        Needs(first=True, reference="terms"), _jsd, _jsd_term, source="DoLa's distance, Chuang et al. 2023",
    ),
    Statistic(
        "tv", "total variation ½Σ|p − p_ref|", (Column("tv", "", 0.0, 1.0, fast=0.02),),
        Needs(reference="terms"), lambda rows: rows.zero_at_reference(0.5 * rows.terms["tv"]), _tv_term,
    ),
    Statistic(
        "agreement", "whether the top-1 token is layer N's", (Column("agreement", "", 0.0, 1.0, "bool"),),
        Needs(top=1, last=True), across=lambda every: every.same,
    ),
    Statistic(
        "saturation", "saturation layer: the first recorded one from which the top-1 token no longer changes",
        (Column("saturation", "layer", 0.0, "N", "int", shared=True),),
        Needs(top=1, last=True), across=_saturation,
    ),
    Statistic(
        "cosine", "cosine of h with the next recorded layer's h; NaN at the last one",
        (Column("cosine", "", -1.0, 1.0),), across=_cosine,
    ),
)  # fmt: skip

_known: dict[str, Statistic] = {record.name: record for record in _RECORDS}
#: Every statistic by name, in the order of results.
STATS: Mapping[str, Statistic] = MappingProxyType(_known)


def register_statistic(statistic: Statistic) -> Statistic:
    """Add a statistic of your own, for readout, traces, tables and help.

    Args:
        statistic: Its name, columns with units and bounds, needs and formula.

    Returns:
        The statistic itself.

    Raises:
        InputError: Its name or one of its columns is taken, or it has no formula.
    """
    if not isinstance(statistic, Statistic):
        raise wrong_kind("a statistic", statistic, "give an exitlens.lenses.statistics.Statistic")
    taken = {
        name: record.name for record in STATS.values() for name in (record.name, *(c.name for c in record.columns))
    }
    for name in (statistic.name, *(c.name for c in statistic.columns)):
        if name in taken:
            raise InputError(
                f"statistic {statistic.name!r}: the name {name!r} is taken by {taken[name]!r}: use another"
            )
    if not statistic.columns or (statistic.formula is None) == (statistic.across is None):
        raise InputError(f"statistic {statistic.name!r} needs at least one column, and either formula= or across=")
    _known[statistic.name] = statistic
    return statistic


def known(names: str | tuple[str, ...] | list[str], without: tuple[str, ...] = ()) -> tuple[Statistic, ...]:
    """The records of ``names``, each once, in the order of :data:`STATS`.

    Raises:
        InputError: none is asked for, one is unknown, or one is among ``without``.
    """
    names = (names,) if isinstance(names, str) else names
    usable = [name for name in STATS if name not in without]
    for name in names:
        if name not in usable:
            raise InputError(f"unknown statistic {name[:80]!r}: use {', '.join(usable)}")
    if not names:
        raise InputError(f"no statistic was asked for: use {', '.join(usable)}")
    return tuple(record for record in STATS.values() if record.name in names)


def table() -> str:
    """The records as a Markdown table, as docs/lens.md has it."""
    lines = ["| statistic | columns | meaning | unit | bounds |", "|---|---|---|---|---|"]
    for record in STATS.values():
        names = ", ".join(f"`{c.name}`" + (f" ({c.axis})" if c.axis else "") for c in record.columns)
        units = "; ".join(c.unit or "—" for c in record.columns)
        bounds = "; ".join(f"{_in_words(c.low)} … {_in_words(c.high)}" for c in record.columns)
        meaning = record.meaning.replace("|", r"\|") + (f" ({record.source})" if record.source else "")
        lines.append(f"| {record.name} | {names} | {meaning} | {units} | {bounds} |")
    return "\n".join(lines)


def _in_words(bound: float | str) -> str:
    return bound if isinstance(bound, str) else f"{bound:g}".replace("inf", "∞").replace("-", "−")


def missing(kind: str) -> float | int | bool:
    """What stands where a value of a NumPy dtype kind is missing: NaN (f), False (b), else −1."""
    return {"f": math.nan, "b": False}.get(kind, -1)


def is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value is missing; a truth value never is."""
    import numpy as np

    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    return np.asarray(values == -1) if values.dtype.kind == "i" else np.zeros(values.shape, dtype=np.bool_)
