"""``exitlens run``: the studies of one configuration, in one run directory, resumed where an earlier call stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from exitlens.arguments import wrong_kind
from exitlens.decoding.contrast.parse import check_decoder
from exitlens.decoding.token_rules import rules_of
from exitlens.display import Shown
from exitlens.errors import RunError
from exitlens.models.checkpoint.shape import check_depth
from exitlens.models.protocol import LayeredModel
from exitlens.models.text.generation_settings import settings_not_applied
from exitlens.parsing import cut
from exitlens.report.figure_style import FigureWidth
from exitlens.report.frames import Results
from exitlens.report.notebook import Shape, register_drawing, table_html
from exitlens.runs.cluster.address import EngineSettings
from exitlens.runs.directory import RunDirectory, now
from exitlens.runs.engine import Report
from exitlens.runs.status import StatusFile
from exitlens.storage.mirror import check_target
from exitlens.storage.object_store import address_of
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.config import RunConfig, check_words
from exitlens.studies.context import Context
from exitlens.studies.engines import ModelSource, opened_engine
from exitlens.studies.exits.files import load_adapted
from exitlens.studies.inputs import Inputs, load_inputs
from exitlens.studies.registry import STUDIES, chapters

__all__ = ["Finished", "publish", "run"]


@dataclass(frozen=True, slots=True, repr=False)
class Finished(Shown):
    """A finished run: its folder, tables by name, report, and the manifest."""

    path: Path
    report: Path
    tables: Mapping[str, pd.DataFrame]
    manifest: Mapping[str, Any]

    def __repr__(self) -> str:
        names = ", ".join(self.tables)
        # The folder's name alone: notebooks are passed on, with what they show.
        return f"Finished run in '{cut(self.path.name)}', report {self.report.name}\n  tables {cut(names, 300)}"

    @property
    def results(self) -> Results:
        """Tables and manifest as chapters read them."""
        return Results(self.tables, self.manifest)

    def findings(self) -> dict[str, list[str]]:
        """What each study found in sentences, the answer to its question first; studies without any are left out."""
        found = {name: chapter.findings(self.results) for name, chapter in chapters().items()}
        return {name: lines for name, lines in found.items() if lines}

    def printed(self, only: str | None = None) -> dict[str, list[dict[Hashable, Any]]]:
        """Rows of the tables that ``--json`` prints, of all studies or of one; None where a value is missing."""
        specs = [spec for name, study in STUDIES.items() if only in (None, name) for spec in study.tables]
        frames = {spec.name: self.tables[spec.name] for spec in specs if spec.printed and spec.name in self.tables}
        return {n: frame.astype(object).where(frame.notna(), None).to_dict("records") for n, frame in frames.items()}


def run(
    config: RunConfig,
    *,
    lm: LayeredModel | None = None,
    command: str = "",
    fresh: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Finished:
    """Run the studies that ``config.only`` names and write tables, figures and report into ``config.out``.

    Killed at any moment and called again, it goes on after the last finished batch and ends with the same tables.

    Args:
        config: The settings.
        lm: A model in memory instead of ``config.model``.
        command: The command line, for the manifest.
        fresh: Start over where the folder holds a run.
        report: Called with the progress of every stage.
        say: Called with remarks for the user, a line each.

    Returns:
        The tables, and where they and the report are.

    Raises:
        RunError: The folder holds another run or cannot be written. Whatever reading data or model raises comes
            through; nothing finished is lost by any of them.
    """
    if not isinstance(config, RunConfig):
        raise wrong_kind("the settings", config, "give an exitlens.RunConfig(...)")
    check_words(config)
    if lm is None:
        _check_layers(config)
    chosen = [STUDIES[name] for name in config.only]
    needs = {need for study in chosen for need in study.needs_of(config)}
    inputs = load_inputs(config, needs)
    for study in chosen:
        study.check_settings(config, inputs)
    identity = {**config.identity(), **inputs.identity()}
    source = ModelSource(
        config.model, config.device, config.dtype, config.revision, config.trust_remote_code, config.base,
        config.adapter,
    )  # fmt: skip
    settings = EngineSettings(config.engine, config.workers, config.deadline)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(RunDirectory.open(config.out, identity, command=command, fresh=fresh))
        status = stack.enter_context(StatusFile(directory.path, report))
        say = status.heard(say)
        if config.states is not None and address_of(config.states) is not None:
            check_target(config.states, "store.json")  # refused before a model is loaded
        for note in inputs.notes:
            say(note)
        make = stack.enter_context(opened_engine(settings, source if lm is None else None, say))
        if lm is None:
            say(f"loading {config.model}")
            lm = source.load()
        elif config.adapter is not None:
            lm = load_adapted(lm, config.adapter)
        _introduce(directory, config, inputs, lm)
        specs = {spec.name: spec for study in chosen for spec in study.tables}
        ctx = Context(config, make(lm, directory, status), inputs, specs, "entropies" in needs, say)
        # What cannot be done is said before the first long stage, not after it.
        for study in chosen:
            study.check(ctx)
        for study in chosen:
            study.run(ctx)
        directory.note(finished=now())
        say("drawing figures and writing the report" if config.figures else "writing the report")
        return publish(directory, figures=config.figures, width=config.figure_width)


# The settings that name layers, the studies that they belong to, and the lowest layer that they may name.
_LAYERS = {
    "layers": (("layers", "lenses"), 0), "probed_layers": (("probes",), 0), "probe_layers": (("probes",), 0),
    "exit_layers": (("exits",), 1),
}  # fmt: skip


def _check_layers(config: RunConfig) -> None:
    """Raise LayerError for a layer that the model does not have, where its depth is known without loading it."""
    for name, (studies, first) in _LAYERS.items():
        layers: str | None = getattr(config, name)
        if layers is not None and set(studies) & set(config.only):
            check_depth(config.model, layers, first=first, what="exit layer" if name == "exit_layers" else "layer")
    if "decoding" in config.only:
        for text in config.decoders:
            check_decoder(DecoderSpec.parse(text).decoder, config.model)


def publish(directory: RunDirectory, *, figures: bool = True, width: FigureWidth = "page") -> Finished:
    """Draw the figures and write the report of a run directory from its tables and manifest alone.

    Args:
        directory: The run directory.
        figures: Draw them; the report has its tables either way.
        width: Of every figure: a column (3.3 inches) or a page (7 inches).
    """
    from exitlens.report.gallery import draw_all
    from exitlens.report.page import write_report

    tables = directory.tables()
    results = Results(tables, directory.manifest)
    drawn = draw_all(results, chapters(), directory.path / "figures", width) if figures else {}
    path = write_report(results, chapters(), drawn, directory.path / "report.html")
    return Finished(directory.path, path, tables, directory.manifest)


def _introduce(directory: RunDirectory, config: RunConfig, inputs: Inputs, lm: LayeredModel) -> None:
    """Write into the manifest what runs on what; refuse to go on with the results of another model's weights."""
    earlier = directory.manifest.get("model") or {}
    if earlier.get("fingerprint") not in (None, lm.fingerprint):
        raise RunError(
            f"'{directory.path}' belongs to another run: the weights of '{lm.name}' are not those it began with "
            f"({earlier['fingerprint'][:12]}, now {lm.fingerprint[:12]}); choose another folder with --out, or start "
            "over with --fresh"
        )
    directory.note(
        config=config.model_dump(mode="json"),
        seed=config.seed,
        model={
            "name": lm.name,
            "fingerprint": lm.fingerprint,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": str(lm.device),
            "n_layers": lm.n_layers,
            "d_model": lm.d_model,
            "vocab_size": lm.vocab_size,
            "parity": {"max_abs": lm.parity.max_abs, "tolerance": lm.parity.tolerance, "tokens": lm.parity.tokens},
        },
        data=_with_earlier(directory.manifest.get("data") or [], inputs.provenance()),
        generation_settings=_generation_settings(config, lm),
        notes=[*inputs.notes, *lm.notes],
    )


def _generation_settings(config: RunConfig, lm: LayeredModel) -> dict[str, Any]:
    """Settings of the checkpoint that change greedy answers, by whether they are applied. Raises InputError for one
    that is asked for and cannot be applied.
    """
    rules_of(lm, config.generation_config)
    said = settings_not_applied(lm.model)
    if config.generation_config is None:
        return {"applied": {}, "not_applied": said}
    over = {"repetition_penalty"} & said.keys() if config.repetition_penalty != 1.0 else set()
    return {
        "applied": {name: value for name, value in said.items() if name not in over},
        "not_applied": {name: said[name] for name in sorted(over)},
    }


def _with_earlier(earlier: list[dict[str, Any]], read: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Data of this call, and of earlier calls of the run that read another kind."""
    kinds = {data["kind"] for data in read}
    both = [data for data in earlier if data.get("kind") not in kinds] + read
    return sorted(both, key=lambda data: str(data["kind"]))


def _shape(run: Finished) -> Shape:
    views = [view for chapter in chapters().values() for view in chapter.views(run.results)]
    rows = [[name, line.split("\n")[0]] for name, lines in run.findings().items() for line in lines]
    return Shape(views, table_html(["study", "finding"], rows, f"Run in {run.path.name}"))


register_drawing(Finished, _shape)
