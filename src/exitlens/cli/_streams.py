"""What standard streams do where they cannot do everything: a narrow encoding, an error stream that is full."""

from __future__ import annotations

import codecs
import contextlib
from typing import Any, Final

__all__ = ["NARROW", "Remarks", "as_measured"]

NARROW: Final = "exitlens.narrow"  # an error handler of encoders

# Signs of our own tables, sentences and maps; one character, but where that would say something else.
_ASCII = str.maketrans(
    {
        "–": "-", "—": "-", "−": "-", "·": ".", "•": "*", "…": "~", "†": "+", "×": "x", "“": '"', "”": '"', "‘": "'",
        "’": "'", "─": "-", "━": "=", "░": ".", "▒": ":", "▓": "+", "█": "#", "✓": "y", "✗": "n", "⟨": "<", "⟩": ">",
        "\xa0": " ", "≥": ">=", "≤": "<=", "∞": "inf",
    }
)  # fmt: skip


def _narrow(error: UnicodeError) -> tuple[str | bytes, int]:
    """What an encoding lacks: our own signs as ASCII looks like them, other characters as ``\\u65e5``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start]
    shown = text.translate(_ASCII)
    if shown.isascii():
        return shown, error.start + 1
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(one)


codecs.register_error(NARROW, _narrow)


def as_measured(text: str, stream: Any) -> str:
    """``text`` as wide as it will be in the stream's encoding: a sign that becomes several is replaced already."""
    encoding = getattr(stream, "encoding", None)
    if not encoding or encoding.lower().startswith("utf") or text.isascii():
        return text
    written = [(c, c.encode(encoding, NARROW).decode(encoding)) for c in text]
    return "".join(other if len(other) > 1 else c for c, other in written)


class Remarks:
    """The error stream as one that never fails: a remark that cannot be written ends no command."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
