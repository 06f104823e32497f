"""What the model itself tells of its answers: entropy and log-probability of every token, and p(true)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch

from exitlens.models.forward import passes
from exitlens.models.protocol import LayeredModel
from exitlens.studies.probes.extraction import label_probabilities

__all__ = ["AnsweredQuestion", "ScoreAnswersStage"]


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question, the prompt that put it, and the answer: its tokens as they were generated (one or more), its text."""

    id: str
    question: str
    prompt: str
    ids: tuple[int, ...]
    answer: str
    topic: str


@dataclass(frozen=True, slots=True)
class ScoreAnswersStage:
    """Tables ``tokens`` (question_id, position, entropy [nats], log_probability [nats]) and ``asked`` (question_id,
    p_true): the distributions from which the tokens were chosen, and the model's word on its own answer.
    """

    name: ClassVar[str] = "score-answers"
    version: ClassVar[int] = 1

    def settings(self) -> dict[str, Any]:
        """See :class:`exitlens.runs.engine.Stage`."""
        return {}

    def identify(self, record: AnsweredQuestion) -> Any:
        """See :class:`exitlens.runs.engine.Stage`."""
        return [record.id, record.question, record.prompt, list(record.ids)]

    @torch.no_grad()
    def run(self, lm: LayeredModel, batch: Sequence[AnsweredQuestion]) -> dict[str, pd.DataFrame]:
        """See :class:`exitlens.runs.engine.Stage`. Raises ContextError."""
        prompts = [list(lm.encode(record.prompt)) for record in batch]
        texts = [[*prompt, *record.ids] for prompt, record in zip(prompts, batch, strict=True)]
        frames: dict[int, pd.DataFrame] = {}
        n = lm.n_layers
        for part in passes(lm, texts, layers=(n,), positions="all", needed=min(map(len, prompts)) - 1):
            for row, i in enumerate(part.index):
                # The state before a token is the one from which it was chosen.
                begin = len(prompts[i]) - 1 - part.start
                ids = torch.tensor(batch[i].ids, device=lm.device)
                log_p = lm.logits(part.hidden[n][row, begin : begin + len(ids)], n).float().log_softmax(-1)
                entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
                frames[i] = pd.DataFrame(
                    {
                        "question_id": batch[i].id,
                        "position": range(len(ids)),
                        "entropy": entropy.double().cpu().numpy(),
                        "log_probability": log_p.gather(-1, ids[:, None])[:, 0].double().cpu().numpy(),
                    }
                )
        said = label_probabilities(lm, [f"{r.question.strip()} {r.answer}" for r in batch])
        total = said.sum(axis=1)
        # Both words may have no probability in float32: then it says nothing.
        asked = [float(p / t) if t > 0 else 0.5 for p, t in zip(said[:, 0], total, strict=True)]
        return {
            "tokens": pd.concat([frames[i] for i in range(len(batch))], ignore_index=True),
            "asked": pd.DataFrame({"question_id": [record.id for record in batch], "p_true": asked}),
        }
