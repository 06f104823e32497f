"""What a run is asked to do: one frozen, validated object, from defaults, a TOML file and the command line.

The file holds the same names as the options of ``exitlens run`` (``max_new_tokens`` for ``--max-new-tokens``); a
name that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from exitlens.compute.names import check_device_name, dtype_name
from exitlens.data.columns import parse_columns
from exitlens.data.reading import check_data
from exitlens.data.records import ReadAt
from exitlens.errors import ConfigError, InputError
from exitlens.layer_range import parse_layers
from exitlens.lenses.lens_words import check_lens_word
from exitlens.parsing import check_plain, cut, parse_toml, plainly, read_bytes
from exitlens.probes.kinds import check_kind
from exitlens.probes.names import check_protocol_name
from exitlens.runs.cluster.address import parse_engine
from exitlens.scoring.names import ScoringProtocol, parse_judge
from exitlens.studies.answers.decoder_spec import DecoderSpec
from exitlens.studies.names import HOMES, usual_studies

__all__ = ["RunConfig", "check_words", "load_config"]

# What a run takes of the built-in data when nobody says which data and how much: 2 slow cores (AVX2, float32) are then
# done in about 4 minutes, of which two decoders with 50-token answers take the most. `limit = "none"` takes all of it.
BUILT_IN_LIMITS = {"limit": ("data", 40), "limit_statements": ("statements", 560)}
# Settings that change where or how fast results appear, never what they are: a run may go on with other values.
# A model is known by its fingerprint, whatever it is called and wherever it lies: see `_introduce` in studies/run.py.
_NAMES_OF_A_MODEL = frozenset({"model", "revision", "trust_remote_code", "base"})
_NOT_IDENTITY = (
    frozenset({"only", "out", "figures", "figure_width", "states", "engine", "workers", "deadline"}) | _NAMES_OF_A_MODEL
)


def _layer_text(value: Any) -> Any:
    """Layers as text in the one grammar, also where a TOML file gives numbers. Raises InputError, a ValueError."""
    numbers = [value] if isinstance(value, int) else value
    if isinstance(numbers, list | tuple) and all(type(number) is int for number in numbers):
        value = ",".join(map(str, numbers))
    return parse_layers(value).text if isinstance(value, str) else value


def _engine_text(value: str) -> str:
    """An engine's name as it is. Raises InputError, a ValueError."""
    parse_engine(value)
    return value


LayerText = Annotated[str, BeforeValidator(_layer_text)]


class RunConfig(BaseModel):
    """Settings of ``exitlens run``. Every field is also an option of the command line and a name in the TOML file.

    Raises:
        pydantic.ValidationError: An unknown setting, or a value that it cannot have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        """Raises :class:`~exitlens.errors.ConfigError` with one line, of the first setting that is wrong."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            name, message = _first(error)
            if name not in type(self).model_fields:
                raise ConfigError(f"unknown setting {cut(name)!r}{_nearest(name, type(self).model_fields)}") from error
            raise ConfigError(f"setting '{name}' = {cut(repr(values.get(name)))}: {message}") from error

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What differs from the defaults, the studies always: the same call makes the same settings again."""
        usual = type(self).model_fields
        for name, value in super().__repr_args__():
            if name is not None and (name == "only" or value != usual[name].get_default(call_default_factory=True)):
                yield name, value

    model: str = Field("smollm2-135m", description="catalogue name, Hub id, local folder or .gguf file")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")
    trust_remote_code: bool = Field(False, description="run the Python code that a Hub model brings along")
    base: str | None = Field(None, description="base model of an adapter folder, where not the one that it names")
    device: Annotated[str, AfterValidator(check_device_name)] = Field(
        "auto", description="where the model runs: cpu, cuda, cuda:N, mps or auto"
    )
    dtype: Annotated[str, AfterValidator(dtype_name)] = Field(
        "auto", description="number type: auto, float32, bfloat16 (bf16), float16 (fp16, half)"
    )

    engine: Annotated[str, AfterValidator(_engine_text)] = Field(
        "local", description="where: local, ray (workers on this machine), ray://HOST:PORT (cluster)"
    )
    workers: int | None = Field(None, ge=1, description="workers of engine ray; none: one a GPU, or one a processor")
    deadline: float | None = Field(
        None, gt=0, description="seconds that a unit may take before another worker tries; none: 20 times the longest"
    )

    data: tuple[str, ...] = Field(("facts-qa",), description="questions: built-in name, file or Hub id; repeatable")
    statements: tuple[str, ...] = Field(("facts-tf",), description="true/false statements: name, file or folder")
    limit: int | None = Field(None, ge=1, description="at most this many questions, the first ones")
    limit_statements: int | None = Field(None, ge=1, description="at most this many statements, from all topics")
    column: tuple[str, ...] = Field(
        (), description="what a file's columns hold: question=Prompt,best=Answer; repeatable"
    )
    prompts: str | None = Field(None, description="JSON lines of prompts with choices, studied as well")

    only: tuple[str, ...] = Field(default_factory=usual_studies, description=f"studies to run: {', '.join(HOMES)}")
    out: str = Field("exitlens-run", description="run directory")
    figures: bool = Field(True, description="draw figures; tables are there either way")
    figure_width: Literal["column", "page"] = Field("page", description="of figures: page (7 in) or column (3.3 in)")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of every random choice; equal seeds give equal results")
    batch_size: int = Field(32, ge=1, description="prompts generated together")

    max_new_tokens: int = Field(50, ge=1, description="longest answer in tokens")
    repetition_penalty: float = Field(1.0, gt=0, description="penalty of every decoder that names none; 1 is none")
    generation_config: Literal["model"] | None = Field(
        None,
        description="'model' applies the checkpoint's own penalties and forbidden tokens to every decoder's answers",
    )
    decoders: tuple[str, ...] = Field(
        ("vanilla", "dola:high", "dola:low"),
        description="decoders compared; NAME@1.2 sets a repetition penalty",
    )
    mc: Literal["none", "softmax", "scores"] = Field(
        "none", description="MC1-3 of every decoder too: by its log-probabilities (softmax) or its bare scores"
    )
    scoring: ScoringProtocol = Field(
        "truthfulqa", description="how answers meet references: TruthfulQA's published protocol, or plain"
    )
    judges: tuple[str, ...] = Field(
        ("similarity", "margin:rouge"),
        description="how answers are judged: similarity[:0.85], margin:bleu|rouge|bertscore, choice, labels:FILE",
    )
    entropy_estimators: tuple[Literal["per-group", "pooled-weights"], ...] = Field(
        ("per-group",), description="comma-separated; pooled-weights reproduces a published artefact"
    )
    bertscore_model: str | None = Field("all-minilm-l6-v2", description="encoder of BERTScore, or none")
    bertscore_layer: int | None = Field(None, ge=0, description="layer of that encoder; none: its recommended one")

    lens: tuple[str, ...] = Field(("logit", "raw"), description="lenses of the layer study")
    layers: LayerText = Field("all", description="layers of the layer study")
    rule: Literal["auto", "first-token", "sequence"] = Field("auto", description="what stands for a choice")
    look_limit: int | None = Field(50, ge=0, description="questions of the layer study at most; 0: all")
    picks: int = Field(
        2, ge=0, description="answers shown layer by layer: at most so many correct and so many incorrect ones"
    )
    top_k: int = Field(5, ge=1, description="top tokens kept per layer")

    compared_lenses: tuple[str, ...] = Field(
        (), description="lenses compared; none: raw, logit, and this model's own tuned and jacobian"
    )
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 10, 50), min_length=1, description="pass@k: how far down a concept may rank, comma-separated"
    )
    read_at: ReadAt | None = Field(None, description="token that is read in sets that do not name it")

    probed_layers: LayerText = Field("1/2,5/8,3/4", description="layers that the original study's probes read")
    epochs: int = Field(5, ge=1, description="epochs of the probes")
    test_topic: str | None = Field(None, description="topic held out; none: cities, or the last topic")
    kinds: tuple[str, ...] = Field(
        ("logistic",),
        description="probes at every layer: logistic, mass-mean, mass-mean-whitened, lda, mlp, ccs, ttpd, or none",
    )
    protocol: str = Field("leave-one-topic-out", description="which statements to train and test on")
    probe_layers: LayerText = Field("all", description="layers that those kinds read; all: from 1")
    original: bool = Field(True, description="the original study's probes too, at the probed layers")
    setting: Literal["few-shot", "zero-shot"] = Field("few-shot", description="prompt around those probes' statements")
    position: Literal["last", "mean", "answer", "every", "exact-answer", "every-answer-token"] = Field(
        "last",
        description="state read: last, mean, answer, every; of generated answers exact-answer, every-answer-token",
    )
    test_data: tuple[str, ...] = Field((), description="statements or questions to test on, with protocol transfer")
    states: str | None = Field(None, description="shared folder of hidden states; none: the run directory")
    probe_seeds: int = Field(5, ge=1, description="seeds of kinds that need one")
    zero_shot: bool = Field(True, description="probe the statements without the few-shot prompt too")

    exit_layers: LayerText | None = Field(None, description="exits; none: those of the heads, or the upper half")
    exit_heads: str | None = Field(None, description="exit heads: a file of `exitlens exits train`")
    exit_lens: str = Field("logit", description="lens that exits without heads are read through")
    exit_delta: float | None = Field(
        None, gt=0, lt=1, description="share of differing tokens that the guarantee allows"
    )
    exit_epsilon: float = Field(0.05, gt=0, lt=1, description="how often the guarantee may fail")
    exit_test: Literal["ltt", "anytime"] = Field(
        "ltt", description="guarantee: ltt (one look at half of the answers) or anytime (valid whenever one stops)"
    )
    adapter: str | None = Field(None, description="LoRA folder put into the model's weights for the whole run")

    @field_validator("only")
    @classmethod
    def _known_studies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in HOMES:
                near = difflib.get_close_matches(name, HOMES, n=1)
                hint = f"did you mean '{near[0]}'? There are" if near else "choose from"
                raise ValueError(f"no study is named '{cut(name)}': {hint} {', '.join(HOMES)}")
        if not value:
            raise ValueError(f"no study is asked for; choose from {', '.join(HOMES)}")
        return tuple(name for name in HOMES if name in value)

    @field_validator("column")
    @classmethod
    def _known_roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{role}={name}" for role, name in parse_columns(value).items())

    @field_validator(
        "data", "statements", "decoders", "judges", "lens", "kinds", "compared_lenses", "pass_at", mode="after"
    )
    @classmethod
    def _no_repeats(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            repeated = next((v for i, v in enumerate(value) if v in value[:i]), None)
            if repeated is not None:
                raise ValueError(f"{repeated!r} is given twice")
        return value

    def identity(self) -> dict[str, Any]:
        """The settings that decide the results (a run goes on only with equal ones)."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in _NOT_IDENTITY}


def check_words(config: RunConfig) -> None:
    """Raise, before anything large is imported, for a name or a file of a setting that does not exist.

    Raises InputError, ConfigError, DataError, ProbeError. What only data or a model can tell is left to the studies.
    """
    for text in config.decoders:
        DecoderSpec.parse(text, config.repetition_penalty)
    for text in config.judges:
        parse_judge(text)
    for text in config.kinds:
        check_kind(text)
    check_protocol_name(config.protocol)
    for text in (*config.lens, *config.compared_lenses, config.exit_lens):
        check_lens_word(text)
    for text in (*config.data, *config.statements, *config.test_data):
        check_data(text)
    for file, holds in ((config.prompts, "prompts"), (config.exit_heads, "exit heads")):
        if file is not None:
            check_plain(Path(file).expanduser(), error=InputError, holds=holds)


def load_config(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
) -> RunConfig:
    """Defaults, then the TOML ``file``, then ``overrides`` (None values are options that were not given).

    ``options``: what a command calls each setting (``--delta``), for its errors. Raises ConfigError with one line: the
    unknown name with its nearest known one, or the value and what it should be.
    """
    values: dict[str, Any] = {}
    where = "the command line"
    if file is not None:
        values = _read_toml(Path(file))
        where = f"'{file}'"
        for name in values:
            if name not in RunConfig.model_fields:
                raise ConfigError(f"{where}: unknown setting {cut(name)!r}{_nearest(name, RunConfig.model_fields)}")
    values = {k: _listed(k, v) for k, v in values.items()}
    values.update({k: _listed(k, v) for k, v in (overrides or {}).items() if v is not None})
    for name, (source, count) in BUILT_IN_LIMITS.items():
        if name not in values and source not in values and "data" not in values:
            values[name] = count
    try:
        return RunConfig(**values)
    except ConfigError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        name, message = _first(error.__cause__)
        typed = (overrides or {}).get(name) is not None
        if typed and options and name in options:  # what the user wrote is the option, and it is not the file's fault
            value = values.get(name)
            shown = cut(",".join(map(str, value)) if isinstance(value, list) else str(value))
            named = message.startswith(options[name])  # where it says the option and the value itself
            raise ConfigError(message if named else f"{options[name]} is '{shown}': {message}") from error.__cause__
        where = "the command line" if typed else where
        shown = cut(repr(values.get(name)))
        raise ConfigError(f"setting '{name}' = {shown} (from {where}): {message}") from error.__cause__


def _first(error: ValidationError) -> tuple[str, str]:
    """The first setting that is wrong, and what is wrong with it."""
    first = error.errors()[0]
    message = plainly(str(first["msg"]).removeprefix("Value error, "))
    return str(first["loc"][0]) if first["loc"] else "?", message[:1].lower() + message[1:]


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"no configuration file '{path}': check --config")
    values = parse_toml(read_bytes(path, error=ConfigError, holds="settings"), f"'{path}'", error=ConfigError)
    # A table [run] is accepted, so that a project may keep other tools' settings in the same file.
    run = values.get("run")
    return run if isinstance(run, dict) and len(values) == 1 else values


def _listed(name: str, value: Any) -> Any:
    """One value where a list is meant: a string is split at commas; a number stands alone. TOML "none" means None."""
    field = RunConfig.model_fields.get(name)
    if field is None:
        return value
    annotation = str(field.annotation)
    if isinstance(value, str) and value.lower() == "none" and "None" in annotation:
        return None
    if "tuple" not in annotation:
        return value
    if name == "kinds" and isinstance(value, str) and value.strip().lower() == "none":
        return []
    if isinstance(value, str):
        # A path may hold a comma; data sets are never split, the option is repeated instead.
        # "sled:k=10,rate=0.5" is one decoder: only a comma before a name without a value separates.
        comma = r",\s*(?=[A-Za-z_]\w*(?:[:@,\s]|$))" if name == "decoders" else ","
        whole = name in ("data", "statements", "test_data", "column")  # `column` has a grammar of its own
        return [value] if whole else [p.strip() for p in re.split(comma, value) if p.strip()]
    if isinstance(value, int):
        return [value]
    return list(value)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f": did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
