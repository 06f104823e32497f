"""The lens study: pass@k and its controls from ranks, differences and curves, the command and its refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny
from tests.commands import call, done

from exitlens.data.records import ConceptPrompt
from exitlens.errors import InputError
from exitlens.lenses.concepts import ConceptRead
from exitlens.lenses.lens import Lens
from exitlens.models import wrap
from exitlens.report.frames import Results
from exitlens.stats import holm, mean_interval, paired_difference
from exitlens.studies.config import RunConfig
from exitlens.studies.lens_quality.analysis import layers_table, pairs_table, pass_table, shares, summary_table
from exitlens.studies.lens_quality.chapter import LensesChapter
from exitlens.studies.lens_quality.stage import with_decoys
from exitlens.studies.lens_quality.study import headline_k, lens_study
from exitlens.studies.lens_quality.verdict import verdict
from exitlens.studies.run import run

WORDS = ("true", "a", "is", "4", "Q", "A")


@pytest.fixture(scope="module")
def lm() -> Any:
    return wrap(tiny.model("gpt2"), tiny.tokenizer())


def prompt(name: str, *concepts: str, of: str = "typo") -> ConceptPrompt:
    return ConceptPrompt(f"{of}/{name}", of, f"It {name} is", concepts, tuple((c,) for c in concepts), None, "last")


PROMPTS = [prompt(f"{i}", WORDS[i % 6], of=name) for name in ("typo", "association") for i in range(8)]


def ranks(*rows: tuple[str, str, str, str, int]) -> pd.DataFrame:
    """Rows of set, prompt, lens, whose concept, rank."""
    return pd.DataFrame(rows, columns=["set", "prompt_id", "lens", "of", "rank"])


def test_shares_are_of_concepts_and_the_shuffled_one_is_the_mean_over_other_prompts() -> None:
    found = shares(
        ranks(
            ("s", "p", "logit", "p", 1), ("s", "p", "logit", "p", 7), ("s", "p", "logit", "q", 3),
            ("s", "p", "logit", "q", 30), ("s", "p", "logit", "r", 99), ("s", "q", "logit", "q", 5),
        ),
        (1, 5, 50),
    ).set_index("prompt_id")  # fmt: skip
    assert found.loc["p", ["own 1", "own 5", "own 50"]].tolist() == [0.5, 0.5, 1.0]
    assert found.loc["p", ["shuffled 1", "shuffled 5", "shuffled 50"]].tolist() == [0.0, 0.25, 0.5]
    assert found.loc["q", ["own 1", "own 5"]].tolist() == [0.0, 1.0]
    assert np.isnan(found.loc["q", "shuffled 5"]), "no other prompt's concepts were ranked there"


def _shares(seed: int = 0, n: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for name in ("s", "t"):
        for lens, rate in (("raw", 0.2), ("logit", 0.5), ("random-rotation", 0.1)):
            own, other = rng.random((2, n)) < rate
            rows += [(name, f"{name}/{i}", lens, float(own[i]), float(other[i]) / 2) for i in range(n)]
    return pd.DataFrame(rows, columns=["set", "prompt_id", "lens", "own 10", "shuffled 10"])


def test_pass_table_has_intervals_by_prompt_and_holm_over_lenses_and_sets_without_controls() -> None:
    share = _shares()
    chance = pd.DataFrame({10: 0.1}, index=share["prompt_id"].unique())
    found = pass_table(share, chance, (10,), controls=("random-rotation",))
    assert found["set"].tolist() == [name for name in ("all", "s", "t") for _ in range(3)]
    for row in found.to_dict("records"):
        mine = share[
            (share["lens"] == row["lens"]) & share["set"].isin([row["set"]] if row["set"] != "all" else ["s", "t"])
        ]
        expected = mean_interval(mine["own 10"].to_numpy())
        assert (row["passed"], row["passed_low"], row["passed_high"]) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )
        gain = paired_difference(mine["own 10"].to_numpy(), mine["shuffled 10"].to_numpy())
        assert (row["gain"], row["gain_low"], row["p"]) == pytest.approx((gain.value, gain.low, gain.p))
        assert (row["n"], row["n_shuffled"], row["chance"]) == (len(mine), len(mine), pytest.approx(0.1))
    tested = found[(found["set"] != "all") & ~found["control"]]
    assert tested["p_holm"].tolist() == pytest.approx(holm(tested["p"].to_numpy()).tolist())
    assert found[found["control"]]["p_holm"].isna().all()


def test_pairs_are_by_prompt_and_corrected_over_pairs_and_sets() -> None:
    share = _shares(1)
    found = pairs_table(share, ["raw", "logit"], (10,))
    assert found[["set", "lens", "other", "n"]].to_numpy().tolist() == [
        ["all", "logit", "raw", 40], ["s", "logit", "raw", 20], ["t", "logit", "raw", 20],
    ]  # fmt: skip
    s = share[share["set"] == "s"].pivot(index="prompt_id", columns="lens", values="own 10")
    s = s.loc[[f"s/{i}" for i in range(20)]]  # random flips go by place
    expected = paired_difference(s["logit"].to_numpy(), s["raw"].to_numpy())
    assert found.loc[1, ["difference", "difference_low", "p"]].tolist() == pytest.approx(
        [expected.value, expected.low, expected.p]
    )
    assert found["p_holm"].tolist()[1:] == pytest.approx(holm(found["p"].to_numpy()[1:]).tolist())
    assert found.loc[0, "p_holm"] == found.loc[0, "p"], "all prompts are a family of their own"


def test_curves_and_saturation_are_means_over_prompts() -> None:
    rows = [
        ("a", 1, 0.0, 2.0, True, 4), ("a", 2, 1.0, 1.0, False, 9), ("a", 3, 1.0, 0.0, True, 1),
        ("b", 1, 0.0, 4.0, False, 1), ("b", 2, 0.5, 3.0, True, 1), ("b", 3, 1.0, 0.0, True, 1),
        ("c", 1, 0.0, 0.0, True, 1), ("c", 2, 0.0, 2.0, True, 3), ("c", 3, 1.0, 0.0, True, 1),
    ]  # fmt: skip
    columns = ["prompt_id", "layer", "share", "kl", "agreement", "answer_rank"]
    reads = pd.DataFrame(rows, columns=columns).assign(lens="logit", set="s")
    found = layers_table(reads, 10).set_index("layer")
    assert found["share"].tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert found["kl"].tolist() == pytest.approx([2.0, 2.0, 0.0])
    assert found["agreement"].tolist() == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert found["answer_rank"].tolist() == pytest.approx([4 ** (1 / 3), 27 ** (1 / 3), 1.0])
    (row,) = summary_table(reads).to_dict("records")
    assert row["saturation"] == pytest.approx((3 + 2 + 1) / 3)
    assert row["kl"] == pytest.approx((1.5 + 3.5 + 1.0) / 3)


def test_decoys_are_other_prompts_of_the_set_and_share_no_token_with_the_prompt() -> None:
    reads = [ConceptRead(f"s/{i}", "s", (1,), ("x",), ((i % 3, 9) if i == 0 else (i % 3,),)) for i in range(9)]
    reads += [ConceptRead("t/0", "t", (1,), ("y",), ((7,),)), ConceptRead("t/1", "t", (1,), (), ())]
    found = with_decoys(reads, seed=0)
    assert [record.id for record in found] == [read.id for read in reads[:10]], "a prompt without concepts is left out"
    for record in found[:9]:
        assert len(record.decoys) == 4
        own = {token for tokens in record.read.tokens for token in tokens}
        assert all(decoy.set_name == "s" and not own & set(decoy.tokens[0]) for decoy in record.decoys)
    assert found[9].decoys == (), "its set has no other prompt with concepts"
    assert with_decoys(reads, seed=0) == found
    assert with_decoys(reads, seed=1) != found


class Oracle(Lens):
    """Hands the unembedding the direction in which the token " true" ranks first, whatever the state."""

    name = "oracle"

    def __init__(self, lm: Any) -> None:
        token = lm.encode(" true", special=False)[0]
        weight = lm.weight.float()
        self.row = torch.linalg.lstsq(weight, torch.eye(len(weight))[:, token, None]).solution[:, 0]
        assert int((weight @ self.row).argmax()) == token

    def transform(self, h: torch.Tensor, layer: int) -> torch.Tensor:
        return h

    def rows(self, lm: Any, layers: Any, states: Any) -> torch.Tensor:
        pairs = zip(layers, states, strict=True)
        return torch.stack([lm.norm(h) if j == lm.n_layers else 100 * self.row.expand(len(h), -1) for j, h in pairs])


def test_a_lens_that_names_one_concept_passes_where_it_is_the_prompts(lm: Any) -> None:
    made = lens_study(lm, PROMPTS, lenses=["logit", Oracle(lm)], pass_at=(1, 10))
    own = made.ranks[(made.ranks["lens"] == "oracle") & (made.ranks["of"] == made.ranks["prompt_id"])]
    true = own["concept"] == "true"
    assert int(true.sum()) == 4
    assert (own[true]["rank"] == 1).all()
    assert (own[~true]["rank"] > 1).all()
    passed = made.passed[(made.passed["set"] == "all") & (made.passed["k"] == 1)].set_index("lens")
    assert passed.loc["oracle", "passed"] == pytest.approx(4 / 16)
    assert set(made.layers["layer"]) == {1, 2, 3}
    last = made.layers[made.layers["layer"] == 3]
    assert last["agreement"].tolist() == [1.0] * 3
    assert last["kl"].tolist() == pytest.approx([0.0] * 3, abs=1e-5), "layer N is the model itself through every lens"


def test_the_rotation_scores_at_chance_also_where_prompts_share_their_state(lm: Any) -> None:
    # Every prompt is the same text: one rotation for all of them would give all or none.
    alike = [
        ConceptPrompt(f"typo/{i}", "typo", "It is", (WORDS[i % 6],), ((WORDS[i % 6],),), None, "last")
        for i in range(300)
    ]
    made = lens_study(lm, alike, lenses=["logit"], pass_at=(10, 50))
    control = made.passed[made.passed["control"]].set_index("k")
    for k in (10, 50):
        chance = control.loc[k, "chance"]
        assert abs(control.loc[k, "passed"] - chance) < 3 * (chance * (1 - chance) / 300) ** 0.5


def test_the_same_seed_gives_the_same_tables(lm: Any) -> None:
    one, two = (lens_study(lm, PROMPTS[:4], pass_at=(5,), seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(one.passed, two.passed)
    pd.testing.assert_frame_equal(one.ranks, two.ranks)


def test_the_headline_is_ten_or_what_is_nearest_below() -> None:
    assert (headline_k((1, 5, 10, 50)), headline_k((1, 5, 20)), headline_k((20, 50))) == (10, 5, 20)


def results(*, p: float, gain_p: float, difference: float = 0.3) -> Results:
    ends = {
        f"{name}_{end}": value
        for name in ("passed", "shuffled", "gain")
        for end, value in (("low", 0.1), ("high", 0.4))
    }
    lenses = [
        {"set": name, "lens": lens, "control": False, "k": 10, "n": 40, "passed": passed, "chance": 0.1,
         "shuffled": 0.1, "n_shuffled": 40, "gain": 0.2, "p": gain_p, "p_holm": gain_p, **ends}
        for name in ("all", "s", "t") for lens, passed in (("logit", 0.2), ("tuned", 0.2 + difference))
    ]  # fmt: skip
    pairs = [
        {"set": name, "k": 10, "lens": "tuned", "other": "logit", "n": 40, "difference": difference,
         "difference_low": 0.1, "difference_high": 0.5, "p": p, "p_holm": p if name != "t" else 0.9}
        for name in ("all", "s", "t")
    ]  # fmt: skip
    layers = pd.DataFrame({"lens": ["logit"], "layer": [1], "k": [10]})
    return Results({"lenses": pd.DataFrame(lenses), "lenses_pairs": pd.DataFrame(pairs), "lenses_layers": layers})


def test_the_verdict_names_the_sets_and_says_the_nulls() -> None:
    assert verdict(results(p=0.001, gain_p=0.001)) == (
        "Read with the tuned lens on s: tuned pass@10 50.0% [10.0, 40.0], n = 40 over all, logit pass@10 20.0% [10.0, "
        "40.0], n = 40; no lens differs from logit beyond chance on 1 of 2 sets."
    )
    null = verdict(results(p=0.6, gain_p=0.001))
    assert null.startswith("Read with the logit lens: no other is better")
    assert null.endswith("no lens differs from logit beyond chance on 2 of 2 sets.")
    assert verdict(results(p=0.001, gain_p=0.001, difference=-0.1)).startswith("Read with the logit lens")
    assert verdict(results(p=0.6, gain_p=0.4)).startswith("No lens is shown to read concepts here: none ranks")
    assert verdict(Results({})) == ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lens-quality")
    model = tiny.save(folder / "model", "gpt2")
    sets = folder / "sets"
    sets.mkdir()
    for name in ("typo", "association"):
        items = [{"prompt": f"It {i} is", "intermediates": [WORDS[i], "Brazil"]} for i in range(4)]
        (sets / f"lens-eval-{name}.json").write_text(json.dumps({"items": items}))
    return model, sets


def test_the_command_prints_tables_and_findings_and_keeps_a_report(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, sets = folders
    out = tmp_path / "run"
    found = done(capsys, "lens", "compare", "--model", model, "--data", sets, "--lens", "logit,raw", "--out", out)
    assert set(found) == {
        "model", "findings", "lenses", "lenses_pairs", "lenses_layers", "lenses_summary", "lenses_sets", "run",
        "report",
    }  # fmt: skip
    assert [row["lens"] for row in found["lenses_summary"]] == ["logit", "raw", "random-rotation"]
    assert [row["left_out"] for row in found["lenses_sets"]] == [4, 4]
    assert any("Left out: 8 of 16 concepts" in text for text in found["findings"])
    assert any(text.startswith("Control, random-rotation") for text in found["findings"])
    page = (out / "report.html").read_text()
    assert "Which lens to trust" in page
    assert re.search(r"% \[[\d., ]+\]†", page)
    assert page.count("<svg") >= 2
    manifest = json.loads((out / "manifest.json").read_text())
    assert {row["lens"] for row in manifest["lens_costs"]} == {"logit", "raw"}
    code, printed, err = call(capsys, "lens", "compare", "--model", model, "--data", sets, "--out", out, "-q")
    assert code == 2, printed
    assert "belongs to another run" in err, "other lenses"


def test_a_run_continues_with_the_same_tables(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, sets = folders
    config = RunConfig(model=str(model), data=(str(sets),), only=("lenses",), out=str(tmp_path / "run"), figures=False)
    first = run(config)
    names = ("lenses", "lenses_pairs", "lenses_ranks", "lenses_layers")
    before = {name: (tmp_path / f"run/tables/{name}.parquet").read_bytes() for name in names}
    (next((tmp_path / "run/work/lenses").glob("*.seal.json"))).unlink()
    again = run(config)
    assert {name: (tmp_path / f"run/tables/{name}.parquet").read_bytes() for name in names} == before
    assert set(first.tables) == set(again.tables)
    assert LensesChapter().findings(again.results)
    numbers = {(n.name, n.of["lens"]): n for n in LensesChapter().numbers(again.results)}
    assert {name for name, _ in numbers} == {
        "pass@10, all prompts", "pass@10, typo", "pass@10, association", "KL to layer N", "saturation layer",
    }  # fmt: skip
    for number in (numbers["pass@10, all prompts", "logit"], numbers["pass@10, typo", "raw"]):
        assert number.n == len(number.units)
        assert number.value == pytest.approx(np.mean([unit.value for unit in number.units]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--pass-at", "1,400"], "pass@400 is out of range: .* has a vocabulary of 320 tokens"),
        (["--pass-at", "0"], "--pass-at"),
        (["--layers", "3"], "inner layer 3 is out of range: .* has inner layers 1 to 2"),
        (["--lens", "nowhere"], "no lens 'nowhere'"),
        (["--lens", "tuned"], "no tuned lens for"),
        (["--lens", "logit,logit"], "'logit' is given twice"),
        (["--read-at", "last"], "--read-at last would change nothing"),
        (["--data", "facts-qa"], "holds questions, which lens compare does not read"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    model, sets = folders
    code, _, err = call(capsys, "lens", "compare", "--model", model, "--data", sets, *options, "-q")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    with pytest.raises(InputError, match=expected):
        raise InputError(err)


def test_data_of_another_kind_are_refused_on_both_sides(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, sets = folders
    code, _, err = call(capsys, "lens", "compare", "--model", model, "-q")
    assert (code, "'facts-qa' holds questions, not concept prompts: give sets of them with --data" in err) == (2, True)
    code, _, err = call(capsys, "entropy", "--model", model, "--data", sets, "-q")
    assert (code, "holds concept prompts, which none of the studies asked for reads" in err) == (2, True)
