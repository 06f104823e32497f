"""All layers × folds × settings × seeds at once, against the same grid one probe at a time.

    python benchmarks/probes.py                    # 31 × 6330 × 576 made-up states; peers timed on a sample of the grid
    python benchmarks/probes.py --layers 4         # fewer layers
    python benchmarks/probes.py --states s.pt.npz  # real ones: arrays states [L, n, d], labels, topics
    python benchmarks/probes.py --full-peers       # peers on the whole grid (hours)

Peers: scikit-learn's ``StandardScaler`` + ``LogisticRegression`` for every layer, fold and C (its defaults but
``max_iter=2000``); a plain PyTorch loop (``nn.Sequential``, ``optim.Adam``, batches by index, no data loader) for
every layer, fold and seed. A peer's time is measured on a sample of its cells and scaled to all; accuracies of the
same cells are compared. "Floor": the multiplications that the MLPs cannot do without, at the rate this machine
reaches on large float32 matrix products.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from exitlens.probes import KINDS, Fold, fit_grid, make_data
from exitlens.probes.dataset import ProbeData


def made_up(layers: int, n: int, d: int, topics: int = 7) -> ProbeData:
    """States with a decaying spectrum, topic means and a weak truth direction that grows with depth."""
    rng = np.random.default_rng(0)
    topic = rng.integers(0, topics, n)
    y = rng.integers(0, 2, n)
    states = torch.empty(layers, n, d)
    spectrum = np.arange(1, d + 1) ** -0.6
    for j in range(layers):
        rotate = rng.normal(size=(d, d)).astype(np.float32) / d**0.5
        core = rng.normal(size=(n, d)) * spectrum + 0.5 * (rng.normal(size=(topics, d)) * spectrum)[topic]
        core[:, 20:60] += (2 * y - 1)[:, None] * 0.05 * spectrum[20:60] * (1 + 3 * j / layers)
        states[j] = torch.from_numpy((core * 8).astype(np.float32) @ rotate)
    return make_data(states, y, topics=topic.tolist())


def topic_folds(data: ProbeData) -> list[Fold]:
    return [
        Fold(name, np.flatnonzero(data.topics != t), np.flatnonzero(data.topics == t))
        for t, name in enumerate(data.topic_names)
    ]


def torch_loop(x: torch.Tensor, y: torch.Tensor, fold: Fold, seed: int, epochs: int = 5) -> float:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], 256), torch.nn.ReLU(), torch.nn.Linear(256, 128), torch.nn.ReLU(),
        torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    lossf = torch.nn.BCEWithLogitsLoss()
    xt, yt = x[fold.train], y[fold.train]
    for _ in range(epochs):
        for index in torch.randperm(len(yt)).split(16):
            optimiser.zero_grad()
            lossf(net(xt[index])[:, 0], yt[index]).backward()
            optimiser.step()
    with torch.no_grad():
        return float(((net(x[fold.test])[:, 0] > 0) == (y[fold.test] > 0.5)).float().mean())


def sk_logistic(data: ProbeData, layer: int, fold: Fold, c: float) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = data.states[layer].numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    model.fit(x[fold.train], data.labels[fold.train])
    return float(model.score(x[fold.test], data.labels[fold.test]))


def right(data: ProbeData, fold: Fold, p: torch.Tensor) -> float:
    return float(((p > 0.5).numpy() == (data.labels[fold.test] == 1)).mean())


def peak_rate() -> float:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 1e9
    for _ in range(5):
        t = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - t)
    return 2 * 2048**3 / best


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--layers", type=int, default=31)
    parse.add_argument("--rows", type=int, default=6330)
    parse.add_argument("--width", type=int, default=576)
    parse.add_argument("--seeds", type=int, default=5)
    parse.add_argument("--kinds", default="logistic,mass-mean,mass-mean-whitened,lda,mlp")
    parse.add_argument("--sample", type=int, default=4, help="cells of each peer's grid that are timed")
    parse.add_argument("--states", help=".npz with states [layers, n, d], labels [n], topics [n]")
    parse.add_argument("--full-peers", action="store_true")
    args = parse.parse_args()
    if args.states:
        with np.load(args.states) as z:
            data = make_data(z["states"], z["labels"], topics=z["topics"].tolist())
    else:
        data = made_up(args.layers, args.rows, args.width)
    folds = topic_folds(data)
    seeds = range(args.seeds)
    n_layers, d = len(data.layers), data.states.shape[2]
    cells = n_layers * len(folds)
    rng = np.random.default_rng(1)
    out: dict[str, object] = {
        "states": list(data.states.shape), "folds": len(folds), "seeds": args.seeds,
        "threads": torch.get_num_threads(), "gflops": round(peak_rate() / 1e9, 1),
    }  # fmt: skip
    names = args.kinds.split(",")
    # The peers' sample: (layer, fold) cells drawn once.
    count = cells if args.full_peers else min(args.sample, cells)
    drawn = [(int(k) // len(folds), int(k) % len(folds)) for k in rng.permutation(cells)[:count]]
    if any(k != "mlp" for k in names):
        settings = [float(c or 0) for c in KINDS["logistic"].settings]
        theirs, spent = {}, 0.0
        for layer, f in drawn:
            for c in settings:
                t = time.perf_counter()
                theirs[layer, f, c] = sk_logistic(data, layer, folds[f], c)
                spent += time.perf_counter() - t
        sk = spent / count * cells
        out["sklearn_logistic_s"] = round(sk, 1)
        for name in (k for k in names if k != "mlp"):
            t = time.perf_counter()
            grid = fit_grid(name, data, folds)
            took = time.perf_counter() - t
            models = cells * len(grid.settings)
            row = {"s": round(took, 2), "models": models, "ms_a_model": round(1e3 * took / models, 2)}
            # The same number of models on both sides: scikit-learn's mean cost of one fit times our models.
            row["times_faster_a_model"] = round(sk / (cells * len(settings)) * models / took, 1)
            if name == "logistic":
                gaps = [
                    right(data, folds[f], grid.probabilities[f][layer, h, 0]) - theirs[layer, f, c]
                    for layer, f in drawn
                    for h, c in enumerate(settings)
                ]
                row["accuracy_gap_mean"] = round(float(np.mean(gaps)), 5)
                row["accuracy_gap_max"] = round(float(np.max(np.abs(gaps))), 5)
            out[name] = row
            print(name, row, flush=True)
    if "mlp" in names:
        y = data.y
        torch_loop(data.states[0], y, Fold("warm", folds[0].train[:320], folds[0].test), 0, 1)
        loop_accuracy, spent = [], 0.0
        for layer, f in drawn:
            t = time.perf_counter()
            loop_accuracy.append(torch_loop(data.states[layer], y, folds[f], 0))
            spent += time.perf_counter() - t
        loop = spent / count * cells * args.seeds
        t = time.perf_counter()
        grid = fit_grid("mlp", data, folds, seeds=seeds)
        took = time.perf_counter() - t
        first, rest = d * 256, 256 * 128 + 128 * 64 + 64
        # Forward and weight gradient everywhere, input gradient everywhere but in the first layer.
        flops = sum((4 * first + 6 * rest) * len(f.train) * 5 for f in folds) * n_layers * args.seeds
        ours = [
            [right(data, folds[f], grid.probabilities[f][layer, 0, s]) for s in range(args.seeds)] for layer, f in drawn
        ]
        row = {
            "s": round(took, 1), "models": cells * args.seeds, "torch_loop_s": round(loop, 1),
            "times_faster": round(loop / took, 2), "tflop": round(flops / 1e12, 2),
            "gflops": round(flops / took / 1e9, 1),
            "share_of_floor": round(flops / (float(out["gflops"]) * 1e9) / took, 3),  # type: ignore[arg-type]
            "accuracy_gap_mean": round(float(np.mean(ours) - np.mean(loop_accuracy)), 4),
            "accuracy_seed_spread": round(float(np.std(ours, axis=1).mean()), 4),
        }  # fmt: skip
        out["mlp"] = row
        print("mlp", row, flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
