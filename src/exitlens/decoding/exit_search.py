"""Which draft is fastest here, on these prompts, and is any faster than plain decoding? Measured, never assumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .exits import Reader
from .loop import generate
from .speculation import Draft, SpeculationTally, speculate

__all__ = ["Trial", "best_draft", "search_skips"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting: seconds a token, its share of drafts accepted, and speed relative to plain decoding."""

    name: str
    draft: Draft | None
    seconds: float
    acceptance: float
    speedup: float


def best_draft(
    lm: Any,
    prompts: Sequence[str],
    *,
    drafts: Sequence[Draft] | None = None,
    reader: Reader | None = None,
    text: Sequence[int] | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 1,
    margin: float = 1.03,
    repeats: int = 2,
    options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Draft | None, list[Trial]]:
    """The fastest of ``drafts`` on ``prompts`` (None: none beats plain decoding by ``margin``), and all trials.

    Default drafts: exits at a quarter, half, two thirds and seven eighths of the depth, and a skip set found on
    ``text`` (token ids). Every setting is timed ``repeats`` times in turn with plain decoding; the best time counts.
    """
    n = lm.n_layers
    more = options or {}
    if drafts is None:
        exits = sorted({max(1, n // 4), n // 2, (2 * n) // 3, n - max(1, n // 8)} & set(range(1, n)))
        drafts = [Draft(exit=e) for e in exits]
        if text is not None:
            found = search_skips(lm, text)
            drafts = [*drafts, *([found] if found is not None else [])]
    plain = float("inf")
    best: dict[int, tuple[float, float]] = {}
    for turn in range(max(1, repeats)):
        plain = min(
            plain, _time(lambda: generate(lm, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, **more))
        )
        for i, draft in enumerate(drafts):
            tally = SpeculationTally()

            def go(draft: Draft = draft, tally: SpeculationTally = tally) -> Any:
                head = reader if draft.exit is not None else None
                return speculate(
                    lm, prompts, draft, max_new_tokens=max_new_tokens, batch_size=batch_size, reader=head, tally=tally,
                    **more,
                )  # fmt: skip

            seconds = _time(go)
            best[i] = (min(seconds, best.get(i, (seconds, 0.0))[0]), tally.acceptance)
            if progress is not None:
                progress(turn * len(drafts) + i + 1, repeats * len(drafts))
    trials = [Trial("plain", None, plain, 1.0, 1.0)]
    trials += [Trial(d.name, d, best[i][0], best[i][1], plain / best[i][0]) for i, d in enumerate(drafts)]
    top = max(trials[1:], key=lambda t: t.speedup, default=None)
    return (top.draft if top is not None and top.speedup >= margin else None), trials


@torch.no_grad()
def search_skips(
    lm: Any, ids: Sequence[int], *, least: float = 0.6, most: int | None = None, length: int = 4
) -> Draft | None:
    """Sub-layers to leave out, one by one: each time the one whose loss costs the least agreement on ``ids``.

    Stops at agreement ``least`` with the full model, at ``most`` sub-layers (default: half), or when the last three did
    not raise the expected gain. Returns None when leaving out any one is already too much.
    """
    from ..models.native import runner_of

    runner = runner_of(lm)
    if runner is None:
        return None
    n = lm.n_layers
    tokens = torch.tensor([list(ids)], device=lm.device)
    where = runner.where(0, tokens.shape[1])
    kv = runner.new_kv(1, tokens.shape[1])

    def tops(attention: frozenset[int], mlp: frozenset[int]) -> torch.Tensor:
        x = runner.embed(tokens, where)
        for j in range(1, n + 1):
            if j not in attention or j not in mlp:
                x = runner.block(j, x, kv, where, attention=j not in attention, mlp=j not in mlp)
        return lm.logits(x[0], n).argmax(-1)  # type: ignore[no-any-return]

    want = tops(frozenset(), frozenset())
    chosen: list[tuple[str, int]] = []
    limit = n if most is None else most
    best_gain, best_size = 1.0, 0
    # Blocks in the middle can be spared, the first and last hardly ever: they are not tried.
    open_ = [(kind, j) for kind in ("attention", "mlp") for j in range(2, n)]
    while open_ and len(chosen) < limit:
        scored = []
        for item in open_:
            trial = [*chosen, item]
            skips = [frozenset(j for kind, j in trial if kind == k) for k in ("attention", "mlp")]
            scored.append((float((tops(*skips) == want).float().mean()), item))
        agreement, item = max(scored)
        if agreement < least:
            break
        chosen.append(item)
        # Only the better half stays open: what costs much now will not cost little later.
        keep = sorted(scored, reverse=True)[: max(4, len(scored) // 2)]
        open_ = [i for _, i in keep if i != item]
        share = 1.0 - len(chosen) / (2 * n)
        gain = (1 - agreement ** (length + 1)) / ((1 - agreement) if agreement < 1 else 1 / (length + 1))
        gain /= length * share + 1.0
        if gain > best_gain:
            best_gain, best_size = gain, len(chosen)
        elif len(chosen) - best_size >= 3:
            break
    picked = chosen[: best_size or min(len(chosen), 1)]
    if not picked:
        return None
    empty = Draft(length=length)
    return replace(
        empty,
        skip_attention=tuple(sorted(j for kind, j in picked if kind == "attention")),
        skip_mlp=tuple(sorted(j for kind, j in picked if kind == "mlp")),
    )


def _time(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    made = work()
    tokens = sum(len(g.token_ids) for g in made)
    return (time.perf_counter() - begun) / max(1, tokens)
