"""What drafts a few tokens ahead: the first blocks, or the model without some sub-layers. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass

from exitlens.errors import InputError, layer_range_error

__all__ = ["Draft", "parse_draft"]


@dataclass(frozen=True, slots=True)
class Draft:
    """How to draft: leave after block ``exit``, or skip sub-layers of the blocks named (1..N).

    ``length``: most tokens drafted a round; it shrinks where drafts fail and grows where they hold.
    """

    exit: int | None = None
    skip_attention: tuple[int, ...] = ()
    skip_mlp: tuple[int, ...] = ()
    length: int = 4

    def first(self, n_layers: int) -> int:
        """Blocks 1..first run as they are. Raises :class:`LayerError` or :class:`InputError`."""
        if self.length < 1:
            raise InputError(f"draft length {self.length} is out of range: at least 1")
        if self.exit is not None:
            if self.skip_attention or self.skip_mlp:
                raise InputError("a draft either exits at a layer or skips sub-layers: give one")
            if not 1 <= self.exit < n_layers:
                raise layer_range_error(self.exit, 1, n_layers - 1, what="draft exit")
            return self.exit
        skipped = {*self.skip_attention, *self.skip_mlp}
        if not skipped:
            raise InputError("a draft that skips nothing costs as much as the model: give exit=LAYER or sub-layers")
        for block in skipped:
            if not 1 <= block <= n_layers:
                raise layer_range_error(block, 1, n_layers, what="block")
        return min(skipped) - 1

    @property
    def name(self) -> str:
        """Short enough for a table."""
        if self.exit is not None:
            return f"exit={self.exit}"
        return f"skip={len(self.skip_attention)}a{len(self.skip_mlp)}m"


def parse_draft(text: str) -> Draft:
    """``exit=12`` or ``skip=a3/m5`` (attention of block 3, MLP of block 5). Raises :class:`InputError`."""
    kind, _, value = text.partition("=")
    try:
        if kind == "exit":
            return Draft(exit=int(value))
        parts = [part.strip() for part in value.split("/") if part.strip()]
        if kind != "skip" or any(part[0] not in "am" for part in parts):
            raise ValueError(text)
        return Draft(
            skip_attention=tuple(sorted(int(p[1:]) for p in parts if p[0] == "a")),
            skip_mlp=tuple(sorted(int(p[1:]) for p in parts if p[0] == "m")),
        )
    except ValueError:
        raise InputError(f"draft {text[:80]!r} is not understood: write exit=12, skip=a3/m5 or auto") from None
