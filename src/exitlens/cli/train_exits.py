"""`exitlens exits`: what exiting early would save; `exits train` fits heads, `exits adapt` an adapter, to save more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli._load import load_model
from exitlens.cli.console import Column, echo, print_json, print_table
from exitlens.cli.options import (
    CHECKS,
    DEFAULT_MODEL,
    AdapterOption,
    BaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    SelfTextOption,
    TrustOption,
    option,
)
from exitlens.layer_range import LayerRange
from exitlens.models.checkpoint.shape import check_depth
from exitlens.progress import counted, progress

if TYPE_CHECKING:
    from exitlens.models.protocol import LayeredModel

__all__ = ["adapt_command", "train_command"]

HeadLayersOption = Annotated[
    str | None,
    option(
        "exit_layers", "--layers", help="Layers with a head [two shallow, five upper, the last].", **CHECKS["layers"]
    ),
]
AdaptedLayersOption = Annotated[
    str | None, option("exit_layers", "--layers", help="Exits [five of the upper half].", **CHECKS["layers"])
]
TextOption = Annotated[Path | None, typer.Option("--text", metavar="FILE", help="Text file to learn from (UTF-8).")]
WindowsOption = Annotated[int, typer.Option("--windows", min=4, help="At most this many windows of 128 tokens.")]


def _training(flag: str, about: str, **more: Any) -> Any:
    return typer.Option(flag, help=about, rich_help_panel="Training", **more)


def train_command(
    out: Annotated[Path, option("out", metavar="FILE", help="File to write (.safetensors).")],
    text: TextOption = None,
    self_text: SelfTextOption = 0,
    windows: WindowsOption = 160,
    layers: HeadLayersOption = None,
    adapter: AdapterOption = None,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    shortlist: Annotated[int, _training("--shortlist", "Tokens that an exit can give.", min=2)] = 4096,
    rank: Annotated[int, _training("--rank", "Rank of the affine translators.", min=1)] = 64,
    epochs: Annotated[int, _training("--epochs", "Passes over the text.", min=1)] = 3,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """Fit exit heads on the frozen model: cheap logits at each exit, and a classifier that says when they are final.

    Reports, on held-out text, agreement by exit, saturation layer and what could be saved, before and after.
    --json prints heads (the file), model, source, before and after.
    """
    _one_text(text, self_text)
    _may_write(out)
    wanted = None if layers is None else check_depth(model, layers, first=1, what="exit layer")

    from exitlens.exits.policies import ExitPolicy
    from exitlens.studies.exits import files as exit_files
    from exitlens.studies.exits.fit import fit_heads

    lm = load_model(model, device, dtype, revision, trust_remote_code, quiet, base=base, adapter=adapter)
    chosen = _exits(wanted, lm.n_layers) or _default_heads(lm.n_layers)
    ExitPolicy("probability", 1.0, tuple(chosen)).exits(lm.n_layers, last=True)  # refuses layers outside 1..N
    found, source = _windows(lm, text, self_text, windows, seed, quiet)
    with progress("fitting heads", len(found) + len(chosen) * epochs, quiet) as tick:
        heads, before, after = fit_heads(
            lm, found, chosen, shortlist_size=shortlist, rank=rank, epochs=epochs, seed=seed, tick=tick
        )
    path = exit_files.save_heads(heads, out, {"source": source, "model": lm.name, "seed": str(seed)})
    _report_gain(before, after, {"heads": path, "model": lm.name, "source": source}, as_json)


def adapt_command(
    out: Annotated[Path, option("out", help="Folder of the adapter; a stopped training continues there.")],
    text: TextOption = None,
    self_text: SelfTextOption = 0,
    windows: WindowsOption = 400,
    layers: AdaptedLayersOption = None,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    rank: Annotated[int, _training("--rank", "LoRA rank.", min=1)] = 8,
    steps: Annotated[int, _training("--steps", "Training steps.", min=1)] = 300,
    batch_size: Annotated[int, _training("--batch-size", "Windows a step.", min=1)] = 4,
    rate: Annotated[float, _training("--rate", "Learning rate.")] = 3e-4,
    kl_bound: Annotated[float, _training("--kl-bound", "Most nats that the last layer may change.")] = 0.05,
    dropout: Annotated[float, _training("--dropout", "Layer dropout of the last block.")] = 0.1,
    checkpointing: Annotated[bool, _training("--checkpointing", "Less memory, a third more time.")] = False,
    check_every: Annotated[int, _training("--check-every", "Steps between held-out checks.", min=1)] = 25,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
) -> None:
    """Train a LoRA adapter that makes exits agree with the last layer, which may change by --kl-bound at most.

    Killed and started again it goes on after the last check. The folder loads in peft, and here with --adapter.
    --json prints adapter (the folder), model, source, kl, kl_bound, kept_step, curve, before and after.
    """
    _one_text(text, self_text)
    _may_write(out / "exitlens.json")
    wanted = None if layers is None else check_depth(model, layers, first=1, what="exit layer")

    from exitlens.exits.adapter import adapt
    from exitlens.exits.policies import ExitPolicy
    from exitlens.models import wrap
    from exitlens.studies.exits import files as exit_files
    from exitlens.studies.exits.fit import measure

    lm = load_model(model, device, dtype, revision, trust_remote_code, quiet, base=base)
    chosen = tuple(_exits(wanted, lm.n_layers) or _default_exits(lm.n_layers))
    ExitPolicy("probability", 1.0, chosen).exits(lm.n_layers)  # refuses layers outside 1..N−1
    found, source = _windows(lm, text, self_text, windows, seed, quiet)
    checkpoint = out / "checkpoint.safetensors"
    state = exit_files.read_state(checkpoint)
    begun = 0 if state is None else int(state[1]["step"])
    with progress("adapting", max(0, steps - begun), quiet) as tick:
        tuned, report = adapt(
            lm, found, layers=chosen, rank=rank, steps=steps, batch=batch_size, rate=rate, kl_bound=kl_bound,
            dropout=dropout, checkpointing=checkpointing, check_every=check_every, seed=seed, state=state,
            save=lambda s: exit_files.write_state(checkpoint, s), progress=lambda _done, _total: tick(),
        )  # fmt: skip
    exit_files.save_adapter(tuned, out, lm, {"source": source, "report": report})
    held = found[-report.held_out_windows :]
    before = measure(lm, held, chosen)
    after = measure(
        wrap(tuned.merge_and_unload(), lm.tokenizer, name=f"{lm.name}+{out.name}"), held, chosen, teacher=lm
    )
    facts = {"adapter": out, "model": lm.name, "source": source, "kl": report.kept.kl, "kl_bound": kl_bound,
             "kept_step": report.kept.step, "curve": report.curve}  # fmt: skip
    _report_gain(before, after, facts, as_json)


def _report_gain(before: Any, after: Any, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({**facts, "before": before, "after": after})
        return
    body: list[list[Any]] = [
        [f"agreement at layer {layer}", before.agreement.get(layer), value] for layer, value in after.agreement.items()
    ]
    body.append(["mean saturation layer", before.saturation_layer, after.saturation_layer])
    body.append([f"FLOPs saved at {after.level:.0%} agreement", before.flops_saved, after.flops_saved])
    print_table(["on held-out text", Column("before", ".3f"), Column("after", ".3f")], body)
    if "kl" in facts:
        echo(
            f"the last layer changed by {facts['kl']:.4f} nats (bound {facts['kl_bound']:g}), step {facts['kept_step']}"
        )
    for name in ("heads", "adapter"):
        if name in facts:
            echo(f"written: {facts[name]}")


def _exits(layers: LayerRange | None, n_layers: int) -> tuple[int, ...] | None:
    return None if layers is None else layers.resolve(n_layers, first=1, what="exit layer")


def _default_heads(n: int) -> list[int]:
    """The exits, two shallow layers for drafts, and the last, whose head saves the rest of the vocabulary."""
    return sorted({max(1, round(n * 0.07)), max(1, round(n * 0.17)), *_default_exits(n), n})


def _default_exits(n: int) -> list[int]:
    return sorted({min(n - 1, max(1, round(n * share))) for share in (0.5, 0.67, 0.8, 0.9, 0.97)})


def _may_write(file: Path) -> None:
    """Make the folder and try it, so that no training is lost to a file that cannot be written."""
    from exitlens.storage.atomic import check_writable

    check_writable(file)


def _one_text(text: Path | None, own: int) -> None:
    from exitlens.errors import InputError
    from exitlens.parsing import check_plain

    if (text is None) == (own == 0):
        raise InputError("give one of --text FILE and --self-text N")
    if text is not None:
        check_plain(text)


def _windows(
    lm: LayeredModel, text: Path | None, own: int, most: int, seed: int, quiet: bool
) -> tuple[list[list[int]], str]:
    from exitlens.storage.atomic import sha256_file
    from exitlens.studies.exits import files as exit_files

    length = min(128, lm.context or 128)
    if text is not None:
        found = exit_files.read_windows(text, lm, length=length, most=most)
        return found, f"{text.name} sha256:{(sha256_file(text) or '')[:16]}"
    with progress("writing text", own, quiet) as tick:
        found = exit_files.own_windows(lm, own, length=length, most=most, seed=seed, progress=counted(tick))
    return found, f"{own} texts by the model itself, seed {seed}"
