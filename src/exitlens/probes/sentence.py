"""What a probe study found, in words."""

from __future__ import annotations

from exitlens.probes.results import Comparison, ProbeStudy

__all__ = ["verdict"]

LEVEL = 0.05


def _percent(x: float) -> str:
    return f"{100 * x:.1f}%"


def _points(x: float) -> str:
    """Percentage points with their sign, a minus being a minus."""
    return f"{100 * x:+.1f}".replace("-", "−")


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _against(c: Comparison, best: str, rival: str) -> str:
    sign = 1 if c.a == best else -1
    low, high = sorted((sign * c.low, sign * c.high))
    points = sign * c.difference
    told = f"{_points(points)} points [{_points(low)}, {_points(high)}], {_p(c.p_holm)} (Holm)"
    if c.p_holm < LEVEL and points > 0:
        return f"It beats {rival}: {told}."
    if c.p_holm < LEVEL:
        return f"It is worse than {rival}: {told}."
    return f"It does not demonstrably beat {rival}: {told}."


def verdict(study: ProbeStudy) -> str:
    """Whether the best probe beats the text-only floor and the model's own answer, by how much, how certainly.

    The best probe is the one of highest accuracy outside its training folds; naming it the best of several makes its
    own number a little optimistic, which the Holm correction over all comparisons answers for the claims.
    """
    top = study.top
    accuracy = top.values["accuracy"]
    layers = sorted(set(study.run_of(top.name).chosen_layers))
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))} (chosen fold by fold)"
    words = [
        (
            f"Under {study.protocol}, the best probe is {top.name} at {where}: accuracy {_percent(accuracy.value)} "
            f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}], AUROC {top.values['auroc'].value:.3f}, "
            f"on {len(study.labels)} statements in {study.n_groups} groups, "
            f"{top.n_seeds} seed{'s' * (top.n_seeds != 1)}."
        )
    ]
    rivals = sorted((m for m in study.best if m.role in ("floor", "model")), key=lambda m: m.role)
    for rival in rivals:
        c = next((c for c in study.comparisons if {c.a, c.b} == {top.name, rival.name}), None)
        if c is not None:
            kind = "the text-only floor" if rival.role == "floor" else f"the model's own answer, {rival.name},"
            words.append(_against(c, top.name, f"{kind} ({_percent(rival.values['accuracy'].value)})"))
    if not rivals:
        words.append("No floor and no answer of the model itself was given to compare it with.")
    for kind, gap in study.selectivity.items():
        words.append(f"Its lead over the same probe on random labels (selectivity of {kind}): {_points(gap)} points.")
    if accuracy.low <= 0.5:
        words.append("Its interval reaches chance: these states do not show that the model knows.")
    words += [f"Note: {note}." for note in study.notes]
    return " ".join(words)
