"""The one generation loop: batches with a key-value cache, any decoder, and what the layers said on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from exitlens.arguments import as_count, as_numbers, as_penalty, as_texts, wrong_kind
from exitlens.decoding.contrast import BoundDecoder, Decoder
from exitlens.decoding.generation import Generation, ids_in
from exitlens.decoding.sampling import Sampling, penalise, row_generator
from exitlens.decoding.session import Prefix, open_prefix
from exitlens.decoding.stopping import StopStrings, continued, special_token, undecided
from exitlens.decoding.token_rules import rules_of
from exitlens.errors import ContextError, InputError
from exitlens.layer_range import Layers, resolve_layers
from exitlens.lenses import readout
from exitlens.lenses.lens import lens_name
from exitlens.models.forward import plan_batches
from exitlens.models.native.runner import runner_of
from exitlens.models.protocol import LayeredModel

__all__ = ["BatchRun", "Row", "generate", "stream"]

P = TypeVar("P")


@dataclass(slots=True)
class Row:
    """A prompt while it is answered: its place among the prompts, its text and ids, and what was written so far."""

    index: int
    prompt: str
    ids: list[int]
    generator: torch.Generator | None
    new: list[int] = field(default_factory=list)
    finish: Literal["stop", "eos", "length"] | None = None
    hidden: list[Tensor] = field(default_factory=list)
    steps: list[dict[str, Tensor]] = field(default_factory=list)


def generate(
    lm: LayeredModel,
    prompts: Sequence[str | Sequence[int]] | str,
    *,
    decoder: str | Decoder = "vanilla",
    max_new_tokens: int = 50,
    stop: Sequence[str] = (),
    batch_size: int = 8,
    repetition_penalty: float = 1.0,
    sampling: Sampling | None = None,
    generation_config: str | None = None,
    seed: int = 0,
    read: Sequence[str] = (),
    read_lens: Any = "logit",
    read_layers: Layers = "all",
    trace: bool = False,
    chat: bool = False,
    open_with: Callable[[Sequence[int]], Prefix] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Answer every prompt: a text, or token ids taken as they are. A text that all prompts begin with is run once.

    Args:
        lm: the model.
        prompts: texts or token ids; one text may stand alone.
        decoder: how the next token is scored, as :func:`parse_decoder` reads it.
        max_new_tokens: the longest answer [tokens].
        stop: texts at which an answer ends; they are no part of it.
        batch_size: rows that are answered side by side.
        repetition_penalty: acts on prompt and output, after the decoder's own scores; 1 is none.
        sampling: None is greedy.
        generation_config: ``"model"`` applies the checkpoint's own repetition penalty and forbidden tokens.
        seed: of the rows' random streams.
        read: statistics (:func:`exitlens.lenses.readout`) of every layer at every answer token, at no second pass.
        read_lens: the lens that they are read through.
        read_layers: the layers that are read.
        trace: keep what the decoder reports at each step.
        chat: put each prompt through the tokenizer's chat template.
        open_with: runs the shared token ids and gives the sessions another way than the model's usual one (a
            :class:`~exitlens.decoding.session.Prefix`, such as one that exits early).
        progress: ``progress(done, total)`` counts prompts.

    Returns:
        One answer for each prompt, in the order of ``prompts``.

    Raises:
        ContextError: a prompt that leaves no room in the context.
        InputError: an empty prompt, an unknown decoder or statistic, or a value out of range.
        LayerError: a layer that the model does not have.
    """
    as_count(batch_size, "batch_size")
    run = BatchRun(lm, decoder, max_new_tokens=max_new_tokens, stop=stop, repetition_penalty=repetition_penalty,
                   sampling=sampling, generation_config=generation_config, seed=seed, trace=trace)  # fmt: skip
    rows = run.rows([prompts] if isinstance(prompts, str) else prompts, chat=chat)
    layers = list(resolve_layers(read_layers, lm.n_layers, owner=lm.name)) if read else []
    out: list[Generation | None] = [None] * len(rows)
    done = 0
    for batch, prefix in run.batches(rows, batch_size, open_with or (lambda ids: open_prefix(lm, ids))):
        for _ in run.batch(batch, prefix, layers):
            pass
        for row, reads in zip(batch, _read(lm, batch, layers, read, read_lens, run), strict=True):
            answer = run.result(row, reads)
            if layers:
                answer = replace(
                    answer,
                    read_layers=tuple(layers),
                    read_lens=lens_name(read_lens),
                    vocabulary={i: lm.token(i) or f"<{i}>" for i in ids_in(answer)},
                )
            out[row.index] = answer
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    return [g for g in out if g is not None]


def stream(
    lm: LayeredModel,
    prompt: str | Sequence[int],
    *,
    decoder: str | Decoder = "vanilla",
    max_new_tokens: int = 50,
    stop: Sequence[str] = (),
    repetition_penalty: float = 1.0,
    sampling: Sampling | None = None,
    generation_config: str | None = None,
    seed: int = 0,
    chat: bool = False,
    alive: Callable[[], bool] | None = None,
) -> Iterator[str | Generation]:
    """Answer one prompt piece by piece.

    Args:
        lm: the model.
        prompt: a text, or token ids taken as they are.
        decoder: as in :func:`generate`, and so are the arguments up to ``chat``.
        max_new_tokens: the longest answer [tokens].
        stop: texts at which the answer ends.
        repetition_penalty: acts on prompt and output; 1 is none.
        sampling: None is greedy.
        generation_config: ``"model"`` applies the checkpoint's own repetition penalty and forbidden tokens.
        seed: of the random stream.
        chat: put the prompt through the tokenizer's chat template.
        alive: called after each token; when it returns False, nothing more is computed or given.

    Yields:
        Pieces of text, then the whole answer as a :class:`Generation`. Text that may be the start of a stop string, or
        half a character, is held back until that is decided.

    Raises:
        ContextError: the prompt leaves no room in the context.
        InputError: an empty prompt, an unknown decoder, or a value out of range.
    """
    run = BatchRun(lm, decoder, max_new_tokens=max_new_tokens, stop=stop, repetition_penalty=repetition_penalty,
                   sampling=sampling, generation_config=generation_config, seed=seed)  # fmt: skip
    (row,) = run.rows([prompt], chat=chat)
    sent = 0
    for _ in run.batch([row], open_prefix(lm, ())):
        if alive is not None and not alive():
            return
        text = run.text(row)
        if text.endswith("\ufffd") or row.finish is not None:
            continue
        safe = len(text) - undecided(text, run.stop)
        if safe > sent:
            yield text[sent:safe]
            sent = safe
    result = run.result(row)
    if len(result.text) > sent:
        yield result.text[sent:]
    yield result


class BatchRun:
    """What is the same for all rows of one call: the decoder on its model, where answers end, how tokens are chosen.

    Every way of answering starts here: :func:`generate` and :func:`stream`, watched answers, drafts. Raises
    :class:`InputError` for a value out of range or a stop string that cannot be written.
    """

    def __init__(
        self,
        lm: LayeredModel,
        decoder: str | Decoder = "vanilla",
        *,
        max_new_tokens: int = 50,
        stop: Sequence[str] = (),
        repetition_penalty: float = 1.0,
        sampling: Sampling | None = None,
        generation_config: str | None = None,
        seed: int = 0,
        trace: bool = False,
    ) -> None:
        max_new_tokens = as_count(max_new_tokens, "max_new_tokens")
        repetition_penalty = as_penalty(repetition_penalty)
        self.rules = rules_of(lm, generation_config)
        if self.rules is not None and repetition_penalty == 1.0:
            repetition_penalty = self.rules.penalty
        self.lm, self.limit, self.penalty, self.seed = lm, max_new_tokens, repetition_penalty, seed
        self.sampling, self.trace = sampling or Sampling(), trace
        # A special token as stop string is never part of a text: it ends an answer as end-of-text tokens do.
        ends = {text: special_token(lm.tokenizer, text) for text in as_texts(stop, "stop string")}
        self.eos = frozenset((*lm.eos_ids, *(i for i in ends.values() if i is not None)))
        self.stop = tuple(text for text in ends if ends[text] is None)
        self.stops = StopStrings(self.stop, lm.decode, lambda text: lm.encode(text, special=False))
        self.decoder = BoundDecoder(lm, decoder)

    def rows(self, prompts: Sequence[str | Sequence[int]], *, chat: bool = False) -> list[Row]:
        """A row a prompt, each with a random stream of its own. Raises as :func:`generate` says."""
        if not isinstance(prompts, Iterable):
            raise wrong_kind("the prompts", prompts, "give texts, or lists of token ids")
        rows: list[Row] = []
        occurrences: Counter[tuple[int, ...]] = Counter()
        for i, prompt in enumerate(prompts):
            ids = self._encode(prompt, chat)
            key = tuple(ids)
            # An answer depends on seed, prompt and which repetition of it this is, never on batch size or order.
            generator = None if self.sampling.greedy else row_generator(self.seed, ids, occurrences[key])
            occurrences[key] += 1
            rows.append(Row(i, self._shown(prompt), ids, generator))
        return rows

    def batches(
        self, rows: Sequence[Row], size: int, open_with: Callable[[Sequence[int]], P]
    ) -> Iterator[tuple[list[Row], P]]:
        """Rows that go together, with what all rows begin with, run once by ``open_with``."""
        lm, ids = self.lm, [row.ids for row in rows]
        # Without its own blocks a model pads between the shared prefix and a short prompt, which some cannot bear.
        plan = plan_batches(ids, size, gap_exact=runner_of(lm) is not None or lm.gap_exact)
        prefix = open_with(plan.prefix)
        for batch in plan.batches:
            yield [rows[i] for i in batch], prefix

    def _encode(self, prompt: str | Sequence[int], chat: bool) -> list[int]:
        lm, room = self.lm, self.limit
        if not isinstance(prompt, str):
            ids = as_numbers(prompt, "a prompt's token ids")
            if any(not 0 <= i < lm.vocab_size for i in ids):
                raise InputError(f"a prompt has token ids outside 0..{lm.vocab_size - 1}, the vocabulary of {lm.name}")
        else:
            ids = list(lm.encode_chat(prompt) if chat else lm.encode(prompt))
        if not ids:
            raise InputError("a prompt is empty: there is nothing to continue")
        if lm.context is not None and len(ids) + room > lm.context:
            raise ContextError(
                f"a prompt of {len(ids)} tokens with {room} to come does not fit the context of {lm.context} "
                f"of {lm.name}: shorten it ({self._shown(prompt)[:40]!r}...) or ask for fewer tokens"
            )
        return ids

    def _shown(self, prompt: str | Sequence[int]) -> str:
        return prompt if isinstance(prompt, str) else str(self.lm.decode(prompt))

    @torch.no_grad()
    def batch(self, rows: Sequence[Row], prefix: Prefix, read_layers: Sequence[int] = ()) -> Iterator[None]:
        """Run ``rows`` to their ends, yielding after each step; finished rows leave the batch."""
        lm = self.lm
        session = prefix.session(sorted({*self.decoder.early, *read_layers, lm.n_layers}), self.limit)
        hidden = session.start([row.ids for row in rows])
        active = list(rows)
        seen = self._seen(active)
        while True:
            final, report = session.final(hidden)
            scored = self.decoder.scores(final, hidden)
            scores = scored.scores if seen is None else penalise(scored.scores, seen, self.penalty)
            if self.rules is not None:
                scores = self.rules.apply(scores, [(row.ids, row.new) for row in active])
            tokens = self.sampling.choose(scores, [row.generator for row in active])
            if seen is not None:
                seen[torch.arange(len(active), device=seen.device), tokens] = True
            self._note(active, tokens, {**scored.info, **report}, final, hidden, read_layers)
            yield
            going = [i for i, row in enumerate(active) if row.finish is None]
            if not going:
                return
            if len(going) < len(active):
                keep = torch.tensor(going, device=tokens.device)
                session.keep(keep)
                tokens = tokens[keep]
                seen = None if seen is None else seen[keep]
                active = [active[i] for i in going]
            hidden = session.step(tokens)

    def _seen(self, rows: list[Row]) -> Tensor | None:
        if self.penalty == 1.0:
            return None
        seen = torch.zeros(len(rows), self.lm.vocab_size, dtype=torch.bool)
        for i, row in enumerate(rows):
            seen[i, torch.tensor(row.ids)] = True
        return seen.to(self.lm.device)

    def _note(
        self,
        active: list[Row],
        tokens: Tensor,
        info: dict[str, Tensor],
        final: Tensor,
        hidden: dict[int, Tensor],
        read_layers: Sequence[int],
    ) -> None:
        if self.trace:
            if "choice" in info:
                info["choice"] = torch.tensor(self.decoder.early, device=info["choice"].device)[info["choice"]]
            info["vanilla"] = final.argmax(-1)
            info = {name: value.cpu() for name, value in info.items()}
        home = self.lm.weight.device  # one state a layer and token: of a model spread over devices, they come together
        states = torch.stack([hidden[j].to(home) for j in read_layers], dim=1) if read_layers else None
        for i, (row, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            if not self.accept(row, token):
                continue
            if self.trace:
                row.steps.append({name: value[i] for name, value in info.items()})
            if states is not None:
                row.hidden.append(states[i])

    def text(self, row: Row, count: int | None = None) -> str:
        """The text of a row's first ``count`` new tokens (all of them), as it goes on after the prompt."""
        return continued(self.lm.decode, row.ids, row.new[:count])

    def accept(self, row: Row, token: int) -> bool:
        """Add a chosen token to its row and see whether the row has finished; False for an end-of-text token."""
        if token in self.eos:
            row.finish = "eos"
            return False
        row.new.append(token)
        if self.stops.found(row.new, row.ids):
            row.finish = "stop"
        elif len(row.new) >= self.limit:
            row.finish = "length"
        return True

    def result(self, row: Row, reads: Mapping[str, np.ndarray] | None = None) -> Generation:
        """The answer of a finished row, cut at its stop string."""
        text, n = self.stops.cut(row.new, row.ids)
        ids = row.new[:n]
        steps = {}
        if row.steps:
            steps = {name: torch.stack([s[name] for s in row.steps[:n]]).numpy() for name in row.steps[0]} if n else {}
        return Generation(
            prompt=row.prompt,
            text=text,
            token_ids=tuple(ids),
            tokens=tuple(self.lm.token(i) for i in ids),
            finish=row.finish or "length",
            reads=reads or {},
            steps=steps,
            prompt_ids=tuple(row.ids),
        )


def _read(
    lm: LayeredModel, rows: list[Row], layers: Sequence[int], stats: Sequence[str], lens: Any, run: BatchRun
) -> list[dict[str, np.ndarray]]:
    """Statistics of each row's own answer tokens, all rows in one readout."""
    if not layers:
        return [{} for _ in rows]
    counts = [run.stops.cut(row.new, row.ids)[1] for row in rows]
    if sum(counts) == 0:
        return [{} for _ in rows]
    states = torch.cat([torch.stack(row.hidden[:n]) for row, n in zip(rows, counts, strict=True) if n])
    targets = torch.tensor([t for row, n in zip(rows, counts, strict=True) for t in row.new[:n]], device=states.device)
    found = readout(lm, {j: states[:, k] for k, j in enumerate(layers)}, lens=lens, stats=stats, targets=targets)
    out: list[dict[str, np.ndarray]] = []
    at = 0
    for n in counts:
        out.append({name: value[:, at : at + n].cpu().numpy() for name, value in found.items()})
        at += n
    return out
