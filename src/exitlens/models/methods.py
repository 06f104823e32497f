"""``lm.read(...)`` and ``lm.generate(...)``: the package's own functions as methods of a model, and nothing more.

Rooms are imported in one direction, and `models/` comes before those that read and generate. These methods are the one
exception, so they are here together: they ask the package for its public names when they are called, and know nothing
of what lies behind them. No other file of this room may do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exitlens.decoding import Generation
    from exitlens.lenses import Trace

__all__ = ["Methods"]


class Methods:
    """What a model can be asked for directly."""

    def read(self, texts: Sequence[str] | str, **options: Any) -> Trace:
        """Read texts layer by layer: :func:`exitlens.read` of this model, with its options.

        ``lm.read(texts, layers=[0, 15, 30], lens="logit", stats=("entropy", "kl"))``
        """
        import exitlens

        return exitlens.read(self, texts, **options)  # type: ignore[arg-type]  # mixed into models only

    def generate(self, prompts: Sequence[str | Sequence[int]] | str, **options: Any) -> list[Generation]:
        """Answer prompts: :func:`exitlens.generate` of this model, with its options; one prompt may stand alone.

        With ``read=("entropy", ...)`` the layers are read as the answers are written, and
        :func:`exitlens.trace_answers` gives what :meth:`read` gives.
        """
        import exitlens

        return exitlens.generate(self, [prompts] if isinstance(prompts, str) else prompts, **options)  # type: ignore[arg-type]  # as above
