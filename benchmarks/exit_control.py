"""Is the guarantee kept whenever one stops, and what does that cost beside one look? By simulation, no model needed.

    python benchmarks/exit_control.py                 # 1,000 resplits a population, 2 minutes
    python benchmarks/exit_control.py --resplits 100
    python benchmarks/exit_control.py --run DIR       # also resplits the answers of `exitlens exits --out DIR`
    python benchmarks/exit_control.py --json out.json

A population has a loss for each answer and threshold; its means are the true risks. A resplit draws calibration answers
from it (with replacement, so that the true risks are known exactly), and controls name thresholds:
  anytime   betting, asked after every answer: a failure is a threshold above the risk allowed named at any time
  ltt       Learn then Test (Hoeffding-Bentkus), asked once, after all answers
  peeking   Learn then Test asked after every answer from the 20th on: what the guarantee of one look does not cover
"failures": share of resplits, with a 95% interval (Jeffreys); at most epsilon is promised. "named": share of resplits
that end with a threshold. "risk used": mean true risk of the threshold named at the end (0 where none is), the more the
better up to the risk allowed. "answers": median number after which the first threshold had passed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import rel_entr
from scipy.stats import binom

from exitlens import stats
from exitlens.exits.risk_control import AnytimeControl

RISKS = np.array([0.0, 0.01, 0.02, 0.035, 0.05, 0.07, 0.09, 0.101, 0.12, 0.2])  # at delta 0.1 the eighth is too much


def populations(seed: int) -> dict[str, np.ndarray]:
    """Losses ``[thresholds, answers]`` by name."""
    rng, size = np.random.default_rng(seed), 20_000
    out = {}
    whole = rng.random(size)
    out["whole answers fail"] = (whole[None] < RISKS[:, None]).astype(float)
    hard = rng.beta(2, 2, size=size) * 2
    out["shares of 12 tokens"] = rng.binomial(12, np.minimum(RISKS[:, None] * hard[None], 1)) / 12
    rare = rng.beta(0.15, 1.35, size=size) * 10  # most answers are without a fault, a few are full of them
    out["few hard answers"] = rng.binomial(12, np.minimum(RISKS[:, None] * rare[None], 1)) / 12
    return {name: losses[np.argsort(losses.mean(1), kind="stable")] for name, losses in out.items()}


def measured(folder: Path) -> dict[str, np.ndarray]:
    """The same of the answers of an exit study, a population a kind of policy."""
    import pandas as pd

    from exitlens.exits.replay_policies import Cost
    from exitlens.studies.exits.calibration import candidates
    from exitlens.studies.exits.stage import signals_from

    parts = sorted((folder / "work" / "exits").glob("*.exit_signals.parquet"))
    table = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    signals, _, _ = signals_from(table, int(table["layer"].max()))
    return {f"measured: {c.kind}": c.losses for c in candidates(signals, Cost(1.0, 1.0))}


def p_values(means: np.ndarray, delta: float) -> np.ndarray:
    """:func:`p_value` (Hoeffding-Bentkus) of means ``[thresholds, n]`` after 1..n answers."""
    n = np.arange(1, means.shape[1] + 1)
    kl = rel_entr(means, delta) + rel_entr(1 - means, 1 - delta)
    bentkus = np.e * binom.cdf(np.ceil(n * means - 1e-9), n, delta)
    return np.where(means >= delta, 1.0, np.minimum(1.0, np.minimum(np.exp(-n * kl), bentkus)))


def resplit(losses: np.ndarray, delta: float, epsilon: float, n: int, resplits: int, seed: int) -> list[dict[str, Any]]:
    """A row a control."""
    rng = np.random.default_rng(seed)
    risks = losses.mean(axis=1)
    passed: dict[str, list[int]] = {"anytime": [], "ltt": [], "peeking": []}  # thresholds passed, from the first on
    first: list[int] = []
    for _ in range(resplits):
        mine = losses[:, rng.integers(0, losses.shape[1], n)]
        control = AnytimeControl(range(len(risks)), delta=delta, epsilon=epsilon)
        for answer in mine.T:
            control.add(answer)
        # What has passed stays passed: the last is the loosest that was named at any time.
        passed["anytime"].append(len(control.passed_at))
        first.append(control.passed_at[0] if control.passed_at else n + 1)
        p = p_values(mine.cumsum(axis=1) / np.arange(1, n + 1), delta)
        passed["ltt"].append(ordered(p[:, -1] <= epsilon))
        passed["peeking"].append(max(ordered(column <= epsilon) for column in p[:, 19:].T))
    rows = []
    for name, counts in passed.items():
        worst = [max(risks[:count], default=0.0) for count in counts]
        share = stats.mean_interval([float(risk > delta) for risk in worst])
        rows.append({
            "control": name, "failures": share.value, "low": share.low, "high": share.high,
            "named": float(np.mean([count > 0 for count in counts])),
            "risk_used": float(np.mean([risks[count - 1] if count else 0.0 for count in counts])),
            "answers": float(np.median(first)) if name == "anytime" else float(n) if name == "ltt" else None,
        })  # fmt: skip
    return rows


def ordered(passes: np.ndarray) -> int:
    """How many pass before the first that does not."""
    return len(passes) if passes.all() else int(passes.argmin())


def show(name: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        answers = "" if row["answers"] is None else f"{row['answers']:.0f}"
        print(
            f"| {name} | {row['control']} | {row['failures']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | "
            f"{row['named']:.3f} | {row['risk_used']:.4f} | {answers} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resplits", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=300, help="calibration answers of a resplit")
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--run", type=Path, help="run directory of `exitlens exits --out`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    options = parser.parse_args()
    told = f"{options.resplits} resplits of {options.answers} answers, delta {options.delta}, epsilon {options.epsilon}"
    print(f"{told}\n\n| population | control | failures | named | risk used | answers |\n|---|---|---|---|---|---|")
    out = {}
    for name, losses in {**populations(options.seed), **(measured(options.run) if options.run else {})}.items():
        out[name] = resplit(losses, options.delta, options.epsilon, options.answers, options.resplits, options.seed)
        show(name, out[name])
    if options.json:
        Path(options.json).write_text(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
