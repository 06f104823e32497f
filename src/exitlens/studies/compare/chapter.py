"""What a comparison tells: settings that differ, numbers with differences, curves, and questions that changed sides."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from exitlens.report.chapter import Chapter, Part, Plate, Sheet
from exitlens.report.frames import Results, Row, groups
from exitlens.report.text import Column, is_number, slug, to_float, visible
from exitlens.report.view_data import View
from exitlens.report.words import counted, excludes, join
from exitlens.studies.compare import figures as draw
from exitlens.studies.compare.lines import heads, label, line, signed, terminal_line
from exitlens.studies.compare.match import capital, short_name
from exitlens.studies.compare.views import curve_views, number_views

__all__ = ["CHAPTERS"]

_PAIRED = "paired"
_HASHES = ("sha256", "fingerprint")


class RunsChapter(Chapter):
    """The runs, and the settings in which they differ."""

    title = "The runs and what differs"
    question = "Which runs are compared, and in which settings do they differ?"
    how = (
        "Settings, model, data and versions are read from each run's manifest.json; those that are equal in all runs "
        "are left out, and so is where results were written."
    )
    own = ("compare_runs", "compare_settings")

    def answer(self, results: Results) -> str:
        """How many settings differ, and which."""
        differing = list(dict.fromkeys(str(row["setting"]) for row in results.rows("compare_settings")))
        if not differing:
            return "No setting differs: the runs have the same model, data and settings."
        told = join([*map(visible, differing[:8]), *([f"{len(differing) - 8} more"] if len(differing) > 8 else [])])
        return f"{counted(len(differing), 'setting')} differ{'s' if len(differing) == 1 else ''}: {told}."

    def headline(self, results: Results) -> list[str]:
        """What must be said of each run."""
        notes = [row for row in results.rows("compare_runs") if row.get("notes")]
        return [f"{visible(row['run'])}: {visible(row['notes'])}." for row in notes]

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """The settings that differ, a column a run."""
        names, body = _settings(results)
        return [Part("", ["setting", *names], body)] if body else []

    def tables(self, results: Results) -> list[Sheet]:
        """The runs, and the settings."""
        names, body = _settings(results)
        columns = {"model": "model", "blocks": "layers", "studies": "studies", "finished": "finished"}
        runs = [
            [row["run"], *(_plain(row.get(column)) for column in columns.values()), row.get("path")]
            for row in results.rows("compare_runs")
        ]
        return [
            Sheet("Runs", ["run", *columns, "folder"], runs, "compare_runs"),
            Sheet("Settings that differ", ["setting", *names], body, "compare_settings"),
        ]


class NumbersChapter(Chapter):
    """Every headline number of every run."""

    title = "Numbers side by side"
    question = "In which numbers do the runs differ, and could that be chance?"
    how = (
        "Each study offers its headline numbers; numbers of one name belong together where judge, lens and decoder are "
        "equal, else the first of each run, and what then differs is named. Difference: that run minus the first. "
        "Paired: over the questions that both runs have, the same by id and text, at least half of the smaller run's; "
        "95% CI of the mean difference by question (Agresti–Min where answers are correct or incorrect, else the "
        "studentised bootstrap), sign-flip test. Unpaired: from the two intervals (MOVER) with a normal test, too wide "
        "where the questions are partly the same. p Holm is corrected over all numbers in the table. Significant: p "
        "Holm below .05 and a 95% CI that excludes 0; of few and skewed values one question can pass one of the two."
    )
    own = ("compare_numbers",)

    def answer(self, results: Results) -> str:
        """Which numbers differ significantly from the first run's; of several runs, how many."""
        names = _runs(results)
        told = [_against(results, name) for name in names[1:]]
        if len(told) == 1:
            return told[0]
        tested = [row for row in results.rows("compare_numbers") if is_number(row.get("p"))]
        found = [row for row in tested if draw.significant(row)]
        return (
            f"{len(found)} of {counted(len(tested), 'difference')} to {visible(names[0])} are significant after Holm's "
            f"correction: look at {join([visible(name) for name in dict.fromkeys(row['run'] for row in found)])}."
            if found
            else f"None of {counted(len(tested), 'difference')} to {visible(_first(results))} is significant after "
            "Holm's correction: these data do not tell the runs apart."
        )

    def headline(self, results: Results) -> list[str]:
        """Of several runs, each against the first."""
        names = _runs(results)[1:]
        return [_against(results, name) for name in names] if len(names) > 1 else []

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """A part a study: value in each run, difference, p."""
        names = _runs(results)
        parts = []
        for study, items in groups(_keyed(results), "study").items():
            head = heads(names)
            body = [terminal_line(lines, names) for lines in groups(items, "_key").values()]
            first = len(names) + 1  # the first difference: what a comparison is made for
            columns = [Column(name, main=i == first) for i, name in enumerate([*head, "n"])]
            parts.append(Part(str(study), columns, body))
        return parts

    def tables(self, results: Results) -> list[Sheet]:
        """A table a study."""
        names = _runs(results)
        head = heads(names)
        return [
            Sheet(
                f"Study {study}: headline numbers with 95% CI",
                head,
                [line(lines, names) for lines in groups(items, "_key").values()],
                "compare_numbers",
            )
            for study, items in groups(_keyed(results), "study").items()
        ]

    def figures(self, results: Results) -> list[Plate]:
        """Differences, a figure a unit: nats and shares share no axis."""
        frame = results.frame("compare_numbers")
        if frame is None:
            return []
        names = _runs(results)
        out = []
        frame = frame.assign(_of=[short_name(visible(row.get("of"))) for row in results.rows("compare_numbers")])
        for unit, part in frame.groupby("unit", sort=False, dropna=False):
            part = part[part["difference_low"].notna()]
            for study, mine in part.groupby("study", sort=False):
                caption = (
                    f"Difference of each run to {visible(names[0])}, {study} study, with 95% CI; filled: the CI "
                    "excludes 0 and p < .05 after Holm's correction."
                )
                drawn = partial(draw.differences, mine, names=names, note=f"{study} · {_models(results)}")
                name = f"numbers-{study}" + (f"-{slug(str(unit))}" if unit else "")
                out.append(Plate(name, f"{caption} {_models(results)}.", caption, drawn))
        return out

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.compare.views`."""
        return number_views(results)


class CurvesChapter(Chapter):
    """The runs' curves."""

    title = "Curves on one axis"
    question = "Do the runs differ at the inner layers, or in what an early exit saves?"
    how = (
        "Each run's own curve with its 95% CI. Where the models have different numbers of layers, layers are shares of "
        "the depth. Bands that overlap may still belong to curves that differ; the table of numbers has the tests."
    )
    own = ("compare_curves",)

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """None: a curve is looked at."""
        return []

    def tables(self, results: Results) -> list[Sheet]:
        """None: the figures show them, and the Parquet table has them."""
        return []

    def figures(self, results: Results) -> list[Plate]:
        """A figure a curve."""
        frame = results.frame("compare_curves")
        if frame is None:
            return []
        names = _runs(results)
        out = []
        for key, part in frame.groupby(["study", "curve"], sort=False):
            caption = f"{capital(str(key[1]))} in each run, with 95% CI."
            drawn = partial(draw.curves, part, names=names, note=_models(results))
            out.append(Plate(f"curves-{key[0]}-{slug(str(key[1]))}", f"{caption} {_models(results)}.", caption, drawn))
        return out

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.compare.views`."""
        return curve_views(results)


class ChangesChapter(Chapter):
    """The questions that are answered correctly in one run and incorrectly in another."""

    title = "Questions that changed sides"
    question = "Which questions are answered correctly in one run and incorrectly in the other?"
    how = (
        "Questions that both runs have (by id and text) and on which the verdicts differ. Answers are the runs' own; "
        "for choices, the one that ranks first."
    )
    own = ("compare_changes",)

    def answer(self, results: Results) -> str:
        """How many questions changed, by each number and run."""
        items = _changes(results)
        if not items:
            return ""
        told = len({row["question"] for row in items})
        return f"{counted(told, 'question')} changed sides by at least one verdict: read both answers before a mean."

    def headline(self, results: Results) -> list[str]:
        """How many changed to each side, by judge and run."""
        out = []
        for mine in groups(_changes(results), "_key").values():
            gained = sum(bool(row["correct"]) for row in mine)
            row = mine[0]
            out.append(
                f"{label(row)}: {counted(gained, 'question')} correct only in {visible(row['run'])}, "
                f"{len(mine) - gained} only in {visible(row['first'])}."
            )
        return out

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """The changes; a few, or all of them."""
        items = _changes(results)
        some = items if whole else items[:8]
        body = [[row["question"], *_both(row), label(row)] for row in some]
        columns = ["question", "in the first run", "in the other", "by"]
        note = f"{len(items) - len(some)} more in the report" if len(items) > len(some) else None
        return [Part("", columns, body, note)] if body else []

    def tables(self, results: Results) -> list[Sheet]:
        """A table a judge and run, with both answers."""
        out = []
        for mine in groups(_changes(results), "_key").values():
            row = mine[0]
            head = ["question", "correct in", f"answer, {row['first']}", f"answer, {row['run']}"]
            body = [
                [r["question"], r["run"] if r["correct"] else r["first"], _text(r["first_answer"]), _text(r["answer"])]
                for r in mine
            ]
            caption = f"{label(row)}: {row['first']} and {row['run']}"
            out.append(Sheet(caption, head, body, "compare_changes", len(body) > 12))
        return out


CHAPTERS: Mapping[str, Chapter] = {
    "runs": RunsChapter(),
    "numbers": NumbersChapter(),
    "curves": CurvesChapter(),
    "changes": ChangesChapter(),
}
"""The sections of a comparison's report."""


def _runs(results: Results) -> list[str]:
    return [str(row["run"]) for row in results.rows("compare_runs")]


def _first(results: Results) -> str:
    return next(iter(_runs(results)), "")


def _against(results: Results, name: str) -> str:
    """The numbers of a run that differ significantly from the first run's."""
    items = [row for row in results.rows("compare_numbers") if is_number(row.get("p"))]
    tested = [row for row in items if row["run"] == name]
    paired = sum(str(row.get("pairing")).startswith(_PAIRED) for row in tested)
    head = f"{visible(name)} against {visible(_first(results))} ({counted(len(tested), 'number')} compared, {paired} "
    head += "paired by question): "
    if not tested:
        return f"{head}nothing can be tested."
    found = sorted(filter(draw.significant, tested), key=lambda r: to_float(r["p_holm"]))
    alone = sum(row not in found and excludes(row, "difference", 0.0) for row in tested)
    told = "; ".join(f"{label(row)} {signed(row)}" for row in found[:4])
    more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
    text = f"significant after Holm's correction: {told}{more}." if found else "no significant difference."
    if alone:
        text += (
            f"\n{counted(alone, 'more 95% CI')} exclude{'s' if alone == 1 else ''} 0 without surviving the correction "
            f"over {counted(len(items), 'difference')}."
        )
    return head + text


def _models(results: Results) -> str:
    models = list(dict.fromkeys(str(row["model"]) for row in results.rows("compare_runs")))
    return f"Model{'s' if len(models) > 1 else ''} {join([visible(name) for name in models])}"


def _keyed(results: Results) -> list[Row]:
    return [{**row, "_key": (row["number"], row.get("of"))} for row in results.rows("compare_numbers")]


def _changes(results: Results) -> list[Row]:
    items = results.rows("compare_changes")
    return [{**row, "_key": (row["number"], row.get("of"), row["run"])} for row in items]


def _settings(results: Results) -> tuple[list[str], list[list[object]]]:
    names = _runs(results)
    body: list[list[object]] = []
    keyed = [{**row, "_key": (row["group"], row["setting"])} for row in results.rows("compare_settings")]
    for (group, setting), mine in groups(keyed, "_key").items():
        values = {row["run"]: row.get("value") for row in mine}
        told = str(setting) if group == "settings" else f"{group}: {setting}"
        cells = [_plain(values.get(name)) for name in names]
        # Of a hash, twelve digits tell two apart; the table has all of them.
        body.append([told, *(str(cell)[:12] if setting.endswith(_HASHES) else cell for cell in cells)])
    return names, body


def _both(row: Row) -> list[str]:
    return [
        f"{'✓' if row[verdict] else '✗'} {_text(row[answer])}"
        for verdict, answer in (("first_correct", "first_answer"), ("correct", "answer"))
    ]


def _text(value: object) -> str:
    return visible(value) or "∅"


def _plain(value: object) -> object:
    return "–" if value is None or value != value else value
