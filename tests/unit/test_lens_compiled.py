"""The compiled pass over logits against PyTorch's, and what happens where numba is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.lens_model import SmallModel, states

pytest.importorskip("numba", reason="numba is not installed")

from exitlens.errors import InputError, ModelError
from exitlens.lenses import readout, register_statistic
from exitlens.lenses import statistics as records
from exitlens.lenses.kernels import compiled
from exitlens.lenses.statistics import Column, Needs, Statistic
from exitlens.models.protocol import LogitTransform

STATS = ("entropy", "varentropy", "top_k", "max_probability", "margin", "logprob", "agreement", "saturation")


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the model."""
    monkeypatch.setattr(compiled, "LEAST", 0)
    assert compiled.problem() is None


def both(monkeypatch: pytest.MonkeyPatch, model: SmallModel, hidden: dict[int, torch.Tensor], **options: Any) -> Any:
    """PyTorch's readout and the compiled one, of the same blocks: a norm in bf16 depends on how many rows it sees."""
    options = {"stats": STATS, "block_rows": 4096, "targets": torch.arange(len(hidden[0])) % model.vocab_size} | options
    with monkeypatch.context() as plain:
        plain.setattr(compiled, "LEAST", 1 << 60)
        want = readout(model, hidden, **options)
    used = []
    init = compiled.CompiledBlock.__init__

    def counted(self: Any, *arguments: Any) -> None:
        used.append(self)
        init(self, *arguments)

    monkeypatch.setattr(compiled.CompiledBlock, "__init__", counted)
    found = readout(model, hidden, **options)
    assert used, "the compiled block was not taken"
    return want, found


def same(want: Any, found: Any, bound: float) -> None:
    for name, value in want.items():
        if value.is_floating_point():
            error = (found[name].double() - value.double()).abs().nan_to_num(0.0)
            assert bool((error <= bound + 3e-6 * value.double().abs().nan_to_num(0.0)).all()), (
                name,
                float(error.max()),
            )
            assert torch.equal(torch.isnan(found[name]), torch.isnan(value)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("vocab", "tokens", "width"),
    [(1003, 21, 64), (32, 1, 32), (7, 3, 64), (515, 40, 24), (544, 33, 96)],
    ids=["ragged", "one tile", "tiny", "odd width", "whole"],
)
def test_exact_is_pytorch_s_within_the_bound(monkeypatch, dtype, vocab, tokens, width) -> None:
    model = SmallModel(vocab=vocab, d=width, dtype=dtype, n_layers=3, bias=vocab % 2 == 1)
    want, found = both(monkeypatch, model, states(model, tokens), stats=(*STATS, "kl"), top_k=5)
    same(want, found, 5e-5)
    assert torch.equal(want["top_ids"], found["top_ids"])
    assert torch.equal(want["saturation"], found["saturation"])


@pytest.mark.parametrize(("width", "n_layers"), [(704, 2), (704, 5), (1312, 1), (640, 3)])
def test_wide_rows_are_taken_some_columns_at_a_time(monkeypatch, width, n_layers) -> None:
    model = SmallModel(vocab=300, d=width, dtype=torch.bfloat16, n_layers=n_layers, spread=0.1)
    want, found = both(monkeypatch, model, states(model, 33), stats=(*STATS, "kl"), top_k=5)
    same(want, found, 5e-5)
    assert torch.equal(want["top_ids"], found["top_ids"])


@pytest.mark.parametrize("tokens", [5, 40])
def test_wide_rows_of_one_block_are_not_overwritten_while_they_wait(monkeypatch, tokens) -> None:
    model = SmallModel(vocab=300, d=704, dtype=torch.bfloat16, n_layers=1, spread=0.1)
    want, found = both(monkeypatch, model, states(model, tokens), stats=("entropy", "varentropy", "top_k"), top_k=5)
    same(want, found, 5e-5)
    assert torch.equal(want["top_ids"], found["top_ids"])


def test_logits_that_keep_growing(monkeypatch) -> None:
    """Sums are relative to the largest logit before a tile; here each tile's is larger, by a little or by far."""
    for step in (0.5, 30.0, 60.0, 200.0):
        model = SmallModel(vocab=500, d=32, dtype=torch.bfloat16, n_layers=2, spread=0.01)
        model._weight[:, 0] = torch.arange(500) // 32 * step / 50
        want, found = both(monkeypatch, model, states(model, 21), stats=("entropy", "varentropy", "top_k", "kl"))
        same(want, found, 5e-5)
        assert torch.equal(want["top_ids"], found["top_ids"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.6, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.9])  # rows of a bf16 model are bf16 numbers until they are scaled
def test_fast_stays_in_the_stated_bounds(monkeypatch, dtype, spread, scale) -> None:
    transform = LogitTransform(scale)
    model = SmallModel(vocab=1003, d=64, dtype=dtype, n_layers=4, spread=spread, logit_transform=transform)
    hidden = states(model, 24)
    exact, _ = both(monkeypatch, model, hidden, stats=("entropy", "logprob", "kl", "max_probability", "top_k"))
    _, fast = both(
        monkeypatch, model, hidden, stats=("entropy", "logprob", "kl", "max_probability", "top_k"), precision="fast"
    )
    assert float(exact["kl"].max()) > (40 if spread > 1 else 2)
    for name in ("entropy", "logprob", "kl"):
        assert float((fast[name] - exact[name]).abs().max()) < 0.05, name
    assert float((fast["max_probability"] - exact["max_probability"]).abs().max()) < 0.01
    assert torch.equal(fast["top_ids"][..., 0], exact["top_ids"][..., 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transform", [LogitTransform(0.3), LogitTransform(1.0, 4.0), LogitTransform(0.5, 30.0)])
def test_scale_and_soft_cap(monkeypatch, dtype, transform) -> None:
    model = SmallModel(vocab=203, d=32, dtype=dtype, n_layers=2, bias=True, logit_transform=transform)
    stats = STATS if transform.cap else (*STATS, "kl")
    want, found = both(monkeypatch, model, states(model, 18), stats=stats)
    same(want, found, 5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_tokens_than_two_to_the_seventeenth(monkeypatch, dtype) -> None:
    vocab = (1 << 17) + 77
    model = SmallModel(vocab=vocab, d=32, dtype=dtype, n_layers=1)
    targets = torch.tensor([vocab - 1, 0, 1 << 17])
    want, found = both(monkeypatch, model, states(model, 3), stats=(*STATS, "kl"), targets=targets)
    same(want, found, 5e-5)
    assert torch.equal(want["top_ids"], found["top_ids"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_equal_logits_lower_ids_first(monkeypatch, dtype, precision) -> None:
    model = SmallModel(vocab=700, d=32, dtype=dtype, n_layers=1)
    model._weight[:] = 0
    model._weight[[640, 33, 5, 65, 31, 32]] = 1.0
    hidden = {j: torch.ones(2, 32, dtype=dtype) for j in (0, 1)}
    _, found = both(monkeypatch, model, hidden, stats=("top_k", "entropy"), top_k=8, precision=precision)
    assert found["top_ids"][0, 0].tolist() == [5, 31, 32, 33, 65, 640, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [60.0, 3000.0])
def test_logits_far_apart(monkeypatch, dtype, size) -> None:
    model = SmallModel(vocab=300, d=32, dtype=dtype, n_layers=2, spread=size)
    want, found = both(monkeypatch, model, states(model, 17), stats=("entropy", "varentropy", "top_k", "kl", "logprob"))
    same(want, found, 3e-5 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_switched_off(monkeypatch, dtype) -> None:
    model = SmallModel(vocab=300, d=32, dtype=dtype, n_layers=2, bias=True)
    model._bias[40:] = -torch.inf
    want, found = both(
        monkeypatch, model, states(model, 17), targets=torch.arange(17), stats=("entropy", "top_k", "logprob")
    )
    same(want, found, 5e-5)
    assert int(found["top_ids"].max()) < 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["state", "weight"])
def test_what_is_not_a_number_is_refused(dtype, bad, where) -> None:
    model = SmallModel(vocab=300, d=32, dtype=dtype, n_layers=2)
    hidden = states(model, 17)
    if where == "state":
        hidden[1][5, 3] = bad
    else:
        model._weight[123, 4] = bad
    with pytest.raises(ModelError, match="layer 1" if where == "state" else "token id 123"):
        readout(model, hidden, stats=("max_probability",))


def test_threads_and_blocks_do_not_change_results() -> None:
    model = SmallModel(vocab=2003, d=64, n_layers=3)
    hidden, before = states(model, 37), torch.get_num_threads()
    found = []
    try:
        for threads, rows in ((1, None), (2, None), (3, 40), (1, 4)):
            torch.set_num_threads(threads)
            found.append(readout(model, hidden, stats=("entropy", "kl", "top_k"), block_rows=rows))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        same(found[0], other, 1e-5)
        assert torch.equal(found[0]["top_ids"], other["top_ids"])


def test_the_same_request_gives_the_same_bytes_in_threads_of_the_caller_too() -> None:
    model = SmallModel(vocab=2003, d=64, n_layers=3, dtype=torch.bfloat16)
    hidden = states(model, 37)
    want = readout(model, hidden, stats=("entropy", "kl", "top_k"))
    found: list[Any] = []
    workers = [
        threading.Thread(target=lambda: found.append(readout(model, hidden, stats=("entropy", "kl", "top_k"))))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    for other in found:
        assert all(torch.equal(want[name], other[name]) for name in want)


def test_a_forked_process_reads_too() -> None:
    model = SmallModel(vocab=303, d=32, dtype=torch.bfloat16, n_layers=1)
    hidden = states(model, 5)
    want = float(readout(model, hidden)["entropy"].sum())
    source, sink = os.pipe()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's own threads do not outlive a fork
    child = os.fork()
    if child == 0:
        try:
            os.write(sink, repr(float(readout(model, hidden)["entropy"].sum())).encode())
        finally:
            os._exit(0)
    torch.set_num_threads(before)
    os.close(sink)
    os.waitpid(child, 0)
    assert float(os.read(source, 100)) == pytest.approx(want, abs=1e-4)
    os.close(source)


@pytest.mark.parametrize("stats", [("rank",), ("jsd",), ("tv",), ("kl", "rank")])
def test_what_looks_back_at_all_logits_takes_pytorch_s_way(stats) -> None:
    model = SmallModel(vocab=203, d=32, n_layers=2)
    found = readout(model, states(model, 5), stats=stats, targets=torch.arange(5))
    assert all(bool(torch.isfinite(found[name].double()).all()) for name in found)


def test_a_statistic_that_looks_back_without_saying_so_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_known", dict(records._known))
    monkeypatch.setattr(records, "STATS", records._known)
    register_statistic(
        Statistic("careless", "Σ p²", (Column("careless"),), Needs(), lambda rows: rows.sum(lambda p: (2 * p).exp()))
    )
    model = SmallModel(vocab=203, d=32, n_layers=2)
    with pytest.raises(InputError, match=r"Needs\(logits=True\)"):
        readout(model, states(model, 5), stats=("careless",))


def test_small_requests_and_long_lists_are_left_to_pytorch() -> None:
    plan = compiled.ReadoutPlan(first=True)
    assert compiled.usable(torch.device("cpu"), torch.float32, plan, 10)
    assert not compiled.usable(torch.device("cpu"), torch.float64, plan, 10)
    assert not compiled.usable(torch.device("cpu"), torch.float32, compiled.ReadoutPlan(top=65), 10)
    assert not compiled.usable(torch.device("cpu"), torch.float32, compiled.ReadoutPlan(stored=True), 10)
    compiled.LEAST = 11  # the fixture takes it back
    assert not compiled.usable(torch.device("cpu"), torch.float32, plan, 10)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
{before}
import torch
import exitlens
from exitlens.lenses import readout
from exitlens.lenses.kernels import compiled as _compiled
assert sys.modules.get("numba") is None
from tests.unit.lens_model import SmallModel, states
model = SmallModel(vocab=203, d=24)
first = readout(model, states(model, 5))
assert sys.modules.get("numba") is None, "numba was imported for a few rows"
_compiled.LEAST = 0
found = readout(model, states(model, 5))
assert torch.allclose(first["entropy"], found["entropy"], atol=1e-4)
print(found.notes, sys.modules.get("numba") is not None)
"""


def run(before: str, **environment: str) -> str:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=root, before=before)],
        check=False, capture_output=True, text=True, env=os.environ | environment, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_numba_it_is_pytorch_with_a_note() -> None:
    assert "pip install 'exitlens[numba]'" in run("sys.modules['numba'] = None")


def test_a_numba_that_does_not_load_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise AttributeError('broken here')")
    assert "numba does not load (broken here)" in run(f"sys.path.insert(0, {str(tmp_path)!r})")


def test_it_can_be_switched_off() -> None:
    assert run("", EXITLENS_COMPILED="0") == "() False\n"


def test_the_machine_code_is_kept_in_the_cache_folder_or_made_anew_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert run("", EXITLENS_CACHE=str(tmp_path / "cache")) == "() True\n"
    assert list((tmp_path / "cache" / "kernels").rglob("*.nbi"))
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run("", EXITLENS_CACHE=str(blocked)) == "() True\n"
