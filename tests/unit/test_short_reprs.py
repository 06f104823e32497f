"""What results say of themselves where nobody draws them: a few lines without numbers of tensors in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import model, tokenizer

import exitlens
from exitlens.data.records import Question
from exitlens.lenses import FitReport, JacobianLens, TrainingReport, TunedLens
from exitlens.lenses.lens import as_lens
from exitlens.probes import LinearProbe, Provenance, make_ensemble
from exitlens.probes.kinds.mlp import MLPProbe
from exitlens.studies.decoding.multiple_choice import McScores

LAYERS, WIDTH = 3, 8
HERE = Provenance(layer=2, position="last", notes="\x1b[31mred")


def things() -> list[tuple[Any, str]]:
    g = torch.Generator().manual_seed(0)
    square = torch.randn(LAYERS, WIDTH, WIDTH, generator=g)
    thin = torch.randn(LAYERS, WIDTH, 2, generator=g)
    bias = torch.randn(LAYERS, WIDTH, generator=g)
    probe = LinearProbe("logistic", torch.randn(WIDTH, generator=g), 0.5, HERE)
    values = np.array([1.0, 0.0])
    return [
        (as_lens("logit"), "LogitLens 'logit'"),
        (TunedLens("t", "f" * 64, bias, square), "affine translators for 3 layers of width 8"),
        (TunedLens("t", "", bias, up=thin, down=thin.transpose(1, 2)), "translators of rank 2 for 3 layers"),
        (JacobianLens("j", "f" * 64, square, (0, 1, 2), 3, 7), "at 3 layers of width 8, mean over 7 texts"),
        (
            TrainingReport((4.0, 2.0, 0.0), (2.0, 1.0, 0.0), ("trained", "ridge", "model"), 90, 10, 5, 1.0),
            "3.00 nats with the logit lens, 1.50 with this one",
        ),
        (FitReport(({"texts": 4, "kl": 1.5},), 2.5, None, 4, 2, 9.0, ()), "2.50 nats with the logit lens, 1.50 with"),
        (probe, "LinearProbe 'logistic' for states of layer 2, width 8"),
        (make_ensemble([probe, probe]), "Ensemble of 2 probes, mean"),
        (MLPProbe((square[0], thin[0, :, :1]), (bias[0], bias[0, :1]), HERE), "MLPProbe 'mlp' for states of layer 2"),
        (McScores(values, values, values, values, (values,), (values,), "vanilla", True), "mean MC1 0.500"),
        (exitlens.RunConfig(only=("layers",), limit=3), "RunConfig(limit=3, only=('layers',))"),
    ]


@pytest.mark.parametrize(("made", "said"), things(), ids=lambda each: type(each).__name__)
def test_it_is_said_in_a_few_lines(made: Any, said: str) -> None:
    text = repr(made)
    assert said in text
    assert len(text.splitlines()) <= 6
    assert all(len(line) <= 330 for line in text.splitlines())
    assert not any(word in text for word in ("tensor(", "array(", " object at 0x", "\x1b"))


def test_settings_are_written_as_a_call_that_makes_them_again() -> None:
    config = exitlens.RunConfig(only=("layers",), limit=3, data=("a.jsonl",))
    assert eval(repr(config), {"RunConfig": exitlens.RunConfig}) == config
    assert eval(repr(exitlens.RunConfig()), {"RunConfig": exitlens.RunConfig}) == exitlens.RunConfig()


def test_results_name_their_model_and_say_what_they_found() -> None:
    tiny = exitlens.wrap(model("gpt-neox"), tokenizer(), name="a tiny model")
    tiny.context = 4096
    asked = [Question(str(i), "What?", "yes", ("yes",), ("no",), choices=("yes", "no")) for i in range(2)]
    result = exitlens.layers_study(tiny, asked, layers="last")
    assert repr(result).startswith("ChoicesByLayer of a tiny model\n")
    shown = result._repr_html_()
    assert "not recorded" not in shown
    assert result.findings()[0].split("\n")[0][:40] in shown.partition("<iframe")[0]


def test_an_attribution_is_drawn() -> None:
    tiny = exitlens.wrap(model("llama"), tokenizer(), name="m")
    found = tiny.attribute(["What is true?", "What?"], ["the", "is"])
    view = found.show().shape.views[0]
    assert view.kind == "attribution"
    assert "block 1 mlp" in found._repr_html_().partition("<iframe")[0]
    assert len(repr(found).splitlines()) == 2
