"""`exitlens read --text FILE --out DIR`: every layer's statistics at every token of any amount of text, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.models import OptionInfo

from exitlens.cli.console import (
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
    progress,
    say,
)
from exitlens.cli.look import LENS_HELP
from exitlens.lenses import STATS

if TYPE_CHECKING:
    from exitlens.studies.corpus.read import CorpusRead

__all__ = ["register"]

STATS_OPTION: OptionInfo = typer.Option("--stats")


def register(app: typer.Typer) -> None:
    """Add the command."""
    names = [name for name in STATS if name != "choices"]  # read anew each time: a script may have registered its own
    STATS_OPTION.help = f"Comma-separated: {', '.join(names)}."
    app.command("read")(read_command)


def read_command(
    text: Annotated[
        Path,
        typer.Option("--text", help="JSON lines or Parquet with a field 'text', or plain text.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the result; a stopped reading goes on there.")],
    stats: Annotated[str, STATS_OPTION] = "entropy",
    layers: Annotated[str, typer.Option("--layers", help="Layers such as 0,8,16-20, or all.")] = "all",
    lens: Annotated[str, typer.Option("--lens", help=LENS_HELP)] = "logit",
    top_k: Annotated[int, typer.Option("--top-k", help="Tokens that the statistic top_k keeps.")] = 5,
    field: Annotated[str, typer.Option("--field", help="Field or column that holds the text.")] = "text",
    split: Annotated[
        str, typer.Option("--split", help="Plain text: a text a line (lines), or between blank lines (paragraphs).")
    ] = "lines",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many lines or rows.")] = None,
    long: Annotated[
        str | None, typer.Option("--long", help="Texts over the context: refuse, or split into windows.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option("--overlap", help="Split, windows sharing so many tokens [a quarter].")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="fast (bf16 where the machine has it) or exact.")] = (
        "fast"
    ),
    shard_tokens: Annotated[
        int, typer.Option("--shard-tokens", min=1, help="Tokens in a file of the result; a kill costs one at most.")
    ] = 2048,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens in a forward pass.")] = 512,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a folder that holds another reading.")] = False,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read any amount of text layer by layer into Parquet: a row a text, position and layer, a column a statistic.

    Killed and started again with the same options it repeats nothing that is finished and ends with the same files.
    --json prints out, files, model, lens, texts, tokens, fresh_tokens, shards, saturation and by_layer (rows of means).
    """
    import shlex
    import sys
    import time

    from exitlens.data.texts import TextFile
    from exitlens.layer_range import parse_layers
    from exitlens.lenses.lens_names import check_lens_word, check_writable, open_lens
    from exitlens.studies.corpus.read import CorpusSettings, check_stats, read_corpus

    names = check_stats(tuple(name.strip().replace("-", "_") for name in stats.split(",") if name.strip()))
    check_lens_word(lens)
    wanted = parse_layers(layers)
    how = _long(long, overlap)
    source = TextFile(text, field=field, split=_split(split))
    check_writable(out / "manifest.json")
    say(f"looking through {text}", quiet)
    survey = source.survey(limit)

    from exitlens.models import load

    say(f"loading {model}", quiet)
    lm = load(model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    settings = CorpusSettings(
        layers=wanted.resolve(lm.n_layers, owner=lm.name), stats=names, lens=open_lens(lens, lm), top_k=top_k,
        precision=precision, long=how, overlap=overlap, limit=limit, shard_tokens=shard_tokens,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    begun = time.monotonic()
    with progress("reading, in characters", survey.characters, quiet) as tick:
        found = read_corpus(
            lm, source, out, settings, survey=survey, command=shlex.join(["exitlens", *sys.argv[1:]]), fresh=fresh,
            tick=tick,
        )  # fmt: skip
    if survey.empty:
        say(f"{survey.empty} of {survey.empty + survey.texts} texts are empty and were left out", quiet)
    for note in found.notes:
        say(note, quiet)
    _print(found, lm.name, lens, time.monotonic() - begun, as_json)


def _print(found: CorpusRead, model: str, lens: str, seconds: float, as_json: bool) -> None:
    rows = found.by_layer.astype(object).where(found.by_layer.notna(), None)
    shards = found.path / "shards"
    if as_json:
        facts: dict[str, Any] = {"out": found.path, "files": str(shards / "*.parquet"), "model": model, "lens": lens}
        facts |= {"texts": found.survey.texts, "tokens": found.tokens, "fresh_tokens": found.fresh_tokens}
        print_json(
            facts | {"shards": found.shards, "saturation": found.saturation, "by_layer": rows.to_dict("records")}
        )
        return
    shown = rows.drop(columns="tokens")
    columns = [Column(name.replace("_", " "), "d" if name == "layer" else ".4f") for name in shown.columns]
    speed = (
        f"{found.fresh_tokens} tokens read now, {found.fresh_tokens / max(seconds, 1e-9):.3g}/s"
        if found.fresh_tokens
        else "all read before"
    )
    print_table(
        columns,
        shown.to_numpy().tolist(),
        title=f"Means over {found.tokens} tokens of {found.survey.texts} texts: {model}, lens {lens}",
        note=speed + ("" if found.saturation is None else f"; mean saturation layer {found.saturation:.2f}"),
    )
    echo(f"{found.shards} files: {shards / '*.parquet'}")


def _split(text: str) -> Any:
    from exitlens.data.texts import SPLITS
    from exitlens.errors import InputError

    if text not in SPLITS:
        raise InputError(f"no way '{text}' to split plain text: use --split {' or '.join(SPLITS)}")
    return text


def _long(text: str | None, overlap: int | None) -> Any:
    """What happens to long texts: an overlap asks for windows."""
    from exitlens.errors import InputError

    if text not in (None, "refuse", "split"):
        raise InputError(f"--long '{text}' is unknown: use refuse or split")
    if text == "refuse" and overlap is not None:
        raise InputError(f"--overlap {overlap} is of no use with --long refuse: leave one of them out")
    return "refuse" if text in (None, "refuse") and overlap is None else "split"
