"""What drafts a few tokens ahead: the first blocks, or the model without some sub-layers. Needs no model."""

from __future__ import annotations

from dataclasses import dataclass

from exitlens.errors import InputError, layer_range_error

__all__ = ["Clasp", "Draft", "parse_draft"]


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


@dataclass(frozen=True, slots=True)
class Clasp:
    """Choose the skipped sub-layers anew while decoding, from the states of the last verified token.

    Attributes:
        most: most sub-layers skipped; None: half of them, at most 24 (the choice costs a pass of so many rows).
        length: most tokens drafted a round.
        allowance: share of the time that trying may cost beyond plain decoding.
        refresh: share of the drafting time that goes into choosing anew.

    Source: CLaSp, Chen et al. 2025, arXiv 2505.24196.
    """

    most: int | None = None
    length: int = 8
    allowance: float = 0.01
    refresh: float = 0.05

    def limit(self, pieces: int) -> int:
        """Most of ``pieces`` that are skipped. Raises :class:`InputError`."""
        if self.length < 1:
            raise InputError(f"draft length {self.length} is out of range: at least 1")
        for name, share in (("allowance", self.allowance), ("refresh", self.refresh)):
            if not 0.0 < share < 1.0:
                raise InputError(f"{name} {share} is out of range: between 0 and 1")
        if pieces < 2:
            raise InputError("clasp has nothing to skip in a model of one block: decode plainly")
        if self.most is None:
            return max(1, min(pieces // 2, 24))
        if not 1 <= self.most < pieces:
            raise InputError(
                f"clasp={self.most} is out of range: this model has {pieces} sub-layers to skip, so 1 to {pieces - 1}"
            )
        return self.most

    @property
    def name(self) -> str:
        """Short enough for a table."""
        return "clasp" if self.most is None else f"clasp={self.most}"


def parse_draft(text: str) -> Draft | Clasp:
    """``exit=12``, ``skip=a3/m5`` (attention of block 3, MLP of block 5), ``clasp`` or ``clasp=16`` (at most so many
    sub-layers). Raises :class:`InputError`."""
    kind, given, value = text.partition("=")
    try:
        if kind == "exit":
            return Draft(exit=int(value))
        if kind == "clasp":
            return Clasp(most=int(value) if given else None)
        parts = [part.strip() for part in value.split("/") if part.strip()]
        if kind != "skip" or any(part[0] not in "am" for part in parts):
            raise ValueError(text)
        return Draft(
            skip_attention=tuple(sorted(int(p[1:]) for p in parts if p[0] == "a")),
            skip_mlp=tuple(sorted(int(p[1:]) for p in parts if p[0] == "m")),
        )
    except ValueError:
        raise InputError(f"draft {text[:80]!r} is not understood: write exit=12, skip=a3/m5, clasp or auto") from None
