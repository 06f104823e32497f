"""Which figures a run has, what each is called, its caption and its alternative text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from matplotlib.figure import Figure
from pandas import DataFrame

from exitlens.report import figure_style as style
from exitlens.report.frames import distinct, layers_of, rows
from exitlens.report.text import is_number, slug, to_float, visible
from exitlens.report.words import join, judges, ranges
from exitlens.studies.decoding import figures as figures_decoding
from exitlens.studies.entropy import figures as figures_entropy
from exitlens.studies.exits import figures as figures_exits
from exitlens.studies.layers import figures as figures_layers
from exitlens.studies.probes import figures as figures_probes
from exitlens.studies.probes import figures_evaluation

__all__ = ["Plate", "draw_all", "plates"]


CAPTIONS: Final[Mapping[str, str]] = {
    "entropy-mean": (
        "Mean entropy over the tokens of right and of wrong answers, by layer; bands: bootstrap intervals by question."
    ),
    "entropy-difference": (
        "Mean entropy of wrong answers minus that of right answers, by layer, with intervals; "
        "filled dots survive Holm's correction over layers."
    ),
    "entropy-auroc": (
        "Probability that a wrong answer has the higher entropy (AUROC), by layer, with intervals; 0.5 is chance."
    ),
    "entropy-pooled-weights": (
        "The artefact, on request: each group's sum is divided by the tokens of all answers (pooled weights), "
        "so the smaller group looks lower at every layer whatever its entropy."
    ),
    "probes-accuracy": "Test accuracy by method with intervals; dashed line: chance.",
    "probes-layers": (
        "Accuracy by layer for each kind of probe, with intervals, chance, text-only floor, "
        "random-label control and the language model."
    ),
    "probes-training": "Training loss and accuracy after each epoch, by layer.",
    "probes-calibration": "Calibration: share of true statements against the probability given.",
    "probes-risk": (
        "Risk against coverage: error among the statements answered when the least confident are left out."
    ),
    "probes-transfer": "Accuracy when trained on one topic (row) and tested on another (column); white is chance.",
    "decoding-scores": "Mean score of each decoder by metric, with intervals.",
    "decoding-differences": (
        "Difference of each decoder to the first, paired by question; filled dots: the interval leaves zero out."
    ),
    "exits-pareto": (
        "Agreement with the full model against the compute saved, the cost of asking included, one curve a policy; "
        "the oracle is the upper bound."
    ),
    "exits-layers": "Share of tokens leaving at each layer.",
}


@dataclass(frozen=True)
class Plate:
    """One figure of a run: file name, study, caption, alternative text, and how to draw it."""

    name: str
    study: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


def draw_all(
    manifest: Mapping[str, Any], tables: Mapping[str, DataFrame], folder: str | os.PathLike[str]
) -> dict[str, str]:
    """Draw every figure that the tables allow, save each as SVG, PDF and PNG in the folder; SVG text by name.

    Raises :class:`exitlens.errors.RunError` when the folder cannot be written.
    """
    out: dict[str, str] = {}
    for plate in plates(manifest, tables):
        paths = style.save(plate.draw(), folder, plate.name)
        out[plate.name] = paths["svg"].read_text(encoding="utf-8")
    return out


def plates(manifest: Mapping[str, Any], tables: Mapping[str, DataFrame]) -> list[Plate]:
    """The figures that these tables allow, in the order of the report."""
    present = {name: frame for name, frame in tables.items() if len(frame)}
    model = _model(manifest)
    return [
        *_layers(present, model),
        *_entropy(present, model),
        *_probes(present, model),
        *_decoding(present, model),
        *_exits(present, model),
    ]


def _model(manifest: Mapping[str, Any]) -> str:
    model = manifest.get("model")
    return visible(model.get("name")) if isinstance(model, Mapping) and model.get("name") else "model not recorded"


def _layers(tables: Mapping[str, DataFrame], model: str) -> Iterator[Plate]:
    if "layers" not in tables:
        return
    frame = tables["layers"]
    picks = rows(tables.get("layers_picks")) or [
        {"question_id": key, "verdict": "question"} for key in distinct(rows(frame), "question_id")[:2]
    ]
    seen: dict[str, int] = {}
    for pick in picks:
        mine = frame[frame["question_id"] == pick["question_id"]]
        lens = pick.get("lens") or (mine["lens"].iloc[0] if len(mine) else None)
        mine = mine[mine["lens"] == lens]
        if not len(mine):
            continue
        verdict = visible(pick.get("verdict"))
        seen[verdict] = seen.get(verdict, 0) + 1
        tag = slug(verdict) + (f"-{seen[verdict]}" if seen[verdict] > 1 else "")
        question = visible(mine["question"].iloc[0]) if "question" in mine else ""
        rule = join([visible(name) for name in distinct(rows(mine), "rule")])
        answered = f"answered {verdict} · " if verdict in ("right", "wrong") else ""
        note = f"{answered}{model} · {visible(lens)} lens · choices by {rule}"
        where = f"Model {model}, {visible(lens)} lens, choices by {rule}, n = 1 question: “{question}”."
        yield Plate(
            f"layers-bars-{tag}",
            "layers",
            f"Probability of each choice at six layers, of the whole vocabulary; the right choice is marked ✓. {where}",
            f"Bars of the probability of each choice at six layers for the question {question}",
            partial(figures_layers.choice_bars, mine, note=note),
        )
        yield Plate(
            f"layers-share-{tag}",
            "layers",
            f"Share of each choice among the choices, by layer. {where}",
            f"Lines of each choice's share by layer for the question {question}",
            partial(figures_layers.choice_lines, mine, note=note),
        )
        if "layers_top" in tables:
            top = tables["layers_top"]
            top = top[(top["question_id"] == pick["question_id"]) & (top["lens"] == lens)]
            if len(top):
                yield Plate(
                    f"layers-top-{tag}",
                    "layers",
                    f"Most probable next tokens of each layer, darker: more probable; · is a leading space. {where}",
                    f"Grid of the most probable next tokens by layer for the question {question}",
                    partial(figures_layers.top_grid, top, question=question, note=note),
                )


def _entropy(tables: Mapping[str, DataFrame], model: str) -> Iterator[Plate]:
    if "entropy_layers" not in tables:
        return
    frame = tables["entropy_layers"]
    items = rows(frame, estimator="per-group")
    named = judges(tables)
    who = f"Judge{'s' if len(named) > 1 else ''}: {join(named)}. Model {model}; n in each panel's title."
    make = {
        "entropy-mean": figures_entropy.means,
        "entropy-difference": figures_entropy.difference,
        "entropy-auroc": figures_entropy.auroc,
    }
    for name, draw in make.items() if items else ():
        yield Plate(name, "entropy", f"{CAPTIONS[name]} {who}", CAPTIONS[name], partial(draw, frame, note=model))
    if rows(frame, estimator="pooled-weights"):
        name = "entropy-pooled-weights"
        who = f"Model {model}; judge and n in each panel's title."
        pooled = partial(figures_entropy.means, frame, estimator="pooled-weights", note=model)
        yield Plate(name, "entropy", f"{CAPTIONS[name]} {who}", CAPTIONS[name], pooled)


def _probes(tables: Mapping[str, DataFrame], model: str) -> Iterator[Plate]:
    if "probes" in tables:
        items = rows(tables["probes"])
        sizes = join([str(int(to_float(n))) for n in distinct(items, "n_test") if is_number(n)])
        caption = CAPTIONS["probes-accuracy"]
        where = f"Model {model}, n = {sizes} test statements. Squares: the language model's own answers, not trained."
        draw = partial(figures_probes.accuracy_dots, tables["probes"])
        yield Plate("probes-accuracy", "probes", f"{caption} {where}", caption, draw)
    simple: dict[str, tuple[str, Callable[..., Figure]]] = {
        "probes-layers": ("probe_layers", figures_probes.layer_curves),
        "probes-training": ("probe_curves", figures_probes.training_curves),
        "probes-calibration": ("probe_calibration", figures_evaluation.calibration),
        "probes-risk": ("probe_risk", figures_evaluation.risk_coverage),
        "probes-transfer": ("probe_transfer", figures_evaluation.transfer),
    }
    for name, (table, draw_one) in simple.items():
        if table in tables:
            drawn = partial(draw_one, tables[table], note=_protocol(tables[table], model))
            yield Plate(name, "probes", f"{CAPTIONS[name]} Model {model}.", CAPTIONS[name], drawn)


def _protocol(frame: DataFrame, model: str) -> str:
    protocols = [visible(name) for name in distinct(rows(frame), "protocol") if name is not None]
    return " · ".join([model, *protocols])


def _decoding(tables: Mapping[str, DataFrame], model: str) -> Iterator[Plate]:
    if "decoding" in tables:
        items = rows(tables["decoding"])
        sizes = join([str(int(to_float(n))) for n in distinct(items, "n") if is_number(n)])
        where = f"Model {model}, n = {sizes} questions."
        caption = CAPTIONS["decoding-scores"]
        draw = partial(figures_decoding.scores, tables["decoding"], note=f"{model} · n = {sizes} questions")
        yield Plate("decoding-scores", "decoding", f"{caption} {where}", caption, draw)
        if any(is_number(row.get("difference")) for row in items):
            caption = CAPTIONS["decoding-differences"]
            draw = partial(figures_decoding.differences, tables["decoding"], note=f"{model} · n = {sizes} questions")
            yield Plate("decoding-differences", "decoding", f"{caption} {where}", caption, draw)
    if "decoding_layers" in tables:
        frame = tables["decoding_layers"]
        caption = f"How often each early layer was chosen (candidates {ranges(layers_of(rows(frame)))})."
        draw = partial(figures_decoding.layer_choices, frame, note=model)
        yield Plate("decoding-layers", "decoding", f"{caption} Model {model}.", caption, draw)


def _exits(tables: Mapping[str, DataFrame], model: str) -> Iterator[Plate]:
    if "exits" in tables:
        caption = CAPTIONS["exits-pareto"]
        draw = partial(figures_exits.pareto, tables["exits"], note=model)
        yield Plate("exits-pareto", "exits", f"{caption} Model {model}.", caption, draw)
    if "exits_layers" in tables:
        caption = CAPTIONS["exits-layers"]
        draw = partial(figures_exits.exit_layers, tables["exits_layers"], note=model)
        yield Plate("exits-layers", "exits", f"{caption} Model {model}.", caption, draw)
