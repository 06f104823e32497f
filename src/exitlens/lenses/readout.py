"""From hidden states of any layers to named statistics of what each layer would have said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from exitlens.compute.precision import product_dtype
from exitlens.errors import InputError, LayerError
from exitlens.lenses._divergences import compare, entropy, ranks
from exitlens.lenses._fused import FusedBlock, usable
from exitlens.lenses._unembed import LogitBlock, ReadoutPlan, Unembedding
from exitlens.lenses.lens import Lens, check_hidden, check_lens, lens_name, non_finite_error, rows
from exitlens.models.protocol import LayeredModel

__all__ = ["STATS", "Readout", "readout"]

#: Statistic → the names it has in the result.
STATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "entropy": ("entropy",),
        "varentropy": ("varentropy",),
        "top_k": ("top_ids", "top_logprobs"),
        "max_probability": ("max_probability",),
        "margin": ("margin",),
        "logprob": ("logprob",),
        "rank": ("rank",),
        "choices": ("choice_probability", "choice_share"),
        "kl": ("kl",),
        "jsd": ("jsd",),
        "tv": ("tv",),
        "agreement": ("agreement",),
        "settling": ("settling",),
        "cosine": ("cosine",),
    }
)
PAIRED = frozenset({"kl", "jsd", "tv"})
DEFAULT_ROWS = 1024
DEFAULT_BYTES = 512 << 20


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
    lens: Lens = "logit",
    stats: Sequence[str] = ("entropy",),
    targets: Tensor | None = None,
    choices: Sequence[Sequence[int]] | None = None,
    top_k: int = 5,
    reference: int | None = None,
    precision: str = "exact",
    block_rows: int | None = None,
    memory_limit: int | None = None,
) -> Readout:
    """Statistics of ``p_j`` for residual streams ``hidden[j] [t, d_model]``; only what ``stats`` names is computed.

    =================  ============================  ===============================================================
    stat               result ``[layers, t]``        meaning (nats where it is a logarithm)
    =================  ============================  ===============================================================
    entropy            entropy                       H(p_j)
    varentropy         varentropy                    variance of −ln p_j under p_j, nats²
    top_k              top_ids, top_logprobs         ``[layers, t, k]``, largest first; equal logits: lower id first
    max_probability    max_probability               largest probability
    margin             margin                        p(1) − p(2)
    logprob, rank      logprob, rank                 of ``targets [t]`` or ``[t, k]``; rank 0 is the best; where the
                                                     target is −1: NaN and −1
    choices            choice_probability, _share    ``[layers, t, c]``: Σ p over each set of token ids; share: of
                                                     the mass on all choices
    kl, jsd, tv        kl, jsd, tv                   KL(p_ref‖p_j), Jensen–Shannon, total variation to ``reference``
                                                     (default: layer N; read through the same lens)
    agreement          agreement                     bool: same top-1 as layer N
    settling           settling ``[1, t]``           smallest recorded layer from which on the top-1 is layer N's
    cosine             cosine                        of h_j with the next recorded layer's h; NaN at the last one
    =================  ============================  ===============================================================

    ``precision``: exact = float32 product (float64 for float64 models), within 1e-4 nats of the plain computation;
    fast = bf16 product with the 8 largest logits recomputed, where the machine has bf16 products, else exact.
    ``block_rows``: rows (layers × tokens) at a time; ``memory_limit``: bytes the block's buffers may take (default
    512 MiB). Results lie on the CPU-or-GPU where the unembedding lies.

    Raises :class:`InputError` (unknown stat or lens, ids out of the vocabulary, ``top_k`` over it, missing targets,
    a lens of another model), :class:`LayerError` (layer out of range, or the layer to compare with is missing) and
    :class:`ModelError` (NaN: names the first layer).
    """
    layers, t = check_hidden(lm, hidden)
    check_lens(lm, lens)
    wanted = _check_stats(stats)
    vocab = lm.weight.shape[0]
    device = lm.weight.device
    if wanted & {"top_k"} and not 1 <= top_k <= vocab:
        raise InputError(f"top_k {top_k} is out of range: {lm.name} has a vocabulary of {vocab} tokens")
    goal = _check_targets(targets, t, vocab, wanted, lm.name)
    flat_choices, owner = _check_choices(choices, vocab, wanted, lm.name)
    ref = lm.n_layers if reference is None else reference
    if wanted & PAIRED and ref not in layers:
        raise LayerError(
            f"{sorted(wanted & PAIRED)[0]} compares with layer {ref}, which was not recorded: add it to layers"
        )
    if wanted & {"agreement", "settling"} and lm.n_layers not in layers:
        raise LayerError(
            f"agreement and settling compare with layer {lm.n_layers}, which was not recorded: add it to layers"
        )
    product = product_dtype(precision, device, lm.weight.dtype)
    logit_transform = lm.logit_transform
    # KL through Σ p_ref z_j = ⟨Σ p_ref w, x_j⟩ + ⟨p_ref, b⟩ needs logits that are linear in x.
    direct = frozenset(wanted & (PAIRED if logit_transform.cap is not None else {"jsd", "tv"}))
    linear_kl = "kl" in wanted and "kl" not in direct
    top = 0
    if wanted & {"agreement", "settling", "max_probability"}:
        top = 1
    if "margin" in wanted:
        top = min(2, vocab)
    if "top_k" in wanted:
        top = max(top, top_k)
    if product == torch.bfloat16 and device.type == "cpu":
        top = max(top, 1)  # to have the largest logits recomputed
    wants = ReadoutPlan(
        first=bool(wanted & {"entropy", "varentropy", "kl", "jsd"}),
        second="varentropy" in wanted,
        top=top,
        stored=bool(direct or wanted & {"rank", "choices"}),
        targets="logprob" in wanted,
        mean_row=linear_kl,
        compared="kl" in wanted,
    )
    needs_logits = bool(wanted - {"cosine"})
    out: dict[str, Tensor] = {}
    notes: list[str] = []
    if needs_logits and t:
        kind = FusedBlock if usable(device, product, wants) else LogitBlock
        per_block, head = _plan(lm, len(layers), t, wants, product, block_rows, memory_limit, notes)
        r = layers.index(ref) if ref in layers else 0
        pieces: list[dict[str, Tensor]] = []
        for start in range(0, t, per_block):
            states = [hidden[j][start : start + per_block] for j in layers]
            n = len(states[0])
            x = rows(lm, lens, layers, states)
            x = head.rows_of(x.reshape(len(layers) * n, -1))
            block = kind(head, x, wants, slice(r * n, (r + 1) * n))
            if not bool(torch.isfinite(block.total).all()):
                raise non_finite_error(lm, layers, states, start)
            piece = _statistics(block, wanted, len(layers), linear_kl=linear_kl, top_k=top_k)
            if goal is not None:
                ids = goal[start : start + per_block].repeat(len(layers), 1)
                piece |= _targets(block, wanted, ids)
            if flat_choices is not None and owner is not None:
                piece |= _choices(block, flat_choices, owner)
            if direct:  # last: it turns the kept logits into log-probabilities
                piece |= compare(block, direct, len(layers))
            pieces.append({k: v.to(_result_type(v, head)).view(len(layers), n, *v.shape[1:]) for k, v in piece.items()})
        out = {name: torch.cat([p[name] for p in pieces], 1) for name in pieces[0]}
    elif needs_logits:
        out = _empty(wanted, len(layers), goal, owner, top_k, device)
    if targets is not None and targets.dim() == 1:
        out |= {name: out[name].squeeze(2) for name in ("logprob", "rank") if name in out}
    if wanted & {"agreement", "settling"}:
        out |= _settling(out.pop("top_1"), layers, lm.n_layers, wanted)
    if "cosine" in wanted:
        out["cosine"] = _cosine(hidden, layers, device)
    names = [name for stat in STATS if stat in wanted for name in STATS[stat]]
    return Readout(MappingProxyType({n: out[n] for n in names}), layers, lens_name(lens), product, tuple(notes))


# ---- checks


def _check_stats(stats: Sequence[str]) -> frozenset[str]:
    names = (stats,) if isinstance(stats, str) else stats
    for name in names:
        if name not in STATS:
            raise InputError(f"unknown statistic {name!r}: use {', '.join(STATS)}")
    if not names:
        raise InputError(f"no statistic was asked for: use {', '.join(STATS)}")
    return frozenset(names)


def _check_targets(targets: Tensor | None, t: int, vocab: int, wanted: frozenset[str], name: str) -> Tensor | None:
    if not wanted & {"logprob", "rank"}:
        return None
    if targets is None:
        raise InputError("logprob and rank need targets: give one token id (or k) for every token")
    if targets.dim() not in (1, 2) or len(targets) != t:
        raise InputError(f"targets have shape {tuple(targets.shape)}: expected ({t},) or ({t}, k)")
    wrong = (targets < -1) | (targets >= vocab)
    if bool(wrong.any()):
        bad = int(targets[wrong][0])
        raise InputError(f"target id {bad} is out of the vocabulary of {name} (0..{vocab - 1}, or -1 for none)")
    return targets.long() if targets.dim() == 2 else targets.long()[:, None]


def _check_choices(
    choices: Sequence[Sequence[int]] | None, vocab: int, wanted: frozenset[str], name: str
) -> tuple[Tensor | None, Tensor | None]:
    if "choices" not in wanted:
        return None, None
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


def _plan(
    lm: LayeredModel,
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
    limit = DEFAULT_BYTES if memory_limit is None else memory_limit
    asked = max(1, min(t, (block_rows or DEFAULT_ROWS) // n_layers))
    tokens = asked
    while True:
        head = Unembedding(lm.weight, lm.bias, lm.logit_transform, rows=tokens * n_layers, product=product)
        need = head.bytes(wants)
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


def _statistics(
    block: LogitBlock, wanted: frozenset[str], n_layers: int, *, linear_kl: bool, top_k: int
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    log_total = block.total.log()
    if wanted & {"entropy", "varentropy"} or linear_kl:
        h = entropy(block)
        mean = block.first / block.total
        if "entropy" in wanted:
            out["entropy"] = h
        if "varentropy" in wanted:
            out["varentropy"] = (block.second / block.total - mean**2).clamp_(min=0.0)
        if linear_kl:
            ref = block.reference
            n = block.m // n_layers
            x = block.x.view(n_layers, n, -1)
            # Σ p_ref z_j, taken against the same sum of the reference itself so that the shift of p_ref drops out.
            expected = torch.einsum("ltd,td->lt", x.double(), block.mean_row) + block.mean_bias
            lse = (block.shift + log_total).view(n_layers, n)
            kl = lse - expected - h[ref]
            kl = kl.clamp_(min=0.0).flatten()
            kl[ref] = 0.0
            out["kl"] = kl
    if block.top_ids is not None and block.top_values is not None:
        logprobs = block.top_values.double() - log_total[:, None]
        if "top_k" in wanted:
            out["top_ids"], out["top_logprobs"] = block.top_ids[:, :top_k], logprobs[:, :top_k]
        if "max_probability" in wanted:
            out["max_probability"] = logprobs[:, 0].exp()
        if "margin" in wanted:
            p = logprobs[:, :2].exp()
            out["margin"] = p[:, 0] - p[:, 1] if p.shape[1] > 1 else p[:, 0]
        if wanted & {"agreement", "settling"}:
            out["top_1"] = block.top_ids[:, 0]
    return out


def _targets(block: LogitBlock, wanted: frozenset[str], ids: Tensor) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    none = (ids < 0).to(block.head.device)
    ids = ids.to(block.head.device).clamp(min=0)
    if "logprob" in wanted:
        own = block.at(ids)
        if block.head.product == torch.bfloat16:
            own = block.head.single(block.x, ids) - block.shift[:, None]
        out["logprob"] = (own.double() - block.total.log()[:, None]).masked_fill_(none, torch.nan)
    if "rank" in wanted:
        out["rank"] = ranks(block, ids).masked_fill_(none, -1)
    return out


def _choices(block: LogitBlock, ids: Tensor, owner: Tensor) -> dict[str, Tensor]:
    device = block.head.device
    ids, owner = ids.to(device), owner.to(device)
    logp = block.at(ids.expand(block.m, -1)).double() - block.total.log()[:, None]
    n = int(owner.max()) + 1
    total = torch.zeros(block.m, n, dtype=torch.float64, device=device).index_add_(1, owner, logp.exp())
    # The share from logarithms: probabilities of both choices may vanish in float32 and still have a ratio.
    top = logp.amax(1, keepdim=True)
    part = torch.zeros_like(total).index_add_(1, owner, (logp - top).exp())
    return {"choice_probability": total, "choice_share": part / part.sum(1, keepdim=True)}


def _settling(top: Tensor, layers: tuple[int, ...], last: int, wanted: frozenset[str]) -> dict[str, Tensor]:
    same = top == top[layers.index(last)]
    out = {"agreement": same} if "agreement" in wanted else {}
    if "settling" in wanted:
        numbers = torch.tensor(layers, device=top.device)
        order = numbers.argsort(descending=True)
        held = same[order].long().cumprod(0).bool()
        depth = torch.where(held, numbers[order][:, None], last).amin(0)
        out["settling"] = depth[None]
    return out


def _cosine(hidden: Mapping[int, Tensor], layers: tuple[int, ...], device: torch.device) -> Tensor:
    states = [hidden[j].to(device).float() for j in layers]
    last = torch.full((len(states[0]),), torch.nan, device=device)
    steps = [torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(states)]
    return torch.stack([*steps, last])


def _result_type(values: Tensor, head: Unembedding) -> torch.dtype:
    return head.dtype if values.is_floating_point() else values.dtype


def _empty(
    wanted: frozenset[str], n_layers: int, goal: Tensor | None, owner: Tensor | None, k: int, device: torch.device
) -> dict[str, Tensor]:
    """Results of no tokens at all, with the right names and number of axes."""
    out = {name: torch.empty(n_layers, 0, device=device) for stat in wanted for name in STATS[stat]}
    if "top_k" in wanted:
        out["top_ids"] = torch.empty(n_layers, 0, k, dtype=torch.int64, device=device)
        out["top_logprobs"] = torch.empty(n_layers, 0, k, device=device)
    if goal is not None:
        out["logprob"] = torch.empty(n_layers, 0, goal.shape[1], device=device)
        out["rank"] = torch.empty(n_layers, 0, goal.shape[1], dtype=torch.int64, device=device)
    if owner is not None:
        shape = (n_layers, 0, int(owner.max()) + 1)
        out |= {name: torch.empty(shape, device=device) for name in ("choice_probability", "choice_share")}
    if wanted & {"agreement", "settling"}:
        out["top_1"] = torch.empty(n_layers, 0, dtype=torch.int64, device=device)
    return out
