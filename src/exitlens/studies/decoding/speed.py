"""How fast does each decoder write: measured apart from the answers, in turn, without the prompt's pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from exitlens.data.records import Question
from exitlens.decoding import generate
from exitlens.models.protocol import LayeredModel
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.answers.stage import ask

__all__ = ["writing_speed"]

_PROMPTS, _TOKENS, _TURNS = 8, 12, 2


def writing_speed(
    lm: LayeredModel,
    specs: Sequence[DecoderSpec],
    questions: Sequence[Question],
    *,
    batch_size: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float | None]:
    """Tokens a second of each decoder, by its text, on the first questions; None where too little was written.

    The answers' own times would not do: the first decoder would pay for what a model does once (laying weights out,
    finding its fastest products), and the prompt's pass, the same for all, would hide the difference. So each decoder
    writes once unmeasured; then they take turns, and what one token costs (the prompt's pass) is taken off what
    several do. The best of the turns counts: other work on the machine only ever adds time.
    """
    prompts = [record.prompt for record in ask(questions[:_PROMPTS])]

    def timed(spec: DecoderSpec, tokens: int) -> tuple[float, int]:
        begun = clock()
        made = generate(lm, prompts, decoder=spec.decoder, max_new_tokens=tokens, batch_size=batch_size,
                        repetition_penalty=spec.penalty)  # fmt: skip
        return clock() - begun, sum(len(answer.token_ids) for answer in made)

    for spec in specs:
        timed(spec, 2)
    found: dict[str, list[tuple[float, int]]] = {}
    for _ in range(_TURNS):
        for spec in specs:
            for tokens in (1, _TOKENS):
                found.setdefault(f"{spec.text}/{tokens}", []).append(timed(spec, tokens))
    out: dict[str, float | None] = {}
    for spec in specs:
        (first, begun), (whole, written) = (min(found[f"{spec.text}/{tokens}"]) for tokens in (1, _TOKENS))
        out[spec.text] = (written - begun) / (whole - first) if written > begun and whole > first else None
    return out
