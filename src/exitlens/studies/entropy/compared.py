"""What the entropy study offers to be compared with other runs."""

from __future__ import annotations

from exitlens.report.comparable import Curve, Number, Unit, curve, interval, whole
from exitlens.report.frames import Results, Row, groups
from exitlens.report.text import is_number, to_float
from exitlens.studies.answers.chapter import question_texts, verdicts

__all__ = ["entropy_curves", "entropy_numbers"]


def entropy_numbers(results: Results) -> list[Number]:
    """Answers judged correct, entropy at the last layer, and how it differs between correct and incorrect answers."""
    out = verdicts(results)
    frame = results.frame("entropy_tokens")
    if frame is not None:
        last = frame[frame["layer"] == frame["layer"].max()]
        means = last.groupby("question_id", sort=False)["entropy"].mean()
        texts = question_texts(results)
        units = [Unit(str(key), texts.get(str(key), ""), to_float(value)) for key, value in means.items()]
        out.append(Number("mean entropy of an answer, last layer", unit="nats", units=units, main=True))
    for place, (judge, items) in enumerate(groups(_per_group(results), "judge").items()):
        row = max(items, key=lambda row: to_float(row["layer"]))
        n = whole(row, "n_correct") + whole(row, "n_incorrect")
        of, main = {"judge": str(judge)}, place == 0
        measured = (("difference", "entropy of incorrect − correct answers, last layer", "nats"),)
        for name, told, unit in (*measured, ("auroc", "AUROC of the last layer's entropy", "")):
            if is_number(row.get(name)):
                found = interval(row, name)
                out.append(Number(told, *found, n=n, counted="answers", of=of, unit=unit, main=main))
    return out


def entropy_curves(results: Results) -> list[Curve]:
    """Mean entropy of correct and of incorrect answers, and the AUROC, by layer, for each judge."""
    out: list[Curve] = []
    for place, (judge, items) in enumerate(groups(_per_group(results), "judge").items()):
        of, main = {"judge": str(judge)}, place == 0
        out += [
            curve(f"entropy of {group} answers", items, "layer", group, of=of, unit="nats", main=main)
            for group in ("correct", "incorrect")
        ]
        out.append(curve("AUROC of entropy", items, "layer", "auroc", of=of, unit="AUROC", main=main))
    return out


def _per_group(results: Results) -> list[Row]:
    """Rows by layer of the sound estimator; the artefact is not compared."""
    return [row for row in results.rows("entropy_layers", estimator="per-group") if is_number(row.get("layer"))]
