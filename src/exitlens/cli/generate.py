"""`exitlens generate PROMPT --decoder dola:high`: continue a text with any decoder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from exitlens.cli._generate_exits import check_options, prepare, read_draft, read_exit
from exitlens.cli._load import load_model
from exitlens.cli.console import echo, given_text, print_json, safe, say
from exitlens.cli.help import add_command
from exitlens.cli.options import (
    CHECKS,
    DEFAULT_MODEL,
    AdapterOption,
    BaseOption,
    BatchSizeOption,
    ChatDateOption,
    DecoderOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    PenaltyOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    TrustOption,
    checked,
    option,
)
from exitlens.progress import counted, progress

if TYPE_CHECKING:
    from exitlens.decoding import Generation
    from exitlens.models.protocol import LayeredModel
    from exitlens.probes import SavedProbe

__all__ = ["register"]


SAMPLING, FASTER = "Sampling", "Fewer blocks a token"


TextArgument = Annotated[
    str | None, typer.Argument(help="A text to continue, or a question with --qa; - reads it from standard input.")
]
PromptsOption = Annotated[Path | None, option("prompts", help='JSON lines {"prompt": "..."}.')]
QaOption = Annotated[bool, typer.Option("--qa", help="Put the text as a question after six few-shot examples.")]
ChatOption = Annotated[bool, typer.Option("--chat", help="Put the text through the model's chat template.")]
StopOption = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; repeatable.")]
WatchOption = Annotated[
    Path | None,
    typer.Option("--watch", metavar="FILE", help="Each token with P(true) by a probe, see docs/probes.md."),
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0.0, help="0 is greedy decoding.", rich_help_panel=SAMPLING)
]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Sample from this share of the probability.", rich_help_panel=SAMPLING)
]
TopKOption = Annotated[
    int, typer.Option("--top-k", min=0, help="Sample from this many tokens (0: all).", rich_help_panel=SAMPLING)
]
GenerationConfigOption = Annotated[
    Literal["model"] | None,
    option("generation_config", metavar="model", help="The checkpoint's own penalties.", heading=SAMPLING),
]
ExitOption = Annotated[
    str | None,
    typer.Option(
        "--exit",
        metavar="POLICY",
        callback=checked(read_exit),
        help="Exit early: probability:0.95@15,20, fixed:3/4, ...",
        rich_help_panel=FASTER,
    ),
]
ExitCacheOption = Annotated[
    Literal["defer", "propagate", "recompute"],
    typer.Option(
        "--exit-cache",
        metavar="HOW",
        help="Keys of skipped blocks: defer (exact), propagate, recompute.",
        rich_help_panel=FASTER,
    ),
]
HeadsOption = Annotated[
    Path | None, typer.Option("--heads", metavar="FILE", help="Exit heads of `exits train`.", rich_help_panel=FASTER)
]
ExitLensOption = Annotated[
    str,
    typer.Option(
        "--exit-lens", metavar="LENS", help="Lens of exits without heads: jacobian, ...", rich_help_panel=FASTER,
        **CHECKS["lens"],
    ),
]  # fmt: skip
SpeculateOption = Annotated[
    str | None,
    typer.Option(
        "--speculate",
        metavar="DRAFT",
        callback=checked(read_draft),
        help="Draft and verify, lossless: exit=12, skip=a3/m5, clasp or auto.",
        rich_help_panel=FASTER,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(
        app, "generate", generate_command, "Continue a text, with any decoder, early exit or draft",
        'exitlens generate "The capital of France is" --decoder dola:high',
        'exitlens generate --qa "Do cats lay eggs?" --speculate auto',
    )  # fmt: skip


def generate_command(
    prompt: TextArgument = None,
    prompts: PromptsOption = None,
    decoder: DecoderOption = "vanilla",
    qa: QaOption = False,
    chat: ChatOption = False,
    chat_date: ChatDateOption = None,
    max_new_tokens: MaxNewTokensOption = 50,
    stop: StopOption = None,
    batch_size: BatchSizeOption = 8,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    watch: WatchOption = None,
    repetition_penalty: PenaltyOption = 1.0,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    generation_config: GenerationConfigOption = None,
    top_k: TopKOption = 0,
    exit_: ExitOption = None,
    exit_cache: ExitCacheOption = "defer",
    heads: HeadsOption = None,
    exit_lens: ExitLensOption = "logit",
    speculate: SpeculateOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """Continue a text; one prompt is written as it comes.

    --json prints an object a prompt: prompt, text, tokens, token_ids, finish, decoder, repetition_penalty,
    generation_config, chat_date; with --exit or --speculate also what was run; with --watch p_true, one a token.
    """
    from exitlens.data.prompts import QA_PROMPT, qa_prompt
    from exitlens.decoding.contrast.parse import check_decoder
    from exitlens.studies.answers.decoder_spec import DecoderSpec

    texts = _texts(prompt, prompts, qa, chat)
    spec = DecoderSpec.parse(decoder, repetition_penalty)
    check_decoder(spec.decoder, model)
    stops = [*(stop or ()), *(QA_PROMPT.stop if qa else ())]
    options: dict[str, Any] = {
        "decoder": spec.decoder, "max_new_tokens": max_new_tokens, "stop": stops, "repetition_penalty": spec.penalty,
        "sampling": _sampling(temperature, top_p, top_k, quiet), "seed": seed, "chat": chat,
        **({} if generation_config is None else {"generation_config": generation_config}),
    }  # fmt: skip
    skips = exit_ is not None or speculate is not None
    check_options(exit_, speculate, spec.decoder, spec.penalty, heads, exit_lens)
    _check_company(stops, generation_config, speculate, chat, chat_date)
    saved = None if watch is None else _watcher(watch, skips, qa)
    asked = ["".join(qa_prompt(text, QA_PROMPT)) for text in texts] if qa else texts

    lm = load_model(model, device, dtype, revision, trust_remote_code, quiet, base=base, adapter=adapter,
                    chat_date=chat_date)  # fmt: skip
    if saved is not None:
        from exitlens.cli._generate_watch import write_watched

        write_watched(lm, saved, texts, asked, options, as_json)
        return
    if len(asked) == 1 and not as_json and not skips:
        _stream(lm, asked[0], options)
        return

    with progress("generating", len(asked), quiet) as tick:
        more = counted(tick)
        if skips:
            skipping = (exit_, exit_cache, speculate, heads, exit_lens)
            answers, facts = prepare(lm, *skipping, options, batch_size, quiet, more)(asked)
        else:
            from exitlens.decoding import generate

            answers, facts = generate(lm, asked, batch_size=batch_size, progress=more, **options), {}
    if as_json:
        told = {"decoder": spec.decoder, "repetition_penalty": spec.penalty, "generation_config": generation_config,
                "chat_date": chat_date}  # fmt: skip
        print_json([_json(text, answer) | told | facts for text, answer in zip(texts, answers, strict=True)])
        return
    _write(texts, answers, facts, lm.n_layers, quiet)


def _texts(prompt: str | None, prompts: Path | None, qa: bool, chat: bool) -> list[str]:
    """The texts as they are given. Raises InputError for none, and for two ways of putting them."""
    from exitlens.data.prompts import read_prompts
    from exitlens.errors import InputError

    if (prompt is None) == (prompts is None):
        raise InputError('give one text, or --prompts FILE: exitlens generate "The capital of France is"')
    if qa and chat:
        raise InputError("--qa and --chat exclude each other: leave one out")
    if prompts is not None:
        return [p.prompt for p in read_prompts(prompts)]
    text = given_text(str(prompt))
    if not text:
        raise InputError("the text is empty: there is nothing to continue")
    return [text]


def _check_company(
    stops: Sequence[str], generation_config: str | None, speculate: str | None, chat: bool, chat_date: str | None
) -> None:
    """Raise InputError for options that cannot go together, and for an empty stop string."""
    from exitlens.decoding.stopping import StopStrings
    from exitlens.errors import InputError

    if generation_config is not None and speculate is not None:
        raise InputError("--speculate needs the model's own distribution: leave --generation-config out")
    if chat_date is not None and not chat:
        raise InputError("--chat-date does nothing without --chat: give --chat, or leave it out")
    StopStrings(stops, lambda _: "")


def _watcher(watch: Path, skips: bool, qa: bool) -> SavedProbe:
    from exitlens.cli._generate_watch import open_watcher

    return open_watcher(watch, skips, qa)


def _json(text: str, answer: Generation) -> dict[str, Any]:
    return {"prompt": text, "text": answer.text, "tokens": answer.tokens, "token_ids": answer.token_ids,
            "finish": answer.finish}  # fmt: skip


def _write(
    texts: Sequence[str], answers: Sequence[Generation], facts: dict[str, Any], n_layers: int, quiet: bool
) -> None:
    """The answers, each under its prompt where there are several, and what was saved on the way."""
    for text, answer in zip(texts, answers, strict=True):
        if len(answers) > 1:
            echo(f"> {text}")
        for line in answer.text.strip("\n").split("\n"):
            echo(line)
    if "blocks_a_token" in facts:
        exits = ", ".join(f"{count} at {layer}" for layer, count in facts["exits"].items()) or "none"
        say(f"{facts['blocks_a_token']:.1f} of {n_layers} blocks a token, {facts['unembeddings_a_token']:.1f} "
            f"unembeddings; answer tokens by exit layer: {exits}", quiet)  # fmt: skip
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
