"""One answer, token by token, with the hidden states that each was chosen from: probes and live views watch it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exitlens.decoding.contrast import Decoder
from exitlens.decoding.generation import Generation
from exitlens.decoding.loop import BatchRun, Row
from exitlens.decoding.sampling import Sampling
from exitlens.decoding.session import open_prefix
from exitlens.decoding.stopping import undecided
from exitlens.models.protocol import LayeredModel

__all__ = ["Step", "Watched", "steps", "watch"]


@dataclass(frozen=True, slots=True)
class Step:
    """The states ``[layers, d_model]`` at the last token of the text so far, and the token that was chosen from them.

    ``token_id`` is None where nothing was chosen any more: the states at the answer's last token. ``info`` is what the
    decoder reported (``choice`` is a layer number). States stay on the model's device, in the model's number type.
    """

    states: Tensor
    token_id: int | None = None
    token: str = ""
    info: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watched:
    """A token of the answer as text, and its states ``[layers, d_model]``, float32."""

    token: str
    states: Tensor


def steps(
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
    trace: bool = False,
    alive: Callable[[], bool] | None = None,
) -> Iterator[Step | Generation]:
    """Answer one prompt: a step for each token of the answer as soon as it is certain, one for its end, the answer.

    The states are those of the pass in which the token was chosen. Only at the answer's last token, after which nothing
    is chosen, they are read in a pass of its own. Tokens that may still turn out to begin a stop string are held back.
    ``trace`` keeps what the decoder reports. ``alive`` is called after each token; when it says no, nothing more is
    computed or given. The rest as in :func:`exitlens.decoding.generate`, which also says what is raised.
    """
    wanted = [lm.check_layer(j) for j in layers]
    run = BatchRun(lm, decoder, max_new_tokens=max_new_tokens, stop=stop, repetition_penalty=repetition_penalty,
                   sampling=sampling, generation_config=generation_config, seed=seed, trace=trace)  # fmt: skip
    (row,) = run.rows([prompt], chat=chat)

    def step(i: int) -> Step:
        states, row.hidden[i] = row.hidden[i], row.hidden[i].new_empty(0)  # given away: a long answer keeps none
        return Step(states, row.new[i], lm.token(row.new[i]), row.steps[i] if trace else {})

    sent = 0
    for _ in run.batch([row], open_prefix(lm, ()), wanted):
        if alive is not None and not alive():
            return
        while row.finish is None and sent < len(row.new) and _certain(run, row, sent + 1):
            yield step(sent)
            sent += 1
    answer = run.result(row)
    kept = list(answer.token_ids)
    for i in range(sent, len(kept)):
        yield step(i)
    if len(row.hidden) > len(kept):  # a stop string was written after it
        yield Step(row.hidden[len(kept)])
    else:
        whole = torch.tensor([[*row.ids, *kept]], device=lm.device)
        last = lm.forward(whole, layers=wanted, positions="last").hidden
        yield Step(torch.stack([last[j][0, -1].to(lm.weight.device) for j in wanted]))
    yield answer


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
    """Answer one prompt: each token of the answer once its own state is known, then the answer.

    A token's state is known when the next one is chosen from it, so a token comes one step after it was chosen. The
    rest as in :func:`steps`.
    """
    token: str | None = None
    for one in steps(lm, prompt, layers, decoder=decoder, max_new_tokens=max_new_tokens, stop=stop,
                     repetition_penalty=repetition_penalty, sampling=sampling, generation_config=generation_config,
                     seed=seed, chat=chat):  # fmt: skip
        if isinstance(one, Generation):
            yield one
            return
        if token is not None:
            yield Watched(token, one.states.float().cpu())
        token = one.token


def _certain(run: BatchRun, row: Row, count: int) -> bool:
    """Whether the first ``count`` of a row's new tokens stay, whatever comes next."""
    if not run.stop:
        return True
    text = run.text(row).rstrip("\ufffd")  # half a character: its rest is yet to come
    return len(run.text(row, count)) <= len(text) - undecided(text, run.stop)
