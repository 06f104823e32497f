"""Which draft is fastest here, on these prompts, and is any faster than plain decoding? Measured, never assumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from exitlens.decoding.loop import generate
from exitlens.decoding.session import Prefix
from exitlens.exits.draft import Draft
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.session import ExitPrefix
from exitlens.exits.shortlist import ExitReader
from exitlens.exits.speculation import SpeculationTally, speculate
from exitlens.models.protocol import LayeredModel

__all__ = ["Trial", "best_draft", "search_skips", "undrafted"]

_NEAR = 0.9  # of plain decoding's speed on one prompt: slower drafts are not timed again
_CLOSE = 3  # drafts timed on all prompts


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting: seconds a token, its share of drafts accepted, and speed relative to plain decoding."""

    name: str
    draft: Draft | None
    seconds: float
    acceptance: float
    speedup: float


def best_draft(
    lm: LayeredModel,
    prompts: Sequence[str],
    *,
    drafts: Sequence[Draft] | None = None,
    reader: ExitReader | None = None,
    text: Sequence[int] | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 1,
    margin: float = 1.03,
    repeats: int = 2,
    short: bool = False,
    options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Draft | None, list[Trial]]:
    """The fastest of ``drafts`` on ``prompts`` (None: none beats plain decoding by ``margin``), and all trials.

    Default drafts: exits at the layers of ``reader``'s heads, or else at a quarter, half, two thirds and seven eighths
    of the depth, and a skip set found on ``text`` (token ids). All run once on the first prompt; those that come near
    plain decoding are timed on all prompts, ``repeats`` times in turn with it, and the best time counts. ``short``: see
    :func:`~exitlens.exits.speculation.speculate`.
    """
    if drafts is None:
        drafts = _drafts(lm, reader, text)
    more = {"max_new_tokens": max_new_tokens, **(options or {})}
    done, total = 0, (len(drafts) + 1) * (repeats + 1)

    def timed(draft: Draft | None, asked: Sequence[str]) -> tuple[float, float]:
        nonlocal done
        tally = SpeculationTally()
        begun = time.perf_counter()
        if draft is None:
            made = generate(lm, asked, batch_size=batch_size, open_with=undrafted(lm, reader, short=short), **more)
        else:
            made = speculate(lm, asked, draft, batch_size=batch_size, reader=reader, short=short, tally=tally, **more)
        seconds = (time.perf_counter() - begun) / max(1, sum(len(g.token_ids) for g in made))
        done += 1
        if progress is not None:
            progress(done, total)
        return seconds, tally.acceptance

    timed(None, prompts[:1])  # warms up
    plain = timed(None, prompts[:1])[0]
    first = {i: timed(draft, prompts[:1]) for i, draft in enumerate(drafts)}
    close = sorted((i for i in first if first[i][0] < plain / _NEAR), key=lambda i: first[i][0])[:_CLOSE]
    trials = {i: Trial(d.name, d, *first[i], plain / first[i][0]) for i, d in enumerate(drafts)}
    plain = float("inf") if close else plain
    best: dict[int, float] = {}
    for _ in range(max(1, repeats) if close else 0):
        plain = min(plain, timed(None, prompts)[0])
        for i in close:
            seconds, acceptance = timed(drafts[i], prompts)
            best[i] = min(seconds, best.get(i, seconds))
            trials[i] = replace(trials[i], seconds=best[i], acceptance=acceptance)
    for i in close:
        trials[i] = replace(trials[i], speedup=plain / best[i])
    able = [trials[i] for i in close if trials[i].speedup >= margin]
    top = max(able, key=lambda t: t.speedup, default=None)
    return (None if top is None else top.draft), [Trial("plain", None, plain, 1.0, 1.0), *trials.values()]


def undrafted(lm: LayeredModel, reader: ExitReader | None, *, short: bool) -> Callable[[Sequence[int]], Prefix] | None:
    """How ``generate`` opens prompts to answer as ``speculate`` does, without a draft."""
    if not short:
        return None
    return lambda ids: ExitPrefix(lm, ids, ExitPolicy("fixed", layers=(lm.n_layers,)), reader=reader)


def _drafts(lm: LayeredModel, reader: ExitReader | None, text: Sequence[int] | None) -> list[Draft]:
    n = lm.n_layers
    if reader is not None and reader.layers:
        exits = [j for j in reader.layers if j < n]
    else:
        exits = sorted({max(1, n // 4), n // 2, (2 * n) // 3, n - max(1, n // 8)} & set(range(1, n)))
    found = None if text is None else search_skips(lm, text)
    return [*(Draft(exit=j) for j in exits), *([] if found is None else [found])]


@torch.no_grad()
def search_skips(
    lm: LayeredModel, ids: Sequence[int], *, least: float = 0.6, most: int | None = None, length: int = 4
) -> Draft | None:
    """Sub-layers to leave out, one by one: each time the one whose loss costs the least agreement on ``ids``.

    Stops at agreement ``least`` with the full model, at ``most`` sub-layers (default: half), or when the last three did
    not raise the expected gain. Returns None when leaving out any one is already too much.
    """
    from exitlens.models.native.runner import runner_of

    runner = runner_of(lm)
    if runner is None:
        return None
    n = lm.n_layers
    tokens = torch.tensor([list(ids)], device=lm.device)
    where = runner.where(0, tokens.shape[1])
    kv = runner.new_kv(1, tokens.shape[1])

    def states(skipped: Sequence[tuple[str, int]], first: int, x: torch.Tensor) -> list[torch.Tensor]:
        """Inputs of blocks ``first``..N and the last block's output."""
        out = [x]
        for j in range(first, n + 1):
            skip = tuple((j,) if (kind, j) in skipped else () for kind in ("attention", "mlp"))
            out.append(runner.run(out[-1], kv, where, first=j, last=j, skip=(skip[0], skip[1]))[j])
        return out

    def tops(x: torch.Tensor) -> torch.Tensor:
        return runner.logits(x[0], n).argmax(-1)

    known = states((), 1, runner.embed(tokens, where))
    want = tops(known[-1])
    chosen: list[tuple[str, int]] = []
    limit = n if most is None else most
    best_gain, best_size = 1.0, 0
    # Blocks in the middle can be spared, the first and last hardly ever: they are not tried.
    open_ = [(kind, j) for kind in ("attention", "mlp") for j in range(2, n)]
    while open_ and len(chosen) < limit:
        scored = []
        for item in open_:
            # Nothing before the block that the item belongs to changes.
            last = states([*chosen, item], item[1], known[item[1] - 1])[-1]
            scored.append((float((tops(last) == want).float().mean()), item))
        agreement, item = max(scored)
        if agreement < least:
            break
        chosen.append(item)
        known = states(chosen, 1, known[0])
        # Only the better half stays open: what costs much now will not cost little later.
        keep = sorted(scored, reverse=True)[: max(4, len(scored) // 2)]
        open_ = [i for _, i in keep if i != item]
        share = 1.0 - len(chosen) / (2 * n)
        tokens_a_round = (1 - agreement ** (length + 1)) / (1 - agreement) if agreement < 1 else length + 1
        gain = tokens_a_round / (length * share + 1.0)
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
