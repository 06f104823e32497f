"""Which lens a word on the command line means: a built-in one, a file, a name kept in the cache folder, or the model's.

    logit, raw          built in
    tuned               the lens that `exitlens lens train` kept for this very model
    PATH, tuned:PATH    a file of ours, or a folder of a published tuned-lens checkpoint
    NAME, tuned:NAME    <cache>/lenses/NAME.safetensors, as `exitlens lens train --name NAME` keeps it

A lens is checked to be one of the model that it shall read.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from exitlens.errors import ExitlensError, InputError
from exitlens.lenses.lens import BUILT_IN, Lens, as_lens
from exitlens.lenses.tuned import TunedLens
from exitlens.models.protocol import LayeredModel
from exitlens.storage.cache_folder import cache_dir

__all__ = [
    "check_lens_word",
    "kept_lenses",
    "kept_path",
    "lens_named",
    "open_lens",
    "own_path",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def kept_lenses() -> dict[str, Path]:
    """The lenses in the cache folder, by name."""
    return {path.stem: path for path in sorted((cache_dir() / "lenses").glob("*.safetensors"))}


def kept_path(name: str) -> Path:
    """Where a lens of this name is kept. Raises InputError for what is no name."""
    if not _NAME.fullmatch(name) or name in (*BUILT_IN, "tuned"):
        raise InputError(
            f"'{name}' cannot be the name of a lens: use letters, digits, '.', '_' and '-', and not logit, raw or tuned"
        )
    return cache_dir() / "lenses" / f"{name}.safetensors"


def own_path(lm: LayeredModel) -> Path:
    """Where the lens that plain ``tuned`` means for this model is kept: the name holds a hash of its fingerprint."""
    mark = hashlib.sha256(lm.fingerprint.encode()).hexdigest()[:16]
    return cache_dir() / "lenses" / f"tuned-{mark}.safetensors"


def check_lens_word(text: str) -> str:
    """``text`` itself when there is such a lens, as far as can be told without a model. Raises InputError."""
    if text not in (*BUILT_IN, "tuned"):
        lens_named(text)
    return text


def open_lens(text: str, lm: LayeredModel) -> Lens:
    """The lens that ``text`` means for this model, ready to read it. Raises InputError."""
    if text in BUILT_IN:
        return as_lens(text, lm)
    if text == "tuned":
        path = own_path(lm)
        if not path.exists():
            raise InputError(
                f"no tuned lens for {lm.name} yet{_fitting(lm)}: train one with exitlens lens train --model {lm.name} "
                "--self-text 200 (or --text FILE)"
            )
        return TunedLens.load(path, lm)
    return TunedLens.load(lens_named(text), lm)


def lens_named(text: str) -> Path:
    """The file or folder that a path or a name means. Raises InputError when there is none."""
    word = text.removeprefix("tuned:")
    path = Path(word).expanduser()
    if word and path.exists():
        return path
    kept = kept_lenses()
    if word in kept:
        return kept[word]
    names = ", ".join(kept) or "none"
    raise InputError(
        f"no lens '{text}': use logit, raw, tuned, a file, or a name kept in '{cache_dir() / 'lenses'}' "
        f"({names}); exitlens lens train makes one"
    )


def _fitting(lm: LayeredModel) -> str:
    """Names of kept lenses that were trained for this model, for an error's text."""
    names = []
    for name, path in kept_lenses().items():
        with contextlib.suppress(ExitlensError):
            if TunedLens.load(path, lm).fingerprint:
                names.append(name)
    return f" (but these fit: {', '.join(names)})" if names else ""
