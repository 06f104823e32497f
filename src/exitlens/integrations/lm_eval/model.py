"""The model ``exitlens`` of lm-evaluation-harness: every decoder on every type of task."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from exitlens.decoding import Sampling, generate
from exitlens.decoding.score import ContinuationScorer
from exitlens.errors import InputError, MissingExtra
from exitlens.models import load
from exitlens.models.forward import shared_prefix
from exitlens.models.text.chat import rendered
from exitlens.parsing import check_day
from exitlens.studies.exits.files import load_adapted

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
except ImportError as error:
    raise MissingExtra("lm-evaluation-harness is not installed: pip install 'exitlens[lm-eval]'") from error

__all__ = ["ExitlensLM"]

_DEFAULT_BATCH = 16
_DEFAULT_LENGTH = 2048  # where a model names no context
# What generation settings of a task may say here; others would change the answer and are refused.
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
_WITHOUT_EFFECT = {"num_return_sequences": 1, "num_beams": 1, "use_cache": True, "pad_token_id": None}


@register_model("exitlens")
class ExitlensLM(TemplateLM):  # type: ignore[misc] # the harness ships no types
    """``--model exitlens --model_args pretrained=NAME,decoder=TEXT,...``.

    ``pretrained``: a catalogue name, Hub id, folder or GGUF file, or a model that :func:`exitlens.load` has made.
    ``decoder``: as everywhere (options of a decoder are parted by ``;`` here, since the harness splits at commas:
    ``decoder=dola:high;top=0``). ``post_softmax``: log-probabilities of the decoder's distribution (default) or its
    scores. ``repetition_penalty`` is for generation only. As the harness's own ``hf`` model: ``peft`` (an adapter's
    folder), ``gguf_file`` (a file of the folder or Hub id ``pretrained``), ``enable_thinking`` and
    ``chat_template_args`` (for the chat template), ``think_end_token`` (what comes before it is no answer),
    ``prefix_token_id`` (what stands before a text without context). ``chat_date`` is the day that the chat template
    sees (2026-11-27). Raises :class:`InputError` for another argument.
    """

    def __init__(
        self,
        pretrained: Any,
        decoder: str = "vanilla",
        *,
        post_softmax: bool = True,
        repetition_penalty: float = 1.0,
        batch_size: int | str = _DEFAULT_BATCH,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        peft: str | None = None,
        gguf_file: str | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        think_end_token: str | int | None = None,
        chat_date: str | None = None,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise InputError(_unknown(name))
        check_day(chat_date)
        if enable_thinking and think_end_token is None:
            raise InputError("enable_thinking=True needs think_end_token=TEXT, after which the answer begins")
        if isinstance(pretrained, str):
            path = pretrained if gguf_file is None else _gguf(pretrained, gguf_file, revision)
            more: dict[str, Any] = {"device": _device(device), "dtype": dtype, "trust_remote_code": trust_remote_code}
            if peft is None:
                self.lm = load(path, revision=None if gguf_file else revision, **more)
            else:
                self.lm = load(peft, base=path, **more)
        else:
            self.lm = pretrained if peft is None else load_adapted(pretrained, peft)
        if chat_date is not None:
            self.lm.chat_date = chat_date
        self.tokenizer = self.lm.tokenizer
        self.decoder = str(decoder).replace(";", ",")
        self.post_softmax = post_softmax
        self.repetition_penalty = repetition_penalty
        self.add_bos_token = add_bos_token
        self.chat_template_args = dict(chat_template_args or {})
        if enable_thinking is not None:
            self.chat_template_args["enable_thinking"] = enable_thinking
        self.enable_thinking = enable_thinking
        self.think_end_token = self._think_end(think_end_token)
        self._prefix = prefix_token_id
        self.max_gen_toks = max_gen_toks
        self.max_length = max_length or self.lm.context or _DEFAULT_LENGTH
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self.seed = seed
        self._device = self.lm.device
        ContinuationScorer(self.lm, self.decoder)  # a wrong decoder is told now, not after the tasks are built

    # ---- what the harness asks of every model

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text: the tokenizer's, else the model's. Raises :class:`InputError` without one."""
        found = self.tokenizer.eos_token_id
        ends = [found] if found is not None else list(self.lm.eos_ids)
        if not ends:
            raise InputError(
                f"{self.lm.name} has no end-of-text token, nor one that begins a text: give prefix_token_id=ID in "
                "--model_args"
            )
        return int(ends[0])

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: as asked for, else the token that begins or ends a text."""
        bos = self.tokenizer.bos_token_id if self._prefix is None else self._prefix
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in the harness's caches."""
        return str(self.lm.name).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text, by the tokenizer's own template."""
        return str(
            rendered(
                self.lm,
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.chat_template_args,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.lm.model.parameters()),
            "model_dtype": str(self.lm.dtype),
            "model_fingerprint": self.lm.fingerprint,
            "decoder": self.decoder,
            "post_softmax": self.post_softmax,
            "repetition_penalty": self.repetition_penalty,
            "chat_date": self.lm.chat_date,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids as the harness's own ``hf`` model makes them."""
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token
            begins = self.tokenizer.bos_token_id is not None or self.tokenizer.eos_token_id is not None
            if begins and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
        return list(self.lm.encode(string, special=add_special_tokens is None or add_special_tokens))

    # ---- log-likelihoods

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(context, continuation) for _key, context, continuation in requests]
        shared = shared_prefix([context for context, _ in pairs])
        scorer = ContinuationScorer(self.lm, self.decoder, shared=shared, post_softmax=self.post_softmax)
        answers: list[tuple[float, bool] | None] = [None] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for part in _portions(pairs, self.batch_size):
                scored = scorer.score([pairs[i] for i in part], batch_size=self.batch_size)
                for i, one in zip(part, scored, strict=True):
                    answers[i] = (one.total, one.greedy)
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
                bar.update(len(part))
        return [answer for answer in answers if answer is not None]

    def _fitted(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], list[int]]:
        """Cut on the left to what the model can hold, as the harness's own models do."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens is longer than max_length={self.max_length}: "
                "shorten the text or raise max_length"
            )
        whole = [*context, *continuation][-(self.max_length + 1) :]
        return whole[: -len(continuation)], list(continuation)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows as long as the context."""
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Running rolling loglikelihood requests"):
            (text,) = request.args
            windows = [
                (None, *utils.make_disjoint_window(window))
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            total = sum(value for value, _ in self._loglikelihood_tokens(windows, disable_tqdm=True))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    # ---- generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first stop string of each request."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(i)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for members in groups.values():
                settings = normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks)
                room = self.max_length - settings["max_gen_toks"]
                if room < 1:
                    raise InputError(
                        f"max_gen_toks={settings['max_gen_toks']} leaves no room for a prompt in max_length="
                        f"{self.max_length}: lower it"
                    )
                stops = [stop for stop in settings["until"] if stop]
                done = 0

                def tick(count: int, _total: int) -> None:
                    nonlocal done
                    bar.update(count - done)
                    done = count

                answers = generate(
                    self.lm,
                    [self.tok_encode(requests[i].args[0])[-room:] for i in members],
                    decoder=self.decoder,
                    max_new_tokens=settings["max_gen_toks"],
                    stop=stops,
                    batch_size=self.batch_size,
                    repetition_penalty=float(settings.get("repetition_penalty", self.repetition_penalty)),
                    sampling=_sampling(settings),
                    seed=self.seed,
                    progress=tick,
                )
                for i, answer in zip(members, answers, strict=True):
                    texts[i] = postprocess_generated_text(answer.text, stops, self.think_end_token)
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return [texts[i] for i in range(len(requests))]

    def _think_end(self, given: str | int | None) -> str | None:
        """The end of thinking as text; the harness takes a token id too."""
        if given is None or (isinstance(given, str) and not given.isdigit()):
            return given
        return str(self.lm.token(int(given)))


def _unknown(name: str) -> str:
    """The error for an argument that the model does not have, with the nearest that it has."""
    known = [each for each, kind in inspect.signature(ExitlensLM.__init__).parameters.items()
             if each != "self" and kind.kind is not inspect.Parameter.VAR_KEYWORD]  # fmt: skip
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"unknown model argument {name[:80]!r}: " + (
        f"did you mean {' or '.join(close)}?" if close else f"use {', '.join(known)}"
    )


def _gguf(place: str, file: str, revision: str | None) -> str:
    """A GGUF file of a folder, or of a Hub repository, as a local path. Raises :class:`InputError` without one."""
    local = Path(place) / file
    if local.is_file():
        return str(local)
    if Path(place).exists():
        raise InputError(f"gguf_file={file[:80]!r}: there is no such file in '{place}'")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(huggingface_hub.hf_hub_download(place, file, revision=revision))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"gguf_file={file[:80]!r} of {place[:80]!r} cannot be had ({str(error).splitlines()[0][:80]}): "
            "give a local folder"
        ) from None


def _sampling(settings: dict[str, Any]) -> Sampling | None:
    for name, value in settings.items():
        if name not in _KNOWN and not (name in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[name]):
            raise InputError(f"generation setting {name}={value!r} is not supported: leave it out of gen_kwargs")
    if not settings.get("do_sample"):
        return None
    return Sampling(
        temperature=float(settings.get("temperature", 1.0)),
        top_k=int(settings.get("top_k", 0)),
        top_p=float(settings.get("top_p", 1.0)),
        min_p=float(settings.get("min_p", 0.0)),
    )


def _device(given: str | None) -> str:
    """The harness asks for its default, cuda:0, on every machine; where there is none, the best that there is."""
    return "auto" if given is None or (given.startswith("cuda") and not torch.cuda.is_available()) else given


def _batch_size(given: int | str, largest: int | None) -> int:
    text = str(given).partition(":")[0]
    if text == "auto":
        return min(_DEFAULT_BATCH, largest or _DEFAULT_BATCH)
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"batch_size {given!r} is not a whole number above 0, nor auto")
    return int(text)


def _portions(pairs: Sequence[tuple[list[int], list[int]]], size: int) -> list[list[int]]:
    """Requests in portions that keep equal contexts together, so that each context is run once."""
    order: dict[tuple[int, ...], list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        order.setdefault(tuple(context), []).append(i)
    portions: list[list[int]] = [[]]
    for members in sorted(order.values(), key=lambda m: -len(pairs[m[0]][0]) - len(pairs[m[0]][1])):
        if len(portions[-1]) >= 4 * size:
            portions.append([])
        portions[-1] += members
    return [portion for portion in portions if portion]
