"""What transformers does not check or restore when it reads a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exitlens.errors import CorruptModel

__all__ = ["check_gguf", "fix_pre_tokenizer"]

# Tokenizers that isolate every digit before the byte-level pattern runs; the file names them in `tokenizer.ggml.pre`,
# which transformers ignores. Without it "a  3" becomes [a][ ][ 3] instead of [a][  ][3].
_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def check_gguf(path: Path) -> None:
    """Raise :class:`CorruptModel` unless ``path`` is a GGUF file whose every tensor lies inside it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise CorruptModel(f"{path} is not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError, MemoryError, OSError) as error:
        raise CorruptModel(f"{path} is truncated or damaged ({size} bytes): fetch it again") from error
    if end == 0 or end > size:
        raise CorruptModel(f"{path} is truncated: its tensors end at byte {end}, the file at {size}: fetch it again")


def fix_pre_tokenizer(tokenizer: Any, path: Path) -> None:
    """Give the tokenizer the digit rule that the GGUF names, so that its ids are the model's own."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(str(path)).fields.get("tokenizer.ggml.pre")
    if field is None or str(field.contents()) not in _DIGITS:
        return
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
