"""The tables of a comparison, column by column."""

from __future__ import annotations

from exitlens.studies.tables import NARROW, Field, TableSpec, with_interval

__all__ = ["COMPARE_TABLES"]

_RUN = Field("run", "name of the run: its folder's")
_STUDY = Field("study", "the study that made it")
_OF = Field("of", "judge, lens, decoder and whatever else it depends on; empty: nothing else")

COMPARE_TABLES = (
    TableSpec(
        "compare_runs",
        "a run",
        (
            _RUN,
            Field("path", "its folder"),
            Field("model", "name of its model"),
            Field("layers", "blocks of the model", "layers"),
            Field("studies", "studies with finished tables, comma-separated"),
            Field("command", "that made it"),
            Field("started", "time, UTC"),
            Field("finished", "time, UTC; missing: not finished"),
            Field("notes", "notes on the run"),
        ),
        printed=True,
    ),
    TableSpec(
        "compare_settings",
        "a setting that differs, and a run",
        (
            Field("group", "settings, model, data or versions"),
            Field("setting", "its name"),
            _RUN,
            Field("value", "its value in that run, as text; missing: not set"),
        ),
        printed=True,
    ),
    TableSpec(
        "compare_numbers",
        "a headline number and a run",
        (
            _STUDY,
            Field("number", "what is measured"),
            Field("of", _OF.meaning + ", of the first run that has the number"),
            _RUN,
            Field("model", "name of the run's model"),
            Field("own", "what of `of` is otherwise in this run"),
            *with_interval("value", "the number in this run", "as `unit` says"),
            Field("n", "how many `counted` it rests on; 0: not recorded"),
            Field("counted", "what `n` counts"),
            Field("unit", "unit of the number; empty: a share or a score"),
            *with_interval("difference", "this run minus the first", "as `unit` says"),
            Field("pairing", "paired, unpaired (why), or why there is no difference; empty for the first run"),
            Field("n_paired", "questions that both runs share", "questions"),
            Field("p", "of the difference: paired sign flips, or the normal test of unpaired estimates", "0–1"),
            Field("p_holm", "`p`, corrected over all numbers and runs by Holm", "0–1"),
            Field("p_bh", "`p`, corrected over all numbers and runs by Benjamini and Hochberg", "0–1"),
            Field("remark", "a reservation to read with the number"),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "compare_curves",
        "a curve, a run and a place",
        (
            _STUDY,
            Field("curve", "what is measured"),
            _OF,
            _RUN,
            Field("own", "what of `of` is otherwise in this run"),
            Field("axis", "what `x` is: layer, share of the depth (where depths differ), or a named quantity"),
            Field("x", "the place", "as `axis` says"),
            *with_interval("value", "the curve there", "as `unit` says"),
            Field("unit", "unit of the curve"),
        ),
        printed=True,
    ),
    TableSpec(
        "compare_changes",
        "a question that is answered correctly in one of two runs",
        (
            _STUDY,
            Field("number", "by which number: answers judged correct, correct choice first, …"),
            _OF,
            Field("question_id", "id of the question"),
            Field("question", "its text"),
            Field("first", "name of the first run"),
            Field("first_answer", "its answer"),
            Field("first_correct", "whether that is correct"),
            _RUN,
            Field("own", "what of `of` is otherwise in that run"),
            Field("answer", "that run's answer"),
            Field("correct", "whether that is correct"),
        ),
        printed=True,
    ),
)
