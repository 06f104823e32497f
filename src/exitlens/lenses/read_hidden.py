"""From hidden states of any layers to named statistics of what each layer would have said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from exitlens.compute.hardware import product_dtype
from exitlens.errors import InputError, LayerError
from exitlens.lenses._rows import AcrossLayers, Rows, Term
from exitlens.lenses._spread import joined, places
from exitlens.lenses.kernels import compiled as _compiled
from exitlens.lenses.kernels.triton import FusedBlock, usable
from exitlens.lenses.kernels.unembed import LogitBlock, ReadoutPlan, Unembedding
from exitlens.lenses.lens import Lens, as_lens, check_hidden, non_finite_error
from exitlens.lenses.statistics import TOP_K, Column, Statistic, known
from exitlens.models.protocol import LayeredModel

__all__ = ["Readout", "readout"]

DEFAULT_ROWS = 1024
DEFAULT_BYTES = 512 << 20
# A GPU reads the whole unembedding from its memory for each block: of more rows, less often.
GPU_ROWS = 8192
GPU_BYTES = 1 << 30


@dataclass(frozen=True)
class Readout(Mapping[str, Tensor]):
    """Statistics by name. Axis 0 is :attr:`layers` in order, axis 1 the tokens, unless said otherwise in
    :func:`readout`; ``notes`` are lines for the reader ("smaller blocks: …"); ``product`` the number type of the
    unembedding product.
    """

    values_by_name: Mapping[str, Tensor]
    layers: tuple[int, ...]
    lens: str
    product: torch.dtype
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


@torch.no_grad()
def readout(
    lm: LayeredModel,
    hidden: Mapping[int, Tensor],
    *,
    lens: str | Lens = "logit",
    stats: Sequence[str] = ("entropy",),
    targets: Tensor | None = None,
    choices: Sequence[Sequence[int]] | None = None,
    top_k: int = 5,
    reference: int | None = None,
    precision: str = "exact",
    block_rows: int | None = None,
    memory_limit: int | None = None,
) -> Readout:
    """Statistics of ``p_j`` for residual streams, of any layers at once; only what ``stats`` names is computed.

    Args:
        lm: The model.
        hidden: ``{layer: [t, d_model]}``, residual streams.
        lens: ``logit``, ``raw`` or a lens of this model.
        stats: Names of :data:`.statistics.STATS`, whose records say what each one is.
        targets: ``[t]`` or ``[t, k]`` token ids, −1 for none.
        choices: Sets of token ids, one a choice.
        top_k: How many tokens ``top_k`` gives.
        reference: The layer that ``kl``, ``jsd`` and ``tv`` compare with, read through the same lens; None: layer N.
        precision: ``exact`` = float32 product (float64 for float64 models), within 1e-4 nats of the plain computation;
            ``fast`` = bf16 product with the 8 largest logits recomputed, where the machine has bf16 products.
        block_rows: Rows (layers × tokens) at a time.
        memory_limit: Bytes the block's buffers may take (default 512 MiB, on a GPU 1 GiB).

    Returns:
        ``{column: [layers, t]}``, with a fourth axis ``[layers, t, k]`` where the statistic has one; on the device of
        the unembedding.

    Raises:
        InputError: Unknown statistic or lens, ids out of the vocabulary, ``top_k`` over it, missing targets, a lens of
            another model.
        LayerError: A layer out of range, or the one to compare with is missing.
        ModelError: NaN; names the first layer that holds it.
    """
    layers, t = check_hidden(lm, hidden)
    lens = as_lens(lens, lm)
    lens.check_layers([layer for layer in layers if layer < lm.n_layers])
    wanted = known(tuple(stats) if not isinstance(stats, str) else stats)
    given = _Given.checked(lm, wanted, t, targets=targets, choices=choices, top_k=top_k)
    ref = lm.n_layers if reference is None else reference
    _check_compared(wanted, layers, ref, lm.n_layers)
    device, product = lm.weight.device, product_dtype(precision, lm.weight.device, lm.weight.dtype)
    terms = _terms(wanted, lm)
    plan = _plan(wanted, frozenset(terms), lm, product, top_k)
    by_row = [record for record in wanted if record.formula is not None or record.needs.top]
    out: dict[str, Tensor] = {}
    notes: list[str] = []
    if by_row and t:

        def blocks(end: LayeredModel, states: Mapping[int, Tensor]) -> dict[str, Tensor]:
            job = _Job(end, lens, tuple(states), plan, product, by_row, terms, given, top_k, ref)
            return _in_blocks(job, states, block_rows, memory_limit, notes)

        where = places(lm, hidden, layers)
        compared = ref if any(record.needs.reference for record in wanted) else None
        at_home = set(where) == {device}
        out = blocks(lm, hidden) if at_home else joined(where, hidden, layers, compared, device, blocks)
    elif by_row:
        out = _empty(by_row, len(layers), given, device)
    if targets is not None and targets.dim() == 1:
        out = {name: value.squeeze(2) if name in given.per_target else value for name, value in out.items()}
    every = AcrossLayers(hidden, layers, lm.n_layers, device, out.pop(_TOP_1, None))
    out |= {record.columns[0].name: record.across(every) for record in wanted if record.across is not None}
    names = [c.name for record in wanted for c in record.columns]
    return Readout(MappingProxyType({n: out[n] for n in names}), layers, lens.name, product, tuple(notes))


# ---- block by block


@dataclass(frozen=True)
class _Job:
    """What is read of given layers on one device. ``ref``: the layer that others are compared with."""

    lm: LayeredModel
    lens: Lens
    layers: tuple[int, ...]
    plan: ReadoutPlan
    product: torch.dtype
    by_row: Sequence[Statistic]
    terms: Mapping[str, Term]
    given: _Given
    top_k: int
    ref: int


def _in_blocks(
    job: _Job, hidden: Mapping[int, Tensor], block_rows: int | None, memory_limit: int | None, notes: list[str]
) -> dict[str, Tensor]:
    """Every column that rows alone determine ``[layers, t, …]``; no logit outlives its block."""
    lm, layers, given = job.lm, job.layers, job.given
    t, device = len(hidden[layers[0]]), lm.weight.device
    kind = _kind(device, job.product, job.plan, len(layers) * t * len(lm.weight), notes)
    per_block, head = _fitting(lm, kind, len(layers), t, job.plan, job.product, block_rows, memory_limit, notes)
    r = layers.index(job.ref) if job.ref in layers else 0
    pieces: list[dict[str, Tensor]] = []
    for start in range(0, t, per_block):
        states = [hidden[j][start : start + per_block].to(device) for j in layers]
        n = len(states[0])
        with kind.calm(head) if job.lens.flops == 0 else nullcontext():
            x = job.lens.rows(lm, layers, states)
        with kind.calm(head):
            x = head.rows_of(x.reshape(len(layers) * n, -1))
            block = kind(head, x, job.plan, slice(r * n, (r + 1) * n))
            if not bool(torch.isfinite(block.total).all()):
                raise non_finite_error(lm, layers, states, start)
            goal = None if given.targets is None else given.targets[start : start + n].repeat(len(layers), 1)
            rows = Rows(block, len(layers), job.terms, top_k=job.top_k, targets=goal, choices=given.choices)
            piece = _of_rows(job.by_row, rows)
        pieces.append({k: v.to(_result_type(v, head)).view(len(layers), n, *v.shape[1:]) for k, v in piece.items()})
    return {name: torch.cat([p[name] for p in pieces], 1) for name in pieces[0]}


# ---- checks


@dataclass(frozen=True)
class _Given:
    """What the caller gave, checked: ``targets [t, k]``; ids of all choices and the choice of each."""

    targets: Tensor | None
    choices: tuple[Tensor, Tensor] | None
    sizes: Mapping[str | None, tuple[int, ...]]
    per_target: frozenset[str]

    @classmethod
    def checked(
        cls,
        lm: LayeredModel,
        wanted: Sequence[Statistic],
        t: int,
        *,
        targets: Tensor | None,
        choices: Sequence[Sequence[int]] | None,
        top_k: int,
    ) -> _Given:
        """Raises :class:`InputError` for what is missing or does not fit the vocabulary."""
        vocab = lm.weight.shape[0]
        if any(record.needs.top == TOP_K for record in wanted) and not 1 <= top_k <= vocab:
            raise InputError(f"top_k {top_k} is out of range: {lm.name} has a vocabulary of {vocab} tokens")
        goal = _check_targets(targets, t, vocab, wanted, lm.name)
        sets = _check_choices(choices, vocab, wanted, lm.name)
        sizes: dict[str | None, tuple[int, ...]] = {None: (), "rank": (top_k,)}
        sizes["target"] = () if goal is None else (goal.shape[1],)
        sizes["choice"] = () if sets is None else (int(sets[1].max()) + 1,)
        per_target = frozenset(c.name for record in wanted for c in record.columns if c.axis == "target")
        return cls(goal, sets, sizes, per_target)


def _check_compared(wanted: Sequence[Statistic], layers: tuple[int, ...], ref: int, last: int) -> None:
    for record in wanted:
        for layer in ([ref] if record.needs.reference else []) + ([last] if record.needs.last else []):
            if layer not in layers:
                raise LayerError(f"{record.name} compares with layer {layer}, which was not recorded: add it to layers")


def _check_targets(targets: Tensor | None, t: int, vocab: int, wanted: Sequence[Statistic], name: str) -> Tensor | None:
    asking = [record.name for record in wanted if record.needs.given == "targets"]
    if not asking:
        return None
    if targets is None:
        raise InputError(f"{asking[0]} needs targets: give one token id (or k) for every token")
    if targets.dim() not in (1, 2) or len(targets) != t:
        raise InputError(f"targets have shape {tuple(targets.shape)}: expected ({t},) or ({t}, k)")
    wrong = (targets < -1) | (targets >= vocab)
    if bool(wrong.any()):
        bad = int(targets[wrong][0])
        raise InputError(f"target id {bad} is out of the vocabulary of {name} (0..{vocab - 1}, or -1 for none)")
    return targets.long() if targets.dim() == 2 else targets.long()[:, None]


def _check_choices(
    choices: Sequence[Sequence[int]] | None, vocab: int, wanted: Sequence[Statistic], name: str
) -> tuple[Tensor, Tensor] | None:
    if not any(record.needs.given == "choices" for record in wanted):
        return None
    if not choices:
        raise InputError("choices need choices=[[token ids], …]: one set of token ids for every choice")
    for i, ids in enumerate(choices):
        if not ids:
            raise InputError(f"choice {i} has no token ids: give at least one")
        for v in ids:
            if not 0 <= v < vocab:
                raise InputError(f"choice {i} names token id {v}, out of the vocabulary of {name} (0..{vocab - 1})")
    sets = [sorted(set(ids)) for ids in choices]
    owner = torch.tensor([i for i, ids in enumerate(sets) for _ in ids])
    return torch.tensor([v for ids in sets for v in ids]), owner


# ---- the plan of a block

_TOP_1 = "top 1"  # the top-1 tokens of every layer, for statistics across layers


def _terms(wanted: Sequence[Statistic], lm: LayeredModel) -> dict[str, Term]:
    """What is summed over pairs of distributions: a soft-cap breaks the linearity that needs of a mean rest on."""
    capped = lm.logit_transform.cap is not None
    return {
        record.name: record.term
        for record in wanted
        if record.term is not None and (capped or record.needs.reference == "terms")
    }


def _plan(
    wanted: Sequence[Statistic], direct: frozenset[str], lm: LayeredModel, product: torch.dtype, top_k: int
) -> ReadoutPlan:
    needs = [record.needs for record in wanted]
    top = max((top_k if n.top == TOP_K else min(n.top, lm.weight.shape[0]) for n in needs), default=0)
    if product == torch.bfloat16 and lm.weight.device.type == "cpu":
        top = max(top, 1)  # to have the largest logits recomputed
    means = [record.name for record in wanted if record.needs.reference == "mean"]
    return ReadoutPlan(
        first=any(n.first for n in needs),
        second=any(n.second for n in needs),
        top=top,
        stored=bool(direct) or any(n.logits for n in needs),
        targets=any(n.single for n in needs),
        mean_row=any(name not in direct for name in means),
        compared=bool(means),
    )


def _kind(
    device: torch.device, product: torch.dtype, plan: ReadoutPlan, logits: int, notes: list[str]
) -> type[LogitBlock]:
    """What computes a block; a note where numba would have made it quicker."""
    if usable(device, product, plan):
        return FusedBlock
    if _compiled.usable(device, product, plan, logits):
        problem = _compiled.problem()
        if problem is None:
            return _compiled.CompiledBlock
        notes += [problem] if problem else []
    return LogitBlock


def _fitting(
    lm: LayeredModel,
    kind: type[LogitBlock],
    n_layers: int,
    t: int,
    wants: ReadoutPlan,
    product: torch.dtype,
    block_rows: int | None,
    memory_limit: int | None,
    notes: list[str],
) -> tuple[int, Unembedding]:
    """Tokens at a time, and the head with buffers for them; fewer when they would not fit."""
    if block_rows is not None and block_rows < 1:
        raise InputError(f"block_rows {block_rows} is too small: use 1 or more")
    usual, most = (GPU_ROWS, GPU_BYTES) if lm.weight.device.type == "cuda" else (DEFAULT_ROWS, DEFAULT_BYTES)
    limit = most if memory_limit is None else memory_limit
    asked = max(1, min(t, (block_rows or usual) // n_layers))
    if block_rows is None:
        first = Unembedding(lm.weight, lm.bias, lm.logit_transform, rows=1, product=product)
        asked = kind.tokens(first, n_layers, asked)
    tokens = asked
    while True:
        head = Unembedding(lm.weight, lm.bias, lm.logit_transform, rows=tokens * n_layers, product=product)
        need = kind.bytes(head, wants)
        if need <= limit or (tokens == 1 and memory_limit is None):
            break
        if tokens == 1:
            raise InputError(
                f"memory_limit {memory_limit} bytes is too small: one token at {n_layers} layers needs {need}; "
                "raise it or read fewer layers"
            )
        tokens = max(1, min(tokens - 1, tokens * limit // need))
    if tokens < asked and memory_limit is not None:
        notes.append(f"smaller blocks: {tokens} tokens at a time instead of {asked}, to stay in {limit} bytes")
    return tokens, head


# ---- statistics of a block, [m] or [m, k]


def _of_rows(wanted: Sequence[Statistic], rows: Rows) -> dict[str, Tensor]:
    """Every column that rows alone determine; sums over pairs last, since they use the kept logits up."""
    out: dict[str, Tensor] = {}
    for record in sorted(wanted, key=lambda record: record.term is not None):
        if record.formula is not None:
            found = record.formula(rows)
            parts = found if isinstance(found, tuple) else (found,)
            out |= {c.name: part for c, part in zip(record.columns, parts, strict=True)}
        else:
            out[_TOP_1] = rows.top_ids[:, 0]
    return out


def _result_type(values: Tensor, head: Unembedding) -> torch.dtype:
    return head.dtype if values.is_floating_point() else values.dtype


_TYPES = MappingProxyType({"float": torch.float32, "int": torch.int64, "bool": torch.bool})


def _empty(wanted: Sequence[Statistic], n_layers: int, given: _Given, device: torch.device) -> dict[str, Tensor]:
    """Results of no tokens at all, with the right names and number of axes."""

    def none(c: Column) -> Tensor:
        return torch.empty(n_layers, 0, *given.sizes[c.axis], dtype=_TYPES[c.kind], device=device)

    out = {c.name: none(c) for record in wanted if record.formula is not None for c in record.columns}
    if any(record.formula is None for record in wanted):
        out[_TOP_1] = torch.empty(n_layers, 0, dtype=torch.int64, device=device)
    return out
