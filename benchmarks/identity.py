"""Does greedy decoding give the very tokens that it should? Counted on real questions, not timed.

    python benchmarks/identity.py --data TruthfulQA.csv --questions 32 --lossless 100
    python benchmarks/identity.py --data TruthfulQA.csv --questions 0 --drafts exit=2 skip=a12/m20 --heads FILE

Plain decoding at batch 1 and 8 against transformers' own greedy ``generate`` (float32, one question at a time), and
drafting with the model itself at batch 1 and 4 against plain decoding. Where tokens differ, the gap between the two
best logits at that place says whether it was a tie that rounding broke.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

import exitlens
from exitlens.data import read_data
from exitlens.data.prompts import qa_prompt
from exitlens.decoding import generate
from exitlens.exits.draft import parse_draft
from exitlens.exits.shortlist import ExitReader
from exitlens.exits.speculation import SpeculationTally, speculate
from exitlens.studies.exits.files import load_heads


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--data", default="facts-qa")
    options.add_argument("--questions", type=int, default=32, help="beside transformers")
    options.add_argument("--lossless", type=int, default=100, help="questions of the drafts, beside plain decoding")
    options.add_argument("--drafts", nargs="*", default=("exit=20",), help="exit=LAYER, skip=a12/m20")
    options.add_argument("--heads", help="exit heads that the drafts read, made by `exitlens exits train`")
    options.add_argument("--tokens", type=int, default=32)
    chosen = options.parse_args()
    lm = exitlens.load(chosen.model, dtype="float32")
    reader = ExitReader(lm, load_heads(chosen.heads, lm)) if chosen.heads else None
    texts = [
        "".join(qa_prompt(q)) for q in read_data(chosen.data, limit=max(chosen.questions, chosen.lossless)).questions
    ]
    print(f"{lm.name}, float32, {torch.get_num_threads()} threads, {chosen.tokens} new tokens, six-shot prompt")

    few = texts[: chosen.questions]
    wanted = [theirs(lm, text, chosen.tokens) for text in few]
    for batch in (1, 8) if few else ():
        made = generate(lm, few, max_new_tokens=chosen.tokens, batch_size=batch)
        report(lm, f"plain, batch {batch}, beside transformers", few, wanted, [ids(g) for g in made])

    some = texts[: chosen.lossless]
    plain = [ids(g) for g in generate(lm, some, max_new_tokens=chosen.tokens, batch_size=8)]
    for text in chosen.drafts:
        for batch in (1, 4):
            tally, draft = SpeculationTally(), parse_draft(text)
            made = speculate(
                lm, some, draft, max_new_tokens=chosen.tokens, batch_size=batch, reader=reader, tally=tally
            )
            name = f"draft {text}, batch {batch}, beside plain (accepts {tally.acceptance:.2f})"
            report(lm, name, some, plain, [ids(g) for g in made])


def ids(made: Any) -> list[int]:
    return [int(t) for t in made.token_ids]


@torch.no_grad()
def theirs(lm: Any, text: str, tokens: int) -> list[int]:
    """New tokens of transformers' greedy ``generate``, without what it adds at the end of an answer."""
    given = torch.tensor([lm.encode(text)])
    out = lm.model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False)
    new = [int(t) for t in out[0, given.shape[1] :]]
    ends = [i for i, t in enumerate(new) if t in lm.eos_ids]
    return new[: ends[0]] if ends else new


def report(lm: Any, name: str, texts: Sequence[str], wanted: Sequence[list[int]], made: Sequence[list[int]]) -> None:
    """One line: how many answers are equal; then the gap of the best two logits where one is not."""
    same = sum(a == b for a, b in zip(wanted, made, strict=True))
    print(f"{name}: {same} of {len(wanted)} answers token-identical, {sum(map(len, wanted))} tokens", flush=True)
    for i, (a, b) in enumerate(zip(wanted, made, strict=True)):
        if a != b:
            at = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            with torch.no_grad():
                z = lm.model(torch.tensor([[*lm.encode(texts[i]), *a[:at]]])).logits[0, -1]
            top = z.float().topk(2).values
            print(f"  question {i}, token {at}: gap of the best two logits {float(top[0] - top[1]):.2e}")


if __name__ == "__main__":
    main()
