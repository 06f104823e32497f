"""Load a causal LM by name, folder or GGUF file, or take one that is in memory."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.arguments import as_path
from exitlens.compute import hardware
from exitlens.errors import ExitlensError, InputError, ModelError, ModelNotFound, UnsupportedModel
from exitlens.lazy import many_objects
from exitlens.models.checkpoint import adapters, pretrained
from exitlens.models.checkpoint.identity import folder_hash, model_hash
from exitlens.models.checkpoint.pretrained import Raw
from exitlens.models.checkpoint.reasons import one_line
from exitlens.models.hub import catalog
from exitlens.models.hub.online import hub_name, local
from exitlens.models.layered import Layered
from exitlens.models.text.generation_settings import settings_not_applied
from exitlens.models.text.patterns import check_patterns, panicked
from exitlens.models.text.tokens import tokenizer_notes
from exitlens.parsing import check_day

__all__ = ["load", "wrap"]

_LOG = logging.getLogger("exitlens")


@many_objects()
def load(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | None = None,
    chat_date: str | None = None,
) -> Layered:
    """A causal LM, layer by layer.

    Args:
        name: A catalogue name (``smollm2-135m``), a Hub id (``org/name`` or ``org/name@revision``), a local folder
            (of a model, or of a PEFT adapter), or a ``.gguf`` file.
        device: ``auto``, ``cpu``, ``cuda``, ...
        dtype: ``auto``: bf16 where the hardware multiplies it faster than float32, else float32.
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Whether code in the model's repository may run.
        base: The base model of an adapter folder, where it is not the one that the adapter names.
        chat_date: The day that its chat template sees (``2026-11-27``); by default the day of the call.

    Raises:
        ModelNotFound: There is no such model.
        CorruptModel: Files are damaged, or weights do not fit the configuration.
        UnsupportedModel: It cannot be built or seen layer by layer.
        ParityError: The readout at the last layer is not the model's own.
        InputError: An argument cannot be used.
    """
    text = as_path(name, "the model", "give its name, folder or .gguf file; wrap() takes a model at hand")
    day = check_day(chat_date)
    where = hardware.pick_device(device)
    kind = hardware.pick_dtype(dtype, where)
    raw = _read(text, kind, revision, trust_remote_code, base)
    raw.model.to(where).eval()
    inner = raw.model.get_base_model() if hasattr(raw.model, "get_base_model") else raw.model
    lm = _layered(raw.model, inner, raw.tokenizer, text, raw.fingerprint, raw.notes)
    lm.chat_date = day
    return lm


def wrap(model: nn.Module, tokenizer: Any, *, name: str | None = None) -> Layered:
    """A model already in memory (quantised, compiled, spread over devices, LoRA), layer by layer, left as it is.

    Raises :class:`UnsupportedModel` and :class:`ParityError` as :func:`load` does.
    """
    inner = getattr(model, "_orig_mod", model)
    if not hasattr(inner, "get_input_embeddings"):
        raise UnsupportedModel(f"{type(inner).__name__} is not a transformers causal LM: no get_input_embeddings()")
    label = name or str(getattr(getattr(inner, "config", None), "name_or_path", "") or type(inner).__name__)
    return _layered(model, inner, tokenizer, label, model_hash(inner), [])


def _layered(model: Any, inner: Any, tokenizer: Any, label: str, fingerprint: str, notes: list[str]) -> Layered:
    check_patterns(tokenizer, label)
    try:
        lm = Layered(
            model, tokenizer, name=label, fingerprint=fingerprint, cache_factory=lambda: pretrained.kv_cache(inner)
        )
    except ExitlensError:
        raise
    except BaseException as error:  # a configuration or tokenizer with values of the wrong kind fails anywhere
        if not isinstance(error, Exception) and not panicked(error):
            raise
        raise UnsupportedModel(f"{label}: it is here, but does not run: {one_line(error)}") from error
    lm.notes = (*notes, *tokenizer_notes(tokenizer, len(lm.embed.weight), label), *_settings_note(inner, label))
    for note in lm.notes:
        _LOG.warning("%s", note)
    return lm


def _settings_note(model: Any, label: str) -> list[str]:
    settings = settings_not_applied(model)
    if not settings:
        return []
    said = ", ".join(f"{name}={str(value)[:40]}" for name, value in settings.items())
    return [
        f"{label}: its generation settings {said[:200]} are not applied to answers, unless by --generation-config model"
    ]


def _read(text: str, dtype: torch.dtype, revision: str | None, remote: bool, base: str | None) -> Raw:
    """What the name means, in this order: catalogue, file, folder, Hub id."""
    if not text.strip():
        raise InputError("the model's name is empty: give a catalogue name, a Hub id, a folder or a .gguf file")
    path, pinned = local(text, "model"), None
    if text in catalog.CATALOG:
        if catalog.CATALOG[text].kind != "causal-lm":
            raise ModelError(f"{text} is a sentence encoder, not a causal LM: see `exitlens models list`")
        path, pinned = catalog.resolve(text), catalog.pinned(text)
    if path.is_file() or path.is_dir():
        if revision is not None:
            raise InputError(f"{text!r} is on this machine and has no revision {revision!r}: leave --revision out")
        if path.is_dir():
            return _read_folder(path, text, dtype, remote, base)
        _no_base(base, text)
        return pretrained.read_gguf(path, text, dtype, pinned)
    repo, tag = hub_name(text, revision, "model")
    folder = pretrained.snapshot(repo, text, tag, remote=remote)
    raw = _read_folder(folder, text, dtype, remote, base)
    raw.model.name_or_path = repo  # not the place in the Hub's cache: adapters made of it name their base by this
    return raw


def _no_base(base: str | None, text: str) -> None:
    if base is not None:
        raise InputError(f"{text!r} is no adapter, so --base {base} says nothing: leave it out")


def _read_folder(folder: Path, label: str, dtype: torch.dtype, remote: bool, base: str | None) -> Raw:
    """A model's folder, an adapter's, or one that holds both."""
    adapter = adapters.adapter_in(folder, label)
    if adapter is None:
        _no_base(base, label)
        return pretrained.read_folder(folder, label, dtype, remote=remote)
    if base is None and (folder / "config.json").is_file() and pretrained.has_weights(folder, label):
        with adapters.without_adapter(folder) as view:
            raw = pretrained.read_folder(view, label, dtype, remote=remote, source=folder)
        said = "its own base"
    else:
        below = adapter.base_for(base, label)
        named = None if base or Path(below).exists() else adapter.revision
        try:
            raw = _read(below, dtype, named, remote, None)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"{label!r} is an adapter ({adapter.kind}) on {below!r}, which is not to be had ({error}): give its "
                "base with --base (base= in Python)"
            ) from error
        said = below
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            raw.tokenizer = pretrained.read_tokenizer(folder, label, remote=remote)
    raw.model = adapters.attach(raw.model, adapter, label)
    marks = raw.fingerprint + folder_hash(folder, [folder / adapters.WEIGHTS])
    raw.fingerprint = hashlib.sha256(marks.encode()).hexdigest()
    raw.notes.append(f"{label}: an adapter ({adapter.kind}) on {said}; what is read is the adapted model")
    return raw
