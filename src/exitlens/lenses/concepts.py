"""How well does a lens read? Pass@k on prompts whose intermediate concepts are known.

A concept that a model passes through should rank high at some inner layer, at the token where the prompt's set is read.
Its rank is the best over layers and over the tokens that stand for it: those that spell one of its forms, with or
without a leading space, as a single token. Pass@k is the mean over prompts of the share of concepts with rank ≤ k.

The embeddings and layer N are left out: layer N is the model's own output, which every lens reads alike, a random one
too, and layer 0 knows one token only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.data.records import ConceptPrompt, ReadAt, check_read_at
from exitlens.errors import ContextError, DataError, InputError
from exitlens.layer_range import Layers, resolve_layers
from exitlens.lenses.lens import Lens
from exitlens.lenses.read_hidden import readout
from exitlens.models.forward import passes
from exitlens.models.protocol import LayeredModel
from exitlens.models.text.tokens import reached

__all__ = [
    "ConceptRead",
    "best_of_tokens",
    "best_ranks",
    "chance_pass",
    "inner_layers",
    "padded_targets",
    "pass_at",
    "plan_read",
    "plan_reads",
    "ranks_at",
    "read_states",
    "with_rule",
]

DIRECTIONS = 2048  # random directions by which chance is counted
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class ConceptRead:
    """A prompt as it is read.

    ``ids`` end with the token that is read. ``concepts`` are the intermediates that are single tokens, ``tokens[i]``
    the token ids that stand for the i-th, ``left_out`` the other intermediates.
    """

    id: str
    set_name: str
    ids: tuple[int, ...]
    concepts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    left_out: tuple[str, ...] = ()


def inner_layers(n_layers: int, layers: Layers = "all", *, owner: str = "the model") -> tuple[int, ...]:
    """The layers over which concepts are ranked, ascending; ``all`` is 1 to N − 1. Raises LayerError, InputError."""
    if n_layers < 2:
        raise InputError(f"{owner} has {n_layers} block: there is no inner layer to read")
    return tuple(sorted(resolve_layers(layers, n_layers, first=1, last=n_layers - 1, what="inner layer", owner=owner)))


def with_rule(prompts: Sequence[ConceptPrompt], read_at: ReadAt | None) -> list[ConceptPrompt]:
    """The prompts with ``read_at`` where their set has no rule of its own.

    Raises:
        DataError: A set has no rule and none is given; one is given and no set needs it; a prompt lacks what it needs.
    """
    bare = [prompt for prompt in prompts if prompt.read_at is None]
    if bare and read_at is None:
        raise DataError(
            f"set {bare[0].set_name[:80]!r} does not say at which token it is read: add --read-at before-target, "
            "last-newline or last (or the field 'position' to its file)"
        )
    if prompts and read_at is not None and not bare:
        names = ", ".join(dict.fromkeys(prompt.set_name for prompt in prompts))
        raise DataError(f"--read-at {read_at} would change nothing: every set has a rule of its own ({names[:80]})")
    out = [replace(prompt, read_at=read_at) if prompt.read_at is None else prompt for prompt in prompts]
    for prompt in out:
        check_read_at(prompt, f"prompt {prompt.id[:80]!r}")
    return out


def plan_read(lm: LayeredModel, prompt: ConceptPrompt) -> ConceptRead:
    """Where ``prompt`` is read, and which tokens stand for its intermediates.

    ``before-target`` tokenises prompt and target together, since the space before a target is often part of its first
    token, and reads the token before the first one that holds a character of the target. ``last-newline`` reads the
    last token that holds a newline.

    Raises:
        InputError: The set has no rule, no token stands there, or the tokenizer changes the text.
        ContextError: The prompt does not fit the model's context.
    """
    where = f"prompt {prompt.id[:80]!r}"
    ids = lm.encode(prompt.prompt)
    if prompt.read_at == "before-target":
        target = (prompt.target or "").lstrip()
        text = prompt.prompt + (prompt.target or "")
        ids = lm.encode(text)
        begins = len(text) - len(target)
        end = next((i for i, stop in enumerate(_reached(lm, ids, text, where)) if stop > begins), 0)
    elif prompt.read_at == "last-newline":
        at = prompt.prompt.rindex("\n")
        end = 1 + next(i for i, stop in enumerate(_reached(lm, ids, prompt.prompt, where)) if stop > at)
    elif prompt.read_at == "last":
        end = len(ids)
    else:
        raise InputError(f"{where} does not say at which token it is read: use before-target, last-newline or last")
    if not end:
        raise InputError(f"{where}: no token stands before target {(prompt.target or '')[:80]!r}: leave it out")
    if lm.context is not None and end > lm.context:
        raise ContextError(
            f"{where} is read at token {end}, beyond the context of {lm.name} ({lm.context} tokens): shorten it"
        )
    tokens = [_single_tokens(lm, forms) for forms in prompt.forms]
    kept = [i for i, found in enumerate(tokens) if found]
    return ConceptRead(
        prompt.id,
        prompt.set_name,
        tuple(ids[:end]),
        tuple(prompt.intermediates[i] for i in kept),
        tuple(tokens[i] for i in kept),
        tuple(text for text, found in zip(prompt.intermediates, tokens, strict=True) if not found),
    )


def plan_reads(lm: LayeredModel, prompts: Sequence[ConceptPrompt]) -> list[ConceptRead]:
    """:func:`plan_read` of every prompt, those without a single-token concept too (``concepts`` is then empty).

    Raises:
        InputError: As :func:`plan_read`, and when no prompt has a single-token concept.
    """
    reads = [plan_read(lm, prompt) for prompt in prompts]
    if not any(read.concepts for read in reads):
        shown = next((read.left_out[0] for read in reads if read.left_out), "")
        raise InputError(
            f"none of the intermediates ({shown[:80]!r}, ...) is a single token of {lm.name}: nothing can be ranked; "
            "use other sets or another model"
        )
    return reads


def ranks_at(
    lm: LayeredModel, reads: Sequence[ConceptRead], lens: str | Lens, layers: Sequence[int]
) -> list[NDArray[np.int64]]:
    """Rank (1 is the best) of every concept at every layer, ``[layers, concepts]`` for each of ``reads``."""
    out: list[NDArray[np.int64]] = [np.zeros((len(layers), 0), dtype=np.int64) for _ in reads]
    for index, hidden in read_states(lm, reads, layers):
        flat = [[token for tokens in reads[i].tokens for token in tokens] for i in index]
        found = readout(lm, hidden, lens=lens, stats=("rank",), targets=padded_targets(flat))["rank"]
        ranks = 1 + found.cpu().numpy()
        for row, i in enumerate(index):
            out[i] = best_of_tokens(ranks[:, row], reads[i].tokens)
    return out


def padded_targets(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids as ``[rows, longest]``, filled up with −1."""
    widest = max(1, *map(len, rows)) if rows else 1
    return torch.tensor([[*row, *([-1] * (widest - len(row)))] for row in rows], dtype=torch.long)


def best_of_tokens(ranks: NDArray[np.int64], tokens: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Ranks of tokens ``[layers, k]``, concept after concept → best rank of each concept ``[layers, concepts]``."""
    starts = np.cumsum([0, *map(len, tokens)])
    columns = [ranks[:, a:b].min(axis=1) for a, b in pairwise(starts)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(ranks), 0), dtype=np.int64)


def best_ranks(ranks: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Best rank over layers of every concept ``[concepts]``, from ``[layers, concepts]`` of each prompt."""
    return [found.min(axis=0) for found in ranks]


def pass_at(best: Sequence[NDArray[np.int64]], k: int) -> float:
    """Pass@k (0..1): mean over prompts of the share of concepts with rank ≤ k; prompts without concepts do not count.

    Args:
        best: Best ranks ``[concepts]`` of each prompt, 1 is the best.
        k: How far down a concept may rank.

    Raises:
        InputError: ``k`` below 1, or no prompt has a concept.
    """
    if k < 1:
        raise InputError(f"pass@{k} is no share: use 1 or more")
    shares = [float((ranks <= k).mean()) for ranks in best if len(ranks)]
    if not shares:
        raise InputError("no prompt has a single-token concept: pass@k is not defined")
    return float(np.mean(shares))


@torch.no_grad()
def chance_pass(
    lm: LayeredModel, reads: Sequence[ConceptRead], ks: Sequence[int], *, layers: int, seed: int = 0
) -> NDArray[np.float64]:
    """Pass@k of a lens that hands the final norm a random direction at every layer: ``[prompts, ks]``.

    Tokens do not rank alike by chance: those with long rows of the unembedding stand at either end of most orders.
    So the chance q that one direction ranks one of a concept's tokens among the first k is counted over random
    directions through the model's own norm and unembedding; over the layers it is ``1 − (1 − q)^layers``.

    Args:
        lm: The model.
        reads: The prompts; one without concepts has NaN.
        ks: How far down a concept may rank.
        layers: The number of layers over which the best rank is taken.
        seed: Of the directions.
    """
    ids = sorted({token for read in reads for tokens in read.tokens for token in tokens})
    place = {token: i for i, token in enumerate(ids)}
    chosen = torch.tensor(ids, dtype=torch.long, device=lm.weight.device)
    g = torch.Generator().manual_seed(seed)
    hits = []
    for start in range(0, DIRECTIONS, _BLOCK):
        x = torch.randn(min(_BLOCK, DIRECTIONS - start), lm.d_model, generator=g)
        z = lm.unembed(lm.norm(x.to(lm.weight.device, lm.dtype)))
        # A token has rank ≤ k where its logit reaches the k-th largest.
        least = z.topk(max(ks), dim=1).values[:, [k - 1 for k in ks]]
        hits.append((z[:, chosen, None] >= least[:, None]).cpu().numpy())
    found = np.concatenate(hits)
    out = np.full((len(reads), len(ks)), np.nan)
    for i, read in enumerate(reads):
        if read.concepts:
            q = [found[:, [place[token] for token in tokens]].any(axis=1).mean(axis=0) for tokens in read.tokens]
            out[i] = (1 - (1 - np.stack(q)) ** layers).mean(axis=0)
    return out


def read_states(
    lm: LayeredModel, reads: Sequence[ConceptRead], layers: Sequence[int]
) -> Iterator[tuple[list[int], dict[int, Tensor]]]:
    """Residual streams ``{layer: [t, d_model]}`` at the tokens that are read, and which of ``reads`` they belong to."""
    for part in passes(lm, [read.ids for read in reads], layers=layers, positions="last"):
        yield part.index, {j: h[:, -1] for j, h in part.hidden.items()}


def _reached(lm: LayeredModel, ids: Sequence[int], text: str, where: str) -> list[int]:
    try:
        return reached(lm.decode, ids, text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _single_tokens(lm: LayeredModel, forms: Sequence[str]) -> tuple[int, ...]:
    """Every token that alone spells one of the forms, with or without a leading space."""
    found: dict[int, None] = {}
    for form in forms:
        for text in (form, f" {form}"):
            ids = lm.encode(text, special=False)
            # A token for what the tokenizer does not know spells something else.
            if len(ids) == 1 and lm.decode(ids).strip() == form:
                found[ids[0]] = None
    return tuple(found)
