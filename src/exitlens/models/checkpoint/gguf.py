"""What transformers does not check, restore or show when it reads a GGUF file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from exitlens.errors import CorruptModel
from exitlens.progress import progress

__all__ = ["check_gguf", "fix_pre_tokenizer", "parsed_once"]

# Tokenizers that isolate every digit before the byte-level pattern runs; the file names them in `tokenizer.ggml.pre`,
# which transformers ignores. Without it "a  3" becomes [a][ ][ 3] instead of [a][  ][3].
_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def check_gguf(path: Path) -> Any:
    """Parse a GGUF file; :class:`CorruptModel` unless every tensor lies inside it."""
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
    return reader


@contextlib.contextmanager
def parsed_once(path: Path) -> Iterator[None]:
    """While open, transformers is given one parse of the file, checked, and its tensors are counted in a bar of ours.

    It parses a file three times, each of which takes as long as unpacking all weights of a small model (a Python loop
    over every entry of the vocabulary), and would show a bar of its own. Raises as :func:`check_gguf`.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    reading: Any = modeling_gguf_pytorch_utils
    reader, usual = check_gguf(path), gguf.GGUFReader

    def opened(file: Any, *more: Any) -> Any:
        return reader if not more and os.path.realpath(file) == os.path.realpath(path) else usual(file, *more)

    def counted(tensors: Iterable[Any], **_words: Any) -> Iterator[Any]:
        tensors = list(tensors)
        with progress(f"unpacking {path.name}, tensors", len(tensors)) as tick:
            for tensor in tensors:
                yield tensor
                tick()

    bar = getattr(reading, "tqdm", None)
    gguf.GGUFReader = opened  # type: ignore[assignment, misc]
    if bar is not None:
        reading.tqdm = counted
    try:
        yield
    finally:
        gguf.GGUFReader = usual  # type: ignore[misc]
        if bar is not None:
            reading.tqdm = bar


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
