"""Is the layered view right on every entry of transformers' causal-LM mapping? Checked from outside, value by value.

The references are the model itself: its logits, its own ``output_hidden_states`` where it gives one state a layer,
and hooks put on its blocks here, with a reading of their output that shares no code with exitlens.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from exitlens.errors import ExitlensError, UnsupportedModel
from exitlens.lenses.attribution import HEAD_KINDS, Target, attribute_ids, parts_of
from exitlens.models import Layered, wrap
from exitlens.models.checks import FAILURES

from . import decoding, zoo

BOUND = 2e-4  # of the largest value: rounding of float32 through a few layers, other products in a batch


@dataclass
class Outcome:
    """What the census found about one model. ``status``: right, refused, wrong, or unbuilt (not possible here)."""

    entry: str
    status: str
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    pads: bool = False
    gap: bool = False
    cache: str = ""
    attribution: str = ""
    own_states: bool = False
    width: int = 0
    d_head: int = 0
    late: str = ""
    ragged: str = ""


class Wrong(Exception):
    """A number that is not what the model itself says."""


def no_cache(model: Any) -> dict[str, Any]:
    """The argument that turns caching off, where the model has it."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def close(got: Tensor, want: Tensor, what: str, bound: float = BOUND) -> None:
    """Raise :class:`Wrong` unless equal to rounding."""
    if got.shape != want.shape:
        raise Wrong(f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    if not torch.isfinite(want).all():
        raise Wrong(f"{what}: the model's own numbers are not finite")
    worst = float((got - want).abs().max())
    if not worst <= bound * max(1.0, float(want.abs().max())):
        raise Wrong(f"{what}: off by {worst:.2e} (largest value {float(want.abs().max()):.3g})")


def survey(entry: str, *, decode: bool = True) -> Outcome:
    """Build ``entry`` tiny and check every promise of the layered view, and of decoding where that is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = zoo.build(entry)
        except (*FAILURES, ImportError, StrictDataclassError) as error:
            return Outcome(entry, "unbuilt", " ".join(f"{type(error).__name__}: {error}".split())[:160])
        before = fingerprint(model)
        try:
            lm = wrap(model, None, name=entry)
        except ExitlensError as error:
            return Outcome(entry, "refused", str(error).removeprefix(f"{entry}: "))
        out = Outcome(entry, "right", pads=lm.pads_exactly, gap=lm.gap_exact, width=lm.d_model)
        out.d_head, out.cache = int(lm.weight.shape[1]), lm.cache_kind
        try:
            hidden = check(lm, model, out)
            out.attribution = _attribution(lm, out)
            if fingerprint(model) != before:
                raise Wrong("the model was changed")
            # Last, because transformers itself puts hooks on a model that is asked for its states.
            _own_states(lm, model, hidden, out)
            if decode:
                _decodes(entry, out)
        except Wrong as error:
            out.status, out.reason = "wrong", str(error)
        return out


def _decodes(entry: str, out: Outcome) -> None:
    out.late, fault = decoding.late(entry)
    if fault:
        raise Wrong(f"decoding: {fault}")
    fault = decoding.ragged(entry)
    if fault:
        raise Wrong(f"decoding at a ragged batch: {fault}")
    out.ragged = "equal"


def fingerprint(model: Any) -> tuple[Any, ...]:
    """What must not change: modes, hooks, instance attributes of the modules, gradients' flags."""
    return tuple(
        (name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in model.named_modules()
    ) + tuple(p.requires_grad for p in model.parameters())


def random_ids(lm: Layered, rows: int, seed: int) -> Tensor:
    """Tokens that the check at load has not seen; the first and last ids of a vocabulary may be special."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, min(zoo.VOCAB, lm.vocab_size) - 12, (rows, 12), generator=draw)


@torch.no_grad()
def check(lm: Layered, model: Any, out: Outcome) -> dict[int, Tensor]:
    """Every promise, on random tokens; gives the hidden states of the first row."""
    ids = random_ids(lm, 1, 5)
    n = lm.n_layers
    hidden = lm.forward(ids, layers="all").hidden
    want = model(input_ids=ids, **no_cache(model)).logits
    if want.shape[-1] != lm.vocab_size:
        raise Wrong(f"vocabulary {lm.vocab_size}, logits {want.shape[-1]}")
    close(lm.logits(hidden[n], n), want, f"logits of layer {n}")
    close(lm.logits(hidden[n][0, 3:5], n), want[0, 3:5], f"logits of layer {n}, two loose positions")
    _hooked(lm, model, ids, hidden)
    rows = random_ids(lm, 3, 6)
    alone = [lm.forward(row[None], layers="all").hidden for row in rows]
    _batch(lm, rows, alone)
    if lm.pads_exactly:
        _padding(lm, rows)
    _cache(lm, rows, alone)
    if lm.gap_exact:
        _gap(lm, rows)
    return hidden


def _hooked(lm: Layered, model: Any, ids: Tensor, hidden: dict[int, Tensor]) -> None:
    n = lm.n_layers

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else []
        return [t for part in parts for t in tensors(part)]

    grabbed: dict[int, list[Tensor]] = {}
    handles = [
        block.register_forward_hook(lambda _m, _a, o, j=j: grabbed.__setitem__(j, [t.clone() for t in tensors(o)]))
        for j, block in enumerate(lm.blocks, 1)
    ]
    handles.append(
        (lm.layout.stream.entry or lm.blocks[0]).register_forward_pre_hook(
            lambda _m, a, k: grabbed.__setitem__(0, [t.clone() for t in tensors([*a, *k.values()])]), with_kwargs=True
        )
    )
    model(input_ids=ids, **no_cache(model))
    for handle in handles:
        handle.remove()
    for j in range(n + 1):
        match = [t for t in grabbed[j] if same(t, hidden[j])]
        if not match and len(set(map(id, lm.blocks))) == n:
            raise Wrong(f"layer {j} is not among what a hook on the block sees")


@torch.no_grad()
def _own_states(lm: Layered, model: Any, hidden: dict[int, Tensor], out: Outcome) -> None:
    n, ids = lm.n_layers, random_ids(lm, 1, 5)
    try:
        states = model(input_ids=ids, **no_cache(model), output_hidden_states=True).hidden_states
    except FAILURES:
        states = None
    if states is None or len(states) != n + 1:
        out.notes.append(f"own hidden_states: {None if states is None else len(states)}")
        return
    out.own_states = True
    if all(same(states[j], hidden[j + 1]) for j in range(n)):
        out.notes.append("own hidden_states begin after block 1")
        return
    for j in range(n):
        if not same(states[j], hidden[j]):
            raise Wrong(f"layer {j} is not the model's own hidden_states[{j}]")
    if not same(states[n], hidden[n]) and not same(states[n], lm.norm(hidden[n])):
        out.notes.append("own last hidden state: neither raw nor normed")


def same(a: Tensor, b: Tensor) -> bool:
    """Equal values, whatever axes a stack of streams was packed along."""
    if a.dim() == 3 == b.dim() and a.shape[1] > b.shape[1]:
        a = a[:, -b.shape[1] :]  # prompts put before the text
    if a.numel() != b.numel() or not a.is_floating_point():
        return False
    if a.shape == b.shape:
        return bool(torch.allclose(a, b, rtol=1e-5, atol=1e-5))
    return bool(torch.allclose(a.flatten().sort()[0], b.flatten().sort()[0], rtol=1e-5, atol=1e-5))


def _batch(lm: Layered, rows: Tensor, alone: list[dict[int, Tensor]]) -> None:
    together = lm.forward(rows, torch.ones_like(rows), layers="all").hidden
    last = lm.forward(rows, layers=(lm.n_layers,), positions="last").hidden[lm.n_layers]
    for r in range(len(rows)):
        for j in range(lm.n_layers + 1):
            close(together[j][r], alone[r][j][0], f"row {r} of a batch, layer {j}")
        close(last[r], alone[r][lm.n_layers][0, -1:], f"row {r} of a batch, last position")


def _attribution(lm: Layered, out: Outcome) -> str:
    """Whether logits split into what each block adds; where they do, the sums on tokens that were not seen before."""
    try:
        parts = parts_of(lm)
    except UnsupportedModel as error:
        out.notes.append(f"no attribution: {str(error).removeprefix(f'{lm.name}: ').partition(', so ')[0]}")
        return "refused"
    ids = random_ids(lm, 2, 7)
    wanted = [Target("one", 3), Target("difference", 3, 5)]
    found = attribute_ids(lm, ids.tolist(), [wanted, wanted], texts=("one", "other"))
    rows = found.components[~found.components["kind"].isin(HEAD_KINDS)]
    sums = rows.groupby(["prompt", "target"], sort=False)["contribution"].sum()
    hidden = lm.forward(ids, layers=(lm.n_layers,), positions="last").hidden[lm.n_layers]
    own = (lm.unembed(lm.norm(hidden)) * lm.logit_transform.scale)[:, -1]
    want = torch.stack([own[:, 3], own[:, 3] - own[:, 5]], dim=1).flatten()
    close(torch.tensor(sums.to_numpy(), dtype=torch.float32), want, "what the blocks add", 1e-4)
    return parts


def _padding(lm: Layered, rows: Tensor) -> None:
    lengths = (5, 9, 12)
    for side in ("left", "right"):
        ids, mask = torch.zeros_like(rows), torch.zeros_like(rows)
        for r, length in enumerate(lengths):
            spot = slice(12 - length, 12) if side == "left" else slice(0, length)
            ids[r, spot], mask[r, spot] = rows[r, :length], 1
        padded = lm.forward(ids, mask, layers="all").hidden
        for r, length in enumerate(lengths):
            bare = lm.forward(rows[r : r + 1, :length], layers="all").hidden
            for j in range(lm.n_layers + 1):
                close(padded[j][r][mask[r].bool()], bare[j][0], f"{side} padding, row {r}, layer {j}")


def _cache(lm: Layered, rows: Tensor, alone: list[dict[int, Tensor]]) -> None:
    n = lm.n_layers
    first = lm.forward(rows[:, :7], layers=(n,), use_cache=True)
    parts = [first.hidden[n]]
    cache = first.cache
    for start, stop in ((7, 10), (10, 11), (11, 12)):
        step = lm.forward(rows[:, start:stop], torch.ones_like(rows[:, :stop]), layers=(n,), cache=cache)
        parts.append(step.hidden[n])
        cache = step.cache
    whole = torch.cat(parts, 1)
    for r in range(len(rows)):
        close(whole[r], alone[r][n][0], f"in pieces through the cache, row {r}", 1e-3)


def _gap(lm: Layered, rows: Tensor) -> None:
    prefix, lengths = rows[:1, :6], (2, 4, 5)
    cache = lm.forward(prefix, use_cache=True).cache
    cache.batch_repeat_interleave(3)
    ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.ones(3, 11, dtype=torch.long)
    for r, length in enumerate(lengths):
        ids[r, 5 - length :] = rows[r, :length]
        mask[r, 6 : 11 - length] = 0
    got = lm.forward(ids, mask, layers=(lm.n_layers,), positions="last", cache=cache).hidden[lm.n_layers]
    for r, length in enumerate(lengths):
        whole = torch.cat([prefix, rows[r : r + 1, :length]], 1)
        want = lm.forward(whole, layers=(lm.n_layers,), positions="last").hidden[lm.n_layers]
        close(got[r], want[0], f"gap after a shared prefix, row {r}")
