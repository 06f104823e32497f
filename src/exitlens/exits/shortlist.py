"""Logits at an exit: of the whole vocabulary, or of a head's shortlist and every token that a row's text holds so far.

What an answer says next is often a word of the question that no general shortlist holds. The tokens of the text cost a
few dozen rows of the unembedding more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exitlens.compute.matmul import linear
from exitlens.compute.prepacked import packed
from exitlens.errors import InputError, LayerError
from exitlens.exits.heads import ExitHeads
from exitlens.exits.policies import ExitPolicy
from exitlens.lenses.lens import Lens, as_lens
from exitlens.models.forward import padded
from exitlens.models.native.runner import logits_of, runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["ExitClassifier", "ExitLogits", "ExitReader"]

# The probability [rows] that the top token of states [rows, d_model] at a layer is already the final one.
ExitClassifier = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class ExitLogits:
    """Logits of an exit: of the whole vocabulary ``z [rows, vocab]`` (``ids`` None), or ``z [rows, S + P]`` of the
    tokens ``ids [S]`` and each row's own ``own [rows, P]`` (−inf where a row has fewer).
    """

    z: Tensor
    ids: Tensor | None = None
    own: Tensor | None = None

    def top(self) -> Tensor:
        """Top token ``[rows]``."""
        best = self.z.argmax(-1)
        if self.ids is None:
            return best
        if self.own is None:
            return self.ids[best]
        size = len(self.ids)
        mine = self.own.gather(1, (best - size).clamp_min(0)[:, None])[:, 0]
        return torch.where(best < size, self.ids[best.clamp_max(size - 1)], mine)

    def whole(self, vocab_size: int) -> Tensor:
        """``[rows, vocab]``, −inf where nothing was computed."""
        if self.ids is None:
            return self.z
        size = len(self.ids)
        out = self.z.new_full((len(self.z), vocab_size), -torch.inf)
        out[:, self.ids] = self.z[:, :size]
        if self.own is not None:
            out.scatter_reduce_(1, self.own, self.z[:, size:], "amax")
        return out

    def of(self, rows: Tensor) -> ExitLogits:
        """The same for some rows."""
        return ExitLogits(self.z[rows], self.ids, None if self.own is None else self.own[rows])


class ExitReader:
    """What the exits of a model show: logits of states ``[rows, d_model]`` at a layer, and a classifier's confidence.

    Without ``heads`` the model's own norm and unembedding read every layer, through ``lens``. With them, a head reads
    its layer over the shortlist and, once :meth:`bind` has named the texts of a batch, over the tokens of each row's
    text. ``classifier`` takes the place of the heads' own. Raises :class:`ProbeError` for heads of another model,
    :class:`InputError` for a lens of another one, and for a lens beside heads, which have translators of their own.
    """

    def __init__(
        self,
        lm: LayeredModel,
        heads: ExitHeads | None = None,
        *,
        classifier: ExitClassifier | None = None,
        lens: str | Lens = "logit",
    ) -> None:
        self.lens = as_lens(lens, lm)
        self.lm, self.heads, self.classifier = lm, heads, classifier
        self.layers: tuple[int, ...] = ()  # those with a head
        self._own: list[list[int]] = []
        self._known: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}
        if heads is None:
            self._logits = logits_of(lm)
            return
        heads.check(lm)
        self.heads = heads = heads.to(lm.weight.device)
        if self.lens.name != "logit":
            raise InputError(
                f"exit heads have translators of their own, so lens {self.lens.name!r} does nothing: give one"
            )
        self.layers = heads.layers
        self.classifier = classifier or heads.confidence
        self._listed = frozenset(heads.shortlist.tolist())
        # The shortlist's rows are copied out once: together, they are laid out for the product like a whole head.
        weight = lm.weight.detach()[heads.shortlist].contiguous()
        bias = None if lm.bias is None else lm.bias.detach()[heads.shortlist]
        runner = runner_of(lm)
        compiled = None if runner is None or bias is not None else runner.compiled
        self._product: Callable[[Tensor], Tensor]
        if compiled is not None:
            self._product = compiled.product(weight)
        else:
            self._product = packed(weight, bias) or (lambda x: linear(x, weight, bias))

    @property
    def last(self) -> bool:
        """True when a policy may exit at layer N itself: a head there saves the product with the whole vocabulary."""
        return self.lm.n_layers in self.layers

    def resolve(self, policy: ExitPolicy) -> ExitPolicy:
        """The policy with the layers of this model that have an exit check: those given, or the default.

        With heads the default is those of the upper half. Raises :class:`LayerError` for a layer that cannot be
        exited at, :class:`InputError` for one without a head and for a classifier where there is none.
        """
        n = self.lm.n_layers
        if policy.kind == "classifier" and self.classifier is None:
            raise InputError("exit policy 'classifier' needs trained exit heads: give --heads")
        if policy.kind == "never":
            return policy
        if n < 2:
            raise LayerError(f"{self.lm.name} has {n} block: there is no layer to exit at before the last")
        if self.heads is not None and not policy.layers:
            # Heads of the lower half are there for drafts: a check at each of them costs more than it saves.
            policy = policy.at(tuple(j for j in self.layers if j >= n // 2) or self.layers)
        exits = policy.exits(n, last=self.last)
        self.lens.check_layers([layer for layer in exits if layer < n])
        if self.heads is not None:
            for layer in exits:
                self.heads.index(layer)
        return policy.at(exits)

    def bind(self, texts: Sequence[Sequence[int]]) -> ExitReader:
        """A reader of its own for a batch, one text a row, that grows with them."""
        if self.heads is None:
            return self
        bound = copy.copy(self)
        bound._own, bound._known = [self._unlisted(text) for text in texts], {}
        return bound

    def add(self, rows: np.ndarray, tokens: Sequence[int]) -> None:
        """One new token a row of the batch; the token that a row is fed counts as said."""
        if self.heads is None:
            return
        for row, token in zip(rows.tolist(), tokens, strict=True):
            if token not in self._listed and token not in self._own[row]:
                self._own[row].append(token)
                self._known = {}

    def keep(self, rows: np.ndarray) -> None:
        """Drop every row of the batch but these."""
        if self.heads is not None:
            self._own = [self._own[row] for row in rows.tolist()]
            self._known = {}

    def show(self, h: Tensor, layer: int, rows: np.ndarray | None = None) -> ExitLogits:
        """Logits of states ``[rows, d_model]`` at ``layer``.

        ``rows``: which rows of the batch they are (one may be there more than once); None: no text is known.
        """
        if self.heads is None:
            if self.lens.name == "raw":
                return ExitLogits(self._logits(h, layer, "raw").float())
            moved = self.lens.transform(h, layer) if layer < self.lm.n_layers else h
            return ExitLogits(self._logits(moved, layer).float())
        x = self._features(self.heads, h, layer)
        if rows is None:
            return ExitLogits(self._over(x), self.heads.shortlist)
        key = rows.tobytes()
        if key not in self._known:  # the same rows are checked at exit after exit, and step after step
            ids, there = padded([self._own[row] for row in rows.tolist()], h.device)
            self._known[key] = (ids, there, self.lm.weight.detach()[ids])
        return self._joined(self.heads, x, *self._known[key])

    def show_at(self, h: Tensor, layer: int, texts: Sequence[Sequence[int]], places: Sequence[int]) -> ExitLogits:
        """What a bound reader shows of states at ``places`` of ``texts`` (a text a row), for many at once."""
        if self.heads is None:
            return self.show(h, layer)
        own = [self._unlisted(text[: at + 1]) for text, at in zip(texts, places, strict=True)]
        ids, there = padded(own, h.device)
        return self._joined(self.heads, self._features(self.heads, h, layer), ids, there, self.lm.weight[ids])

    def _unlisted(self, text: Sequence[int]) -> list[int]:
        return [token for token in dict.fromkeys(text) if token not in self._listed]

    def _features(self, heads: ExitHeads, h: Tensor, layer: int) -> Tensor:
        """``[rows, d_head]``, ready for the unembedding; the last layer's states need no translation."""
        return self.lm.norm(heads.translate(h, layer) if layer < self.lm.n_layers else h)

    def _over(self, x: Tensor) -> Tensor:
        """The shortlist's logits ``[rows, S]`` of features."""
        return self.lm.logit_transform(self._product(x)).float()

    def _joined(self, heads: ExitHeads, x: Tensor, ids: Tensor, there: Tensor, weight: Tensor) -> ExitLogits:
        """The shortlist and each row's own tokens ``ids [rows, P]``, with their rows of the unembedding ``weight``."""
        z = self._over(x)
        if not ids.shape[1]:
            return ExitLogits(z, heads.shortlist)
        more = torch.einsum("rpd,rd->rp", weight, x)
        more = self.lm.logit_transform(more if self.lm.bias is None else more + self.lm.bias[ids]).float()
        return ExitLogits(torch.cat([z, more.masked_fill(~there, -torch.inf)], dim=1), heads.shortlist, ids)
