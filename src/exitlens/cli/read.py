"""`exitlens read --text FILE --out DIR`: every layer's statistics at every token of any amount of text, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.models import OptionInfo

from exitlens.cli.console import Column, echo, print_json, print_table, say
from exitlens.cli.help import add_command
from exitlens.cli.options import (
    DEFAULT_MODEL,
    BaseOption,
    DeadlineOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    JsonOption,
    LayersOption,
    LensOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    TextFieldOption,
    TrustOption,
    WorkersOption,
    option,
)
from exitlens.lenses import STATS
from exitlens.models.checkpoint.shape import check_depth
from exitlens.progress import StageProgress

if TYPE_CHECKING:
    from exitlens.studies.corpus.read import CorpusRead

__all__ = ["register"]

STATS_OPTION: OptionInfo = typer.Option("--stats", metavar="LIST")


TEXTS, WORK = "Texts", "Work"


TextsOption = Annotated[
    Path, typer.Option("--text", metavar="FILE", help="JSON lines or Parquet with a field 'text', or plain text.")
]
OutOption = Annotated[Path, option("out", help="Folder of the result; a stopped reading continues there.")]
FirstTextsOption = Annotated[
    int | None, option("limit", min=1, help="At most this many lines or rows, the first ones.")
]
SplitOption = Annotated[
    Literal["lines", "paragraphs"],
    typer.Option("--split", help="What is one text of plain text.", rich_help_panel=TEXTS),
]
LongOption = Annotated[
    Literal["refuse", "split"] | None,
    typer.Option("--long", help="Texts over the context [refuse; split with --overlap].", rich_help_panel=TEXTS),
]
OverlapOption = Annotated[
    int | None,
    typer.Option("--overlap", help="Tokens that windows of a split text share [a quarter].", rich_help_panel=TEXTS),
]
TopKOption = Annotated[
    int, typer.Option("--top-k", help="Tokens that the statistic top_k keeps.", rich_help_panel=WORK)
]
PrecisionOption = Annotated[
    Literal["fast", "exact"],
    typer.Option("--precision", help="fast: bf16 where the machine has it.", rich_help_panel=WORK),
]
ShardTokensOption = Annotated[
    int,
    typer.Option(
        "--shard-tokens", min=1, help="Tokens in a file of the result; a kill costs one.", rich_help_panel=WORK
    ),
]
BatchTokensOption = Annotated[
    int, typer.Option("--batch-tokens", min=1, help="Tokens in a forward pass.", rich_help_panel=WORK)
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start over in a folder that holds another reading.", rich_help_panel=WORK)
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    names = [name for name in STATS if name != "choices"]  # read anew each time: a script may have registered its own
    STATS_OPTION.help = f"Comma-separated: {', '.join(names)}."
    add_command(
        app, "read", read_command, "Every layer's statistics of any amount of text, as Parquet",
        "exitlens read --text corpus.jsonl --stats entropy,kl --out reading",
    )  # fmt: skip


def read_command(
    text: TextsOption,
    out: OutOption,
    stats: Annotated[str, STATS_OPTION] = "entropy",
    layers: LayersOption = "all",
    lens: LensOption = "logit",
    model: ModelOption = DEFAULT_MODEL,
    limit: FirstTextsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    field: TextFieldOption = "text",
    split: SplitOption = "lines",
    long: LongOption = None,
    overlap: OverlapOption = None,
    top_k: TopKOption = 5,
    precision: PrecisionOption = "fast",
    shard_tokens: ShardTokensOption = 2048,
    batch_tokens: BatchTokensOption = 512,
    fresh: FreshOption = False,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """Read any amount of text layer by layer into Parquet: a row a text, position and layer, a column a statistic.

    Killed and started again with the same options it repeats nothing that is finished and ends with the same files.
    --json prints out, files, model, lens, texts, tokens, fresh_tokens, shards, saturation and by_layer (rows of means).
    """
    import shlex
    import sys
    import time
    from contextlib import ExitStack

    from exitlens.data.texts import TextFile
    from exitlens.lenses.lens_words import check_lens_word
    from exitlens.runs.cluster.address import EngineSettings
    from exitlens.storage.mirror import check_target, local_folder, named
    from exitlens.studies.corpus.columns import check_stats

    how_run = EngineSettings(engine, workers, deadline)
    how_run.check()
    names = check_stats(tuple(name.strip().replace("-", "_") for name in stats.split(",") if name.strip()))
    check_lens_word(lens)
    wanted = check_depth(model, layers)
    how = _how(long, overlap)
    source = TextFile(text, field=field, split=split)
    check_target(out, "manifest.json")
    say(f"looking through {named(text)}", quiet)
    survey = source.survey(limit)

    from exitlens.lenses.lens_names import open_lens
    from exitlens.runs.status import StatusFile
    from exitlens.studies.corpus.read import CorpusSettings, read_corpus
    from exitlens.studies.engines import ModelSource, opened_engine

    place = ModelSource(model, device, dtype, revision, trust_remote_code, base)
    with ExitStack() as stack:
        make = stack.enter_context(opened_engine(how_run, place, lambda line: say(line, quiet)))
        say(f"loading {model}", quiet)
        lm = place.load()
        settings = CorpusSettings(
            layers=wanted.resolve(lm.n_layers, owner=lm.name), stats=names, lens=open_lens(lens, lm), top_k=top_k,
            precision=precision, long=how, overlap=overlap, limit=limit, shard_tokens=shard_tokens,
            batch_tokens=batch_tokens,
        )  # fmt: skip
        begun = time.monotonic()
        folder = local_folder(out, write=True).absolute()
        status = stack.enter_context(StatusFile(folder, stack.enter_context(StageProgress(quiet))))
        found = read_corpus(
            make(lm, report=status, logs=folder / "logs", seen=folder / "manifest.json"), source, out, settings,
            survey=survey, command=shlex.join(["exitlens", *sys.argv[1:]]), fresh=fresh,
        )  # fmt: skip
    _remark(found, quiet)
    _print(found, lm.name, lens, time.monotonic() - begun, as_json)


def _how(long: Literal["refuse", "split"] | None, overlap: int | None) -> Literal["refuse", "split"]:
    """What becomes of texts over the context. Raises InputError for an overlap of windows that there are not."""
    from exitlens.errors import InputError

    if long == "refuse" and overlap is not None:
        raise InputError(f"--overlap {overlap} is of no use with --long refuse: leave one of them out")
    return "split" if long == "split" or overlap is not None else "refuse"


def _remark(found: CorpusRead, quiet: bool) -> None:
    empty, texts = found.survey.empty, found.survey.texts
    left_out = [f"{empty} of {empty + texts} texts are empty and were left out"] if empty else []
    for note in [*left_out, *found.notes]:
        say(note, quiet)


def _print(found: CorpusRead, model: str, lens: str, seconds: float, as_json: bool) -> None:
    rows = found.by_layer.astype(object).where(found.by_layer.notna(), None)
    from exitlens.report.words import counted
    from exitlens.storage.mirror import named

    shards = named(found.path / "shards" / "*.parquet")
    if as_json:
        facts: dict[str, Any] = {"out": named(found.path), "files": shards, "model": model, "lens": lens}
        facts |= {"texts": found.survey.texts, "tokens": found.tokens, "fresh_tokens": found.fresh_tokens}
        print_json(
            facts | {"shards": found.shards, "saturation": found.saturation, "by_layer": rows.to_dict("records")}
        )
        return
    shown = rows.drop(columns="tokens")
    columns = [Column(name.replace("_", " "), "d" if name == "layer" else ".4f") for name in shown.columns]
    speed = (
        f"{counted(found.fresh_tokens, 'token')} read now, {found.fresh_tokens / max(seconds, 1e-9):.3g} a second"
        if found.fresh_tokens
        else "all read before"
    )
    size = f"{counted(found.tokens, 'token')} of {counted(found.survey.texts, 'text')}"
    print_table(
        columns,
        shown.to_numpy().tolist(),
        title=f"Means over {size}: {model}, lens {lens}",
        note=speed + ("" if found.saturation is None else f"; mean saturation layer {found.saturation:.2f}"),
    )
    echo(f"{counted(found.shards, 'file')}: {shards}")
