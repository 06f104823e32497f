"""`exitlens look TEXT`: what every layer would have said after each token, or which of some choices it takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli._load import load_model
from exitlens.cli.console import Column, echo, given_text, print_json, print_table, say
from exitlens.cli.help import add_command
from exitlens.cli.options import (
    DEFAULT_MODEL,
    BaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LayersOption,
    LensOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    RuleOption,
    TrustOption,
    option,
)
from exitlens.models.checkpoint.shape import check_depth

if TYPE_CHECKING:
    from pandas import DataFrame

    from exitlens.studies.layers.look import Look
    from exitlens.studies.layers.records import LookRecord

__all__ = ["register"]

PROMPT, SHOWN = "Prompt", "What is shown"


TextArgument = Annotated[
    str | None, typer.Argument(help="A text, or a question with --choices; - reads it from standard input.")
]
ChoicesOption = Annotated[str | None, typer.Option("--choices", "-c", metavar="LIST", help="Answers to compare.")]
CorrectOption = Annotated[
    str | None, typer.Option("--correct", metavar="CHOICE", help="The correct choice, marked in the table.")
]
OutOption = Annotated[Path | None, option("out", help="Write figures and tables to this folder, or to FILE.html.")]
SeparatorOption = Annotated[str, typer.Option("--separator", help="What separates choices.", rich_help_panel=PROMPT)]
PromptsOption = Annotated[
    Path | None,
    option("prompts", help='JSON lines {"prompt": ..., "choices": [...]}, used as they are.', heading=PROMPT),
]
PlainOption = Annotated[
    bool | None,
    typer.Option(
        "--plain/--qa", help="As it is, or after six few-shot examples [--qa with choices].", rich_help_panel=PROMPT
    ),
]
MapOption = Annotated[
    bool | None,
    typer.Option(
        "--map/--no-map", help="Token x layer: each layer's top-1 token [without choices].", rich_help_panel=SHOWN
    ),
]
ByOption = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="WHAT",
        help="layer, or component: what each block adds to the choices' logits.",
        rich_help_panel=SHOWN,
    ),
]
TopOption = Annotated[
    int, typer.Option("--top", min=1, help="Tokens shown per layer, most probable first.", rich_help_panel=SHOWN)
]
NoColorOption = Annotated[
    bool, typer.Option("--no-color", help="Shades of characters, no colours.", rich_help_panel=SHOWN)
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(
        app, "look", look_command, "What each layer would have said after each token of a text",
        'exitlens look "The capital of France is"',
        'exitlens look "How many legs has a cat?" -c two,four --correct four',
    )  # fmt: skip


def look_command(
    prompt: TextArgument = None,
    choices: ChoicesOption = None,
    correct: CorrectOption = None,
    layers: LayersOption = "all",
    lens: LensOption = "logit",
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    separator: SeparatorOption = ",",
    prompts: PromptsOption = None,
    plain: PlainOption = None,
    as_map: MapOption = None,
    by: ByOption = "layer",
    top: TopOption = 3,
    no_color: NoColorOption = False,
    rule: RuleOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """What every layer would have said: after each token of a text, or the probability of each choice.

    Without choices a map is printed: a row a layer, a column a token, in each cell the layer's top-1 next token on a
    bar as long as it is probable. --json prints a list, an object a prompt: prompt, question, lens, rule, layers
    (rows), top (rows), map (rows or null); docs/tables.md describes the columns. With --by component an object is
    model, question, prompt, logits (rows), components (rows).
    """
    from exitlens.cli._look_components import check_by, look_components
    from exitlens.lenses.lens_words import check_lens_word

    records = _records(prompt, prompts, None if choices is None else choices.split(separator), correct, plain)
    wanted = check_depth(model, layers)
    check_lens_word(lens)
    given = (("--layers", layers != "all"), ("--lens", lens != "logit"), ("--rule", rule != "auto"))
    unused = [name for name, used in (*given, ("--map", as_map is not None), ("--top", top != 3)) if used]
    components = check_by(by, records, unused=unused)
    if out is not None:
        from exitlens.storage.atomic import check_writable

        check_writable(out if out.suffix == ".html" else out / "look.parquet")

    from exitlens.lenses.lens_names import open_lens
    from exitlens.studies.layers.look import look

    lm = load_model(model, device, dtype, revision, trust_remote_code, quiet, base=base)
    if components:
        look_components(lm, records, out=out, as_json=as_json, quiet=quiet, name=model)
        return
    numbers = wanted.resolve(lm.n_layers, owner=lm.name)
    chosen_lens = open_lens(lens, lm)
    options: dict[str, Any] = {"lens": chosen_lens, "layers": numbers, "rule": rule, "top_k": top, "trace": as_map}
    found = [look(lm, record, **options) for record in records]
    if out is not None:
        from exitlens.studies.layers.look import write_looks

        for path in write_looks(found, out):
            say(f"wrote {path}", quiet)
    if as_json:
        print_json([_json(each, model) for each in found])
        return
    for each in found:
        if each.record.choices or each.map is None:
            _print(each)
        if each.map is not None:
            _print_map(each.map, each.lens, no_color)


def _records(
    prompt: str | None, prompts: Path | None, choices: list[str] | None, correct: str | None, plain: bool | None
) -> list[LookRecord]:
    """What is asked for, refused before a model is loaded."""
    from exitlens.errors import InputError
    from exitlens.studies.inputs import prompt_records
    from exitlens.studies.layers.choices import check_choices
    from exitlens.studies.layers.records import question_record

    if (prompt is None) == (prompts is None):
        raise InputError(
            'give one question, or --prompts FILE: exitlens look "How many legs has a cat?" --choices two,four'
        )
    records = prompt_records(str(prompts)) if prompts is not None else []
    if prompt is not None:
        listed = [choice.strip() for choice in choices or ()]
        records = [question_record(given_text(prompt), listed, correct, plain=not listed if plain is None else plain)]
    for record in records:
        if record.choices:
            check_choices(record.choices)
    return records


def _json(found: Look, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "question": found.record.question,
        "prompt": found.record.prompt,
        "lens": found.lens,
        "rule": found.rule,
        "layers": found.layers.to_dict("records"),
        "top": found.top.to_dict("records"),
        "map": None if found.map is None else found.map.to_dict("records"),
    }


def _print_map(frame: DataFrame, lens: str, no_color: bool) -> None:
    import shutil

    from exitlens.report.token_map import token_map

    colour = (
        sys.stdout.isatty() and not no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    columns = shutil.get_terminal_size((100, 24)).columns
    # What the map shows of texts is made visible by it; the escapes in it are its own colours.
    sys.stdout.write(token_map(frame, width=max(columns, 24), colour=colour) + "\n")
    shown = "on a bar as long as it is probable" if colour else "░▒▓█ from 20, 40, 60, 80% probability"
    echo(f"rows: layers, {lens} lens; under each token of the text the top-1 next token, {shown}")
    echo()


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
            rows.append([layer, *(float(share[c]) for c in choices), float(here["mass"].iloc[0]), tokens])
        else:
            rows.append([layer, tokens])
    columns = [Column("layer", "d"), *(Column(name, ".3f") for name in marked)]
    columns += [Column("mass", ".3f")] if choices else []
    columns.append(Column("top tokens", shrink=True))
    if choices:
        note = (
            f"share of each choice among the choices; by {found.rule}, {found.lens} lens; mass: all choices "
            "together, of the vocabulary's probability" + ("; * correct" if any(found.record.correct) else "")
        )
    else:
        note = f"top next tokens, {found.lens} lens"
    print_table(columns, rows, title=found.record.question, note=note)
    if found.rule == "first-token":
        several = {choice: tokens for choice, tokens in found.spellings.items() if len(tokens) > 1}
        told = "; ".join(f"{choice}: {' + '.join(map(repr, tokens))}" for choice, tokens in several.items())
        echo(f"spellings summed: {told}" if told else "each choice is one token: no other spelling was summed")
    echo()
