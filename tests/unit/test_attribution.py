"""What each block adds to a logit: sums, heads, hand-written references, and models that are no such sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import tiny
from tests.commands import call, done
from tests.parity import zoo

from exitlens import stats
from exitlens.api import LM
from exitlens.api import wrap as wrap_lm
from exitlens.errors import ContextError, InputError, UnsupportedModel
from exitlens.lenses.attribution import HEAD_KINDS, Attribution, Target, attribute_ids, parts_of
from exitlens.models import wrap
from exitlens.models.stream_terms import stream_terms
from exitlens.studies.layers.attribution import (
    AttributionStage,
    attribute_record,
    attribution_means,
    one_token_records,
)
from exitlens.studies.layers.records import LookRecord

IDS = [[5, 9, 77, 33, 21, 8, 100], [9, 8, 7, 6, 5, 4, 3], [4, 5, 6, 7]]
WANTED = [Target("one", 5), Target("difference", 5, 6)]


def split(lm: Any, heads: bool = True) -> Attribution:
    return attribute_ids(lm, IDS, [WANTED] * len(IDS), heads=heads, texts=["a", "b", "c"])


def own_logits(model: Any, ids: list[int], lm: Any) -> torch.Tensor:
    """The model's own logits of the next token, its soft-cap undone."""
    with torch.no_grad():
        z = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    cap = lm.logit_transform.cap
    return z if cap is None else cap * torch.atanh(z / cap)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_components_sum_to_the_models_own_logit_and_heads_to_their_attention(family: str) -> None:
    model = tiny.model(family)
    lm = wrap(model, tiny.tokenizer())
    found = split(lm)
    assert parts_of(lm) == "heads"
    for place, ids in enumerate(IDS):
        z = own_logits(model, ids, lm)
        table = found.table(place)
        sums = table[~table["kind"].isin(HEAD_KINDS)][["one", "difference"]].sum()
        want = np.array([float(z[5]), float(z[5] - z[6])])
        scale = max(1.0, float(table[["one", "difference"]].abs().to_numpy().max()))
        assert np.abs(sums.to_numpy() - want).max() <= 1e-4 * scale
        for block in range(1, lm.n_layers + 1):
            mine = table[table["block"] == block]
            split_heads = mine[mine["kind"].isin(HEAD_KINDS)]
            assert (split_heads["kind"] == "head").sum() == 4
            whole = mine[mine["kind"] == "attention"][["one", "difference"]].to_numpy()[0]
            assert np.allclose(split_heads[["one", "difference"]].sum().to_numpy(), whole, atol=1e-4 * scale)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "granite"])
def test_in_half_precision_what_rounding_took_is_a_row(family: str) -> None:
    lm = wrap(tiny.model(family, dtype=torch.bfloat16), tiny.tokenizer())
    table = split(lm).table(0)
    rounding = table[table["kind"] == "rounding"]["one"].item()
    assert 0 < abs(rounding) < 0.1
    logits = split(lm).logits
    assert logits["error"][0] == pytest.approx(abs(rounding))
    assert table[~table["kind"].isin(HEAD_KINDS)]["one"].sum() == pytest.approx(logits["logit"][0], abs=1e-9)


@torch.no_grad()
def test_llama_by_hand() -> None:
    """The sum written out for Llama: module outputs by the test's own hooks, the RMS norm frozen by its formula."""
    model = tiny.model("llama")
    lm = wrap(model, tiny.tokenizer())
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _m, _a, out: kept.__setitem__(name, (out[0] if isinstance(out, tuple) else out)[0, -1].double())

    handles = [model.model.embed_tokens.register_forward_hook(keep("embeddings"))]
    for j, layer in enumerate(model.model.layers, 1):
        handles.append(layer.self_attn.register_forward_hook(keep(f"block {j} attention")))
        handles.append(layer.mlp.register_forward_hook(keep(f"block {j} mlp")))
        projection = layer.self_attn.o_proj
        handles.append(
            projection.register_forward_pre_hook(lambda _m, a, j=j: kept.__setitem__(f"z{j}", a[0][0, -1].double()))
        )
    handles.append(
        model.model.norm.register_forward_pre_hook(lambda _m, a: kept.__setitem__("h", a[0][0, -1].double()))
    )
    model(input_ids=torch.tensor([IDS[0]]))
    for handle in handles:
        handle.remove()
    h, gain = kept["h"], model.model.norm.weight.double()
    direction = model.lm_head.weight[5].double() * gain / (h.pow(2).mean() + model.model.norm.variance_epsilon).sqrt()
    mine = dict(zip(split(lm).table(0)["component"], split(lm).table(0)["one"], strict=True))
    for name in ["embeddings", *(f"block {j} {kind}" for j in (1, 2, 3) for kind in ("attention", "mlp"))]:
        assert mine[name] == pytest.approx(float(direction @ kept[name]), abs=1e-5)
    for j, layer in enumerate(model.model.layers, 1):
        matrix = layer.self_attn.o_proj.weight.double()
        for head in range(4):
            columns = slice(8 * head, 8 * head + 8)
            want = float(direction @ (matrix[:, columns] @ kept[f"z{j}"][columns]))
            assert mine[f"block {j} head {head}"] == pytest.approx(want, abs=1e-5)


@torch.no_grad()
def test_gpt2_by_ablation() -> None:
    """With the final norm's scale held at the whole stream's, leaving a term out moves the logit by that term."""
    model = tiny.model("gpt2")
    lm = wrap(model, tiny.tokenizer())
    last = lm.forward(torch.tensor([IDS[0]]), layers=(3,), positions="last").hidden[3][0, -1].double()
    norm = model.transformer.ln_f
    scale = ((last - last.mean()).pow(2).mean() + norm.eps).sqrt()

    def logit(h: torch.Tensor) -> float:
        x = (h - h.mean()) / scale * norm.weight.double() + norm.bias.double()
        return float(model.lm_head.weight[5].double() @ x)

    kept: dict[str, torch.Tensor] = {}
    handles = []
    for j, block in enumerate(model.transformer.h, 1):
        for kind, part in (("attention", block.attn), ("mlp", block.mlp)):
            handles.append(
                part.register_forward_hook(
                    lambda _m, _a, o, name=f"block {j} {kind}": kept.__setitem__(
                        name, (o[0] if isinstance(o, tuple) else o)[0, -1].double()
                    )
                )
            )
    model(input_ids=torch.tensor([IDS[0]]))
    for handle in handles:
        handle.remove()
    kept["token embeddings"] = model.transformer.wte.weight[IDS[0][-1]].double()
    kept["positions"] = model.transformer.wpe.weight[len(IDS[0]) - 1].double()
    table = split(lm).table(0)
    mine = dict(zip(table["component"], table["one"], strict=True))
    for name, term in kept.items():
        assert mine[name] == pytest.approx(logit(last) - logit(last - term), abs=1e-4)
    assert mine["final bias"] == pytest.approx(float(model.lm_head.weight[5].double() @ norm.bias.double()), abs=1e-5)


def test_scales_of_the_residual_stream_are_counted() -> None:
    lm = wrap(zoo.build("granite"), None, name="granite")
    factors = {float(term.factor) for term in stream_terms(lm).terms}
    assert all(factor == pytest.approx(0.375, rel=1e-5) for factor in factors)


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("gptj", "heads"),  # attention and MLP side by side
        ("olmo2", "heads"),  # norms behind both
        ("bloom", "heads"),  # modules that add the stream themselves
        ("dbrx", "heads"),  # the first sum inside of a module
        ("zaya", "heads"),  # a scale and a bias a channel
        ("qwen3_next", "some heads"),  # attention with a gate, and layers of linear attention
        ("diffllama", "blocks"),  # differences of heads
        ("mamba", "blocks"),
        ("rwkv", "blocks"),  # a norm in front of the first block's sum
    ],
)
def test_families_of_every_kind(entry: str, parts: str) -> None:
    lm = wrap(zoo.build(entry), None, name=entry)
    assert parts_of(lm) == parts
    assert split(lm).logits["error"].max() < 1e-4


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("bert", "the output of block 1 is not the sum of its input and of outputs of its modules"),
        ("minimax", "the output of block 2 is not the sum"),
        ("gemma3n_text", "keeps 4 residual streams side by side"),
        ("modernbert-decoder", "neither an RMS norm, a LayerNorm nor a linear projection"),
    ],
)
def test_models_that_are_no_such_sum_are_refused_each_time_with_the_reason(entry: str, reason: str) -> None:
    lm = wrap(zoo.build(entry), None, name=entry)
    for _ in range(2):
        with pytest.raises(UnsupportedModel, match=reason) as error:
            split(lm)
        assert "\n" not in str(error.value)


def test_a_model_that_changes_after_it_was_looked_at_is_caught_by_the_sum() -> None:
    model = tiny.model("llama")
    lm = wrap(model, tiny.tokenizer())
    split(lm)
    handle = model.model.layers[1].register_forward_hook(lambda _m, _a, out: out * 1.5)
    with pytest.raises(UnsupportedModel, match="its components sum to"):
        split(lm)
    handle.remove()
    assert split(lm).logits["error"].max() < 1e-4


def test_no_hook_stays_and_rows_of_a_batch_do_not_mix() -> None:
    model = tiny.model("llama")
    lm = wrap(model, tiny.tokenizer())
    together = split(lm)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for place, ids in enumerate(IDS):
        alone = attribute_ids(lm, [ids], [WANTED], texts=["x"]).table(0)
        assert np.allclose(alone[["one", "difference"]], together.table(place)[["one", "difference"]], atol=1e-5)


@pytest.fixture(scope="module")
def lm() -> LM:
    return wrap_lm(tiny.model("llama"), tiny.tokenizer(), name="tiny")


PROMPT = "The capital of France is"


def test_texts_ids_and_pairs(lm: LM) -> None:
    a, b = lm.encode(PROMPT + " Paris")[len(lm.encode(PROMPT))], lm.encode(PROMPT + " true")[len(lm.encode(PROMPT))]
    assert a != b
    found = lm.attribute([PROMPT, "Q: true?"], ["Paris", "true", ("Paris", "true"), (a, b)])
    logits = found.logits[found.logits["prompt"] == 0].set_index("target")
    gap = logits["logit"]["Paris − true"]
    assert gap == pytest.approx(logits["logit"]["Paris"] - logits["logit"]["true"], abs=1e-6)
    assert (logits["token_id"]["Paris"], logits["token_id"]["true"]) == (a, b)
    table = found.table(1)
    assert np.allclose(table["Paris"] - table["true"], table["Paris − true"], atol=1e-9)
    top = found.top(3, "Paris − true")
    assert len(top) == 3
    assert top["contribution"].abs().is_monotonic_decreasing
    assert repr(found).startswith("Attribution(tiny: 2 prompts, ")
    assert len(repr(found)) < 300


def test_texts_that_begin_alike_are_told_apart_behind_what_they_share(lm: LM) -> None:
    found = lm.attribute(PROMPT, [("the capital", "the France")])
    plus, minus = (lm.encode(f"{PROMPT} the {word}") for word in ("capital", "France"))
    shared = next(i for i, (x, y) in enumerate(zip(plus, minus, strict=False)) if x != y)
    assert (found.logits["token_id"][0], found.logits["minus_id"][0]) == (plus[shared], minus[shared])
    z = own_logits(lm.model, plus[:shared], lm)
    assert found.logits["logit"][0] == pytest.approx(float(z[plus[shared]] - z[minus[shared]]), abs=1e-4)


def test_a_choice_called_as_a_column_keeps_its_own(lm: LM) -> None:
    found = lm.attribute(PROMPT, ["head", "true"])
    table = found.table(heads=False)
    assert list(table.columns) == ["component", "kind", "block", "head", "head (target)", "true"]
    assert table["head (target)"].sum() == pytest.approx(found.logits["logit"][0], abs=1e-4)


def test_saved_table_is_the_table(lm: LM, tmp_path: Path) -> None:
    found = lm.attribute(PROMPT, "Paris")
    pd.testing.assert_frame_equal(pd.read_parquet(found.save(tmp_path / "a.parquet")), found.components)


@pytest.mark.parametrize(
    ("prompt", "tokens", "expected"),
    [
        ("", ["Paris", "true"], "the prompt is empty"),
        (PROMPT, [], "no token to split"),
        (PROMPT, [9999], "token id 9999 is outside the vocabulary of tiny"),
        (PROMPT, [-1], "token id -1 is outside"),
        (PROMPT, [(5, 5)], "token 5 and itself"),
        (PROMPT, ["Paris", "Paris"], "'Paris' is given twice"),
        (PROMPT, ["true", "true and false"], "no first token tells 'true', 'true and false' apart"),
        (PROMPT, "  ", "is no text that can follow"),
        (PROMPT, [(1, 2, 3)], "3 tokens in"),
        ([], [5], "no prompt was given"),
    ],
)
@pytest.mark.wrong_types
def test_bad_input_is_one_line(lm: LM, prompt: Any, tokens: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        lm.attribute(prompt, tokens)
    assert "\n" not in str(error.value)


def test_a_prompt_beyond_the_context_is_refused(lm: LM) -> None:
    with pytest.raises(ContextError):
        lm.attribute("word " * 400, [5])


def test_targets_and_prompts_that_were_not_asked_for(lm: LM) -> None:
    found = lm.attribute(PROMPT, "Paris")
    with pytest.raises(InputError, match="no target 'Rome' was asked for"):
        found.top(3, "Rome")
    with pytest.raises(InputError, match="no prompt 1"):
        found.table(1)


RECORDS = [
    LookRecord("a", "A?", "Q: What is true?\nA:", ("Paris", "true", "4"), (True, False, False)),
    LookRecord("b", "B?", "Q: What is false?\nA:", ("None", "false"), (False, True)),
    LookRecord("c", "C?", "Q: 2 + 2?\nA:", ("4", "Paris"), (True, False)),
    LookRecord("d", "D?", "Q: How many?\nA:", ("true", "true and false"), (True, False)),
]


def test_the_stage_sets_the_correct_choice_against_the_best_incorrect_one(lm: LM) -> None:
    records = one_token_records(lm, RECORDS)
    assert [record.id for record in records] == ["a", "b", "c"]
    tables = AttributionStage().run(lm, records)
    table, heads = tables["attribution"], tables["attribution_heads"]
    for record in records:
        mine = table[table["question_id"] == record.id]
        z = own_logits(lm.model, lm.encode(record.prompt), lm)
        first = {c: lm.encode(record.prompt + " " + c)[len(lm.encode(record.prompt))] for c in record.choices}
        best = max((c for c, right in zip(record.choices, record.correct, strict=True) if not right),
                   key=lambda c: float(z[first[c]]))  # fmt: skip
        right = next(c for c, right in zip(record.choices, record.correct, strict=True) if right)
        assert set(mine["incorrect_choice"]) == {best}
        assert set(mine["correct_choice"]) == {right}
        assert mine["contribution"].sum() == pytest.approx(float(z[first[right]] - z[first[best]]), abs=1e-4)
        # Heads split the attention of their block.
        split = heads[heads["question_id"] == record.id].groupby("block")["contribution"].sum()
        attention = mine[mine["kind"] == "attention"].set_index("block")["contribution"]
        np.testing.assert_allclose(split, attention.loc[split.index], atol=1e-4)
        assert len(split) == lm.n_layers
    single = attribute_record(lm, records[0])
    assert single.logits["target"].iloc[-1] == " − ".join(table[["correct_choice", "incorrect_choice"]].iloc[0])


def test_means_have_intervals_and_corrected_p_values() -> None:
    rng = np.random.default_rng(0)
    effect = {"embeddings": 0.0, "block 1 attention": 2.0, "block 1 mlp": -0.1}
    rows = [
        {"question_id": str(q), "component": name, "kind": "x", "block": 1, "contribution": mean + rng.normal()}
        for q in range(40)
        for name, mean in effect.items()
    ]
    table = attribution_means(pd.DataFrame(rows)).set_index("component")
    strong = table.loc["block 1 attention"]
    assert strong["n"] == 40
    assert strong["low"] < strong["contribution"] < strong["high"]
    assert strong["low"] > 1
    assert strong["p_holm"] < 0.01 < table["p_holm"]["block 1 mlp"]
    assert np.allclose(table["p_holm"], stats.holm(table["p"].to_numpy()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


def test_command_prints_the_largest_first_and_json_all(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "look",
        "What is true?",
        "-c",
        "Paris,true",
        "--correct",
        "true",
        "--by",
        "component",
        "--plain",
        "-m",
        folder,
    )
    code, out, err = call(capsys, *arguments, "--out", tmp_path)
    assert code == 0, err
    assert "true − Paris" in out
    assert "true *" in out
    assert "sum: the model's logit" in out
    lines = [line for line in out.splitlines() if line.startswith(("block", "embeddings")) and " head " not in line]
    gaps = [abs(float(line.split()[-3])) for line in lines]
    assert gaps == sorted(gaps, reverse=True)
    assert len(gaps) == 7
    assert {p.suffix for p in tmp_path.iterdir()} == {".parquet", ".svg", ".pdf", ".png"}
    [found] = done(capsys, *arguments)
    rows = [row for row in found["components"] if row["target"] == "true − Paris" and row["head"] == -1]
    assert sum(row["contribution"] for row in rows) == pytest.approx(found["logits"][-1]["logit"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["text", "--by", "component"], "needs choices"),
        (["text", "-c", "a,b", "--by", "token"], "use layer or component"),
        (["text", "-c", "a", "--by", "component"], "give at least two"),
        (["text", "-c", "a,b", "--by", "component", "--lens", "raw"], "--lens says how layers are read"),
    ],
)
def test_command_refuses_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, _, err = call(capsys, "look", *arguments, "-m", "no-such-model")
    assert code == 2
    assert expected in err
