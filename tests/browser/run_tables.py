"""A made-up run with every table that views read: numbers by a seed, texts as bad as data can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    '<img src=x onerror="window.pwned=1">',
    '"><a href="javascript:window.pwned=1">x</a>',
    "\u202e\u05e9\u05dc\u05d5\u05dd {{7*7}} ${window.pwned=1}",
    "e\u0301\u0323 👩‍👩‍👧‍👦 " + "long" * 60,
    "\x00\x1b[31m",
)
LAYERS = 6
DECODERS = ("vanilla", HOSTILE[0])
JUDGE = HOSTILE[1]
LENSES = ("raw", "logit", HOSTILE[0])


def texts(count: int) -> list[str]:
    return [f"{HOSTILE[i % len(HOSTILE)]} question {i}" for i in range(count)]


def interval(frame: pd.DataFrame, name: str, width: float = 0.05) -> pd.DataFrame:
    return frame.assign(**{f"{name}_low": frame[name] - width, f"{name}_high": frame[name] + width})


def run_tables(questions: int = 45, seed: int = 0) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    ids = [f"q{i}" for i in range(questions)]
    asked = dict(zip(ids, texts(questions), strict=True))
    rows: list[dict[str, Any]] = []
    top: list[dict[str, Any]] = []
    for key in ids:
        for lens in ("logit", HOSTILE[2]):
            for layer in range(LAYERS + 1):
                p = rng.dirichlet(np.ones(3)) * 0.5
                for k, choice in enumerate(("yes", HOSTILE[3], HOSTILE[4])):
                    rows.append(
                        {
                            "question_id": key, "question": asked[key], "lens": lens, "layer": layer, "choice": choice,
                            "correct": k == 0, "rule": "first-token", "spellings": "[]",
                            "probability": np.float32(p[k]), "share": np.float32(p[k] / p.sum()),
                            "mass": np.float32(p.sum()),
                        }
                    )  # fmt: skip
                top += [
                    {"question_id": key, "lens": lens, "layer": layer, "rank": r, "token_id": r,
                     "token": HOSTILE[r], "probability": np.float32(0.5 / (r + 1))} for r in range(3)
                ]  # fmt: skip
    layer = np.arange(LAYERS + 1)
    accuracy = pd.DataFrame({"lens": "logit", "layer": layer, "n": questions, "accuracy": rng.random(LAYERS + 1)})
    accuracy = accuracy.assign(low=0.1, high=0.9, correct_share=0.4, mass=0.5, chance=1 / 3)
    answers = pd.DataFrame(
        [
            {"decoder": d, "question_id": key, "question": asked[key], "answer": f"It is {d} {i % 3} {asked[key]}",
             "n_tokens": 3, "finish": "stop"}
            for d in DECODERS for i, key in enumerate(ids)
        ]
    )  # fmt: skip
    judged = answers[["decoder", "question_id"]].assign(judge=JUDGE, value=0.5, correct=rng.random(len(answers)) > 0.4)
    entropy = pd.DataFrame(
        {"judge": JUDGE, "estimator": "per-group", "layer": layer, "n_correct": 20, "n_incorrect": 25}
    )
    for name in ("correct", "incorrect", "difference", "auroc", "cohens_d"):
        entropy = interval(entropy.assign(**{name: rng.random(LAYERS + 1)}), name)
    entropy = entropy.assign(p=0.2, p_holm=0.5, p_bh=0.4, adjusted_difference=0.1, adjusted_p=0.3)
    tokens = pd.DataFrame(
        [
            {"question_id": key, "position": p, "token_id": 1, "token": " a", "layer": j, "entropy": rng.random()}
            for key in ids for p in range(3) for j in range(LAYERS + 1)
        ]
    )  # fmt: skip
    scores = pd.DataFrame(
        {"decoder": DECODERS, "metric": "bleu_max", "protocol": "truthfulqa", "n": questions, "mean": [0.4, 0.3]}
    )
    scores = scores.assign(
        protocol="truthfulqa", low=0.2, high=0.5, difference=[np.nan, -0.1], p=[np.nan, 0.2], repetition_penalty=1.0
    )
    scores = scores.assign(difference_low=[np.nan, -0.2], difference_high=[np.nan, 0.05])
    chosen = pd.DataFrame({"decoder": DECODERS[1], "layer": [2, 3, 4], "count": [5, 7, 9]})
    probes = pd.DataFrame(
        {"kind": "logistic", "role": "probe", "protocol": "lodo", "layer": layer[1:].astype(float), "n": 200}
    )
    for name in ("accuracy", "auroc", "brier", "ece", "selective_accuracy", "aurc"):
        probes = interval(probes.assign(**{name: rng.random(LAYERS)}), name)
    floor = probes.iloc[:1].assign(kind=HOSTILE[1], role="floor", layer=np.nan)
    calibration = interval(
        pd.DataFrame({"confidence": [0.1, 0.5, 0.9], "observed": [0.2, 0.5, 0.8], "n": 9.0, "kind": "logistic"}),
        "observed",
    )
    topics = ("cities", HOSTILE[0])
    transfer = interval(
        pd.DataFrame(
            [{"kind": "logistic", "train_topic": a, "test_topic": b, "layer": 3, "n": 40, "auroc": rng.random()}
             for a in topics for b in topics]
        ), "auroc",
    )  # fmt: skip
    policies = pd.DataFrame(
        [{"policy": p, "threshold": t, "exits": "1-5", "n": 300, "agreement": 1 - 0.4 * t, "mean_exit": 4.0,
          "layers_saved": 0.5 * t, "exit_checks": 3.0, "flops_saved": 0.1, "flops_saved_propagate": 0.2}
         for p in ("probability", HOSTILE[3], "oracle") for t in (0.25, 0.5, 0.75)]
    )  # fmt: skip
    exits = pd.DataFrame(
        [{"policy": p, "threshold": t, "layer": j, "count": j + 1, "share": (j + 1) / 28}
         for p in ("probability", "oracle") for t in (0.25, 0.5, 0.75) for j in layer]
    )  # fmt: skip
    parts = pd.DataFrame(
        [{"component": f"{kind} {j}", "kind": kind, "block": j} for j in layer[1:] for kind in ("attention", "mlp")]
    )
    means = parts.assign(n=questions, contribution=rng.normal(size=len(parts)), low=-2.0, high=2.0)
    means = means.assign(p=0.2, p_holm=1.0, p_bh=0.5)
    single = pd.concat(
        [
            parts.assign(question_id=key, question=asked[key], contribution=rng.normal(size=len(parts)))
            for key in ids[:3]
        ]
    ).assign(correct_choice="yes", incorrect_choice=HOSTILE[3], logit_difference=1.5)
    heads = pd.DataFrame(
        [{"question_id": key, "question": asked[key], "block": j, "head": h, "contribution": rng.normal()}
         for key in ids[:3] for j in layer[1:] for h in range(4)]
    )  # fmt: skip
    partings = pd.DataFrame(
        [{"decoder": DECODERS[1], "question_id": key, "position": 0, "token": HOSTILE[2], "first_token": " a",
          "layer": j, "divergence": 0.01 * j, "chosen": j == 3} for key in ids[:20] for j in (1, 2, 3)]
    )  # fmt: skip
    passed = pd.DataFrame(
        [{"set": s, "lens": name, "control": False, "k": k, "n": 40, "passed": 0.1 * k, "chance": 0.01,
          "n_shuffled": 40, "shuffled": 0.05, "gain": 0.02 - 0.01 * i, "p": 0.2, "p_holm": 0.5}
         for s in ("all", HOSTILE[3]) for i, name in enumerate(LENSES) for k in (1, 5)]
    )  # fmt: skip
    lens_layers = pd.DataFrame(
        [{"lens": name, "layer": j, "n": 40, "k": 5, "share": 0.1 * i, "kl": 200.0 * rng.random() ** 4,
          "agreement": j / LAYERS}
         for i, name in enumerate(LENSES) for j in layer[1:]]
    )  # fmt: skip
    for name in ("share", "kl", "agreement"):
        lens_layers = interval(lens_layers, name, 0.01)
    return {
        "lenses": interval(interval(interval(passed, "passed"), "gain"), "shuffled"),
        "lenses_layers": lens_layers,
        "decoding_partings": partings,
        "attribution_heads": heads,
        "attribution_means": means,
        "attribution": single,
        "layers": pd.DataFrame(rows),
        "layers_top": pd.DataFrame(top),
        "layers_accuracy": accuracy,
        "answers": answers,
        "judgements": judged,
        "entropy_layers": entropy,
        "entropy_tokens": tokens,
        "decoding": scores,
        "decoding_layers": chosen,
        "probe_layers": pd.concat([probes, floor], ignore_index=True),
        "probe_calibration": calibration.assign(protocol="lodo"),
        "probe_transfer": transfer,
        "exits": interval(policies, "agreement"),
        "exits_layers": exits,
    }


def comparison_tables(seed: int = 0) -> dict[str, pd.DataFrame]:
    """Two runs side by side, the second with a hostile name."""
    rng = np.random.default_rng(seed)
    runs = ("first", HOSTILE[1])
    numbers = pd.DataFrame(
        [{"study": study, "number": number, "of": of, "run": run, "model": "tiny", "own": "", "value": rng.random(),
          "n": 40, "counted": "questions", "unit": "", "difference": (np.nan, -0.1)[i], "pairing": "",
          "n_paired": 40, "p": (np.nan, 0.2)[i], "p_holm": np.nan, "p_bh": np.nan, "remark": "", "too_narrow": False}
         for study in ("layers", "entropy") for number, of in (("correct first", "lens logit"), (HOSTILE[3], ""))
         for i, run in enumerate(runs)]
    )  # fmt: skip
    curves = pd.DataFrame(
        [{"study": study, "curve": "correct first", "of": HOSTILE[0], "run": run, "own": "", "axis": "layer",
          "x": float(j), "value": rng.random(), "unit": "share of questions"}
         for study in ("layers", "entropy") for run in runs for j in range(LAYERS + 1)]
    )  # fmt: skip
    numbers = interval(interval(numbers, "value"), "difference")
    listed = pd.DataFrame({"run": runs, "path": runs, "model": "tiny", "layers": LAYERS, "studies": "layers, entropy"})
    listed = listed.assign(command="", started="", finished="", notes="")
    return {"compare_runs": listed, "compare_numbers": numbers, "compare_curves": interval(curves, "value")}


def comparison_report(folder: Path) -> Path:
    """The report of :func:`comparison_tables`."""
    from exitlens.report.frames import Results
    from exitlens.report.page import write_report
    from exitlens.studies.compare.chapter import CHAPTERS

    return write_report(Results(comparison_tables(), {}), CHAPTERS, {}, folder / "report.html")


def run_directory(folder: Path, questions: int = 45) -> Path:
    """Tables, manifest and report of the made-up run, written as a run writes them."""
    from exitlens.report.frames import Results
    from exitlens.report.gallery import draw_all
    from exitlens.report.page import write_report
    from exitlens.storage.atomic import write_parquet
    from exitlens.studies.registry import chapters

    tables = run_tables(questions)
    for name, frame in tables.items():
        write_parquet(folder / "tables" / f"{name}.parquet", frame)
    manifest = {"model": {"name": HOSTILE[0]}, "data": [{"name": HOSTILE[1], "n": questions, "kind": "questions"}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    results = Results(tables, manifest)
    few = {name: chapter for name, chapter in chapters().items() if name == "exits"}
    drawn = draw_all(results, few, folder / "figures")
    write_report(results, chapters(), drawn, folder / "report.html")
    return folder
