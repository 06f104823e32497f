"""Runs put side by side: numbers with differences, curves on one axis, and questions that changed sides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from exitlens import stats
from exitlens.errors import RunError
from exitlens.parsing import cut
from exitlens.report.chapter import Chapter
from exitlens.report.comparable import Curve, Number, Unit
from exitlens.report.frames import Results
from exitlens.studies.compare.columns import COMPARE_TABLES
from exitlens.studies.compare.match import Matched, match, of_text
from exitlens.studies.compare.runs import Run
from exitlens.studies.registry import STUDIES

__all__ = ["DEPTH", "change_table", "common_numbers", "curve_table", "number_table"]

DEPTH = "share of the depth"
COLUMNS = {spec.name: [field.name for field in spec.fields] for spec in COMPARE_TABLES}
_SHARED = 0.5  # of the smaller run's questions: with fewer in common, pairing would throw most of the data away

_ROUNDING = 1e-6  # of scores between 0 and 1, computed in float32

Key = tuple[str, str]
Item = TypeVar("Item", Number, Curve)


def common_numbers(runs: Sequence[Run]) -> list[Matched[Number]]:
    """The headline numbers of the runs, put beside each other."""
    return match([_offered(run, lambda chapter, results: chapter.numbers(results)) for run in runs])


def _offered(run: Run, ask: Callable[[Chapter, Results], list[Item]]) -> dict[str, list[Item]]:
    """What the chapter of each of the run's studies offers.

    Raises RunError where a table has the declared columns and values of another kind in them.
    """
    found = {}
    for name in run.studies:
        try:
            found[name] = ask(STUDIES[name].chapter, run.results)
        except (KeyError, TypeError, ValueError) as why:
            raise RunError(
                f"the tables of study {name} in '{cut(str(run.path))}' hold values that cannot be read ({cut(why)}): "
                "make the run again"
            ) from why
    return found


def number_table(runs: Sequence[Run], matched: Sequence[Matched[Number]], *, seed: int = 0) -> pd.DataFrame:
    """Table ``compare_numbers``: each number in each run, and its difference to the first run.

    Where both runs have it of the same questions, the difference is the mean over the questions that they share, with
    the interval and test of :func:`exitlens.stats.paired_difference`. Elsewhere it is that of two independent estimates
    (:func:`exitlens.stats.independent_difference`). p is corrected over all rows.

    Args:
        runs: The runs, the first of which is compared with.
        matched: Which number of each run is which.
        seed: Of the bootstrap.

    Returns:
        A row for each number and run that has it.
    """
    rows: list[dict[str, Any]] = []
    for one in matched:
        first = one.items.get(0)
        for place, run in enumerate(runs):
            number = one.items.get(place)
            if number is None:
                continue
            found = _interval(number, seed)
            row = {
                "study": one.study,
                "number": one.name,
                "of": of_text(one.first.of),
                "run": run.name,
                "model": run.results.model,
                "own": of_text(number.of, one.first.of),
                "value": found.value,
                "value_low": found.low,
                "value_high": found.high,
                "n": found.n,
                "counted": number.counted,
                "unit": number.unit,
                "remark": number.remark,
                **(_difference(number, first, runs[0].name, seed) if place else {"pairing": "", "n_paired": 0}),
            }
            before = 0 if first is None or not place else _interval(first, seed).n
            rows.append(row | {"too_narrow": _narrow(row, before)})
    table = pd.DataFrame(rows, columns=COLUMNS["compare_numbers"])
    numeric = [name for name in table if name in _NUMBERS]
    table = table.astype(dict.fromkeys(numeric, np.float64)).astype({"n": np.int64, "n_paired": np.int64})
    table["p_holm"] = stats.holm(table["p"].to_numpy())
    table["p_bh"] = stats.benjamini_hochberg(table["p"].to_numpy())
    return table


def _narrow(row: Mapping[str, Any], before: int) -> bool | None:
    """Whether an interval of the row rests on too few units; None: not known. ``before``: those of the first run."""
    held = [row["n"]] if math.isfinite(row["value_low"]) else []
    if math.isfinite(row.get("difference_low", math.nan)):
        # The questions that both runs share, else the smaller run.
        held.append(row["n_paired"] or min((n for n in (row["n"], before) if n > 0), default=0))
    if any(stats.too_narrow(n) for n in held):
        return True
    return None if any(n <= 0 for n in held) else False


_NUMBERS = ("value", "value_low", "value_high", "difference", "difference_low", "difference_high", "p")


def _interval(number: Number, seed: int) -> stats.Interval:
    """The number with its interval; where the study has none, that of the mean over its questions."""
    if number.units and not math.isfinite(number.value):
        values = [unit.value for unit in number.units]
        found = stats.mean_interval(values, seed=seed)
        if number.unit or not -1 <= min(values) <= max(values) <= 1:
            return found
        # A mean of shares is a share; the interval of few and skewed values can pass 0 and 1. Differences begin at −1.
        least = 0.0 if min(values) >= 0 else -1.0
        return replace(found, low=max(found.low, least), high=min(found.high, 1.0))
    return stats.Interval(number.value, number.low, number.high, number.n)


def _difference(number: Number, first: Number | None, name: str, seed: int) -> dict[str, Any]:
    """How the number differs from the first run's."""
    if first is None:
        return {"pairing": f"{name} does not have it", "n_paired": 0}
    mine, theirs = _by_question(number.units), _by_question(first.units)
    shared = [key for key in theirs if key in mine]
    if shared and len(shared) >= _SHARED * min(len(mine), len(theirs)):
        a, b = (np.array([side[key].value for key in shared]) for side in (mine, theirs))
        # The same answer scored in another batch differs in its last digits; that is no difference between runs.
        found = stats.paired_difference(np.where(np.isclose(a, b, rtol=0, atol=_ROUNDING), b, a), b, seed=seed)
        note = stats.interval_note(len(shared))
        pairing = f"paired by question{f' ({note})' if note else ''}"
    else:
        found = stats.independent_difference(_interval(number, seed), _interval(first, seed))
        pairing = f"unpaired: {_why(number, first, len(shared))}"
        if not math.isfinite(found.low):
            pairing = "no interval: the study gives none"
    return {
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "p": found.p,
        "pairing": pairing,
        "n_paired": len(shared) if pairing.startswith("paired") else 0,
    }


def _why(number: Number, first: Number, shared: int) -> str:
    if not number.units or not first.units:
        return f"the run keeps no value of each of its {number.counted}"
    if not shared:
        return "no question is in both runs"
    return f"only {shared} of {len(first.units)} and {len(number.units)} questions are in both runs"


def _by_question(units: Sequence[Unit]) -> dict[Key, Unit]:
    """Units by id and text: ids are counted anew in every data set, so that an id alone proves nothing."""
    return {(unit.id, unit.text): unit for unit in units if unit.text and math.isfinite(unit.value)}


def change_table(runs: Sequence[Run], matched: Sequence[Matched[Number]]) -> pd.DataFrame:
    """Table ``compare_changes``: questions that are answered correctly in one of two runs, with both answers."""
    rows: list[dict[str, Any]] = []
    for one in matched:
        if 0 not in one.items:
            continue
        before = {key: unit for key, unit in _by_question(one.items[0].units).items() if unit.answer is not None}
        for place in sorted(one.items)[1:]:
            for key, unit in _by_question(one.items[place].units).items():
                old = before.get(key)
                if old is None or unit.answer is None or old.value == unit.value:
                    continue
                rows.append(
                    {
                        "study": one.study,
                        "number": one.name,
                        "of": of_text(one.first.of),
                        "question_id": unit.id,
                        "question": unit.text,
                        "first": runs[0].name,
                        "first_answer": old.answer,
                        "first_correct": old.value == 1,
                        "run": runs[place].name,
                        "own": of_text(one.items[place].of, one.first.of),
                        "answer": unit.answer,
                        "correct": unit.value == 1,
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS["compare_changes"])


def curve_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Table ``compare_curves``: every curve of every run; layers become a share of the depth where depths differ."""
    offered = [_offered(run, lambda chapter, results: chapter.curves(results)) for run in runs]
    depths = [run.depth for run in runs]
    scaled = len(set(depths)) > 1 and None not in depths
    frames = []
    for one in match(offered):
        for place, line in one.items.items():
            if not len(line.x):
                continue
            by_depth = scaled and line.axis == "layer"
            facts: Mapping[str, Any] = {
                "study": one.study,
                "curve": one.name,
                "of": of_text(one.first.of),
                "run": runs[place].name,
                "own": of_text(line.of, one.first.of),
                "axis": DEPTH if by_depth else line.axis,
                "unit": line.unit,
            }
            frames.append(_points(line, runs[place].depth if by_depth else None).assign(**facts))
    columns = COLUMNS["compare_curves"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _points(line: Curve, depth: int | None) -> pd.DataFrame:
    x = np.asarray(line.x, dtype=np.float64) / (depth or 1)
    ends = {"value": line.value, "value_low": line.low, "value_high": line.high}
    return pd.DataFrame({"x": x, **{name: np.asarray(v, dtype=np.float64) for name, v in ends.items()}})
