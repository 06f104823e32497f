"""Run directories made by hand: a manifest and tables whose every number is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

QUESTIONS = [(f"q{i:04d}", f"What is number {i}?") for i in range(1, 21)]


def run_folder(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    *,
    layers: int = 4,
    config: Mapping[str, Any] | None = None,
    **manifest: Any,
) -> Path:
    """A run as `exitlens run` leaves it."""
    (folder / "tables").mkdir(parents=True)
    for name, frame in tables.items():
        frame.to_parquet(folder / "tables" / f"{name}.parquet")
    facts: dict[str, Any] = {
        "version": 2,
        "identity": {"seed": 0},
        "config": {"seed": 0, "out": str(folder), **(config or {})},
        "stages": {"generate-vanilla": {"state": "done"}},
        "versions": {"exitlens": "0.1"},
        "started": "2026-11-27T10:00:00+00:00",
        "finished": "2026-11-27T10:05:00+00:00",
        "model": {"name": "tiny", "n_layers": layers},
        "data": [{"name": "own", "kind": "questions", "n": 20, "sha256": "d" * 64}],
    }
    (folder / "manifest.json").write_text(json.dumps({**facts, **manifest}))
    return folder


def decoding_tables(
    values: Sequence[float], *, decoder: str = "vanilla", questions: Sequence[tuple[str, str]] = QUESTIONS
) -> dict[str, pd.DataFrame]:
    """Answers, verdicts (correct where the value is above 0.5) and scores of one decoder and one metric."""
    rows = list(zip(questions, values, strict=True))
    answers = [
        {"decoder": decoder, "question_id": i, "question": text, "answer": f"It is {value:g}.", "n_tokens": 4,
         "finish": "stop"}
        for (i, text), value in rows
    ]  # fmt: skip
    judged = [
        {"decoder": decoder, "question_id": i, "judge": "similarity", "value": value, "correct": value > 0.5}
        for (i, _), value in rows
    ]
    scores = [{"decoder": decoder, "question_id": i, "metric": "rouge_max", "value": value} for (i, _), value in rows]
    mean = sum(values) / len(values)
    nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "p"), float("nan"))
    decoding = [
        {"decoder": decoder, "metric": "rouge_max", "protocol": "truthfulqa", "n": len(values), "mean": mean,
         "low": mean - 0.1, "high": mean + 0.1, **nothing, "repetition_penalty": 1.0}
    ]  # fmt: skip
    found = {"answers": answers, "judgements": judged, "scores": scores, "decoding": decoding}
    return {name: pd.DataFrame(frame) for name, frame in found.items()}


def layer_tables(
    hits: Sequence[Sequence[bool]], *, lens: str = "logit", questions: Sequence[tuple[str, str]] = QUESTIONS
) -> dict[str, pd.DataFrame]:
    """Two choices a question, of which the first is correct and leads at the layers where ``hits[question]`` says."""
    rows = []
    for (i, text), hit in zip(questions, hits, strict=False):
        for layer, leads in enumerate(hit):
            for choice, share in (("yes", 0.7 if leads else 0.3), ("no", 0.3 if leads else 0.7)):
                rows.append(
                    {"question_id": i, "question": text, "lens": lens, "layer": layer, "choice": choice,
                     "correct": choice == "yes", "rule": "first-token", "spellings": "[]", "probability": share / 2,
                     "share": share, "mass": 0.5}
                )  # fmt: skip
    layers = pd.DataFrame(rows)
    accuracy = [
        {"lens": lens, "layer": layer, "n": len(hits), "accuracy": sum(h[layer] for h in hits) / len(hits),
         "low": 0.1, "high": 0.9, "chance": 0.5, "correct_share": 0.5, "mass": 0.5}
        for layer in range(len(hits[0]))
    ]  # fmt: skip
    return {"layers": layers, "layers_accuracy": pd.DataFrame(accuracy)}
