"""The options of `exitlens generate` that skip blocks: --exit (at a stated risk) and --speculate (lossless)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitlens.cli.console import say

if TYPE_CHECKING:
    from exitlens.exits.shortlist import ExitReader
    from exitlens.models.protocol import LayeredModel

__all__ = ["check_options", "prepare", "read_draft", "read_exit"]

# Answers every text; what was run, for --json.
Answer = Callable[[Sequence[str]], tuple[list[Any], dict[str, Any]]]


def check_options(
    exit_: str | None, speculate: str | None, decoder: str, penalty: float, heads: Path | None, lens: str
) -> None:
    """Raise InputError for options that exclude each other, before a model is loaded."""
    from exitlens.errors import InputError
    from exitlens.lenses.lens_words import check_lens_word

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
    if lens != "logit":
        if exit_ is None or speculate is not None or heads is not None:
            raise InputError(f"--exit-lens {lens[:80]} reads exits of --exit alone, without --heads and --speculate")
        check_lens_word(lens)


def read_exit(text: str) -> None:
    """Raise InputError for what is no exit policy."""
    from exitlens.exits.policies import parse_policy

    parse_policy(text)


def read_draft(text: str) -> None:
    """Raise InputError for what is no draft, nor auto."""
    from exitlens.exits.draft import parse_draft

    if text != "auto":
        parse_draft(text)


def prepare(
    lm: LayeredModel, exit_: str | None, cache: str, speculate: str | None, heads: Path | None, lens: str,
    options: dict[str, Any], batch_size: int, quiet: bool, progress: Callable[[int, int], None] | None,
) -> Answer:  # fmt: skip
    """How to answer under these options. Raises InputError, LayerError, ProbeError, UnsupportedModel."""
    from exitlens.errors import InputError
    from exitlens.exits.policies import parse_policy
    from exitlens.exits.shortlist import ExitReader
    from exitlens.lenses.lens_names import open_lens
    from exitlens.studies.exits.files import load_heads

    trained = None if heads is None else load_heads(heads, lm)
    reader = ExitReader(lm, trained, lens=open_lens(lens, lm))
    if exit_ is not None and speculate is None:
        return _exiting(lm, exit_, cache, reader, options, batch_size, progress)
    if exit_ is not None and reader.resolve(parse_policy(exit_)).layers != (lm.n_layers,):
        raise InputError(f"--exit {exit_} cannot be drafted for: with --speculate only fixed:{lm.n_layers} can")
    return _drafting(lm, str(speculate), reader, exit_ is not None, options, batch_size, quiet)


def _exiting(
    lm: LayeredModel, text: str, cache: Any, reader: ExitReader, options: dict[str, Any], batch_size: int, progress: Any
) -> Answer:
    from exitlens.decoding import generate
    from exitlens.exits.policies import parse_policy
    from exitlens.exits.session import ExitPrefix, Tally

    tally = Tally()

    def open_with(ids: Sequence[int]) -> ExitPrefix:
        return ExitPrefix(
            lm, ids, parse_policy(text), cache=cache, reader=reader, steps=options["max_new_tokens"], tally=tally
        )

    policy = open_with(()).policy  # refuses before any text is written

    def answer(asked: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
        made = generate(
            lm, asked, batch_size=batch_size, progress=progress, **options,
            open_with=open_with,
        )  # fmt: skip
        tokens = sum(tally.exits.values())
        later = max(1, tokens - len(made))  # the prompt's pass gives each answer's first token
        facts = {
            "exit": policy.name, "cache": cache, "exits": dict(sorted(tally.exits.items())),
            "blocks_a_token": tally.blocks / later, "unembeddings_a_token": tally.unembeddings / later,
            "shortlists_a_token": tally.short / later,
        }  # fmt: skip
        return made, facts

    return answer


def _drafting(
    lm: LayeredModel, text: str, reader: ExitReader, short: bool, options: dict[str, Any], batch_size: int, quiet: bool
) -> Answer:
    from exitlens.decoding import generate
    from exitlens.errors import UnsupportedModel
    from exitlens.exits.draft import Draft, parse_draft
    from exitlens.exits.draft_search import best_draft, undrafted
    from exitlens.exits.speculation import SpeculationTally, check_draft, speculate
    from exitlens.models.native.runner import runner_of

    shared = {key: options[key] for key in ("stop", "sampling", "seed", "chat")}
    if runner_of(lm) is None:
        raise UnsupportedModel(f"{lm.name}: its blocks cannot be run apart, so it cannot draft: leave --speculate out")
    fixed = None if text == "auto" else parse_draft(text)
    if fixed is not None:
        check_draft(lm, fixed)
    if isinstance(fixed, Draft) and fixed.exit is not None and reader.heads is not None:
        reader.heads.index(fixed.exit)  # refuses before any text is written

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
        facts |= {"speculate": draft.name, "acceptance": tally.acceptance, "rounds": tally.rounds}
        if tally.clasp is not None:
            facts["clasp"] = asdict(tally.clasp)
            say(f"  {tally.clasp.text}", quiet)
        return made, facts

    return answer
