"""Figures: the same bytes twice, nothing of the caller's matplotlib changed, small and empty tables drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from exitlens.errors import RunError
from exitlens.report import figure_style as style
from exitlens.report import gallery
from exitlens.report.frames import Results
from exitlens.report.text import figure_text, number_text, visible
from exitlens.studies.decoding import figures as figures_decoding
from exitlens.studies.entropy import figures as figures_entropy
from exitlens.studies.exits import figures as figures_exits
from exitlens.studies.layers import figures as figures_layers
from exitlens.studies.probes import figures as figures_probes
from exitlens.studies.probes import figures_evaluation
from exitlens.studies.registry import chapters

NASTY = "<script>alert('x')</script> $x_1$ 😀 שלום 中文 \x00 \x1b[31m \u202e"


def layers(question: str = "How many?", choices: tuple[str, ...] = ("two", "none"), last: int = 6) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "question_id": "q1",
            "question": question,
            "lens": "logit",
            "layer": layer,
            "choice": choice,
            "correct": choice == choices[-1],
            "rule": "first-token",
            "probability": 0.1 + 0.01 * layer,
            "share": 1 / len(choices),
            "mass": 0.2 + 0.02 * layer,
        }
        for layer in range(last + 1)
        for choice in choices
    )


def entropy(judges: tuple[str, ...] = ("judge A", "judge B")) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "judge": judge,
            "estimator": estimator,
            "layer": layer,
            "n_correct": 4,
            "n_incorrect": 6,
            **{f"{name}{end}": value + shift for name, value in (("correct", 2.0), ("incorrect", 3.0),
               ("difference", 1.0), ("auroc", 0.6)) for end, shift in (("", 0.0), ("_low", -0.2), ("_high", 0.2))},
            "p_holm": 0.01,
        }
        for judge in judges
        for estimator in ("per-group", "pooled-weights")
        for layer in range(4)
    )  # fmt: skip


def probes() -> pd.DataFrame:
    return pd.DataFrame(
        {"setting": s, "method": m, "layer": layer, "train_accuracy": t, "test_accuracy": 0.7,
         "test_accuracy_low": 0.65, "test_accuracy_high": 0.75, "n_test": 100}
        for s in ("few-shot", "zero-shot") for m, layer, t in (("MLP", 3, 0.9), ("LM next token", None, None))
    )  # fmt: skip


def decoding() -> pd.DataFrame:
    return pd.DataFrame(
        {"decoder": d, "metric": m, "n": 10, "mean": 0.3, "low": 0.2, "high": 0.4, "difference": diff,
         "difference_low": 0.01, "difference_high": 0.09, "p": 0.03, "repetition_penalty": 1.0}
        for d, diff in (("vanilla", None), ("dola:low", 0.05)) for m in ("bleu_max", "rouge_acc")
    )  # fmt: skip


CURVES = pd.DataFrame(
    {
        "setting": ["zero-shot"] * 2,
        "layer": [3, 3],
        "epoch": [1, 2],
        "train_loss": [0.7, 0.4],
        "train_accuracy": [0.5, 0.8],
    }
)
TOP = pd.DataFrame(
    {
        "question_id": "q1",
        "lens": "logit",
        "layer": [0, 1],
        "rank": 0,
        "token": [" a", NASTY],
        "probability": [0.2, 0.9],
    }
)
KINDS = pd.DataFrame(
    {"kind": ["logistic", "logistic", "floor"], "role": ["probe", "probe", "floor"], "layer": [0, 1, None],
     "accuracy": [0.6, 0.7, 0.55], "accuracy_low": [0.5, 0.6, 0.5], "accuracy_high": [0.7, 0.8, 0.6]}
)  # fmt: skip
BINS = pd.DataFrame({"kind": "logistic", "confidence": [0.2, 0.8], "observed": [0.3, 0.7], "observed_low": [0.2, 0.6],
                     "observed_high": [0.4, 0.8]})  # fmt: skip
RISK = pd.DataFrame({"kind": "mlp", "coverage": [0.5, 1.0], "risk": [0.1, 0.2], "risk_low": [0.0, 0.1],
                     "risk_high": [0.2, 0.3]})  # fmt: skip
TOPICS = pd.DataFrame({"train_topic": ["a", "b"], "test_topic": ["b", "a"], "accuracy": [0.6, None]})
CHOSEN = pd.DataFrame({"decoder": "dola:low", "layer": [2, 4], "count": [3, 9]})
EXITS = pd.DataFrame(
    {"policy": ["oracle", "margin"], "threshold": [None, 0.9], "agreement": [1.0, 0.9], "agreement_low": [1.0, 0.8],
     "agreement_high": [1.0, 0.95], "flops_saved": [0.3, -0.1], "layers_saved": [4.0, 2.0],
     "predicted_time": [0.7, 1.1]}
)  # fmt: skip
LEFT = pd.DataFrame({"policy": "margin", "threshold": 0.9, "layer": [5, 6], "share": [0.4, 0.6]})

ACCURACY = pd.DataFrame({"lens": "logit", "layer": [0, 1], "n": 40, "accuracy": [0.2, 0.6], "low": [0.1, 0.5],
                         "high": [0.3, 0.7], "chance": 0.25})  # fmt: skip

DRAWN = {
    "bars": (figures_layers.choice_bars, layers()),
    "lines": (figures_layers.choice_lines, layers()),
    "grid": (figures_layers.top_grid, TOP),
    "means": (figures_entropy.means, entropy()),
    "difference": (figures_entropy.difference, entropy()),
    "auroc": (figures_entropy.auroc, entropy()),
    "dots": (figures_probes.accuracy_dots, probes()),
    "training": (figures_probes.training_curves, CURVES),
    "kinds": (figures_probes.layer_curves, KINDS),
    "calibration": (figures_evaluation.calibration, BINS),
    "risk": (figures_evaluation.risk_coverage, RISK),
    "transfer": (figures_evaluation.transfer, TOPICS),
    "scores": (figures_decoding.scores, decoding()),
    "differences": (figures_decoding.differences, decoding()),
    "chosen": (figures_decoding.layer_choices, CHOSEN),
    "pareto": (figures_exits.pareto, EXITS),
    "left": (figures_exits.exit_layers, LEFT),
    "accuracy": (figures_layers.accuracy_curves, ACCURACY),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_figure_is_drawn_whole_from_one_row_and_from_none(name: str) -> None:
    draw, frame = DRAWN[name]
    for part in (frame, frame.iloc[:1], frame.iloc[:0]):
        assert "</svg>" in style.svg_text(draw(part))


def test_the_same_table_gives_the_same_bytes_in_every_format(tmp_path: Path) -> None:
    first = style.save(figures_entropy.means(entropy()), tmp_path / "a", "means")
    second = style.save(figures_entropy.means(entropy()), tmp_path / "b", "means")
    other = style.save(figures_entropy.means(entropy(("judge C",))), tmp_path / "c", "means")
    assert set(first) == {"svg", "pdf", "png"}
    for form, path in first.items():
        assert path.read_bytes() == second[form].read_bytes()
        assert path.read_bytes() != other[form].read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["means.pdf", "means.png", "means.svg"]


def test_the_callers_settings_neither_leak_into_a_figure_nor_change() -> None:
    plain = style.svg_text(figures_probes.accuracy_dots(probes()))
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "xtick.direction": "in", "axes.ymargin": 0.4}):
        before = matplotlib.rcParams.copy()
        assert style.svg_text(figures_probes.accuracy_dots(probes())) == plain
        after = matplotlib.rcParams.copy()
    assert before == after


def test_drawing_never_imports_pyplot() -> None:
    code = "import sys; import exitlens.report.gallery; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_awkward_text_is_drawn_as_text_and_never_as_markup_or_formula() -> None:
    frame = layers(NASTY, (NASTY, "x" * 300))
    svg = style.svg_text(figures_layers.choice_bars(frame, note=NASTY))
    assert "<script" not in svg
    assert "$x_1$" in svg
    assert "\x00" not in svg
    assert "\x1b" not in svg


def test_the_judge_and_the_artefact_are_named_in_the_figure() -> None:
    svg = style.svg_text(figures_entropy.means(entropy(), estimator="pooled-weights"))
    assert "Judge: judge A" in svg
    assert "artefact" in svg
    assert "artefact" not in style.svg_text(figures_entropy.means(entropy()))


def test_bins_of_few_statements_are_left_out_and_the_figure_says_so() -> None:
    bins = pd.concat([BINS, BINS.assign(confidence=[0.4, 0.6])], ignore_index=True)

    def dots(frame: pd.DataFrame) -> int:
        line = figures_evaluation.calibration(frame).axes[0].containers[0].lines[0]
        return len(line.get_xdata())

    few = bins.assign(n=[50.0, 50.0, 9.4, 50.0])
    assert (dots(few), dots(bins.assign(n=50.0)), dots(bins.assign(n=2.0))) == (3, 4, 4)
    assert "bins of 10 statements or more" in style.svg_text(figures_evaluation.calibration(few))
    assert "or more" not in style.svg_text(figures_evaluation.calibration(bins))


def test_an_unwritable_folder_is_one_line_with_its_name(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(RunError, match=r"file.*choose a folder you may write to"):
        style.save(style.new_figure(1.0), blocked, "x")


def test_gallery_draws_what_the_tables_allow(tmp_path: Path) -> None:
    tables = {"layers": layers(), "entropy_layers": entropy().iloc[:0], "decoding": decoding()}
    figures = gallery.draw_all(Results(tables, {"model": {"name": "m"}}), chapters(), tmp_path)
    assert set(figures) == {"layers-bars-question", "layers-share-question", "decoding-scores", "decoding-differences"}
    assert (tmp_path / "decoding-scores.pdf").stat().st_size > 1000


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\x00b\nc\x1b\u202e\ud800\ufffe") == "a␀b↵c␛⟨U+202E⟩⟨U+D800⟩⟨U+FFFE⟩"
    assert visible(float("nan")) == ""
    assert figure_text("中文a\x00") == "⟨U+4E2D U+6587⟩a⟨U+0000⟩"
    assert visible("naïve 😀 مرحبا") == "naïve 😀 مرحبا"


def test_numbers_are_short_and_never_rounded_to_nothing() -> None:
    assert number_text(0.12345) == "0.123"
    assert number_text(-0.5, 1) == "−0.5"
    assert number_text(0.00002) == "2.0e-05"
    assert number_text(None) == "–"
    assert number_text(12345) == "12,345"


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("width", ["column", "page"])
def test_text_is_read_at_seven_points_and_stays_on_the_paper(name: str, width: style.FigureWidth) -> None:
    draw, frame = DRAWN[name]
    with style.figure_width(width):
        figure = draw(frame, note="smollm2-135m · n = 40 questions · logit lens · judge ROUGE-L margin")
    assert figure.get_figwidth() <= style.WIDTHS[width]
    assert all(text.get_fontsize() >= 7 for text in figure.findobj(Text) if text.get_text().strip())
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()  # inches
    assert drawn.x0 > -0.03
    assert drawn.x1 < figure.get_figwidth() + 0.03


def test_the_width_holds_inside_its_block_alone(tmp_path: Path) -> None:
    tables = {"decoding": decoding()}
    found = {
        width: gallery.draw_all(Results(tables, {}), chapters(), tmp_path / width, width)["decoding-scores"]
        for width in ("column", "page")
    }
    assert 'width="237.6pt"' in found["column"]
    assert 'width="504pt"' in found["page"]
    assert style.new_figure(1.0).get_figwidth() == 7.0


def test_no_panel_of_choices_is_empty_and_who_leads_is_named() -> None:
    # Early layers give the choices next to nothing of the vocabulary; among themselves they still have shares.
    frame = layers(choices=("two", "none")).assign(probability=1e-9)
    frame["share"] = [0.7 if c == "two" else 0.3 for c in frame["choice"]]
    figure = figures_layers.choice_bars(frame)
    assert len(figure.axes) == 6
    for axes in figure.axes:
        widths = [patch.get_width() for patch in axes.patches]
        assert widths == pytest.approx([0.7, 0.3])
        assert any("two leads" in text.get_text() for text in axes.texts)
    colours = [patch.get_facecolor()[:3] for patch in figure.axes[0].patches]
    assert colours == [to_rgb(style.VERMILION), to_rgb(style.BLUE)]
    even = figures_layers.choice_bars(frame.assign(share=0.5))
    assert all(any("no choice leads" in text.get_text() for text in axes.texts) for axes in even.axes)
    bare = figures_layers.choice_bars(frame, value="probability")
    assert bare.axes[0].get_xscale() == "log"
    assert all(patch.get_width() > 0 for axes in bare.axes for patch in axes.patches)


def test_pareto_curves_begin_where_nothing_is_saved_and_leave_out_what_costs_more() -> None:
    frame = pd.DataFrame(
        [
            ("margin", 0.9, 0.99, 0.1),
            ("margin", 0.8, 0.98, 0.05),
            ("margin", 0.5, 0.8, 0.3),
            ("entropy", 1.0, 0.97, -0.2),
        ],
        columns=["policy", "threshold", "agreement", "flops_saved"],
    )
    figure = figures_exits.pareto(frame)
    (line,) = figure.axes[0].get_lines()[:1]
    assert list(line.get_xdata()) == [0.0, 0.1, 0.3]  # 0.8 saves less at a lower agreement than 0.9
    assert list(line.get_ydata()) == [1.0, 0.99, 0.8]
    assert figure.axes[0].get_xlim()[0] == 0.0
    svg = style.svg_text(figure)
    assert "1 threshold costs more than it saves and is left out" in svg
    nothing = style.svg_text(figures_exits.pareto(frame.iloc[3:]))
    assert "no threshold saves anything" in nothing
    timed = frame.assign(predicted_time=1 - frame["flops_saved"])
    axes = figures_exits.pareto(timed, cost="predicted_time").axes[0]
    assert list(axes.get_lines()[0].get_xdata()) == pytest.approx([1.0, 0.9, 0.7])
    assert axes.get_xlim()[0] == 1.0
