"""What the decoding study offers to be compared with other runs."""

from __future__ import annotations

from exitlens.report.comparable import Number, Unit, labels, whole
from exitlens.report.frames import Results, distinct, groups
from exitlens.report.text import is_number, to_float
from exitlens.studies.answers.chapter import question_texts, verdicts
from exitlens.studies.decoding.figures import metric_name

__all__ = ["decoding_numbers"]


def decoding_numbers(results: Results) -> list[Number]:
    """Mean score of every decoder by metric, and the share of its answers that each judge finds correct."""
    texts = question_texts(results)
    scores = {key: groups(mine, "decoder") for key, mine in groups(results.rows("scores"), "metric").items()}
    items = results.rows("decoding")
    first = distinct(items, "decoder")[:1]
    out: list[Number] = []
    for row in items:
        metric, decoder = row.get("metric"), row.get("decoder")
        if str(metric).endswith("_diff") or not is_number(row.get("mean")):
            continue
        units = [
            Unit(str(score["question_id"]), texts.get(str(score["question_id"]), ""), to_float(score.get("value")))
            for score in scores.get(metric, {}).get(decoder, [])
            if is_number(score.get("value"))
        ]
        out.append(
            Number(
                metric_name(str(metric)),
                to_float(row["mean"]),
                to_float(row.get("low")),
                to_float(row.get("high")),
                n=whole(row, "n"),
                # The published protocol is the usual one; another is no number to compare with it.
                of=labels(row, ("decoder",) if row.get("protocol") == "truthfulqa" else ("decoder", "protocol")),
                units=units,
                main=decoder in first,
            )
        )
    return out + verdicts(results)
