"""What libraries raise while they read a model folder, in one line with the file and, where it is found, the field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exitlens.errors import CorruptModel, ExitlensError, UnsupportedModel
from exitlens.models.checkpoint.faults import Trial, fault
from exitlens.models.checkpoint.reasons import damaged_json, one_line
from exitlens.models.text.patterns import panicked

__all__ = ["TOKENIZER_FILES", "reading"]

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip


@contextmanager
def reading(label: str, what: str, folder: Path, trials: Sequence[Trial] = ()) -> Iterator[None]:
    """Whatever a library raises while it reads ``folder`` becomes one line naming the file, and the field.

    ``trials``: what finds the field; none where they would run code of the folder.
    """
    from safetensors import SafetensorError

    try:
        yield
    except ExitlensError:
        raise
    except BaseException as error:  # parsers of damaged files raise anything
        if not isinstance(error, Exception) and not panicked(error):
            raise
        damaged = damaged_json(folder)
        if damaged is not None:
            raise CorruptModel(f"{label}: {damaged}: fetch the model again") from error
        why = one_line(error)
        if isinstance(error, SafetensorError):
            raise CorruptModel(f"{label}: damaged weights ({why}): fetch the model again") from error
        at = fault(folder, trials, why)
        if isinstance(error, OSError) and what != "tokenizer":
            raise CorruptModel(f"{label}: {at or what}: {why}") from error
        if what in ("model", "config.json"):
            raise UnsupportedModel(
                f"{label} is not a causal LM that transformers can build from its {at or 'config.json'}: {why}"
            ) from error
        at = at or ", ".join(name for name in TOKENIZER_FILES if what == "tokenizer" and (folder / name).is_file())
        raise UnsupportedModel(f"{label}: its {what} cannot be used: {at and f'{at}: '}{why}") from error
