"""What all decoders share: options declared once, the early layers that may be read, the plausibility filter.

A decoder is a frozen dataclass below :class:`ContrastDecoder`. Each option is one field made by :func:`option`; the
grammar (``sled:rate=0.5``), the bounds, the messages and the help are all read from that field. In every decoder
``final`` is ``[batch, vocab]`` in float32 and ``early`` is ``[layers, batch, vocab]`` in the model's own dtype, both
logits after the model's own last transformation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from exitlens.errors import InputError, layer_range_error
from exitlens.lenses.lens_words import check_lens_word

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Candidates",
    "ContrastDecoder",
    "Decoder",
    "Lens",
    "Option",
    "Scores",
    "candidate_layers",
    "filter_option",
    "lens_option",
    "option",
    "options_of",
    "plausible",
]

Lens = str
"""``raw``, ``logit``, or what else ``--lens`` takes: a lens of this model, by name or file."""
Candidates = Literal["low", "high", "all"] | tuple[int, ...]
Kind = Literal["number", "whole", "layer", "layers", "word", "lens"]


@dataclass(slots=True)
class Scores:
    """Scores ``[batch, vocab]`` (−inf: never), and what the step reports: one value or row of values a row.

    ``late_filter [batch, vocab]``: tokens to keep, where a filter belongs after the softmax of the scores instead of
    before it (given answers scored as DoLa's code does); None elsewhere.
    """

    scores: Tensor
    info: dict[str, Tensor] = field(default_factory=dict)
    late_filter: Tensor | None = None


@runtime_checkable
class Decoder(Protocol):
    """What a decoder reads and how it scores."""

    @property
    def name(self) -> str:
        """The text that asks for it."""
        ...

    @property
    def lens(self) -> Lens:
        """How early layers are read: ``raw`` (no norm), ``logit`` (through the final norm), or a fitted lens."""
        ...

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The early layers (0..N−1) that are read, in order; ``tied``: the embeddings are the unembedding too."""
        ...

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:
        """Scores for the next token, each row on its own."""
        ...


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a decoder. ``field`` is its name in Python, ``name`` its name in ``decoder:name=value``.

    ``kind``: a finite number, a whole number, one layer, a set of layers, one of ``words``, or a lens. A value lies in
    ``low``..``high`` (without ``low`` itself where ``above``). ``default`` None: ``help`` says what is taken. ``bare``:
    may stand alone after the colon, as in ``dola:high``. ``required``: there is no default.
    """

    field: str
    name: str
    kind: Kind
    default: Any
    help: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    words: tuple[str, ...] = ()
    bare: bool = False
    required: bool = False

    @property
    def bounds(self) -> str:
        """The values that are allowed, in words."""
        if self.kind == "word":
            return " or ".join(self.words)
        if self.kind == "lens":
            return "raw, logit, tuned, jacobian, or a lens's file or name"
        if self.high < math.inf:
            return f"{self.low:g} to {self.high:g}"
        return f"above {self.low:g}" if self.above else f"at least {self.low:g}"

    def check(self, value: Any) -> None:
        """Raise :class:`InputError` for a value that this option cannot have."""
        if self.kind == "word" and value not in self.words:
            raise InputError(f"unknown {self.name} {str(value)[:80]!r}: use {self.bounds}")
        if self.kind == "lens" and value not in ("raw", "logit"):
            check_lens_word(str(value))
        # NaN is within no bounds, so it is refused as well.
        if self.kind in ("number", "whole") and not (
            self.low <= value <= self.high and math.isfinite(value) and not (self.above and value == self.low)
        ):
            raise InputError(f"{self.name}={value} is out of range ({self.help}): use {self.bounds}")


def option(
    default: Any,
    help: str,  # noqa: A002 (the word that dataclasses of options use everywhere)
    kind: Kind = "number",
    *,
    name: str = "",
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    words: tuple[str, ...] = (),
    bare: bool = False,
    required: bool = False,
) -> Any:
    """A dataclass field that is an option of a decoder; see :class:`Option` for the arguments."""
    made = {"name": name, "kind": kind, "default": default, "help": help, "low": low, "high": high, "above": above,
            "words": words, "bare": bare, "required": required}  # fmt: skip
    return field(default=default, metadata={"option": made})


def lens_option(default: Lens) -> Any:
    """The option ``lens`` with a default of its own."""
    return option(default, "how early layers are read", "lens")


def filter_option(default: float) -> Any:
    """The option ``top``, α of the plausibility filter, with a default of its own."""
    return option(default, "share of the top probability that a token needs to be kept", name="top", low=0.0, high=1.0)


def options_of(decoder: type[Any] | Any) -> tuple[Option, ...]:
    """The options of a decoder or of its class, in the order of its fields, the lens last."""
    made = [(item.name, item.metadata["option"]) for item in fields(decoder) if "option" in item.metadata]
    made.sort(key=lambda pair: pair[0] == "lens")  # dataclasses put a base's fields first
    return tuple(Option(field=place, **{**values, "name": values["name"] or place}) for place, values in made)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastDecoder:
    """Base of every decoder, also of a user's own: options are checked when one is made.

    Raises :class:`InputError` for an option outside its bounds.
    """

    name: str = ""
    lens: Lens = "logit"

    def __post_init__(self) -> None:
        for item in options_of(self):
            value = getattr(self, item.field)
            if value is not None:
                item.check(value)
            elif item.required:
                raise InputError(f"decoder {self.name!r} needs its {item.name}: {item.help}")

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:  # noqa: ARG002 (the protocol's arguments)
        """See :class:`Decoder`: none, unless a decoder says so."""
        return ()

    def for_scoring(self) -> ContrastDecoder:
        """The decoder that scores given answers: itself, unless its published evaluation differs from generation."""
        return self

    def __call__(self, final: Tensor, early: Tensor, n_layers: int) -> Scores:
        """See :class:`Decoder`."""
        raise NotImplementedError(f"decoder {self.name!r} gives no scores: write its __call__")


def candidate_layers(wanted: Candidates, n_layers: int, tied: bool, *, every: int = 2) -> tuple[int, ...]:
    """Even layers of the lower (``low``) or upper (``high``) half, or a list as given.

    With tied embeddings layer 0 only repeats the input token, so it is left out unless asked for by number.
    Raises :class:`LayerError` for a layer outside 0..N−1 and :class:`InputError` for an empty set.
    """
    if isinstance(wanted, tuple):
        for layer in wanted:
            if not 0 <= layer < n_layers:
                raise layer_range_error(layer, 0, n_layers - 1, what="candidate layer")
        found = wanted
    else:
        half = n_layers / 2
        start = every if tied else 0
        bounds = {"low": (start, half), "high": (half, n_layers), "all": (start, n_layers)}
        if wanted not in bounds:
            raise InputError(f"unknown candidate layers {wanted!r}: use low, high, all or a list such as 4/8/12")
        low, high = bounds[wanted]
        found = tuple(j for j in range(0, n_layers, every) if low <= j < high)
    if not found:
        raise InputError(f"no candidate layers in {wanted!r} for a model of {n_layers} layers: give a list such as 1/2")
    return found


def plausible(log_p: Tensor, relative_top: float) -> Tensor:
    """The plausibility filter ``[batch, vocab]``: True where ``log p ≥ max log p + log α`` (Li et al. 2022).

    α = 0 keeps every token that the model can emit at all (``log p > −inf``).
    """
    if relative_top <= 0.0:
        return log_p > -math.inf
    return log_p >= log_p.amax(-1, keepdim=True) + math.log(relative_top)
