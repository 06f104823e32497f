"""The notebooks' way beside ours, in one run: generation with entropy, and extraction with three probes.

    python benchmarks/study.py --data TruthfulQA.csv --statements true-false

The notebooks' way: one question at a time, the whole prompt each time, `output_hidden_states=True`, the float32 logits
of every layer kept; probes that run the model again in every epoch. Each way runs in a process of its own, so that its
peak memory is its own; the ways take turns on the same rows. With `--slow-share`, the slow way does only the first part
of the rows and its time is given per row.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STOP = "\nQ:"
NEW_TOKENS = 50


def main() -> None:
    """Run every way in its own process and print times, ratios and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True, help="questions")
    parser.add_argument("--statements", required=True, help="true and false statements")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1000, help="statements")
    parser.add_argument("--slow-share", type=float, default=1.0, help="part of the rows that the notebooks' way does")
    parser.add_argument("--only", choices=["answers", "probes"])
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(WAYS[args.way](args)))
        return
    pairs = [("answers", "answers-notebook", "answers-ours"), ("probes", "probes-notebook", "probes-ours")]
    for job, slow, fast in pairs:
        if args.only in (None, job):
            a, b = _apart(slow), _apart(fast)
            print(f"\n{job}: seconds a row (whole process peak memory)")
            for name, r in (("notebooks' way", a), ("exitlens", b)):
                print(f"  {name:16} {r['seconds'] / r['rows']:8.3f} s   {r['rows']:5d} rows   {r['peak_mib']:7.0f} MiB")
            speed = (a["seconds"] / a["rows"]) / (b["seconds"] / b["rows"])
            memory = b["peak_mib"] / a["peak_mib"]
            print(f"  {speed:.1f} times as fast, {memory:.2f} of the memory   [{b.get('note', '')}]")


def _apart(way: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *sys.argv, "--way", way], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _result(seconds: float, rows: int, **more: Any) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "rows": rows, "peak_mib": peak, **more}


def _questions(args: argparse.Namespace, share: float) -> list[str]:
    from exitlens.data import read_data
    from exitlens.data.prompts import qa_prompts

    found = read_data(args.data, limit=args.questions).questions
    prefix, rest = qa_prompts(found[: max(1, int(len(found) * share))])
    return [prefix + text for text in rest]


def answers_notebook(args: argparse.Namespace) -> dict[str, Any]:
    """One question at a time; hidden states of all layers handed out, their float32 logits kept to the answer's end."""
    import torch

    import exitlens

    lm = exitlens.load(args.model, dtype="float32")
    prompts = _questions(args, args.slow_share)
    begin = time.perf_counter()
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([lm.encode(prompt)])
            cache, logits, new = None, [], []
            for _ in range(NEW_TOKENS):
                out = lm.model(input_ids=ids, past_key_values=cache, use_cache=True, output_hidden_states=True)
                cache = out.past_key_values
                hidden = out.hidden_states
                step = [lm.model.lm_head(lm.model.model.norm(h)) for h in hidden[:-1]] + [out.logits]
                logits.append(step)
                token = int(out.logits[0, -1].argmax())
                if token in lm.eos_ids:
                    break
                new.append(token)
                if STOP in lm.decode(new):
                    break
                ids = torch.tensor([[token]])
            for step in logits:
                for z in step:
                    p = torch.softmax(z[0, -1], -1)
                    -(p * torch.log(p + 1e-10)).sum()
    return _result(time.perf_counter() - begin, len(prompts))


def answers_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Batches, the shared prompt once, entropy from the states of the answer's tokens."""
    import exitlens

    lm = exitlens.load(args.model)
    prompts = _questions(args, 1.0)
    begin = time.perf_counter()
    got = exitlens.generate(lm, prompts, max_new_tokens=NEW_TOKENS, stop=[STOP], batch_size=32, read=("entropy",))
    tokens = sum(len(g.token_ids) for g in got)
    return _result(time.perf_counter() - begin, len(prompts), note=f"{tokens} answer tokens, batch 32, {lm.dtype}")


def _statements(args: argparse.Namespace, share: float) -> Any:
    from exitlens.data import read_data

    found = read_data(args.statements, limit=args.rows).statements
    return found[: max(8, int(len(found) * share))]


def probes_notebook(args: argparse.Namespace) -> dict[str, Any]:
    """Three probes, five epochs, batches of 16; the model runs again for every batch of every epoch."""
    import torch
    from torch import nn

    import exitlens
    from exitlens.data.prompts import truth_prompt

    lm = exitlens.load(args.model, dtype="float32")
    rows = _statements(args, args.slow_share)
    lm.tokenizer.padding_side = "left"
    probed_layers = [round(lm.n_layers * part) for part in (0.5, 0.625, 0.75)]
    begin = time.perf_counter()
    probes = [
        nn.Sequential(
            nn.Linear(lm.d_model, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 1),
        )
        for _ in probed_layers
    ]
    optimisers = [torch.optim.Adam(p.parameters(), lr=1e-3) for p in probes]
    for _ in range(5):
        for at in range(0, len(rows), 16):
            part = rows[at : at + 16]
            texts = ["".join(truth_prompt(r.statement, True)) for r in part]
            batch = lm.tokenizer(texts, return_tensors="pt", padding=True)
            with torch.no_grad():
                hidden = lm.model(**batch, output_hidden_states=True).hidden_states
            y = torch.tensor([[float(r.label)] for r in part])
            for tap, probe, optimiser in zip(probed_layers, probes, optimisers, strict=True):
                loss = nn.functional.binary_cross_entropy_with_logits(probe(hidden[tap][:, -1]), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return _result(time.perf_counter() - begin, len(rows))


def probes_ours(args: argparse.Namespace) -> dict[str, Any]:
    """States of every layer extracted once into a store, then the three probes and all baselines."""
    import exitlens
    from exitlens.studies.probes.study import original_probes

    lm = exitlens.load(args.model)
    rows = _statements(args, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        original_probes(lm, rows, Path(folder), settings=("few-shot",))
        return _result(
            time.perf_counter() - begin, len(rows), note="every layer kept, baselines and test scores included"
        )


WAYS = {
    "answers-notebook": answers_notebook,
    "answers-ours": answers_ours,
    "probes-notebook": probes_notebook,
    "probes-ours": probes_ours,
}

if __name__ == "__main__":
    main()
