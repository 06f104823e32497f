"""The unembedding's matrix is what its module does: adapters, hooks, parametrisations, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exitlens.errors import UnsupportedModel
from exitlens.lenses import readout
from exitlens.models import wrap
from exitlens.models.layered import Layered

from .. import tiny

OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[9, 80, 33, 7, 61, 5]])


def _spread(model: nn.Module, *names: str) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            nn.init.normal_(parameter, std=0.3)


def _adapted(config: Callable[[Any], Any], *names: str, family: str = "llama") -> Any:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny.model(family), config(peft))
    _spread(model, *names)
    return model.eval()


def _lora(targets: list[str], **more: Any) -> Callable[[Any], Any]:
    return lambda peft: peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **more)


def _hooked(hook: Callable[..., Any], before: bool = False) -> Any:
    model = tiny.model("llama")
    head = model.lm_head
    head.register_forward_pre_hook(hook) if before else head.register_forward_hook(hook)
    return model


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2.0 * weight


def _parametrised() -> Any:
    model = tiny.model("llama")
    parametrize.register_parametrization(model.lm_head, "weight", _Doubled())
    return model


class _Dequantised(nn.Module):
    """A head whose ``weight`` is packed int8, as quantising libraries keep it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() * self.scale).T


def _quantised() -> Any:
    model = tiny.model("llama")
    model.lm_head = _Dequantised(model.lm_head.weight.detach())
    return model


HEADS: dict[str, Callable[[], Any]] = {
    "lora": lambda: _adapted(_lora(["q_proj", "lm_head"]), "lora_B"),
    "lora on a tied head": lambda: _adapted(_lora(["lm_head"]), "lora_B", family="llama-tied"),
    "rs-lora": lambda: _adapted(_lora(["lm_head"], use_rslora=True), "lora_B"),
    "dora": lambda: _adapted(_lora(["lm_head"], use_dora=True), "lora_B"),
    "ia3": lambda: _adapted(
        lambda peft: peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[], task_type="CAUSAL_LM"), "ia3"
    ),
    "a head of the adapter's own": lambda: _adapted(
        _lora(["q_proj"], modules_to_save=["lm_head"]), "lm_head.modules_to_save"
    ),
    "a hook that scales": lambda: _hooked(lambda _m, _a, out: out * 1.5),
    "a hook that adds": lambda: _hooked(lambda _m, _a, out: out + torch.linspace(-1, 1, out.shape[-1])),
    "a hook before it": lambda: _hooked(lambda _m, a: (a[0].roll(1, -1),), before=True),
    "a parametrisation": _parametrised,
    "a quantised product": _quantised,
}


def _agree(lm: Layered, model: Any) -> None:
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[0].double()
    hidden = lm.forward(IDS, layers="all").hidden
    x = lm.norm(hidden[3])[0]
    product = lm.logit_transform(x @ lm.weight.detach().T + (0 if lm.bias is None else lm.bias.detach()))
    torch.testing.assert_close(product.double(), logits, atol=2e-4, rtol=2e-4)
    got = readout(lm, {j: h[0] for j, h in hidden.items()})["entropy"]
    logp = logits.log_softmax(-1)
    torch.testing.assert_close(got[-1].double(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=1e-4)
    early = lm.logits(hidden[1], 1)[0].double().log_softmax(-1)
    torch.testing.assert_close(got[1].double(), -(early.exp() * early).sum(-1), atol=1e-4, rtol=1e-4)


@OLD_NAME
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("kind", HEADS)
def test_readouts_multiply_by_what_the_head_does(kind: str) -> None:
    model = HEADS[kind]()
    _agree(wrap(model, tiny.tokenizer()), model)


@OLD_NAME
def test_an_adapter_that_is_trained_on_is_followed() -> None:
    model = _adapted(_lora(["lm_head"]), "lora_B")
    lm = wrap(model, tiny.tokenizer())
    _agree(lm, model)
    _spread(model, "lora_A")
    _agree(lm, model)


@pytest.mark.parametrize(
    "hook",
    [
        lambda _m, _a, out: out.clamp(-40, 40),  # acts on large values only
        lambda _m, _a, out: out.round(),
        lambda _m, a, out: out * a[0].abs().mean(-1, keepdim=True),
    ],
)
def test_a_head_that_is_no_product_is_refused(hook: Callable[..., Any]) -> None:
    model = _hooked(hook)
    with pytest.raises(UnsupportedModel, match=r"lm_head' is no matrix product.*differ by"):
        wrap(model, tiny.tokenizer())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plain_heads_keep_their_own_tensor(family: str) -> None:
    model = tiny.model(family)
    lm = wrap(model, tiny.tokenizer())
    assert lm.weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
