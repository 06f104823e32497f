"""The tables of answers and their judgements, which several studies write."""

from __future__ import annotations

from exitlens.studies.tables import Field, TableSpec

__all__ = ["ANSWERS", "JUDGEMENTS"]

ANSWERS = TableSpec(
    "answers",
    "a decoder and a question",
    (
        Field("decoder", "as the run names it"),
        Field("question_id", "id of the question"),
        Field("question", "its text"),
        Field("answer", "the text generated, without the stop string"),
        Field("n_tokens", "tokens generated", "tokens"),
        Field("finish", "why generation ended: stop, eos or length"),
    ),
    shared=True,
)
JUDGEMENTS = TableSpec(
    "judgements",
    "a decoder, a question and a judge",
    (
        Field("decoder", "whose answer is judged"),
        Field("question_id", "id of the question"),
        Field("judge", "name of the judge, with its threshold"),
        Field("value", "what the judge compares with its threshold", "as the judge has it"),
        Field("correct", "the verdict; missing where nothing was decided"),
    ),
    shared=True,
)
