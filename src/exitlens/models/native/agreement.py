"""Are our own blocks the model's? Compared on a short text, on large activations, and past every threshold named.

And do compiled blocks give what the blocks give?
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from exitlens.models.layout.hooks import eval_mode, here, stopping_at
from exitlens.models.native.known import thresholds
from exitlens.models.native.kv_cache import KV, Shared

if TYPE_CHECKING:
    from exitlens.models.layered import Layered
    from exitlens.models.native.families import Family
    from exitlens.models.native.kv_cache import Where

__all__ = ["agrees", "compiled_agrees"]

_WIDTH = 24
_INFLATED = 8.0  # times the usual input of a block: what is clipped or capped shows
_LONGEST = 4096  # tokens that are really run to look past a window; larger windows rest on the list of known fields
_SPAN = 9


class Runner(Protocol):
    """What is compared of :class:`exitlens.models.native.runner.Runner`, which asks for this and so comes after it."""

    n_layers: int
    family: Family

    def new_kv(self, rows: int, capacity: int, shared: Shared | None = None) -> KV: ...
    def can_share(self, capacity: int) -> bool: ...
    def where(self, start: int | Tensor, width: int) -> Where: ...
    def moved(self, start: int, width: int) -> Where: ...
    def embed(self, ids: Tensor, where: Where) -> Tensor: ...
    def block(self, j: int, x: Tensor, kv: KV, where: Where) -> Tensor: ...
    def run(self, x: Tensor, kv: KV, where: Where, *, keep: Collection[int]) -> dict[int, Tensor]: ...
    def logits(self, h: Tensor, layer: int) -> Tensor: ...


class Compiled(Protocol):
    """What is compared of :class:`exitlens.models.native.compiled_blocks.CompiledBlocks`."""

    def __call__(
        self, x: Tensor, kv: KV, where: Where, keep: Collection[int], *, read: bool
    ) -> tuple[dict[int, Tensor], Tensor | None]: ...


def agrees(lm: Layered, runner: Runner) -> bool:
    """True when every layer and the logits come out equal: short, large, and late."""
    with eval_mode(lm.model):
        ids = (torch.arange(2 * _WIDTH, device=lm.device).view(2, _WIDTH) * 37 + 5) % lm.vocab_size
        want = lm.forward(ids, layers="all").hidden
        got = _ours(runner, ids)
        if not all(_alike(got[j], state, _bound(lm)) for j, state in want.items()):
            return False
        last = want[lm.n_layers][:, -1]
        if not _alike(runner.logits(last, lm.n_layers), lm.logits(last, lm.n_layers), _bound(lm)):
            return False
        return _large(lm, runner, ids) and _late(lm, runner, ids) and _past_windows(lm, runner)


def compiled_agrees(lm: Layered, runner: Runner, compiled: Compiled) -> bool:
    """True when compiled blocks give every layer and the logits that blocks run one by one give.

    Three rows: a token each, of one length and of three; a few tokens, and many; with a beginning of their own and with
    one that they share.
    """
    with eval_mode(lm.model), torch.no_grad():
        ids = (torch.arange(3 * _WIDTH, device=lm.device).view(3, _WIDTH) * 37 + 5) % lm.vocab_size
        ids[:, : _WIDTH // 2] = ids[0, : _WIDTH // 2]
        for cut in (0, _WIDTH // 6, _WIDTH // 2):
            if cut and not runner.can_share(_WIDTH + 1):
                continue
            kv, at = _opened(runner, ids, cut), runner.where(cut, _WIDTH - cut)
            if not _gives(lm, runner, compiled, ids[:, cut:], kv, at):
                return False
            for lengths in ([_WIDTH] * 3, [_WIDTH, _WIDTH - 3, _WIDTH - 5]):
                if not _gives(lm, runner, compiled, ids[:, :1], kv, runner.where(torch.tensor(lengths), 1)):
                    return False
    return True


def _gives(lm: Layered, runner: Runner, compiled: Compiled, ids: Tensor, kv: KV, at: Where) -> bool:
    """Whether both give the same for ``ids``; they end up in ``kv``."""
    n = lm.n_layers
    again = KV([k.clone() for k in kv.keys], [v.clone() for v in kv.values], kv.shared)
    x = runner.embed(ids, at)
    want = runner.run(x, kv, at, keep=range(n + 1))
    got, logits = compiled(x, again, at, range(n + 1), read=True)
    if logits is None or not all(_alike(got[j], state, _bound(lm)) for j, state in want.items()):
        return False
    return _alike(logits, runner.logits(want[n], n), _bound(lm))


def _opened(runner: Runner, ids: Tensor, cut: int) -> KV:
    """A cache for ``ids`` and one more token, the first ``cut`` tokens of which lie in it once for all rows."""
    rows, seq = ids.shape
    shared = None
    if cut:
        one, at = runner.new_kv(1, cut), runner.where(0, cut)
        runner.run(runner.embed(ids[:1, :cut], at), one, at, keep=())
        shared = Shared.of(one, cut)
    return runner.new_kv(rows, seq + 1, shared)


def _ours(runner: Runner, ids: Tensor) -> dict[int, Tensor]:
    """All layers of our own blocks, in three pieces: a long one, the rest but one token, and that token."""
    n, seq = runner.n_layers, ids.shape[1]
    kv = runner.new_kv(ids.shape[0], seq)
    parts: list[dict[int, Tensor]] = []
    for a, b in ((0, seq // 2), (seq // 2, seq - 1), (seq - 1, seq)):
        at = runner.where(a, b - a)
        parts.append(runner.run(runner.embed(ids[:, a:b], at), kv, at, keep=range(n + 1)))
    return {j: torch.cat([part[j] for part in parts], dim=1) for j in parts[0]}


def _large(lm: Layered, runner: Runner, ids: Tensor) -> bool:
    with _inflated(lm, runner) as possible:
        if not possible:
            return True
        want = lm.forward(ids, layers="all").hidden
        at, kv = runner.where(0, ids.shape[1]), runner.new_kv(*ids.shape)
        # Block by block, each on what the model gave it: rounding that a softmax near saturation magnifies does not add
        # up over blocks (measured on the built-in model, of what a block adds: 0.7% in bf16, 4e-7 in float32).
        blocks = range(1, lm.n_layers + 1)
        return all(_adds_alike(lm, runner.block(j, want[j - 1], kv, at), want[j - 1], want[j]) for j in blocks)


@contextmanager
def _inflated(lm: Layered, runner: Runner) -> Iterator[bool]:
    """While open, what each block's attention is given is larger, in the model and in our own blocks."""
    norms = [getattr(block, "input_layernorm", None) or getattr(block, "ln_1", None) for block in lm.blocks]
    modules = [norm for norm in norms if isinstance(norm, nn.Module)]
    if len(modules) != len(norms):
        yield False
        return
    inflated = here(lambda _m, _a, out: out * _INFLATED)
    handles = [norm.register_forward_hook(inflated) for norm in modules]
    fused: Any = getattr(runner.family, "norms", None)  # norms run by one kernel do not see the hooks
    before = None if fused is None else list(fused)
    try:
        if fused is not None:
            fused[:] = modules
        yield True
    finally:
        for handle in handles:
            handle.remove()
        if before is not None:
            fused[:] = before


def _late(lm: Layered, runner: Runner, ids: Tensor) -> bool:
    """Positions before, at and after each threshold, given to the model as such: no text of that length is run."""
    rotary, offset = runner.family.rotary, lm.offset
    marks = thresholds(lm.config)
    if not marks or rotary is None:
        return True
    if offset is None:
        return False
    mask = torch.ones_like(ids)
    for start in dict.fromkeys(place for t in marks for place in (t - _WIDTH // 2, 2 * t)):
        lm.offset = offset + max(0, start)
        try:
            want = lm.forward(ids, mask, layers="all").hidden
        finally:
            lm.offset = offset
        at = runner.moved(max(0, start), _WIDTH)
        kv = runner.new_kv(ids.shape[0], _WIDTH)
        got = runner.run(runner.embed(ids, at), kv, at, keep=range(lm.n_layers + 1))
        if not all(_alike(got[j], state, _bound(lm)) for j, state in want.items()):
            return False
    return True


def _past_windows(lm: Layered, runner: Runner) -> bool:
    """A text longer than each window, as far as the first block of each kind."""
    windows = [runner.family.window(j) for j in range(lm.n_layers)]
    kinds = {window for window in windows if window is not None and window <= _LONGEST}
    if not kinds:
        return True
    deep = max(windows.index(window) for window in kinds) + 1
    seq = max(kinds) + _SPAN
    if lm.context is not None:
        seq = min(seq, lm.context)
    ids = (torch.arange(seq, device=lm.device)[None] * 37 + 5) % lm.vocab_size
    found: list[Tensor] = []
    if deep == lm.n_layers:
        found.append(lm.forward(ids, layers=(deep,)).hidden[deep])
    else:
        with stopping_at(lm.blocks[deep], found):
            lm.forward(ids)
    kv, parts = runner.new_kv(1, seq), []
    for a, b in ((0, seq - _SPAN), (seq - _SPAN, seq - 1), (seq - 1, seq)):
        at = runner.where(a, b - a)
        x = runner.embed(ids[:, a:b], at)
        for j in range(1, deep + 1):
            x = runner.block(j, x, kv, at)
        parts.append(x)
    return bool(found) and _alike(torch.cat(parts, dim=1), found[0], _bound(lm))


def _bound(lm: Layered) -> float:
    return 5e-2 if lm.dtype in (torch.bfloat16, torch.float16) else 1e-4


def _alike(ours: Tensor, theirs: Tensor, bound: float) -> bool:
    ours, theirs = ours.float(), theirs.float()
    return float((ours - theirs).abs().max()) <= bound * max(1.0, float(theirs.abs().max()))


def _adds_alike(lm: Layered, ours: Tensor, given: Tensor, theirs: Tensor) -> bool:
    """What a block adds to its input is the same on the whole; clipping a part of its values changes more."""
    bound = 5e-2 if lm.dtype in (torch.bfloat16, torch.float16) else 1e-4
    added = float((theirs.float() - given.float()).abs().mean())
    return float((ours.float() - theirs.float()).abs().mean()) <= bound * added
