"""Sub-layers chosen while decoding: no token changes, the choice is the best there is, and it ends where it loses."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from tests import tiny
from tests.unit.test_speculation import PROMPTS, chi_square, model

from exitlens.decoding import generate
from exitlens.errors import InputError, UnsupportedModel
from exitlens.exits.clasp import Costs, measured_costs, pieces_of, skip_plans
from exitlens.exits.clasp_switch import Plan, Switch, expected_gain
from exitlens.exits.draft import Clasp, Draft, parse_draft
from exitlens.exits.rounds import SpeculationTally
from exitlens.exits.speculation import speculate
from exitlens.models import wrap
from exitlens.models.native.runner import Runner, Shared, runner_of

COSTS = Costs(1.0, 2.0, 3.0)
EAGER = Clasp(allowance=0.9)  # tries at once, and goes on where it loses


def parts(lm: Any) -> Runner:
    runner = runner_of(lm)
    assert runner is not None
    return runner


@torch.no_grad()
def context(runner: Runner, ids: list[int]) -> Shared:
    kv = runner.new_kv(1, len(ids))
    where = runner.where(0, len(ids))
    runner.run(runner.embed(torch.tensor([ids]), where), kv, where)
    return Shared.of(kv, len(ids))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_greedy_tokens_are_those_of_plain_decoding(family: str) -> None:
    lm = model(family, spread=0.02)
    want = generate(lm, PROMPTS, max_new_tokens=16)
    for batch_size in (1, 4):
        tally = SpeculationTally()
        got = speculate(lm, PROMPTS, EAGER, max_new_tokens=16, batch_size=batch_size, tally=tally)
        assert [g.token_ids for g in got] == [w.token_ids for w in want]
        assert [g.finish for g in got] == [w.finish for w in want]
        assert tally.clasp is not None
        assert tally.clasp.choices > 0
        assert tally.rounds == tally.clasp.plain_steps + tally.clasp.drafted_rounds


def test_sampling_keeps_the_distribution() -> None:
    lm = model("llama", spread=0.2)
    lm.model.generation_config.eos_token_id = []
    assert chi_square(lm, Clasp(allowance=0.9, length=2), 1000) > 1e-3


def test_sub_layers_that_do_nothing_are_the_first_to_go() -> None:
    built = copy.deepcopy(model("llama", spread=0.2).model)
    with torch.no_grad():
        built.model.layers[2].self_attn.o_proj.weight.zero_()
        built.model.layers[3].mlp.down_proj.weight.zero_()
    lm = wrap(built, tiny.tokenizer())
    runner, ids = parts(lm), lm.encode(PROMPTS[2])
    plans = skip_plans(runner, context(runner, ids[:-1]), ids[-1], pieces_of(runner), 4, COSTS)
    assert plans[1].draft == Draft(skip_attention=(3,), skip_mlp=(4,))
    assert plans[1].cosine == pytest.approx(1.0, abs=1e-5)
    assert plans[1].overlap == pytest.approx(1.0, abs=1e-4)
    assert plans[3].cosine < plans[1].cosine
    assert [plan.skipped for plan in plans] == [1, 2, 3, 4]
    assert plans[1].share == pytest.approx(1 - 3 / (6 * 3 + 3))
    timed = measured_costs(runner, context(runner, ids), lambda x: runner.logits(x, lm.n_layers))
    assert min(timed.attention, timed.mlp, timed.head) > 0


def test_one_skip_is_the_best_single_skip() -> None:
    """With one sub-layer to spare the programme sees every way but one that looks better half-way: against all."""
    lm = model("llama", spread=0.02)
    runner, ids = parts(lm), lm.encode(PROMPTS[2])
    known, n = context(runner, ids[:-1]), lm.n_layers
    pieces = pieces_of(runner)
    plans = skip_plans(runner, known, ids[-1], pieces, 2, COSTS)

    @torch.no_grad()
    def state(skipped: tuple[int, ...]) -> torch.Tensor:
        where, kv = runner.where(known.length, 1), runner.new_kv(1, known.length + 1, known)
        x = runner.embed(torch.tensor([[ids[-1]]]), where)
        for i, piece in enumerate(pieces):
            if i not in skipped:
                x = runner.block(piece.block, x, kv, where, attention=piece.attention, mlp=piece.mlp)
        return x[0, 0]

    full = state(())
    for plan in plans:
        cosines = [
            float(torch.cosine_similarity(state(s), full, dim=0))
            for s in itertools.combinations(range(len(pieces)), plan.skipped)
        ]
        own = state(tuple(
            i for i, p in enumerate(pieces)
            if (p.attention and p.block in plan.draft.skip_attention) or (p.mlp and p.block in plan.draft.skip_mlp)
        ))  # fmt: skip
        assert plan.cosine == pytest.approx(float(torch.cosine_similarity(own, full, dim=0)), abs=1e-5)
        # Greedy at each depth, not exhaustive: among the best tenth of all ways.
        assert sum(c > plan.cosine + 1e-6 for c in cosines) <= len(cosines) // 10
    assert n == len(pieces) // 2


def test_side_by_side_sub_layers_are_skipped_together() -> None:
    runner = parts(model("gpt-neox"))
    assert all(piece.attention and piece.mlp for piece in pieces_of(runner))
    assert [piece.block for piece in pieces_of(runner)] == [1, 2, 3, 4, 5, 6]


def plans(overlap: float, share: float = 0.5) -> list[Plan]:
    return [Plan(Draft(skip_mlp=(3,)), 1, share, overlap, 0.9)]


class Machine:
    """A plain step takes 1 s, a drafted round ``round_cost`` a token; drafts hold with probability ``accepted``."""

    def __init__(self, allowance: float = 0.01) -> None:
        self.switch = Switch(Clasp(allowance=allowance))
        self.tokens = self.spent = 0.0
        self.drafted = 0
        self.length = 1

    def go(self, accepted: float, round_cost: float, overlap: float, pause: float = 0.0) -> None:
        """One round."""
        switch = self.switch
        what = switch.next(1)
        if what == "choose":
            self.length = 1 if switch.draft is None else self.length
            switch.offer(plans(overlap), 3.0)
            self.spent += 3.0
            what = "plain" if switch.draft is None else "draft"
        if what == "plain":
            switch.stepped(1, 1.0)
            self.spent, self.tokens = self.spent + 1.0, self.tokens + 1
            return
        took = round_cost * (self.length + 1) + pause
        held = accepted * self.length
        switch.drafted(1, self.length, held, took)
        self.length = min(8, self.length + 1) if held > self.length - 1 else max(1, int(held) + 1)
        self.spent, self.tokens, self.drafted = self.spent + took, self.tokens + held + 1, self.drafted + 1


@pytest.mark.parametrize("overlap", [0.1, 0.95])
@pytest.mark.parametrize("round_cost", [0.4, 0.9, 3.0])
@pytest.mark.parametrize("accepted", [0.0, 0.5])
def test_it_never_costs_more_than_its_allowance(overlap: float, round_cost: float, accepted: float) -> None:
    machine = Machine()
    for _ in range(4000):
        machine.go(accepted, round_cost, overlap)
        assert machine.tokens / machine.spent >= 0.98, machine.tokens
    report = machine.switch.close()
    assert report.choices > 0
    if round_cost == 3.0 and overlap == 0.95:
        assert report.switched_off > 0
        assert report.plain_steps > 20 * report.drafted_rounds


def test_it_keeps_a_draft_that_gains_and_says_how_much() -> None:
    machine = Machine()
    for _ in range(2000):
        machine.go(0.9, 0.6, 0.95)
    report = machine.switch.close()
    assert report.drafted_rounds > 1000
    assert report.best == "skip=0a1m"
    assert 1.1 < report.best_speed < 1.6
    assert machine.tokens / machine.spent > 1.1
    assert "times as fast as plain steps" in report.text


def test_it_comes_back_where_drafts_gain_later() -> None:
    machine = Machine(0.05)
    for i in range(3000):
        machine.go(1.0, 0.6, 0.1 if i < 1000 else 0.99)
    assert machine.drafted > 500


def test_a_pause_of_the_machine_does_not_end_drafting_for_good() -> None:
    machine = Machine(0.05)
    for i in range(1500):
        machine.go(1.0, 0.6, 0.99, pause=1000.0 if i == 600 else 0.0)
    before = machine.drafted
    for _ in range(300):
        machine.go(1.0, 0.6, 0.99)
    assert machine.drafted - before > 200


def test_expected_gain_by_hand() -> None:
    assert expected_gain(1.0, 4, 0.5, 0.0) == pytest.approx(5 / 3)
    assert expected_gain(0.5, 2, 0.5, 0.0) == pytest.approx(1.75 / 2)


def test_the_words_and_what_cannot_be() -> None:
    assert parse_draft("clasp") == Clasp()
    assert parse_draft("clasp=3") == Clasp(most=3)
    assert Clasp().limit(60) == 24
    lm = model("llama")
    for bad, says in (
        (Clasp(most=12), "clasp=12 is out of range"),
        (Clasp(length=0), "draft length 0"),
        (Clasp(allowance=1.0), r"allowance 1\.0"),
    ):
        with pytest.raises(InputError, match=says):
            speculate(lm, PROMPTS[:1], bad)
    with pytest.raises(UnsupportedModel, match="decode plainly"):
        speculate(wrap(tiny.model("opt"), tiny.tokenizer()), PROMPTS[:1], Clasp())


def test_a_model_that_sees_a_window_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model("llama")
    monkeypatch.setattr(parts(lm).family, "window", lambda _j: 8)
    with pytest.raises(UnsupportedModel, match="window shorter than these texts"):
        speculate(lm, PROMPTS[:1], Clasp())


def test_drafts_stay_within_the_context() -> None:
    """GPT-2 has no position beyond its context: a draft at the very end must not ask for one."""
    lm = model("gpt2", spread=0.02)
    ids = (lm.encode(PROMPTS[2]) * 20)[: 256 - 12]
    want = generate(lm, [ids], max_new_tokens=12)[0].token_ids
    for draft in (Draft(exit=3), EAGER):
        assert speculate(lm, [ids], draft, max_new_tokens=12)[0].token_ids == want
