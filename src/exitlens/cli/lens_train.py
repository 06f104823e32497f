"""`exitlens lens train`: a tuned or a Jacobian lens from text."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from exitlens.cli._lens_show import show
from exitlens.cli.console import say
from exitlens.cli.options import (
    CHECKS,
    DEFAULT_MODEL,
    BaseOption,
    DeadlineOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    SelfTextOption,
    TextFieldOption,
    TrustOption,
    WorkersOption,
    option,
)
from exitlens.progress import StageProgress, counted, progress

if TYPE_CHECKING:
    from exitlens.data.texts import TextFile
    from exitlens.models import LayeredModel
    from exitlens.runs.cluster.address import EngineSettings
    from exitlens.runs.engine import Report
    from exitlens.studies.engines import Maker
    from exitlens.studies.lens_training import Pieces

__all__ = ["train_command"]

_PHASES = {"collect": "reading states", "steps": "training", "texts": "texts pulled back"}
_TUNED, _JACOBIAN = "Tuned lens", "Jacobian lens"


def train_command(
    method: Annotated[Literal["tuned", "jacobian"], typer.Option("--method", help="Which kind of lens.")] = "tuned",
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="JSON lines or Parquet with a field 'text', or plain text."),
    ] = None,
    self_text: SelfTextOption = 0,
    out: Annotated[
        Path | None, option("out", metavar="FILE", help="File to write [kept as this model's own: --lens METHOD].")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Keep it under this name in the cache folder: --lens NAME."),
    ] = None,
    field: TextFieldOption = "text",
    tokens: Annotated[int, typer.Option("--tokens", min=16, help="Tokens of text used at most.")] = 16_384,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Time for the work [tuned 10, jacobian 30].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Training steps at most [300].", rich_help_panel=_TUNED)
    ] = None,
    estimator: Annotated[
        Literal["summed", "same-position"] | None,
        typer.Option(
            "--estimator", help="Targets: all later positions [summed], or the same.", rich_help_panel=_JACOBIAN
        ),
    ] = None,
    layers: Annotated[
        str | None, option("layers", help="Layers to fit [all].", heading=_JACOBIAN, **CHECKS["layers"])
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=2, help="Tokens of a text [128].", rich_help_panel=_JACOBIAN)
    ] = None,
    skip: Annotated[
        int | None, typer.Option("--skip", min=0, help="First positions left out [16].", rich_help_panel=_JACOBIAN)
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Channels at once [by memory].", rich_help_panel=_JACOBIAN)
    ] = None,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """Fit a lens on text: affine translators (tuned), or the mean Jacobian from each layer to the last (jacobian).

    tuned: KL to the last layer, measured on held-out text; training ends after --steps, after --minutes, or when no
    layer gets better. jacobian: one text after another, until all are in or --minutes are over; stopped or killed, the
    same command goes on and ends with the same matrices. --json prints what `lens show --json` prints.
    """
    spread = _engine(engine, workers, deadline, method)
    own = _given(estimator=estimator, layers=layers, length=length, skip=skip, rows=rows)
    minutes = _checked(method, text, self_text, out, name, steps, own, minutes)
    cut = _cut(own) if method == "jacobian" else {}
    path = _path(out, name)
    source = _source(text, field)

    from exitlens.lenses.lens_names import own_path
    from exitlens.studies.engines import ModelSource, opened_engine

    place = ModelSource(model, device, dtype, revision, trust_remote_code, base)
    with opened_engine(spread, place, lambda line: say(line, quiet)) as make:
        say(f"loading {model}", quiet)
        lm = place.load()
        path = own_path(lm, method) if path is None else path
        pieces = _texts(lm, source, self_text, tokens, seed, quiet, cut)
        called: dict[str, Any] = {"name": name or path.stem, "minutes": minutes}
        called |= {"steps": steps or 300, "seed": seed} if method == "tuned" else own
        lens = _fit(lm, pieces, path, quiet, method, called, None if engine == "local" else make)
    show(lens, path, as_json)
    word = name if name is not None else path if out is not None else method
    say(f"use it: exitlens look TEXT --model {model} --lens {word}", quiet or as_json)


def _path(out: Path | None, name: str | None) -> Path | None:
    """Where the lens is written, where that is known without its model. Raises InputError where it cannot be."""
    from exitlens.lenses.lens_words import kept_path
    from exitlens.storage.atomic import check_writable

    if out is None and name is None:
        return None
    return check_writable(out if out is not None else kept_path(str(name)))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _engine(engine: str, workers: int | None, deadline: float | None, method: str) -> EngineSettings:
    """Where texts are summed. Raises InputError for an engine that cannot be, or that this method does not use."""
    from exitlens.errors import InputError
    from exitlens.runs.cluster.address import EngineSettings

    spread = EngineSettings(engine, workers, deadline)
    spread.check()
    if method == "tuned" and spread.engine != "local":
        raise InputError(f"--engine {spread.engine} is for --method jacobian: a tuned lens is trained in one process")
    return spread


def _fit(
    lm: LayeredModel, pieces: Pieces, path: Path, quiet: bool, method: str, options: dict[str, Any], make: Maker | None
) -> Any:
    """The lens, fitted under a bar and written to ``path``; ``make``: the engine whose workers sum texts, if any."""
    from exitlens.runs.status import StatusFile
    from exitlens.studies import lens_training

    units = lens_training.units_folder(path)
    with StageProgress(quiet) as bars, StatusFile(units, bars) as status:
        hear: Report = status
        speak = status.heard(lambda line: say(line, quiet))
        if make is not None:
            engine = make(lm, report=status, logs=units / "logs", seen=units / "fit.json")
            options["stream"], hear = engine.stream, engine.report or status
        tell = _teller(hear)
        if method == "tuned":
            lens: Any = lens_training.train_and_save(lm, pieces, path, progress=tell, **options)[0]
            whole = True
        else:
            lens, report = lens_training.fit_and_save(lm, pieces, path, progress=tell, say=speak, **options)
            whole = report.texts + report.held_out == len(pieces.ids)
    if whole:
        lens_training.clear_units(path)
    return lens


def _teller(hear: Report) -> Callable[[str, int, int], None]:
    """What tells ``hear`` how far each phase is; the rate counts what this process saw done."""
    from exitlens.runs.engine import Progress

    begun: dict[str, tuple[float, int]] = {}

    def tell(phase: str, done: int, total: int) -> None:
        since, first = begun.setdefault(phase, (time.monotonic(), done))
        spent = time.monotonic() - since
        rate = (done - first) / spent if done > first and spent > 0 else None
        left = None if rate is None else (total - done) / rate
        hear(Progress(_PHASES.get(phase, phase), done, total, rate, left))

    return tell


def _checked(
    method: str, text: Path | None, self_text: int, out: Path | None, name: str | None, steps: int | None,
    own: dict[str, Any], minutes: float | None,
) -> float:  # fmt: skip
    """The minutes that there are. Raises InputError for options that do not go together."""
    from exitlens.errors import InputError

    if (text is None) == (self_text == 0):
        raise InputError("give one of --text FILE and --self-text N")
    if out is not None and name is not None:
        raise InputError(f"give one of --out '{out}' and --name '{name}'")
    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes {minutes:g} leaves no time to train: give more than 0")
    if method == "jacobian" and steps is not None:
        raise InputError(
            f"--steps {steps} is for --method tuned: a Jacobian lens takes no steps; --tokens bounds its text"
        )
    if method == "tuned" and own:
        key, value = next(iter(own.items()))
        raise InputError(f"--{key} {value} is for --method jacobian: add it, or leave --{key} out")
    return minutes if minutes is not None else 30.0 if method == "jacobian" else 10.0


def _cut(own: dict[str, Any]) -> dict[str, int]:
    """How text is cut for a Jacobian lens; its settings are checked here, before a model is loaded."""
    from exitlens.lenses.jacobian.text import FitSettings

    settings = FitSettings(**{key: value for key, value in own.items() if key != "layers"}).checked()
    return {"length": settings.length, "least": settings.skip + 2, "enough": 1}


def _source(text: Path | None, field: str) -> TextFile | None:
    from exitlens.data.texts import TextFile

    if text is None:
        return None
    source = TextFile(text, field=field)
    source.survey()
    return source


def _texts(
    lm: LayeredModel, source: TextFile | None, self_text: int, tokens: int, seed: int, quiet: bool, cut: dict[str, int]
) -> Pieces:
    """Pieces of a file, or of what the model writes."""
    from exitlens.studies import lens_training

    if source is not None:
        return lens_training.pieces_of_file(lm, source, tokens, **cut)
    with progress("writing text", self_text, quiet) as tick:
        return lens_training.pieces_of_own(lm, self_text, tokens, seed=seed, progress=counted(tick), **cut)
