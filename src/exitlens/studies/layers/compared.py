"""What the layer study offers to be compared with other runs."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from exitlens.report.comparable import Curve, Number, Unit, curve
from exitlens.report.frames import Results, groups
from exitlens.report.text import to_float

__all__ = ["layer_curves", "layer_numbers"]


def layer_numbers(results: Results) -> list[Number]:
    """Whether a correct choice ranks first: at the last layer, and as the mean over the layers of each lens."""
    frame = results.frame("layers")
    if frame is None:
        return []
    known = frame[frame.groupby(["question_id", "lens"])["correct"].transform("any")]
    if not len(known):
        return []
    # The top choice of every question at every layer, as `accuracy_by_layer` takes it.
    top = known.loc[known.groupby(["question_id", "lens", "layer"], sort=False)["share"].idxmax()]
    out: list[Number] = []
    for place, (lens, mine) in enumerate(top.groupby("lens", sort=False)):
        last = int(mine["layer"].max())
        if place == 0 or last != _depth(results):  # at the last layer every lens is the model itself
            whole = last == _depth(results)
            where = "the last layer" if whole else f"layer {last}"
            of: Mapping[str, str] = {} if whole else {"lens": str(lens)}
            units = _units(mine[mine["layer"] == last], answers=True)
            out.append(Number(f"correct choice first at {where}", of=of, units=units, main=place == 0))
        means = mine.assign(correct=mine["correct"].astype(float))
        means = means.groupby("question_id", sort=False).agg({"question": "first", "correct": "mean"}).reset_index()
        of = {"lens": str(lens)}
        out.append(Number("correct choice first, mean over layers", of=of, units=_units(means), main=place == 0))
    return out


def layer_curves(results: Results) -> list[Curve]:
    """Accuracy by layer through each lens."""
    lenses = groups(results.rows("layers_accuracy"), "lens")
    return [
        curve(
            "correct choice first",
            items,
            "layer",
            "accuracy",
            low="low",
            high="high",
            of={"lens": str(lens)},
            unit="share of questions",
            main=place == 0,
        )
        for place, (lens, items) in enumerate(lenses.items())
    ]


def _units(frame: pd.DataFrame, *, answers: bool = False) -> list[Unit]:
    return [
        Unit(
            str(row["question_id"]),
            str(row["question"]),
            to_float(row["correct"]),
            str(row["choice"]) if answers else None,
        )
        for row in frame.to_dict("records")
    ]


def _depth(results: Results) -> int | None:
    model = results.manifest.get("model")
    depth = model.get("n_layers") if isinstance(model, Mapping) else None
    return depth if isinstance(depth, int) else None
