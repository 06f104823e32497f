"""Tables of what the exits showed: policies × thresholds, exit layers, kinds of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from exitlens import stats
from exitlens.exits.policies import RULES, ExitPolicy
from exitlens.exits.replay_policies import (
    Cost,
    Outcome,
    Signals,
    apply_policy,
    block_widths,
    oracle,
    oracle_at,
)
from exitlens.exits.timing import TimeModel

__all__ = ["kinds_table", "layers_table", "policies_for", "policy_table"]

Array = np.ndarray[Any, np.dtype[Any]]
_LEVELS = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7)


def policies_for(signals: Signals) -> list[ExitPolicy]:
    """Every policy that these signals allow, at each of its thresholds; then each exit fixed, and never."""
    out = [
        ExitPolicy(kind, threshold, signals.layers)
        for kind, rule in RULES.items()
        if kind in signals.values
        for threshold in rule.grid
    ]
    out += [ExitPolicy("fixed", layers=(layer,)) for layer in reversed(signals.layers)]
    return [*out, ExitPolicy("never")]


def policy_table(
    signals: Signals,
    cost: Cost,
    times: TimeModel | None = None,
    policies: Sequence[ExitPolicy] | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Table ``exits``: a row a policy and threshold, the oracle (at several agreements) last.

    ``flops_saved`` counts exit checks and what a deferred cache catches up with; ``flops_saved_propagate`` leaves the
    catching up out (cache ``propagate``: cheaper, not exact). ``predicted_time``: of the full model's at batch 1.
    """
    chosen = policies_for(signals) if policies is None else list(policies)
    done: list[tuple[str, float, Outcome]] = [
        (p.kind, _threshold(p, signals.n_layers), apply_policy(signals, p, cost)) for p in chosen
    ]
    done += [("oracle", level, oracle_at(signals, cost, level)) for level in _LEVELS]
    agrees = np.stack([outcome.agrees for _, _, outcome in done], axis=1).astype(np.float64)
    spans = stats.mean_intervals(agrees, signals.question, seed=seed)
    rows = []
    for i, (kind, threshold, outcome) in enumerate(done):
        widths = block_widths(outcome.exit, signals.question, signals.step)
        if kind == "oracle":  # the bound pays for nothing but the blocks up to its exits
            widths = np.c_[np.zeros_like(outcome.exit), outcome.exit]
        extra = widths @ np.maximum(np.arange(widths.shape[1]) - 1, 0)
        later = extra.mean() * cost.block / outcome.full
        seconds = None if times is None else times.seconds(outcome, kind, widths)
        rows.append(
            {
                "policy": kind,
                "threshold": threshold,
                "exits": f"{signals.layers[0]}-{signals.layers[-1]}" if kind != "never" else "",
                "n": signals.tokens,
                "n_answers": len(np.unique(signals.question)),
                "agreement": float(spans.value[i]),
                "agreement_low": float(spans.low[i]),
                "agreement_high": float(spans.high[i]),
                "mean_exit": float(outcome.exit.mean()),
                "layers_saved": outcome.layers_saved(signals.n_layers),
                "exit_checks": float(outcome.checks.mean()),
                "flops_saved": outcome.flops_saved - later,
                "flops_saved_propagate": outcome.flops_saved,
                "predicted_time": np.nan if times is None else (seconds or 0.0) / times.full(signals.n_layers),
            }
        )
    return pd.DataFrame(rows)


def layers_table(signals: Signals, cost: Cost, policies: Sequence[ExitPolicy]) -> pd.DataFrame:
    """Table ``exits_layers``: share of tokens that exit at each layer, the oracle first."""
    done = [("oracle", 1.0, oracle(signals, cost))]
    done += [(p.kind, _threshold(p, signals.n_layers), apply_policy(signals, p, cost)) for p in policies]
    parts = []
    for kind, threshold, outcome in done:
        layers = list(dict.fromkeys((*signals.layers, signals.n_layers)))
        counts = np.array([(outcome.exit == layer).sum() for layer in layers])
        parts.append(
            pd.DataFrame(
                {
                    "policy": kind,
                    "threshold": threshold,
                    "layer": layers,
                    "count": counts,
                    "share": counts / max(1, signals.tokens),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def kinds_table(
    signals: Signals,
    cost: Cost,
    policies: Sequence[ExitPolicy],
    *,
    final_probability: Array,
    correct: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Table ``exits_kinds``: agreement and mean exit by kind of token.

    ``position`` in the answer; ``confidence``: the full model's probability of its own token; ``verdict:JUDGE``: of the
    whole answer (``correct[judge] [T]``: 1, 0 or NaN).
    """
    groups: list[tuple[str, str, Array]] = [
        ("position", "1-4", signals.step < 5),
        ("position", "5-9", (signals.step >= 5) & (signals.step < 10)),
        ("position", "10-19", (signals.step >= 10) & (signals.step < 20)),
        ("position", "20+", signals.step >= 20),
        ("confidence", "easy (0.9 and more)", final_probability >= 0.9),
        ("confidence", "between", (final_probability < 0.9) & (final_probability >= 0.5)),
        ("confidence", "hard (below 0.5)", final_probability < 0.5),
    ]
    for judge, verdict in (correct or {}).items():
        groups += [(f"verdict:{judge}", "correct", verdict == 1), (f"verdict:{judge}", "incorrect", verdict == 0)]
    done = [("oracle", 1.0, oracle(signals, cost))]
    done += [(p.kind, _threshold(p, signals.n_layers), apply_policy(signals, p, cost)) for p in policies]
    rows = []
    for kind, name, mask in groups:
        if not mask.any():
            continue
        for policy, threshold, outcome in done:
            found = stats.mean_interval(
                outcome.agrees[mask].astype(np.float64), groups=signals.question[mask], seed=seed
            )
            rows.append(
                {
                    "policy": policy,
                    "threshold": threshold,
                    "kind": kind,
                    "group": name,
                    "n": int(mask.sum()),
                    "n_answers": found.n,
                    "agreement": found.value,
                    "agreement_low": found.low,
                    "agreement_high": found.high,
                    "mean_exit": float(outcome.exit[mask].mean()),
                }
            )
    return pd.DataFrame(rows)


def _threshold(policy: ExitPolicy, n_layers: int) -> float:
    if policy.kind == "fixed":
        return float(policy.exits(n_layers, last=True)[0])
    return float("nan") if policy.kind == "never" else policy.threshold
