"""`exitlens plan --model M --tokens N`: what reading a model's layers takes, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli.console import print_json, print_table, say
from exitlens.cli.help import add_command
from exitlens.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    LayersOption,
    QuietOption,
    RevisionOption,
    TrustOption,
    option,
)

if TYPE_CHECKING:
    from exitlens.compute.cards import Card
    from exitlens.models.checkpoint.shape import ModelShape
    from exitlens.studies.corpus.sizing import Sizing, Speed

__all__ = ["register"]

PlannedOption = Annotated[str | None, option("model")]
ParamsOption = Annotated[
    str | None, typer.Option("--params", metavar="SIZE", help="Instead of a model: 1B, 8B, 70B, ...")
]
TokensOption = Annotated[str, typer.Option("--tokens", metavar="N", help="Tokens to read: 1e9, 200M, 1.5B.")]
StatsOption = Annotated[
    str, typer.Option("--stats", metavar="LIST", help="Comma-separated, as exitlens read takes them.")
]
TopKOption = Annotated[int, typer.Option("--top-k", min=1, help="Tokens that the statistic top_k keeps.")]
KnownLensOption = Annotated[str, typer.Option("--lens", metavar="LENS", help="logit, raw, tuned or jacobian.")]
LengthOption = Annotated[int, typer.Option("--length", min=1, help="Tokens of a text, on average.")]
BatchTokensOption = Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens in a forward pass.")]
CardOption = Annotated[
    str | None,
    typer.Option("--card", metavar="NAME", help="Instead of this machine: H100, H200, A100, L40S, ..."),
]
CardsOption = Annotated[int | None, typer.Option("--cards", min=1, help="How many [as many as one copy needs].")]
UtilisationOption = Annotated[
    float | None, typer.Option("--utilisation", metavar="X", help="Share of a card's peak that is reached [0.4].")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(
        app, "plan", plan_command, "FLOPs, storage, memory and hours of a reading, beforehand",
        "exitlens plan --params 8B --tokens 1e9 --card H100",
    )  # fmt: skip


def plan_command(
    tokens: TokensOption,
    model: PlannedOption = None,
    params: ParamsOption = None,
    layers: LayersOption = "all",
    stats: StatsOption = "entropy,kl",
    card: CardOption = None,
    cards: CardsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    utilisation: UtilisationOption = None,
    length: LengthOption = 1024,
    lens: KnownLensOption = "logit",
    top_k: TopKOption = 5,
    batch_tokens: BatchTokensOption = 512,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """What reading layers takes: FLOPs, storage, memory of each card, hours. No weights are loaded.

    A folder needs no more than its config.json, of a Hub id nothing else is fetched; --params 70B is a published size.
    Hours are those of this machine, timed for a few seconds on a small random model, or of --card: its stated bf16 peak
    times --utilisation. --json prints model, tokens, layers, flops, storage_bytes, memory_bytes, cards, hours, speed.
    """
    from exitlens.errors import InputError
    from exitlens.layer_range import parse_layers
    from exitlens.models.checkpoint.shape import shape_of, stated_shape
    from exitlens.parsing import counted
    from exitlens.studies.corpus.columns import check_stats
    from exitlens.studies.corpus.sizing import UTILISATION, card_speed, size_reading

    n = counted(tokens, "--tokens")
    names = check_stats(tuple(name.strip().replace("-", "_") for name in stats.split(",") if name.strip()))
    wanted = parse_layers(layers)
    if model is not None and params is not None:
        raise InputError(f"--model {model[:80]} and --params {params[:80]} are two models: give one")
    named = _card(card, cards, utilisation, dtype, device)
    speed = None if named is None else card_speed(named, UTILISATION if utilisation is None else utilisation)
    if params is not None:
        shape = stated_shape(params)
    else:
        from exitlens.cli.options import DEFAULT_MODEL

        shape = shape_of(model or DEFAULT_MODEL, revision=revision, trust_remote_code=trust_remote_code)
    chosen = wanted.resolve(shape.blocks, owner=shape.name)
    itemsize = 2 if named is not None else _itemsize(dtype, device)

    def sized(split: int) -> Sizing:
        return size_reading(
            shape, n, chosen, names, length=length, batch_tokens=batch_tokens, top_k=top_k, lens=lens,
            itemsize=itemsize, split=split,
        )  # fmt: skip

    sizing = sized(1)
    if named is not None:
        sizing = sized(_split(shape, named, cards, sized))
    else:
        say("timing this machine", quiet)
        speed = _timed(shape, names, dtype, device)
    assert speed is not None
    count = (cards or sizing.split) // sizing.split * sizing.split  # cards that make no whole copy stay idle
    hours = speed.hours(shape, sizing, batch_tokens=batch_tokens, itemsize=itemsize, cards=count)
    facts = _facts(shape, sizing, names, speed, named, count, hours)
    if as_json:
        print_json(facts)
    else:
        _print(facts, shape, sizing, named, utilisation or UTILISATION, count)


def _card(card: str | None, cards: int | None, utilisation: float | None, dtype: str, device: str) -> Card | None:
    """The card that is named, if one is. Raises InputError for options that say nothing without one, or with one."""
    from exitlens.compute.cards import card_named
    from exitlens.errors import InputError

    if card is None:
        for name, value in (("--cards", cards), ("--utilisation", utilisation)):
            if value is not None:
                raise InputError(f"{name} {value:g} says nothing of this machine: name a card with --card")
        return None
    if dtype not in ("auto", "bfloat16", "bf16", "float16", "fp16", "half"):
        raise InputError(f"--dtype {dtype} with --card {card[:80]}: the cards' peaks are those of bf16; leave one out")
    if device != "auto":
        raise InputError(f"--device {device} and --card {card[:80]} are two places: leave one of them out")
    return card_named(card)


def _itemsize(dtype: str, device: str) -> int:
    from exitlens.compute.hardware import pick_device, pick_dtype

    return pick_dtype(dtype, pick_device(device)).itemsize


def _split(shape: ModelShape, card: Card, cards: int | None, sized: Any) -> int:
    """Cards that one copy of the model needs. Raises InputError where ``cards`` are too few."""
    from exitlens.errors import InputError
    from exitlens.studies.corpus.sizing import USABLE

    room = USABLE * card.memory
    fits = (split for split in range(1, shape.blocks + 1) if sized(split).memory.total <= room)
    least = next(fits, None)
    if least is None:
        needs = sized(shape.blocks).memory.total
        raise InputError(
            f"{shape.name} does not fit {card.name} cards with a block on each: {needs / 1e9:.1f} GB a card, "
            f"{room / 1e9:.1f} GB usable; use a smaller --batch-tokens"
        )
    if cards is not None and cards < least:
        raise InputError(
            f"--cards {cards} is too few: {shape.name} needs {least} {card.name} cards of {card.memory / 1e9:.0f} GB "
            f"for one copy; give --cards {least} or more"
        )
    return least


def _timed(shape: ModelShape, stats: tuple[str, ...], dtype: str, device: str) -> Speed:
    from exitlens.compute.hardware import pick_device, pick_dtype
    from exitlens.lenses.machine_speed import machine_speed
    from exitlens.studies.corpus.sizing import Speed

    where = pick_device(device)
    found = machine_speed(shape.width, stats, pick_dtype(dtype, where), where)
    return Speed(found.passing, found.reading, found.per_logit)


def _facts(
    shape: ModelShape, sizing: Sizing, stats: tuple[str, ...], speed: Speed, card: Card | None, count: int, hours: float
) -> dict[str, Any]:
    memory = sizing.memory
    return {
        "model": shape.name,
        "parameters": shape.parameters,
        "tokens": sizing.tokens,
        "layers": sizing.layers,
        "stats": list(stats),
        "flops": {"pass": sizing.pass_flops, "readout": sizing.readout_flops},
        "storage_bytes": {"states": sizing.states_bytes, "statistics": sizing.statistics_bytes},
        "memory_bytes": {
            "weights": memory.weights, "activations": memory.activations, "cache": memory.cache, "lens": memory.lens,
            "total": memory.total,
        },
        "card": None if card is None else card.name,
        "cards": count,
        "cards_of_a_copy": sizing.split,
        "hours": hours,
        "speed": {
            "pass_flops_per_second": speed.passing, "readout_flops_per_second": speed.reading,
            "seconds_per_logit": speed.per_logit, "source": "measured here" if card is None else card.source,
        },
    }  # fmt: skip


def _print(
    facts: dict[str, Any], shape: ModelShape, sizing: Sizing, card: Card | None, utilisation: float, count: int
) -> None:
    memory = sizing.memory
    where = "this machine" if card is None else f"{count} × {card.name}"
    rows = [
        ["products of the pass", f"{sizing.pass_flops:.2g} FLOP"],
        ["products of the readout", f"{sizing.readout_flops:.2g} FLOP"],
        ["storage, if states are kept", _bytes(sizing.states_bytes)],
        ["storage, statistics only", f"{_bytes(sizing.statistics_bytes)} ({', '.join(facts['stats'])})"],
        ["memory: weights", _bytes(memory.weights)],
        ["memory: activations of a batch", _bytes(memory.activations)],
        ["memory: keys and values", _bytes(memory.cache)],
        ["memory: lens and logits", _bytes(memory.lens)],
        ["memory: together", _bytes(memory.total) + (f" a card, {sizing.split} a copy" if sizing.split > 1 else "")],
        [f"time on {where}", _time(facts["hours"])],
    ]
    if card is None:
        note = (
            f"measured here: {facts['speed']['pass_flops_per_second'] / 1e9:.3g} GFLOP/s in the pass, "
            f"{facts['speed']['readout_flops_per_second'] / 1e9:.3g} in the readout, "
            f"{facts['speed']['seconds_per_logit'] * 1e9:.3g} ns a logit for the statistics"
        )
    else:
        note = (
            f"{card.name}: {card.peak / 1e12:g} TFLOP/s bf16, {card.memory / 1e9:g} GB, {card.bandwidth / 1e12:g} TB/s "
            f"({card.source}); {utilisation:.0%} of the peak assumed, tokens shared evenly"
        )
    print_table(
        ["what", "takes"], rows, note=note,
        title=f"Reading {sizing.layers} layers of {sizing.tokens:.3g} tokens: {shape.name}, "
        f"{shape.parameters / 1e9:.3g}B parameters",
    )  # fmt: skip


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000 or unit == "PB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} seconds"
    if hours < 1:
        return f"{hours * 60:.3g} minutes"
    return f"{hours:.3g} hours" if hours < 1000 else f"{hours / 24:.3g} days"
