"""The options of `exitlens generate` that skip blocks: --exit (at a stated risk) and --speculate (lossless)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitlens.cli.console import say

if TYPE_CHECKING:
    from exitlens.exits.speculation import Draft
    from exitlens.models.protocol import LayeredModel

__all__ = ["check_options", "prepare", "read_draft", "read_exit"]

# Answers every text; what was run, for --json.
Answer = Callable[[Sequence[str]], tuple[list[Any], dict[str, Any]]]


def check_options(exit_: str | None, speculate: str | None, decoder: str, penalty: float, heads: Path | None) -> None:
    """Raise InputError for options that exclude each other, before a model is loaded."""
    from exitlens.errors import InputError

    if exit_ is not None and speculate is not None and (heads is None or not exit_.startswith("fixed:")):
        raise InputError(
            "--exit and --speculate exclude each other (but for fixed:LAST with --heads, which verifies by the last "
            "layer's head): leave one out"
        )
    if (exit_ or speculate) and decoder != "vanilla":
        raise InputError(f"--exit and --speculate skip layers that decoder '{decoder}' needs: use --decoder vanilla")
    if speculate is not None and penalty != 1.0:
        raise InputError(
            f"--speculate needs the model's own distribution, not repetition penalty {penalty:g}: leave it 1"
        )
    if heads is not None and exit_ is None and speculate is None:
        raise InputError("--heads does nothing without --exit or --speculate: give one")


def read_exit(text: str) -> None:
    """Raise InputError for what is no exit policy."""
    from exitlens.exits.policy_text import read_policy

    read_policy(text)


def prepare(
    lm: LayeredModel, exit_: str | None, cache: str, speculate: str | None, heads: Path | None, options: dict[str, Any],
    batch_size: int, quiet: bool, progress: Callable[[int, int], None] | None,
) -> Answer:  # fmt: skip
    """How to answer under these options. Raises InputError, LayerError, ProbeError, UnsupportedModel."""
    from exitlens.errors import InputError
    from exitlens.studies.exits.files import load_heads

    trained = None if heads is None else load_heads(heads, lm)
    reader = None if trained is None else trained.reader(lm)
    if exit_ is not None and speculate is None:
        scorer = None if trained is None else trained.scorer(lm)
        return _leaving(lm, exit_, cache, trained, reader, scorer, options, batch_size, progress)
    if exit_ is not None and exit_ != f"fixed:{lm.n_layers}":
        raise InputError(f"--exit {exit_} cannot be drafted for: with --speculate only fixed:{lm.n_layers} can")
    return _drafting(lm, str(speculate), trained, exit_ is not None, options, batch_size, quiet)


def _leaving(
    lm: LayeredModel, text: str, cache: str, heads: Any, reader: Any, scorer: Any, options: dict[str, Any],
    batch_size: int, progress: Any,
) -> Answer:  # fmt: skip
    from dataclasses import replace

    from exitlens.decoding import generate
    from exitlens.errors import InputError
    from exitlens.exits.policies import parse_policy
    from exitlens.exits.session import ExitPrefix, Tally
    from exitlens.studies.exits.study import exit_layers

    policy = parse_policy(text, lm.n_layers, last=heads is not None and lm.n_layers in heads.layers)
    if heads is not None and policy.kind != "never":
        policy = policy if policy.layers else replace(policy, layers=exit_layers(lm, None, heads))
        for layer in policy.layers:
            if layer not in heads.layers:
                raise InputError(
                    f"no exit head at layer {layer}: there are heads at {', '.join(map(str, heads.layers))}"
                )
    tally = Tally()
    make: Any = {"cache": cache, "reader": reader, "scorer": scorer, "steps": options["max_new_tokens"], "tally": tally}
    ExitPrefix(lm, (), policy, **make)  # refuses before any text is written

    def answer(asked: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
        made = generate(
            lm, asked, batch_size=batch_size, progress=progress, **options,
            open_with=lambda ids: ExitPrefix(lm, ids, policy, **make),
        )  # fmt: skip
        tokens = sum((tally.exits or {}).values())
        later = max(1, tokens - len(made))  # the prompt's pass gives each answer's first token
        facts = {
            "exit": policy.name, "cache": cache, "exits": dict(sorted((tally.exits or {}).items())),
            "blocks_a_token": tally.blocks / later, "unembeddings_a_token": tally.unembeddings / later,
            "shortlists_a_token": tally.short / later,
        }  # fmt: skip
        return made, facts

    return answer


def _drafting(
    lm: LayeredModel, text: str, heads: Any, short: bool, options: dict[str, Any], batch_size: int, quiet: bool
) -> Answer:
    from exitlens.decoding import generate
    from exitlens.errors import UnsupportedModel
    from exitlens.exits.draft_search import best_draft, undrafted
    from exitlens.exits.speculation import SpeculationTally, speculate
    from exitlens.models.native.runner import runner_of

    reader = None if heads is None else heads.reader(lm)
    shared = {key: options[key] for key in ("stop", "sampling", "seed", "chat")}
    if runner_of(lm) is None:
        raise UnsupportedModel(f"{lm.name}: its blocks cannot be run apart, so it cannot draft: leave --speculate out")
    fixed = None if text == "auto" else parse_draft(text, lm.n_layers)
    if fixed is not None and fixed.exit is not None and heads is not None:
        heads.index(fixed.exit)  # refuses before any text is written

    def answer(asked: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
        draft = fixed
        facts: dict[str, Any] = {}
        if draft is None:
            say("measuring which draft is fastest on these prompts", quiet)
            begun = time.perf_counter()
            sample = list(asked[:4])
            known = [token for prompt in sample for token in lm.encode(prompt)][:128]
            draft, trials = best_draft(
                lm, sample, reader=reader, text=known, batch_size=min(batch_size, len(sample)),
                max_new_tokens=min(24, options["max_new_tokens"]), short=short, options=shared,
            )  # fmt: skip
            say(f"  plain: {1e3 * trials[0].seconds:.1f} ms a token", quiet)
            for t in trials[1:]:
                say(f"  {t.name}: {t.speedup:.2f} times as fast, accepted {t.acceptance:.0%}", quiet)
            facts["measuring_seconds"] = time.perf_counter() - begun
            facts["trials"] = [
                {"name": t.name, "seconds": t.seconds, "speedup": t.speedup, "acceptance": t.acceptance} for t in trials
            ]
            said = "no draft beats plain decoding: decoding plainly" if draft is None else f"drafting with {draft.name}"
            say(f"{said} (measured in {facts['measuring_seconds']:.0f} s)", quiet)
        if draft is None:
            alone = undrafted(lm, reader, short=short)
            return generate(lm, asked, batch_size=batch_size, open_with=alone, **options), {
                **facts,
                "speculate": "none",
            }
        tally = SpeculationTally()
        made = speculate(
            lm, asked, draft, max_new_tokens=options["max_new_tokens"], batch_size=batch_size, reader=reader,
            short=short, tally=tally, **shared,
        )  # fmt: skip
        return made, {**facts, "speculate": draft.name, "acceptance": tally.acceptance, "rounds": tally.rounds}

    return answer


def read_draft(text: str) -> dict[str, Any]:
    """``exit=12`` or ``skip=a3/m5`` (attention of block 3, MLP of block 5) or ``auto``, without a model.

    Raises InputError.
    """
    from exitlens.errors import InputError

    kind, _, value = text.partition("=")
    try:
        if text == "auto":
            return {}
        if kind == "exit":
            return {"exit": int(value)}
        parts = [part.strip() for part in value.split("/") if part.strip()]
        if kind != "skip" or any(part[0] not in "am" for part in parts):
            raise ValueError(text)
        skipped = {letter: tuple(sorted(int(p[1:]) for p in parts if p[0] == letter)) for letter in "am"}
    except ValueError:
        raise InputError(f"draft '{text[:80]}' is not understood: write exit=12, skip=a3/m5 or auto") from None
    return {"skip_attention": skipped["a"], "skip_mlp": skipped["m"]}


def parse_draft(text: str, n_layers: int) -> Draft:
    """A draft for a model of this depth. Raises InputError, LayerError."""
    from exitlens.exits.speculation import Draft

    draft = Draft(**read_draft(text))
    draft.first(n_layers)
    return draft
