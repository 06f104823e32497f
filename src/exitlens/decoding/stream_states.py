"""One answer, token by token, with the hidden state of each: what a probe needs to watch a generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.decoding.contrast import Decoder
from exitlens.decoding.loop import BatchRun, Generation, Row
from exitlens.decoding.sampling import Sampling
from exitlens.decoding.session import open_prefix
from exitlens.decoding.stopping import undecided
from exitlens.models.protocol import LayeredModel

__all__ = ["Watched", "watch"]


@dataclass(frozen=True, slots=True)
class Watched:
    """A token of the answer as text, and its states ``[layers, d_model]``, float32."""

    token: str
    states: Tensor


def watch(
    lm: LayeredModel,
    prompt: str | Sequence[int],
    layers: Sequence[int],
    *,
    decoder: str | Decoder = "vanilla",
    max_new_tokens: int = 50,
    stop: Sequence[str] = (),
    repetition_penalty: float = 1.0,
    sampling: Sampling | None = None,
    generation_config: str | None = None,
    seed: int = 0,
    chat: bool = False,
) -> Iterator[Watched | Generation]:
    """Answer one prompt: each token of the answer as soon as it is certain and its state known, then the answer.

    A state is recorded when its token is fed to choose the next one, at no further pass, so a token comes one step
    after it was chosen; only the last, after which nothing is chosen, is read in a pass of its own. Tokens that may
    still turn out to begin a stop string are held back. Raises as :func:`exitlens.decoding.generate`.
    """
    wanted = [lm.check_layer(j) for j in layers]
    run = BatchRun(lm, decoder, max_new_tokens=max_new_tokens, stop=stop, repetition_penalty=repetition_penalty,
                   sampling=sampling, generation_config=generation_config, seed=seed)  # fmt: skip
    (row,) = run.rows([prompt], chat=chat)
    sent = 0
    for _ in run.batch([row], open_prefix(lm, ()), wanted):
        # What was recorded beside a token is the state that it was chosen from: that of the token before it.
        while row.finish is None and sent < len(row.hidden) - 1 and _certain(run, row, sent + 1):
            yield Watched(lm.token(row.new[sent]), row.hidden[sent + 1].float().cpu())
            sent += 1
    answer = run.result(row)
    kept = list(answer.token_ids)
    states = [h.float().cpu() for h in row.hidden[1 : len(kept) + 1]]
    if len(states) < len(kept):
        whole = torch.tensor([[*row.ids, *kept]], device=lm.device)
        last = lm.forward(whole, layers=wanted, positions="last").hidden
        states.append(torch.stack([last[j][0, -1] for j in wanted]).float().cpu())
    for token, state in zip(answer.tokens[sent:], states[sent:], strict=True):
        yield Watched(token, state)
    yield answer


def _certain(run: BatchRun, row: Row, count: int) -> bool:
    """Whether the first ``count`` of a row's new tokens stay, whatever comes next."""
    if not run.stop:
        return True
    text = run.text(row).rstrip("\ufffd")  # half a character: its rest is yet to come
    return len(run.text(row, count)) <= len(text) - undecided(text, run.stop)
