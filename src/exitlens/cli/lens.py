"""`exitlens lens train | show | list`: tuned lenses, trained here or published elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli._load import load_model
from exitlens.cli.console import Column, echo, print_json, print_table, say
from exitlens.cli.help import add_command, new_group
from exitlens.cli.options import (
    DEFAULT_MODEL,
    BaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    SelfTextOption,
    TextFieldOption,
    TrustOption,
    option,
)
from exitlens.progress import StageProgress, counted, progress

if TYPE_CHECKING:
    from exitlens.lenses import TunedLens

__all__ = ["register"]

_PHASES = {"collect": "reading states", "steps": "training"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = new_group(app, "lens", "Tuned lenses: train one, see what a file holds.")
    add_command(group, "train", train_command)
    add_command(group, "show", show_command)
    add_command(group, "list", list_command)


def train_command(
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="JSON lines or Parquet with a field 'text', or plain text."),
    ] = None,
    self_text: SelfTextOption = 0,
    out: Annotated[
        Path | None, option("out", metavar="FILE", help="File to write [kept as this model's own: --lens tuned].")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Keep it under this name in the cache folder: --lens NAME.")
    ] = None,
    field: TextFieldOption = "text",
    tokens: Annotated[int, typer.Option("--tokens", min=16, help="Tokens of text used at most.")] = 16_384,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps at most.")] = 300,
    minutes: Annotated[float, typer.Option("--minutes", help="Time for collecting states and training.")] = 10.0,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """Train affine translators for all layers together: KL to the last layer, measured on held-out text.

    A layer keeps what does best there: nothing, the closed-form start, or the trained translator. Training ends after
    --steps, after --minutes, or when no layer gets better. --json prints what `lens show --json` prints.
    """
    from exitlens.data.texts import TextFile
    from exitlens.errors import InputError
    from exitlens.lenses import lens_names as lens_files
    from exitlens.storage.atomic import check_writable
    from exitlens.studies import lens_training

    if (text is None) == (self_text == 0):
        raise InputError("give one of --text FILE and --self-text N")
    if out is not None and name is not None:
        raise InputError(f"give one of --out '{out}' and --name '{name}'")
    if minutes <= 0:
        raise InputError(f"--minutes {minutes:g} leaves no time to train: give more than 0")
    path = out if out is not None else None if name is None else lens_files.kept_path(name)
    if path is not None:
        path = check_writable(path)
    source = None if text is None else TextFile(text, field=field)
    if source is not None:
        source.survey()

    lm = load_model(model, device, dtype, revision, trust_remote_code, quiet, base=base)
    path = lens_files.own_path(lm) if path is None else path
    if source is not None:
        pieces, origin = lens_training.pieces_of_file(lm, source, tokens)
    else:
        with progress("writing text", self_text, quiet) as tick:
            pieces, origin = lens_training.pieces_of_own(lm, self_text, tokens, seed=seed, progress=counted(tick))
    with StageProgress(quiet) as bars:
        lens, _ = lens_training.train_and_save(
            lm, pieces, path, name=name or path.stem, source=origin, steps=steps, minutes=minutes, seed=seed,
            progress=lambda phase, done, total: bars.at(_PHASES.get(phase, phase), done, total),
        )  # fmt: skip
    _show(lens, path, as_json)
    if not as_json:
        word = name if name is not None else path if out is not None else "tuned"
        say(f"use it: exitlens look TEXT --model {model} --lens {word}", quiet)


def show_command(
    lens: Annotated[str, typer.Argument(help="A file, a published folder, or a name.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Where a lens comes from, and its KL to the last layer on held-out text, before and after.

    --json prints path, name, fingerprint, n_layers, d_model, rank, provenance and layers (rows of layer, before, after,
    chosen).
    """
    from exitlens.lenses import TunedLens
    from exitlens.lenses.lens_names import lens_named

    path = lens_named(lens)
    _show(TunedLens.load(path), path, as_json)


def list_command(as_json: JsonOption = False) -> None:
    """The lenses in the cache folder, which --lens takes by name.

    --json prints folder and lenses (name, model, layers, kl_before, kl_after, source).
    """
    from exitlens.lenses import TunedLens
    from exitlens.lenses.lens_names import kept_lenses
    from exitlens.storage.cache_folder import cache_dir

    folder = cache_dir() / "lenses"
    rows = []
    for name, path in kept_lenses().items():
        found = TunedLens.load(path)
        notes = found.provenance
        rows.append({"name": name, "model": notes.get("model", ""), "layers": found.n_layers,
                     "kl_before": _number(notes.get("kl_before")), "kl_after": _number(notes.get("kl_after")),
                     "source": notes.get("source", "")})  # fmt: skip
    if as_json:
        print_json({"folder": folder, "lenses": rows})
        return
    columns: list[str | Column] = ["name", "model", "layers", Column("KL before", ".3f"), Column("KL after", ".3f"),
               Column("text", shrink=True)]  # fmt: skip
    print_table(columns, [list(row.values()) for row in rows], note=f"kept in {folder}")


def _show(lens: TunedLens, path: Path, as_json: bool) -> None:
    notes = dict(lens.provenance)
    before, after, chosen = (_listed(notes.pop(key, None)) for key in ("before", "after", "chosen"))
    layers = [
        {"layer": layer, "before": b, "after": a, "chosen": c}
        for layer, (b, a, c) in enumerate(zip(before, after, chosen, strict=False))
    ]
    rank = None if lens.down is None else int(lens.down.shape[1])
    facts: dict[str, Any] = {"path": path, "name": lens.name, "fingerprint": lens.fingerprint or None,
                             "n_layers": lens.n_layers, "d_model": lens.d_model, "rank": rank}  # fmt: skip
    if as_json:
        print_json({**facts, "provenance": notes, "layers": layers})
        return
    told = {**facts, **notes}
    print_table(["what", "value"], [[key.replace("_", " "), str(v)] for key, v in told.items() if v is not None])
    if layers:
        print_table(
            [Column("layer", "d"), Column("KL before", ".3f"), Column("KL after", ".3f"), "kept"],
            [list(row.values()) for row in layers],
            note=f"nats per token to the last layer, on {notes.get('test_tokens', '?')} held-out tokens",
        )
    else:
        echo("it carries no measurements: train one here to have them")


def _listed(text: str | None) -> list[Any]:
    """A list out of a lens's notes; what is not one (a file from elsewhere) counts as none."""
    try:
        value = json.loads(text) if text is not None else []
    except ValueError:
        return []
    return value if isinstance(value, list) else []


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
