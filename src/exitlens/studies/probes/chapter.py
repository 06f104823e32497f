"""What the probe study tells: the original's table, and probes of several kinds at every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from exitlens.report.chapter import Chapter, Part, Plate, Sheet, plain_rows
from exitlens.report.comparable import Curve, Number
from exitlens.report.frames import Results, Row, distinct, groups
from exitlens.report.text import Column, is_number, number_text, to_float, visible
from exitlens.report.view_data import View
from exitlens.report.words import apart, cell, count, excludes, shown, sizes, units
from exitlens.studies.probes import figures, figures_evaluation
from exitlens.studies.probes.answer import WARNING, original_answer, probe_answer
from exitlens.studies.probes.answer_chapter import answer_findings, answer_parts, answer_plates, answer_sheets
from exitlens.studies.probes.compared import probe_curves, probe_numbers
from exitlens.studies.probes.figures import method_name
from exitlens.studies.probes.views import run_views

__all__ = ["ProbesChapter"]

_LEARNED = 0.55  # a train accuracy below this is no better than guessing
_METRICS = {"accuracy": "accuracy", "auroc": "AUROC", "brier": "Brier", "ece": "ECE", "aurc": "AURC"}
_ACCURACY = "Reproduction of the original study: test accuracy by method with 95% CI; dashed line: chance."
_TRAINING = "Reproduction of the original study: training loss and accuracy after each epoch, by layer."
# Figure: the table it draws, how, its caption.
_PLATES: dict[str, tuple[str, Callable[..., Figure], str]] = {
    "probes-layers": (
        "probe_layers",
        figures.layer_curves,
        "Accuracy by layer for each kind of probe, with 95% CI, chance, floor, control and the language model.",
    ),
    "probes-calibration": (
        "probe_calibration",
        figures_evaluation.calibration,
        "Calibration: share of true statements against the probability given.",
    ),
    "probes-risk": (
        "probe_risk",
        figures_evaluation.risk_coverage,
        "Risk against coverage: error among the statements answered when the least confident are left out.",
    ),
    "probes-transfer": (
        "probe_transfer",
        figures_evaluation.transfer,
        "Accuracy when trained on one topic (row) and tested on another (column); white is chance.",
    ),
}


class ProbesChapter(Chapter):
    """Tables, sentences and figures of the probe study."""

    title = "Truth in the hidden states"
    question = "Do the hidden states tell true statements, or correct answers of the model's own, from false ones?"
    how = (
        "A logistic probe on standardised hidden states is fitted at every layer and tested on statements of a topic "
        "that it never saw, topic by topic; its layer and penalty are chosen inside the training topics. It stands "
        "beside the same probe on random labels, a text-only floor (TF-IDF and logistic regression) and the language "
        "model's own answer. LM next token: the model's top-1 next token is the correct label word. LM token "
        "probability: the more probable of the two label words. Reproduction of the original study: a network on raw "
        "states of three layers, tested on one topic. Majority: the vote of the layers probed. Train accuracy is "
        "measured after training, test loss over the whole test set; 95% CI: Jeffreys', by group. Answers: the state "
        "at the last token of the exact answer (what the answer says and the question does not; no reference is looked "
        "at), or at every token; folds of whole questions. Entropy, log-probability and p(true) (the model asked about "
        "its own answer) are fitted by a logistic line on the same folds. AUROC differences: over the same resamples, "
        "all intervals of one probe together at 95%."
    )
    own = (
        "answer_probe_judges",
        *("probe_layers", "probe_best", "probe_calibration", "probe_risk", "probe_transfer"),
        *("probes", "probe_curves"),
    )
    stages = ("states", "probe", "answer", "score")

    def answer(self, results: Results) -> str:
        """Whether the probe beats chance, the words alone and the model's own answer on unseen topics."""
        told = answer_findings(results)
        return told[0] if told else probe_answer(results) or original_answer(results)

    def headline(self, results: Results) -> list[str]:
        """The verdict on all kinds; then, of the original study, the best probe of each setting."""
        by_setting = groups(results.rows("probes"), "setting").items()
        told = [_original(setting, items) for setting, items in by_setting]
        return (
            answer_findings(results)[1:]
            + (_verdict(results) or _best_by_layer(results))
            + [text for text in told if text]
        )

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """The best point of each kind of probe, then the original's table."""
        parts: list[Part] = answer_parts(results)
        best = results.frame("probe_best")
        if best is not None:
            names = ["accuracy", "accuracy_low", "accuracy_high", "auroc", "brier", "ece", "selective_accuracy", "aurc"]
            heads = ["accuracy", "low", "high", "AUROC", "Brier", "ECE", "selective accuracy at 80% coverage", "AURC"]
            body = [[*row[:-1], row[-1] or None] for row in plain_rows(best[["kind", "role", *names, "layers"]])]
            told = f"{best['protocol'].iloc[0]}, n = {int(best['n_test'].iloc[0])}"
            layers = Column("layers chosen", shrink=True)
            of_best: list[Column | str] = ["kind", "role", *(Column(head, ".3f") for head in heads), layers]
            parts.append(Part(told, of_best, body, n=[units(row) for row in results.rows("probe_best")]))
        frame = results.frame("probes")
        if frame is not None:
            measured = {
                "test_accuracy": "test accuracy", "test_accuracy_low": "low", "test_accuracy_high": "high",
                "auroc": "AUROC", "test_loss": "test loss", "train_accuracy": "train accuracy",
                "train_loss": "train loss",
            }  # fmt: skip
            columns: list[Column | str] = ["setting", "method", Column("layer", "d")]
            columns += [Column(head, ".3f", main=name == "test_accuracy") for name, head in measured.items()]
            body = [
                [*row[:2], None if row[2] is None else int(row[2]), *row[3:]]
                for row in plain_rows(frame[["setting", "method", "layer", *measured]])
            ]
            n = [units(row) for row in results.rows("probes")]
            parts.append(Part("reproduction of the original study", columns, body, WARNING, n))
        return parts

    def tables(self, results: Results) -> list[Sheet]:
        """Each kind at its chosen layer, accuracy by layer, topic to topic; then the original's, one a setting."""
        lines = results.rows("probe_layers")
        have = [name for name in _METRICS if any(is_number(row.get(name)) for row in lines)]
        by_layer = [
            [row.get("kind"), number_text(row.get("layer"), 0), *(cell(row, name) for name in have)] for row in lines
        ]
        transfer = [
            [row.get("train_topic"), row.get("test_topic"), cell(row, "accuracy")]
            for row in results.rows("probe_transfer")
        ]
        headers = ["trained on", "tested on", "accuracy"]
        return [
            *answer_sheets(results),
            _best_sheet(results),
            Sheet(
                "By kind and layer",
                ["kind", "layer", *(_METRICS[name] for name in have)],
                by_layer,
                "probe_layers",
                True,
            ),
            Sheet("Topic to topic", headers, transfer, "probe_transfer", True),
            *(_original_sheet(name, rows) for name, rows in groups(results.rows("probes"), "setting").items()),
        ]

    def figures(self, results: Results) -> list[Plate]:
        """Accuracy by layer, calibration, risk and transfer; then the original's accuracies and training."""
        out: list[Plate] = [*answer_plates(results)]
        for name, (table, function, caption) in _PLATES.items():
            frame = results.frame(table)
            if frame is not None:
                items = results.rows(table)
                protocols = [visible(p) for p in distinct(items, "protocol") if p is not None]
                n = sizes(results.rows("probe_layers"), "n")
                size = [f"n = {n} statements"] if n and table != "probe_transfer" else []
                said = [results.model, *protocols, *size]
                drawn = partial(function, frame, note=" · ".join(said))
                out.append(Plate(name, f"{caption} Model {', '.join(said)}.", caption, drawn))
        frame = results.frame("probes")
        if frame is not None:
            n = sizes(results.rows("probes"), "n_test")
            where = f"Model {results.model}, n = {n} test statements. Squares: the language model's own answers."
            draw = partial(figures.accuracy_dots, frame)
            out.append(Plate("probes-accuracy", f"{_ACCURACY} {where}", _ACCURACY, draw))
        curves = results.frame("probe_curves")
        if curves is not None:
            n = sizes(results.rows("probes"), "n_train")
            said = [results.model, *([f"n = {n} training statements"] if n else [])]
            drawn = partial(figures.training_curves, curves, note=" · ".join(said))
            out.append(Plate("probes-training", f"{_TRAINING} Model {', '.join(said)}.", _TRAINING, drawn))
        return out

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.probes.views`."""
        return run_views(results)

    def numbers(self, results: Results) -> list[Number]:
        """Accuracy and AUROC of each kind of probe, and of the original study's."""
        return probe_numbers(results)

    def curves(self, results: Results) -> list[Curve]:
        """Accuracy of each kind of probe by layer."""
        return probe_curves(results)


def _best_sheet(results: Results) -> Sheet:
    """Every probe at the layer that its training folds chose, beside what it has to beat."""
    body = [
        [
            row.get("kind"),
            row.get("role"),
            visible(row.get("layers")) or "–",
            *(cell(row, name) for name in list(_METRICS)[:2]),
            *(number_text(row.get(name)) for name in list(_METRICS)[2:]),
        ]
        for row in results.rows("probe_best")
    ]
    headers = ["kind", "role", "layers chosen, a fold each", *_METRICS.values()]
    return Sheet("Probes at the layer that their training folds chose, and what they must beat", headers, body,
                 "probe_best")  # fmt: skip


def _original_sheet(setting: object, items: Sequence[Row]) -> Sheet:
    body = [
        [
            method_name(row),
            *(number_text(row.get(name)) for name in ("train_loss", "train_accuracy", "test_loss")),
            cell(row, "test_accuracy"),
            number_text(row.get("auroc")),
            *(number_text(int(to_float(row[n])), 0) if is_number(row.get(n)) else "–" for n in ("n_train", "n_test")),
        ]
        for row in items
    ]
    headers = ["method", "train loss", "train accuracy", "test loss", "test accuracy", "AUROC", "n train", "n test"]
    return Sheet(f"Reproduction of the original study, setting {setting}. {WARNING}", headers, body, "probes")


def _original(setting: object, items: Sequence[Row]) -> str:
    """The best probe of one setting, beside chance and the model's own answer; empty where no probe was scored."""
    scored = [row for row in items if is_number(row.get("test_accuracy"))]
    own = [row for row in scored if str(row.get("method")).startswith("LM")]
    fitted = [row for row in scored if row not in own]
    if not fitted:
        return ""
    best = max(fitted, key=lambda row: to_float(row.get("test_accuracy")))
    text = f"Reproduction of the original study, {visible(setting)}: the highest test accuracy is "
    text += f"{shown(best, 'test_accuracy')} "
    text += f"({method_name(best)}, n = {count(best, 'n_test')})"
    above = excludes(best, "test_accuracy", 0.5)
    text += "." if above else "; its 95% CI covers 0.5: not significantly better than chance."
    if own:
        rival = max(own, key=lambda row: to_float(row.get("test_accuracy")))
        text += f"\nThe language model itself reaches {shown(rival, 'test_accuracy')} ({method_name(rival)}): "
        text += apart(best, rival, "test_accuracy", "the probe is better", "the probe is worse")
    trained = [to_float(row.get("train_accuracy")) for row in fitted if is_number(row.get("train_accuracy"))]
    if trained and max(trained) < _LEARNED:
        text += (
            f"\nNo network learned even its training statements (train accuracy at most {max(trained):.3f}): "
            "all raw states share a part far larger than their differences, and the original protocol leaves it in. "
            "The logistic probe takes it away by standardising."
        )
    return text


def _verdict(results: Results) -> list[str]:
    """What the study itself concluded."""
    return [visible(row["sentence"]) for row in results.rows("probe_verdict") if row.get("sentence")]


def _best_by_layer(results: Results) -> list[str]:
    """Without a verdict: the best kind and layer beside the floor and the model."""
    items = [row for row in results.rows("probe_layers") if is_number(row.get("accuracy"))]
    fitted = [row for row in items if row.get("role") == "probe"]
    if not fitted:
        return []
    best = max(fitted, key=lambda row: to_float(row.get("accuracy")))
    where = f", layer {int(to_float(best['layer']))}" if is_number(best.get("layer")) else ""
    text = f"The most accurate probe by layer is {visible(best.get('kind'))}{where}: {shown(best, 'accuracy')}; "
    out = [text + f"as the best of {len(fitted)} points it is chosen after looking, and so optimistic."]
    for role, name in (("floor", "the text-only floor"), ("lm", "the language model itself")):
        rivals = [row for row in items if row.get("role") == role]
        if rivals:
            rival = max(rivals, key=lambda row: to_float(row.get("accuracy")))
            verdict = apart(best, rival, "accuracy", "the probe beats it", "the probe falls short of it")
            out.append(f"Against {name} ({visible(rival.get('kind'))}, {shown(rival, 'accuracy')}): {verdict}")
    return out
