"""Direct logit attribution: what embeddings, attention and MLP of each block, and heads add to the logit of a token.

The residual stream behind the last block is a sum, and with the final norm held at its own scale a logit is a linear
function of it: the logit splits into one number a term. That the numbers sum to the model's own logit is checked for
every token asked for; a model whose stream is no such sum is refused (Elhage et al. 2021; nostalgebraist 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exitlens.display import Shown
from exitlens.errors import InputError, UnsupportedModel
from exitlens.models.forward import passes
from exitlens.models.layout.affine import half, scaled, tail_map
from exitlens.models.protocol import LayeredModel
from exitlens.models.stream_terms import Recorded, StreamTerms, laid_out, recording, stream_terms
from exitlens.storage.atomic import write_parquet

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Attribution", "Target", "attribute_ids", "parts_of"]

COMPONENTS = ("prompt", "target", "component", "kind", "block", "head", "contribution")
LOGITS = ("prompt", "target", "token_id", "minus_id", "logit", "capped", "error")
# Kinds whose rows sum to the logit; rows of heads split those of attention and are not added again.
HEAD_KINDS = ("head", "head bias")


@dataclass(frozen=True, slots=True)
class Target:
    """A token whose logit is split, or the difference of two: ``plus`` − ``minus`` [token ids]."""

    label: str
    plus: int
    minus: int | None = None


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Attribution(Shown):
    """What each component adds to the logits that were asked for.

    Attributes:
        model: The model's name.
        prompts: The texts, in order; ``prompt`` in the frames counts them from 0.
        components: A row a prompt, target and component: ``contribution`` [logits]. Rows of kind ``head`` and ``head
            bias`` split the attention of their block (``head`` counts from 0); the others sum to the logit.
        logits: A row a prompt and target: ``logit`` before the model's soft-cap, ``capped`` after it, and ``error``:
            how far the sum of the components is from ``logit``.
    """

    model: str
    prompts: tuple[str, ...]
    components: pd.DataFrame
    logits: pd.DataFrame

    def __repr__(self) -> str:
        targets = ", ".join(map(repr, dict.fromkeys(self.logits["target"])))
        worst = float(self.logits["error"].max())
        count = len(dict.fromkeys(self.components["component"]))
        return (
            f"Attribution({self.model}: {len(self.prompts)} prompt{'s' * (len(self.prompts) != 1)}, {count} components "
            f"of {targets[:200]}; sums to {worst:.1e})\n  .show() draws it, .table() and .top() are pandas DataFrames"
        )

    def table(self, prompt: int = 0, *, heads: bool = True) -> pd.DataFrame:
        """A row a component, a column a target, in the order in which the model adds.

        Args:
            prompt: Which one, from 0.
            heads: Whether rows of heads stay.

        Raises:
            InputError: No such prompt.
        """
        mine = self._of(prompt)
        if not heads:
            mine = mine[~mine["kind"].isin(HEAD_KINDS)]
        names = ["component", "kind", "block", "head"]
        # A choice may be called as a column is.
        mine = mine.assign(target=[f"{name} (target)" if name in names else name for name in mine["target"]])
        wide = mine.pivot_table(index=names, columns="target", values="contribution", sort=False).reset_index()
        wide.columns.name = None
        return wide[[*names, *dict.fromkeys(mine["target"])]]

    def top(self, n: int = 10, target: str | None = None, prompt: int = 0, *, heads: bool = False) -> pd.DataFrame:
        """The ``n`` largest contributions to a target (by default the first), largest absolute value first.

        Raises:
            InputError: No such prompt or target.
        """
        mine = self._of(prompt)
        known = list(dict.fromkeys(mine["target"]))
        chosen = known[0] if target is None else target
        if chosen not in known:
            raise InputError(f"no target {chosen[:80]!r} was asked for: use {', '.join(map(repr, known))[:200]}")
        mine = mine[(mine["target"] == chosen) & (heads | ~mine["kind"].isin(HEAD_KINDS))]
        order = mine["contribution"].abs().sort_values(ascending=False, kind="stable").index[:n]
        return mine.loc[order].reset_index(drop=True)

    def save(self, path: str | Path) -> Path:
        """Write ``components`` as one Parquet file; returns its path."""
        path = Path(path)
        write_parquet(path, self.components)
        return path

    def _of(self, prompt: int) -> pd.DataFrame:
        if not 0 <= prompt < len(self.prompts):
            raise InputError(f"no prompt {prompt}: there are {len(self.prompts)}, counted from 0")
        return self.components[self.components["prompt"] == prompt]


def parts_of(lm: LayeredModel) -> str:
    """``heads`` (every attention splits into heads), ``some heads`` or ``blocks``: how far this model can be split.

    Raises:
        UnsupportedModel: Not at all; says why.
    """
    terms = stream_terms(lm)
    return "heads" if terms.all_heads else "some heads" if terms.heads else "blocks"


def attribute_ids(
    lm: LayeredModel,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[Target]],
    *,
    heads: bool = True,
    texts: Sequence[str] | None = None,
    batch_tokens: int = 2048,
) -> Attribution:
    """Split the logits of the token after each prompt.

    Args:
        lm: The model.
        prompts: Token ids of each prompt.
        targets: For each prompt the tokens or differences wanted.
        heads: Whether attention is also split into heads, where it can be.
        texts: The prompts as texts, for the result; by default their ids decoded.
        batch_tokens: The most tokens of a pass.

    Returns:
        Contributions in float64, at the last position of each prompt.

    Raises:
        InputError: No prompt, an empty one, no target, or a token outside the vocabulary.
        ContextError: A prompt that does not fit the model's context.
        UnsupportedModel: The model's logits are no sum of what its blocks add.
    """
    _check(lm, prompts, targets)
    terms = stream_terms(lm)
    found: dict[int, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    with recording(lm, terms) as recorded, torch.no_grad():
        layers = (0, lm.n_layers)
        for part in passes(lm, prompts, layers=layers, positions="last", batch_tokens=batch_tokens):
            first, last = part.hidden[0][:, -1], part.hidden[lm.n_layers][:, -1]
            split = _Split(lm, terms, recorded, first, last, [targets[i] for i in part.index], heads=heads)
            for row, place in enumerate(part.index):
                found[place] = split.frames(row, place)
    order = range(len(prompts))
    return Attribution(
        lm.name,
        tuple(texts) if texts is not None else tuple(lm.decode(list(ids)) for ids in prompts),
        _frame([r for i in order for r in found[i][0]], COMPONENTS),
        _frame([r for i in order for r in found[i][1]], LOGITS),
    )


def _check(lm: LayeredModel, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[Target]]) -> None:
    if not prompts:
        raise InputError("no prompt was given: give at least one")
    if len(prompts) != len(targets):
        raise InputError(f"{len(prompts)} prompts and targets for {len(targets)}: give as many")
    for i, (ids, wanted) in enumerate(zip(prompts, targets, strict=True)):
        if not ids:
            raise InputError(f"prompt {i} is empty: give a text")
        if not wanted:
            raise InputError(f"prompt {i} has no token to split the logit of: give at least one")
        for target in wanted:
            for token in (target.plus, target.minus):
                if token is not None and not 0 <= token < lm.vocab_size:
                    raise InputError(
                        f"token id {token} is outside the vocabulary of {lm.name} (0 to {lm.vocab_size - 1}): "
                        "give a token of this model"
                    )
            if target.plus == target.minus:
                raise InputError(f"{target.label[:80]!r} is the difference of token {target.plus} and itself")


_Part = tuple[dict[str, Any], Tensor]


class _Split:
    """The split of one pass: every number is ``[rows, targets]``, rows of fewer targets filled up with their first."""

    def __init__(
        self,
        lm: LayeredModel,
        terms: StreamTerms,
        recorded: Recorded,
        first: Tensor,
        last: Tensor,
        targets: Sequence[Sequence[Target]],
        *,
        heads: bool,
    ) -> None:
        self.lm, self.terms, self.recorded, self.targets = lm, terms, recorded, targets
        most = max(map(len, targets))
        filled = [[*mine, *[mine[0]] * (most - len(mine))] for mine in targets]
        self.plus = torch.tensor([[t.plus for t in mine] for mine in filled])
        self.minus = torch.tensor([[t.plus if t.minus is None else t.minus for t in mine] for mine in filled])
        self.alone = torch.tensor([[t.minus is None for t in mine] for mine in filled])
        self.scale, cap = lm.logit_transform.scale, lm.logit_transform.cap
        # The unembedding of a whole vocabulary is cheap beside the pass, and its product is the model's own.
        own = lm.unembed(lm.norm(last)).double().cpu() * self.scale
        self.logit = self._difference(own)
        self.capped = self.logit if cap is None else self._difference(torch.tanh(own / cap) * cap)
        weight = lm.weight
        w = weight[self.plus.to(weight.device)].detach().double().cpu()
        less = weight[self.minus.to(weight.device)].detach().double().cpu()
        w = w - torch.where(self.alone[..., None], 0.0, less)
        self.direction, self.constant = (
            tail_map(lm.model, laid_out(lm).layout.tail, last, lm.name).then(scaled(self.scale)).pull(w)
        )
        if lm.bias is not None:
            bias = lm.bias.detach().double().cpu() * self.scale
            self.constant = self.constant + self._difference(bias.expand(len(w), -1))
        self.rounding = torch.zeros_like(self.logit)
        self.parts: list[_Part] = list(self._sums(first.detach().double().cpu()))
        total = _total(self.parts)
        self.error = (self.logit - total).abs()
        largest = torch.stack([values.abs() for _, values in self.parts]).amax(0)
        self._bounded(total, self.logit, largest, self.rounding, "its components")
        if half(lm.dtype):  # what the model's own sums lost, so that the rows sum to its logit
            self.parts.append((_names("rounding", "rounding", -1), self.logit - total))
        if heads:
            self.parts += self._heads()

    def frames(self, row: int, place: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the two frames for one prompt."""
        components = [
            {"prompt": place, "target": t.label, **names, "contribution": float(values[row, k])}
            for names, values in self.parts
            for k, t in enumerate(self.targets[row])
        ]
        told = [
            {
                "prompt": place,
                "target": t.label,
                "token_id": t.plus,
                "minus_id": -1 if t.minus is None else t.minus,
                "logit": float(self.logit[row, k]),
                "capped": float(self.capped[row, k]),
                "error": float(self.error[row, k]),
            }
            for k, t in enumerate(self.targets[row])
        ]
        return components, told

    def _difference(self, values: Tensor) -> Tensor:
        """``values [rows, vocab]`` of each target."""
        return values.gather(1, self.plus) - torch.where(self.alone, 0.0, values.gather(1, self.minus))

    def _sums(self, first: Tensor) -> Iterator[_Part]:
        stream = torch.zeros_like(first)
        square = self.logit**2
        if self.terms.whole_embeddings:
            stream = first * self.terms.additions.begin
            if bool(stream.any()):
                yield _names("embeddings", "embeddings", 0), self._along(stream)
        for term in self.terms.terms:
            value = self.recorded.values[term] * term.factor
            stream = stream + value
            square = square + self._spread(stream)
            yield _names(term.label, term.kind, term.block), self._along(value)
        # Each sum of the stream was rounded to the model's type, entry by entry: their spread in the logit, 7 sigma.
        self.rounding = 2 * torch.finfo(self.lm.dtype).eps * square.sqrt()
        if bool(self.constant.any()):
            yield _names("final bias", "final bias", -1), self.constant

    def _along(self, value: Tensor) -> Tensor:
        return (self.direction * value[:, None]).sum(-1)

    def _spread(self, value: Tensor) -> Tensor:
        return ((self.direction * value[:, None]) ** 2).sum(-1)

    def _heads(self) -> list[_Part]:
        out: list[_Part] = []
        for term, heads in self.terms.heads.items():
            inner, constants = self.recorded.head_map(term, heads).pull(self.direction * term.factor)
            z = self.recorded.head_inputs[term][0]
            each = (inner * z[:, None]).reshape(*inner.shape[:2], heads.count, -1).sum(-1)
            name = f"block {term.block}" if term.kind == "attention" else term.label
            out += [
                (_names(f"{name} head {head}", "head", term.block, head), each[..., head])
                for head in range(heads.count)
            ]
            if bool(constants.any()):
                out.append((_names(f"{name} heads' bias", "head bias", term.block), constants))
            value = self.recorded.values[term] * term.factor
            rounding = 4 * torch.finfo(self.lm.dtype).eps * self._spread(value).sqrt()
            total, largest = each.sum(-1) + constants, each.abs().amax(-1)
            self._bounded(total, self._along(value), largest, rounding, f"the heads of {term.label}")
        return out

    def _bounded(self, got: Tensor, want: Tensor, largest: Tensor, rounding: Tensor, what: str) -> None:
        """Raise unless equal to 1e-4 of the largest number, or to what the model's own rounding explains."""
        bound = torch.maximum(1e-4 * torch.maximum(want.abs(), largest).clamp_min(1.0), rounding)
        off = (got - want).abs()
        if not bool((off <= bound).all()):
            worst = int((off / bound).nan_to_num(nan=torch.inf).argmax())
            raise UnsupportedModel(
                f"{self.lm.name}: {what} sum to {float(got.flatten()[worst]):.5g}, not to the model's own "
                f"{float(want.flatten()[worst]):.5g} (allowed: {float(bound.flatten()[worst]):.2g} apart), so nothing "
                "is attributed"
            )


def _names(component: str, kind: str, block: int, head: int = -1) -> dict[str, Any]:
    return {"component": component, "kind": kind, "block": block, "head": head}


def _total(rows: Sequence[tuple[dict[str, Any], Tensor]]) -> Tensor:
    return torch.stack([values for names, values in rows if names["kind"] not in HEAD_KINDS]).sum(0)


def _frame(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=list(columns))
