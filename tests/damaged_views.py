"""Views that are damaged, each in one way: both sides must refuse every one of them."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from exitlens.report.view_data import quantised, view
from exitlens.report.view_figures import Figure, tables_view

__all__ = ["DAMAGES", "damaged", "sound"]

TITLE = "a view that was whole"


def sound(kind: str) -> dict[str, Any]:
    """A whole view of the kind (``map`` or ``exits``) as JSON."""
    if kind == "map":
        arrays = {
            "lenses": np.array(["logit"], dtype=object),
            "layers": np.array([0, 2]),
            "tokens": np.array(["a", "b", "c"], dtype=object),
            "entropy": quantised(np.arange(6.0).reshape(1, 2, 3)),
        }
        return dict(json.loads(view("map", arrays, title=TITLE).to_json()))
    table = pd.DataFrame({"policy": ["margin", "margin"], "saved": [0.1, 0.2], "agreement": [0.9, 0.8]})
    figure = Figure("line", "pareto", "Agreement", "policies", "saved", "agreement", by="policy", where=("policy",))
    return dict(json.loads(tables_view("exits", {"policies": table}, [figure], title=TITLE).to_json()))


def _entry(name: str, **change: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda made: made["block"]["arrays"][name].update(change)


def _block(**change: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda made: made["block"].update(change)


def _cut(made: dict[str, Any]) -> None:
    made["block"]["data"] = made["block"]["data"][: len(made["block"]["data"]) // 8 * 4]


def _noise(made: dict[str, Any]) -> None:
    made["block"]["data"] = base64.b64encode(b"\xff" * 40).decode("ascii")


# What is damaged, of which kind of view, how; and what both sides say.
DAMAGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "newer": ("map", lambda made: made.update(version=99), "newer"),
    "older than any": ("map", lambda made: made.update(version=0), "version"),
    "version as text": ("map", lambda made: made.update(version="one"), "version"),
    "no version": ("map", lambda made: made.pop("version"), "version"),
    "another format": ("map", lambda made: made.update(format="x"), "view"),
    "unknown kind": ("map", lambda made: made.update(kind="constructor"), "nknown kind of view"),
    "no block": ("map", lambda made: made.pop("block"), "damaged"),
    "cut base64": ("map", _cut, "damaged"),
    "no base64": ("map", _block(data="§"), "damaged"),
    "no deflated bytes": ("map", _noise, "damaged"),
    "size too small": ("map", _block(size=4), "damaged"),
    "size too large": ("map", _block(size=1 << 40), "damaged"),
    "size below 0": ("map", _block(size=-1), "damaged"),
    "texts beyond the end": ("map", _block(texts=1 << 20), "damaged"),
    "texts cut": ("map", _block(texts=5), "damaged"),
    "unknown type": ("map", _entry("entropy", type="f2"), "damaged"),
    "type of the language": ("map", _entry("entropy", type="constructor"), "damaged"),
    "wrong type": ("map", _entry("tokens", type="u1"), "tokens"),
    "a place of a text that is not there": ("map", _entry("tokens", at=0), "damaged"),
    "wrong axes": ("map", _entry("entropy", shape=[6]), "entropy"),
    "wrong count": ("map", _entry("tokens", shape=[2]), "entropy"),
    "shape below 0": ("map", _entry("tokens", shape=[-3]), "damaged"),
    "two shapes below 0": ("map", _entry("entropy", shape=[1, -2, -3]), "damaged"),
    "shape as text": ("map", _entry("tokens", shape=["3"]), "damaged"),
    "shape with a fraction": ("map", _entry("tokens", shape=[2.5]), "damaged"),
    "shape that is no list": ("map", _entry("tokens", shape=3), "damaged"),
    "outside of the block": ("map", _entry("entropy", at=1 << 20), "damaged"),
    "before the block": ("map", _entry("entropy", at=-8), "damaged"),
    "an array is missing": ("map", lambda made: made["block"]["arrays"].pop("layers"), "layers"),
    "a column is shorter": ("exits", _entry("policies.saved", shape=[1]), "policies"),
    "a column without a length": ("exits", _entry("policies.saved", shape=[]), "policies"),
    "a column is missing": ("exits", lambda made: made["block"]["arrays"].pop("policies.saved"), "policies.saved"),
    "the column of the lines is missing": (
        "exits",
        lambda made: made["block"]["arrays"].pop("policies.policy"),
        "policies.policy",
    ),
}


def damaged(name: str) -> dict[str, Any]:
    """The JSON of a damaged view."""
    kind, change, _ = DAMAGES[name]
    made = copy.deepcopy(sound(kind))
    change(made)
    return made
