"""The model that a user holds: loaded or wrapped, with what the package can do with it as methods.

Rooms import in one direction, and a model comes before those who read it and generate with it. Here, outside of all
rooms, the two meet.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from exitlens.lazy import LazyMethod
from exitlens.models.checkpoint import loading
from exitlens.models.layered import Layered

if TYPE_CHECKING:
    from exitlens.decoding.loop import generate
    from exitlens.decoding.score import score
    from exitlens.lenses.read_texts import read
    from exitlens.studies.layers.attribution import attribute
    from exitlens.studies.layers.look import look

__all__ = ["LM", "load", "wrap"]


class LM(Layered):
    """A causal LM seen layer by layer: a :class:`~exitlens.models.protocol.LayeredModel` with methods.

    Made by :func:`load` and :func:`wrap`. Each method is the package's function of that name, with the model as its
    first argument: ``lm.read(texts, lens="logit")`` is ``exitlens.read(lm, texts, lens="logit")``.
    """

    # The functions themselves, so that options, types and documentation are written once. Their modules load when they
    # are first called: tables and statistics take as long to import as the model takes to load.
    if TYPE_CHECKING:
        read = read
        generate = generate
        look = look
        attribute = attribute
        score = score
    else:
        read = LazyMethod("exitlens.lenses.read_texts")
        generate = LazyMethod("exitlens.decoding.loop")
        look = LazyMethod("exitlens.studies.layers.look")
        attribute = LazyMethod("exitlens.studies.layers.attribution")
        score = LazyMethod("exitlens.decoding.score")


def load(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | None = None,
    chat_date: str | None = None,
) -> LM:
    """A causal LM by name, layer by layer.

    Args:
        name: A catalogue name (``smollm2-135m``), a Hub id (``org/name`` or ``org/name@revision``), a local folder
            (of a model or of a PEFT adapter) or a ``.gguf`` file.
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps``; ``auto`` takes the first of cuda, mps, cpu that is there.
        dtype: ``auto`` is bf16 where the hardware multiplies it faster than float32, else float32.
        revision: A branch, tag or commit of a Hub id.
        trust_remote_code: Whether code that comes with the model may run.
        base: The base model of an adapter's folder, where it is not the one that the adapter names.
        chat_date: The day that its chat template sees (``2026-11-27``); by default the day of the call.

    Returns:
        The model, its readout at the last layer compared with its own logits.

    Raises:
        ModelNotFound: No such model, or it could not be fetched.
        CorruptModel: A damaged file, or weights that do not fit the configuration.
        UnsupportedModel: Its layers cannot be identified.
        ParityError: The readout at the last layer differs from the model's logits.
        InputError: A device or type that is not there.
    """
    return _with_methods(
        loading.load(
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            base=base,
            chat_date=chat_date,
        )
    )


def wrap(model: nn.Module, tokenizer: Any, *, name: str | None = None) -> LM:
    """A model already in memory (quantised, compiled, spread over devices, LoRA), layer by layer, left as it is.

    Args:
        model: A causal LM of transformers.
        tokenizer: Its tokenizer.
        name: What tables and messages call it; by default where it was loaded from.

    Returns:
        The model, its readout at the last layer compared with its own logits.

    Raises:
        UnsupportedModel: Its layers cannot be identified.
        ParityError: The readout at the last layer differs from the model's logits.
    """
    return _with_methods(loading.wrap(model, tokenizer, name=name))


def _with_methods(layered: Layered) -> LM:
    """The object that was just made, as an :class:`LM`: it has methods more and no state, so nothing is copied."""
    layered.__class__ = LM
    return cast(LM, layered)
