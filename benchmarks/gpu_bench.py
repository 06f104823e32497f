"""What the parts of gpu.py share: the device, the sizes, the clock, and a model of random weights."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from exitlens.models.checkpoint.pretrained import kv_cache
from exitlens.models.layered import Layered

Work = Callable[[], Any]
TURNS = 5


@dataclass
class Bench:
    """Where and in which sizes; what the parts share: the model, the product's peak, the clock of the running part."""

    device: torch.device
    small: bool = False
    peak: float = math.nan  # FLOP/s of the largest bf16 product
    rows: list[dict[str, Any]] = field(default_factory=list)
    _ends: float = math.inf
    _lm: Any = None

    def begin(self, seconds: float) -> None:
        """A part begins, with so many seconds."""
        self.rows, self._ends = [], time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that the running part has left."""
        return self._ends - time.monotonic()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and states."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def pick(self, large: Any, small: Any) -> Any:
        """The one of two sizes that is asked for."""
        return small if self.small else large

    def forget(self) -> None:
        """Give back what the allocator holds and no tensor uses."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, work: Work) -> float:
        """Seconds of one run, by CUDA events where there is a GPU."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.sync()
        start.record()
        work()
        end.record()
        self.sync()
        return start.elapsed_time(end) / 1000

    def turns(self, works: dict[str, Work], count: int = TURNS, warm: int = 1) -> dict[str, list[float]]:
        """Seconds of each work, turn by turn, after ``warm`` turns that are not counted; fewer when time is short."""
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(warm + self.pick(count, 1)):
            if turn > warm and self.left < 0:
                break
            for name, work in works.items():
                took = self.once(work)
                if turn >= warm:
                    seconds[name].append(took)
        return seconds

    def random(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Normal numbers on the device."""
        return torch.randn(*shape, device=self.device, dtype=torch.float32).mul_(scale).to(dtype or self.dtype)

    def model(self) -> Layered:
        """Random weights of a Llama-7B's shape, made on the device once."""
        if self._lm is None:
            from tests import tiny

            large = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000,
                     "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096}  # fmt: skip
            small = {**large, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 320,
                     "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
            config = transformers.LlamaConfig(**self.pick(large, small), bos_token_id=0, eos_token_id=0, pad_token_id=0)
            torch.manual_seed(0)
            with torch.device(self.device):
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()
            model.generation_config.eos_token_id = 10**9  # out of reach: all answers are of one length
            about: dict[str, Any] = {"name": "random Llama", "fingerprint": "random weights"}
            self._lm = Layered(model, tiny.tokenizer(), **about, cache_factory=lambda: kv_cache(model))
        return self._lm  # type: ignore[no-any-return]

    def texts(self, count: int, length: int) -> list[list[int]]:
        """Random token ids, the same at every call."""
        g = torch.Generator().manual_seed(0)
        return torch.randint(5, self.model().vocab_size, (count, length), generator=g).tolist()  # type: ignore[no-any-return]

    def share(self, flops: float, seconds: float) -> float:
        """Of the peak that was measured in this run; measured now where the part that does was left out."""
        if math.isnan(self.peak):
            self.measure_peak()
        return flops / seconds / self.peak

    def measure_peak(self) -> None:
        """The rate of one large product of random numbers [FLOP/s]."""
        n = self.pick(8192, 256)
        a, b = self.random(n, n), self.random(n, n)
        self.peak = 2.0 * n**3 / median(self.turns({"product": lambda: torch.mm(a, b)}, count=10, warm=3)["product"])


def median(values: Sequence[float]) -> float:
    """The median of a work's turns."""
    return statistics.median(values)
