"""Views: what is packed comes back, what does not fit is refused, and the schema on both sides is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.damaged_views import DAMAGES, damaged, sound

from exitlens.errors import InputError
from exitlens.report.view_data import columns_of, embedded, pack, parse_view, quantised, unpack, view
from exitlens.report.view_figures import Figure, Switch, tables_view
from exitlens.report.view_kinds import KINDS, VERSION, schema

ROOT = Path(__file__).parents[2]


def texts(*values: str | None) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def a_map(**more: object) -> dict[str, object]:
    return {
        "lenses": texts("logit"),
        "layers": np.array([0, 2]),
        "tokens": texts("a", " b", "\ud800<\x00>"),
        "entropy": quantised(np.arange(6.0).reshape(1, 2, 3)),
        **more,
    }


@given(
    st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=30),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30),
    st.lists(st.floats(width=64), max_size=30),
    st.lists(st.sampled_from([True, False, None]), max_size=9),
)
def test_what_is_packed_comes_back(
    words: list[str | None], whole: list[int], floats: list[float], flags: list[bool | None]
) -> None:
    given_arrays = {
        "words": texts(*words),
        "whole": np.array(whole, dtype=np.int64),
        "floats": np.array(floats, dtype=np.float64),
        "small": np.array([x for x in floats if not abs(x) > 1e38], dtype=np.float32),
        "flags": np.array([*flags, True], dtype=object),
    }
    found = unpack(pack(given_arrays))
    for name in ("whole", "floats", "small"):
        np.testing.assert_array_equal(found[name], given_arrays[name])
    assert found["words"].tolist() == words
    assert found["flags"].tolist() == [*flags, True]


def test_quantised_numbers_are_off_by_no_more_than_is_said() -> None:
    values = np.random.default_rng(0).normal(size=500) * 7
    values[3] = np.nan
    found = unpack(pack({"x": quantised(values)}))["x"]
    assert np.isnan(found[3])
    assert np.nanmax(np.abs(found - values)) <= (np.nanmax(values) - np.nanmin(values)) / 131_068 * (1 + 1e-9)
    assert found[np.nanargmax(values)] == np.nanmax(values)


def test_the_component_checks_by_the_same_list() -> None:
    assert json.loads((ROOT / "web" / "src" / "schema.json").read_text()) == schema(), (
        "run scripts/view_schema.py, then npm run build in web/"
    )


def test_a_view_survives_its_json_and_cannot_end_a_script() -> None:
    hostile = "</script><script>alert(1)</script>"
    made = view("map", a_map(), title=hostile, caption=hostile, notes=[hostile])
    text = embedded(made)
    assert "<" not in text
    assert parse_view(text) == made
    assert unpack(made.block)["tokens"].tolist() == ["a", " b", "\ud800<\x00>"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": np.array([0, 1, 2])}, "'entropy' \\(map\\) has 2 along layer, others 3"),
        ({"layers": texts("0", "2")}, "'layers' \\(map\\) is of type s1, expected number"),
        ({"tokens": np.array([1, 2, 3])}, "'tokens' \\(map\\) is of type u1, expected text"),
        ({"entropy": quantised(np.zeros(3))}, "has 1 axes"),
        ({"layers": np.array([0, 2**40])}, "whole numbers of 32 bits"),
        ({"layers": np.array([0, "x"], dtype=object)}, "mixes texts and numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        view("map", a_map(**change), title="t")


def test_unknown_kinds_missing_arrays_and_newer_forms_are_refused() -> None:
    with pytest.raises(InputError, match="unknown kind of view 'pie'"):
        view("pie", {}, title="t")
    with pytest.raises(InputError, match="no array 'lenses'"):
        view("map", {}, title="t")
    made = json.loads(view("map", a_map(), title="t").to_json())
    with pytest.raises(InputError, match=f"version {VERSION + 1}, newer than {VERSION}: update exitlens"):
        parse_view(json.dumps({**made, "version": VERSION + 1}))
    with pytest.raises(InputError, match="not JSON"):
        parse_view("{")
    with pytest.raises(InputError, match="no view"):
        parse_view("[]")
    with pytest.raises(InputError, match="damaged"):
        parse_view(json.dumps({**made, "title": 3}))


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_a_line_whatever_is_damaged(what: str) -> None:
    """The component is tested with the same views: tests/browser/test_map.py."""
    said = DAMAGES[what][2]
    with pytest.raises(InputError, match=said) as refused:
        unpack(parse_view(json.dumps(damaged(what))).block)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["map", "exits"])
def test_what_was_not_damaged_is_read(kind: str) -> None:
    assert unpack(parse_view(json.dumps(sound(kind))).block)


def test_texts_that_are_all_missing_are_texts() -> None:
    made = view("map", a_map(tokens=texts("a"), entropy=quantised(np.zeros((1, 2, 1))), next=texts(None)), title="t")
    assert unpack(made.block)["next"].tolist() == [None]


def test_infinity_stays_what_it_is() -> None:
    values = np.array([0.25, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(unpack(pack({"x": quantised(values)}))["x"], values)


def test_what_json_does_not_know_is_refused_in_meta() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        view("map", a_map(), title="t", meta={"chance": float("nan")}).to_json()


def test_a_figure_whose_column_a_table_lacks_is_left_out_and_a_note_says_so() -> None:
    import pandas as pd

    table = pd.DataFrame({"kind": ["a"], "layer": [1], "accuracy": [0.5]})
    measure = Switch("measure", "Measure", options=(("accuracy", "Accuracy"), ("auroc", "AUROC")))
    figures = [
        Figure("line", "whole", "t", "layers", "layer", "$measure", by="kind"),
        Figure("line", "old", "t", "layers", "layer", "auroc", by="kind"),
        Figure("line", "elsewhere", "t", "absent", "layer", "auroc"),
    ]
    made = tables_view("probes", {"layers": table}, figures, title="t", switches=[measure])
    assert [each["name"] for each in made.meta["figures"]] == ["whole", "elsewhere"]  # type: ignore[index, union-attr, call-overload]
    assert made.notes == ["There is no figure “old”: layers.auroc is missing."]


def test_columns_keep_what_is_missing() -> None:
    import pandas as pd

    frame = pd.DataFrame({"word": ["a", None], "n": [1.5, np.nan], "yes": pd.array([True, None], dtype="boolean")})
    found = unpack(pack(columns_of("t", frame, ("word", "n", "yes", "absent"))))
    assert sorted(found) == ["t.n", "t.word", "t.yes"]
    assert found["t.word"].tolist() == ["a", None]
    assert found["t.yes"].tolist() == [True, None]
    assert np.isnan(found["t.n"][1])


def test_columns_of_one_table_are_of_one_length() -> None:
    assert {"map", "choices", "decoders", "entropy", "probes", "exits"} <= set(KINDS)
    with pytest.raises(InputError, match=r"'t\.b' \(exits\) is not as long"):
        view("exits", {"t.a": np.arange(3), "t.b": np.arange(2)}, title="t")
