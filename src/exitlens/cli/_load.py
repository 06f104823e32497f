"""How does a command load its model? After everything that can be refused without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exitlens.cli.console import say

if TYPE_CHECKING:
    from exitlens.models import LayeredModel

__all__ = ["load_model"]


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
