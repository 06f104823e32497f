"""What went wrong inside a library, in one line."""

from __future__ import annotations

import json
from pathlib import Path

from exitlens.errors import ExitlensError

__all__ = ["damaged_json", "one_line"]

_JSON = (
    "config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
    "model.safetensors.index.json", "adapter_config.json", "tokenizer.json", "vocab.json",
)  # fmt: skip


def one_line(error: BaseException, most: int = 200) -> str:
    """The error's message on one line of at most ``most`` characters."""
    if isinstance(error, ExitlensError):
        return str(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is not there"
    return text if len(text) <= most else text[: most - 3] + "..."


def damaged_json(folder: Path) -> str | None:
    """The name of the first JSON file of a model folder that is none, with the reason; None where all are."""
    for name in _JSON:
        path = folder / name
        if not path.is_file():
            continue
        try:
            said = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            return f"{name} is no valid JSON ({one_line(error, 100)})"
        if not isinstance(said, dict):
            return f"{name} holds {type(said).__name__}, not an object"
    return None
