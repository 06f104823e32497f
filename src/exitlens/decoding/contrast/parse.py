"""Decoders by name: ``vanilla``, ``dola:high``, ``sled:k=10,rate=0.5``, ``delta:from=15,at=33``, or a user's own."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from exitlens.arguments import wrong_kind
from exitlens.decoding.contrast.acd import ACD
from exitlens.decoding.contrast.base import (
    Candidates,
    ContrastDecoder,
    Decoder,
    Lens,
    Option,
    Scores,
    candidate_layers,
    options_of,
)
from exitlens.decoding.contrast.controls import RandomLayer, StaticLayer, Vanilla
from exitlens.decoding.contrast.delta import DeLTa
from exitlens.decoding.contrast.dola import DoLa
from exitlens.decoding.contrast.end import END
from exitlens.decoding.contrast.sled import SLED
from exitlens.errors import InputError
from exitlens.models.checkpoint.shape import known_depth

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_decoder", "decoder_names", "decoder_options", "parse_decoder", "register_decoder"]

# A decoder's class, or the function of a user's own decoder made into one.
_Maker = type[ContrastDecoder] | partial["_FunctionDecoder"]
_BUILT_IN: dict[str, _Maker] = {
    "vanilla": Vanilla,
    "dola": DoLa,
    "static": StaticLayer,
    "random": RandomLayer,
    "sled": SLED,
    "acd": ACD,
    "end": END,
    "delta": DeLTa,
}
_OWN: dict[str, _Maker] = {}
_SETS = ("low", "high", "all")


def decoder_names() -> tuple[str, ...]:
    """Every decoder's name, the user's own last."""
    return (*_BUILT_IN, *_OWN)


def decoder_options(name: str) -> tuple[Option, ...]:
    """The options of the decoder called ``name``. Raises :class:`InputError` for an unknown one."""
    maker = _BUILT_IN.get(name) or _OWN.get(name)
    if maker is None:
        raise InputError(f"unknown decoder {name[:80]!r}: {_near(name, decoder_names())}")
    return options_of(maker.func if isinstance(maker, partial) else maker)


def register_decoder(
    name: str,
    decoder: type[ContrastDecoder] | Callable[[Tensor, Tensor], Tensor],
    *,
    layers: Sequence[int] | Callable[[int], Sequence[int]] = (),
    lens: Lens = "logit",
) -> None:
    """Give a decoder of your own a name, which then works wherever a decoder is named.

    Args:
        name: letters, digits, ``-`` and ``_``; not a built-in decoder's.
        decoder: a frozen dataclass below :class:`ContrastDecoder`, whose fields made by :func:`option` are its options;
            or a function of final logits ``[batch, vocab]`` and early logits ``[layers, batch, vocab]`` (both in the
            dtype of the first) that returns scores ``[batch, vocab]``.
        layers: for a function, the early layers that it reads, or a function of N that gives them.
        lens: for a function, how they are read: ``raw``, ``logit``, or what else ``--lens`` takes.

    Raises:
        InputError: for a name that is taken or cannot be written, an unknown lens, or a class that is no decoder.
    """
    if name in _BUILT_IN:
        raise InputError(f"decoder name {name!r} is taken by a built-in one: choose another")
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise InputError(f"decoder name {name[:80]!r} cannot be written: use letters, digits, - and _")
    if not callable(decoder):
        raise wrong_kind(f"decoder {name!r}", decoder, "give a function of final and early logits, or a class")
    if not isinstance(decoder, type):
        Option("lens", "lens", "lens", "logit", "how early layers are read").check(lens)
        reads = layers if callable(layers) else tuple(layers)
        _OWN[name] = partial(_FunctionDecoder, name=name, function=decoder, reads=reads, lens=lens)
    elif is_dataclass(decoder) and issubclass(decoder, ContrastDecoder):
        if decoder.__call__ is ContrastDecoder.__call__:  # would be found out only when the model is loaded
            raise InputError(f"decoder {name!r} gives no scores: write the __call__ of {decoder.__name__}")
        _OWN[name] = decoder
    else:
        raise InputError(
            f"{decoder.__name__} is no decoder: write @dataclass(frozen=True, kw_only=True) over a class below "
            "exitlens.decoding.ContrastDecoder"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FunctionDecoder(ContrastDecoder):
    """A user's function as a decoder without options."""

    function: Callable[[Tensor, Tensor], Tensor]
    reads: tuple[int, ...] | Callable[[int], Sequence[int]]

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The layers that were named with the function."""
        reads = tuple(self.reads(n_layers)) if callable(self.reads) else self.reads
        return candidate_layers(reads, n_layers, tied) if reads else ()

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:  # noqa: ARG002 (the protocol's)
        """What the function says."""
        return Scores(self.function(final, early.to(final.dtype)))


def check_decoder(decoder: str, model: str) -> None:
    """Refuse a decoder whose layers ``model`` does not have, where its depth is known before it is loaded.

    Raises InputError as :func:`parse_decoder`, and LayerError.
    """
    parsed, depth = parse_decoder(decoder), known_depth(model)
    if depth is not None:
        parsed.layers(depth, False)  # tied embeddings only leave candidates out


def parse_decoder(text: str | Decoder) -> Decoder:
    """``name[:value][,option=value…]`` → decoder; its ``name`` is the text itself.

    Raises :class:`InputError` for an unknown decoder or option, naming the nearest.
    """
    if not isinstance(text, str):
        if not hasattr(text, "layers"):
            raise wrong_kind("the decoder", text, f"give a decoder, or its name: {', '.join(decoder_names())}")
        return text
    head, _, rest = text.strip().partition(":")
    known = decoder_options(head)
    maker = _BUILT_IN.get(head) or _OWN[head]
    given: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, sign, value = part.partition("=")
        if not sign:
            item, value = _bare(head, known, part, text), part
        else:
            item = _named(head, known, key)
        if not value:
            raise InputError(f"option {key!r} in decoder {text!r} is empty: write {key}=value")
        if item.field in given:
            raise InputError(f"decoder {text!r} gives {item.name} two values (the second {value!r}): leave one out")
        given[item.field] = _READ[item.kind](value, text)
        item.check(given[item.field])
    return replace(maker(**given), name=text.strip())


def _named(head: str, known: Sequence[Option], key: str) -> Option:
    for item in known:
        if item.name == key:
            return item
    names = tuple(item.name for item in known)
    raise InputError(f"unknown option {key[:80]!r} of decoder {head!r}: {_near(key, names)}")


def _bare(head: str, known: Sequence[Option], value: str, text: str) -> Option:
    for item in known:
        if item.bare:
            return item
    more = f": write {head}:{known[0].name}=value" if known else ""
    raise InputError(f"decoder {head!r} takes no value by itself, but {value[:80]!r} was given in {text!r}{more}")


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"use {', '.join(known)}" if known else "it takes no options"


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


_READ: dict[str, Callable[[str, str], Any]] = {
    "number": _number,
    "whole": _whole,
    "layer": _whole,
    "layers": _layers,
    "word": lambda value, _text: value,
    "lens": lambda value, _text: value,
}
