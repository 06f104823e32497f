"""What a lens file says of itself, in the terminal and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitlens.cli.console import Column, echo, print_json, print_table

if TYPE_CHECKING:
    from exitlens.lenses import JacobianLens, TunedLens

__all__ = ["show"]


def show(lens: TunedLens | JacobianLens, path: Path, as_json: bool) -> None:
    """Print what a lens is and how well it reads."""
    from exitlens.lenses import JacobianLens

    if isinstance(lens, JacobianLens):
        _show_jacobian(lens, path, as_json)
    else:
        _show_tuned(lens, path, as_json)


def _show_jacobian(lens: JacobianLens, path: Path, as_json: bool) -> None:
    from exitlens.layer_range import spelled

    notes = dict(lens.provenance)
    curve = [point for point in _listed(notes.pop("curve", None)) if isinstance(point, dict)]
    marks = notes.pop("texts", None)
    facts: dict[str, Any] = {"path": path, "name": lens.name, "kind": "jacobian",
                             "fingerprint": lens.fingerprint or None, "n_layers": lens.depth, "d_model": lens.d_model,
                             "layers": spelled(lens.layers), "estimator": lens.estimator,
                             "texts": lens.texts}  # fmt: skip
    if as_json:
        kept = {**notes, **({} if marks is None else {"texts": marks})}
        print_json({**facts, "layers": list(lens.layers), "provenance": kept, "curve": curve})
        return
    told = {**facts, **notes}
    print_table(["what", "value"], [[key.replace("_", " "), str(v)] for key, v in told.items() if v is not None])
    if curve:
        names = list(curve[-1])
        print_table(
            [Column("texts", "d"), *(Column(name, ".3f") for name in names if name != "texts")],
            [[point.get(name) for name in names] for point in curve],
            note=f"kl: nats per token to the last layer, mean over layers, on {notes.get('held_out', '?')} held-out "
            f"texts (logit lens {notes.get('kl_before', '?')})",
        )


def _show_tuned(lens: TunedLens, path: Path, as_json: bool) -> None:
    notes = dict(lens.provenance)
    before, after, chosen = (_listed(notes.pop(key, None)) for key in ("before", "after", "chosen"))
    layers = [
        {"layer": layer, "before": b, "after": a, "chosen": c}
        for layer, (b, a, c) in enumerate(zip(before, after, chosen, strict=False))
    ]
    rank = None if lens.down is None else int(lens.down.shape[1])
    facts: dict[str, Any] = {"path": path, "name": lens.name, "kind": "tuned", "fingerprint": lens.fingerprint or None,
                             "n_layers": lens.n_layers, "d_model": lens.d_model, "rank": rank}  # fmt: skip
    if as_json:
        print_json({**facts, "provenance": notes, "layers": layers})
        return
    told = {**facts, **notes}
    print_table(["what", "value"], [[key.replace("_", " "), str(v)] for key, v in told.items() if v is not None])
    if layers:
        print_table(
            [Column("layer", "d"), Column("KL before", ".3f"), Column("KL after", ".3f"), "kept"],
            [list(row.values()) for row in layers],
            note=f"nats per token to the last layer, on {notes.get('test_tokens', '?')} held-out tokens",
        )
    else:
        echo("it carries no measurements: train one here to have them")


def _listed(text: str | None) -> list[Any]:
    """A list out of a lens's notes; what is not one (a file from elsewhere) counts as none."""
    try:
        value = json.loads(text) if text is not None else []
    except ValueError:
        return []
    return value if isinstance(value, list) else []
