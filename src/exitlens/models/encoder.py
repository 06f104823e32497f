"""Text encoders for BERTScore: token states of one layer.

Only safetensors weights are read, remote code is never run, and arithmetic is float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.compute import hardware
from exitlens.errors import InputError, UnsupportedModel, layer_range_error
from exitlens.models.checkpoint.pretrained import pretrained_encoder
from exitlens.models.forward import padded
from exitlens.models.hub import catalog
from exitlens.models.hub.catalog import DEFAULT_ENCODER
from exitlens.models.hub.online import hub_name
from exitlens.models.protocol import Embedded

__all__ = ["LoadedEncoder", "load_encoder"]

_BATCH_TOKENS = 4096  # padded tokens in one pass


class LoadedEncoder:
    """An encoder read at one layer. ``name`` and ``layer`` are printed with every score made with it.

    ``n_layers`` blocks; layer 0 is the embedding output, ``n_layers`` the last hidden state.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, layer: int | None = None) -> None:
        self._model: Any = model.eval()
        config: Any = model.config
        self._tokenizer = tokenizer
        self.name = name
        self.n_layers = int(config.num_hidden_layers)
        if layer is not None and not 0 <= layer <= self.n_layers:
            raise layer_range_error(layer, 0, self.n_layers, owner=name)
        self.layer = self.n_layers if layer is None else layer
        # Some tokenizers say 10^30; the positions that the model has decide then.
        positions = int(getattr(config, "max_position_embeddings", 512) or 512)
        # RoBERTa's kin begin to count after the padding token's id, so their table has fewer places for tokens.
        table = getattr(getattr(self._model, "embeddings", None), "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            positions -= table.padding_idx + 1
        limit = int(tokenizer.model_max_length)
        self.max_tokens = limit if limit <= positions else positions
        self._special = [i for i in (tokenizer.cls_token_id, tokenizer.sep_token_id) if i is not None]
        pad = tokenizer.pad_token_id
        self._pad = 0 if pad is None else int(pad)

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return next(self._model.parameters()).device  # type: ignore[no-any-return]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Embedded]:
        """Token states ``[t, d]`` float32 (on the encoder's device) of every text, in the order given.

        Texts are stripped, cut after ``max_tokens`` tokens, and run in batches of like length.
        """
        if not texts:
            return []
        # Half a surrogate pair is no text: it becomes a question mark rather than an error in the tokenizer.
        clean = [text.strip().encode("utf-8", "replace").decode() for text in texts]
        ids: list[list[int]] = self._tokenizer(
            clean, add_special_tokens=True, truncation=True, max_length=self.max_tokens
        )["input_ids"]
        found: list[Embedded | None] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: (-len(ids[i]), i))
        start = 0
        while start < len(order):
            width = max(1, len(ids[order[start]]))
            block = order[start : start + max(1, _BATCH_TOKENS // width)]
            start += len(block)
            for i, one in zip(block, self._run([ids[i] for i in block]), strict=True):
                found[i] = one
        return [one for one in found if one is not None]

    def _run(self, ids: list[list[int]]) -> list[Embedded]:
        # With no token at all, one that counts for nothing stands in: an encoder runs no empty text.
        batch, mask = padded([own or [self._pad] for own in ids], self.device, fill=self._pad)
        last = self.layer == self.n_layers
        out = self._model(input_ids=batch, attention_mask=mask.long(), output_hidden_states=not last)
        states: Tensor = out.last_hidden_state if last else out.hidden_states[self.layer]
        embedded = []
        for row, own in enumerate(ids):
            size = max(1, len(own))
            counts = torch.tensor([token not in self._special for token in own] or [False], device=states.device)
            embedded.append(Embedded(states[row, :size].float().clone(), counts))
        return embedded


def load_encoder(
    name: str | os.PathLike[str] = DEFAULT_ENCODER, *, layer: int | None = None, device: str = "auto"
) -> LoadedEncoder:
    """A text encoder by catalogue name (``all-minilm-l6-v2``), folder, or Hub id (``org/name``, ``org/name@revision``).

    ``layer``: None is the last. Raises ModelNotFound, CorruptModel (catalogue), UnsupportedModel (no encoder in it),
    LayerError, InputError.
    """
    text = os.fspath(name)
    if not text.strip():
        raise InputError(f"the encoder's name is empty: give for example {DEFAULT_ENCODER!r}, a folder or a Hub id")
    where = hardware.pick_device(device)
    source, revision = text, None
    if text in catalog.CATALOG:
        if catalog.CATALOG[text].kind != "sentence-encoder":
            raise InputError(f"{text!r} is a causal LM, not an encoder: use {DEFAULT_ENCODER!r}, a folder or a Hub id")
        source = str(catalog.resolve(text))
    elif Path(text).expanduser().is_dir():
        source = str(Path(text).expanduser())
    elif Path(text).expanduser().is_file():
        raise InputError(f"{text!r} is a file: give the folder that holds the encoder's config.json")
    else:
        source, revision = hub_name(text, None, "encoder")
    model, tokenizer = _read(source, revision, text)
    return LoadedEncoder(model.to(where), tokenizer, text, layer)


def _read(source: str, revision: str | None, text: str) -> tuple[nn.Module, Any]:
    model, tokenizer = pretrained_encoder(source, revision, text)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if not hasattr(model.config, "num_hidden_layers"):
        raise UnsupportedModel(
            f"{text!r} does not say how many layers it has: looked for num_hidden_layers in its config"
        )
    return model, tokenizer
