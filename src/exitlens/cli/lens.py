"""`exitlens lens compare | show | list | merge | export`: lenses fitted here or published elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exitlens.cli._lens_show import show
from exitlens.cli._settings import Own
from exitlens.cli.console import Column, echo, print_json, print_table, say
from exitlens.cli.help import add_command, new_group
from exitlens.cli.lens_train import train_command
from exitlens.cli.options import JsonOption, QuietOption
from exitlens.cli.study_command import LOADING, OUT, study_command

if TYPE_CHECKING:
    from exitlens.lenses import JacobianLens, TunedLens

__all__ = ["register"]


COMPARE = {
    "model": Own(),
    "data": Own(help="Sets of concept prompts, a folder or file of them; repeatable.", default=""),
    "compared_lenses": Own(
        ("--lens",), help="Lenses, comma-separated [raw, logit, and this model's own tuned and jacobian]."
    ),
    "layers": Own(help="Inner layers over which a concept's best rank is taken.", default="all: 1 to N-1"),
    "pass_at": Own(),
    "read_at": Own(),
    "limit": Own(help="At most this many prompts, the first of each set."),
    **OUT,
    "seed": Own(),
    **LOADING,
}
_ABOUT = """Which lens to trust: how often each ranks known concepts first at inner layers, with controls and intervals.

Reads sets of prompts with intermediate concepts (docs/lens_quality.md). --json prints model, findings (sentences) and
the tables lenses, lenses_pairs, lenses_layers, lenses_summary and lenses_sets, which docs/tables.md describes.
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = new_group(
        app, "lens", "Tuned and Jacobian lenses: train, compare, merge, export",
        about="Tuned and Jacobian lenses: train, compare, merge, export, see what a file holds.",
    )  # fmt: skip
    add_command(
        group, "train", train_command, "Fit a tuned or a Jacobian lens on text",
        "exitlens lens train --text corpus.txt",
        "exitlens lens train --method jacobian --self-text 200 --name mine",
    )  # fmt: skip
    add_command(
        group, "compare", study_command("lenses", COMPARE, _ABOUT),
        "Which lens ranks known concepts first, with controls",
        "exitlens lens compare --lens raw,logit,tuned --limit 20",
    )  # fmt: skip
    add_command(
        group, "show", show_command, "Where a lens comes from, and its KL on held-out text", "exitlens lens show tuned"
    )
    add_command(group, "list", list_command, "The lenses in the cache folder")
    add_command(
        group, "merge", merge_command, "Several Jacobian lenses of one model as one",
        "exitlens lens merge a.safetensors b.safetensors --name both",
    )  # fmt: skip
    add_command(
        group, "export", export_command, "A Jacobian lens in the layout that others publish",
        "exitlens lens export mine --out jlens.safetensors",
    )  # fmt: skip


def show_command(
    lens: Annotated[str, typer.Argument(help="A file, a published folder, or a name.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Where a lens comes from, and its KL to the last layer on held-out text.

    --json prints path, name, kind, fingerprint, n_layers, d_model and provenance; of a tuned lens rank and layers (rows
    of layer, before, after, chosen), of a Jacobian lens layers, estimator, texts and curve (a row each time the number
    of texts doubled).
    """
    from exitlens.lenses.lens_words import lens_named

    path = lens_named(lens)

    from exitlens.lenses.lens_names import load_lens

    show(load_lens(path), path, as_json)


def list_command(as_json: JsonOption = False) -> None:
    """The lenses in the cache folder, which --lens takes by name.

    --json prints folder and lenses (name, kind, model, layers, kl_before, kl_after, source).
    """
    from exitlens.lenses.lens_names import kind_of, load_lens
    from exitlens.lenses.lens_words import kept_lenses
    from exitlens.storage.cache_folder import cache_dir

    folder = cache_dir() / "lenses"
    rows = []
    for name, path in kept_lenses().items():
        found = load_lens(path)
        notes = found.provenance
        rows.append({"name": name, "kind": kind_of(found), "model": notes.get("model", ""), "layers": _depth(found),
                     "kl_before": _number(notes.get("kl_before")), "kl_after": _number(notes.get("kl_after")),
                     "source": notes.get("source", "")})  # fmt: skip
    if as_json:
        print_json({"folder": folder, "lenses": rows})
        return
    columns: list[str | Column] = ["name", "kind", "model", "layers", Column("KL before", ".3f"),
               Column("KL after", ".3f"), Column("text", shrink=True)]  # fmt: skip
    if not rows:
        echo(f"no lens is kept in {folder} yet: exitlens lens train makes one")
        return
    print_table(columns, [list(row.values()) for row in rows], note=f"kept in {folder}")


def merge_command(
    lenses: Annotated[list[str], typer.Argument(help="Jacobian lenses: files or names.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="File to write.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Keep it under this name in the cache folder.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """One Jacobian lens from several that were fitted to one model on different texts.

    Their means are weighted by their numbers of texts. --json prints what `lens show --json` prints.
    """
    from exitlens.errors import InputError
    from exitlens.lenses.jacobian.lens import merged
    from exitlens.lenses.lens_words import kept_path
    from exitlens.storage.atomic import check_writable

    if (out is None) == (name is None):
        raise InputError("give one of --out FILE and --name NAME")
    path = check_writable(out if out is not None else kept_path(str(name)))
    found = merged([_jacobian(word) for word in lenses], name=name or path.stem)
    found.save(path)
    show(found, path, as_json)
    if not as_json:
        say(f"use it: --lens {name or path}", quiet)


def export_command(
    lens: Annotated[str, typer.Argument(help="A Jacobian lens: a file or a name.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.", show_default=False)],
    layout: Annotated[
        Literal["jlens", "jlens-pickle"],
        typer.Option("--format", help="The published fields: as safetensors, or as the pickle that others read."),
    ] = "jlens",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """A Jacobian lens in the layout that others publish: matrices in float16, by the number of the block.

    Block l there is counted from 0 and stands for layer l + 1 here. --json prints path, format and left_out (a line on
    what the layout cannot hold, or null).
    """
    from exitlens.lenses.jacobian.published import write_published
    from exitlens.storage.atomic import check_writable

    path = check_writable(out)
    note = write_published(_jacobian(lens), path, pickled=layout == "jlens-pickle")
    if as_json:
        print_json({"path": path, "format": layout, "left_out": note or None})
        return
    if note:
        say(note, quiet)
    echo(str(path))


def _jacobian(word: str) -> JacobianLens:
    """The Jacobian lens that a word means. Raises InputError for one of another kind."""
    from exitlens.errors import InputError
    from exitlens.lenses.jacobian.lens import JacobianLens
    from exitlens.lenses.lens_names import load_lens
    from exitlens.lenses.lens_words import lens_named

    found = load_lens(lens_named(word))
    if not isinstance(found, JacobianLens):
        raise InputError(f"'{word[:80]}' is a tuned lens: only Jacobian lenses are merged and exported")
    return found


def _depth(lens: TunedLens | JacobianLens) -> int:
    from exitlens.lenses import TunedLens

    if isinstance(lens, TunedLens):
        return lens.n_layers
    return lens.depth if lens.depth is not None else lens.layers[-1]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
