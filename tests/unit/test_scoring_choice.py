"""MC1, MC2, MC3 and binary choice by hand, with numbers that would overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exitlens.errors import InputError
from exitlens.scoring import binary, choice_scores, mc1, mc2, mc3

LOG = math.log


def test_by_hand() -> None:
    correct, incorrect = [LOG(0.3), LOG(0.1)], [LOG(0.2), LOG(0.05)]
    assert mc1(LOG(0.3), incorrect) == 1.0
    assert mc1(LOG(0.1), incorrect) == 0.0
    assert mc2(correct, incorrect) == pytest.approx(0.4 / 0.65)
    assert mc3(correct, incorrect) == 0.5
    assert binary([LOG(0.3), LOG(0.1)], [LOG(0.2), LOG(0.2)]).tolist() == [1.0, 0.0]


def test_ties_are_losses() -> None:
    assert mc1(-1.0, [-1.0]) == 0.0
    assert mc3([-1.0], [-1.0, -5.0]) == 0.0
    assert binary([-1.0], [-1.0]).tolist() == [0.0]
    assert mc2([-1.0], [-1.0]) == 0.5


def test_nothing_overflows_or_vanishes() -> None:
    # exp(-2000) is 0 and exp(2000) is inf: a plain softmax would give nan.
    assert mc2([-2000.0], [-2000.0 - LOG(3)]) == pytest.approx(0.75)
    assert mc2([2000.0], [2000.0 + LOG(3)]) == pytest.approx(0.25)
    assert mc2([-5.0], [-math.inf]) == 1.0
    assert mc2([-math.inf], [-5.0]) == 0.0
    assert math.isnan(mc2([-math.inf], [-math.inf]))


logs = st.lists(st.floats(-5000, 5000), min_size=1, max_size=6)


@settings(deadline=None)
@given(logs, logs, st.floats(-1000, 1000))
def test_bounds_and_shift(correct: list[float], incorrect: list[float], shift: float) -> None:
    share = mc2(correct, incorrect)
    assert 0 <= share <= 1
    assert share + mc2(incorrect, correct) == pytest.approx(1)
    moved = mc2([x + shift for x in correct], [x + shift for x in incorrect])
    assert moved == pytest.approx(share, abs=1e-8)
    assert mc3(correct, incorrect) <= mc1(max(correct), incorrect)


def test_many_questions() -> None:
    found = choice_scores([-1.0, -3.0], [[-1.0, -2.0], np.array([-3.0])], [[-1.5], [-2.0, -9.0]])
    assert found.mc1.tolist() == [1.0, 0.0]
    assert found.mc3.tolist() == [0.5, 0.0]
    assert found.mc2[1] == pytest.approx(mc2([-3.0], [-2.0, -9.0]))


def test_bad_input_names_the_row() -> None:
    with pytest.raises(InputError, match="row 1: incorrect"):
        choice_scores([-1.0, -1.0], [[-1.0], [-1.0]], [[-2.0], []])
    with pytest.raises(InputError, match="nan"):
        mc2([math.nan], [-1.0])
    with pytest.raises(InputError, match="do not match"):
        choice_scores([-1.0], [[-1.0]], [])
    with pytest.raises(InputError, match="do not match"):
        binary([-1.0], [-1.0, -2.0])
