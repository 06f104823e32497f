"""Models quantised in memory are read as they are: their own logits, and nothing of them changed.

The libraries are no dependency of the project: a test runs where its library is installed (`pip install bitsandbytes
torchao optimum-quanto`), and docs/families.md says where that was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import exitlens
from exitlens.lenses import readout
from exitlens.models import wrap

from .. import tiny

# Not ours to mend: what the quantising libraries themselves warn of while they load.
pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = ["bitsandbytes 8", "bitsandbytes 4", "torchao 8", "torchao 4", "quanto 8"]


def _settings(kind: str) -> Any:
    library, bits = kind.split()
    if library == "bitsandbytes":
        pytest.importorskip("bitsandbytes", reason="optional: quantised models are read where their library is")
        if bits == "8":
            return tf.BitsAndBytesConfig(load_in_8bit=True)
        return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4")
    if library == "quanto":
        pytest.importorskip("optimum.quanto", reason="optional: quantised models are read where their library is")
        return tf.QuantoConfig(weights="int8")
    kinds = pytest.importorskip("torchao.quantization", reason="optional: quantised models are read where it is")
    return tf.TorchAoConfig(kinds.Int8WeightOnlyConfig() if bits == "8" else kinds.IntxWeightOnlyConfig(torch.int4))


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_models_are_read_as_they_are(kind: str, tmp_path: Path) -> None:
    settings = _settings(kind)
    torch.manual_seed(0)  # of the weights that are saved below
    config = tf.LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, device_map="cpu", dtype=torch.float32
    ).eval()
    projection = model.model.layers[0].self_attn.q_proj
    assert type(projection) is not torch.nn.Linear or type(projection.weight) is not torch.nn.Parameter
    ids = torch.arange(12)[None]
    with torch.no_grad():
        model(ids)  # bitsandbytes lays 4-bit weights out at the first pass
        want = model(ids).logits
    lm = wrap(model, tiny.tokenizer())
    hidden = lm.forward(ids, layers="all").hidden
    assert torch.allclose(lm.logits(hidden[3], 3), want, atol=1e-5)
    logp = want[0].double().log_softmax(-1)
    entropy = readout(lm, {j: h[0] for j, h in hidden.items()})["entropy"][-1]
    assert torch.allclose(entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-5)
    with torch.no_grad():
        ours = exitlens.generate(lm, [[1, 2, 3]], max_new_tokens=4)[0]
        theirs = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)[0, 3:]
        assert list(ours.token_ids) == theirs.tolist()
        assert torch.equal(model(ids).logits, want)
