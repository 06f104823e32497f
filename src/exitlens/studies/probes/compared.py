"""What the probe study offers to be compared with other runs."""

from __future__ import annotations

from collections.abc import Mapping

from exitlens.report.comparable import Curve, Number, curve, interval, labels, whole
from exitlens.report.frames import Results, Row, groups
from exitlens.report.text import is_number, to_float

__all__ = ["probe_curves", "probe_numbers"]


def probe_numbers(results: Results) -> list[Number]:
    """Accuracy and AUROC of each kind at the layer chosen in training, on statements and on answers of the model's own,
    and the original study's test accuracies.
    """
    out: list[Number] = []
    for place, row in enumerate(results.rows("probe_best")):
        of, n = labels(row, ("kind", "role", "protocol")), whole(row, "n_test")
        for name, told in (("accuracy", "probe accuracy"), ("auroc", "probe AUROC")):
            if is_number(row.get(name)):
                out.append(Number(told, *interval(row, name), n=n, counted="statements", of=of, main=place == 0))
    for place, row in enumerate(results.rows("probes")):
        if is_number(row.get("test_accuracy")):
            of = {**labels(row, ("setting", "method")), **_depth(results, row)}
            found, n = interval(row, "test_accuracy"), whole(row, "n_test")
            told = "original study: test accuracy"
            out.append(Number(told, *found, n=n, counted="statements", of=of, main=place == 0))
    for place, row in enumerate(results.rows("answer_probe_best")):
        if is_number(row.get("auroc")):
            of = labels(row, ("kind", "role", "judge", "position"))
            n = whole(row, "n_test")
            told = "AUROC of correct answers"
            out.append(Number(told, *interval(row, "auroc"), n=n, counted="rows", of=of, main=place == 0))
    return out


def probe_curves(results: Results) -> list[Curve]:
    """Accuracy of every kind of probe by layer, AUROC on the model's own answers, the original study's probes."""
    fitted = groups([row for row in results.rows("probe_layers") if is_number(row.get("layer"))], "kind")
    out = [
        curve("probe accuracy", items, "layer", "accuracy", of={"kind": str(kind)}, unit="accuracy", main=place == 0)
        for place, (kind, items) in enumerate(fitted.items())
    ]
    answers = [{**row, "_of": (row.get("judge"), row.get("kind"))} for row in results.rows("answer_probe_layers")]
    judged = groups([row for row in answers if is_number(row.get("layer"))], "_of")
    out += [
        curve(
            "AUROC of correct answers",
            items,
            "layer",
            "auroc",
            of={"judge": str(judge), "kind": str(kind)},
            unit="AUROC",
            main=place == 0,
        )
        for place, ((judge, kind), items) in enumerate(judged.items())
    ]
    own = groups([row for row in results.rows("probes") if is_number(row.get("layer"))], "setting")
    return out + [
        curve(
            "original study's probes",
            items,
            "layer",
            "test_accuracy",
            of={"setting": str(setting)},
            unit="accuracy",
            main=place == 0,
        )
        for place, (setting, items) in enumerate(own.items())
    ]


def _depth(results: Results, row: Row) -> dict[str, str]:
    """The layer as a share of the depth, by which probes of models of other depths answer to each other."""
    model = results.manifest.get("model")
    depth = to_float(model.get("n_layers")) if isinstance(model, Mapping) else 0.0
    if not is_number(row.get("layer")):
        return {}
    layer = to_float(row["layer"])
    return {"layer": f"at {layer / depth:.0%} of the depth"} if depth > 0 else {"layer": f"{layer:.0f}"}
