"""What the layered view promises, on the families that are looked at closely, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from exitlens.errors import InputError, LayerError, ParityError, UnsupportedModel
from exitlens.models import checks, wrap
from exitlens.models.layered import Layered
from exitlens.models.replay import Replay

from .. import tiny
from . import census

# Sliding windows (8 here) count positions, so a gap moves tokens out of them.
WINDOWED = {"mistral-sliding", "gemma3"}
# PEFT asks transformers for a property under its old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_promise_of_the_layered_view(family: str) -> None:
    model = tiny.model(family)
    before = census.fingerprint(model)
    lm = wrap(model, tiny.tokenizer())
    out = census.Outcome(family, "right")
    hidden = census.check(lm, model, out)  # batch, padding, cache in pieces, gaps, against hooks of its own
    assert census.fingerprint(model) == before
    census._own_states(lm, model, hidden, out)
    assert out.own_states
    assert lm.cache_kind == "own"
    assert lm.pads_exactly
    assert lm.gap_exact == (family not in WINDOWED)
    assert lm.parity.max_abs <= lm.parity.tolerance < 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "opt", "gpt2"])
def test_scales_caps_and_projections_are_found(family: str) -> None:
    lm = wrap(tiny.model(family), tiny.tokenizer())
    assert (lm.logit_transform.scale, lm.logit_transform.cap) == {
        "gemma2": (1.0, 2.0),
        "cohere": (0.25, None),
        "granite": (0.25, None),
    }.get(family, (1.0, None))
    assert lm.weight.shape[1] == (16 if family == "opt" else 32)


def test_half_precision_is_read_within_its_own_bound() -> None:
    lm = wrap(tiny.model("llama", dtype=torch.bfloat16), tiny.tokenizer())
    assert lm.parity.max_abs <= lm.parity.tolerance
    assert lm.forward(torch.tensor([[1, 2, 3]]), layers=(2,)).hidden[2].dtype == torch.bfloat16


def test_wrap_leaves_the_model_exactly_as_it_was() -> None:
    model = tiny.model("gemma2")
    model.train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, generation = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.generation_config.to_dict())
    before = census.fingerprint(model)
    lm = wrap(model, tiny.tokenizer())
    lm.logits(lm.forward(torch.tensor([[5, 6, 7]]), layers="all").hidden[1], 1)
    assert census.fingerprint(model) == before
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == generation
    after = model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in weights.items())
    assert all(p.grad is None for p in model.parameters())


# ---- models handed over in wrappers


def _agrees(lm: Layered, model: Any) -> None:
    ids = torch.tensor([[9, 80, 33, 7, 61]])
    with torch.no_grad():
        want = model(input_ids=ids).logits
    hidden = lm.forward(ids, layers=(lm.n_layers,)).hidden[lm.n_layers]
    torch.testing.assert_close(lm.logits(hidden, lm.n_layers), want, atol=1e-5, rtol=1e-5)


def test_compiled_models() -> None:
    model = tiny.model("llama")
    wrapped = torch.compile(model, backend="eager")
    _agrees(wrap(wrapped, tiny.tokenizer()), model)
    model.compile(backend="eager")
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))  # compiled before any hook is there
    _agrees(wrap(model, tiny.tokenizer()), model)


@OLD_NAME
def test_lora_adapters_are_part_of_what_is_read() -> None:
    peft = pytest.importorskip("peft")
    model = tiny.model("llama")
    bare = wrap(tiny.model("llama"), tiny.tokenizer())
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.eval()
    lm = wrap(adapted, tiny.tokenizer())
    _agrees(lm, adapted)
    ids = torch.tensor([[9, 80, 33]])
    assert not torch.allclose(
        lm.forward(ids, layers=(3,)).hidden[3], bare.forward(ids, layers=(3,)).hidden[3], atol=1e-2
    )
    assert type(adapted).__name__ == "PeftModelForCausalLM"


@OLD_NAME
def test_prompt_tuning_acts_outside_the_model_and_is_refused_with_the_difference() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(tiny.model("llama"), config).eval()
    with pytest.raises((ParityError, UnsupportedModel)):
        wrap(tuned, tiny.tokenizer())


def test_dispatched_by_accelerate_and_offloaded() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny.model("llama")
    places = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    spread = accelerate.dispatch_model(model, {**places, "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    assert hasattr(spread.lm_head, "_hf_hook")
    _agrees(wrap(spread, tiny.tokenizer()), spread)
    away = accelerate.cpu_offload(tiny.model("llama"), torch.device("cpu"))
    with pytest.raises(UnsupportedModel, match="offloaded"):
        wrap(away, tiny.tokenizer())


# ---- models that do something else


class _InPlaceLayer(LlamaDecoderLayer):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return hidden_states.copy_(super().forward(hidden_states.clone(), **kwargs))


class _MixingNorm(nn.Module):
    """A norm that looks at other positions: fine on whole rows, wrong on loose positions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, h: Tensor) -> Tensor:
        return self.inner(h) + 0.01 * h.cumsum(1)


class _Doctored(tf.LlamaForCausalLM):
    """Logits that are bent in a way that is neither a scale nor a soft cap."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + 0.1 * out.logits.sin()
        return out


class _Skipping(tf.LlamaForCausalLM):
    """The embeddings are added again before the unembedding, so the last block does not decide alone."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        h = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return tf.modeling_outputs.CausalLMOutput(logits=self.lm_head(h + self.model.embed_tokens(input_ids)))


def test_blocks_that_write_over_their_input_are_recorded_as_hooks_saw_them() -> None:
    plain, model = tiny.model("llama"), tiny.model("llama")
    for layer in model.model.layers:
        layer.__class__ = _InPlaceLayer
    ids = torch.tensor([[9, 80, 33, 7]])
    want = wrap(plain, tiny.tokenizer()).forward(ids, layers="all").hidden
    got = wrap(model, tiny.tokenizer()).forward(ids, layers="all").hidden
    for layer, h in want.items():
        torch.testing.assert_close(got[layer], h, atol=1e-6, rtol=1e-6)
    assert not torch.equal(got[0], got[1])


def test_a_tail_that_mixes_positions_is_refused_with_the_measured_difference() -> None:
    model = tiny.model("llama")
    model.model.norm = _MixingNorm(model.model.norm)
    with pytest.raises(ParityError, match=r"differs from the model's logits by \d.*\(allowed"):
        wrap(model, tiny.tokenizer())


@pytest.mark.parametrize(
    ("kind", "message"),
    [(_Doctored, "turned into logits in a way not known"), (_Skipping, "no path from the last block's output")],
)
def test_logits_that_are_made_another_way_are_refused(kind: type[Any], message: str) -> None:
    model = tiny.model("llama")
    model.__class__ = kind
    with pytest.raises(UnsupportedModel, match=message):
        wrap(model, tiny.tokenizer())


def test_what_is_no_causal_lm_is_refused_with_what_was_looked_for() -> None:
    with pytest.raises(UnsupportedModel, match="get_input_embeddings"):
        wrap(nn.Linear(3, 3), tiny.tokenizer())
    with pytest.raises(UnsupportedModel, match=r"no logits|LlamaModel"):
        wrap(tiny.model("llama").model, tiny.tokenizer())
    bert = tf.BertConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        is_decoder=False,
    )
    with pytest.raises(UnsupportedModel, match=r"later tokens.*is_decoder=True"):
        wrap(tf.BertLMHeadModel(bert).eval(), tiny.tokenizer())
    spoilt = tiny.model("llama")
    nn.init.constant_(spoilt.model.layers[1].mlp.down_proj.weight, float("nan"))
    with pytest.raises((ParityError, UnsupportedModel)):
        wrap(spoilt, tiny.tokenizer())


# ---- use


def test_layers_and_lenses_out_of_range() -> None:
    lm = wrap(tiny.model("opt"), tiny.tokenizer())
    ids = torch.tensor([[1, 2]])
    with pytest.raises(LayerError, match="layer 4 is out of range"):
        lm.forward(ids, layers=(4,))
    h = lm.forward(ids, layers=(1,)).hidden[1]
    with pytest.raises(LayerError):
        lm.logits(h, -1)
    with pytest.raises(InputError, match="lens 'raw'"):
        lm.logits(h, 1, lens="raw")  # width 32, unembedding 16
    assert lm.logits(h[0, 0], 1).shape == (320,)


def test_a_model_without_a_cache_runs_again_and_gives_the_same() -> None:
    lm = wrap(tiny.model("llama"), tiny.tokenizer())
    lm._checked[checks.cache_kind] = "runs again"
    cache = lm.new_cache()
    assert isinstance(cache, Replay)
    ids = torch.tensor([[9, 80, 33, 7, 61, 12], [4, 5, 6, 7, 8, 10]])
    want = lm.forward(ids, layers=(3,)).hidden[3]
    first = lm.forward(ids[:1, :3], layers=(3,), cache=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    step = lm.forward(ids[:1, 3:5], torch.ones(1, 5, dtype=torch.long), layers=(3,), cache=cache)
    last = lm.forward(ids[:1, 5:], layers=(3,), positions="last", cache=cache)
    got = torch.cat([first.hidden[3], step.hidden[3], last.hidden[3]], 1)
    torch.testing.assert_close(got, want[:1], atol=1e-5, rtol=1e-5)
