"""Make an ordinary model ready to exit early: LoRA, an early-exit loss that grows with depth, and layer dropout.

After LayerSkip (Elhoushi et al. 2024), with the original model as the teacher: each exit learns the distribution of
the original's last layer, while the adapted last layer is held within a stated KL of it. The adapter that is kept
is the one with the lowest held-out exit loss among those within the bound; before any step the KL is 0, so there
always is one.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exitlens.errors import InputError, MissingExtra, layer_range_error
from exitlens.models.layout.hooks import undisturbed
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut

__all__ = ["AdaptReport", "Check", "State", "adapt"]

# Tensors and text of a checkpoint, ready for a safetensors file.
State = tuple[dict[str, Tensor], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Check:
    """Held-out: KL(original ‖ adapted) at the last layer, cross-entropy of exits to the original, agreement a layer."""

    step: int
    kl: float
    exit_loss: float
    agreement: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AdaptReport:
    """The held-out curve, the bound, and the check whose adapter was kept."""

    layers: tuple[int, ...]
    kl_bound: float
    curve: tuple[Check, ...]
    kept: Check
    train_windows: int
    held_out_windows: int


def adapt(
    lm: LayeredModel,
    windows: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    rank: int = 8,
    steps: int = 200,
    batch: int = 4,
    rate: float = 3e-4,
    kl_bound: float = 0.05,
    dropout: float = 0.1,
    positions: int = 96,
    checkpointing: bool = False,
    check_every: int = 25,
    seed: int = 0,
    state: State | None = None,
    save: Callable[[State], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, AdaptReport]:
    """Train on ``windows`` of token ids, all of one length; returns a PEFT model and a report. ``lm`` is not changed.

    ``positions``: read through the vocabulary a step, drawn at random. ``dropout``: of the last block, growing with
    depth from 0. ``state``: a checkpoint that ``save`` was given at a check; training goes on from it and ends as
    if it had not been stopped. Raises :class:`InputError`, :class:`LayerError`, :class:`MissingExtra`.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtra("adapting a model needs peft: pip install 'exitlens[peft]'") from None
    for layer in layers:
        if not 1 <= layer < lm.n_layers:
            raise layer_range_error(layer, 1, lm.n_layers - 1, what="exit layer", owner=lm.name)
    if not layers or len({len(w) for w in windows}) != 1 or len(windows) < 4:
        raise InputError(f"{len(windows)} windows of text are too few or not of one length: give more text")
    if not kl_bound > 0 or steps < 1 or rank < 1 or not 0 <= dropout < 1:
        raise InputError(f"kl_bound={kl_bound}, steps={steps}, rank={rank} or dropout={dropout} is out of range")
    held = max(1, len(windows) // 10)
    train, test = [torch.tensor(part, device=lm.device) for part in (windows[:-held], windows[-held:])]
    with undisturbed(lm.model):  # else a copy might come with the hooks of a pass
        student: Any = copy.deepcopy(lm.model)  # of any class of transformers
    names = {id(module): name for name, module in lm.model.named_modules()}
    blocks = [student.get_submodule(names[id(block)]) for block in lm.blocks]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)  # peft draws its first matrices from the global stream, put back afterwards
        config = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        wrapped = peft.get_peft_model(student, config)
    wrapped.eval()
    if checkpointing:
        wrapped.train()
        for module in wrapped.modules():
            if "dropout" in type(module).__name__.lower():
                module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers is about to give this another name
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer = _Trainer(lm, wrapped, blocks, sorted(layers), kl_bound, dropout, rate)
    if state is not None:
        trainer.restore(state)
    if not trainer.curve:
        trainer.check(test, 0)
    for step in range(trainer.step, steps):
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)
        trainer.learn(train[torch.randint(len(train), (batch,), generator=g)], step, steps, positions, g)
        if (step + 1) % check_every == 0 or step + 1 == steps:
            trainer.check(test, step + 1)
            if save is not None:
                save(trainer.state())
        if progress is not None:
            progress(step + 1, steps)
    kept = trainer.finish()
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            student.gradient_checkpointing_disable()
    for hook in trainer.hooks:
        hook.remove()
    wrapped.eval()
    return wrapped, AdaptReport(tuple(sorted(layers)), kl_bound, tuple(trainer.curve), kept, len(train), len(test))


class _Trainer:
    def __init__(
        self,
        lm: LayeredModel,
        model: Any,
        blocks: Sequence[nn.Module],
        layers: list[int],
        bound: float,
        dropout: float,
        rate: float,
    ) -> None:
        self.lm, self.model, self.layers, self.bound = lm, model, layers, bound
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(self.params.values(), lr=rate, weight_decay=0.0)
        self.rate, self.step, self.beta = rate, 0, 1.0
        self.curve: list[Check] = []
        self.best: dict[str, Tensor] = {}
        n = lm.n_layers
        # LayerSkip's growth with depth: 0 at the first block, ``dropout`` at the last.
        self.drop = [dropout * (2.0 ** (j / max(1, n - 1)) - 1.0) for j in range(n)]
        self.dropped: frozenset[int] = frozenset()
        self.seen: dict[int, Tensor] = {}
        self.hooks = [b.register_forward_hook(self._hook(j), with_kwargs=True) for j, b in enumerate(blocks, start=1)]
        self.weight = lm.weight.detach()
        self.bias = None if lm.bias is None else lm.bias.detach()

    def _hook(self, j: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            out = output if isinstance(output, Tensor) else output[0]
            if j in self.dropped:
                out = args[0] if args else kwargs["hidden_states"]
                output = out if isinstance(output, Tensor) else (out, *output[1:])
            if j in self.layers or j == self.lm.n_layers:
                self.seen[j] = out
            return output

        return hook

    def _run(self, ids: Tensor) -> dict[int, Tensor]:
        self.seen = {}
        self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        seen, self.seen = self.seen, {}
        return {j: h.flatten(0, 1) for j, h in seen.items()}

    def _log_p(self, h: Tensor) -> Tensor:
        z = self.lm.logit_transform(F.linear(self.lm.norm(h), self.weight, self.bias))
        out: Tensor = z.float().log_softmax(-1)
        return out

    def _teacher(self, ids: Tensor) -> Tensor:
        n = self.lm.n_layers
        return self.lm.forward(ids, layers=[n]).hidden[n].flatten(0, 1)

    def learn(self, ids: Tensor, step: int, steps: int, positions: int, g: torch.Generator) -> None:
        """One step: one exit (they take turns) and the last layer."""
        draws = torch.rand(len(self.drop), generator=g).tolist()
        self.dropped = frozenset(j for j, (p, u) in enumerate(zip(self.drop, draws, strict=True), start=1) if u < p)
        at = torch.randperm(ids.numel(), generator=g)[:positions].to(ids.device)
        with torch.no_grad():
            want = self._log_p(self._teacher(ids)[at])
        hidden = self._run(ids)
        turn = step % len(self.layers)
        depth = 2.0 * (turn + 1) / (len(self.layers) + 1)  # deeper exits weigh more; the mean is 1
        p = want.exp()
        exit_loss = -(p * self._log_p(hidden[self.layers[turn]][at])).sum(-1).mean()
        kl = (p * (want - self._log_p(hidden[self.lm.n_layers][at]))).sum(-1).mean()
        loss = depth * exit_loss + self.beta * kl
        warm = min(1.0, (step + 1) / 10) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * max(warm, 0.05)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        # Not before: with checkpointing the blocks run once more here, and must leave out the same ones.
        self.dropped, self.seen = frozenset(), {}
        nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        self.optimiser.step()
        # A price on the last layer's change that rises while the bound is near and falls while it is far.
        self.beta = min(100.0, max(0.2, self.beta * (1.15 if float(kl.detach()) > 0.5 * self.bound else 0.95)))
        self.step = step + 1

    @torch.no_grad()
    def check(self, test: Tensor, step: int) -> None:
        """Measure on held-out windows; keep the adapter when it is the best within the bound."""
        n, count = self.lm.n_layers, 0
        kl = loss = 0.0
        right = dict.fromkeys(self.layers, 0.0)
        for ids in torch.split(test, 2):
            want = self._teacher(ids)
            hidden = self._run(ids)
            for at in range(0, len(want), 64):
                part = slice(at, at + 64)
                log_p = self._log_p(want[part])
                p, top = log_p.exp(), log_p.argmax(-1)
                kl += float((p * (log_p - self._log_p(hidden[n][part]))).sum())
                count += len(top)
                for layer in self.layers:
                    log_q = self._log_p(hidden[layer][part])
                    loss -= float((p * log_q).sum()) / len(self.layers)
                    right[layer] += float((log_q.argmax(-1) == top).sum())
        agreement = {str(layer): value / count for layer, value in right.items()}
        found = Check(step, kl / count, loss / count, agreement)
        within = [c for c in self.curve if c.kl <= self.bound]
        if found.kl <= self.bound and all(found.exit_loss < c.exit_loss for c in within):
            self.best = {name: p.detach().clone() for name, p in self.params.items()}
        self.curve.append(found)

    def finish(self) -> Check:
        """Put the kept adapter back; its check."""
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(self.best[name])
        return min((c for c in self.curve if c.kl <= self.bound), key=lambda c: (c.exit_loss, c.step))

    def state(self) -> State:
        """Everything that training goes on from."""
        tensors = {}
        for name, p in self.params.items():
            tensors[f"now/{name}"], tensors[f"best/{name}"] = p.detach().clone(), self.best[name]
            for key, value in self.optimiser.state[p].items():
                tensors[f"{key}/{name}"] = torch.as_tensor(value).clone()
        curve = json.dumps([asdict(c) for c in self.curve])
        return tensors, {
            "kind": "exitlens-adapt-checkpoint", "fingerprint": self.lm.fingerprint, "step": str(self.step),
            "beta": repr(self.beta), "layers": json.dumps(self.layers), "curve": curve,
        }  # fmt: skip

    def restore(self, state: State) -> None:
        """The inverse of :meth:`state`. Raises :class:`InputError` for a checkpoint of something else."""
        tensors, text = state
        if text.get("fingerprint") != self.lm.fingerprint or text.get("layers") != json.dumps(self.layers):
            raise InputError("the checkpoint is of another model or of other exit layers: remove it, or start afresh")
        for name, p in self.params.items():
            for key in ("now", "best", "exp_avg", "exp_avg_sq"):
                if f"{key}/{name}" in tensors and tensors[f"{key}/{name}"].shape != p.shape:
                    raise InputError("the checkpoint is of another rank: remove it, or start afresh")
        try:
            with torch.no_grad():
                for name, p in self.params.items():
                    p.copy_(tensors[f"now/{name}"])
                    self.best[name] = tensors[f"best/{name}"].to(p.device)
                    self.optimiser.state[p] = {
                        key: tensors[f"{key}/{name}"].to("cpu" if key == "step" else p.device)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
            self.step, self.beta = int(text["step"]), float(text["beta"])
            self.curve = [Check(**c) for c in json.loads(text["curve"])]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the checkpoint is damaged ({cut(error)}): remove it, or start afresh") from None
