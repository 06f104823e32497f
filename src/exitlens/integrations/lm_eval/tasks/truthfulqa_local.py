"""What the task files of this folder call: TruthfulQA from a local CSV, and its scores.

The harness loads this file by its path, so it imports exitlens by name. Of a task that is given as a file, or as a
folder of files, it does so before it looks for the model: then its own ``lm_eval`` knows the model ``exitlens`` too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from exitlens.data import read_data
from exitlens.data.prompts import qa_prompt
from exitlens.errors import InputError
from exitlens.integrations import lm_eval as _model  # noqa: F401 (registers the model)
from exitlens.scoring.choice import mc2
from exitlens.scoring.text import Bleu, RougeL
from exitlens.scoring.truthfulqa import truthfulqa_scores

_VARIABLE = "EXITLENS_TRUTHFULQA"


def load(csv: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The questions of ``--metadata csv=PATH``, or of the file that the environment names."""
    path = csv or os.environ.get(_VARIABLE)
    if not path:
        raise InputError(f"where is TruthfulQA.csv? Give --metadata csv=PATH, or set {_VARIABLE}")
    rows = []
    for question in read_data(path).questions:
        # The best answer first, as mc1 wants it; the same answer is never offered twice.
        single = list(dict.fromkeys((question.best, *question.incorrect)))
        right = list(dict.fromkeys(question.correct))
        wrong = [answer for answer in dict.fromkeys(question.incorrect) if answer not in right]
        if len(single) < 2 or not wrong:
            continue
        rows.append(
            {
                "id": question.id,
                "question": question.question,
                "prompt": "".join(qa_prompt(question)),
                "best": question.best,
                "mc1_choices": single,
                "mc2_choices": right + wrong,
                "n_correct": len(right),
                "correct": right,
                "incorrect": wrong,
            }
        )
    return {"validation": datasets.Dataset.from_list(rows)}


def score_mc2(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Share of probability on the correct answers, by log-sum-exp."""
    logs = np.array([value for value, _ in results])
    n = doc["n_correct"]
    return {"acc": mc2(logs[:n], logs[n:])}


def score_gen(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """BLEU and ROUGE-L by TruthfulQA's published protocol, 0..1: max, diff and acc."""
    from exitlens.data.records import Question

    question = Question(
        id=doc["id"],
        question=doc["question"],
        best=doc["best"],
        correct=tuple(doc["correct"]),
        incorrect=tuple(doc["incorrect"]),
    )
    row = truthfulqa_scores([results[0].strip()], [question], [Bleu(), RougeL()]).iloc[0]
    return {name: float(row[name]) for name in row.index if name != "question_id"}
