"""The lens that a word of :mod:`exitlens.lenses.lens_words` means, loaded, and checked to fit its model."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path

from exitlens.errors import ExitlensError, InputError
from exitlens.lenses.jacobian.lens import FORMAT as JACOBIAN
from exitlens.lenses.jacobian.lens import JacobianLens
from exitlens.lenses.jacobian.published import PICKLES, PUBLISHED, for_model, from_published_tensors, read_published
from exitlens.lenses.lens import BUILT_IN, Lens, as_lens
from exitlens.lenses.lens_words import FITTED, kept_lenses, lens_named
from exitlens.lenses.tuned import TunedLens
from exitlens.models.protocol import LayeredModel
from exitlens.storage.cache_folder import cache_dir
from exitlens.storage.tensors import read_tensors

__all__ = ["kind_of", "load_lens", "open_lens", "own_path"]

_LOG = logging.getLogger("exitlens")


def own_path(lm: LayeredModel, kind: str = "tuned") -> Path:
    """Where the lens that plain ``tuned`` or ``jacobian`` means for this model is kept: named by its fingerprint."""
    mark = hashlib.sha256(lm.fingerprint.encode()).hexdigest()[:16]
    return cache_dir() / "lenses" / f"{kind}-{mark}.safetensors"


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
    if isinstance(lens, JacobianLens) and lens.depth is None:
        return for_model(lens, lm)
    lens.check(lm)
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


def _fitting(lm: LayeredModel, kind: str) -> str:
    """Names of kept lenses of this kind that were fitted to this model, for an error's text."""
    names = []
    for name, path in kept_lenses().items():
        with contextlib.suppress(ExitlensError):
            lens = load_lens(path, lm)
            if lens.fingerprint and kind_of(lens) == kind:
                names.append(name)
    return f" (but these fit: {', '.join(names)})" if names else ""
