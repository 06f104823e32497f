"""How does a command load its model? After everything that can be refused without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from exitlens.cli.console import say
from exitlens.layer_range import LayerRange, parse_layers

if TYPE_CHECKING:
    from exitlens.models import LayeredModel

__all__ = ["check_depth", "known_depth", "load_model"]

# What a configuration calls the number of blocks, in the families that do not use the first name.
_DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def load_model(
    name: str,
    device: str,
    dtype: str,
    revision: str | None,
    trust: bool,
    quiet: bool,
    *,
    base: str | None = None,
    adapter: Path | None = None,
    chat_date: str | None = None,
) -> LayeredModel:
    """The model of the shared options, with a LoRA adapter where one is given. Raises ModelError, InputError."""
    from exitlens.models import load

    say(f"loading {name}", quiet)
    lm = load(
        name, device=device, dtype=dtype, revision=revision, trust_remote_code=trust, base=base, chat_date=chat_date
    )
    if adapter is None:
        return lm
    from exitlens.studies.exits.files import load_adapted

    adapted: LayeredModel = load_adapted(lm, adapter)
    adapted.chat_date = lm.chat_date
    return adapted


def check_depth(model: str, layers: str, *, first: int = 0, what: str = "layer") -> LayerRange:
    """Layers as text, refused early where they are out of the range of a model whose depth a small file tells."""
    wanted = parse_layers(layers)
    depth = known_depth(model)
    if depth is not None:
        wanted.resolve(depth, first=first, what=what, owner=model)
    return wanted


def known_depth(model: str) -> int | None:
    """The number of blocks that a model folder's ``config.json`` states; None where there is no such file."""
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    found = next((config[key] for key in _DEPTH if isinstance(config.get(key), int)), None)
    return found if found is not None and found > 0 else None
