"""What functions take from Python: natural variants work, anything else is one line that names the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny

import exitlens
from exitlens.arguments import as_count, as_id_rows, as_names, as_numbers, as_texts, is_whole
from exitlens.errors import InputError
from exitlens.layer_range import resolve_layers
from exitlens.lenses import read_ids

pytestmark = pytest.mark.wrong_types


@pytest.fixture(scope="module")
def lm() -> exitlens.LM:
    return exitlens.wrap(tiny.model("llama"), tiny.tokenizer())


_WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "texts, a number": (lambda lm: lm.read(3), r"3 \(int\) was given as texts"),
    "texts, nothing": (lambda lm: lm.read(None), r"None \(NoneType\) was given as texts"),
    "texts, numbers": (lambda lm: lm.read([1]), r"1 \(int\) was given as text 0: give texts; read_ids"),
    "texts, a hole": (lambda lm: lm.read(["a", float("nan")]), r"nan \(float\) was given as text 1"),
    "texts, ids": (lambda lm: lm.read(torch.tensor([[1, 2]])), r"\(Tensor\) was given as text 0"),
    "layers, a fraction": (lambda lm: lm.read("a", layers=[1.5]), r"1\.5 \(float\) was given as one of layers"),
    "layers, nothing": (lambda lm: lm.read("a", layers=None), r"None \(NoneType\) was given as layers"),
    "layers, yes": (lambda lm: lm.read("a", layers=True), r"True \(bool\) was given as layers"),
    "lens": (lambda lm: lm.read("a", lens=3), r"3 \(int\) was given as the lens: give a Lens"),
    "batch, text": (lambda lm: lm.read("a", batch_tokens="9"), r"'9' \(str\) was given as batch_tokens"),
    "ids, one text's": (lambda lm: read_ids(lm, [1, 2]), r"1 \(int\) was given as text 0: .*\[\[1, 2, 3\]\]"),
    "ids, words": (lambda lm: read_ids(lm, [["a"]]), r"'a' \(str\) was given as one of the token ids of text 0"),
    "ids, a text": (lambda lm: read_ids(lm, "abc"), r"'abc' \(str\) was given as the token ids"),
    "prompts, nothing": (lambda lm: lm.generate(None), r"None \(NoneType\) was given as the prompts"),
    "prompts, a number": (lambda lm: lm.generate([3]), r"3 \(int\) was given as a prompt's token ids"),
    "length, text": (lambda lm: lm.generate("a", max_new_tokens="3"), r"'3' \(str\) was given as max_new_tokens"),
    "length, a fraction": (lambda lm: lm.generate("a", max_new_tokens=2.0), r"2\.0 \(float\) was given as max_new"),
    "stop, a number": (lambda lm: lm.generate("a", stop=[3]), r"3 \(int\) was given as stop string 0"),
    "decoder": (lambda lm: lm.generate("a", decoder=None), r"None \(NoneType\) was given as the decoder: .*dola"),
    "question": (lambda lm: lm.look(3), r"3 \(int\) was given as the text"),
    "choices, one text": (lambda lm: lm.look("a", choices="two,four"), r"'two,four' \(str\) was given as the choices"),
    "choices, numbers": (lambda lm: lm.look("a", choices=[1, 2]), r"1 \(int\) was given as one of the choices"),
    "score, numbers": (lambda lm: lm.score("a", 3), r"3 \(int\) was given as the continuations"),
    "score, prompts": (lambda lm: lm.score(["a"], ["b"]), r"'a' \(str\) was given as one of the prompt's token ids"),
    "attribute": (lambda lm: lm.attribute("a", None), r"None \(NoneType\) was given as what is split"),
    "answers": (lambda lm: exitlens.trace_answers(lm, ["a"]), r"'a' \(str\) was given as answer 0: give what generate"),
    "questions, texts": (
        lambda lm: exitlens.layers_study(lm, ["a"]),
        r"'a' \(str\) was given as question 0",
    ),
    "questions, a file": (lambda lm: exitlens.mc_scores(lm, "q.csv"), r"'q\.csv' \(str\) was given as the questions"),
    "questions, none": (
        lambda lm: exitlens.mc_scores(lm, []),
        r"no questions: give questions, such as",
    ),
    "statements": (lambda lm: exitlens.probes_study(lm, [1], "x"), r"1 \(int\) was given as statement 0"),
    "concepts": (lambda lm: exitlens.lens_study(lm, None), r"None \(NoneType\) was given as the concept prompts"),
    "data": (lambda _: exitlens.read_data(None), r"None \(NoneType\) was given as the data: give a built-in name"),
    "settings": (lambda _: exitlens.run("run.toml"), r"'run\.toml' \(str\) was given as the settings: .*RunConfig"),
    "a setting": (lambda _: exitlens.RunConfig(modle="x"), r"^unknown setting 'modle': did you mean 'model'\?$"),
    "a setting's value": (lambda _: exitlens.RunConfig(limit=-3), r"^setting 'limit' = -3: give 1 or more"),
    "own decoder": (lambda _: exitlens.register_decoder("mine", 3), r"3 \(int\) was given as decoder 'mine'"),
    "own statistic": (lambda _: exitlens.register_statistic(3), r"3 \(int\) was given as a statistic"),
    "temperature": (
        lambda _: exitlens.Sampling(temperature="a"),
        r"'a' \(str\) was given as temperature",
    ),
    "top_k": (lambda _: exitlens.Sampling(top_k=1.5), r"1\.5 \(float\) was given as top_k: give a whole number"),
    "model": (lambda _: exitlens.load(3), r"3 \(int\) was given as the model: .*wrap\(\)"),
    "device": (lambda _: exitlens.load("smollm2-135m", device=0), "unknown device '0'"),
    "dtype": (lambda _: exitlens.load("smollm2-135m", dtype=3), "unknown dtype '3'"),
}


@pytest.mark.parametrize("case", list(_WRONG))
def test_a_wrong_type_is_one_line_that_names_the_value(lm: exitlens.LM, case: str) -> None:
    call, message = _WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        call(lm)
    assert "\n" not in str(caught.value)


def test_what_anyone_would_write_is_taken(lm: exitlens.LM) -> None:
    want = lm.read(["ab", "ba"], layers=[1, 2])
    table = pd.Series(["ab", "ba"], index=[7, 3])
    for texts in (("ab", "ba"), table, np.array(["ab", "ba"]), (text for text in table)):
        np.testing.assert_array_equal(lm.read(texts, layers=np.array([1, 2]))["entropy"], want["entropy"])  # type: ignore[arg-type]
    ids = torch.tensor([lm.encode("ab")])
    np.testing.assert_allclose(read_ids(lm, ids, layers="1,2")["entropy"], want["entropy"][:1], rtol=1e-5)  # type: ignore[arg-type]
    assert lm.read("ab", layers=2).layers == (2,)  # type: ignore[arg-type]
    assert lm.read("ab", layers=torch.tensor([2, 1, 2])).layers == (2, 1)  # type: ignore[arg-type]
    # One stop string, one continuation: never letter by letter.
    assert lm.generate("ab", max_new_tokens=6, stop="zq") == lm.generate("ab", max_new_tokens=6, stop=["zq"])
    np.testing.assert_array_equal(lm.score("a", "bcd")[0], lm.score("a", ["bcd"])[0])
    assert lm.generate(torch.tensor([[9, 8]]), max_new_tokens=2) == lm.generate([[9, 8]], max_new_tokens=2)  # type: ignore[arg-type]


def test_whole_numbers_of_every_library() -> None:
    for value in (3, np.int64(3), np.array(3), torch.tensor(3), np.uint8(3)):
        assert is_whole(value)
        assert as_count(value, "n") == 3
    for value in (True, 3.0, np.float32(3), "3", None, np.array([1, 2]), torch.tensor([1, 2]), torch.tensor(1.5)):
        assert not is_whole(value)
    with pytest.raises(InputError, match=r"^n=0 is out of range: at least 1$"):
        as_count(0, "n")
    assert as_numbers(np.array([1, 2]), "x") == [1, 2]
    assert as_id_rows(np.array([[1, 2]])) == [[1, 2]]
    assert as_names(("a", "b"), "words") == ("a", "b")
    assert as_texts({"a": 1}.keys()) == ["a"]
    assert resolve_layers(2, 3) == (2,)  # type: ignore[arg-type]


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InputError) as caught:
        as_texts([list(range(10_000))])  # type: ignore[list-item]
    assert len(str(caught.value)) < 200
