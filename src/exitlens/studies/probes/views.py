"""The interactive view of the probe study: probes by layer, calibration, transfer from topic to topic."""

from __future__ import annotations

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view

__all__ = ["run_views"]

_MEASURES = (("accuracy", "Accuracy"), ("auroc", "AUROC"), ("brier", "Brier score"), ("ece", "Calibration error"))


def run_views(results: Results) -> list[View]:
    """Whatever the run has of probes by layer, the original's probes, calibration and transfer."""
    tables = {
        "layers": results.frame("probe_layers"),
        "original": results.frame("probes"),
        "calibration": results.frame("probe_calibration"),
        "transfer": results.frame("probe_transfer"),
    }
    if all(frame is None for frame in tables.values()):
        return []
    switches = [Switch("kind", "Transfer of", "transfer")]
    if tables["layers"] is not None:
        switches = [
            Switch("measure", "Measure", options=_MEASURES),
            Switch("protocol", "Protocol", "layers"),
            *switches,
        ]
    transfer = tables["transfer"]
    measure = "auroc" if transfer is None or "auroc" in transfer.columns else "accuracy"
    figures = [
        Figure(
            "line", "probes", "{$measure} by layer", "layers", "layer", "$measure", by="kind", where=("protocol",),
            height=300, flat=True, refs=((0.5, "chance", ("accuracy", "auroc")),),
            note="n = {n} held-out statements; lines across: floor and model; bands: 95% intervals.",
        ),
        Figure(
            "line", "original", "The original study: accuracy on the held-out topic", "original", "layer",
            "test_accuracy", by="setting", only={"method": "MLP"}, height=300, yLabel="accuracy", range=(0, 1),
            refs=((0.5, "chance"),), note="MLP probe, n = {n_test} statements; bands: 95% intervals.",
        ),
        Figure(
            "line", "calibration", "Calibration", "calibration", "confidence", "observed", by="kind", height=300,
            xLabel="P(true)", range=(0, 1), domain=(0, 1), diagonal="perfect",
            note="Share of true statements among those told the same P(true); bands: 95% intervals.",
        ),
        Figure(
            "matrix", "transfer", "Transfer of {kind}: trained on the row, tested on the column", "transfer",
            "train_topic", measure, by="test_topic", where=("kind",), range=(0.4, 1),
            note=f"{dict(_MEASURES)[measure]}; 0.5 is chance.",
        ),
    ]  # fmt: skip
    return [
        tables_view(
            "probes",
            tables,
            figures,
            title="Probes by layer, calibration and transfer",
            caption=results.model,
            model=results.model,
            switches=switches,
        )
    ]
