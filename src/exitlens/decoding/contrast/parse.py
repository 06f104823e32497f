"""Decoders by name: ``vanilla``, ``dola:high``, ``sled:k=10,rate=0.5``, ``delta:from=15,at=33``, or a user's own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from exitlens.decoding.contrast.decoders import ACD, END, SLED, Candidates, Decoder, DeLTa, DoLa, Scores, Vanilla
from exitlens.errors import InputError

__all__ = ["names", "parse_decoder", "register"]

_Factory = Callable[[str, dict[str, str]], Decoder]
_OPTIONS: dict[str, tuple[str, ...]] = {
    "vanilla": (),
    "dola": ("layers", "choice", "top", "lens"),
    "static": ("layer", "top", "lens"),
    "random": ("layers", "top", "lens"),
    "sled": ("k", "rate", "layers", "lens"),
    "acd": ("layer", "top", "lens"),
    "end": ("weight", "layers", "top", "lens"),
    "delta": ("from", "at", "top", "lens"),
}
_SETS = ("low", "high", "all")
_USER: dict[str, Callable[..., Decoder]] = {}


def names() -> tuple[str, ...]:
    """Every decoder's name."""
    return (*_OPTIONS, *_USER)


def register(
    name: str, function: Callable[[Tensor, Tensor], Tensor], *, layers: tuple[int, ...] = (), lens: str = "logit"
) -> None:
    """Make ``function(final [batch, vocab], early [layers, batch, vocab]) → scores [batch, vocab]`` a decoder.

    ``layers`` are the early layers it reads, ``lens`` (``raw`` or ``logit``) how. Raises :class:`InputError` for a name
    that is taken or an unknown lens.
    """
    if name in _OPTIONS:
        raise InputError(f"decoder name {name!r} is taken by a built-in one: choose another")
    if lens not in ("raw", "logit"):
        raise InputError(f"unknown lens {lens!r}: use raw or logit")
    _USER[name] = lambda: _User(name, function, layers, lens)


class _User:
    def __init__(self, name: str, function: Callable[[Tensor, Tensor], Tensor], layers: tuple[int, ...], lens: Any):
        self.name, self.lens, self._function, self._layers = name, lens, function, layers

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        from exitlens.decoding.contrast.decoders import candidate_layers

        return candidate_layers(self._layers, n_layers, tied) if self._layers else ()

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        scores = self._function(final, early.to(final.dtype))
        if scores.shape != final.shape:
            raise InputError(
                f"decoder {self.name!r} gave scores of shape {tuple(scores.shape)}, not {tuple(final.shape)}"
            )
        return Scores(scores)


def parse_decoder(text: str | Decoder) -> Decoder:
    """``name[:value][,option=value…]`` → decoder; its ``name`` is the text itself.

    Raises :class:`InputError` for an unknown decoder or option, naming the nearest.
    """
    if not isinstance(text, str):
        return text
    head, _, rest = text.strip().partition(":")
    if head in _USER:
        if rest:
            raise InputError(f"decoder {head!r} takes no options, but {rest!r} was given")
        return _USER[head]()
    if head not in _OPTIONS:
        raise InputError(f"unknown decoder {head!r}: {_near(head, names())}")
    options: dict[str, str] = {}
    bare = ""
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, sign, value = part.partition("=")
        if not sign:
            if bare:
                raise InputError(f"decoder {text!r} has two bare values ({bare!r}, {part!r}): write option=value")
            bare = part
        elif key not in _OPTIONS[head]:
            raise InputError(f"unknown option {key!r} of decoder {head!r}: {_near(key, _OPTIONS[head])}")
        else:
            if not value:
                raise InputError(f"option {key!r} in decoder {text!r} is empty: write {key}=value")
            options[key] = value
    decoder = _build(head, bare, options, text)
    return replace(decoder, name=text.strip())  # type: ignore[type-var]


def _near(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"use {', '.join(known)}" if known else "it takes no options"


def _build(head: str, bare: str, options: dict[str, str], text: str) -> Decoder:
    common: dict[str, Any] = {}
    if "lens" in options:
        if options["lens"] not in ("raw", "logit"):
            raise InputError(f"unknown lens {options['lens']!r} in {text!r}: use raw or logit")
        common["lens"] = options["lens"]
    if "top" in options:
        common["relative_top"] = _number(options["top"], text)
    layers = _layers(options.get("layers") or bare, text) if options.get("layers") or bare else None
    if head == "dola":
        if "choice" in options:
            if options["choice"] not in ("jsd", "reference"):
                raise InputError(f"unknown DoLa choice {options['choice']!r} in {text!r}: use jsd or reference")
            common["choice"] = options["choice"]
        return DoLa(candidates=layers or "high", **common)
    if head == "random":
        return DoLa(candidates=layers or "high", pick="random", **common)
    if head == "static":
        single = options.get("layer") or bare
        if not single:
            raise InputError(f"decoder {text!r} needs its layer: write static:16")
        return DoLa(candidates=(_whole(single, text),), **common)
    if head == "sled":
        if "k" in options:
            common["k"] = _whole(options["k"], text)
        if "rate" in options:
            common["rate"] = _number(options["rate"], text)
        return SLED(candidates=layers, **common)
    if head == "acd":
        single = options.get("layer") or bare
        return ACD(layer=_whole(single, text) if single else None, **common)
    if head == "end":
        if "weight" in options:
            common["weight"] = _number(options["weight"], text)
        return END(candidates=layers or "high", **common)
    if head == "delta":
        if bare:
            raise InputError(f"decoder {text!r}: write delta:from=15,at=33")
        if "from" in options:
            common["start"] = _whole(options["from"], text)
        if "at" in options:
            common["at"] = _number(options["at"], text)
        return DeLTa(**common)
    if bare:
        raise InputError(f"decoder {head!r} takes no value, but {bare!r} was given")
    return Vanilla()


def _layers(value: str, text: str) -> Candidates:
    if value in _SETS:
        return value  # type: ignore[return-value]
    if value.isalpha():
        known = (*_SETS, "or a list such as 4/8/12")
        raise InputError(f"unknown layers {value!r} in decoder {text!r}: {_near(value, known)}")
    return tuple(_whole(part, text) for part in value.split("/"))


def _whole(value: str, text: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{value!r} in decoder {text!r} is not a layer or whole number: write 4, or 4/8/12") from None


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{value!r} in decoder {text!r} is not a number")
    return number
