"""Exit heads for a frozen model: cheap logits at an exit, and a classifier that says whether they are final already.

Logits: ``W_S · norm(h + U_j V_j h + b_j)``, a low-rank translator (after Belrose et al. 2023, arXiv 2303.08112)
read over a shortlist ``S`` of the vocabulary, so that an exit check costs a fraction of the full product; a token
outside the shortlist can only come from layer N, and the classifier learns not to exit there. Classifier: logistic
regression on the normed state (Schuster et al. 2022, arXiv 2207.07061): one dot product, no vocabulary product at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exitlens.errors import InputError, ProbeError
from exitlens.models.protocol import LayeredModel

__all__ = ["ExitHeads", "train_heads"]

_TENSORS = ("shortlist", "down", "up", "shift", "direction", "offset")


@dataclass(frozen=True, slots=True)
class ExitHeads:
    """Frozen heads at ``layers [E]``, over the token ids ``shortlist [S]``.

    ``down [E, r, d]``, ``up [E, d, r]``, ``shift [E, d]``: the translators (nothing at layer N, whose head saves the
    rest of the vocabulary and no block). ``direction [E, d]``, ``offset [E]``:
    the classifiers, on the normed state. ``fingerprint`` is the model's that they were fitted on; ``notes`` says on
    what and how well.
    """

    layers: tuple[int, ...]
    fingerprint: str
    shortlist: Tensor
    down: Tensor
    up: Tensor
    shift: Tensor
    direction: Tensor
    offset: Tensor
    notes: Mapping[str, str]

    def check(self, lm: LayeredModel) -> None:
        """Raises :class:`ProbeError` for heads of another model."""
        if self.fingerprint != lm.fingerprint:
            raise ProbeError(
                f"these exit heads were fitted on another model ({self.fingerprint[:12]}, not {lm.fingerprint[:12]} of "
                f"{lm.name}): train them with `exitlens exits train --model {lm.name}`"
            )

    def to(self, device: torch.device) -> ExitHeads:
        """The same heads on a device; files hold them on the CPU."""
        parts = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **parts)

    def translate(self, h: Tensor, layer: int) -> Tensor:
        """``h + U V h + b`` of the translator at a layer. Raises :class:`InputError` for a layer without a head."""
        e = self.index(layer)
        return translate(h, self.down[e], self.up[e], self.shift[e])

    def confidence(self, h: Tensor, layer: int) -> Tensor:
        """Probability ``[rows]`` that the head's top token at a layer is the one of layer N, by its classifier."""
        e = self.index(layer)
        return torch.sigmoid(_features(h) @ self.direction[e] + self.offset[e])

    def index(self, layer: int) -> int:
        """Place of a layer among ``layers``. Raises :class:`InputError`."""
        try:
            return self.layers.index(layer)
        except ValueError:
            raise InputError(
                f"no exit head at layer {layer}: there are heads at {', '.join(map(str, self.layers))}"
            ) from None

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and text for a safetensors file."""
        tensors = {"layers": torch.tensor(self.layers), **{name: getattr(self, name) for name in _TENSORS}}
        notes = {f"note.{key}": value for key, value in self.notes.items()}
        return tensors, {"kind": "exitlens-exit-heads", "fingerprint": self.fingerprint, **notes}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> ExitHeads:
        """The inverse of :meth:`to_tensors`. Raises :class:`ProbeError` for a file of another kind."""
        if text.get("kind") != "exitlens-exit-heads":
            raise ProbeError(f"not a file of exit heads (kind {text.get('kind')!r}): use one of `exitlens exits train`")
        notes = {key[5:]: value for key, value in text.items() if key.startswith("note.")}
        rest = {key: value for key, value in tensors.items() if key != "layers"}
        return cls(layers=tuple(tensors["layers"].tolist()), fingerprint=text["fingerprint"], notes=notes, **rest)


def translate(h: Tensor, down: Tensor, up: Tensor, shift: Tensor) -> Tensor:
    """``h + U V h + b`` for ``h [..., d]``."""
    low = h.to(down.dtype) @ down.T
    return h + (low @ up.T + shift).to(h.dtype)


def _features(h: Tensor) -> Tensor:
    """The state at unit mean square, so that its growth over layers and tokens does not enter."""
    h = h.float()
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)


def train_heads(
    lm: LayeredModel,
    hidden: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    shortlist_size: int = 4096,
    rank: int = 64,
    epochs: int = 3,
    batch: int = 256,
    rate: float = 1e-3,
    seed: int = 0,
    held_out: float = 0.1,
    texts: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExitHeads:
    """Fit heads on recorded states ``hidden[layer] [T, d_model]`` of text, at ``layers`` and at N.

    The shortlist is the ``shortlist_size`` tokens that layer N gives most mass to. Translators minimise the KL of layer
    N's distribution, renormalised on the shortlist, to the head's. The last ``held_out`` share of positions is kept
    apart and measures agreement (in ``notes``). ``texts``: the token ids that the states stand on, text after text;
    with them classifiers count what a text holds already as part of the shortlist, as decoding does.

    At layer N there is nothing to translate: its head is the shortlist and a classifier. Raises :class:`InputError`
    for fewer than 256 positions or a layer that was not recorded.
    """
    n = lm.n_layers
    for layer in layers:
        if not 1 <= layer <= n or layer not in hidden:
            raise InputError(f"exit head at layer {layer}: use recorded layers from 1 to {n}")
    total = int(hidden[n].shape[0])
    if total < 256:
        raise InputError(f"{total} positions of text are too few to fit exit heads: give at least 256")
    split = total - max(32, int(total * held_out))
    mass, top = _final_mass(lm, hidden[n])
    device = lm.weight.device  # where the work is done; the random numbers and the result are the CPU's
    if shortlist_size < 2 or rank < 1 or epochs < 1:
        raise InputError(f"shortlist_size={shortlist_size}, rank={rank} or epochs={epochs} is out of range")
    size = min(shortlist_size, lm.vocab_size)
    shortlist = mass.topk(size).indices.sort().values
    weight = lm.weight.detach()[shortlist].float()
    bias = None if lm.bias is None else lm.bias.detach()[shortlist].float()
    d = lm.d_model
    parts: dict[str, list[Tensor]] = {k: [] for k in ("down", "up", "shift", "direction", "offset")}
    notes = {"positions": str(total), "shortlist": str(size), "rank": str(rank)}
    done, work = 0, len(layers) * epochs
    for layer in layers:
        generator = torch.Generator().manual_seed(seed * 1000 + layer)
        down = (torch.randn(rank, d, generator=generator) / math.sqrt(d)).to(device).requires_grad_()
        up = torch.zeros(d, rank, device=device, requires_grad=True)
        shift = torch.zeros(d, device=device, requires_grad=True)
        optimiser = torch.optim.Adam([down, up, shift], lr=rate)
        steps = epochs * max(1, split // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps + 1)
        for _ in range(epochs if layer < n else 0):
            order = torch.randperm(split, generator=generator)
            for at in range(0, split - batch + 1, batch):
                rows = order[at : at + batch]
                with torch.no_grad():
                    x = lm.norm(hidden[n][rows].to(device)).float()
                    p = lm.logit_transform(torch.nn.functional.linear(x, weight, bias)).softmax(-1)
                moved = translate(hidden[layer][rows].to(device).float(), down, up, shift)
                z = lm.logit_transform(torch.nn.functional.linear(lm.norm(moved).float(), weight, bias))
                loss = -(p * z.log_softmax(-1)).sum(-1).mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            done += 1
            if progress is not None:
                progress(done, work)
        done = (len(parts["down"]) + 1) * epochs
        with torch.no_grad():
            own = () if texts is None else texts
            agree = _agreement(lm, hidden[layer], top, shortlist, weight, bias, (down, up, shift), own)
        direction, offset = _classifier(_features(hidden[layer][:split]), agree[:split])
        notes[f"agreement.{layer}"] = f"{float(agree[split:].float().mean()):.4f}"
        for key, value in zip(parts, (down, up, shift, direction, offset), strict=True):
            parts[key].append(value.detach().cpu())
    stacked = {key: torch.stack(values) for key, values in parts.items()}
    return ExitHeads(layers=tuple(layers), fingerprint=lm.fingerprint, shortlist=shortlist, notes=notes, **stacked)


@torch.no_grad()
def _final_mass(lm: LayeredModel, states: Tensor) -> tuple[Tensor, Tensor]:
    """Mass ``[vocab]`` that layer N gives each token over all positions, and its top token ``[T]``."""
    mass = torch.zeros(lm.vocab_size)
    top = []
    for at in range(0, len(states), 64):
        z = lm.logits(states[at : at + 64].to(lm.weight.device), lm.n_layers).float()
        mass += z.softmax(-1).sum(0).cpu()
        top.append(z.argmax(-1).cpu())
    return mass, torch.cat(top)


def _agreement(
    lm: LayeredModel,
    states: Tensor,
    top: Tensor,
    shortlist: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    head: tuple[Tensor, Tensor, Tensor],
    texts: Sequence[Sequence[int]],
) -> Tensor:
    """``[T]``: is the head's top token the one of layer N?"""
    out, at = [], 0
    sizes = [len(text) for text in texts] or [512] * math.ceil(len(states) / 512)
    for i, size in enumerate(sizes):
        x = lm.norm(translate(states[at : at + size].to(weight.device).float(), *head)).float()
        best = torch.nn.functional.linear(x, weight, bias).max(-1)
        chosen = shortlist.to(x.device)[best.indices]
        if len(texts):
            ids = torch.tensor(list(texts[i]), device=x.device)
            offset = None if lm.bias is None else lm.bias.detach()[ids].float()
            z = torch.nn.functional.linear(x, lm.weight.detach()[ids].float(), offset)
            said = z.masked_fill(torch.ones_like(z, dtype=torch.bool).triu(1), -torch.inf).max(-1)
            chosen = torch.where(said.values > best.values, ids[said.indices], chosen)
        out.append(chosen.cpu() == top[at : at + size])
        at += size
    return torch.cat(out)


def _classifier(features: Tensor, agree: Tensor, l2: float = 1e-3) -> tuple[Tensor, Tensor]:
    """L2-regularised logistic regression ``[T, d] → agree [T]`` by L-BFGS; a constant when only one class occurs."""
    direction = torch.zeros(features.shape[1], device=features.device, requires_grad=True)
    offset = torch.zeros((), device=features.device, requires_grad=True)
    target = agree.to(features.device).float()
    if bool((target == target[0]).all()):
        return direction.detach(), torch.tensor(8.0 if bool(agree[0]) else -8.0)
    optimiser = torch.optim.LBFGS([direction, offset], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        z = features @ direction + offset
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, target) + l2 * direction.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return direction.detach(), offset.detach()
