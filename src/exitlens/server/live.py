"""One answer with what every layer says on the way, as the live page shows it.

What a token costs here is mostly reading: each layer's state goes through the whole vocabulary. So the thread that
generates only keeps the states, and another of lower priority reads them, several tokens in one product where it has
fallen behind: text comes at its own speed, layers follow. When the text has ended, both read what is left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exitlens.data.prompts import ANSWER_POSITIONS, QA_PROMPT, qa_prompt
from exitlens.decoding import Generation
from exitlens.decoding.stream_states import Step, steps
from exitlens.lenses import readout
from exitlens.report.view_data import view
from exitlens.server.jobs import Job
from exitlens.server.replies import Refusal
from exitlens.server.schema import ChatRequest, CompletionRequest, LiveRequest, Request
from exitlens.server.service import Service

if TYPE_CHECKING:
    from exitlens.models.protocol import LayeredModel
    from exitlens.probes import SavedProbe

__all__ = ["LiveJob", "probe_line"]

RANKS = 5  # tokens of each layer that are sent
_STATS = ("entropy", "top_k", "kl")
_USUAL = 60  # tokens of an answer where nothing is said
_TOGETHER = 8  # tokens read in one product: more would only make the page wait
_AHEAD = 64  # tokens that may wait to be read; then the text waits, so that states do not fill the memory
_NICER = 19  # of the reading thread: where both want one core, it gets a few percent of it

_Event = dict[str, Any]


class LiveJob:
    """The work of one ``POST /live``; :meth:`run` belongs into the worker's thread.

    Its events are one-entry mappings: ``begin`` (the prompt's ids and text, an empty view to draw into), ``token`` (one
    chosen), ``cell`` (what the layers said after token ``at``; 0 is the prompt's last), ``done``.
    """

    def __init__(self, service: Service, request: LiveRequest) -> None:
        """Check what needs neither tokenizer nor model. Raises :class:`Refusal` (400)."""
        if isinstance(request.prompt, str) and not request.prompt.strip():
            raise Refusal(400, "prompt is empty: write something to go on from", param="prompt")
        self._service, self._request = service, request
        self._decoder = service.decoder if request.decoder is None else request.decoder
        most = request.max_tokens
        self._unsaid = most is None
        self._job = Job(service.lm, self._as_asked(most), service.limits, service.decoder, service.generation_config)

    def _as_asked(self, most: int | None) -> Request:
        """The request as the interface for programs would have it."""
        asked = self._request
        shared: dict[str, Any] = {
            "decoder": self._decoder, "max_tokens": most, "temperature": asked.temperature, "seed": asked.seed,
        }  # fmt: skip
        if asked.form == "question":
            shared["stop"] = list(QA_PROMPT.stop)
        if asked.form == "chat" and isinstance(asked.prompt, str):
            return ChatRequest.model_validate({"messages": [{"role": "user", "content": asked.prompt}], **shared})
        whole = asked.form == "question" and isinstance(asked.prompt, str)
        prompt = "".join(qa_prompt(str(asked.prompt), QA_PROMPT)) if whole else asked.prompt
        return CompletionRequest.model_validate({"prompt": prompt, **shared})

    def run(self, alive: Callable[[], bool]) -> Iterator[_Event]:
        """Events as they come; ends early when ``alive`` says no. Raises :class:`Refusal`."""
        lm, probe = self._service.lm, self._probe()
        ((ids, room),) = self._job.prompts()
        if not ids:
            raise Refusal(400, "prompt is empty: write something to go on from", param="prompt")
        new = min(room, _USUAL) if self._unsaid else room
        yield {"begin": self._begin(ids, probe)}
        began = time.perf_counter()
        with _Reader(lm, probe) as reader:
            answer: Generation | None = None
            for count, one in enumerate(
                steps(lm, ids, range(lm.n_layers + 1), trace=True, alive=alive, **self._job.options(new))
            ):
                if isinstance(one, Generation):
                    answer = one
                    break
                reader.add(count, one)
                if one.token_id is not None:
                    yield {"token": {"id": one.token_id, "text": one.token}}
                yield from reader.found()
                while reader.behind > _AHEAD and alive():
                    yield from reader.found(0.05)
            seconds = time.perf_counter() - began
            if answer is None:
                return
            for event in reader.rest():
                if not alive():
                    return
                yield event
        kept = len(answer.token_ids)
        yield {"done": {"finish": answer.finish, "text": answer.text, "tokens": kept, "seconds": round(seconds, 3)}}

    def _probe(self) -> SavedProbe | None:
        """The probe, where what it was fitted on is what is written."""
        probe = self._service.probe
        fits = probe is None or probe.position not in ANSWER_POSITIONS or self._request.form == "question"
        return probe if fits else None

    def _begin(self, ids: Sequence[int], probe: SavedProbe | None) -> _Event:
        lm, given = self._service.lm, self._request.prompt
        layers = np.arange(lm.n_layers + 1)
        read = f"; probe: {probe_line(probe)}" if probe is not None else ""
        made = view(
            "map",
            {"lenses": np.array(["logit"]), "layers": layers, "tokens": np.array([], dtype=np.str_)},
            title="What every layer would write next",
            caption=f"{lm.name}, {lm.n_layers} layers through the logit lens{read}",
            model=lm.name,
            meta={"ranks": RANKS, "stats": ["entropy", "kl", "margin"]},
        )
        return {
            "prompt_ids": list(ids),
            "prompt": given if isinstance(given, str) else lm.decode(ids),
            "last": lm.token(ids[-1]),
            "decoder": self._decoder,
            "probe": probe is not None,
            "view": made.model_dump(),
        }


def probe_line(probe: SavedProbe) -> str:
    """What a probe's number is about, in a few words."""
    about = "the answer so far is correct" if probe.position in ANSWER_POSITIONS else "the text so far is true"
    layers = ", ".join(map(str, probe.layers))
    return f"P({about}), {probe.probe.kind} at layer {layers}"


class _Reader:
    """A thread that reads steps: what each layer would have said, and what the probe sees."""

    def __init__(self, lm: LayeredModel, probe: SavedProbe | None) -> None:
        self._lm, self._probe = lm, probe
        self._names: dict[int, str] = {}
        self._waiting: queue.SimpleQueue[tuple[int, Step] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[_Event | BaseException] = queue.SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._loop, name="exitlens-read", daemon=True)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._waiting.put(None)
        self._thread.join()

    @property
    def behind(self) -> int:
        """Steps that wait to be read."""
        return self._waiting.qsize()

    def add(self, at: int, step: Step) -> None:
        """A step to read: the states after token ``at``."""
        self._waiting.put((at, step))

    def found(self, seconds: float = 0.0) -> Iterator[_Event]:
        """What has been read since the last call; waits that long for the first. Raises what the reading raised."""
        with contextlib.suppress(queue.Empty):
            one = self._found.get(timeout=seconds) if seconds else self._found.get_nowait()
            while True:
                if isinstance(one, BaseException):
                    raise one
                yield one
                one = self._found.get_nowait()

    def rest(self) -> Iterator[_Event]:
        """What is left: read by the caller and by the thread, until nothing is."""
        while batch := self._take():
            yield from self._read(batch)
            yield from self.found()
        self._waiting.put(None)
        while self._thread.is_alive():
            yield from self.found(0.02)
        yield from self.found()

    def _take(self, first: tuple[int, Step] | None = None) -> list[tuple[int, Step]]:
        batch = [] if first is None else [first]
        with contextlib.suppress(queue.Empty):
            while len(batch) < _TOGETHER:
                one = self._waiting.get_nowait()
                if one is None:
                    self._waiting.put(None)  # the end is the thread's to see
                    break
                batch.append(one)
        return batch

    def _loop(self) -> None:
        if sys.platform == "linux":  # where threads have priorities of their own
            with contextlib.suppress(OSError):
                own = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICER)
        try:
            while not self._over and (first := self._waiting.get()) is not None:
                for event in self._read(self._take(first)):
                    self._found.put(event)
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits for it
            self._found.put(error)

    def _read(self, batch: Sequence[tuple[int, Step]]) -> list[_Event]:
        states = torch.stack([step.states for _, step in batch], dim=1)
        read = readout(self._lm, dict(enumerate(states)), stats=_STATS, top_k=RANKS)
        top, entropy, kl = (read[name].cpu().tolist() for name in ("top_ids", "entropy", "kl"))
        share = read["top_logprobs"].exp().cpu().tolist()
        true: list[float] | None = None
        if self._probe is not None:
            true = self._probe.p_true(states[list(self._probe.layers)].float().cpu()).double().tolist()
        every = range(len(states))
        return [
            {
                "cell": {
                    "at": at,
                    "top": [[self._name(i) for i in top[j][t]] for j in every],
                    "p": [[round(p, 5) for p in share[j][t]] for j in every],
                    "entropy": [round(entropy[j][t], 4) for j in every],
                    "kl": [round(kl[j][t], 4) for j in every],
                    "chosen": int(step.info["choice"]) if "choice" in step.info else None,
                    # At 0 nothing of the answer has been written: there is nothing to judge.
                    "probe": None if true is None or at == 0 else round(true[t], 4),
                }
            }
            for t, (at, step) in enumerate(batch)
        ]

    def _name(self, token: int) -> str:
        if token not in self._names:
            self._names[token] = self._lm.token(token)
        return self._names[token]
