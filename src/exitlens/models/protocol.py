"""The contract every room works against: a causal language model seen layer by layer.

Layer index ``j`` runs 0..N everywhere: layer 0 is the embedding output, layer j the residual stream after block j,
and the readout at layer N equals the model's own logits (checked when a model is loaded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from exitlens.layer_range import Layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["Embedded", "LayeredModel", "LogitTransform", "Parity", "Pass"]


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """The model's last transformation of its logits, ``t(z) = cap * tanh(scale * z / cap)`` (no cap: ``scale * z``).

    Identity is ``LogitTransform(1.0, None)``. It acts on each logit alone and grows with it, so it never changes ranks.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Apply to logits of any shape; returns a new tensor unless it is the identity."""
        import torch

        if self.scale != 1.0:
            z = z * self.scale
        if self.cap is not None:
            z = torch.tanh(z / self.cap) * self.cap
        return z

    @property
    def identity(self) -> bool:
        """True when nothing is changed."""
        return self.scale == 1.0 and self.cap is None


@dataclass(frozen=True, slots=True)
class Embedded:
    """What an encoder says of one text: token states ``[t, d]``, and whether each counts in averages ``[t]``.

    Special tokens do not count.
    """

    states: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Parity:
    """How closely the readout at layer N reproduced the model's logits: largest absolute difference, and the bound."""

    max_abs: float
    tolerance: float
    tokens: int


@dataclass(slots=True)
class Pass:
    """What one forward pass left behind.

    ``hidden[j]``: residual stream at layer j, ``[batch, positions, d_model]`` (only the layers asked for; positions =
    all of the input, or 1 with ``positions="last"``), *before* the final norm also at j = N. ``cache``: the model's
    key-value cache, or None.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    cache: Any = None


@runtime_checkable
class LayeredModel(Protocol):
    """A causal LM, seen as embeddings, blocks, norm, unembedding and the last transformation of logits.

    Attributes:
        name: What the user called it; it stands in tables and messages.
        fingerprint: A hash of the weights; artefacts made with one model are refused by another.
        n_layers: Number of blocks N. Layers run 0..N.
        d_model: Width of the residual stream [channels].
        vocab_size: Number of logits [tokens].
        context: The most positions that one pass may have [tokens], or None where the model states none.
        dtype: Type of the weights.
        device: Where token ids go.
        tokenizer: The model's own tokenizer.
        parity: How closely layer N reproduced the model's logits when it was taken in.
        logit_transform: What the model does to the unembedding's output.
        model: The torch module that was taken in, never changed.
        notes: What a user should hear about it: names that were mended, settings that are not applied.
        chat_date: The day that its chat template sees (``2026-11-27``), or None for the day of the call.
    """

    name: str
    fingerprint: str
    n_layers: int
    d_model: int
    vocab_size: int
    context: int | None
    dtype: torch.dtype
    device: torch.device
    tokenizer: Any
    parity: Parity
    logit_transform: LogitTransform
    model: nn.Module
    notes: tuple[str, ...]
    chat_date: str | None

    # ---- parts

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The N blocks, in the order in which they run; block j takes layer j - 1 to layer j."""
        ...

    @property
    def embed(self) -> nn.Module:
        """The input embedding, whose ``weight`` is ``[vocab, d]``."""
        ...

    @property
    def rows_apart(self) -> bool:
        """True when rows of different lengths must not share a pass: it takes no padding, or a row's numbers depend
        on the longest.
        """
        ...

    @property
    def tied(self) -> bool:
        """True when the unembedding matrix is the input embedding's: its rows are tokens' layer 0."""
        ...

    @property
    def weight(self) -> Tensor:
        """Unembedding matrix ``[vocab, d_head]`` in the model's dtype."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """Unembedding bias ``[vocab]``, or None."""
        ...

    def norm(self, h: Tensor) -> Tensor:
        """Residual stream ``[..., d_model]`` → input of the unembedding ``[..., d_head]`` (final norm, projections)."""
        ...

    def unembed(self, x: Tensor) -> Tensor:
        """``[..., d_head]`` → raw logits ``[..., vocab]``, before :attr:`logit_transform`."""
        ...

    def logits(self, h: Tensor, layer: int, lens: Literal["raw", "logit"] = "logit") -> Tensor:
        """Logits ``[..., vocab]`` of residual stream ``h`` at ``layer`` (0..N); at N every lens is the model itself."""
        ...

    def check_layer(self, layer: int) -> int:
        """``layer`` itself when it lies in 0..N; raises :class:`~exitlens.errors.LayerError` otherwise."""
        ...

    # ---- running

    @property
    def gap_exact(self) -> bool:
        """True when masked positions between a cached prefix and what follows change nothing; measured once."""
        ...

    def new_cache(self) -> Any:
        """An empty cache of the kind that this model uses; its rows can be repeated and chosen."""
        ...

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        layers: Layers = (),
        positions: Literal["all", "last"] = "all",
        cache: Any = None,
        use_cache: bool = False,
    ) -> Pass:
        """Run the blocks on ``input_ids [batch, seq]`` and record the residual stream at ``layers``.

        ``attention_mask [batch, past + seq]``: 1 real, 0 padding (padding on the left for generation, either side
        otherwise); position ids are derived from it. The unembedding is *not* run: ask :meth:`logits` for what
        is wanted.
        """
        ...

    # ---- text

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end a text; empty where the model names none."""
        ...

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; with ``special`` the tokenizer's own beginning-of-text token where it adds one."""
        ...

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of ``text`` as a user's turn in the tokenizer's chat template, ready for the reply."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, spaces not cleaned up."""
        ...

    def token(self, token_id: int) -> str:
        """One token as text, special tokens by their name."""
        ...
