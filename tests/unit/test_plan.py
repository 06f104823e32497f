"""`exitlens plan` against what it predicts: FLOPs that torch counts, parameters that models have, bytes on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.commands import call, done
from torch.utils.flop_counter import FlopCounterMode

from exitlens import models
from exitlens.compute.cards import CARDS, card_named
from exitlens.errors import InputError, ModelError
from exitlens.models.checkpoint.shape import SHAPES, shape_of, stated_shape
from exitlens.parsing import counted
from exitlens.studies.corpus.sizing import Speed, card_speed, flops_of_pass, size_reading

# Parameters as the models' pages state them.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "1B": 1_235_814_400,
    "3B": 3_212_749_824,
    "7B": 6_738_415_616,
    "8B": 8_030_261_248,
    "13B": 13_015_864_320,
    "70B": 70_553_706_496,
    "405B": 405_853_388_800,
}


@pytest.fixture(scope="module")
def config_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    tiny.FAMILIES["llama"]().save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "architectures": ["LlamaForCausalLM"]})
    )
    return folder


def test_the_issue_example_a_billion_tokens_of_all_layers_of_a_70b_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = done(capsys, "plan", "--params", "70B", "--tokens", "1e9", "--layers", "all", "--card", "H100")
    assert f"{found['flops']['pass']:.1e}" == "1.4e+20"
    assert f"{found['flops']['readout']:.1e}" == "1.7e+20"
    assert f"{found['storage_bytes']['states'] / 1e15:.1f}" == "1.3"
    assert 0.5e12 < found["storage_bytes"]["statistics"] < 1.1e12  # two floats a row; 4 bytes each would be 0.65e12
    assert found["cards_of_a_copy"] == 2  # 141 GB of weights
    assert found["memory_bytes"]["weights"] == pytest.approx(70_553_706_496)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_parameters_that_the_models_have(name: str) -> None:
    assert SHAPES[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "gemma2", "gpt2", "opt", "phi", "falcon"])
def test_shapes_of_configurations_count_what_the_model_holds(family: str, tmp_path: Path) -> None:
    tiny.save(tmp_path, family)
    model = tiny.model(family)
    lm = models.wrap(model, tiny.tokenizer())
    shape = shape_of(str(tmp_path))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.block_weights == sum(p.numel() for b in lm.blocks for p in b.parameters() if p.dim() > 1)
    assert (shape.blocks, shape.vocab, shape.head) == (lm.n_layers, *lm.weight.shape)


def test_experts_count_as_often_as_a_token_passes_them(tmp_path: Path) -> None:
    import transformers as tf

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = tf.MixtralConfig(
        **sizes, num_key_value_heads=2, vocab_size=320, num_local_experts=4, num_experts_per_tok=2
    )
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path)
    attention, router, expert = 2 * 32 * 32 + 2 * 32 * 16, 4 * 32, 3 * 32 * 48
    assert shape_of(str(tmp_path)).block_weights == 2 * (attention + router + 2 * expert)


@pytest.mark.model
def test_a_gguf_header_tells_the_same_shape(builtin_path: Path) -> None:
    found = dataclasses.asdict(shape_of(str(builtin_path))) | {"name": "smollm2-135m"}
    assert found == dataclasses.asdict(SHAPES["smollm2-135m"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_flops_are_those_that_torch_counts(family: str, tmp_path: Path) -> None:
    shape = shape_of(str(tiny.save(tmp_path, family)))
    model = tiny.model(family)
    model.set_attn_implementation("eager")  # a fused attention's products are not counted on a CPU
    tokens = 24
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(tokens)[None])
    # torch counts every pair of positions, those that the mask leaves out too, and one unembedding.
    sizing = size_reading(shape, tokens, (shape.blocks,), ("entropy",), length=2 * tokens - 1)
    assert sizing.pass_flops == tokens * flops_of_pass(shape, tokens)
    assert counter.get_total_flops() == sizing.pass_flops + sizing.readout_flops


@pytest.mark.parametrize("stats", ["entropy,kl", "entropy,top_k"])
def test_statistics_take_the_bytes_that_a_reading_leaves_on_disk(
    stats: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tmp_path / "m")
    text = tmp_path / "t.txt"
    torch.manual_seed(0)
    words = ["whisker", "true", "France", "seven", "and", "is", "Paris"]
    text.write_text(
        "\n".join(" ".join(words[i] for i in torch.randint(7, (40,)).tolist()) for _ in range(40)), encoding="utf-8"
    )
    out = tmp_path / "out"
    read = done(capsys, "read", "--text", text, "--out", out, "--model", model, "--stats", stats)
    on_disk = sum(f.stat().st_size for f in (out / "shards").glob("*.parquet"))
    planned = done(
        capsys, "plan", "--model", model, "--tokens", str(read["tokens"]), "--stats", stats, "--card", "L4",
        "--length", "200",
    )  # fmt: skip
    # The plan has the largest sizes that were measured; the words and layers of a tiny model repeat more.
    assert on_disk <= planned["storage_bytes"]["statistics"] <= 1.6 * on_disk


def test_states_take_the_bytes_that_a_store_leaves_on_disk(tmp_path: Path) -> None:
    from exitlens.storage.atomic import write_tensors

    shape = shape_of(str(tiny.save(tmp_path / "m")))
    lm = models.load(str(tmp_path / "m"), dtype="float32")
    hidden = lm.forward(torch.arange(128)[None] % lm.vocab_size, layers="all").hidden
    write_tensors(tmp_path / "s.safetensors", {f"layer.{j:02d}": h[0] for j, h in hidden.items()})
    planned = size_reading(shape, 128, range(lm.n_layers + 1), ("entropy",), length=128, itemsize=4).states_bytes
    assert planned == pytest.approx((tmp_path / "s.safetensors").stat().st_size, rel=0.02)


def test_memory_of_weights_and_cache_is_that_of_the_tensors(tmp_path: Path) -> None:
    shape = shape_of(str(tiny.save(tmp_path)))
    lm = models.load(str(tmp_path), dtype="float32")
    memory = size_reading(shape, 1, (0,), ("entropy",), length=64, batch_tokens=64, itemsize=4).memory
    assert memory.weights == sum(p.numel() * 4 for p in lm.model.parameters())
    cache = lm.forward(torch.arange(64)[None], use_cache=True).cache
    assert memory.cache == sum(part.keys.nbytes + part.values.nbytes for part in cache.layers)
    fitted = size_reading(shape, 1, (0, 1, shape.blocks), ("entropy",), length=64, lens="jacobian").memory
    assert fitted.lens - size_reading(shape, 1, (0, 1, shape.blocks), ("entropy",), length=64).memory.lens == (
        2 * 4 * shape.width**2
    )


def test_hours_are_products_over_speed_or_the_reading_of_weights_where_that_takes_longer() -> None:
    shape = stated_shape("8B")
    sizing = size_reading(shape, 10**9, range(33), ("entropy",))
    speed = Speed(1e15, 2e15, per_logit=1e-12)
    seconds = sizing.pass_flops / 1e15 + sizing.readout_flops / 2e15 + 1e9 * 33 * 128256 * 1e-12
    assert speed.hours(shape, sizing, batch_tokens=512, itemsize=2) == pytest.approx(seconds / 3600)
    assert speed.hours(shape, sizing, batch_tokens=512, itemsize=2, cards=4) == pytest.approx(seconds / 3600 / 4)
    slow = Speed(1e15, 2e15, bandwidth=1e9)
    assert slow.hours(shape, sizing, batch_tokens=1, itemsize=2) > 1e9 * 16 / 3600
    assert card_speed(CARDS["H100"], 0.5).passing == 0.5 * 989e12


def test_this_machine_is_timed_on_a_small_random_model(config_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = done(capsys, "plan", "--model", config_only, "--tokens", "1000", "--length", "64")
    assert found["card"] is None
    assert found["cards"] == 1
    speed = found["speed"]
    assert speed["source"] == "measured here"
    assert min(speed["pass_flops_per_second"], speed["readout_flops_per_second"]) > 1e6
    assert found["hours"] > 0
    assert "random" not in json.dumps(found)


def test_more_cards_share_the_tokens_and_cards_without_a_copy_stay_idle(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ("plan", "--params", "70b", "--tokens", "1B", "--card", "h100")
    two, four, five = (done(capsys, *plan, "--cards", n) for n in ("2", "4", "5"))
    assert four["hours"] == pytest.approx(two["hours"] / 2)
    assert (five["cards"], five["hours"]) == (4, four["hours"])


def test_the_table_names_card_source_and_utilisation(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "plan", "--params", "8B", "--tokens", "1e6", "--card", "A100", "--utilisation", "0.5")
    assert code == 0
    for part in ("Reading 33 layers of 1e+06 tokens", "FLOP", "data sheet", "50% of the peak", "entropy, kl"):
        assert part in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "many"], "--tokens 'many' is no whole number"),
        (["--tokens", "0"], "'0' is no whole number"),
        (["--tokens", "1.5"], "'1.5' is no whole number"),
        (["--tokens", "nan"], "'nan' is no whole number"),
        (["--tokens", "1e99"], "'1e99' is no whole number"),
        (["--tokens", "-5"], "-5"),
        (["--tokens", "5", "--params", "33B"], "no shape of '33B' parameters: use 1B, 3B"),
        (["--tokens", "5", "--params", "8B", "--model", "7B"], "give one"),
        (["--tokens", "5", "--model", "smollm"], "did you mean 'smollm2-135m'?"),
        (["--tokens", "5", "--model", "/nosuch/folder"], "no such file or folder"),
        (["--tokens", "5", "--card", "H1000"], "did you mean H100?"),
        (["--tokens", "5", "--cards", "3"], "--cards 3 says nothing of this machine"),
        (["--tokens", "5", "--utilisation", "0.3"], "--utilisation 0.3 says nothing"),
        (["--tokens", "5", "--card", "L4", "--utilisation", "2"], "utilisation 2 is out of range"),
        (["--tokens", "5", "--card", "L4", "--utilisation", "nan"], "utilisation nan is out of range"),
        (["--tokens", "5", "--card", "L4", "--dtype", "float32"], "the cards' peaks are those of bf16"),
        (["--tokens", "5", "--card", "L4", "--device", "cpu"], "two places"),
        (["--tokens", "5", "--card", "H100", "--params", "70B", "--cards", "1"], "needs 2 H100 cards"),
        (["--tokens", "5", "--card", "L4", "--params", "70B", "--batch-tokens", "9999999"], "does not fit L4 cards"),
        (["--tokens", "5", "--params", "7B", "--card", "L4", "--length", "5000"], "over the context of 7B (4096)"),
        (["--tokens", "5", "--params", "7B", "--card", "L4", "--layers", "40"], "layer 40 is out of range"),
        (["--tokens", "5", "--card", "L4", "--stats", "choices"], "choices"),
        (["--tokens", "5", "--card", "L4", "--lens", "own.safetensors"], "has no known size"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "plan", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


def test_folders_and_files_without_a_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError):
        shape_of(str(tmp_path))
    for name, raw in (("x.gguf", b"GGUF" + b"\0" * 40), ("y.gguf", b"no"), ("z.bin", b"x")):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ModelError):
            shape_of(str(tmp_path / name))


def test_counts_are_written_as_people_write_them() -> None:
    assert [counted(text, "n") for text in ("1000", "1_000", "1e9", "200M", "1.5B", "2T", " 3k ")] == [
        1000, 1000, 10**9, 2 * 10**8, 1_500_000_000, 2 * 10**12, 3000,
    ]  # fmt: skip
    for text in ("", "B", "1e", "0x10", "1,000", "٣", "1e19", "9" * 40, "inf"):
        with pytest.raises(InputError, match="no whole number"):
            counted(text, "n")
    assert card_named("rtx-4090").memory == 24e9
