"""One answer with the hidden state of each of its tokens: what a probe needs to watch a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .decoders import Decoder
from .loop import Generation, Row, Run, encode
from .sampling import Sampling, row_generator
from .session import open_prefix

__all__ = ["watch"]


def watch(
    lm: Any,
    prompt: str | Sequence[int],
    layers: Sequence[int],
    *,
    decoder: str | Decoder = "vanilla",
    max_new_tokens: int = 50,
    stop: Sequence[str] = (),
    repetition_penalty: float = 1.0,
    sampling: Sampling | None = None,
    seed: int = 0,
    chat: bool = False,
) -> tuple[Generation, Tensor]:
    """Answer one prompt; also the states ``[layers, tokens, d_model]`` at the answer's own tokens.

    A state is recorded when its token is fed to choose the next one, at no further pass; only the last token, after
    which nothing is chosen, is read in a pass of its own. Raises as :func:`exitlens.decoding.generate`.
    """
    wanted = [lm.check_layer(j) for j in layers]
    ids = encode(lm, prompt, chat, max_new_tokens)
    run = Run(lm, decoder, max_new_tokens, stop, repetition_penalty, sampling or Sampling(), False)
    row = Row(0, ids, None if run.sampling.greedy else row_generator(seed, ids, 0))
    for _ in run.batch([row], open_prefix(lm, ()), wanted):
        pass
    answer = run.result(row, prompt if isinstance(prompt, str) else str(lm.decode(prompt)), {})
    kept = list(answer.token_ids)
    if not kept:
        return answer, torch.empty(len(wanted), 0, lm.d_model)
    # What was recorded beside a token is the state that it was chosen from: that of the token before it.
    states = [h.cpu() for h in row.hidden[1 : len(kept) + 1]]
    if len(states) < len(kept):
        whole = torch.tensor([[*ids, *kept]], device=lm.device)
        last = lm.forward(whole, layers=wanted, positions="last").hidden
        states.append(torch.stack([last[j][0, -1] for j in wanted]).cpu())
    return answer, torch.stack(states, 1).float()
