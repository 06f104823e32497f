"""How often 95 % intervals hold the true value, simulated: means, proportions, AUROC, differences, token means,
and ECE, AURC and selective accuracy.

    python benchmarks/interval_coverage.py            # the table of docs/scoring.md, a few minutes
    python benchmarks/interval_coverage.py --quick    # fewer samples: half a minute

Each cell draws samples of n questions from a known distribution and counts the intervals that hold its true value.
The percentile bootstrap stands beside for the same samples. The standard error of a share near .95 is .0034 for 4,000
samples and .005 for 2,000.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from exitlens import stats
from exitlens.stats.arrays import Array
from exitlens.stats.bootstrap import draws, quantiles

SIZES = (10, 20, 60, 200)
KEPT = 0.8  # share of the surest answers kept
# Slope of the true logits, slope and shift of those that are said.
ANSWERS = {"calibrated": (2.0, 2.0, 0.0), "overconfident": (1.2, 2.5, 0.0), "shifted": (2.0, 2.0, 0.7)}
Ends = tuple[Array, Array]
Draw = Callable[[np.random.Generator, int, int], Array]


def mean(data: Array) -> Ends:
    """Ends for the mean of each column ``[n, samples]``."""
    found = stats.mean_intervals(data, n=RESAMPLES)
    return found.low, found.high


def percentile(data: Array) -> Ends:
    """The percentile bootstrap of the same means."""
    found = np.concatenate([w @ data / len(data) for w in draws(len(data), RESAMPLES, 0)])
    return quantiles(found, 0.95)


def paired(data: Array) -> Ends:
    """Ends for mean(a − b), the differences being given."""
    found = stats.paired_differences(data, np.zeros_like(data), n=RESAMPLES, permutations=1)
    return found.low, found.high


def clustered(data: Array) -> Ends:
    """Ends for a proportion of rows that come in groups of four."""
    found = stats.mean_intervals(data, np.arange(len(data)) // 4, n=RESAMPLES)
    return found.low, found.high


def in_groups(rng: np.random.Generator, n: int, samples: int) -> Array:
    """n groups of four rows whose common chance of 1 is drawn from Beta(0.6, 1.4): mean .3, correlation 1/3."""
    chance = rng.beta(0.6, 1.4, size=(n, samples))
    return (rng.random((4 * n, samples)) < np.repeat(chance, 4, axis=0)).astype(np.float64)


MEANS: dict[str, tuple[Draw, float, Callable[[Array], Ends]]] = {
    "mean, normal": (lambda rng, n, k: rng.normal(size=(n, k)), 0.0, mean),
    "mean, lognormal": (lambda rng, n, k: rng.lognormal(size=(n, k)), float(np.exp(0.5)), mean),
    "proportion .1": (lambda rng, n, k: (rng.random((n, k)) < 0.1).astype(np.float64), 0.1, mean),
    "proportion .3": (lambda rng, n, k: (rng.random((n, k)) < 0.3).astype(np.float64), 0.3, mean),
    "proportion .3, groups of 4": (in_groups, 0.3, clustered),
    "paired difference, normal": (lambda rng, n, k: rng.normal(0.2, 1.0, size=(n, k)), 0.2, paired),
    "paired difference, lognormal": (
        lambda rng, n, k: rng.lognormal(size=(n, k)) - rng.lognormal(0.0, 0.5, size=(n, k)),
        float(np.exp(0.5) - np.exp(0.125)),
        paired,
    ),
    "paired difference, correct answers": (
        lambda rng, n, k: rng.choice([1.0, -1.0, 0.0], p=[0.25, 0.1, 0.65], size=(n, k)),
        0.15,
        paired,
    ),
}


def share(ends: Ends, truth: float) -> tuple[float, int]:
    """Share of intervals that hold ``truth``, and how many intervals there were."""
    low, high = ends
    there = ~np.isnan(low)
    held = (low <= truth) & (truth <= high)
    return float(held[there].mean()), int(there.sum())


def auroc(rng: np.random.Generator, n: int, samples: int, area: float) -> tuple[float, float]:
    """Coverage for normal scores of a true area, half of the rows labelled 1; ours, and the percentile bootstrap."""
    gap = float(norm.ppf(area) * np.sqrt(2))
    label = np.arange(n) < n // 2
    score = rng.normal(size=(n, samples)) + gap * label[:, None]
    found = stats.auroc_intervals(score, label)
    counts = stats.resample_counts(np.arange(n), RESAMPLES, 0)
    few = score[:, : max(200, samples // 10)]  # the bootstrap of an AUROC is slow
    before = quantiles(np.stack([stats.weighted_auroc(one, label, counts)[1:] for one in few.T], axis=1), 0.95)
    return share((found.low, found.high), area)[0], share(before, area)[0]


def token_means(rng: np.random.Generator, n: int, samples: int) -> dict[str, tuple[float, float]]:
    """Coverage for token-weighted means of lognormal entropies, n answers of which 40 % are incorrect.

    Long answers are less sure: an answer's mean depends on its number of tokens, as in real data.
    """
    held: dict[str, list[bool]] = {"token mean": [], "token means' difference": []}
    before: dict[str, list[bool]] = {name: [] for name in held}
    lengths = np.arange(1, 30)
    truth = [float(np.average(np.exp(0.125) * (1 + shift + lengths / 60), weights=lengths)) for shift in (0.0, 0.3)]
    for _ in range(samples):
        tokens = rng.integers(1, 30, size=n).astype(np.float64)
        correct = np.arange(n) >= 0.4 * n
        value = rng.lognormal(0.0, 0.5, size=n) * (1 + 0.3 * ~correct + tokens / 60)
        found = stats.group_token_mean(value, tokens, correct, n=RESAMPLES, permutations=1)
        gap = truth[1] - truth[0]
        held["token mean"].append(bool(found.correct.low[0] <= truth[0] <= found.correct.high[0]))
        held["token means' difference"].append(bool(found.difference.low[0] <= gap <= found.difference.high[0]))
        sides = np.stack([tokens * correct, tokens * ~correct], axis=1)
        drawn = next(iter(draws(n, min(RESAMPLES, 1000), 0)))
        with np.errstate(invalid="ignore"):  # a resample may hold no answer of a side
            means = (drawn @ (value[:, None] * sides)) / (drawn @ sides)
        parts = (means[:, :1], means[:, 1:] - means[:, :1])
        for name, part, true in zip(before, parts, (truth[0], gap), strict=True):
            before[name].append(bool(share(quantiles(part, 0.95), true)[0]))
    return {name: (float(np.mean(held[name])), float(np.mean(before[name]))) for name in held}


def answers(rng: np.random.Generator, n: int, slope: float, said: float, shift: float) -> tuple[Array, Array]:
    """P(true) and labels of n statements: true logits ``slope · z``, those that are said ``said · z + shift``."""
    z = rng.normal(size=n)
    return expit(said * z + shift), (rng.random(n) < expit(slope * z)).astype(np.float64)


def _calibrated(p: Array, y: Array, counts: stats.bootstrap.Counts) -> dict[str, tuple[Array, Array]]:
    """Each statistic of a probe's answers, of the data and of resamples; and the noise of its calibration error."""
    wrong = ((p > 0.5) != (y == 1)).astype(np.float64)
    area, risk = stats.weighted_risk(np.abs(p - 0.5), wrong, counts, [KEPT])
    error, noise = stats.weighted_ece_noise(p, y, counts)
    return {"ECE": (error, noise), "AURC": (area, noise), "selective accuracy": (1 - risk[0], noise)}


def bounded(rng: np.random.Generator, n: int, samples: int) -> dict[str, tuple[float, float]]:
    """Coverage for ECE, AURC and accuracy on the surest 80%, of calibrated, overconfident and shifted answers."""
    held: dict[str, tuple[float, float]] = {}
    for kind, settings in ANSWERS.items():
        big = answers(np.random.default_rng(0), 1_000_000, *settings)
        truth = _calibrated(*big, np.ones((len(big[0]), 1), np.float32))
        ours: dict[str, list[bool]] = {name: [] for name in truth}
        before: dict[str, list[bool]] = {name: [] for name in truth}
        for _ in range(samples):
            p, y = answers(rng, n, *settings)
            counts = stats.resample_counts(np.arange(n), min(RESAMPLES, 500), 0)
            for name, (found, noise) in _calibrated(p, y, counts).items():
                if name == "ECE":
                    interval = stats.calibration_error_interval(found, noise, n)
                elif name == "AURC":
                    interval = stats.risk_area_interval(found, n)
                else:
                    interval = stats.share_interval(found, n, KEPT * n)
                true = float(truth[name][0][0])
                ours[name].append(interval.low <= true <= interval.high)
                before[name].append(bool(share(quantiles(found[1:, None], 0.95), true)[0]))
        held |= {f"{name}, {kind}": (float(np.mean(ours[name])), float(np.mean(before[name]))) for name in truth}
    return held


def main() -> None:
    """Print the table."""
    global RESAMPLES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples and resamples")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    samples, RESAMPLES = (500, 500) if options.quick else (4000, 2000)
    began = time.perf_counter()
    rows: dict[str, list[tuple[float, float]]] = {}
    for n in SIZES:
        rng = np.random.default_rng([options.seed, n])
        for name, (draw, truth, interval) in MEANS.items():
            parts = []
            # In parts, so that memory stays below 100 MB.
            for _ in range(max(1, samples // 500)):
                data = draw(rng, n, 500)
                grouped = data.reshape(n, -1, data.shape[1]).mean(axis=1)  # of rows in groups the groups are drawn
                parts.append((share(interval(data), truth)[0], share(percentile(grouped), truth)[0]))
            ours, before = np.mean(parts, axis=0)
            rows.setdefault(name, []).append((ours, before))
        for area in (0.7, 0.9):
            rows.setdefault(f"AUROC {area:g}", []).append(auroc(rng, n, samples, area))
        for name, found in (token_means(rng, n, samples // 2) | bounded(rng, n, samples // 4)).items():
            rows.setdefault(name, []).append(found)
    print("| statistic | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(f"{ours:.3f} ({before:.3f})" for ours, before in cells) + " |")
    print(
        f"\n{samples} samples a cell, {RESAMPLES} resamples; in brackets the percentile bootstrap; "
        f"{time.perf_counter() - began:.0f} s"
    )


RESAMPLES = 2000

if __name__ == "__main__":
    main()
