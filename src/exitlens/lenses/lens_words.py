"""Which lens a word on the command line means: a built-in one, a file, a name kept in the cache folder, or the model's.

    logit, raw              built in
    tuned, jacobian         the lens of that kind that `exitlens lens train` kept for this very model
    PATH                    a file of ours, which says which kind it holds; a folder of a published tuned-lens
                            checkpoint; a published Jacobian lens (.pt, or its fields as safetensors)
    NAME                    <cache>/lenses/NAME.safetensors, as `exitlens lens train --name NAME` keeps it
    ORG/NAME[@REV][/FILE]   a published Jacobian lens on the Hub
    tuned:…, jacobian:…     the same, refused where it is of the other kind

Here words are read and files found; :mod:`exitlens.lenses.lens_names` loads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from exitlens.errors import InputError
from exitlens.lenses import hub_lens
from exitlens.lenses.lens import BUILT_IN
from exitlens.storage.cache_folder import cache_dir

__all__ = ["FITTED", "check_lens_word", "kept_lenses", "kept_path", "lens_named"]

FITTED: Mapping[str, str] = {"tuned": "tuned lens", "jacobian": "Jacobian lens"}
"""The kinds that are fitted to a model, and what messages call them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def kept_lenses() -> dict[str, Path]:
    """The lenses in the cache folder, by name."""
    return {path.stem: path for path in sorted((cache_dir() / "lenses").glob("*.safetensors"))}


def kept_path(name: str) -> Path:
    """Where a lens of this name is kept. Raises InputError for what is no name."""
    words = (*BUILT_IN, *FITTED)
    if not _NAME.fullmatch(name) or name in words:
        raise InputError(
            f"'{name[:80]}' cannot be the name of a lens: use letters, digits, '.', '_' and '-', and not "
            f"{', '.join(words[:-1])} or {words[-1]}"
        )
    return cache_dir() / "lenses" / f"{name}.safetensors"


def check_lens_word(text: str) -> str:
    """``text`` itself when there is such a lens, as far as can be told without a model. Raises InputError."""
    if text not in (*BUILT_IN, *FITTED):
        lens_named(text)
    return text


def lens_named(text: str) -> Path:
    """The file or folder that a path or a name means; one on the Hub is fetched.

    Raises InputError when there is none.
    """
    kind, colon, rest = text.partition(":")
    word = rest if colon and kind in FITTED else text
    path = Path(word).expanduser()
    if word and path.exists():
        return path
    kept = kept_lenses()
    if word in kept:
        return kept[word]
    if hub_lens.is_hub_lens(word):
        return hub_lens.fetch(word)
    names = ", ".join(kept) or "none"
    raise InputError(
        f"no lens '{text[:80]}': use logit, raw, tuned, jacobian, a file, a Hub id, or a name kept in "
        f"'{cache_dir() / 'lenses'}' ({names}); exitlens lens train makes one"
    )
