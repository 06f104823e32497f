"""Training a tuned lens: a closed-form start from one pass over text, then KL steps for all layers together.

The start is the ridge regression of the direction of h_N on h_j. The steps minimise KL(p_N‖p_j)
= lse_j − ⟨u, x_j⟩ − H_N with u = Σ p_N w exact; with ``vocabulary_sample``, lse_j = ln Σ e^z is estimated on
the tokens that p_N favours plus a uniform sample of the others, weighted by their number, which makes a step an order
of magnitude cheaper than the whole vocabulary. What is reported, and what decides between identity, start and trained
translator, is the exact KL on held-out text.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.lenses.read_hidden import readout
from exitlens.lenses.tuned import TunedLens
from exitlens.models.protocol import LayeredModel

__all__ = ["TextSplit", "TrainingReport", "split_texts", "train_tuned_lens"]

STORED_BYTES = 1_500_000_000  # hidden states kept for the steps and for held-out checks


@dataclass(frozen=True, repr=False)
class TrainingReport:
    """Held-out KL to the final layer, nats per token, per layer 0..N: ``before`` (logit lens) and ``after``.

    ``chosen`` names per layer what was kept: identity, ridge or trained. Measured on ``test_tokens`` tokens of texts
    that neither training nor the choice saw.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    chosen: tuple[str, ...]
    train_tokens: int
    test_tokens: int
    steps: int
    seconds: float

    def __repr__(self) -> str:
        inner = max(len(self.before) - 1, 1)
        before, after = (sum(values[:-1]) / inner for values in (self.before, self.after))
        kept = ", ".join(f"{self.chosen.count(name)} {name}" for name in dict.fromkeys(self.chosen[:-1]))
        return (
            f"TrainingReport: trained on {self.train_tokens} tokens, measured on {self.test_tokens}, "
            f"{self.steps} steps in {self.seconds:.0f} s\n"
            f"  mean KL to the last layer: {before:.2f} nats with the logit lens, {after:.2f} with this one\n"
            f"  kept by layer: {kept}; .before, .after and .chosen have a value a layer"
        )


Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TextSplit:
    """Numbers of the texts to ``train`` on, to ``choose`` with, and to ``report`` on: no text is in two of them."""

    train: list[int]
    choose: list[int]
    report: list[int]


def split_texts(n: int, held_out: float, g: torch.Generator) -> TextSplit:
    """``held_out`` of ``n`` texts, at least two, held out: half to choose with, half to report on.

    What chose between identity, start and trained translator would look better than it is on the text it chose with.
    """
    if n < 4:
        raise InputError(f"{n} texts of two tokens or more: a tuned lens needs at least 4 (three are split off)")
    order = torch.randperm(n, generator=g).tolist()
    n_out = max(2, math.ceil(held_out * n))
    if n_out >= n:
        raise InputError(f"held_out {held_out} leaves no text to train on: use less, 0.2 for example")
    return TextSplit(order[n_out:], order[: n_out // 2], order[n_out // 2 : n_out])


@dataclass(frozen=True)
class _States:
    train: Tensor  # [N+1, n, d]
    choose: Tensor
    report: Tensor


class _Best:
    """Per layer the best translator so far by exact KL on the choosing text, beginning with the identity."""

    def __init__(self, lm: LayeredModel, choose: Tensor) -> None:
        n, d = lm.n_layers, lm.d_model
        self.lm, self.choose = lm, choose
        self.kl = _kl(lm, choose, None)[:n].clone()
        self.weight, self.bias = choose.new_zeros(n, d, d), choose.new_zeros(n, d)
        self.chosen = ["identity"] * n

    def keep_better(self, weight: Tensor, bias: Tensor, word: str) -> bool:
        """Take each layer of the candidate that is better; True when any is by more than a thousandth."""
        kl = _kl(self.lm, self.choose, (weight, bias))[: len(self.kl)]
        notable = bool((kl < 0.999 * self.kl).any())
        for j in (kl < self.kl).nonzero()[:, 0].tolist():
            self.weight[j], self.bias[j] = weight[j], bias[j]
            self.kl[j] = kl[j]
            self.chosen[j] = word
        return notable


@dataclass(frozen=True)
class _Steps:
    """How the steps are made."""

    count: int
    batch_tokens: int
    learning_rate: float
    vocabulary_sample: int | None
    check_every: int


def train_tuned_lens(
    lm: LayeredModel,
    texts_ids: Sequence[Sequence[int]],
    *,
    name: str = "tuned",
    held_out: float = 0.2,
    steps: int = 300,
    batch_tokens: int = 48,
    learning_rate: float = 1e-3,
    ridge: float = 0.03,
    vocabulary_sample: int | None = 4096,
    check_every: int = 100,
    check_tokens: int = 256,
    test_tokens: int = 1024,
    time_limit: float = 600.0,
    source: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[TunedLens, TrainingReport]:
    """Train affine translators for layers 0..N−1 on tokenised texts (each cut at the model's context).

    Args:
        lm: The model.
        texts_ids: Token ids, a list for each text.
        name: What tables call the lens.
        held_out: Share of the texts kept for choosing (half) and reporting (half).
        steps: Steps of Adam at most; it stops early when no layer's held-out KL falls any more.
        batch_tokens: Tokens in a step.
        learning_rate: Of Adam, after 20 steps of warm-up, then falling to a tenth.
        ridge: Strength of the closed-form start, in units of the mean variance.
        vocabulary_sample: Tokens that the log-sum-exp of a step is estimated on; None: the whole vocabulary.
        check_every: Steps between two measurements of the held-out KL.
        check_tokens: Held-out tokens by which a layer's translator is chosen.
        test_tokens: Held-out tokens that the report measures on.
        time_limit: Time for everything [seconds].
        source: Where the text comes from, for the lens's provenance.
        seed: Of split, batches and samples.
        progress: Called with ``collect`` or ``steps``, what is done, and of how much.

    Returns:
        The lens, and a report with the KL to the last layer [nats] by layer, before and after, on held-out text.

    Raises:
        InputError: Too little text, or no time.

    Source: Belrose et al. 2023, arXiv 2303.08112.
    """
    started = time.monotonic()
    g = torch.Generator().manual_seed(seed)
    texts = [ids for ids in (list(ids)[: lm.context] for ids in texts_ids) if len(ids) > 1]
    if not time_limit > 0:
        raise InputError(f"a time limit of {time_limit:g} seconds leaves no time to train: give more")
    split = split_texts(len(texts), held_out, g)
    # The few held-out tokens come first: what is left of the time decides how many there are to train on.
    choose = _collect(lm, [texts[i] for i in split.choose], check_tokens, progress)
    report_on = _collect(lm, [texts[i] for i in split.report], test_tokens, progress)
    room = max(64, STORED_BYTES // ((lm.n_layers + 1) * lm.d_model * 4) - check_tokens - test_tokens)
    train = _collect(lm, [texts[i] for i in split.train], room, progress, started + 0.4 * time_limit)
    data = _States(train, choose, report_on)
    before, begun = _kl(lm, data.report, None), time.monotonic()
    best = _Best(lm, data.choose)
    # Kept for the end: the last judgement of the steps, and what is reported.
    ending = 1.2 * (time.monotonic() - begun) * (1 + data.report.shape[1] / data.choose.shape[1])
    scale = data.train[: lm.n_layers].pow(2).mean((1, 2)).sqrt()[:, None, None]  # rms of each layer's states
    best.keep_better(*_ridge(data.train, scale, ridge), "ridge")
    how = _Steps(steps, batch_tokens, learning_rate, vocabulary_sample, check_every)
    done = _step(lm, data.train, scale, best, how, g, started + time_limit - ending, progress)
    report = TrainingReport(
        tuple(before.tolist()),
        tuple(_kl(lm, data.report, (best.weight, best.bias)).tolist()),
        (*best.chosen, "model"),
        data.train.shape[1],
        data.report.shape[1],
        done,
        time.monotonic() - started,
    )
    notes = _provenance(lm, report, source, seed)
    return TunedLens(name, lm.fingerprint, best.bias, best.weight, provenance=notes), report


def _step(
    lm: LayeredModel,
    train: Tensor,
    scale: Tensor,
    best: _Best,
    how: _Steps,
    g: torch.Generator,
    until: float,
    progress: Progress | None,
) -> int:
    """Steps of Adam into ``best``; how many were made before ``until``, a time of ``time.monotonic``.

    They start from the better of identity and ridge, layer by layer, in units of the layer's own rms, so that one
    learning rate suits states that grow a hundredfold from the first layer to the last.
    """
    a = best.weight.clone().requires_grad_()
    b = (best.bias / scale[:, :, 0]).clone().requires_grad_()
    optimiser = torch.optim.Adam([a, b], lr=how.learning_rate, betas=(0.9, 0.98))
    done, judged, stale = 0, 0, 0
    mean_p = torch.zeros(lm.weight.shape[0])

    def judge() -> bool:
        return best.keep_better(a.detach().clone(), (b.detach() * scale[:, :, 0]).clone(), "trained")

    for step, picked in enumerate(_batches(train.shape[1], how.batch_tokens, how.count, g)):
        if time.monotonic() > until:
            break
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / how.count)
        loss = _loss(lm, train[:, picked], a, b, scale, how.vocabulary_sample, mean_p, g)
        a.grad, b.grad = torch.autograd.grad(loss, [a, b])
        optimiser.step()
        done = step + 1
        if progress is not None:
            progress("steps", done, how.count)
        if done % how.check_every == 0 or done == how.count:
            judged = done
            stale = 0 if judge() else stale + 1
            if stale >= 2:
                break
    if judged < done:  # time was up
        judge()
    return done


def _provenance(lm: LayeredModel, report: TrainingReport, source: str, seed: int) -> dict[str, str]:
    n = lm.n_layers
    return {
        "model": lm.name,
        "source": source,
        "train_tokens": str(report.train_tokens),
        "steps": str(report.steps),
        "seed": str(seed),
        "test_tokens": str(report.test_tokens),
        "seconds": f"{report.seconds:.0f}",
        "kl_before": f"{sum(report.before[:n]) / n:.4f}",
        "kl_after": f"{sum(report.after[:n]) / n:.4f}",
        # Layer by layer, for who opens the file later.
        "before": json.dumps([round(value, 6) for value in report.before]),
        "after": json.dumps([round(value, 6) for value in report.after]),
        "chosen": json.dumps(report.chosen),
    }


@torch.no_grad()
def _collect(
    lm: LayeredModel,
    texts: Sequence[Sequence[int]],
    limit: int,
    progress: Progress | None,
    until: float | None = None,
) -> Tensor:
    """Hidden states ``[N+1, n, d]`` float32 of the first ``limit`` tokens, first tokens of texts left out.

    ``until``: a time (of ``time.monotonic``) at which what there is must do.

    A text's first token is where many models park a state hundreds of times as large as all others.
    """
    limit = min(limit, sum(len(ids) - 1 for ids in texts))
    out = torch.empty(lm.n_layers + 1, limit, lm.d_model, device=lm.weight.device)
    done = 0
    for ids in texts:
        if done >= limit or (until is not None and done and time.monotonic() > until):
            break
        hidden = lm.forward(torch.tensor([ids], device=lm.device), layers="all").hidden
        n = min(len(ids) - 1, limit - done)
        for j in range(lm.n_layers + 1):
            out[j, done : done + n] = hidden[j][0, 1 : 1 + n]
        done += n
        if progress is not None:
            progress("collect", done, limit)
    return out[:, :done]


def _ridge(train: Tensor, scale: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """``A [N, d, d]``, ``b [N, d]``: least squares of the direction of h_N, at each layer's own size, on h_j.

    The norm makes the length of a state irrelevant, so each token's target has length 1 times the layer's rms.
    """
    n, tokens, d = len(train) - 1, train.shape[1], train.shape[2]
    last = train[n]
    target = last / last.pow(2).mean(1, keepdim=True).sqrt()
    mean_y = target.mean(0)
    y = target - mean_y
    weight, bias = train.new_empty(n, d, d), train.new_empty(n, d)
    eye = torch.eye(d, device=train.device)
    for j in range(n):
        x = train[j] / scale[j]
        mean_x = x.mean(0)
        x = x - mean_x
        gram = x.T @ x
        strength = ridge * float(gram.diagonal().mean()) * max(1.0, d / tokens) + 1e-6
        m = torch.linalg.solve(gram + strength * eye, x.T @ y).T
        weight[j] = m - eye
        bias[j] = (mean_y - m @ mean_x) * scale[j, 0, 0]
    return weight, bias


def _loss(
    lm: LayeredModel,
    states: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    sample: int | None,
    mean_p: Tensor,
    g: torch.Generator,
) -> Tensor:
    """Mean over tokens, summed over layers, of KL(p_N‖p_j) up to a constant. ``mean_p`` is updated in place."""
    n = len(states) - 1
    w = lm.weight.detach().float()
    bias = None if lm.bias is None else lm.bias.detach().float()
    with torch.no_grad():
        p = torch.softmax(lm.logit_transform(_product(lm.norm(states[n]).float(), w, bias)), -1)
        mean_p.mul_(0.95).add_(p.mean(0).cpu(), alpha=0.05)
    h = states[:n] / scale
    x = lm.norm((h + torch.bmm(h, a.transpose(1, 2)) + b[:, None]) * scale).float()
    vocab = len(w)
    if sample is None or sample >= vocab:
        z = lm.logit_transform(_product(x, w, bias))
        kl = torch.logsumexp(z, -1) - (p * z).sum(-1)
        return kl.mean(1).sum()
    # Half of the sample: what p_N favours here and in general; the other half: uniform over the rest, with its weight.
    favoured = (p.mean(0).cpu() + mean_p).topk(sample // 2).indices
    rest = torch.ones(vocab)
    rest[favoured] = 0.0
    others = torch.multinomial(rest, sample - len(favoured), generator=g)
    picked = torch.cat([favoured, others]).to(w.device)
    log_weight = torch.zeros(sample, device=w.device)
    log_weight[len(favoured) :] = math.log((vocab - len(favoured)) / len(others))
    z = lm.logit_transform(_product(x, w[picked], None if bias is None else bias[picked]))
    if lm.logit_transform.cap is None:
        expected = ((p @ w) * x).sum(-1) * lm.logit_transform.scale  # exact; the bias adds a constant
    else:
        expected = (p[:, picked] * log_weight.exp() * z).sum(-1)
    return (torch.logsumexp(z + log_weight, -1) - expected).mean(1).sum()


def _product(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    z = x @ w.T
    return z if bias is None else z + bias


def _batches(n: int, size: int, steps: int, g: torch.Generator) -> Iterator[Tensor]:
    """``steps`` batches of token numbers, every token once before any comes twice."""
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(left) < min(size, n):
            left = torch.cat([left, torch.randperm(n, generator=g)])
        yield left[:size]
        left = left[size:]


def _kl(lm: LayeredModel, states: Tensor, lens: tuple[Tensor, Tensor] | None) -> Tensor:
    """Exact mean KL(p_N‖p_j) per layer ``[N + 1]`` on these tokens."""
    hidden = dict(enumerate(states.to(lm.dtype)))
    used = "logit" if lens is None else TunedLens("candidate", "", lens[1], lens[0])
    return readout(lm, hidden, lens=used, stats=("kl",))["kl"].double().mean(1).cpu()
