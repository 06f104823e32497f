"""Leaving early and drafting, in one run: work, time a token beside plain decoding, and predicted beside measured time.

    python benchmarks/exits.py                          # built-in model, batch 1
    python benchmarks/exits.py --heads heads.safetensors  # with heads of `exitlens exits train`
    python benchmarks/exits.py --adapter DIR            # an adapted model
    python benchmarks/exits.py --only easy              # the machinery's own ceiling
    python benchmarks/exits.py --quick --model tiny     # a random model of twelve blocks, a minute
    python benchmarks/exits.py --model big --device cuda  # random weights, 2 billion: what it costs, not what it says
    python benchmarks/exits.py --json out.json

Settings take turns, and the best turn of each counts: others on the machine only ever add time. "× plain": plain
decoding's time over the setting's (above 1: faster). Time a token leaves the prompt's pass out: (T tokens − 1 token) /
(T − 1).
"agrees": share of tokens that the full model would have given at that place; "short": rows read over a head's
shortlist instead of the vocabulary. Predicted: from one full pass over plain decoding's answers and the time model of
exits/timing.py, before anything is run. "auto": what `--speculate auto` chooses on these prompts. "easy": the
same weights with the deep half of the blocks nearly the identity, so that almost every token may leave at half depth,
with heads fitted on the very prompts: what the machinery gives when the model does not stand in the way. Peer:
transformers' generate, plain and with assistant_early_exit.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exitlens.data.prompts import QA_PROMPT, qa_prompt
from exitlens.decoding import generate
from exitlens.exits.draft import Draft
from exitlens.exits.draft_search import best_draft, search_skips
from exitlens.exits.heads import ExitHeads, train_heads
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.replay_policies import Cost, Signals, apply_policy, block_widths, oracle, signals_of
from exitlens.exits.rounds import SpeculationTally
from exitlens.exits.session import ExitPrefix, Tally
from exitlens.exits.shortlist import ExitReader
from exitlens.exits.speculation import speculate
from exitlens.exits.timing import TimeModel, measure_times
from exitlens.models import load, wrap

QUESTIONS = [
    "What is the capital of France?", "How many legs does a spider have?", "Why is the sky blue?",
    "Who wrote the play Hamlet?", "What happens if you swallow gum?", "Do bats see at all?",
    "What is the largest planet?", "Can you see the Great Wall of China from space?",
]  # fmt: skip
THRESHOLDS = {
    "probability": (0.5, 0.8, 0.95),
    "margin": (0.3, 0.6, 0.9),
    "entropy": (1.5, 0.7, 0.2),
    "patience": (2.0, 3.0, 4.0),
    "cosine": (0.9, 0.95, 0.99),
    "classifier": (0.7, 0.9, 0.98),
}


def random_model(name: str, device: str) -> Any:
    import transformers as tf
    from tests import tiny

    if name == "tiny":
        config = tf.LlamaConfig(**{**tiny._BASE, "num_hidden_layers": 12, "max_position_embeddings": 2048})
    else:
        config = tf.LlamaConfig(
            vocab_size=49152, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=4096, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = tf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = []
    return wrap(model.eval(), tiny.tokenizer(), name=name)


def easy(lm: Any, share: float = 1e-3) -> Any:
    """The same weights, the deep half of the blocks nearly the identity."""
    model = copy.deepcopy(lm.model)
    names = {id(m): n for n, m in lm.model.named_modules()}
    with torch.no_grad():
        for block in lm.blocks[lm.n_layers // 2 :]:
            for name, module in model.get_submodule(names[id(block)]).named_modules():
                if name.split(".")[-1] in ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h"):
                    module.weight.mul_(share)
                    if getattr(module, "bias", None) is not None:
                        module.bias.mul_(share)
    return wrap(model, lm.tokenizer, name=f"{lm.name} (easy)")


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Bench:
    def __init__(self, lm: Any, prompts: list[str], tokens: int, repeats: int, heads: Any = None) -> None:
        self.lm, self.prompts, self.tokens, self.repeats, self.heads = lm, prompts, tokens, repeats, heads
        n = lm.n_layers
        self.layers = tuple(sorted({n // 2, (2 * n) // 3, (5 * n) // 6, n - 2}))
        if heads is not None:
            self.layers = tuple(j for j in heads.layers if j >= n // 2)
        self.reader = ExitReader(lm, heads)
        self.settings: dict[str, Callable[[int], Any]] = {}
        self.facts: dict[str, dict[str, Any]] = {}

    def policies(self) -> list[ExitPolicy]:
        n = self.lm.n_layers
        out = [
            ExitPolicy(kind, t, self.layers)
            for kind, grid in THRESHOLDS.items()
            if kind != "classifier" or self.heads is not None
            for t in grid
        ]
        fixed = (n // 2, (3 * n) // 4, n - 2) if self.heads is None else (self.layers[0], *self.layers[-2:])
        if self.heads is not None:  # few exits, deep ones: where an ordinary model agrees with itself
            deep = self.layers[-3:]
            out += [ExitPolicy("probability", t, deep) for t in (0.5, 0.8)]
            out += [ExitPolicy("classifier", t, deep) for t in (0.8, 0.9)]
        return [*out, *(ExitPolicy("fixed", layers=(j,)) for j in dict.fromkeys(fixed)), ExitPolicy("never")]

    def name(self, policy: ExitPolicy) -> str:
        fewer = policy.kind != "fixed" and policy.layers and policy.layers != self.layers
        return f"{policy.name}@{'/'.join(map(str, policy.layers))}" if fewer else policy.name

    def signals(self, answers: list[Any]) -> Signals:
        """What the exits show on given answers; the first token of an answer is not asked about."""
        lm, parts = self.lm, []
        self.texts, self.places = [], []
        for prompt, answer in zip(self.prompts, answers, strict=True):
            ids = lm.encode(prompt)
            whole = torch.tensor([[*ids, *answer.token_ids]], device=lm.device)
            exits = sorted({*self.layers, *(j for p in self.policies() for j in p.layers), lm.n_layers})
            hidden = lm.forward(whole, layers=exits).hidden
            self.texts.append(whole[0].tolist())
            self.places += range(len(ids), len(ids) + len(answer.token_ids) - 1)
            parts.append({j: h[0, len(ids) : len(ids) + len(answer.token_ids) - 1] for j, h in hidden.items()})
        states = {j: torch.cat([p[j] for p in parts]) for j in parts[0]}
        sizes = [len(p[lm.n_layers]) for p in parts]
        question = np.repeat(np.arange(len(sizes)), sizes)
        step = np.concatenate([np.arange(1, s + 1) for s in sizes])
        return self._asked(states, question, step)

    def _asked(self, states: Any, question: Any, step: Any) -> Any:
        n = self.lm.n_layers

        def of(layers: tuple[int, ...]) -> Signals:
            kept = {j: states[j] for j in (*layers, n)}
            return signals_of(
                self.lm, kept, question, step, layers=layers, reader=self.reader, texts=self.texts,
                places=self.places,
            )  # fmt: skip

        return of

    def add_exits(self, times: TimeModel | None, plain: list[Any]) -> None:
        of = self.signals(plain)
        shared = of(self.layers)
        cost = Cost.of(self.lm)
        bound = oracle(shared, cost)
        self.facts["oracle"] = {"mean_exit": float(bound.exit.mean()), "agrees": 1.0}
        for policy in self.policies():
            signals = of(policy.layers) if policy.layers and policy.layers != self.layers else shared
            outcome = apply_policy(signals, policy, cost, steps=self.tokens)
            widths = block_widths(outcome.exit, signals.question, signals.step)
            tally = Tally()
            fact: dict[str, Any] = {"tally": tally, "agrees": float(outcome.agrees.mean())}
            if times is not None:
                fact["predicted_ms"] = 1e3 * times.seconds(outcome, policy.kind, widths)
            self.facts[self.name(policy)] = fact

            def go(count: int, policy: ExitPolicy = policy, tally: Tally = tally) -> Any:
                tally.blocks = tally.unembeddings = tally.short = 0
                tally.exits = {}
                return generate(
                    self.lm, self.prompts, max_new_tokens=count, batch_size=1,
                    open_with=lambda ids: ExitPrefix(self.lm, ids, policy, reader=self.reader,
                                                     steps=self.tokens, tally=tally),
                )  # fmt: skip

            self.settings[self.name(policy)] = go

    def add_drafts(self, drafts: list[Draft], *, short: bool = False) -> None:
        """``short``: verified by the last layer's head, with the agreement of leaving there."""
        for draft in drafts:
            tally = SpeculationTally()
            name = f"draft {draft.name}" + (f", fixed:{self.lm.n_layers}" if short else "")
            agrees = self.facts[f"fixed:{self.lm.n_layers}"]["agrees"] if short else 1.0
            self.facts[name] = {"speculation": tally, "agrees": agrees}

            def go(count: int, draft: Draft = draft, tally: SpeculationTally = tally) -> Any:
                tally.__init__()  # type: ignore[misc]  # counts of the last turn only
                more = {"reader": self.reader, "short": short, "tally": tally}
                return speculate(self.lm, self.prompts, draft, max_new_tokens=count, **more)

            self.settings[name] = go

    def add_auto(self, text: list[int]) -> None:
        chosen, trials = best_draft(self.lm, self.prompts, reader=self.reader, text=text, max_new_tokens=24)
        for trial in trials:
            print(
                f"  auto tries {trial.name}: {trial.speedup:.2f} x plain, accepted {trial.acceptance:.2f}", flush=True
            )
        name = "auto: plain" if chosen is None else f"auto: {chosen.name}"
        tally = SpeculationTally()
        self.facts[name] = {"agrees": 1.0, **({} if chosen is None else {"speculation": tally})}

        def go(count: int) -> Any:
            if chosen is None:
                return self.settings["plain"](count)
            tally.__init__()  # type: ignore[misc]
            return speculate(self.lm, self.prompts, chosen, max_new_tokens=count, reader=self.reader, tally=tally)

        self.settings[name] = go

    def add_peer(self, exits: list[int]) -> None:
        """transformers itself; a way that it refuses is left out and said so."""
        lm = self.lm
        ids = [torch.tensor([lm.encode(p)], device=lm.device) for p in self.prompts]
        for layer in [None, *exits]:
            name = "transformers plain" if layer is None else f"transformers assistant_early_exit={layer}"

            def go(count: int, layer: int | None = layer) -> Any:
                more = {} if layer is None else {"assistant_early_exit": layer}
                with warnings.catch_warnings(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    for one in ids:
                        lm.model.generate(
                            one, attention_mask=torch.ones_like(one), max_new_tokens=count, min_new_tokens=count,
                            do_sample=False, pad_token_id=0, **more,
                        )  # fmt: skip

            try:
                go(2)
            except Exception as error:  # noqa: BLE001 - a peer's failure is a result
                self.facts[name] = {"failed": str(error).splitlines()[0][:100]}
                continue
            self.facts[name] = {"agrees": 1.0}
            self.settings[name] = go

    def run(self) -> list[dict[str, Any]]:
        seconds: dict[str, list[float]] = {name: [] for name in self.settings}
        for turn in range(self.repeats + 1):  # the first turn only warms up
            for name, go in self.settings.items():
                if turn > 1 and name.startswith("transformers assistant"):
                    continue  # many times slower than everything else: one turn is enough
                took = []
                for count in (1, self.tokens if turn else 4):
                    sync()
                    begun = time.perf_counter()
                    made = go(count)
                    sync()
                    took.append(time.perf_counter() - begun)
                total = sum(len(g.token_ids) for g in made) if made else self.tokens * len(self.prompts)
                later = max(1, total - len(self.prompts))
                if turn:
                    seconds[name].append((took[1] - took[0]) / later)
                self.facts.setdefault(name, {})["later"] = later
        rows = []
        for name, fact in self.facts.items():
            row: dict[str, Any] = {"setting": name, "agrees": fact.get("agrees")}
            if name not in seconds:
                rows.append({**row, **{k: v for k, v in fact.items() if k in ("failed", "mean_exit")}})
                continue
            row["ms"] = 1e3 * min(seconds[name])
            row["times_plain"] = min(seconds["plain"]) / min(seconds[name])
            if "tally" in fact:
                row |= {key: getattr(fact["tally"], key) / fact["later"] for key in ("blocks", "unembeddings", "short")}
            if "speculation" in fact:
                tally = fact["speculation"]
                row |= {key: getattr(tally, key) / fact["later"] for key in ("blocks", "unembeddings", "short")}
                row["accepted"] = fact["speculation"].acceptance
            if "predicted_ms" in fact:
                row["predicted_ms"] = fact["predicted_ms"]
                row["predicted_over_measured"] = fact["predicted_ms"] / row["ms"]
            rows.append(row)
        return rows


def measure(lm: Any, options: argparse.Namespace, heads: Any, peers: bool) -> list[dict[str, Any]]:
    prompts = prompts_for(lm, options)
    bench = Bench(lm, prompts, options.tokens, options.repeats, heads)
    bench.settings["plain"] = lambda count: generate(lm, prompts, max_new_tokens=count, batch_size=1)
    plain = bench.settings["plain"](options.tokens)
    bench.facts["plain"] = {"agrees": 1.0}
    times = measure_times(lm, reader=bench.reader, context=len(lm.encode(prompts[0])) + 16)
    bench.add_exits(times, plain)
    n = lm.n_layers
    exits = sorted({max(1, n // 4), n // 2, (3 * n) // 4})
    drafts = [Draft(exit=j) for j in (exits if heads is None else heads.layers[:-2])][:4]
    text = [t for answer in plain for t in answer.token_ids][:96]
    found = search_skips(lm, text, most=4 if options.quick else None)
    bench.add_drafts([*drafts, *([found] if found is not None else [])])
    if heads is not None and n in heads.layers:
        bench.add_drafts(drafts[:2], short=True)
    bench.add_auto(text)
    if peers:
        bench.add_peer(exits)
    return bench.run()


def easy_heads(lm: Any, options: argparse.Namespace) -> ExitHeads:
    """Heads at half depth and at the end, fitted on the prompts and the model's own answers."""
    prompts = prompts_for(lm, options)
    texts = [[*lm.encode(g.prompt), *g.token_ids] for g in generate(lm, prompts, max_new_tokens=options.tokens)]
    layers = [lm.n_layers // 2, lm.n_layers]
    passes = [lm.forward(torch.tensor([t], device=lm.device), layers=layers).hidden for t in texts * 4]
    states = {j: torch.cat([h[j][0] for h in passes]).float() for j in layers}
    return train_heads(lm, states, layers=layers, rank=8, epochs=1, batch=64, texts=texts * 4)


def prompts_for(lm: Any, options: argparse.Namespace) -> list[str]:
    texts = QUESTIONS[: options.prompts]
    return ["".join(qa_prompt(text, QA_PROMPT)) for text in texts] if lm.name.startswith("smol") else texts


def show(title: str, rows: list[dict[str, Any]], n: int) -> None:
    print(f"\n{title} ({n} blocks)")
    heads = ["setting", "agrees", "blocks", "unembeddings", "short", "accepted", "ms", "predicted_ms",
             "predicted_over_measured", "times_plain"]  # fmt: skip
    names = ["setting", "agrees", "blocks", "unembed", "short", "accepted", "ms/token", "predicted", "pred/meas",
             "× plain"]  # fmt: skip
    print(f"{names[0]:36}" + "".join(f"{name:>10}" for name in names[1:]))
    for row in rows:
        cells = "".join(f"{row[h]:10.3f}" if isinstance(row.get(h), float) else f"{'–':>10}" for h in heads[1:])
        print(f"{row['setting']:36}{cells}{'  ' + row['failed'] if 'failed' in row else ''}", flush=True)
    ratios = [row["predicted_over_measured"] for row in rows if "predicted_over_measured" in row]
    within = sum(abs(r - 1) <= 0.15 for r in ratios)
    print(f"predicted within 15% of measured: {within} of {len(ratios)} settings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a model, or tiny, or big (random weights)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the built-in or a named model")
    parser.add_argument("--heads")
    parser.add_argument("--adapter")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two prompts, twelve tokens, one turn")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", choices=("own", "easy"), help="one of the two tables")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.tokens, options.repeats = 2, 12, 1
    if options.model in ("tiny", "big"):
        lm = random_model(options.model, options.device)
    else:
        lm = load(options.model, device=options.device, dtype=options.dtype)
    from exitlens.studies.exits.files import load_adapted, load_heads

    if options.adapter:
        lm = load_adapted(lm, options.adapter)
    heads = load_heads(options.heads, lm) if options.heads else None
    print(f"{lm.name}, {lm.dtype}, {lm.device}, {torch.get_num_threads()} threads, batch 1")
    out = {"model": lm.name, "device": str(lm.device), "threads": torch.get_num_threads(), "own": [], "easy": []}
    if options.only != "easy":
        out["own"] = measure(lm, options, heads, not options.no_peers)
        show("the model itself", out["own"], lm.n_layers)
    if options.only != "own":
        simple = easy(lm)
        out["easy"] = measure(simple, options, easy_heads(simple, options), False)
        show("easy: the deep half nearly the identity", out["easy"], lm.n_layers)
    if options.json:
        Path(options.json).write_text(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
