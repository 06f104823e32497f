"""A transformers causal LM as a :class:`~exitlens.models.protocol.LayeredModel`, traced and checked when it is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from exitlens.compute.matmul import linear, plain_linear
from exitlens.display import Shown
from exitlens.errors import InputError, UnsupportedModel, layer_range_error
from exitlens.layer_range import Layers, resolve_layers
from exitlens.models import checks
from exitlens.models.head_matrix import HeadMatrix
from exitlens.models.layout.final_path import FinalPath
from exitlens.models.layout.find import Layout, find_layout, part_of, unwrapped
from exitlens.models.layout.hooks import eval_mode, first_tensor, record_blocks, undisturbed
from exitlens.models.length_rope import length_ropes, start_anew
from exitlens.models.protocol import LogitTransform, Parity, Pass
from exitlens.models.replay import Replay, movable
from exitlens.models.text import chat, tokens
from exitlens.parsing import cut

__all__ = ["Layered"]

T = TypeVar("T")
Positions = Literal["all", "last"]
CHECK_TEXT = "The giant anteater walks on its knuckles. 2 + 2 = 4?"
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions")
_PROBE = 7  # positions a row


class Layered(Shown):
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
        self.model = unwrapped(model)
        self.handed = getattr(model, "_orig_mod", model)
        self.tokenizer = tokenizer
        self._ends = tokens.appended(tokenizer)
        self.notes: tuple[str, ...] = ()  # what a user should hear about this model
        self.chat_date: str | None = None  # the day that its chat template sees
        self.name = name
        self.fingerprint = fingerprint
        self._cache_factory = cache_factory
        family = type(self.model).__name__
        embed = part_of(self.model, "get_input_embeddings")
        head = part_of(self.model, "get_output_embeddings")
        if embed is None or not hasattr(embed, "weight"):
            raise UnsupportedModel(f"{family}: no input embedding (looked for get_input_embeddings())")
        if embed.weight.device.type == "meta":
            raise UnsupportedModel(f"{family}: its weights are offloaded, so they cannot be read: load it in memory")
        self.device: torch.device = embed.weight.device
        config = getattr(self.model, "config", None)
        self.config = getattr(config, "text_config", None) or config
        self.context: int | None = next(
            (int(value) for key in _CONTEXT if isinstance(value := getattr(self.config, key, None), int) and value > 0),
            None,
        )
        probe = self._probe_ids(int(embed.weight.shape[0]))
        self.layout: Layout = find_layout(self.model, probe, self.run_inner, embed=embed, head=head, limit=self.context)
        weight = getattr(self.layout.head, "weight", None)
        if isinstance(weight, Tensor) and weight.device.type == "meta":
            raise UnsupportedModel(f"{family}: its unembedding is offloaded, so it cannot be read: load it in memory")
        self.blocks = self.layout.blocks
        self.embed = embed
        self.logit_transform: LogitTransform = self.layout.logit_transform
        self.n_layers = len(self.blocks)
        self.vocab_size = self.layout.vocab_size
        self.dtype: torch.dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        self.body, self.accepts = self._find_body()
        self.held_runner: tuple[Any, Any] | None = None  # weights and the runner that models.native made of them
        self.overwrites = False  # whether blocks write over what they are given
        self.length_ropes = length_ropes(self.model)
        self.offset: int | None = None
        self.takes_masks = True
        self.infers_padding: bool | None = None
        self.cache_trial: checks.CacheKind | None = None
        self._probe = probe
        self._checked: dict[Callable[..., Any], Any] = {}
        _ = self.eos_ids  # settings that are no ids are refused now, not at the first answer
        self._measure(probe)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {cut(self.name)}: {self.n_layers} layers, {self.dtype} on {self.device}"

    def _measure(self, probe: Tensor) -> None:
        """Is it read rightly, is it causal, how does it take positions? See :mod:`exitlens.models.checks`."""
        n = self.n_layers
        bare = self.forward(probe, layers="all").hidden
        if set(bare) != set(range(n + 1)):
            raise UnsupportedModel(f"{self.name}: its blocks do not run from token ids alone")
        self.overwrites = True
        copied = self.forward(probe, layers="all").hidden
        # Blocks that write over what they were given leave other values in a tensor than their neighbour saw.
        self.overwrites = any(not torch.equal(bare[j], copied[j]) for j in bare)
        bare, again = copied, bare
        self.d_model = int(bare[n].shape[-1])
        what = f"{self.name}: the unembedding {self.layout.head_name!r}"
        self._matrix = HeadMatrix(self.model, self.layout.head, self.vocab_size, self.norm(bare[n]), what)
        self.parity = checks.check_parity(self, probe, bare)
        checks.check_causal(self, probe, bare, bare if self.overwrites else again)
        self.offset = checks.position_offset(self, probe, bare)
        if self.context is not None and self.offset:
            self.context -= self.offset  # RoBERTa's kin count positions from 2, in a table that is no longer for it
        self.takes_masks = checks.takes_masks(self, probe, bare)

    parity: Parity
    d_model: int

    # Measured when first asked for: reading one text needs none of these.

    @property
    def cache_kind(self) -> checks.CacheKind:
        """``own``: the model's cache works; ``steps``: a token at a time; ``runs again``: see :class:`Replay`."""
        return self._once(checks.cache_kind)

    @property
    def pads_exactly(self) -> bool:
        """True when padding, left or right, changes nothing; else rows run together only when equally long."""
        return self._once(checks.pads_exactly)

    @property
    def gap_exact(self) -> bool:
        """True when masked positions between a shared, cached prefix and what follows change nothing."""
        return self.pads_exactly and self._once(checks.gap_is_exact)

    def _once(self, check: Callable[..., T]) -> T:
        # Not a cached property, whose own lock a thread might hold that waits for the model.
        with undisturbed(self.model):
            if check not in self._checked:
                bare = self.forward(self._probe, layers="all").hidden
                self._checked[check] = check(self, self._probe, bare)
            found: T = self._checked[check]
            return found

    # ---- parts

    @property
    def weight(self) -> Tensor:
        """Unembedding matrix ``[vocab, d_head]``: what the module multiplies by, adapters and hooks included."""
        return self._matrix.weight

    @property
    def bias(self) -> Tensor | None:
        """Unembedding bias ``[vocab]``, or None."""
        return self._matrix.bias

    @property
    def rows_apart(self) -> bool:
        """True when rows of different lengths must not share a pass: see :mod:`exitlens.models.length_rope`."""
        return bool(self.length_ropes) or not self.takes_masks

    @property
    def tied(self) -> bool:
        """True when the unembedding matrix is the input embedding's."""
        return self.weight.data_ptr() == self.embed.weight.data_ptr()  # type: ignore[no-any-return]

    def norm(self, h: Tensor) -> Tensor:
        """``[..., d_model]`` → ``[..., d_head]``: everything between the last block and the unembedding.

        In the model's dtype, whatever that of ``h``: recorded or translated states are often float32. Gradients flow
        to ``h`` where it asks for them (translators are trained through this), never to the model.
        """
        through = torch.is_grad_enabled() and h.requires_grad
        tail = self.layout.tail
        # Looking through a whole model's modules takes longer than one norm.
        parts = tail.modules if isinstance(tail, FinalPath) else None
        with eval_mode(self.model, parts), torch.set_grad_enabled(through):
            shape = h.shape
            h = h.to(self.dtype)
            x = tail(h.reshape(1, -1, shape[-1]) if h.dim() != 3 else h)
            return x.reshape(*shape[:-1], x.shape[-1])

    def unembed(self, x: Tensor) -> Tensor:
        """``[..., d_head]`` of any dtype → raw logits ``[..., vocab]`` in the model's, before ``logit_transform``."""
        head = self.layout.head
        if isinstance(head, nn.Linear) and plain_linear(head):
            with torch.no_grad():
                out: Tensor | None = linear(x.to(head.weight.dtype), head.weight, head.bias)
        else:
            with eval_mode(self.model):
                out = first_tensor(head(x))
        if out is None:
            raise UnsupportedModel(f"the unembedding {self.layout.head_name!r} gave no tensor")
        return out[..., : self.vocab_size]

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
            return self.logit_transform(self.unembed(h))
        return self.logit_transform(self.unembed(self.norm(h)))

    def check_layer(self, layer: int) -> int:
        """``layer`` itself when it lies in 0..N; raises :class:`LayerError` otherwise."""
        if not 0 <= layer <= self.n_layers:
            raise layer_range_error(layer, 0, self.n_layers, owner=self.name)
        return layer

    # ---- running

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        layers: Layers = (),
        positions: Positions = "all",
        cache: Any = None,
        use_cache: bool = False,
    ) -> Pass:
        """See :meth:`LayeredModel.forward <exitlens.models.protocol.LayeredModel.forward>`."""
        wanted = resolve_layers(layers, self.n_layers, owner=self.name)
        if cache is None and use_cache:
            cache = self.new_cache()
        if input_ids.device.type == "cpu":  # elsewhere a look at the values would wait for the device
            self.check_ids(input_ids)
        with undisturbed(self.model):
            return self._forward(input_ids, attention_mask, list(wanted), positions, cache)

    def _forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, wanted: list[int], positions: Positions, cache: Any
    ) -> Pass:
        out = Pass(cache=cache)
        new = input_ids.shape[1]
        if isinstance(cache, Replay):
            input_ids, attention_mask = cache.extend(input_ids, attention_mask)
            cache = None
        elif cache is not None:
            if (self.cache_trial or self.cache_kind) == "steps" and new > 1 and getattr(cache, "begun", False):
                return self._steps(input_ids, attention_mask, wanted, positions, cache)
            cache.begun = True
        start_anew(self.length_ropes)
        kwargs = self.arguments(input_ids, attention_mask, cache)
        with (
            eval_mode(self.model),
            record_blocks(
                self.blocks,
                self.layout.stream,
                wanted,
                positions,
                out.hidden,
                shape=input_ids.shape,
                copy=self.overwrites,
            ),
        ):
            self.body(input_ids=input_ids, **kwargs)
        if input_ids.shape[1] != new and positions == "all":
            out.hidden = {layer: h[:, -new:].clone() for layer, h in out.hidden.items()}
        return out

    def _steps(self, ids: Tensor, mask: Tensor | None, layers: list[int], positions: Positions, cache: Any) -> Pass:
        """Tokens one by one, for recurrences whose state takes only one at a time once it has begun."""
        new, parts = ids.shape[1], []
        for i in range(new):
            seen = None if mask is None else mask[:, : mask.shape[1] - new + i + 1]
            wanted = layers if positions == "all" or i == new - 1 else []
            parts.append(self.forward(ids[:, i : i + 1], seen, layers=wanted, cache=cache).hidden)
        kept = parts if positions == "all" else parts[-1:]
        return Pass({layer: torch.cat([part[layer] for part in kept], dim=1) for layer in layers}, cache)

    def arguments(self, ids: Tensor, mask: Tensor | None, cache: Any) -> dict[str, Any]:
        """What :attr:`body` takes beside token ids: mask, positions and cache, as far as it knows them."""
        if mask is not None and not self.takes_masks:
            if not bool(mask.all()):
                raise InputError(f"{self.name} cannot run with padding: give it rows of one length")
            mask = None
        mask = checks.mask_of_text(self, ids, cache) if mask is None else mask
        kwargs: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None}
        if mask is not None and self.offset is not None:
            kwargs["position_ids"] = ((mask.long().cumsum(-1) - 1).clamp_(min=0) + self.offset)[:, -ids.shape[1] :]
        if cache is not None and "cache_params" in self.accepts:
            kwargs["cache_params"] = cache
            if mask is not None:  # a pure recurrence masks what it is given, not what it has seen
                kwargs["attention_mask"] = mask[:, -ids.shape[1] :]
        elif cache is not None:
            # transformers 5.24 renamed the argument; from 5.40 on the old name is refused.
            kwargs["cache" if "cache" in self.accepts else "past_key_values"] = cache
        return {key: value for key, value in kwargs.items() if key in self.accepts or "kwargs" in self.accepts}

    def run_inner(self, ids: Tensor) -> Any:
        """One plain pass of the model itself over ``ids``, unembedding included."""
        return self.model(input_ids=ids, **self._no_cache(self.model))

    def run_whole(self, ids: Tensor) -> Any:
        """One plain pass of the object that was handed over, wrappers included."""
        return self.handed(input_ids=ids, **self._no_cache(self.model))

    @staticmethod
    def _no_cache(model: nn.Module) -> dict[str, Any]:
        return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def new_cache(self) -> Any:
        """An empty key-value cache of the kind this model uses; a :class:`Replay` where it has none that works."""
        with undisturbed(self.model):  # a trial in another thread is not for this one
            if self._cache_factory is None or (self.cache_trial or self.cache_kind) == "runs again":
                return Replay()
        return movable(self._cache_factory())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; ``special`` adds what the tokenizer itself puts before a text, never behind it.

        Raises :class:`InputError` for a text that is no Unicode, and for a token beyond the embedding.
        """
        tokens.check_text(text)
        ids = tokens.encoded(self.tokenizer, text, special, self.name)
        n = len(self._ends)
        if special and n and tuple(ids[-n:]) == self._ends:
            del ids[-n:]
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Sequence[int] | Tensor) -> None:
        """Raise :class:`InputError`, naming it, for a token that the embedding does not have."""
        tokens.check_ids(ids, len(self.embed.weight), self.tokenizer, self.name)

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of ``text`` as a user's turn in the tokenizer's chat template, ready for the reply.

        Raises :class:`InputError` as :func:`exitlens.models.text.chat.rendered`, and for a text that is no Unicode.
        """
        tokens.check_text(text)
        ids: list[int] = chat.rendered(self, [{"role": "user", "content": text}], add_generation_prompt=True)
        self.check_ids(ids)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, spaces untouched."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token(self, token_id: int) -> str:
        """One token as text, special tokens by their name."""
        return tokens.token_text(self.tokenizer, token_id, self._anchor)

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        return tokens.anchor(self.tokenizer)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """End-of-text ids of the model's own generation settings (tokenizer's when it has none)."""
        settings = getattr(self.model, "generation_config", None)
        eos = next(
            (e for each in (settings, self.tokenizer) if (e := getattr(each, "eos_token_id", None)) is not None), ()
        )
        ends = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
        if not all(isinstance(end, int) for end in ends):
            raise UnsupportedModel(f"{self.name}: eos_token_id in generation_config.json is {str(eos)[:80]!r}, no id")
        return ends

    # ---- made once

    def _probe_ids(self, vocab: int) -> Tensor:
        """Three different rows of a few tokens: small sizes that no other axis of a model shares."""
        ids: list[int] = []
        if self.tokenizer is not None:
            ids = [i for i in self.tokenizer(CHECK_TEXT)["input_ids"] if i < vocab]
        if len(set(ids)) < _PROBE + 2:
            ids = [(7 * i + 5) % vocab for i in range(_PROBE + 2)]
        return torch.tensor([ids[i : i + _PROBE] for i in range(3)], device=self.device)

    def _find_body(self) -> tuple[nn.Module, frozenset[str]]:
        """The innermost module that runs all blocks from token ids but not the unembedding, which is dear."""
        base = getattr(self.model, "base_model", None)
        body = self.model
        if isinstance(base, nn.Module) and base is not self.model:
            inside = set(map(id, base.modules()))
            if id(self.blocks[0]) in inside and id(self.embed) in inside and id(self.layout.head) not in inside:
                body = base
        given = inspect.signature(body.forward).parameters.items()
        return body, frozenset("kwargs" if p.kind is inspect.Parameter.VAR_KEYWORD else name for name, p in given)
