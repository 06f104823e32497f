"""A small stand-in for a layered model: RMS norm and an unembedding, with bias, scale and soft-cap at will."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from exitlens.errors import LayerError
from exitlens.models.protocol import LogitTransform, Parity, Pass


class SmallModel:
    """Everything :class:`~exitlens.models.protocol.LayeredModel` asks for; its blocks are one product each."""

    name = "small"
    fingerprint = "small-0"
    context = 12
    parity = Parity(0.0, 0.0, 0)
    notes: tuple[str, ...] = ()
    chat_date: str | None = None
    rows_apart = False
    tied = False
    gap_exact = False
    eos_ids: tuple[int, ...] = ()

    def __init__(
        self,
        *,
        vocab: int = 203,
        d: int = 24,
        n_layers: int = 4,
        logit_transform: LogitTransform | None = None,
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
        spread: float = 0.6,
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.vocab_size, self.d_model, self.n_layers = vocab, d, n_layers
        self.dtype, self.device = dtype, torch.device("cpu")
        self.logit_transform = logit_transform or LogitTransform()
        self.tokenizer: Any = None
        self.model = nn.Module()
        self.blocks = [nn.Identity() for _ in range(n_layers)]
        self.embed = nn.Embedding(vocab, d)
        self._weight = (torch.randn(vocab, d, generator=g, dtype=torch.float64) * spread).to(dtype)
        self._bias = torch.randn(vocab, generator=g, dtype=torch.float64).to(dtype) if bias else None
        self._gain = (1 + 0.3 * torch.randn(d, generator=g, dtype=torch.float64)).to(dtype)
        self._embed = torch.randn(vocab, d, generator=g, dtype=torch.float64).to(dtype)
        self._mix = [(torch.randn(d, d, generator=g, dtype=torch.float64) * 0.25).to(dtype) for _ in range(n_layers)]

    @property
    def weight(self) -> Tensor:
        return self._weight

    @property
    def bias(self) -> Tensor | None:
        return self._bias

    def norm(self, h: Tensor) -> Tensor:
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self._gain

    def unembed(self, x: Tensor) -> Tensor:
        z = x @ self._weight.T
        return z if self._bias is None else z + self._bias

    def logits(self, h: Tensor, layer: int, lens: str = "logit") -> Tensor:
        raw = lens == "raw" and layer < self.n_layers
        return self.logit_transform(self.unembed(h if raw else self.norm(h)))

    def check_layer(self, layer: int) -> int:
        if not 0 <= layer <= self.n_layers:
            raise LayerError(f"layer {layer} is out of range: {self.name} has layers 0 to {self.n_layers}")
        return layer

    def new_cache(self) -> Any:
        raise NotImplementedError

    def forward(
        self, input_ids, attention_mask=None, *, layers=(), positions="all", cache=None, use_cache=False
    ) -> Pass:
        # A running mean over real tokens makes each position depend on what came before, as attention does.
        h = self._embed[input_ids]
        mask = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
        mask = mask.to(h.dtype)[..., None]
        wanted = range(self.n_layers + 1) if layers == "all" else layers
        out = {0: h}
        for j, mix in enumerate(self._mix, 1):
            past = (h * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)
            h = h + torch.tanh(past @ mix)
            out[j] = h
        return Pass(hidden={j: out[j] for j in wanted})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        ids = [(ord(c) * 7) % self.vocab_size for c in text]
        return [1, *ids] if special and text else ids

    def encode_chat(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids) -> str:
        return "".join(chr(97 + i % 26) for i in ids)

    def token(self, token_id: int) -> str:
        return chr(97 + token_id % 26)


def double(model: SmallModel) -> SmallModel:
    """The same model in float64, the reference of every comparison."""
    twin = SmallModel(
        vocab=model.vocab_size, d=model.d_model, n_layers=model.n_layers, logit_transform=model.logit_transform
    )
    twin._weight, twin._gain = model._weight.double(), model._gain.double()
    twin._bias = None if model._bias is None else model._bias.double()
    twin.dtype = torch.float64
    return twin


def states(model: SmallModel, tokens: int = 37, seed: int = 3) -> dict[int, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (tokens, model.d_model)
    return {j: torch.randn(*shape, generator=g).to(model.dtype) * (0.1 + j) for j in range(model.n_layers + 1)}
