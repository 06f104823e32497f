"""Answers to questions: one decoder, batched, with the entropy of every layer at every answer token on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from exitlens.data.prompts import qa_prompt
from exitlens.data.records import Question
from exitlens.decoding import Generation, early_layers, generate
from exitlens.models.protocol import LayeredModel
from exitlens.studies.answers.decoder_spec import DecoderSpec

__all__ = ["AskRecord", "GenerateStage", "ask"]


@dataclass(frozen=True, slots=True)
class AskRecord:
    """A question and the whole prompt that puts it."""

    id: str
    question: str
    prompt: str


@dataclass(frozen=True)
class GenerateStage:
    """Greedy answers of one decoder.

    Tables: ``answers`` and ``answer_ids``; with ``entropy`` also ``entropy_tokens``; for other decoders
    ``decoding_layers`` and ``decoding_steps``.
    """

    name: ClassVar[str] = "generate"
    version: ClassVar[int] = 3

    spec: DecoderSpec
    max_new_tokens: int = 50
    stop: tuple[str, ...] = ("\nQ:",)
    batch_size: int = 16
    entropy: bool = False
    lens: str = "logit"
    generation_config: str | None = None

    def settings(self) -> dict[str, Any]:
        """See :class:`exitlens.runs.engine.Stage`."""
        return {
            "decoder": self.spec.decoder,
            "penalty": self.spec.penalty,
            "max_new_tokens": self.max_new_tokens,
            "stop": self.stop,
            "batch_size": self.batch_size,
            "entropy": self.entropy and self.lens,
            **({} if self.generation_config is None else {"generation_config": self.generation_config}),
        }

    def identify(self, record: AskRecord) -> Any:
        """See :class:`exitlens.runs.engine.Stage`."""
        return [record.id, record.question, record.prompt]

    def run(self, lm: LayeredModel, batch: Sequence[AskRecord]) -> dict[str, pd.DataFrame]:
        """See :class:`exitlens.runs.engine.Stage`. Raises ContextError for a question that does not fit."""
        answers = generate(
            lm,
            [record.prompt for record in batch],
            decoder=self.spec.decoder,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            batch_size=self.batch_size,
            repetition_penalty=self.spec.penalty,
            generation_config=self.generation_config,
            read=("entropy",) if self.entropy else (),
            read_lens=self.lens,
            trace=not self.spec.plain,
        )
        tables = {"answers": self._answers(batch, answers), "answer_ids": _token_ids(batch, answers)}
        if not self.spec.plain:
            tables["decoding_layers"] = _chosen(self.spec.text, answers)
            candidates = early_layers(lm, self.spec.decoder)
            tables["decoding_steps"] = _steps(batch, answers, candidates)
        if self.entropy:
            tables["entropy_tokens"] = _entropy_tokens(lm, batch, answers)
        return tables

    def _answers(self, batch: Sequence[AskRecord], answers: Sequence[Generation]) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "decoder": [self.spec.text] * len(batch),
                "question_id": [record.id for record in batch],
                "question": [record.question for record in batch],
                "answer": [answer.text.strip() for answer in answers],
                "n_tokens": [len(answer.token_ids) for answer in answers],
                "finish": [answer.finish for answer in answers],
            }
        )


def ask(questions: Sequence[Question], style: str = "six-shot") -> list[AskRecord]:
    """Questions under the shared prompt."""
    return [AskRecord(q.id, q.question, "".join(qa_prompt(q, style))) for q in questions]


def _token_ids(batch: Sequence[AskRecord], answers: Sequence[Generation]) -> pd.DataFrame:
    """A row a token. Text that is tokenised again may come back as other tokens, so what reads them uses these."""
    counts = [len(answer.token_ids) for answer in answers]
    ids = [token for answer in answers for token in answer.token_ids]
    names = np.repeat(np.asarray([record.id for record in batch], dtype=object), counts)
    return pd.DataFrame({"question_id": names, "token_id": np.asarray(ids, dtype=np.int64)})


def _chosen(decoder: str, answers: Sequence[Generation]) -> pd.DataFrame:
    """How often each early layer was contrasted with (no rows for a decoder that does not choose)."""
    steps = [np.asarray(answer.steps["choice"]).reshape(-1) for answer in answers if "choice" in answer.steps]
    layers, counts = np.unique(np.concatenate(steps) if steps else np.empty(0, dtype=np.int64), return_counts=True)
    return pd.DataFrame({"decoder": [decoder] * len(layers), "layer": layers.astype(np.int64), "count": counts})


def _steps(batch: Sequence[AskRecord], answers: Sequence[Generation], candidates: Sequence[int]) -> pd.DataFrame:
    """A row a token and candidate layer: how far it lay from the final layer, and whether it was chosen.

    No rows for a decoder that does not choose; one that chooses without comparing has the chosen layers only.
    """
    parts = []
    for record, answer in zip(batch, answers, strict=True):
        n = len(answer.token_ids)
        if n == 0 or "choice" not in answer.steps:
            continue
        chosen = np.asarray(answer.steps["choice"]).reshape(n)
        if "divergence" in answer.steps:
            layers = np.tile(np.asarray(candidates, dtype=np.int64), (n, 1))
            divergence = np.asarray(answer.steps["divergence"], dtype=np.float64)
        else:
            layers = chosen[:, None].astype(np.int64)
            divergence = np.full((n, 1), np.nan)
        k = layers.shape[1]
        parts.append(
            pd.DataFrame(
                {
                    "question_id": [record.id] * (n * k),
                    "position": np.repeat(np.arange(n), k),
                    "layer": layers.reshape(-1),
                    "divergence": divergence.reshape(-1),
                    "chosen": (layers == chosen[:, None]).reshape(-1),
                }
            )
        )
    columns = ["question_id", "position", "layer", "divergence", "chosen"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({name: [] for name in columns})


def _entropy_tokens(lm: LayeredModel, batch: Sequence[AskRecord], answers: Sequence[Generation]) -> pd.DataFrame:
    """Long form: one row a token and layer, layers 0..N in order."""
    layers = lm.n_layers + 1
    parts = []
    for record, answer in zip(batch, answers, strict=True):
        n = len(answer.token_ids)
        if n == 0:
            continue
        parts.append(
            pd.DataFrame(
                {
                    "question_id": [record.id] * (n * layers),
                    "position": np.repeat(np.arange(n), layers),
                    "token_id": np.repeat(np.asarray(answer.token_ids), layers),
                    "token": np.repeat(np.asarray(answer.tokens, dtype=object), layers),
                    "layer": np.tile(np.arange(layers), n),
                    "entropy": np.asarray(answer.reads["entropy"], dtype=np.float64).T.reshape(-1),
                }
            )
        )
    columns = ["question_id", "position", "token_id", "token", "layer", "entropy"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({name: [] for name in columns})
