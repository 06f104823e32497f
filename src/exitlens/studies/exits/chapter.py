"""What the exit study tells: compute saved against agreement, thresholds with a guarantee, kinds of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from exitlens.report.chapter import Chapter, Part, Plate, Sheet, plain_rows
from exitlens.report.comparable import Curve, Number
from exitlens.report.frames import Results, Row, rows
from exitlens.report.text import Column, is_number, number_text, to_float, visible
from exitlens.report.view_data import View
from exitlens.report.words import cell, counted, excludes, join, set_text, share_text, shown, sizes, units
from exitlens.studies.exits import figures as draw
from exitlens.studies.exits.compared import among, best_saving, exit_curves, exit_numbers, is_oracle
from exitlens.studies.exits.views import run_views

__all__ = ["ExitsChapter"]

_AGREEMENTS = (0.98, 0.95, 0.90)
_WORTH = 0.05  # share of the FLOPs below which a saving is not worth a decoder that may write other tokens
_PARETO = (
    "Agreement with the full model against the compute saved, the exit checks included: one curve a policy, through "
    "the thresholds that none of the same policy beats in both; the oracle is the upper bound."
)
_LAYERS = "Share of tokens that exit at each layer."


class ExitsChapter(Chapter):
    """Tables, sentences and figures of the exit study."""

    title = "Early exit"
    question = "How much compute would be saved by exiting at an inner layer, and how often would the token differ?"
    how = (
        "From one full pass: for each policy and threshold the layer at which a token would exit, and whether "
        "its token is the full model's. FLOPs saved count the exit checks (an unembedding at every layer "
        "checked) and the blocks that later tokens run for the ones that had exited (cache: defer). The first token of "
        "an answer comes from the prompt's own pass and is not counted. The oracle exits at the saturation layer, the "
        "first layer from which the top-1 token no longer changes; exit checks and catching up cost it nothing. "
        "Guarantee: with probability 1 - epsilon over calibration answers, the share of tokens that differ is at most "
        "the risk asked for: by one look at half of the answers (ltt, Learn then Test), or whenever one stops "
        "(anytime, a test by betting). A row a kind is for a kind chosen beforehand; where the "
        "best of K kinds is named, each was tested at epsilon / K (Bonferroni), "
        "and its saving and risk are those of the other half of the answers."
    )
    own = ("exits", "exits_layers", "exits_kinds", "exits_calibration")

    def answer(self, results: Results) -> str:
        """Whether an early exit pays, at 98% agreement or more."""
        items, oracle = _measured(results)
        tried = [row for row in items if row not in oracle]
        left = [row for row in tried if to_float(row.get("agreement")) < 1.0]  # a policy that never exits tells nothing
        least = f"{_AGREEMENTS[0]:.0%} agreement with the full model"
        best = best_saving(tried, _AGREEMENTS[0])
        if best is None and not left:
            return ""
        if best is None:
            able = [row for row in left if to_float(row.get("agreement")) >= _AGREEMENTS[0]]
            key = "flops_saved" if able else "agreement"
            nearest = max(able or left, key=lambda row: to_float(row.get(key)))
            return (
                f"Early exit does not pay on this model: no policy saves FLOPs at {least} or more ({_named(nearest)}: "
                f"{_agreement(nearest)} agreement, {_flops(nearest)}): run every layer."
            )
        size = f", {counted(int(to_float(best['n'])), 'token')}" if is_number(best.get("n")) else ""
        value = f"{to_float(best['flops_saved']):.1%} of the FLOPs"
        pays = to_float(best.get("flops_saved")) >= _WORTH
        told = "Early exit pays on this model" if pays else "Early exit does not pay on this model"
        advice = f"try {_named(best)}, and check its answers" if pays else "run every layer"
        most = "" if pays else "no more than "
        facts = f"{_named(best)}; agreement {_agreement(best)}{size}"
        return f"{told}: at {least} or more, the best policy saves {most}{value} ({facts}): {advice}."

    def headline(self, results: Results) -> list[str]:
        """What no policy can pass; then, for three levels of agreement, the policy that saves most."""
        items, oracle = _measured(results)
        whole = [to_float(row.get("flops_saved")) for row in oracle if to_float(row.get("agreement")) == 1.0]
        out: list[str] = []
        if whole:
            out.append(
                "The bound: an oracle that exits each token at the first layer from which its top-1 token no longer "
                f"changes, without exit checks, saves {max(whole):.1%} of the FLOPs."
            )
        found: list[tuple[Row | None, list[float]]] = []  # the same policy is often the best at several levels
        for level in _AGREEMENTS if items else ():
            best = best_saving(items, level)
            if found and found[-1][0] is best:
                found[-1][1].append(level)
            else:
                found.append((best, [level]))
        return out + [_saving(row, levels) for row, levels in found] + _guaranteed(results)

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """Agreement and savings by policy: the common ones, the best ones and the bound; whole: every policy.

        Whole also has the thresholds with a guarantee.
        """
        frame = results.frame("exits")
        if frame is None:
            return []
        frame = frame.assign(predicted_time=_times(results, frame))
        kept = frame["policy"].isin(["probability", "classifier", "oracle"])
        items = results.rows("exits")
        best = [best_saving(items, level) for level in _AGREEMENTS]  # what the findings name is in the table
        kept |= np.array([any(row is each for each in best) for row in items], dtype=bool)
        if whole:  # where there are many, the exits at one fixed layer are left to the table
            kept = frame["policy"] != "fixed" if len(frame) > 40 else kept | True
        names = ["policy", "threshold", "agreement", "agreement_low", "agreement_high", "layers_saved", "flops_saved"]
        names += ["predicted_time"] if whole else []
        columns = [Column(_head(name), ".6g" if name == "threshold" else ".3f") for name in names]
        title = counted(int(frame["n"].iloc[0]), "token") if "n" in frame else ""
        n = [units(row) for row in rows(frame[kept])]
        parts = [Part(title, columns, plain_rows(frame[kept][names]), n=n)]
        chosen = results.frame("exits_calibration")
        if whole and chosen is not None:
            names = ["policy", "delta", "outcome", "threshold", "calibration_risk", "test_risk", "flops_saved"]
            epsilon = f"{chosen['epsilon'].iloc[0]:g}"
            kinds = int(chosen["chosen_among"].max())
            title = f"thresholds that keep the share of differing tokens within delta (epsilon {epsilon} for each kind"
            title += f"; {epsilon}/{kinds} for the best of these {kinds})" if kinds > 1 else ")"
            chosen = chosen.assign(policy=[among(row) for row in results.rows("exits_calibration")])
            columns = [Column(_head(name), ".3g") for name in names]
            parts.append(Part(title, columns, plain_rows(chosen[names])))
        return parts

    def tables(self, results: Results) -> list[Sheet]:
        """Every policy and threshold, thresholds with a guarantee, and kinds of tokens."""
        return [_policies(results), _guarantees(results), _kinds(results)]

    def figures(self, results: Results) -> list[Plate]:
        """Agreement against savings, and where tokens exit."""
        out = []
        drawings = (("pareto", "exits", draw.pareto, _PARETO), ("layers", "exits_layers", draw.exit_layers, _LAYERS))
        for name, table, function, caption in drawings:
            frame = results.frame(table)
            if frame is not None:
                n = sizes(results.rows("exits"), "n")
                size = [f"n = {counted(n, 'token')}"] if n else []
                said = [results.model, *size, "cache: defer"]
                drawn = partial(function, frame, note=" · ".join(said))
                read = "Layers are read by the model's own unembedding (logit lens), or by exit heads where given; "
                where = f"Model {', '.join(said)}. {read}no judge: agreement is with the full model's tokens."
                out.append(Plate(f"exits-{name}", f"{caption} {where}", caption, drawn))
        return out

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.exits.views`."""
        return run_views(results)

    def numbers(self, results: Results) -> list[Number]:
        """What is saved at each agreement, and the risk where it is guaranteed."""
        return exit_numbers(results, _AGREEMENTS)

    def curves(self, results: Results) -> list[Curve]:
        """Agreement against what is saved."""
        return exit_curves(results)


def _measured(results: Results) -> tuple[list[Row], list[Row]]:
    """The policies and thresholds with agreement and savings, and those of them that are the oracle's."""
    items = [row for row in results.rows("exits") if is_number(row.get("agreement"))]
    items = [row for row in items if is_number(row.get("flops_saved"))]
    return items, [row for row in items if is_oracle(row)]


def _named(row: Row) -> str:
    at = f" at {set_text(row.get('threshold'))}" if is_number(row.get("threshold")) else ""
    return f"{visible(row.get('policy'))}{at}"


def _agreement(row: Row) -> str:
    return share_text(row.get("agreement"), row.get("agreement_low"), row.get("agreement_high"), 1)


def _flops(row: Row) -> str:
    saved = to_float(row.get("flops_saved"))
    return f"{abs(saved):.1%} {'more' if saved <= 0 else 'fewer'} FLOPs"


def _saving(row: Row | None, levels: list[float]) -> str:
    asked = f"At {join([f'{level:.0%}' for level in levels])} agreement"
    if row is None:
        return f"{asked} with the full model or more, no policy measured saves compute."
    strictest = max(levels)
    bound = "" if excludes(row, "agreement", strictest) else f" (its 95% CI reaches below {strictest:.0%})"
    policy = _named(row)
    saved = f"{to_float(row['flops_saved']):.1%} of the FLOPs"
    return f"{asked} or more, {policy} saves most: {saved}, agreement {shown(row, 'agreement')}{bound}."


def _guaranteed(results: Results) -> list[str]:
    """The best of all kinds at the smallest risk for which a threshold has a guarantee, where it saves anything."""
    able = [row for row in results.rows("exits_calibration") if to_float(row.get("chosen_among")) > 1]
    able = [row for row in able if to_float(row.get("flops_saved")) > 0]
    if not able:
        return []
    row = min(able, key=lambda row: to_float(row.get("delta")))
    when = "whenever one stops" if row.get("control") == "anytime" else "at one look"
    said = (
        f"With a guarantee of at most {set_text(row.get('delta'))} differing tokens (epsilon "
        f"{set_text(row.get('epsilon'))}, {when}), {visible(row.get('policy'))} at "
        f"{number_text(row.get('threshold'), 4)} saves most of {int(to_float(row['chosen_among']))} kinds, each tested "
        f"at {set_text(row.get('level'))}: {to_float(row['flops_saved']):.1%} of the FLOPs on the other half of the "
        f"answers, risk {shown(row, 'test_risk')}."
    )
    return [said]


def _times(results: Results, frame: pd.DataFrame) -> list[Any]:
    """Predicted time of each row (1: the full model), which the manifest holds by policy and threshold."""
    kept = results.manifest.get("exit_times")
    times = {
        (row.get("policy"), _key(row.get("threshold"))): row.get("predicted_time")
        for row in (kept if isinstance(kept, list) else [])
        if isinstance(row, Mapping)
    }
    return [times.get(key) for key in zip(frame["policy"], map(_key, frame["threshold"]), strict=True)]


def _key(threshold: Any) -> float | None:
    """Missing is None however it was stored; equal numbers are equal after their way through JSON."""
    return None if threshold is None or pd.isna(threshold) else float(threshold)


def _policies(results: Results) -> Sheet:
    frame = results.frame("exits")
    times = [] if frame is None else _times(results, frame)
    body = [
        [
            row.get("policy"),
            set_text(row.get("threshold")),
            cell(row, "agreement"),
            *(number_text(row.get(name)) for name in ("flops_saved", "layers_saved")),
            number_text(time),
        ]
        for row, time in zip(results.rows("exits"), times, strict=True)
    ]
    headers = ["policy", "threshold", "agreement", "FLOPs saved", "layers saved", "predicted time"]
    return Sheet("Policies and thresholds", headers, body, "exits", len(body) > 12)


def _guarantees(results: Results) -> Sheet:
    body = [
        [
            among(row),
            set_text(row.get("delta")),
            row.get("outcome") if not is_number(row.get("threshold")) else number_text(row.get("threshold"), 4),
            number_text(row.get("calibration_risk")),
            cell(row, "test_risk"),
            number_text(row.get("flops_saved")),
        ]
        for row in results.rows("exits_calibration")
    ]
    headers = ["policy", "risk asked for", "threshold", "risk, calibration half", "risk, other half", "FLOPs saved"]
    return Sheet("Thresholds with a guarantee", headers, body, "exits_calibration", len(body) > 12)


def _kinds(results: Results) -> Sheet:
    body = [
        [
            row.get("kind"),
            row.get("group"),
            row.get("policy"),
            set_text(row.get("threshold")),
            cell(row, "agreement"),
            number_text(row.get("mean_exit"), 1),
            number_text(row.get("n"), 0),
        ]
        for row in results.rows("exits_kinds")
    ]
    headers = ["kind", "tokens", "policy", "threshold", "agreement", "mean exit", "n"]
    return Sheet("By kind of token", headers, body, "exits_kinds", True)


def _head(name: str) -> str:
    """A column's heading in the terminal."""
    return name.replace("flops", "FLOPs").replace("_", " ")
