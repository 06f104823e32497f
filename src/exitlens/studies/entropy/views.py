"""The interactive view of the entropy study: entropy by layer, and the answers behind a point."""

from __future__ import annotations

from typing import Any

import numpy as np

from exitlens.report.frames import Results
from exitlens.report.view_data import View
from exitlens.report.view_figures import Figure, Switch, tables_view
from exitlens.studies.answers.judge_names import short_judges
from exitlens.studies.answers.views import answers_and_verdicts

__all__ = ["run_views"]

_BY = ("judge", "estimator")


def run_views(results: Results) -> list[View]:
    """Means, difference and AUROC by layer; mean entropy of each answer at each layer, as far as it was recorded."""
    frame = results.frame("entropy_layers")
    if frame is None:
        return []
    named = tuple((str(name), short) for name, short in short_judges(frame["judge"].unique()).items())
    switches = [Switch("judge", "Judge", options=named), Switch("estimator", "Estimator", "layers")]
    note = "n = {n_correct} correct, {n_incorrect} incorrect; bands: 95% intervals."
    groups = (("correct", "correct"), ("incorrect", "incorrect"))
    figures = [
        Figure(
            "line", "entropy", "Mean entropy by layer", "layers", "layer", "correct", where=_BY, lines=groups,
            yLabel="nats", note=note, pick="layer",
        ),
        Figure(
            "line", "difference", "Incorrect minus correct", "layers", "layer", "difference", where=_BY,
            lines=(("difference", "difference"),), yLabel="nats", note="Band: 95% interval.",
            refs=((0, "no difference"),), pick="layer",
        ),
        Figure(
            "line", "auroc", "AUROC by layer", "layers", "layer", "auroc", where=_BY, lines=(("auroc", "AUROC"),),
            yLabel="AUROC", note="Probability that an incorrect answer has the higher entropy; band: 95% interval.",
            refs=((0.5, "chance"),), pick="layer",
        ),
    ]  # fmt: skip
    more, arrays = _answers(results)
    return [
        tables_view(
            "entropy",
            {"layers": frame},
            figures,
            title="Entropy by layer, and the answers behind it",
            caption=f"{results.model} · mean over the tokens of an answer",
            model=results.model,
            switches=switches,
            arrays=arrays,
            **more,
        )
    ]


def _answers(results: Results) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean entropy of each answer at each layer, a row for both, with question, answer and verdicts."""
    tokens = results.frame("entropy_tokens")
    found = answers_and_verdicts(results)
    if tokens is None or found is None:
        return {}, {}
    table = tokens.pivot_table(index="question_id", columns="layer", values="entropy", aggfunc="mean", sort=True)
    # Entropies are of the answers of greedy decoding, the first decoder.
    entropy = table.reindex(found.ids).to_numpy(dtype=np.float32)
    arrays = {
        "answers.id": found.column(found.ids),
        "answers.question": found.column(found.questions),
        "answers.answer": found.texts[:, 0],
        "entropies.question_id": found.column([key for key in found.ids for _ in table.columns]),
        "entropies.layer": np.tile(table.columns.to_numpy(), len(found.ids)),
        "entropies.entropy": entropy.reshape(-1),
        "layer": table.columns.to_numpy(),
    }
    if found.judges:
        arrays |= {"judges": found.column(found.judges), **found.verdict_rows(found.decoders[:1])}
    listed = {
        "table": "answers", "values": "entropies.entropy", "axis": "layer", "key": "layer", "unit": "entropy (nats)",
        "flags": "verdicts.correct", "flagAxis": "judges", "flagKey": "judge", "columns": ["question", "answer"],
        "from": "layers", "where": list(_BY), "hint": "Press a point to list its answers.",
        "title": "Layer {layer}: AUROC {auroc}, difference {difference} nats, p (Holm) {p_holm}. Its answers, highest "
        "entropy first:",
    }  # fmt: skip
    return {"list": listed}, arrays
