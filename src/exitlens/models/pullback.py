"""How does the last residual stream depend on each layer's? Gradients of many rows at once, through a model left as is.

Four ways, the fastest that is right for the model is taken (:func:`gradient_of`):

- ``native``: Llama-like blocks have their backward pass written out (:mod:`exitlens.models.native.backward`).
- ``blocks``: one pass without gradients keeps what every block is given. Then each block is run once more by itself
  under gradient, and its backward takes many cotangents in one batch (a vmap over the backward): the products of all
  rows are one product, and the block's forward is paid once.
- ``whole``: through the whole model's graph, which is right for every model and keeps more memory. Some models hand
  more than the stream from block to block (keys and values shared between layers, a second reading of the embeddings).
- ``rows``: through that graph, one row at a time.

Nothing in a module's code says which are right; the first text does: the gradients of a random cotangent are compared
with those of ``rows``. No parameter is ever asked for a gradient, so that none is computed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from exitlens.errors import UnsupportedModel
from exitlens.models.checkpoint.reasons import one_line
from exitlens.models.layered import Layered
from exitlens.models.layout.final_path import replaced
from exitlens.models.layout.hooks import eval_mode, here, undisturbed
from exitlens.models.layout.residual import at
from exitlens.models.length_rope import start_anew
from exitlens.models.native.backward import Backward, TextBackward, backward_of
from exitlens.models.protocol import LayeredModel

__all__ = ["Gradient", "Method", "Pullback", "Pulls", "gradient_by", "gradient_of", "out_of_memory"]

Method = Literal["native", "blocks", "whole", "rows"]
Each = Callable[[int, Tensor], None]
"""Takes a layer and its cotangents ``[positions, rows, width]``."""

# What two orders of the same sums may differ by, as a share of the gradient's size.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
_NOTES: dict[Method, str] = {
    "whole": "more than the residual stream joins its blocks: gradients go through the whole graph, which takes longer",
    "rows": "its backward pass takes no batches: gradients are taken row by row, which is slow",
}
_COARSE = 0.1  # bf16 and float16, whose residual stream rounds at every block


class Pullback:
    """The streams of one text, and the map from cotangents at layer N to cotangents at the layers below.

    ``first``: the first position of interest; the last of interest is the last but one. ``lowest``: the lowest layer of
    interest; no block below it is run backwards. ``keep``: hold every block's graph for further rows, rather than make
    it again for each batch of rows.

    Raises:
        UnsupportedModel: The model has no gradient.
    """

    def __init__(
        self,
        lm: LayeredModel,
        ids: Sequence[int],
        *,
        first: int = 0,
        lowest: int = 0,
        method: Method = "blocks",
        keep: bool = True,
    ) -> None:
        self.lm, self.ids = _layered(lm), torch.tensor([list(ids)], device=lm.device)
        self.valid = slice(first, len(ids) - 1)
        self.lowest, self.method, self.keep = lowest, method, keep
        self.stream = self.lm.layout.stream
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        with _running(self.lm):
            if method == "blocks":
                self._given = self._record()
            else:
                self._streams = self._whole()

    def pull(self, cotangents: Tensor, each: Each) -> None:
        """Cotangents ``[positions, rows, width]`` of layer N → ``each`` of the layers below, the highest first."""
        _, rows, width = cotangents.shape
        full = torch.zeros(rows, self.ids.shape[1], width, dtype=self.lm.dtype, device=self.lm.device)
        full[:, self.valid] = cotangents.transpose(0, 1).to(full)
        with _running(self.lm):
            last = self._last()
            v = self._native(last, full)
            if self.method == "blocks":
                for layer in range(self.lm.n_layers, self.lowest, -1):
                    x, out = self._graph(layer)
                    (v,) = _pulled(out, [x], v.to(out.device), batched=True)
                    each(layer - 1, self._packed(v)[:, self.valid].transpose(0, 1))
                return
            layers = range(self.lm.n_layers - 1, self.lowest - 1, -1)
            streams = [self._streams[j] for j in layers]
            found = _pulled(last, streams, v, batched=self.method == "whole")
            for layer, part in zip(layers, found, strict=True):
                each(layer, self._packed(part)[:, self.valid].transpose(0, 1))

    # ---- the pass that is kept

    def _record(self) -> list[Any]:
        """What each block above ``lowest`` is given ``(args, kwargs)``."""
        given: dict[int, Any] = {}
        copy = self.lm.overwrites

        def hook(layer: int) -> Callable[..., None]:
            def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                all_of_it = (args, kwargs)
                h = at(all_of_it, self.stream.enters)
                given[layer] = replaced(all_of_it, self.stream.enters, h.clone()) if copy else all_of_it

            return keep

        self._run({j: hook(j) for j in range(self.lowest, self.lm.n_layers)}, {})
        return [given.get(j) for j in range(self.lm.n_layers)]

    def _whole(self) -> dict[int, Tensor]:
        """The streams ``{layer: native tensor}`` of one whole graph, from a leaf at ``lowest`` up to layer N."""
        streams: dict[int, Tensor] = {}
        low = self.lowest

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            h = at((args, kwargs), self.stream.enters)
            streams[low] = h.detach().clone().requires_grad_()
            return replaced((args, kwargs), self.stream.enters, streams[low])

        def leave(layer: int) -> Callable[..., None]:
            def keep(_module: nn.Module, _args: Any, output: Any) -> None:
                streams[layer] = at(output, self.stream.leaves)

            return keep

        with torch.enable_grad():
            after = {j: leave(j) for j in range(low + 1, self.lm.n_layers + 1)}
            self._run({low: enter}, after)
        if self.lm.n_layers not in streams or low not in streams:
            raise UnsupportedModel(f"{self.lm.name}: its blocks do not run from token ids alone")
        return streams

    def _run(self, before: dict[int, Callable[..., Any]], after: dict[int, Callable[..., None]]) -> None:
        """One pass with hooks before the block that leads on from a layer, and after the block that gives one."""
        entry = self.stream.entry
        handles = []
        try:
            for layer, hook in before.items():
                module = entry if layer == 0 and entry is not None else self.lm.blocks[layer]
                handles.append(module.register_forward_pre_hook(here(hook), with_kwargs=True))
            handles += [self.lm.blocks[layer - 1].register_forward_hook(here(hook)) for layer, hook in after.items()]
            start_anew(self.lm.length_ropes)
            self.lm.body(input_ids=self.ids, **self.lm.arguments(self.ids, None, None))
        finally:
            for handle in handles:
                handle.remove()

    # ---- a block's graph

    def _graph(self, layer: int) -> tuple[Tensor, Tensor]:
        """What enters block ``layer`` (a leaf), and what leaves it, with the graph between."""
        if layer in self._graphs:
            return self._graphs[layer]
        given = self._given[layer - 1]
        x = at(given, self.stream.enters).detach().requires_grad_()
        args, kwargs = replaced(given, self.stream.enters, x.clone() if self.lm.overwrites else x)
        try:
            with torch.enable_grad():
                out = at(self.lm.blocks[layer - 1](*args, **kwargs), self.stream.leaves)
        except TypeError as error:  # what enters the first block is given to another module
            raise UnsupportedModel(f"{self.lm.name}: block {layer} does not run by itself") from error
        if self.keep:
            self._graphs[layer] = x, out
        return x, out

    def _last(self) -> Tensor:
        return self._graph(self.lm.n_layers)[1] if self.method == "blocks" else self._streams[self.lm.n_layers]

    # ---- layouts

    def _packed(self, v: Tensor) -> Tensor:
        """``[rows, *native]`` → ``[rows, T, width]``."""
        seq = self.ids.shape[1]
        if v.dim() == 4 and v.shape[1] == 1 and v.shape[2] == seq and self.stream.kind == "rows first":
            return v[:, 0]
        return torch.vmap(lambda h: self.stream.pack(h, 1, seq)[0])(v)

    def _native(self, like: Tensor, v: Tensor) -> Tensor:
        """``[rows, T, width]`` → ``[rows, *native]``, by the adjoint of packing: a permutation, with zeros where text
        was preceded by a model's own prompt.
        """
        leaf = torch.zeros_like(like, requires_grad=True)
        with torch.enable_grad():
            packed = self.stream.pack(leaf, 1, self.ids.shape[1])
        (native,) = _pulled(packed, [leaf], v[:, None].to(packed), batched=True)
        return native


class Pulls(Protocol):
    """One text's streams, pulled back: see :meth:`Pullback.pull`."""

    def pull(self, cotangents: Tensor, each: Each) -> None:
        """Cotangents ``[positions, rows, width]`` of layer N → ``each`` of the layers below, the highest first."""
        ...


@dataclass(frozen=True)
class Gradient:
    """The way that is taken for a model, and a line for the reader where it is a slow one."""

    lm: LayeredModel
    method: Method = "blocks"
    backward: Backward | None = None

    @property
    def note(self) -> str:
        """A line for the reader where it is not one of the usual ways."""
        return _NOTES.get(self.method, "")

    def text(self, ids: Sequence[int], *, first: int = 0, lowest: int = 0) -> Pulls:
        """The streams of one text, ready to be pulled back."""
        if self.backward is not None:
            return TextBackward(self.backward, ids, first=first, lowest=lowest)
        return Pullback(self.lm, ids, first=first, lowest=lowest, method=self.method)


def gradient_of(
    lm: LayeredModel, ids: Sequence[int], *, first: int = 0, lowest: int = 0, product: torch.dtype = torch.float32
) -> Gradient:
    """The fastest way that gives this model's gradients on a text; ``product``: number type of native products.

    Raises:
        UnsupportedModel: No gradient flows, or a hook may change it.
    """
    layered = _layered(lm)
    _refuse_hooks(layered)
    g = torch.Generator().manual_seed(0)
    cotangents = torch.randn(len(ids) - 1 - first, 2, lm.d_model, generator=g).to(lm.device)

    def found(how: Gradient) -> dict[int, Tensor]:
        kept: dict[int, Tensor] = {}
        how.text(ids, first=first, lowest=lowest).pull(cotangents, lambda layer, v: kept.update({layer: v.clone()}))
        return kept

    want = found(Gradient(lm, "rows"))
    backward = backward_of(layered, product)
    if backward is not None and _agree(found(Gradient(lm, "native", backward)), want, product):
        return Gradient(lm, "native", backward)
    for method in ("blocks", "whole"):
        with contextlib.suppress(UnsupportedModel):
            if _agree(found(Gradient(lm, method)), want, lm.dtype):
                return Gradient(lm, method)
    return Gradient(lm, "rows")


def gradient_by(lm: LayeredModel, method: Method, product: torch.dtype = torch.float32) -> Gradient:
    """The way of this name, as :func:`gradient_of` found it right on the same model elsewhere.

    Raises:
        UnsupportedModel: ``native``, and this model's blocks are not such.
    """
    if method != "native":
        return Gradient(lm, method)
    backward = backward_of(_layered(lm), product)
    if backward is None:
        raise UnsupportedModel(f"{lm.name}: its blocks have no backward pass of ours here, and had one elsewhere")
    return Gradient(lm, method, backward)


def _agree(found: dict[int, Tensor], want: dict[int, Tensor], product: torch.dtype) -> bool:
    for layer, v in want.items():
        bound = max(_TOLERANCE.get(kind, _COARSE) for kind in (v.dtype, product))
        error = float((found[layer].double() - v.double()).norm())
        if not error <= bound * float(v.double().norm()):
            return False
    return True


def _pulled(out: Tensor, streams: list[Tensor], v: Tensor, *, batched: bool) -> tuple[Tensor, ...]:
    """``v [rows, ...]`` pulled back, all rows in one backward pass or one after another.

    Raises UnsupportedModel with the reason where the model has no such gradient.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that vmap runs one by one: slower, and as right
            if batched:
                return torch.autograd.grad(out, streams, v, is_grads_batched=True, retain_graph=True)
            rows = [torch.autograd.grad(out, streams, row, retain_graph=True) for row in v]
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise  # whoever chose the number of rows may choose fewer
        raise UnsupportedModel(
            f"its blocks have no gradient ({one_line(error)}): load it unquantised, without hooks"
        ) from error
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory, which torch says in two ways."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _layered(lm: LayeredModel) -> Layered:
    if not isinstance(lm, Layered):
        raise UnsupportedModel(f"{lm.name} is no model of transformers, so gradients through it are not known here")
    return lm


def _refuse_hooks(lm: Layered) -> None:
    """A hook may change what a backward pass sees in ways that no comparison shows (it acts on both sides).

    transformers leaves hooks of its own on a model that was once asked for its states; they only look.
    """
    with undisturbed(lm.model):  # else a hook of ours, for a pass in another thread, might be met
        every = [
            (name, hook)
            for name, m in lm.model.named_modules()
            for hooks in (m._forward_pre_hooks, m._forward_hooks, m._backward_pre_hooks, m._backward_hooks)
            for hook in hooks.values()
        ]
    for name, hook in every:
        if not str(getattr(hook, "__module__", "")).startswith("transformers."):
            raise UnsupportedModel(
                f"{lm.name} has a hook on {name or 'the model'!r}, which may change gradients unseen: remove it "
                "(handle.remove()) before fitting a Jacobian lens"
            )


@contextlib.contextmanager
def _running(lm: Layered) -> Iterator[None]:
    """The model as it reads: no dropout, eagerly, with attention in operations that a batched backward knows.

    Parameters are set not to want gradients meanwhile, so that no block keeps what theirs would need.
    """
    with eval_mode(lm.model), sdpa_kernel(SDPBackend.MATH):
        wanting = [p for p in lm.model.parameters() if p.requires_grad]
        try:
            for p in wanting:
                p.requires_grad_(False)
            yield
        finally:
            for p in wanting:
                p.requires_grad_(True)
