"""`exitlens look PROMPT --choices a,b,c`: what every layer would have answered to one question, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    DEFAULT_MODEL,
    Column,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    TrustOption,
    echo,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from exitlens.study.look import Look

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("look")(look_command)


def look_command(
    prompt: Annotated[str | None, typer.Argument(help="A question.", show_default=False)] = None,
    choices: Annotated[
        str | None, typer.Option("--choices", "-c", help="Answers to compare, separated by commas (or by --separator).")
    ] = None,
    correct: Annotated[str | None, typer.Option("--correct", help="The right choice, marked in the table.")] = None,
    separator: Annotated[str, typer.Option("--separator", help="What separates choices.")] = ",",
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help='JSON lines {"prompt": ..., "choices": [...]}, used as they are.')
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Use the text as it is, without the six worked examples.")
    ] = False,
    layers: Annotated[str, typer.Option("--layers", help="Layers such as 0,8,16-20, or all.")] = "all",
    lens: Annotated[str, typer.Option("--lens", help="logit or raw.")] = "logit",
    rule: Annotated[
        str, typer.Option("--rule", help="What stands for a choice: auto, first-token or sequence.")
    ] = "auto",
    top: Annotated[int, typer.Option("--top", help="Likeliest tokens shown per layer.", min=1)] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the figures and tables of this question to a folder.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What every layer would have answered: the probability of each choice, and the likeliest tokens.

    --json prints a list with one object a prompt: prompt, question, lens, rule, layers (rows of question_id, lens,
    layer, choice, correct, rule, probability, share) and top (rows of layer, rank, token_id, token, probability).
    """
    from exitlens.errors import InputError
    from exitlens.study.inputs import prompt_records
    from exitlens.study.look import check_lens, check_rule, look, parse_layers, question_record

    if (prompt is None) == (prompts is None):
        raise InputError(
            'give one question, or --prompts FILE: exitlens look "How many legs has a cat?" --choices two,four'
        )
    records = prompt_records(str(prompts)) if prompts is not None else []
    if prompt is not None:
        listed = [c.strip() for c in choices.split(separator)] if choices is not None else []
        records = [question_record(prompt, listed, correct, plain=plain)]
    chosen_rule, chosen_lens = check_rule(rule), check_lens(lens)

    from exitlens.models import load

    say(f"loading {model}", quiet)
    lm = load(model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    numbers = parse_layers(layers, lm.n_layers)
    found = [look(lm, record, lens=chosen_lens, layers=numbers, rule=chosen_rule, top_k=top) for record in records]
    if out is not None:
        from exitlens.study.look import write_looks

        for path in write_looks(found, out):
            say(f"wrote {path}", quiet)
    if as_json:
        print_json([_json(each, model) for each in found])
        return
    for each in found:
        _print(each)


def _json(found: Look, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "question": found.record.question,
        "prompt": found.record.prompt,
        "lens": found.lens,
        "rule": found.rule,
        "layers": found.layers.to_dict("records"),
        "top": found.top.to_dict("records"),
    }


def _print(found: Look) -> None:
    choices = found.record.choices
    marked = [c + (" *" if right else "") for c, right in zip(choices, found.record.correct, strict=False)] or list(
        choices
    )
    rows: list[list[Any]] = []
    for layer in sorted({int(value) for value in found.top["layer"]}):
        top = found.top[found.top["layer"] == layer].sort_values("rank")
        tokens = "  ".join(f"{t!r} {p:.2f}" for t, p in zip(top["token"], top["probability"], strict=True))
        if choices:
            here = found.layers[found.layers["layer"] == layer]
            share = dict(zip(here["choice"], here["share"], strict=True))
            rows.append([layer, *(float(share[c]) for c in choices), tokens])
        else:
            rows.append([layer, tokens])
    columns = [Column("layer", "d"), *(Column(name, ".3f") for name in marked), Column("likeliest tokens", shrink=True)]
    if choices:
        last = found.layers[found.layers["layer"] == found.layers["layer"].max()]
        mass = float(last["probability"].sum())
        note = (
            f"share of each choice among the choices; by {found.rule}, {found.lens} lens; together they have "
            f"{mass:.3g} of the probability at the last layer" + ("; * right" if any(found.record.correct) else "")
        )
    else:
        note = f"likeliest next tokens, {found.lens} lens"
    print_table(columns, rows, title=found.record.question, note=note)
    echo()
