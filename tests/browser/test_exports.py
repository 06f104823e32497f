"""What a reader takes along from each view: its numbers are those of the Parquet tables, in CSV, JSON and SVG."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from exitlens import read
from exitlens.models import wrap
from exitlens.report.view_page import page
from exitlens.report.view_trace import MAP_STATS, trace_view
from tests import tiny
from tests.browser.conftest import Visit
from tests.browser.run_tables import comparison_tables
from tests.serving import until

pytestmark = pytest.mark.browser

# Sheets of each view, and the table that each comes from.
SHEETS = {
    "exits-1": {"policies": "exits", "exit_layers": "exits_layers"},
    "entropy-1": {"layers": "entropy_layers"},
    "probes-1": {"layers": "probe_layers", "calibration": "probe_calibration", "transfer": "probe_transfer"},
    "decoding-1": {"scores": "decoding", "layers": "decoding_layers"},
    "layers-2": {"means": "attribution_means", "parts": "attribution", "heads": "attribution_heads"},
    "lenses-1": {"passed": "lenses", "layers": "lenses_layers"},
}
# What stands beside the tables: of whole texts, and means over them.
BESIDE = {"answers", "texts", "steps", "partings", "verdicts", "entropies", "head_means"}


@pytest.fixture(scope="module")
def drawn(chromium: Any, report: Path) -> Iterator[Visit]:
    """The report with every view drawn, as it is found: tests here read and change nothing."""
    yield from _drawn(chromium, report)


@pytest.fixture(scope="module")
def compared(chromium: Any, comparison: Path) -> Iterator[Visit]:
    yield from _drawn(chromium, comparison)


def _drawn(chromium: Any, path: Path) -> Iterator[Visit]:
    context = chromium.new_context(offline=True, viewport={"width": 1200, "height": 800})
    made = Visit(context.new_page())
    made.page.goto(path.as_uri())
    made.all_drawn()
    yield made
    context.close()


def sheets(visit: Visit, view: str) -> dict[str, pd.DataFrame]:
    """The view's tables, with None where the view has nothing."""
    found = visit.page.evaluate(f"exitlens.handles.get('{view}').sheets()")
    return {each["name"]: pd.DataFrame(each["rows"], columns=each["columns"], dtype=object) for each in found}


def plain(value: Any) -> Any:
    """A value of a table as JSON knows it."""
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def same(sheet: pd.DataFrame, table: pd.DataFrame) -> None:
    """Every column of the table stands in the sheet, number by number, none rounded."""
    assert set(table.columns) <= set(sheet.columns)
    for column in table.columns:
        got = [None if value != value else value for value in sheet[column]]
        assert got == [plain(value) for value in table[column]], column


@pytest.mark.parametrize("view", SHEETS)
def test_every_number_of_a_views_tables_is_exported(drawn: Visit, report: Path, view: str) -> None:
    found = sheets(drawn, view)
    assert set(found) - BESIDE == set(SHEETS[view])
    for name, source in SHEETS[view].items():
        table = pd.read_parquet(report.parent / "tables" / f"{source}.parquet")
        if name == "parts":
            table = table[table["block"] >= 0]
        if name == "heads":  # of questions that have their text beside them
            table = table.drop(columns="question_id")
        same(found[name], table)


def test_what_stands_behind_a_point_or_a_parting_is_exported(drawn: Visit, report: Path) -> None:
    """Verdicts of every judge, the entropy of every answer at every layer, the divergence of every candidate layer."""

    def table(name: str) -> pd.DataFrame:
        return pd.read_parquet(report.parent / "tables" / f"{name}.parquet")

    keys = ["question_id", "decoder", "judge"]
    judged = table("judgements").set_index(keys)["correct"]
    decoding, entropy = (sheets(drawn, view) for view in ("decoding-1", "entropy-1"))
    verdicts = decoding["verdicts"].set_index(keys)["correct"]
    assert {key: bool(judged[key]) for key in judged.index} == verdicts.to_dict()
    greedy = entropy["verdicts"].set_index(keys)["correct"].to_dict()
    assert greedy == {key: value for key, value in verdicts.items() if key[1] == judged.index[0][1]}
    keys = ["question_id", "decoder", "layer"]
    assert (
        decoding["partings"].set_index(keys)["divergence"].to_dict()
        == table("decoding_partings").set_index(keys)["divergence"].to_dict()
    )
    means = table("entropy_tokens").groupby(["question_id", "layer"])["entropy"].mean().astype(np.float32)
    assert entropy["entropies"].set_index(["question_id", "layer"])["entropy"].to_dict() == means.to_dict()


def test_numbers_and_curves_of_runs_side_by_side_are_exported(compared: Visit) -> None:
    tables = comparison_tables()
    same(sheets(compared, "curves-1")["curves"], tables["compare_curves"])
    numbers, table = sheets(compared, "numbers-1")["numbers"], tables["compare_numbers"]
    keys = ["study", "number", "of", "run"]
    numbers = numbers[table.columns].sort_values(keys, ignore_index=True)
    same(numbers, table.sort_values(keys, ignore_index=True))


def test_every_question_is_exported_choice_by_choice(drawn: Visit, report: Path) -> None:
    found = sheets(drawn, "layers-1")["choices"]
    table = pd.read_parquet(report.parent / "tables" / "layers.parquet")
    table = table[table["question_id"] == found["question"].iloc[0]]
    keys = ["lens", "layer", "choice"]
    wanted = table.set_index(keys)
    assert len(found) == len(table) > 20
    for row in found.itertuples():
        here = wanted.loc[(row.lens, row.layer, row.choice)]
        assert row.correct == bool(here["correct"])
        for name in ("probability", "share", "mass"):
            assert np.float32(getattr(row, name)) == here[name], name


def svgs(visit: Visit, view: str, print_: bool = False) -> dict[str, ET.Element]:
    """The view's drawings by what they are called."""
    texts = visit.page.evaluate(
        """([view, print]) => {
          const handle = exitlens.handles.get(view), found = [];
          for (let i = 0; ; i++) try { found.push(handle.svg(i, print)); } catch { return found; }
        }""",
        [view, print_],
    )
    made = [ET.fromstring(text) for text in texts]
    return {str(each[0].text): each for each in made}


def tagged(drawing: ET.Element, name: str) -> list[ET.Element]:
    return [each for each in drawing.iter() if each.tag.rpartition("}")[2] == name]


def words(drawing: ET.Element) -> list[str]:
    return [each.text or "" for each in tagged(drawing, "text")]


def lines(drawing: ET.Element) -> list[np.ndarray]:
    """Points ``[n, 2]`` of each line in the units of its axes, read off with the ticks, as a reader would."""
    ticks: dict[str, dict[float, float]] = {"middle": {}, "end": {}}
    for each in tagged(drawing, "text"):
        text = (each.text or "").replace("−", "-")
        anchor = each.get("text-anchor", "")
        if anchor in ticks and re.fullmatch(r"-?\d+(\.\d+)?", text) and each.get("stroke") is None:
            place = float(each.attrib["x"]) if anchor == "middle" else float(each.attrib["y"]) - 4
            ticks[anchor][place] = float(text)
    scales = [np.polyfit([*ticks[axis]], [*ticks[axis].values()], 1) for axis in ("middle", "end")]
    found = []
    for each in tagged(drawing, "path"):
        if each.get("stroke-width") == "1.8" and "h22" not in each.attrib["d"]:  # not those of the legend
            pairs = np.array(
                [[float(v) for v in pair.split()] for pair in re.findall(r"[-\d.]+ [-\d.]+", each.attrib["d"])]
            )
            found.append(np.column_stack([np.polyval(scales[i], pairs[:, i]) for i in (0, 1)]))
    return found


LINES = {  # view, drawing, table, its rows, x, y, a line each
    "entropy": ("entropy-1", "Mean entropy by layer", "entropy_layers", "", "layer", ("correct", "incorrect")),
    "difference": ("entropy-1", "Incorrect minus correct", "entropy_layers", "", "layer", ("difference",)),
    "auroc": ("entropy-1", "AUROC by layer", "entropy_layers", "", "layer", ("auroc",)),
    "probes": ("probes-1", "Accuracy by layer", "probe_layers", "role == 'probe'", "layer", ("accuracy",)),
    "calibration": ("probes-1", "Calibration", "probe_calibration", "", "confidence", ("observed",)),
    "pareto": (
        "exits-1",
        "Agreement with the full model, by layers saved",
        "exits",
        "policy == 'probability'",
        "layers_saved",
        ("agreement",),
    ),
    "attribution": (
        "layers-2",
        "Mean contribution by block",
        "attribution_means",
        "kind == 'attention'",
        "block",
        ("contribution",),
    ),
    "lenses": (
        "lenses-1",
        "Top-1 token is the last layer's",
        "lenses_layers",
        "lens == lens.iloc[0]",
        "layer",
        ("agreement",),
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_lines_of_a_file_are_where_the_table_says(drawn: Visit, report: Path, what: str) -> None:
    view, title, source, rows, x, columns = LINES[what]
    table = pd.read_parquet(report.parent / "tables" / f"{source}.parquet")
    table = (table.query(rows, engine="python") if rows else table).sort_values(x)
    for print_ in (False, True):
        drawing = svgs(drawn, view, print_)[title]
        found = lines(drawing)
        across = np.ptp(table[x]) or 1.0
        for column in columns:
            wanted = np.column_stack([table[x].astype(float), table[column].astype(float)])
            tall = np.ptp(np.concatenate([each[:, 1] for each in found])) or 1.0
            near = [
                each
                for each in found
                if each.shape == wanted.shape
                and np.allclose(each[:, 0], wanted[:, 0], atol=0.002 * across)
                and np.allclose(each[:, 1], wanted[:, 1], atol=0.004 * tall)
            ]
            assert near, (column, found, wanted)
        assert ("mm" in drawing.attrib["width"]) == print_


def test_a_file_is_light_whatever_the_page_is(drawn: Visit, visit: Callable[..., Visit], report: Path) -> None:
    dark = visit(report, dark=True)
    dark.all_drawn()
    for view in SHEETS:
        light, other = ({k: ET.tostring(v) for k, v in svgs(page, view).items()} for page in (drawn, dark))
        assert light == other, view


def test_curves_of_runs_are_where_the_table_says(compared: Visit) -> None:
    table = comparison_tables()["compare_curves"]
    drawing = next(iter(svgs(compared, "curves-1").values()))
    found = lines(drawing)
    for _, rows in table[table["study"] == "layers"].groupby("run"):
        wanted = rows[["x", "value"]].to_numpy(dtype=float)
        assert any(each.shape == wanted.shape and np.allclose(each, wanted, atol=0.01) for each in found)


def test_bars_and_matrices_of_a_file_say_the_numbers_of_the_table(drawn: Visit, compared: Visit, report: Path) -> None:
    def table(name: str) -> pd.DataFrame:
        return pd.read_parquet(report.parent / "tables" / f"{name}.parquet")

    def said(drawings: dict[str, ET.Element], title: str) -> list[str]:
        [drawing] = [each for name, each in drawings.items() if name.startswith(title)]
        return words(drawing)

    def shown(value: float, digits: int) -> str:
        text = f"{value:.{digits}f}".replace("-", "−")
        return str(int(value)) if float(value).is_integer() else text

    scores = said(svgs(drawn, "decoding-1"), "BLEU max by decoder")
    assert {shown(value, 3) for value in table("decoding")["mean"]} <= set(scores)
    chosen = said(svgs(drawn, "decoding-1"), "Layers that")
    assert {str(count) for count in table("decoding_layers")["count"]} <= set(chosen)
    transfer = said(svgs(drawn, "probes-1"), "Transfer of")
    assert {shown(round(value, 2), 2) for value in table("probe_transfer")["auroc"]} <= set(transfer)
    passed = said(svgs(drawn, "lenses-1"), "pass@")
    first = table("lenses").pipe(
        lambda rows: rows[(rows["set"] == rows["set"].iloc[0]) & (rows["k"] == rows["k"].iloc[0])]
    )
    assert {shown(value, 3) for value in first["passed"]} <= set(passed)
    left = table("exits_layers").query("policy == 'probability' and threshold == 0.5")["share"]
    exits = said(svgs(drawn, "exits-1"), "Where tokens exit")
    assert {f"{100 * share:.1f}".removesuffix(".0") + "%" for share in left} <= set(exits)
    layers = table("layers").pipe(lambda rows: rows[rows["question_id"] == rows["question_id"].iloc[0]])
    last = layers[(layers["lens"] == "logit") & (layers["layer"] == layers["layer"].max())]
    bars = said(svgs(drawn, "layers-1"), f"Layer {layers['layer'].max()}")
    assert {shown(float(share), 3) for share in last["share"]} <= set(bars)
    numbers = comparison_tables()["compare_numbers"].query("study == 'layers' and number == 'correct first'")
    runs = words(next(iter(svgs(compared, "numbers-1").values())))
    assert {shown(value, 3) for value in numbers["value"]} <= set(runs)


def test_a_map_exports_what_the_trace_holds(visit: Callable[..., Visit], tmp_path: Path) -> None:
    lm = wrap(tiny.model("llama", spread=0.2), tiny.tokenizer(), name="tiny")
    trace = read(lm, ["What is true?"], stats=MAP_STATS)
    trace.to_pandas().to_parquet(tmp_path / "trace.parquet")
    table = pd.read_parquet(tmp_path / "trace.parquet").set_index(["layer", "position"])
    (tmp_path / "a.html").write_text(page([trace_view(trace)]), encoding="utf-8")
    made = visit(tmp_path / "a.html")
    made.all_drawn()
    found = sheets(made, "view-1")["map"]
    assert len(found) == len(trace.layers) * trace.lengths[0]
    for name in ("entropy", "kl", "margin"):
        wanted = np.array([table.loc[(row.layer, row.position), name] for row in found.itertuples()], dtype=float)
        got = found[name].to_numpy(dtype=float)
        assert np.abs(got - wanted).max() <= np.ptp(wanted) / 131_068 * 1.01, name
    top = np.exp(trace["top_logprobs"][0, :, :, 0]).reshape(-1)
    assert np.abs(found["probability"].to_numpy(dtype=float) - top).max() < 1e-4
    assert found["token"].tolist() == [trace.vocabulary[int(i)] for i in trace["top_ids"][0, :, :, 0].reshape(-1)]
    drawing = svgs(made, "view-1")[
        "Top-1 token of each layer, logit lens; colour: probability of the layer's top-1 token"
    ]
    assert len(tagged(drawing, "rect")) == 1 + len(found)
    [curve] = lines(svgs(made, "view-1")["Entropy by layer"])
    here = table.loc[(slice(None), trace.lengths[0] - 1), "entropy"].to_numpy(dtype=float)
    assert np.abs(curve[:, 1] - here).max() <= 0.01 * np.ptp(here) + 1e-3


def test_the_menu_copies_csv_and_saves_json_and_svg(chromium: Any, report: Path) -> None:
    """The buttons themselves, in the view of exits."""
    context = chromium.new_context(offline=True, viewport={"width": 1200, "height": 800})
    made = Visit(context.new_page())
    made.page.goto(report.as_uri())
    made.all_drawn()
    made.page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    view = made.page.locator("[data-view=exits-1]")
    table = pd.read_parquet(report.parent / "tables" / "exits.parquet")

    def press(name: str) -> None:
        if not view.get_by_role("button", name=name, exact=True).is_visible():
            view.locator(".menu summary").click()
        view.get_by_role("button", name=name, exact=True).click()

    press("Copy as CSV")
    until(lambda: made.page.evaluate("window.copied"), 10)
    rows = list(csv.reader(io.StringIO(made.page.evaluate("window.copied"))))
    at = rows[0].index("agreement")
    assert [float(row[at]) for row in rows[1 : 1 + len(table)]] == table["agreement"].tolist()
    with made.page.expect_download() as saved:
        press("Download JSON")
    made_json = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    [sheet] = [each for each in made_json["tables"] if each["name"] == "policies"]
    at = sheet["columns"].index("agreement")
    assert [row[at] for row in sheet["rows"]] == table["agreement"].tolist()
    assert saved.value.suggested_filename.endswith(".json")
    for name, ending in (("Download SVG", ".svg"), ("Download SVG for print", "-print.svg")):
        with made.page.expect_download() as saved:
            press(name)
        assert saved.value.suggested_filename.endswith(ending)
        assert ET.parse(saved.value.path()).getroot().tag.endswith("svg")
    assert made.faults == []
    context.close()
