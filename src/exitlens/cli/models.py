"""`exitlens models list | pull | check`: the built-in models, and whether a model can be read layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli._load import load_model
from exitlens.cli.console import Column, echo, print_json, print_table, say
from exitlens.cli.help import add_command, new_group
from exitlens.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    RevisionOption,
    TrustOption,
)

if TYPE_CHECKING:
    from exitlens.models import LayeredModel

__all__ = ["register"]

NameArgument = Annotated[str, typer.Argument(help="A name that `exitlens models list` shows.", show_default=False)]
AnyModelArgument = Annotated[
    str, typer.Argument(help="Catalogue name, Hub id, folder or .gguf file.", metavar="MODEL", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = new_group(
        app, "models", "The built-in models; check any model", about="The built-in models; check any model."
    )
    add_command(group, "list", list_models, "The built-in models, their licence, and which are here")
    add_command(
        group, "pull", pull_model, "Fetch a built-in model and print its path",
        "exitlens models pull smollm2-135m",
    )  # fmt: skip
    add_command(
        group, "check", check_model, "A model's hash, its last layer against its logits, its speed",
        "exitlens models check smollm2-135m",
        "exitlens models check ./my-model --dtype bf16",
    )  # fmt: skip


def list_models(as_json: JsonOption = False) -> None:
    """The built-in models: what they are, their licence, and whether they are on this machine.

    --json prints cache (the folder) and models (name, kind, about, licence, bytes, source, sha256, here, path).
    """
    from exitlens.models.hub import catalog
    from exitlens.storage.cache_folder import cache_dir

    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "about": entry.about,
            "licence": entry.licence,
            "bytes": entry.size,
            "source": f"{entry.package}=={entry.version}",
            "sha256": entry.members[0].sha256,
            "here": _state(entry.name),
            "path": catalog.target(entry.name),
        }
        for entry in catalog.CATALOG.values()
    ]
    if as_json:
        print_json({"cache": cache_dir(), "models": rows})
        return
    print_table(
        ["name", "kind", Column("MB", ".1f"), "licence", "here", "about"],
        [[r["name"], r["kind"], r["bytes"] / 1e6, r["licence"], r["here"], r["about"]] for r in rows],
        note=f"kept in {cache_dir()}",
    )


def pull_model(name: NameArgument, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Fetch a built-in model (a damaged copy is replaced) and print its path; --json prints name and path."""
    from exitlens.models.hub import catalog

    path = catalog.pull(name, progress=not quiet)
    if as_json:
        print_json({"name": name, "path": path})
    else:
        echo(str(path))


def check_model(
    model: AnyModelArgument,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    base: BaseOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Hash a built-in model in full; load any model and measure that its last layer reproduces its logits.

    Then, for about two seconds: the cost of an unembedding in blocks, and the speed of reading all layers that follows.
    Exit code 2 when the file is damaged, or when the model cannot be read layer by layer. --json prints the same facts:
    model, path, sha256 and kind (built-in models), layers, d_model, parity_max_abs, reading_tokens_per_second, ...
    """
    from exitlens.models.hub import catalog

    found: dict[str, Any] = {"model": model}
    entry = catalog.CATALOG.get(model)
    if entry is not None:
        say(f"hashing {model}", quiet)
        found["path"] = catalog.verify(model)
        found["sha256"] = entry.members[0].sha256
        found["kind"] = entry.kind
    if entry is None or entry.kind == "causal-lm":
        found |= _loaded(load_model(model, device, dtype, revision, trust_remote_code, quiet, base=base), quiet)
    if as_json:
        print_json(found)
        return
    print_table(["what", "value"], [[key.replace("_", " "), _shown(value)] for key, value in found.items()])


def _loaded(lm: LayeredModel, quiet: bool) -> dict[str, Any]:
    """What loading shows: the shape, where it runs, the measured parity of the last layer, and the speed of reading."""
    from exitlens.exits.replay_policies import Cost
    from exitlens.lenses.speed import reading_speed

    say("measuring speed", quiet)
    speed, cost = reading_speed(lm), Cost.of(lm)
    return {
        "layers": lm.n_layers,
        "d_model": lm.d_model,
        "vocabulary": lm.vocab_size,
        "context": lm.context,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "fingerprint": lm.fingerprint,
        "parity_max_abs": lm.parity.max_abs,
        "parity_tolerance": lm.parity.tolerance,
        "parity_tokens": lm.parity.tokens,
        "unembedding_in_blocks": cost.unembed / cost.block,  # FLOPs of a token's unembedding over those of a block
        "unembedding_rows": speed.rows,
        "unembedding_ms": 1e3 * speed.unembedding_seconds,
        "unembedding_gflops": speed.gflops,
        "unembedding_product": speed.product,
        "forward_tokens_per_second": speed.forward_per_second,
        "reading_tokens_per_second": speed.tokens_per_second,
        "reading_bound_by": speed.bound,
        "reading_time_shares": {
            "forward pass": speed.forward_share,
            "unembedding product": speed.product_share,
            "statistics": speed.statistics_share,
        },
    }


def _state(name: str) -> str:
    from exitlens.errors import CorruptModel
    from exitlens.models.hub import catalog

    try:
        return "no" if catalog.cached(name) is None else "yes"
    except CorruptModel:
        return "damaged"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {share:.0%}" for name, share in value.items())
    return str(value) if isinstance(value, str | int | Path) else "–" if value is None else str(value)
