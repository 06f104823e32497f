"""What is added to the residual stream of a model: found once a model, recorded in any pass at the last position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from exitlens.errors import UnsupportedModel
from exitlens.models.layout.additions import Additions, Term, find_additions, stream_like
from exitlens.models.layout.affine import Affine, frozen_norm, scaled, tail_map
from exitlens.models.layout.attention_heads import Heads, find_heads
from exitlens.models.layout.find import Layout
from exitlens.models.layout.hooks import here, undisturbed
from exitlens.models.layout.residual import at
from exitlens.models.layout.watch import watch
from exitlens.models.protocol import LayeredModel

__all__ = ["LaidOut", "Recorded", "StreamTerms", "laid_out", "recording", "stream_terms"]

_ROWS, _SEQ = 3, 7  # of the pass that is looked at; sizes that no other axis of a model shares
_KNOWN: WeakKeyDictionary[Any, StreamTerms | UnsupportedModel] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class StreamTerms:
    """What a model adds up to its last residual stream, and how its attention outputs split into heads."""

    additions: Additions
    heads: dict[Term, Heads]

    @property
    def terms(self) -> tuple[Term, ...]:
        """Every term, in the order in which they are added."""
        return self.additions.terms

    @property
    def whole_embeddings(self) -> bool:
        """True where layer 0 is one term, because it is no sum of what is known of it."""
        return not any(term.block == 0 for term in self.terms)

    @property
    def all_heads(self) -> bool:
        """True where every attention splits into heads, and there is one."""
        attention = [term for term in self.terms if term.block and term.kind.startswith("attention")]
        return bool(attention) and all(term in self.heads for term in attention)


def stream_terms(lm: LayeredModel) -> StreamTerms:
    """What ``lm`` adds up, found by running a few tokens once; remembered as long as the model is there.

    Raises:
        UnsupportedModel: Its last residual stream is no sum of what its blocks add, or what follows it is not affine
            once the norm is held fixed.
    """
    known = _KNOWN.get(lm)
    if known is None:
        try:
            known = _find(lm)
        except UnsupportedModel as error:
            known = error
        _KNOWN[lm] = known
    if isinstance(known, UnsupportedModel):
        raise UnsupportedModel(str(known))
    return known


@runtime_checkable
class LaidOut(Protocol):
    """A model whose layers were found by value: what is used of it here, beside :class:`LayeredModel`."""

    name: str
    d_model: int
    layout: Layout

    @property
    def body(self) -> nn.Module:
        """The module that takes token ids and runs the blocks."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in the order in which they run."""
        ...

    def run_inner(self, ids: Tensor) -> Any:
        """A pass over token ids ``[rows, positions]``, the unembedding included."""
        ...


def laid_out(lm: LayeredModel) -> LaidOut:
    """``lm`` as a model whose layers were found by value; raises :class:`UnsupportedModel` where they were not."""
    if not isinstance(lm, LaidOut):
        raise UnsupportedModel(
            f"{lm.name}: what its blocks add is not known, since its layers were not found by value: load or wrap it"
        )
    return lm


def _find(lm: LayeredModel) -> StreamTerms:
    laid = laid_out(lm)
    weight: Any = lm.embed.weight
    vocab = len(weight)
    ids = torch.tensor([[(7 * (i + 3 * r) + 5) % vocab for i in range(_SEQ)] for r in range(_ROWS)], device=lm.device)

    def run() -> Any:
        return laid.run_inner(ids)

    with undisturbed(lm.model):
        calls, _ = watch(lm.model, run, laid.layout.head)
        additions = find_additions(calls, laid.layout, (_ROWS, _SEQ), lm.name)
        h = lm.forward(ids, layers=(lm.n_layers,), positions="last").hidden[lm.n_layers][:, -1]
        tail_map(lm.model, laid.layout.tail, h, lm.name)
        return StreamTerms(additions, find_heads(calls, laid.layout, additions.terms, lm.model, run))


@dataclass(slots=True)
class Recorded:
    """What the last pass left at its last position: each term's value ``[rows, d]`` without its factor, in float64.

    ``head_inputs``: for a term with heads the concatenation of heads ``[rows, heads * width]``, and what the norm
    behind the projection was given ``[rows, d]`` (None without one).
    """

    values: dict[Term, Tensor] = field(default_factory=dict)
    head_inputs: dict[Term, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def head_map(self, term: Term, heads: Heads) -> Affine:
        """The map from concatenated heads to the term, its norm frozen at what this pass gave it."""
        before = self.head_inputs[term][1]
        weight, bias = _matrix(heads)
        w, b = weight.detach().double().cpu(), None if bias is None else bias.detach().double().cpu()
        found = Affine(lambda v: (v @ w, v.new_zeros(v.shape[:-1]) if b is None else v @ b))
        if heads.ratio != 1.0:
            found = found.then(scaled(heads.ratio))
        if heads.norm is None:
            return found
        assert before is not None
        norm = frozen_norm(heads.norm, before)
        if norm is None:
            raise UnsupportedModel(f"{term.name}: it is no norm at these states")
        return found.then(norm)


def _matrix(heads: Heads) -> tuple[Tensor, Tensor | None]:
    module: Any = heads.projection
    bias = getattr(module, "bias", None)
    return (module.weight if isinstance(module, nn.Linear) else module.weight.t()), bias


@contextmanager
def recording(lm: LayeredModel, terms: StreamTerms) -> Iterator[Recorded]:
    """While open, every pass of ``lm`` leaves its terms at its last position in what is yielded.

    Other threads wait with theirs until it is closed.
    """
    out = Recorded()
    recorder = _Recorder(laid_out(lm), terms, out)
    handles: list[Any] = []
    with undisturbed(lm.model):
        try:
            recorder.hook(handles)
            yield out
        finally:
            for handle in handles:
                handle.remove()


class _Recorder:
    def __init__(self, lm: LaidOut, terms: StreamTerms, out: Recorded) -> None:
        self.lm, self.terms, self.out = lm, terms, out
        self.block = 0
        self.shape = (0, 0)
        self.counts: dict[tuple[int, int, str], int] = {}

    def hook(self, handles: list[Any]) -> None:
        """Put the hooks; the caller removes them."""
        handles.append(self.lm.body.register_forward_pre_hook(here(self._begin), with_kwargs=True))
        for number, block in enumerate(self.lm.blocks, start=1):
            handles.append(block.register_forward_pre_hook(here(self._open(number))))
        by_module: dict[int, list[Term]] = {}
        modules: dict[int, nn.Module] = {}
        for term in self.terms.terms:
            if term.module is not None:
                modules[id(term.module)] = term.module
                by_module.setdefault(id(term.module), []).append(term)
        for key, module in modules.items():
            handles.append(module.register_forward_hook(here(self._keep(by_module[key]))))
        inputs: dict[int, tuple[nn.Module, list[Callable[[int, int, Any], None]]]] = {}
        for term, heads in self.terms.heads.items():
            inputs.setdefault(id(heads.projection), (heads.projection, []))[1].append(self._heads(term, heads))
            if heads.norm is not None:
                inputs.setdefault(id(heads.norm), (heads.norm, []))[1].append(self._norm(term, heads))
        for module, keepers in inputs.values():
            handles.append(module.register_forward_pre_hook(here(self._given(keepers)), with_kwargs=True))

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.block, self.shape = 0, (int(ids.shape[0]), int(ids.shape[1]))
        self.counts.clear()
        for term in self.terms.terms:
            if term.module is None:
                self.out.values[term] = torch.ones(self.shape[0], self.lm.d_model, dtype=torch.float64)

    def _open(self, number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            self.block = number

        return hook

    def _nth(self, module: nn.Module, side: str) -> int:
        key = (self.block, id(module), side)
        self.counts[key] = self.counts.get(key, -1) + 1
        return self.counts[key]

    def _keep(self, mine: list[Term]) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            nth = self._nth(module, "out")
            for term in mine:
                if (term.block, term.nth) == (self.block, nth):
                    self.out.values[term] = self._last(at(output, term.path), self.lm.d_model)

        return hook

    def _given(self, keepers: list[Callable[[int, int, Any], None]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nth = self._nth(module, "in")
            for keep in keepers:
                keep(self.block, nth, (args, kwargs))

        return hook

    def _heads(self, term: Term, heads: Heads) -> Callable[[int, int, Any], None]:
        def keep(block: int, nth: int, given: Any) -> None:
            if (block, nth) == (term.block, heads.nth):
                z = at(given, heads.path)
                before = self.out.head_inputs.get(term, (None, None))[1]
                self.out.head_inputs[term] = (self._last(z, z.shape[-1]), before)

        return keep

    def _norm(self, term: Term, heads: Heads) -> Callable[[int, int, Any], None]:
        def keep(block: int, nth: int, given: Any) -> None:
            if (block, nth) == (term.block, heads.norm_nth):
                x = at(given, (0, 0))
                z = self.out.head_inputs[term][0]
                self.out.head_inputs[term] = (z, self._rows(x, self.lm.d_model).detach().clone())

        return keep

    def _rows(self, value: Tensor, width: int) -> Tensor:
        found = stream_like(value, self.lm.layout.stream, *self.shape, width)
        if found is None:
            raise UnsupportedModel(f"{self.lm.name}: what block {self.block} adds has another shape in this pass")
        return found[:, -1]

    def _last(self, value: Tensor, width: int) -> Tensor:
        return self._rows(value, width).detach().double().cpu()
