"""The probe study that would survive review, from statements to a verdict: states, protocol, tables, the best probe.

result = probes_study(lm, statements, "states", kinds=("logistic", "mass-mean"))
print(result.sentence); result.tables["probe_layers"]; save_probe("probe.safetensors", *result.refit())
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from exitlens.data import groups
from exitlens.data.prompts import Position, Setting, check_position, prompt_name
from exitlens.data.records import Statement, as_records
from exitlens.errors import ProbeError
from exitlens.layer_range import Layers
from exitlens.models.protocol import LayeredModel
from exitlens.probes import (
    Baseline,
    Probe,
    ProbeData,
    ProbeStudy,
    Provenance,
    Split,
    evaluate,
    fit_rows,
    kind_named,
    lm_baselines,
    make_data,
    make_split,
    to_frame,
    topic_transfer,
    transfer,
    verdict,
)
from exitlens.probes.kinds import check_kind
from exitlens.probes.names import check_protocol_name
from exitlens.runs.engine import Clock, Engine, LocalEngine, Report
from exitlens.runs.hidden_states import StateStore
from exitlens.studies.config import RunConfig
from exitlens.studies.context import Context
from exitlens.studies.inputs import Inputs
from exitlens.studies.layers.stage import check_layers
from exitlens.studies.probes.extraction import extract
from exitlens.studies.probes.model_answers import model_answers, pick_probed_layers
from exitlens.studies.probes.probe_kinds import view_tables
from exitlens.studies.result import StudyResult

__all__ = [
    "TruthStudy",
    "check_kinds",
    "check_protocol",
    "probes_study",
    "run_kinds",
    "states_folder",
    "truth_data",
    "usable_kinds",
]


@dataclass(frozen=True, repr=False)
class TruthStudy(StudyResult):
    """What was measured, on which rows, as tables and in words.

    ``tables``: ``probe_layers``, ``probe_best``, ``probe_comparisons``, ``probe_calibration``, ``probe_risk``,
    ``probe_transfer`` (leave-one-topic-out only) and ``probe_verdict``.
    """

    study: ProbeStudy
    data: ProbeData
    tables: dict[str, pd.DataFrame]
    provenance: Provenance
    about: dict[str, Any]

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables by their names in a run directory."""
        return self.tables

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.about["model"])

    @property
    def sentence(self) -> str:
        """Whether the best probe beats the text-only floor and the model's own answer, in words."""
        return verdict(self.study)

    def refit(self, seed: int = 0) -> tuple[Probe, dict[str, Any]]:
        """The best kind fitted again on every row, and what a file should say about it.

        The kind is the one of highest held-out accuracy; layer and setting are those that its inner folds preferred
        (highest mean inner AUROC). How well it does elsewhere is what the study measured, not the fit on all rows.
        """
        top = self.study.top
        run = self.study.run_of(top.name)
        at = int(run.inner_auroc.double().mean(0).argmax())
        setting = Counter(fold[at] for fold in run.layer_settings).most_common(1)[0][0]
        probe = fit_rows(run.kind, self.data, run.layers[at], setting=setting, seed=seed, provenance=self.provenance)
        found = top.values["accuracy"]
        held_out = {"protocol": self.study.protocol, "accuracy": found.value, "low": found.low, "high": found.high}
        return probe, {**self.about, "held_out": {**held_out, "auroc": top.values["auroc"].value}, "n": self.data.n}


def probes_study(
    lm: LayeredModel,
    statements: Sequence[Statement],
    folder: str | Path,
    *,
    kinds: Sequence[str] = ("logistic", "mass-mean"),
    protocol: str = "leave-one-topic-out",
    layers: Layers = "all",
    seeds: int = 5,
    seed: int = 0,
    setting: Setting = "few-shot",
    position: Position = "last",
    test_statements: Sequence[Statement] = (),
    test_topic: str | None = None,
    matrix: bool = True,
    resamples: int = 1000,
    report: Report | None = None,
    engine: Engine | None = None,
) -> TruthStudy:
    """Extract the states of ``statements`` into ``folder`` (kept, extended when called again), then measure ``kinds``.

    Args:
        lm: The model.
        statements: True and false ones.
        folder: Where the states are kept; states that it holds are not extracted again.
        kinds: Kinds of probe, see :data:`exitlens.probes.KINDS`.
        protocol: Which statements are trained and tested on.
        layers: Which layers; "all" is 1..N: layer 0 holds the embedding of one token, after the few-shot prompt always
            the same.
        seeds: Fits of kinds that start at random.
        seed: Of splits, fits and resamples.
        setting: What stands around the statements.
        position: Where a statement is read.
        test_statements: Another data set to test on (protocol ``transfer``).
        test_topic: The topic held out (protocol ``original``); None: cities, or the last.
        matrix: Also train on each topic and test on each other.
        resamples: Of the intervals.
        report: Called with the progress of extraction.
        engine: What extracts, where it is not this process.

    Returns:
        Metrics by kind and layer, comparisons, and a verdict in words.

    Raises:
        ProbeError: One class, a topic too small, NaN states, states of another model.
        LayerError: A layer that the model does not have.
        ContextError: A statement that does not fit the model's context.
    """
    check_protocol(kinds, protocol, bool(test_statements))
    check_position(position)
    numbers = check_layers(lm, range(1, lm.n_layers + 1) if layers == "all" else layers)
    everything = [*as_records(statements, Statement), *(_apart(s) for s in test_statements)]
    _check(everything, kinds, protocol, position, seed, test_topic)
    # All layers are stored: they cost nothing more in the same pass, and another study may want them.
    store = extract(engine or LocalEngine(lm, report=report), everything, folder, setting=setting, position=position)
    data, ids = truth_data(store, everything, numbers)
    split = _split(data, ids, protocol, seed, test_topic)
    baselines: Sequence[Baseline] = ()
    if setting == "few-shot":
        baselines = lm_baselines(data.labels, *model_answers(lm, store, ids, data.labels))
    clock = Clock("probe-kinds", 1000, report)
    study = evaluate(
        data,
        split,
        kinds,
        seeds=tuple(range(seed, seed + seeds)),
        baselines=baselines,
        # Of the model's depth, not of the layers asked for.
        voting_layers=[j for j in pick_probed_layers(lm) if j in numbers] or None,
        resamples=resamples,
        progress=lambda done, _total: clock.worked(max(0, done - clock.done)),
    )
    tables = {**view_tables(study), **_curves(study, min(resamples, 500), seed)}
    if matrix and protocol == "leave-one-topic-out":
        tables["probe_transfer"] = _matrix(data, kinds, seed, resamples, Clock("probe-transfer", 1000, report))
    said = {"protocol": protocol, "setting": setting, "position": position, "sentence": verdict(study)}
    tables["probe_verdict"] = pd.DataFrame([said])
    where = Provenance(model=lm.fingerprint, lens="raw", prompt=prompt_name(setting), position=position)
    about = {"model": lm.name, "setting": setting, "position": position, "dtype": store.origin.dtype}
    return TruthStudy(study, data, tables, where, about)


def _curves(study: ProbeStudy, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """The calibration and risk–coverage curves that have points."""
    names = ("probe_calibration", "probe_risk")
    found = {name: to_frame(study, name, resamples=resamples, seed=seed) for name in names}
    return {name: curve for name, curve in found.items() if len(curve)}


def check_protocol(kinds: Sequence[str], protocol: str, other_data: bool) -> None:
    """Raise ProbeError for a kind or protocol that does not exist, and where only one of protocol transfer and other
    test data is given.
    """
    for kind in kinds:
        check_kind(kind)
    check_protocol_name(protocol)
    if (protocol == "transfer") != other_data:
        raise ProbeError(
            "protocol transfer tests on other data: give it with --test-data"
            if protocol == "transfer"
            else f"--test-data is for --protocol transfer, not for '{protocol}'"
        )


def usable_kinds(config: RunConfig, inputs: Inputs) -> tuple[tuple[str, ...], str]:
    """The kinds that a run fits, and why there are none where the data do not allow those that nobody asked for.

    Kinds that were asked for are never left out: :func:`check_kinds` refuses them.
    """
    if not config.kinds or "kinds" in config.model_fields_set:
        return config.kinds, ""
    try:
        check_kinds(config, inputs)
    except ProbeError as error:
        return (), str(error)
    return config.kinds, ""


def check_kinds(config: RunConfig, inputs: Inputs) -> None:
    """Raise ProbeError where a run's statements do not allow its kinds or its protocol; no model is needed."""
    everything = [*inputs.statements, *(_apart(s) for s in inputs.test_statements)]
    _check(everything, config.kinds, config.protocol, check_position(config.position), config.seed, config.test_topic)


def _check(
    statements: Sequence[Statement],
    kinds: Sequence[str],
    protocol: str,
    position: Position,
    seed: int,
    test_topic: str | None,
) -> None:
    """Raise, before any state is computed, what labels, topics, groups and polarities alone tell."""
    polar = [kind for kind in kinds if kind_named(kind).both_polarities]
    if polar and protocol == "affirmed-to-negated":
        raise ProbeError(
            f"kind '{polar[0]}' is fitted on statements of both polarities, and affirmed-to-negated trains on affirmed "
            f"ones only: drop {polar[0]}, or use another protocol"
        )
    negated = [s.negated for s in statements]
    if polar and not any(negated):
        raise ProbeError(
            f"kind '{polar[0]}' needs negated statements, and none of {len(statements)} is marked so: give 'negated' "
            f"in the data, or drop {polar[0]}"
        )
    data = make_data(
        torch.zeros(1, len(statements), 1),
        [s.label for s in statements],
        groups(statements),
        [s.topic for s in statements],
        negated=negated if any(negated) else None,
    )
    if position == "every":
        return  # there a row is a token, and topics have more of them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, when the states are there
        _split(data, [s.id for s in statements], protocol, seed, test_topic)


def truth_data(
    store: StateStore, statements: Sequence[Statement], layers: Sequence[int]
) -> tuple[ProbeData, list[str]]:
    """Stored states ``[layers, n, d]`` with labels, topics, groups and texts, checked, and the rows' ids.

    In a store of every token a row is a token, with its statement's label.
    """
    codes = groups(statements)
    rows = list(range(len(statements)))
    ids = [statement.id for statement in statements]
    if store.origin.position == "every":
        tokens: dict[str, list[str]] = {}
        for name in store.index()["id"]:
            tokens.setdefault(str(name).rpartition("@")[0], []).append(str(name))
        pairs = [(i, name) for i, one in enumerate(ids) for name in tokens.get(one, ())]
        rows, ids = [i for i, _ in pairs], [name for _, name in pairs]
    mine = [statements[i] for i in rows]
    negated = [s.negated for s in mine]
    data = make_data(
        store.states(layers, ids),
        [s.label for s in mine],
        [codes[i] for i in rows],
        [s.topic for s in mine],
        layers=layers,
        negated=negated if any(negated) else None,
        texts=[s.statement for s in mine],
    )
    return data, ids


def states_folder(folder: str | Path, setting: Setting, position: Position) -> Path:
    """Where the states of one setting and position are kept below ``folder``."""
    return Path(folder) / (setting if position == "last" else f"{setting}-{position}")


def run_kinds(ctx: Context) -> None:
    """The part of a run that ``kinds`` asks for: its tables, and the best probe as ``probe.safetensors``."""
    from exitlens.probes import save_probe

    config, directory = ctx.config, ctx.engine.directory
    if directory is None:
        raise ProbeError("the probe study of a run keeps its states in the run directory: give one")
    kinds, reason = usable_kinds(config, ctx.inputs)
    directory.note(probe_left_out=reason)
    if reason:
        ctx.say(f"probes: the {', '.join(config.kinds)} probe at every layer is left out: {reason}")
    if not kinds:
        return
    result = probes_study(
        ctx.engine.lm,
        ctx.inputs.statements,
        states_folder(config.states or directory.path / "states", config.setting, check_position(config.position)),
        kinds=kinds,
        protocol=config.protocol,
        layers=config.probe_layers,
        seeds=config.probe_seeds,
        seed=config.seed,
        setting=config.setting,
        position=check_position(config.position),
        test_statements=ctx.inputs.test_statements,
        test_topic=config.test_topic,
        report=ctx.engine.report,
        engine=ctx.engine,
    )
    for name, frame in result.tables.items():
        told = {"n", "n_test"} & set(frame.columns)
        ctx.write(name, frame, n=None if told else len(result.study.labels))
    directory.note(probe_verdict=result.sentence, probe_notes=list(result.study.notes))
    save_probe(directory.path / "probe.safetensors", *result.refit(config.seed))


def _apart(statement: Statement) -> Statement:
    """A statement of the test data under an id and pair of its own; its entity may well be one that was trained on."""
    pair = None if statement.pair is None else f"test:{statement.pair}"
    return replace(statement, id=f"test:{statement.id}", pair=pair)


def _split(data: ProbeData, ids: Sequence[str], protocol: str, seed: int, test_topic: str | None) -> Split:
    if protocol != "transfer":
        return make_split(data, protocol, seed=seed, test=(test_topic,) if test_topic is not None else ())
    tested = np.array([name.startswith("test:") for name in ids])
    return transfer(data, np.flatnonzero(~tested), np.flatnonzero(tested), label="test data", seed=seed)


def _matrix(data: ProbeData, kinds: Sequence[str], seed: int, resamples: int, clock: Clock) -> pd.DataFrame:
    """Table ``probe_transfer``: one row a pair of topics; empty when a topic is too small for it."""
    columns = ["kind", "train_topic", "test_topic", "layer", "n"]
    # A kind that a seed changes would be fitted many times over for the same picture.
    kind = next((k for k in kinds if not kind_named(k).random), "mass-mean")

    def tick(done: int, total: int) -> None:
        clock.worked(max(0, 1000 * done // total - clock.done))

    try:
        long = topic_transfer(data, kind, seed=seed, resamples=resamples, progress=tick).to_frame()
    except ProbeError:
        return pd.DataFrame(columns=columns)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in long.rename(columns={"train": "train_topic", "test": "test_topic"}).to_dict("records"):
        row = rows.setdefault((cell["train_topic"], cell["test_topic"]), {name: cell[name] for name in columns})
        name = cell["metric"]
        row |= {name: cell["value"], f"{name}_low": cell["low"], f"{name}_high": cell["high"]}
    return pd.DataFrame(list(rows.values()))
