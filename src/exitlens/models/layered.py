"""A transformers causal LM as a :class:`~exitlens.models.protocol.LayeredModel`, traced and checked when it is made."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, LayerError, ParityError, UnsupportedModel
from .protocol import Parity, Pass, Post
from .recorder import evaluating, first_tensor, record_blocks
from .trace import Layout, find_layout

__all__ = ["Layered"]

CHECK_TEXT = "The giant anteater walks on its knuckles. 2 + 2 = 4?"


class Layered:
    """See :class:`~exitlens.models.protocol.LayeredModel` for what each name means.

    The wrapped model is never changed: hooks live only while a pass runs, and training modes are put back.
    Raises :class:`UnsupportedModel` when its layers cannot be identified and :class:`ParityError` when the readout at
    layer N does not reproduce its logits.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        fingerprint: str,
        cache_factory: Any = None,
    ) -> None:
        self.model = getattr(model, "_orig_mod", model)
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint
        self._cache_factory = cache_factory
        embed = self.model.get_input_embeddings() if hasattr(self.model, "get_input_embeddings") else None
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None
        if embed is None or not hasattr(embed, "weight"):
            raise UnsupportedModel(f"{type(self.model).__name__}: no input embedding (looked for get_input_embeddings())")
        self.device: torch.device = embed.weight.device
        probe = self._probe_ids()
        self.layout: Layout = find_layout(self.model, lambda: self.model(input_ids=probe), embed=embed, head=head)
        weight = getattr(self.layout.head, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise UnsupportedModel(
                f"{type(self.model).__name__}: the unembedding {self.layout.head_name!r} has no weight matrix"
            )
        self._transposed = False
        self.blocks = self.layout.blocks
        self.embed = embed
        self.post: Post = self.layout.post
        self.n_layers = len(self.blocks)
        self.vocab_size = int(weight.shape[0])
        self.dtype: torch.dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        config = getattr(self.model, "config", None)
        text_config = getattr(config, "text_config", None) or config
        self.config = text_config
        self.context: int | None = next(
            (
                int(value)
                for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
                if isinstance(value := getattr(text_config, key, None), int) and value > 0
            ),
            None,
        )
        self._body, self._body_accepts = self._find_body()
        self.parity = self._check(probe)
        self.d_model: int
        self.pads_exactly = self._check_padding(probe)

    # ---- parts

    @property
    def weight(self) -> Tensor:
        """Unembedding matrix ``[vocab, d_head]``."""
        return self.layout.head.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """Unembedding bias ``[vocab]``, or None."""
        return getattr(self.layout.head, "bias", None)

    def norm(self, h: Tensor) -> Tensor:
        """``[..., d_model]`` → ``[..., d_head]``: everything between the last block and the unembedding."""
        with evaluating(self.model):
            return self._tail(h)

    def _tail(self, h: Tensor) -> Tensor:
        shape = h.shape
        x = h.reshape(1, -1, shape[-1]) if h.dim() != 3 else h
        for step in self.layout.tail:
            x = step(x)
        return x.reshape(*shape[:-1], x.shape[-1])

    def unembed(self, x: Tensor) -> Tensor:
        """``[..., d_head]`` → raw logits ``[..., vocab]``, before ``post``."""
        with evaluating(self.model):
            out = first_tensor(self.layout.head(x))
        if out is None:
            raise UnsupportedModel(f"the unembedding {self.layout.head_name!r} gave no tensor")
        return out

    def logits(self, h: Tensor, layer: int, lens: Literal["raw", "logit"] = "logit") -> Tensor:
        """Logits ``[..., vocab]`` of ``h`` at ``layer``. Raises :class:`LayerError`, :class:`InputError`."""
        self.check_layer(layer)
        if lens not in ("raw", "logit"):
            raise InputError(f"unknown lens {lens!r}: use raw or logit")
        if lens == "raw" and layer < self.n_layers:
            if h.shape[-1] != self.weight.shape[-1]:
                raise InputError(
                    f"lens 'raw' needs hidden states as wide as the unembedding ({self.weight.shape[-1]}), "
                    f"but {self.name} has {h.shape[-1]}: use lens logit"
                )
            return self.post(self.unembed(h))
        return self.post(self.unembed(self.norm(h)))

    def check_layer(self, layer: int) -> int:
        """``layer`` itself when it lies in 0..N; raises :class:`LayerError` otherwise."""
        if not 0 <= layer <= self.n_layers:
            raise LayerError(f"layer {layer} is out of range: {self.name} has layers 0 (embeddings) to {self.n_layers}")
        return layer

    # ---- running

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        layers: Sequence[int] | Literal["all"] = (),
        positions: Literal["all", "last"] = "all",
        cache: Any = None,
        use_cache: bool = False,
    ) -> Pass:
        """See :meth:`LayeredModel.forward <exitlens.models.protocol.LayeredModel.forward>`."""
        wanted = range(self.n_layers + 1) if layers == "all" else [self.check_layer(layer) for layer in layers]
        if cache is None and use_cache:
            cache = self.new_cache()
        kwargs: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": use_cache or cache is not None}
        if attention_mask is not None and "position_ids" in self._body_accepts:
            positions_of = attention_mask.long().cumsum(-1) - 1
            kwargs["position_ids"] = positions_of.clamp_(min=0)[:, -input_ids.shape[1] :]
        if cache is not None:
            kwargs["past_key_values" if "past_key_values" in self._body_accepts else "cache_params"] = cache
        kwargs = {key: value for key, value in kwargs.items() if key in self._body_accepts or "kwargs" in self._body_accepts}
        out = Pass(cache=cache)
        with evaluating(self.model), record_blocks(self.blocks, list(wanted), positions, out.hidden):
            self._body(input_ids=input_ids, **kwargs)
        return out

    def new_cache(self) -> Any:
        """An empty key-value cache of the kind this model uses."""
        if self._cache_factory is None:
            raise InputError(f"{self.name} was wrapped without a cache: load it with exitlens.load or exitlens.wrap")
        return self._cache_factory()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; ``special`` adds what the tokenizer itself puts before a text."""
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of ``text`` as a user's turn in the tokenizer's chat template, ready for the reply.

        Raises :class:`InputError` when the tokenizer has no template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(f"{self.name}'s tokenizer has no chat template: leave --chat out")
        turns = [{"role": "user", "content": text}]
        ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
        return list(ids["input_ids"] if hasattr(ids, "keys") else ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, spaces untouched."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token(self, token_id: int) -> str:
        """One token as text, special tokens by their name."""
        return str(self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """End-of-text ids of the model's own generation settings (tokenizer's when it has none)."""
        settings = getattr(self.model, "generation_config", None)
        eos = getattr(settings, "eos_token_id", None)
        if eos is None:
            eos = getattr(self.tokenizer, "eos_token_id", None)
        if eos is None:
            return ()
        return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)

    # ---- checks made once

    def _probe_ids(self) -> Tensor:
        vocab = int(self.model.get_input_embeddings().weight.shape[0])
        ids = None
        if self.tokenizer is not None:
            ids = [i for i in self.tokenizer(CHECK_TEXT)["input_ids"] if i < vocab]
        if not ids:
            ids = [(7 * i + 3) % vocab for i in range(9)]
        return torch.tensor([ids], device=self.device)

    def _find_body(self) -> tuple[nn.Module, frozenset[str]]:
        """The innermost module that runs all blocks from token ids but not the unembedding, so that it costs nothing."""
        base = getattr(self.model, "base_model", None)
        body = self.model
        if isinstance(base, nn.Module) and base is not self.model:
            inside = set(map(id, base.modules()))
            if id(self.blocks[0]) in inside and id(self.embed) in inside and id(self.layout.head) not in inside:
                body = base
        parameters = inspect.signature(body.forward).parameters
        names = {"kwargs" if p.kind is inspect.Parameter.VAR_KEYWORD else name for name, p in parameters.items()}
        return body, frozenset(names)

    def _check(self, ids: Tensor) -> Parity:
        with evaluating(self.model):
            want = self.model(input_ids=ids).logits.float()
        hidden = self.forward(ids, layers=(0, self.n_layers)).hidden
        if self.n_layers not in hidden or 0 not in hidden:
            raise UnsupportedModel(f"{type(self.model).__name__}: its blocks do not run from token ids alone")
        self.d_model = int(hidden[self.n_layers].shape[-1])
        got = self.logits(hidden[self.n_layers], self.n_layers).float()
        if not torch.isfinite(want).all():
            raise ParityError(f"{self.name}: its own logits are not finite on a short text: the weights are damaged")
        worst = float((got[..., : want.shape[-1]] - want).abs().max())
        half = self.dtype in (torch.bfloat16, torch.float16)
        tolerance = (3e-2 if half else 1e-5) * max(1.0, float(want.abs().max()))
        if not worst <= tolerance:
            raise ParityError(
                f"{self.name}: the readout at layer {self.n_layers} differs from the model's logits by {worst:.3g} "
                f"(allowed {tolerance:.3g}): it is not read, since every layer would be wrong"
            )
        return Parity(worst, tolerance, int(ids.shape[1]))

    def _check_padding(self, ids: Tensor) -> bool:
        """True when a row's last hidden state does not depend on padding to its left."""
        row = ids[:, : max(2, min(6, ids.shape[1]))]
        try:
            alone = self.forward(row, torch.ones_like(row), layers=(self.n_layers,), positions="last")
            padded = torch.cat([row[:, :1].expand(1, 3), row], dim=1)
            mask = torch.ones_like(padded)
            mask[:, :3] = 0
            again = self.forward(padded, mask, layers=(self.n_layers,), positions="last")
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        a, b = alone.hidden[self.n_layers].float(), again.hidden[self.n_layers].float()
        bound = 5e-2 if self.dtype in (torch.bfloat16, torch.float16) else 1e-4
        return bool((a - b).abs().max() <= bound * max(1.0, float(a.abs().max())))
