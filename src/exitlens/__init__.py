"""exitlens: look inside a language model layer by layer, and act on what is seen.

The public names load what they need on first use, so that ``import exitlens`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exitlens.data import Dataset as Dataset
    from exitlens.data import read as read_data
    from exitlens.decoding import Generation, generate, trace_answers
    from exitlens.integrations.transformers_generate import transformers_generate
    from exitlens.lenses import Trace, read
    from exitlens.models import Layered, load, wrap

__all__ = [
    "Dataset",
    "Generation",
    "Layered",
    "Trace",
    "__version__",
    "generate",
    "load",
    "read",
    "read_data",
    "trace_answers",
    "transformers_generate",
    "wrap",
]

__version__ = "0.1.0"

_HOME = {
    "Dataset": ("data", "Dataset"),
    "Generation": ("decoding", "Generation"),
    "Layered": ("models", "Layered"),
    "Trace": ("lenses", "Trace"),
    "generate": ("decoding", "generate"),
    "load": ("models", "load"),
    "read": ("lenses", "read"),
    "read_data": ("data", "read"),
    "trace_answers": ("decoding", "trace_answers"),
    "transformers_generate": ("integrations.transformers_generate", "transformers_generate"),
    "wrap": ("models", "wrap"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'exitlens' has no attribute {name!r}") from None
    return getattr(import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return __all__
