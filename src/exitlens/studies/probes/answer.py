"""The answer of the probe study in one sentence: from probes of every layer, else from the original's table."""

from __future__ import annotations

from collections.abc import Sequence

from exitlens.report.frames import Results, Row
from exitlens.report.text import is_number, to_float, visible
from exitlens.report.words import (
    LEVEL,
    count,
    counted,
    excludes,
    interval_reservation,
    join,
    layer_list,
    share_text,
)
from exitlens.studies.probes.figures import method_name

__all__ = ["WARNING", "original_answer", "probe_answer"]

WARNING = (
    "A warning: its networks read raw states, are tested on one topic only, and the best of them is chosen after "
    "looking; conclude from the standardised probe instead"
)


def probe_answer(results: Results) -> str:
    """Whether the best probe beats chance, the text-only floor and the model's own answer; empty without such probes.

    The layer was chosen inside the training folds, so the accuracy is not that of the best of many layers.
    """
    items = [row for row in results.rows("probe_best") if is_number(row.get("accuracy"))]
    fitted = [row for row in items if row.get("role") == "probe"]
    if not fitted:
        return ""
    best = max(fitted, key=lambda row: to_float(row.get("accuracy")))
    value = f"{_accuracy(best)} of {counted(count(best, 'n_test'), 'statement')}"
    value += interval_reservation(int(to_float(best.get("n_test")))) if is_number(best.get("n_test")) else ""
    kind = visible(best.get("kind"))
    layers = layer_list(best.get("layers"))
    probe = f"the {kind} probe at {layers}" if layers else f"the {kind} probe"
    unseen = " on unseen topics" if best.get("protocol") == "leave-one-topic-out" else ""
    if not to_float(best.get("accuracy_low")) > 0.5:
        return f"Not shown: {probe} is correct on {value}{unseen}, no more than chance (50%): do not use it."
    told = f"{probe} is correct on {value}{unseen}"
    rivals = {role: _rival(results, best, items, role) for role in ("floor", "lm")}
    floor, model = rivals["floor"], rivals["lm"]
    against = join([text for text, _ in rivals.values() if text])
    told += f", {against}" if against else ""
    if floor[0] and not floor[1] > 0:
        return f"Not shown: {told}: what it finds may be in the words alone, do not take it for knowledge of truth."
    if model[0] and model[1] < 0:
        return f"Yes, but {told}: ask the model instead of probing it."
    if model[0] and model[1] == 0:
        return f"Yes, but {told}: asking the model is as good."
    if not against:
        return f"Yes: {told}: compare it with the words alone and with the model's own answer before using it."
    return f"Yes: {told}: use the probe, on statements like these."


def original_answer(results: Results) -> str:
    """The same from the original's table alone; empty where it has no probe."""
    scored = [row for row in results.rows("probes") if is_number(row.get("test_accuracy"))]
    fitted = [row for row in scored if not str(row.get("method")).startswith("LM")]
    if not fitted:
        return ""
    best = max(fitted, key=lambda row: to_float(row.get("test_accuracy")))
    value = share_text(best.get("test_accuracy"), best.get("test_accuracy_low"), best.get("test_accuracy_high"))
    n = f"{counted(count(best, 'n_test'), 'statement')} of one held-out topic"
    told = f"{method_name(best)} ({visible(best.get('setting'))}) is correct on {value} of {n}"
    many = f"the best of {len(fitted)}, chosen after looking" if len(fitted) > 1 else "the one probe fitted"
    if not (excludes(best, "test_accuracy", 0.5) and to_float(best.get("test_accuracy")) > 0.5):
        return f"Not shown: {told} ({many}), no more than chance (50%): do not use it."
    left = str(results.manifest.get("probe_left_out") or "")
    why = f"\nThe standardised probe was left out: {visible(left)}." if left else ""
    return f"Perhaps: {told} ({many}): confirm it with --kinds logistic before using it.{why}"


def _accuracy(row: Row) -> str:
    return share_text(row.get("accuracy"), row.get("accuracy_low"), row.get("accuracy_high"))


def _rival(results: Results, best: Row, items: Sequence[Row], role: str) -> tuple[str, int]:
    """The strongest rival of a role in words, and whether the probe is significantly better (1), worse (-1) or neither.

    Tests are the table's own: paired by statement, corrected by Holm over all comparisons.
    """
    rivals = [row for row in items if row.get("role") == role]
    if not rivals:
        return "", 0
    rival = max(rivals, key=lambda row: to_float(row.get("accuracy")))
    name = "the text-only floor" if role == "floor" else f"the model's own answer ({visible(rival.get('kind'))})"
    head = f"{name} on {_accuracy(rival)}"
    pairs = {(row.get("a"), row.get("b")): row for row in results.rows("probe_comparisons")}
    sign, pair = 1, pairs.get((best.get("kind"), rival.get("kind")))
    if pair is None:
        sign, pair = -1, pairs.get((rival.get("kind"), best.get("kind")))
    if pair is None or not is_number(pair.get("difference")):
        return head, 0
    gap = sign * to_float(pair.get("difference"))
    low, high = sorted((sign * to_float(pair.get("low")), sign * to_float(pair.get("high"))))
    clear = to_float(pair.get("p_holm")) < LEVEL
    points = f"{100 * gap:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]".replace("-", "−")
    return f"{head} (difference {points}{'' if clear else ', not significant'})", (1 if gap > 0 else -1) if clear else 0
