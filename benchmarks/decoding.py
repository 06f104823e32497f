"""Decoding and scoring, each beside what is done without exitlens; the parts can be run alone.

    python benchmarks/decoding.py --only vanilla --batches 1 8 32
    python benchmarks/decoding.py --only prompts --dtype bfloat16  # reading prompts beside transformers' pass
    python benchmarks/decoding.py --only steps --dtype bfloat16 --batches 1 8 32  # compiled blocks beside one by one
    python benchmarks/decoding.py --only contrast            # DoLa, SLED, END against their floor and the published way
    python benchmarks/decoding.py --only truthfulqa --data TruthfulQA.csv
    python benchmarks/decoding.py --only mc --data TruthfulQA.csv
    python benchmarks/decoding.py --only text --data TruthfulQA.csv

Works that are compared take turns in one process, so that a busy machine slows all of them alike: every ratio is the
median over turns of two neighbours. No answer ends early (the end-of-text token is put out of reach), so that all
works generate the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

PARTS = ("vanilla", "prompts", "steps", "contrast", "truthfulqa", "mc", "text")
Work = Callable[[], Any]


def main() -> None:
    options = argparse.ArgumentParser(description="Speed of decoding and scoring.")
    options.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    options.add_argument("--model", default=None, help="default: the built-in model")
    options.add_argument("--dtype", default="float32", help="or bfloat16")
    options.add_argument("--data", default="facts-qa", help="default: the built-in questions; or a TruthfulQA csv")
    options.add_argument("--questions", type=int, default=None, help="of truthfulqa, mc and text; default: all")
    options.add_argument("--sample", type=int, default=32, help="questions of the slow ways, whose time is scaled up")
    options.add_argument("--batches", type=int, nargs="*", default=(1, 8, 32))
    options.add_argument("--lengths", type=int, nargs="*", default=(16, 64, 256, 1024), help="of prompts [tokens]")
    options.add_argument("--tokens", type=int, default=32, help="new tokens an answer")
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    import exitlens
    from exitlens import data
    from exitlens.models.hub.catalog import CATALOG

    questions = data.read_data(chosen.data, limit=chosen.questions).questions
    rows: list[dict[str, Any]] = []
    if set(chosen.only) - {"text"}:
        lm = exitlens.load(chosen.model or next(iter(CATALOG)), dtype=chosen.dtype)
        lm.model.generation_config.eos_token_id = 10**9
        print(f"{lm.name}, {lm.dtype}, {torch.get_num_threads()} threads, {len(questions)} questions")
        parts = {
            "vanilla": vanilla,
            "prompts": reading_prompts,
            "steps": steps,
            "contrast": contrast,
            "truthfulqa": truthfulqa,
            "mc": multiple_choice,
        }
        for name in chosen.only:
            if name in parts:
                rows += shown(name, parts[name](lm, questions, chosen))
    if "text" in chosen.only:
        rows += shown("text", text(questions, chosen))
    if chosen.json:
        print(json.dumps(rows, indent=2))


def shown(part: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    print(f"\n{part}")
    for row in rows:
        print("  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return [{"part": part, **row} for row in rows]


def taking_turns(works: dict[str, Work], turns: int) -> dict[str, list[float]]:
    """Seconds of each work, turn by turn, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def prompts(questions: Sequence[Any], n: int) -> list[str]:
    from exitlens.data.prompts import ZERO_SHOT_PROMPT, qa_prompt

    texts = ["".join(qa_prompt(q, ZERO_SHOT_PROMPT)) for q in questions]
    return [texts[i % len(texts)] + " " * (i // len(texts)) for i in range(n)]


def theirs(lm: Any, texts: Sequence[str], tokens: int) -> torch.Tensor:
    """transformers' own ``generate``, greedy, on one left-padded batch."""
    ids = [lm.encode(text) for text in texts]
    width = max(map(len, ids))
    batch = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    made: torch.Tensor = lm.model.generate(
        batch, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return made


# ---- the parts


def vanilla(lm: Any, questions: Sequence[Any], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second beside transformers' ``generate``."""
    from exitlens.decoding import generate

    rows = []
    for n in chosen.batches:
        texts = prompts(questions, n)
        works: dict[str, Work] = {
            "ours": lambda texts=texts, n=n: generate(lm, texts, max_new_tokens=chosen.tokens, batch_size=n),
            "generate": lambda texts=texts: theirs(lm, texts, chosen.tokens),
        }
        seconds = taking_turns(works, chosen.turns)
        made = n * chosen.tokens
        rows.append(
            {
                "batch": n,
                "ours tokens/s": made / statistics.median(seconds["ours"]),
                "generate tokens/s": made / statistics.median(seconds["generate"]),
                "times as fast": ratio(seconds["generate"], seconds["ours"]),
            }
        )
    return rows


def reading_prompts(lm: Any, questions: Sequence[Any], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The pass over prompts that fills the cache and gives the last token's logits, beside transformers' own."""
    from exitlens.data.prompts import qa_prompt
    from exitlens.decoding.session import open_prefix

    text = lm.encode("\n".join("".join(qa_prompt(q)) for q in questions))
    rows = []
    for n in chosen.batches:
        for length in chosen.lengths:
            ids = [[*text[i : i + length], *text[: length - len(text[i : i + length])]] for i in range(n)]

            def ours(ids: list[list[int]] = ids) -> None:
                session = open_prefix(lm, ()).session([lm.n_layers], 1)
                session.final(session.start(ids))

            @torch.no_grad()
            def theirs(ids: list[list[int]] = ids) -> None:
                lm.model(torch.tensor(ids), use_cache=True, logits_to_keep=1)

            seconds = taking_turns({"ours": ours, "transformers": theirs}, chosen.turns)
            rows.append({
                "batch": n,
                "tokens": length,
                "ours ms": 1e3 * statistics.median(seconds["ours"]),
                "transformers ms": 1e3 * statistics.median(seconds["transformers"]),
                "times as fast": ratio(seconds["transformers"], seconds["ours"]),
                "worst turn": min(b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)),
            })  # fmt: skip
    return rows


def steps(lm: Any, questions: Sequence[Any], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A token a row with its logits, by compiled blocks and by the same blocks one by one."""
    from exitlens.decoding.session import open_prefix
    from exitlens.models.native.runner import runner_of

    runner = runner_of(lm)
    compiled = None if runner is None else runner.compiled
    if runner is None or compiled is None:
        print("there are no compiled blocks here")
        return []
    rows = []
    for n in chosen.batches:
        session = open_prefix(lm, ()).session([lm.n_layers], 2 * (chosen.turns + 1) * chosen.tokens)
        session.start([lm.encode(text)[:32] for text in prompts(questions, n)])
        tokens = torch.full((n,), 5)

        def ours(session: Any = session, tokens: torch.Tensor = tokens) -> None:
            for _ in range(chosen.tokens):
                session.final(session.step(tokens))

        def one_by_one(work: Work = ours) -> None:
            runner.compiled = None
            work()
            runner.compiled = compiled

        seconds = taking_turns({"compiled": ours, "one by one": one_by_one}, chosen.turns)
        rows.append({
            "batch": n,
            "compiled ms": 1e3 * statistics.median(seconds["compiled"]) / chosen.tokens,
            "one by one ms": 1e3 * statistics.median(seconds["one by one"]) / chosen.tokens,
            "times as fast": ratio(seconds["one by one"], seconds["compiled"]),
        })  # fmt: skip
    return rows


def contrast(lm: Any, questions: Sequence[Any], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Time per step at batch 8, beside vanilla plus the bare product of the extra rows, and the published way."""
    from exitlens.compute.prepacked import packed
    from exitlens.decoding import early_layers, generate

    n, tokens = 8, chosen.tokens
    texts = prompts(questions, n)
    names = ("vanilla", "dola:high", "sled", "end")
    layers = {name: early_layers(lm, name) for name in names}
    # The quickest product that is known here, so that the floor is as low as it can be.
    product = packed(lm.weight) or (lambda x: F.linear(x, lm.weight))
    works: dict[str, Work] = {}
    for name in names:
        works[name] = lambda name=name: generate(lm, texts, decoder=name, max_new_tokens=tokens, batch_size=n)
        works[f"{name} first"] = lambda name=name: generate(lm, texts, decoder=name, max_new_tokens=1, batch_size=n)
        x = torch.randn(max(1, len(layers[name]) * n), lm.weight.shape[1], dtype=lm.dtype)
        works[f"{name} product"] = lambda x=x: [product(x) for _ in range(tokens - 1)]
    works["published dola"] = lambda: published_dola(lm, texts, layers["dola:high"], tokens)
    works["published dola first"] = lambda: published_dola(lm, texts, layers["dola:high"], 1)
    seconds = taking_turns(works, chosen.turns)

    def a_step(name: str) -> list[float]:
        return [(a - b) / (tokens - 1) for a, b in zip(seconds[name], seconds[f"{name} first"], strict=True)]

    rows = []
    for name in (*names, "published dola"):
        row: dict[str, Any] = {"decoder": name, "ms/step": 1e3 * statistics.median(a_step(name))}
        if layers.get(name):
            products = [t / (tokens - 1) for t in seconds[f"{name} product"]]
            floor = [v + p for v, p in zip(a_step("vanilla"), products, strict=True)]
            row |= {"extra rows": len(layers[name]) * n, "ratio to floor": ratio(a_step(name), floor)}
        row["ratio to vanilla"] = ratio(a_step(name), a_step("vanilla"))
        rows.append(row)
    return rows


@torch.no_grad()
def published_dola(lm: Any, texts: Sequence[str], candidates: Sequence[int], tokens: int) -> torch.Tensor:
    """As it was published: all positions of every candidate unembedded, divergence over all of them in float32.

    Rows are taken at equal length (the published code ran one at a time); its cache is transformers' own.
    """
    ids = [lm.encode(text) for text in texts]
    width = min(map(len, ids))
    batch, cache = torch.tensor([row[-width:] for row in ids]), None
    head = lm.model.get_output_embeddings()
    new = batch
    for _ in range(tokens):
        out = lm.model(new, past_key_values=cache, use_cache=True, output_hidden_states=True)
        cache = out.past_key_values
        early = {j: head(out.hidden_states[j]).float() for j in candidates}
        final = out.logits[:, -1].float()
        stacked = torch.stack([z[:, -1] for z in early.values()])
        p, q = final.softmax(-1), stacked.softmax(-1)
        m = 0.5 * (p[None] + q)
        first = F.kl_div(final.log_softmax(-1)[None], m, reduction="none").mean(-1)
        second = F.kl_div(stacked.log_softmax(-1), m, reduction="none").mean(-1)
        at = int((0.5 * (first + second)).mean(-1).argmax())
        scores = final.log_softmax(-1)
        limit = scores.sort(-1, descending=True).values[:, :1] - 2.302585
        scores = (scores - stacked[at].log_softmax(-1)).masked_fill(scores < limit, -torch.inf)
        new = scores.argmax(-1)[:, None]
        batch = torch.cat([batch, new], -1)
    return batch


def truthfulqa(lm: Any, questions: Sequence[Any], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """All questions under the six-shot prompt at batch 32, beside one ``generate`` a question (scaled up)."""
    from exitlens.data.prompts import qa_prompt
    from exitlens.decoding import generate

    texts = ["".join(qa_prompt(q)) for q in questions]
    few = texts[: chosen.sample]
    rows = []
    for decoder in ("vanilla", "dola:high"):
        layers = () if decoder == "vanilla" else tuple(range(lm.n_layers // 2 // 2 * 2, lm.n_layers, 2))
        start = time.perf_counter()
        generate(lm, texts, decoder=decoder, max_new_tokens=chosen.tokens, batch_size=32)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        for text in few:
            if layers:
                published_dola(lm, [text], layers, chosen.tokens)
            else:
                theirs(lm, [text], chosen.tokens)
        one_by_one = (time.perf_counter() - start) * len(texts) / len(few)
        rows.append(
            {
                "decoder": decoder,
                "questions": len(texts),
                "ours s": ours,
                f"one by one s (from {len(few)})": one_by_one,
                "times as fast": one_by_one / ours,
            }
        )
    return rows


def multiple_choice(lm: Any, questions: Sequence[Any], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """MC1-3 over all answers, beside one forward pass an answer (scaled up)."""
    from exitlens.data.prompts import qa_prompt
    from exitlens.studies.decoding.multiple_choice import mc_scores

    questions = [q for q in questions if q.correct and q.incorrect]
    few = questions[: chosen.sample]
    start = time.perf_counter()
    found = mc_scores(lm, questions)
    ours = time.perf_counter() - start

    @torch.no_grad()
    def total(question: Any, answer: str) -> float:
        context = lm.encode("".join(qa_prompt(question)))
        whole = lm.encode("".join(qa_prompt(question)) + f" {answer}")
        logs = lm.model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        return sum(float(logs[i - 1, whole[i]]) for i in range(len(context), len(whole)))

    worst, answers = 0.0, 0
    start = time.perf_counter()
    for i, question in enumerate(few):
        scores = [total(question, a) for a in (*question.correct, *question.incorrect)]
        answers += len(scores)
        both = [*found.correct[i], *found.incorrect[i]]
        worst = max(worst, *(abs(a - b) for a, b in zip(scores, both, strict=True)))
    looped = time.perf_counter() - start
    everything = sum(len(q.correct) + len(q.incorrect) for q in questions)
    scaled = looped * everything / answers
    return [
        {
            "questions": len(questions),
            "answers": everything,
            "ours s": ours,
            f"a pass an answer s (from {len(few)})": scaled,
            "times as fast": scaled / ours,
            "largest difference": worst,
            "mc1": float(found.mc1.mean()),
            "mc2": float(found.mc2.mean()),
            "mc3": float(found.mc3.mean()),
        }
    ]


def text(questions: Sequence[Any], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """BLEU and ROUGE-L of one answer a question against all its references."""
    from exitlens.scoring import Bleu, RougeL, truthfulqa_scores

    # Answers that share words with their references, as a model's do: those of the neighbouring question, and its own.
    answers = [f"{q.best} {other.best}" for q, other in zip(questions, questions[1:] + questions[:1], strict=True)]
    seconds = taking_turns({"scores": lambda: truthfulqa_scores(answers, questions, [Bleu(), RougeL()])}, chosen.turns)
    return [{"answers": len(answers), "seconds": statistics.median(seconds["scores"])}]


if __name__ == "__main__":
    main()
