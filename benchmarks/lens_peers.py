"""The same statistics from what other libraries hand out, text by text, for those that are installed.

pip install transformer-lens nnsight nnterp tuned-lens      # versions are printed with the numbers
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["peers"]

Work = Callable[[], Any]


def peers(lm: Any, ids: list[list[int]]) -> dict[str, Work]:
    """Works by name and version. A peer that does not take the model is left out, with a line that says why."""
    folder = str(getattr(lm.model.config, "_name_or_path", ""))
    out: dict[str, Work] = {}
    for package, make in MAKERS.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        try:
            work = make(lm, folder, ids)
            make(lm, folder, ids[:1])()
        except Exception as error:  # noqa: BLE001 - what a peer cannot do is a result
            print(f"  {package} {version} left out: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        out[f"{package} {version}"] = work
    return out


def _statistics(logits: Tensor, final: Tensor, following: Tensor) -> tuple[Tensor, ...]:
    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    chosen = logp.gather(-1, following[:, None])[:, 0]
    return -(p * logp).sum(-1), logp.topk(5).values, chosen, (final.exp() * (final - logp)).sum(-1)


def _every(
    layers: list[Tensor], unembed: Callable[[Tensor, int], Tensor], text: list[int], final: Tensor | None = None
) -> list[Any]:
    """``layers``: states ``[tokens, d]`` of 0..N, or 0..N−1 with ``final``, the logits at N."""
    following = torch.tensor([*text[1:], 0])
    last = unembed(layers[-1], len(layers) - 1) if final is None else final
    reference = torch.log_softmax(last.float(), -1)
    found = [_statistics(unembed(h, j), reference, following) for j, h in enumerate(layers)]
    return found if final is None else [*found, _statistics(final, reference, following)]


def _transformer_lens(lm: Any, folder: str, ids: list[list[int]]) -> Work:
    from transformer_lens.model_bridge import TransformerBridge

    # A copy: the bridge changes the model it is given (its attention, its modules).
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=copy.deepcopy(lm.model), tokenizer=lm.tokenizer, device="cpu"
    )

    @torch.no_grad()
    def work() -> None:
        for text in ids:
            _, cache = bridge.run_with_cache(torch.tensor([text]))
            layers = cache.accumulated_resid(layer=-1, apply_ln=True)[:, 0]
            _every(list(layers), lambda h, _j: h @ bridge.W_U, text)

    return work


def _nnsight(lm: Any, _folder: str, ids: list[list[int]]) -> Work:
    from nnsight import NNsight

    traced = NNsight(lm.model)

    @torch.no_grad()
    def work() -> None:
        for text in ids:
            kept = []
            with traced.trace(torch.tensor([text])):
                first = traced.model.embed_tokens.output.save()
                for block in traced.model.layers:
                    output = block.output
                    kept.append((output[0] if isinstance(output, tuple) else output).save())
            layers = [h.reshape(len(text), -1) for h in (first, *kept)]
            _every(layers, lambda h, _j: lm.model.lm_head(lm.model.model.norm(h)), text)

    return work


def _nnterp(_lm: Any, folder: str, ids: list[list[int]]) -> Work:
    from nnterp import StandardizedTransformer

    model = StandardizedTransformer(folder, device_map="cpu", dtype=torch.float32)

    @torch.no_grad()
    def work() -> None:
        for text in ids:
            kept = []
            with model.trace(torch.tensor([text])):
                kept.append(model.token_embeddings.save())
                for j in range(model.num_layers):  # in order: the trace is one pass
                    kept.append(model.layers_output[j].save())  # noqa: PERF401
            layers = [h.reshape(len(text), -1) for h in kept]
            _every(layers, lambda h, _j: model._model.lm_head(model._model.model.norm(h)), text)

    return work


def _tuned_lens(lm: Any, _folder: str, ids: list[list[int]]) -> Work:
    from tuned_lens.nn.lenses import LogitLens

    lens = LogitLens.from_model(lm.model)

    @torch.no_grad()
    def work() -> None:
        for text in ids:
            hidden = lm.model(torch.tensor([text]), output_hidden_states=True)
            layers = [h[0] for h in hidden.hidden_states]
            # Its last hidden state is normed already; the logits are the model's own.
            _every(layers[:-1], lens, text, final=hidden.logits[0])

    return work


MAKERS: dict[str, Callable[[Any, str, list[list[int]]], Work]] = {
    "transformer-lens": _transformer_lens,
    "nnsight": _nnsight,
    "nnterp": _nnterp,
    "tuned-lens": _tuned_lens,
}
