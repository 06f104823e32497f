"""Every decoder against its formula, written a second time in slow float64, row by row and token by token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exitlens.decoding import candidate_layers, parse_decoder
from exitlens.errors import InputError, LayerError

V, B, N = 61, 5, 12
INF = math.inf


# ---- the formulas, one row at a time


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max()
    return z - math.log(sum(math.exp(x) for x in z))


def kept(z: np.ndarray, alpha: float) -> np.ndarray:
    log_p = log_softmax(z)
    if alpha == 0:
        return log_p > -INF
    return log_p >= log_p.max() + math.log(alpha)


def plogp(a: float, log_ratio: float) -> float:
    return 0.0 if a == 0.0 else a * log_ratio


def jsd(z: np.ndarray, early: np.ndarray) -> float:
    log_p, log_q = log_softmax(z), log_softmax(early)
    total = 0.0
    for a, b in zip(log_p, log_q, strict=True):
        p, q = math.exp(a), math.exp(b)
        if p + q > 0.0:
            log_m = math.log((p + q) / 2)
            total += plogp(p, a - log_m) / 2 + plogp(q, b - log_m) / 2
    return total


def reference_divergence(z: np.ndarray, early: np.ndarray) -> float:
    log_p, log_q = log_softmax(z), log_softmax(early)
    first = second = 0.0
    for a, b in zip(log_p, log_q, strict=True):
        m = (math.exp(a) + math.exp(b)) / 2
        if m > 0.0:
            first += m * (math.log(m) - a)
            second += m * (math.log(m) - b)
    return (first / len(z) + second / len(z)) / 2


def dola(z: np.ndarray, early: np.ndarray, choice: str = "jsd", alpha: float = 0.1) -> tuple[np.ndarray, int]:
    measure = jsd if choice == "jsd" else reference_divergence
    values = [measure(z, e) for e in early]
    j = values.index(max(values))
    scores = z - early[j] if choice == "reference" and alpha == 0 else log_softmax(z) - log_softmax(early[j])
    return np.where(kept(z, alpha), scores, -INF), j


def sled(z: np.ndarray, early: np.ndarray, k: int, rate: float) -> np.ndarray:
    p = np.exp(log_softmax(z))
    top = np.argsort(-z, kind="stable")[:k]
    m = np.zeros((len(early), k))
    for row, e in enumerate(early):
        q = np.exp(log_softmax(e))
        d = e - z
        for column, i in enumerate(top):
            direction = q.copy()
            direction[i] -= 1.0
            length = np.linalg.norm(direction) * np.linalg.norm(d)
            c = direction @ d / length if length > 0 else 0.0
            m[row, column] = max(c, 0.0) ** 2
    weight = m.sum(1)
    share = np.divide(m, weight[:, None], out=np.zeros_like(m), where=weight[:, None] > 0)
    weight = weight / weight.sum() if weight.sum() > 0 else weight
    delta = -(weight[:, None] * share).sum(0)
    out = np.full(len(z), -1000.0)
    out[top] = z[top] - rate * (p[top] + delta)
    return out


def acd(z: np.ndarray, early: np.ndarray, alpha: float) -> np.ndarray:
    log_p, log_q, mask = log_softmax(z), log_softmax(early[0]), kept(z, alpha)
    mass = np.exp(log_p[mask]).sum()
    out = log_p.copy()
    out[mask] = log_softmax(log_p[mask] - log_q[mask]) + math.log(mass)
    return out


def end(z: np.ndarray, early: np.ndarray, weight: float, alpha: float, final: bool = False) -> np.ndarray:
    out = z.copy()
    for v in np.flatnonzero(kept(z, alpha)):
        growth = log_softmax(np.array([*early[:, v], z[v]] if final else early[:, v]))
        out[v] -= weight * -sum(math.exp(x) * x for x in growth)
    return out


def delta(z: np.ndarray, early: np.ndarray, layers: list[int], at: float, n: int, alpha: float) -> np.ndarray:
    line = np.empty(len(z))
    for v in range(len(z)):
        slope, base = np.polyfit([*layers, n], [*early[:, v], z[v]], 1)
        line[v] = slope * at + base
    return np.where(kept(line, alpha), log_softmax(line), -INF)


def expected(text: str, z: np.ndarray, early: np.ndarray, layers: list[int], n: int) -> np.ndarray:
    match text:
        case "vanilla":
            return z
        case "dola:high" | "dola:low" | "static:5":
            return dola(z, early)[0]
        case "dola:high,top=0":
            return dola(z, early, alpha=0.0)[0]
        case "dola:high,choice=reference":
            return dola(z, early, "reference")[0]
        case "dola:high,choice=reference,top=0":
            return dola(z, early, "reference", 0.0)[0]
        case "sled":
            return sled(z, early, 10, 2.0)
        case "sled:k=5,rate=0.5,layers=2/4":
            return sled(z, early, 5, 0.5)
        case "acd" | "acd:layer=4":
            return acd(z, early, 0.1)
        case "end":
            return end(z, early, 1.0, 0.01)
        case "end:weight=2.5,top=0.2":
            return end(z, early, 2.5, 0.2)
        case "end:final=yes":
            return end(z, early, 1.0, 0.01, final=True)
        case "delta":
            return delta(z, early, layers, 1.1 * n, n, 0.1)
        case "delta:from=9,at=14":
            return delta(z, early, layers, 14, n, 0.1)
    raise AssertionError(text)


DECODERS = [
    "vanilla", "dola:high", "dola:low", "static:5", "dola:high,top=0", "dola:high,choice=reference",
    "dola:high,choice=reference,top=0", "sled", "sled:k=5,rate=0.5,layers=2/4", "acd", "acd:layer=4", "end",
    "end:weight=2.5,top=0.2", "end:final=yes", "delta", "delta:from=9,at=14",
]  # fmt: skip


def logits(seed: int, k: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """Final ``[B, V]`` and early ``[k, B, V]`` logits, early ones flatter the earlier they are."""
    g = torch.Generator().manual_seed(seed)
    final = torch.randn(B, V, generator=g) * spread
    flat = torch.linspace(0.1, 0.9, max(k, 1))[:k, None, None]
    early = flat * final + torch.randn(k, B, V, generator=g) * spread * 0.3
    return final, early


def close(got: Tensor, want: np.ndarray, scale: float = 1.0) -> None:
    got64 = got.double().numpy()
    assert (np.isneginf(got64) == np.isneginf(want)).all()
    finite = np.isfinite(want)
    assert np.abs(got64[finite] - want[finite]).max() <= 2e-4 * scale


def cases(text: str, spread: float = 3.0, seeds: range = range(4)) -> Any:
    decoder = parse_decoder(text)
    layers = list(decoder.layers(N, True))
    for seed in seeds:
        final, early = logits(seed, len(layers), spread)
        yield decoder, layers, final, early


@pytest.mark.parametrize("text", DECODERS)
def test_the_formula(text: str) -> None:
    for decoder, layers, final, early in cases(text):
        got = decoder(final, early, N).scores
        for row in range(B):
            close(got[row], expected(text, final[row].double().numpy(), early[:, row].double().numpy(), layers, N))


@pytest.mark.parametrize("text", DECODERS)
def test_a_row_in_a_batch_is_the_row_alone(text: str) -> None:
    for decoder, _, final, early in cases(text):
        whole = decoder(final.clone(), early.clone(), N)
        for row in range(B):
            alone = decoder(final[row : row + 1].clone(), early[:, row : row + 1].clone(), N)
            torch.testing.assert_close(alone.scores[0], whole.scores[row], rtol=1e-6, atol=1e-6)
            for name, value in whole.info.items():
                torch.testing.assert_close(alone.info[name][0], value[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", DECODERS)
def test_the_given_logits_are_left_as_they_are(text: str) -> None:
    for decoder, _, final, early in cases(text, seeds=range(1)):
        before = final.clone(), early.clone()
        decoder(final, early, N)
        assert torch.equal(final, before[0])
        assert torch.equal(early, before[1])


@pytest.mark.parametrize("text", DECODERS)
def test_huge_logits_stay_numbers(text: str) -> None:
    for decoder, layers, final, early in cases(text, spread=3e3):
        scored = decoder(final, early, N)
        got = scored.scores
        assert not got.isnan().any()
        for row in range(B):
            z, e = final[row].double().numpy(), early[:, row].double().numpy()
            if "divergence" in scored.info and "reference" not in text:
                # Layers that share no token with the last one all lie ln 2 away: any of them is right.
                j = int(scored.info["choice"][row])
                assert jsd(z, e[j]) >= max(jsd(z, layer) for layer in e) - 1e-6
                e = e[j : j + 1]
            want = expected(text, z, e, layers, N)
            if text.startswith("sled"):
                # Directions between one-hot vectors are beyond float32: each shift is right up to its own bound.
                assert (got[row].double().numpy() == -1000).sum() == (want == -1000).sum()
                assert np.abs(got[row].double().numpy() - want).max() <= 2.0
            else:
                close(got[row], want, scale=3e3)


@pytest.mark.parametrize("text", [*DECODERS, "random:high"])
def test_a_token_that_no_layer_can_emit_is_never_chosen_and_harms_no_other(text: str) -> None:
    for decoder, layers, final, early in cases(text):
        final[:, 7], early[:, :, 7] = -INF, -INF
        got = decoder(final, early, N)
        assert not got.scores.isnan().any()
        assert not (got.scores == INF).any()
        assert (got.scores.argmax(-1) != 7).all()
        if text.startswith("random"):
            continue
        others = [v for v in range(V) if v != 7]
        for row in range(B):
            z, e = final[row, others].double().numpy(), early[:, row, others].double().numpy()
            want = expected(text, z, e, layers, N)
            if "reference" in text and len(early) > 1:
                # The mean over the vocabulary counts the token: the same layer all the same.
                assert int(got.info["choice"][row]) == dola(z, e, "reference")[1]
            close(got.scores[row, others], want)


@pytest.mark.parametrize("choice", ["jsd", "reference"])
def test_dola_reports_its_layer_and_every_divergence(choice: str) -> None:
    measure = jsd if choice == "jsd" else reference_divergence
    for decoder, _, final, early in cases(f"dola:high,choice={choice}"):
        info = decoder(final, early, N).info
        for row in range(B):
            z, e = final[row].double().numpy(), early[:, row].double().numpy()
            want = [measure(z, layer) for layer in e]
            assert info["divergence"][row].tolist() == pytest.approx(want, abs=1e-5)
            assert int(info["choice"][row]) == int(np.argmax(want))
            assert int(info["kept"][row]) == kept(z, 0.1).sum()
        assert choice == "reference" or (info["divergence"] <= math.log(2) + 1e-6).all()


def test_dola_tells_nearly_uniform_candidates_apart() -> None:
    """As raw early layers are: their divergences differ by a millionth, less than float32 sums of a vocabulary err."""
    random = torch.Generator().manual_seed(0)
    final = torch.randn(4, 49152, generator=random) * 4
    flat = torch.randn(8, 4, 49152, generator=random) * 1e-2
    early = flat + final * torch.linspace(0, 1.4e-3, 8)[torch.randperm(8, generator=random), None, None]
    got = parse_decoder("dola:0/1/2/3/4/5/6/7")(final, early, 8).info
    p, q = final.double().softmax(-1), early.double().softmax(-1)
    m = (p + q) / 2
    want = ((p * (p / m).log() + q * (q / m).log()).sum(-1) / 2).T
    assert (want.max(-1).values - want.topk(2).values[:, 1] < 1e-4).all()
    torch.testing.assert_close(got["divergence"].double(), want, rtol=0, atol=5e-8)
    assert got["choice"].tolist() == want.argmax(-1).tolist()


@pytest.mark.parametrize("choice", ["jsd", "reference"])
def test_of_equal_candidates_the_first_wins(choice: str) -> None:
    final, early = logits(1, 1)
    decoder = parse_decoder(f"dola:2/4/6,choice={choice}")
    nearer = final + 0.01 * early[0]
    info = decoder(final, torch.stack([nearer, early[0], early[0]]), N).info
    assert info["choice"].tolist() == [1] * B
    same = decoder(final, torch.stack([final, final, final]), N).info
    assert same["choice"].tolist() == [0] * B


def test_the_two_definitions_can_disagree() -> None:
    """Otherwise the test of the published quirk would prove nothing."""
    differ = 0
    for seed in range(40):
        final, early = logits(seed, 4)
        early = early * torch.tensor([3.0, 0.2, 1.0, 0.01])[:, None, None]
        a = parse_decoder("dola:0/2/4/6")(final, early, N).info["choice"]
        b = parse_decoder("dola:0/2/4/6,choice=reference")(final, early, N).info["choice"]
        differ += int((a != b).sum())
    assert differ > 0


def test_equal_logits_are_all_plausible_and_ties_fall_to_the_first_token() -> None:
    final = torch.zeros(1, V)
    early = torch.zeros(4, 1, V)
    for text in ("dola:0/2/4/6", "sled:layers=0/2/4/6", "end:0/2/4/6"):
        scored = parse_decoder(text)(final, early, N)
        assert not scored.scores.isnan().any()
        assert scored.scores[0].isfinite().sum() == V
    assert parse_decoder("dola:0/2/4/6")(final, early, N).scores.argmax(-1).item() == 0


def test_sled_is_exact_where_an_early_layer_is_nearly_sure() -> None:
    """``q − onehot`` is then a difference of nearly equal vectors, whose direction still counts in full."""
    final, early = logits(5, 2)
    decoder = parse_decoder("sled:layers=2/4")
    highest = early[0].amax(-1)
    for gap in (8.0, 14.0, 20.0, 30.0):
        early[0, torch.arange(B), final.argmax(-1)] = highest + gap
        got = decoder(final, early, N).scores
        for row in range(B):
            close(got[row], sled(final[row].double().numpy(), early[:, row].double().numpy(), 10, 2.0))


def test_sled_with_a_small_vocabulary_keeps_all_of_it() -> None:
    final, early = logits(3, 2)
    got = parse_decoder("sled:k=500,layers=2/4")(final, early, N)
    assert (got.scores > -900).all()
    assert got.info["kept"].tolist() == [V] * B


def test_acd_is_a_distribution() -> None:
    for text in ("acd", "acd:top=0", "acd:top=1"):
        for decoder, _, final, early in cases(text):
            torch.testing.assert_close(decoder(final, early, N).scores.exp().sum(-1), torch.ones(B), atol=1e-5, rtol=0)


def test_random_contrast_takes_every_layer_about_as_often_and_does_not_depend_on_rounding() -> None:
    decoder = parse_decoder("random:0/2/4/6")
    g = torch.Generator().manual_seed(0)
    final = torch.randn(4000, V, generator=g)
    early = torch.randn(4, 4000, V, generator=g)
    got = decoder(final, early, N)
    counts = torch.bincount(got.info["choice"], minlength=4)
    assert ((counts - 1000).abs() < 150).all()
    again = decoder(final * (1 + 1e-7), early, N)
    assert torch.equal(again.info["choice"], got.info["choice"])
    row = 17
    j = int(got.info["choice"][row])
    z, e = final[row].double().numpy(), early[j : j + 1, row].double().numpy()
    close(got.scores[row], dola(z, e)[0])


# ---- which layers are read


def test_candidate_sets() -> None:
    assert candidate_layers("low", 32, True) == tuple(range(2, 16, 2))
    assert candidate_layers("low", 32, False) == tuple(range(0, 16, 2))
    assert candidate_layers("high", 32, True) == tuple(range(16, 32, 2))
    assert candidate_layers("high", 30, True) == (16, 18, 20, 22, 24, 26, 28)
    assert candidate_layers((0, 5), 12, True) == (0, 5)
    assert parse_decoder("sled").layers(4, True) == (0, 1, 2, 3)
    assert parse_decoder("delta").layers(6, True) == (3, 4, 5)
    assert parse_decoder("vanilla").layers(6, True) == ()


@pytest.mark.parametrize("text", ["dola:4/12", "static:12", "acd:99", "end:-1", "delta:from=12", "delta:at=11"])
def test_layers_out_of_range(text: str) -> None:
    with pytest.raises(LayerError, match="out of range") as found:
        parse_decoder(text).layers(N, True)
    assert "\n" not in str(found.value)


def test_no_candidates_left() -> None:
    with pytest.raises(InputError, match="no candidate layers"):
        parse_decoder("dola:low").layers(2, True)


# ---- by name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dolla", "did you mean dola"),
        ("nothing-like-it", "use vanilla, dola"),
        ("sled:kay=3", "did you mean k"),
        ("sled:rte=3", "unknown option 'rte' of decoder 'sled': did you mean rate"),
        ("vanilla:top=1", "it takes no options"),
        ("dola:choice=js", "use jsd or reference"),
        ("dola:top=2", "0 to 1"),
        ("dola:top=nan", "not a number"),
        ("dola:top=", "is empty"),
        ("dola:lens=tund", "no lens 'tund': use logit, raw, tuned, jacobian, a file"),
        ("dola:high,low", "gives layers two values"),
        ("dola:high,layers=low", "gives layers two values"),
        ("dola:4/x", "not a layer"),
        ("dola:hihg", "unknown layers 'hihg' in decoder 'dola:hihg': did you mean high?"),
        ("end:some", "use low, high, all, or a list such as 4/8/12"),
        ("static", "needs its layer"),
        ("sled:k=0", "out of range"),
        ("sled:rate=0", "out of range"),
        ("sled:rate=inf", "not a number"),
        ("end:weight=nan", "not a number"),
        ("end:final=maybe", "use no or yes"),
        ("vanilla:3", "takes no value by itself"),
        ("delta:15", "write delta:from"),
    ],
)
def test_a_wrong_name_or_option_is_one_line_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as found:
        parse_decoder(text)
    assert "\n" not in str(found.value)


def test_a_decoder_is_named_by_the_text_that_made_it() -> None:
    assert parse_decoder("dola:high,choice=reference").name == "dola:high,choice=reference"
    assert parse_decoder(" sled ").name == "sled"
