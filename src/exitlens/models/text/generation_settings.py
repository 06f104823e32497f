"""Settings that a checkpoint brings for generation, and which of them change greedy answers but are not applied."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["settings_not_applied"]

# Setting → the value at which it does nothing. They change what is decoded greedily; sampling is the user's own choice.
_OFF: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "suppress_tokens": (None, [], ()),
    "begin_suppress_tokens": (None, [], ()),
    "bad_words_ids": (None, [], ()),
    "sequence_bias": (None, {}, []),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
}


def settings_not_applied(model: nn.Module) -> dict[str, Any]:
    """Name and value of each such setting of the model's ``generation_config`` that is on."""
    said = getattr(model, "generation_config", None)
    found: dict[str, Any] = {}
    for name, off in _OFF.items():
        value = getattr(said, name, None)
        if not any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in off):
            found[name] = value
    return found
