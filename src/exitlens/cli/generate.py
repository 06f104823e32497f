"""`exitlens generate PROMPT --decoder dola:high`: continue a text with any decoder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli.console import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    TrustOption,
    counted,
    echo,
    print_json,
    progress,
    safe,
    say,
)

if TYPE_CHECKING:
    from exitlens.models.protocol import LayeredModel

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(generate_command)


def generate_command(
    prompt: Annotated[str | None, typer.Argument(help="A text to continue, or a question with --qa.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help='JSON lines {"prompt": "..."}.')] = None,
    decoder: Annotated[
        str,
        typer.Option(
            "--decoder", help="vanilla, dola:high, dola:4/8/12, static:16, sled, ...; NAME@1.2 sets a penalty."
        ),
    ] = "vanilla",
    qa: Annotated[bool, typer.Option("--qa", help="Put the text as a question under six worked examples.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Put the text through the model's chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 50,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End the answer before this text (repeatable).")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="1 is none.")] = 1.0,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the best token each time.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample from this share of the probability.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Sample from this many tokens (0: all).")] = 0,
    exit_: Annotated[
        str | None, typer.Option("--exit", help="Leave early: probability:0.95@15/20, fixed:20, classifier:0.9, ...")
    ] = None,
    exit_cache: Annotated[str, typer.Option("--exit-cache", help="defer (exact), propagate or recompute.")] = "defer",
    heads: Annotated[Path | None, typer.Option("--heads", help="Exit heads of `exits train`.")] = None,
    speculate: Annotated[
        str | None, typer.Option("--speculate", help="Draft and verify, lossless: exit=12, skip=a3/m5 or auto.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="LoRA folder of `exits adapt` or of peft.")] = None,
    watch: Annotated[
        Path | None, typer.Option("--watch", help="Each token with P(true) by this probe of `probe --bare --save`.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts generated together.")] = 8,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a text. One prompt is written as it comes; many are batched.

    --json prints a list with one object a prompt: prompt, text, tokens, token_ids, finish (stop, eos or length),
    decoder, repetition_penalty; with --exit or --speculate also what was run; with --watch p_true, one a token.
    """
    from exitlens.data.prompts import QA_PROMPT, qa_prompt, read_prompts
    from exitlens.decoding import generate
    from exitlens.decoding.stopping import StopStrings
    from exitlens.errors import InputError
    from exitlens.studies.answers.stage import DecoderSpec

    if (prompt is None) == (prompts is None):
        raise InputError('give one text, or --prompts FILE: exitlens generate "The capital of France is"')
    if qa and chat:
        raise InputError("--qa and --chat exclude each other: leave one out")
    texts = [p.prompt for p in read_prompts(prompts)] if prompts is not None else [str(prompt)]
    spec = DecoderSpec.parse(decoder, repetition_penalty)
    sampling = _sampling(temperature, top_p, top_k, quiet)
    from exitlens.cli._generate_exits import check_options, prepare

    check_options(exit_, speculate, spec.decoder, spec.penalty, heads)
    saved = None
    if watch is not None:
        from exitlens.cli._generate_watch import open_watcher

        saved = open_watcher(watch, exit_ is not None or speculate is not None)
    asked = ["".join(qa_prompt(text, QA_PROMPT)) for text in texts] if qa else texts
    stops = [*(stop or ()), *(QA_PROMPT.stop if qa else ())]
    StopStrings(stops, lambda _: "")  # an empty one is told before the model is loaded

    from exitlens.models import load

    say(f"loading {model}", quiet)
    lm = load(model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    if adapter is not None:
        from exitlens.studies.exits.files import load_adapted

        lm = load_adapted(lm, adapter)
    options: dict[str, Any] = {
        "decoder": spec.decoder,
        "max_new_tokens": max_new_tokens,
        "stop": stops,
        "repetition_penalty": spec.penalty,
        "sampling": sampling,
        "seed": seed,
        "chat": chat,
    }
    if saved is not None:
        from exitlens.cli._generate_watch import write_watched

        write_watched(lm, saved, texts, asked, options, as_json)
        return
    skips = exit_ is not None or speculate is not None
    if len(asked) == 1 and not as_json and not skips:
        _stream(lm, asked[0], options)
        return
    with progress("generating", len(asked), quiet) as tick:
        more = counted(tick)
        facts: dict[str, Any] = {}
        if skips:
            answer_all = prepare(lm, exit_, exit_cache, speculate, heads, options, batch_size, quiet, more)
            answers, facts = answer_all(asked)
        else:
            answers = generate(lm, asked, batch_size=batch_size, progress=more, **options)
    if as_json:
        print_json(
            [
                {
                    "prompt": text,
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "token_ids": answer.token_ids,
                    "finish": answer.finish,
                    "decoder": spec.decoder,
                    "repetition_penalty": spec.penalty,
                    **facts,
                }
                for text, answer in zip(texts, answers, strict=True)
            ]
        )
        return
    for text, answer in zip(texts, answers, strict=True):
        if len(answers) > 1:
            echo(f"> {text}")
        for line in answer.text.strip("\n").split("\n"):
            echo(line)
    if "blocks_a_token" in facts:
        say(f"{facts['blocks_a_token']:.1f} of {lm.n_layers} blocks a token, {facts['unembeddings_a_token']:.1f} "
            f"unembeddings; answer tokens by exit: {facts['exits']}", quiet)  # fmt: skip
    elif "acceptance" in facts:
        say(f"drafts ({facts['speculate']}) accepted: {facts['acceptance']:.0%}", quiet)


def _stream(lm: LayeredModel, prompt: str, options: dict[str, Any]) -> None:
    """Write an answer as it comes; control characters are written out, line breaks kept."""
    from exitlens.decoding import stream

    for piece in stream(lm, prompt, **options):
        if isinstance(piece, str):
            sys.stdout.write("\n".join(safe(line) for line in piece.split("\n")))
            sys.stdout.flush()
    sys.stdout.write("\n")


def _sampling(temperature: float, top_p: float, top_k: int, quiet: bool) -> Any:
    from exitlens.decoding import Sampling

    asked = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    if asked.greedy and asked != Sampling():
        say("--top-p and --top-k change nothing at temperature 0 (greedy): give --temperature too", quiet)
    return None if asked.greedy else asked
