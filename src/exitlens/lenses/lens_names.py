"""Which lens a word on the command line means: a built-in one, a file, a name kept in the cache folder, or the model's.

    logit, raw              built in
    tuned, jacobian         the lens of that kind that `exitlens lens train` kept for this very model
    PATH                    a file of ours, which says which kind it holds; a folder of a published tuned-lens
                            checkpoint; a published Jacobian lens (.pt, or its fields as safetensors)
    NAME                    <cache>/lenses/NAME.safetensors, as `exitlens lens train --name NAME` keeps it
    ORG/NAME[@REV][/FILE]   a published Jacobian lens on the Hub
    tuned:…, jacobian:…     the same, refused where it is of the other kind

A lens is checked to be one of the model that it shall read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from exitlens.errors import ExitlensError, InputError
from exitlens.lenses import hub_lens
from exitlens.lenses.jacobian import FORMAT as JACOBIAN
from exitlens.lenses.jacobian import JacobianLens
from exitlens.lenses.lens import BUILT_IN, Lens, as_lens
from exitlens.lenses.published_jacobian import PICKLES, PUBLISHED, from_published_tensors, read_published
from exitlens.lenses.tuned import TunedLens
from exitlens.models.protocol import LayeredModel
from exitlens.storage.cache_folder import cache_dir
from exitlens.storage.tensors import read_tensors

__all__ = [
    "FITTED",
    "check_lens_word",
    "kept_lenses",
    "kept_path",
    "kind_of",
    "lens_named",
    "load_lens",
    "open_lens",
    "own_path",
]

FITTED: Mapping[str, str] = {"tuned": "tuned lens", "jacobian": "Jacobian lens"}
"""The kinds that are fitted to a model, and what messages call them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LOG = logging.getLogger("exitlens")


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


def own_path(lm: LayeredModel, kind: str = "tuned") -> Path:
    """Where the lens that plain ``tuned`` or ``jacobian`` means for this model is kept: named by its fingerprint."""
    mark = hashlib.sha256(lm.fingerprint.encode()).hexdigest()[:16]
    return cache_dir() / "lenses" / f"{kind}-{mark}.safetensors"


def check_lens_word(text: str) -> str:
    """``text`` itself when there is such a lens, as far as can be told without a model. Raises InputError."""
    if text not in (*BUILT_IN, *FITTED):
        lens_named(text)
    return text


def open_lens(text: str, lm: LayeredModel) -> Lens:
    """The lens that ``text`` means for this model, ready to read it. Raises InputError."""
    if text in BUILT_IN:
        return as_lens(text, lm)
    if text in FITTED:
        path = own_path(lm, text)
        if not path.exists():
            method = "" if text == "tuned" else f" --method {text}"
            raise InputError(
                f"no {FITTED[text]} for {lm.name} yet{_fitting(lm, text)}: train one with exitlens lens train{method} "
                f"--model {lm.name} --self-text 200 (or --text FILE)"
            )
        return load_lens(path, lm)
    lens = load_lens(lens_named(text), lm)
    kind = text.partition(":")[0]
    if kind in FITTED and text != kind and kind != kind_of(lens):
        raise InputError(f"'{text[:80]}' is a {FITTED[kind_of(lens)]}, no {FITTED[kind]}: leave '{kind}:' out")
    return lens


def kind_of(lens: Lens) -> str:
    """The word for what kind of fitted lens it is."""
    return "jacobian" if isinstance(lens, JacobianLens) else "tuned"


def load_lens(path: Path, lm: LayeredModel | None = None) -> TunedLens | JacobianLens:
    """The lens that a file or folder holds, of the kind that it says; with ``lm`` checked to fit that model.

    Raises:
        InputError: It is no lens, or another model's.
    """
    lens = _loaded(path)
    if lm is None:
        return lens
    lens.check(lm)
    if isinstance(lens, JacobianLens) and lens.depth is None:
        if "ignored" in lens.provenance:
            _LOG.warning("lens '%s' also holds %s, which is ignored", lens.name, lens.provenance["ignored"])
        lens = dataclasses.replace(lens, depth=lm.n_layers)
    return lens


def _loaded(path: Path) -> TunedLens | JacobianLens:
    if path.is_dir():
        return TunedLens.load(path)
    if path.suffix in PICKLES:
        # A tuned-lens checkpoint is a pickle too, params.pt beside its config.json; what it asks for is said there.
        return TunedLens.load(path) if path.name.startswith("params.") else read_published(path)
    tensors, metadata = read_tensors(path)
    if metadata.get("format") == JACOBIAN:
        return JacobianLens.from_tensors(tensors, metadata)
    if metadata.get("format") == PUBLISHED:
        return from_published_tensors(tensors, metadata, path)
    return TunedLens.from_tensors(tensors, metadata)


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


def _fitting(lm: LayeredModel, kind: str) -> str:
    """Names of kept lenses of this kind that were fitted to this model, for an error's text."""
    names = []
    for name, path in kept_lenses().items():
        with contextlib.suppress(ExitlensError):
            lens = load_lens(path, lm)
            if lens.fingerprint and kind_of(lens) == kind:
                names.append(name)
    return f" (but these fit: {', '.join(names)})" if names else ""
