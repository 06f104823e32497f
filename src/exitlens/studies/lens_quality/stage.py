"""What every lens shows at the tokens that are read: ranks of concepts, KL to the output, agreement of top-1 tokens."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.lenses.concepts import ConceptRead, best_of_tokens, padded_targets, read_states
from exitlens.lenses.controls import RotationLens
from exitlens.lenses.lens import BUILT_IN, Lens
from exitlens.lenses.read_hidden import readout
from exitlens.models.protocol import LayeredModel

__all__ = ["RANKS", "READS", "ConceptRecord", "LensStage", "with_decoys"]

RANKS, READS = "lenses_ranks", "lenses_reads"
DECOYS = 4  # other prompts whose concepts are ranked at a prompt: few leave the control noisy, many cost ranks


@dataclass(frozen=True, slots=True)
class ConceptRecord:
    """A prompt as it is read; ``decoys`` are other prompts' concepts, none with a token of the prompt's own."""

    read: ConceptRead
    decoys: tuple[ConceptRead, ...] = ()

    @property
    def id(self) -> str:
        """The prompt's."""
        return self.read.id


def with_decoys(reads: Sequence[ConceptRead], seed: int = 0, most: int = DECOYS) -> list[ConceptRecord]:
    """Each prompt with the concepts of at most ``most`` other prompts of its set, drawn by the seed.

    Concepts that share a token with the prompt's own are left out: "opposite" belongs to many prompts of one set.

    Args:
        reads: Prompts with their own concepts; those without any are left out.
        seed: Of the draw, which differs from prompt to prompt.
        most: Other prompts of each.

    Returns:
        A record for each prompt that has concepts, in their order.
    """
    sets: dict[str, list[int]] = {}
    for i, read in enumerate(reads):
        if read.concepts:
            sets.setdefault(read.set_name, []).append(i)
    out = []
    for i, read in enumerate(reads):
        if not read.concepts:
            continue
        own = {token for tokens in read.tokens for token in tokens}
        order = np.random.default_rng([seed, i]).permutation(sets[read.set_name])
        others = (_without(reads[j], own) for j in order if j != i)
        decoys = tuple(other for _, other in zip(range(most), (o for o in others if o.concepts), strict=False))
        out.append(ConceptRecord(read, decoys))
    return out


@dataclass(frozen=True)
class LensStage:
    """Tables ``lenses_ranks`` (a row a prompt, lens and concept, decoys too) and ``lenses_reads`` (one a layer).

    ``lenses``: by the names that tables call them. ``layers``: inner ones, ascending. ``k``: of the share by layer.
    """

    name: ClassVar[str] = "lenses"
    version: ClassVar[int] = 1

    lenses: tuple[tuple[str, Lens], ...]
    layers: tuple[int, ...]
    k: int

    def settings(self) -> dict[str, Any]:
        """See :class:`exitlens.runs.engine.Stage`."""
        return {
            "lenses": [[name, lens.identity] for name, lens in self.lenses],
            "layers": self.layers,
            "k": self.k,
        }

    def identify(self, record: ConceptRecord) -> Any:
        """See :class:`exitlens.runs.engine.Stage`."""
        return [astuple(record.read), [astuple(decoy) for decoy in record.decoys]]

    def run(self, lm: LayeredModel, batch: Sequence[ConceptRecord]) -> dict[str, pd.DataFrame]:
        """See :class:`exitlens.runs.engine.Stage`."""
        ranks: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(batch))}
        reads: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(batch))}
        layers = (*self.layers, lm.n_layers)
        for index, hidden in read_states(lm, [record.read for record in batch], layers):
            answers = lm.logits(hidden[lm.n_layers], lm.n_layers).argmax(-1).tolist()
            flat = [[int(answer), *_tokens(batch[i])] for answer, i in zip(answers, index, strict=True)]
            targets = padded_targets(flat)
            for name, lens in self.lenses:
                found = _read(lm, hidden, lens, targets, [batch[i] for i in index])
                for row, i in enumerate(index):
                    ranks[i] += self._ranks(batch[i], name, found["rank"][:-1, row, 1:])
                    reads[i] += self._reads(batch[i], name, layers, found, row)
        tables = {RANKS: ranks, READS: reads}
        return {name: pd.DataFrame([row for i in range(len(batch)) for row in of[i]]) for name, of in tables.items()}

    def _ranks(self, record: ConceptRecord, lens: str, ranks: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        start = 0
        for whose in (record.read, *record.decoys):
            width = sum(map(len, whose.tokens))
            found = best_of_tokens(ranks[:, start : start + width], whose.tokens)
            start += width
            for column, concept in enumerate(whose.concepts):
                best = int(found[:, column].argmin())
                yield {
                    **_head(record, lens),
                    "concept": concept,
                    "of": whose.id,
                    "rank": int(found[best, column]),
                    "layer": self.layers[best],
                }

    def _reads(
        self,
        record: ConceptRecord,
        lens: str,
        layers: Sequence[int],
        found: Mapping[str, NDArray[Any]],
        row: int,
    ) -> Iterator[dict[str, Any]]:
        width, ranks = sum(map(len, record.read.tokens)), found["rank"][:, row]
        shares = (best_of_tokens(ranks[:, 1 : 1 + width], record.read.tokens) <= self.k).mean(axis=1)
        kl, agreement = found["kl"][:, row], found["agreement"][:, row]
        for place, layer in enumerate(layers):
            yield {
                **_head(record, lens),
                "layer": layer,
                "share": float(shares[place]),
                "kl": float(kl[place]),
                "agreement": bool(agreement[place]),
                "answer_rank": int(ranks[place, 0]),
            }


def _read(
    lm: LayeredModel,
    hidden: Mapping[int, Tensor],
    lens: Lens,
    targets: Tensor,
    records: Sequence[ConceptRecord],
) -> dict[str, NDArray[Any]]:
    """Rank (1 is the best) ``[layers, prompts, targets]``, KL and agreement ``[layers, prompts]``."""
    if isinstance(lens, RotationLens):  # a rotation for each prompt, drawn from its id; then read as they are
        turns = [RotationLens(lens.d_model, lens.seed, zlib.crc32(record.id.encode())) for record in records]
        hidden = {
            j: h
            if j == lm.n_layers
            else torch.stack([turn.transform(row, j) for turn, row in zip(turns, h, strict=True)])
            for j, h in hidden.items()
        }
        lens = BUILT_IN["logit"]
    found = readout(lm, hidden, lens=lens, stats=("rank", "kl", "agreement"), targets=targets)
    return {name: part.cpu().numpy() + int(name == "rank") for name, part in found.items()}


def _head(record: ConceptRecord, lens: str) -> dict[str, Any]:
    return {"prompt_id": record.id, "set": record.read.set_name, "lens": lens}


def _tokens(record: ConceptRecord) -> list[int]:
    return [token for read in (record.read, *record.decoys) for tokens in read.tokens for token in tokens]


def _without(read: ConceptRead, own: set[int]) -> ConceptRead:
    """The prompt's concepts that have none of the tokens ``own``; its token ids are not needed."""
    kept = [i for i, tokens in enumerate(read.tokens) if not own & set(tokens)]
    return ConceptRead(
        read.id, read.set_name, (), tuple(read.concepts[i] for i in kept), tuple(read.tokens[i] for i in kept)
    )
