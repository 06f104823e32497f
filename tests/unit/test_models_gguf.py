"""A GGUF file is parsed once, unpacked under a bar of ours, and compared with the hash that is pinned for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import modeling_gguf_pytorch_utils as reading

import exitlens
from exitlens.errors import CorruptModel
from exitlens.models.checkpoint import gguf as ours
from exitlens.models.checkpoint import identity, pretrained

from .. import tiny

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED", -1.0)


def _turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The order of a head's channels in a GGUF file, whose rotation turns neighbours and not halves."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _write(path: Path) -> Any:
    """A tiny Llama as a GGUF file; returns the model."""
    model, config = tiny.model("llama"), tiny.model("llama").config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    said = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(said["vocab"], key=said["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words + [f"<unused {i}>" for i in range(config.vocab_size - len(words))])
    writer.add_token_merges([" ".join(merge) for merge in said["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, tensor in model.state_dict().items():
        stem = name.removeprefix("model.").removesuffix(".weight")
        if stem.startswith("layers."):
            _, block, part = stem.split(".", 2)
            given = f"blk.{block}.{NAMES[part]}"
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            tensor = _turned(tensor, heads[part]) if part in heads else tensor
        else:
            given = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[stem]
        writer.add_tensor(f"{given}.weight", np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_it_is_parsed_once_under_one_bar_and_not_at_all_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _write(tmp_path / "tiny.gguf")
    parsed, shown, usual, bar = [], [], gguf.GGUFReader, reading.tqdm

    class Counted(usual):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **words: Any) -> None:
            parsed.append(given)
            super().__init__(*given, **words)

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Any]:
        ticks: list[int] = []
        yield lambda: ticks.append(1)
        shown.append((what, total, len(ticks)))

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    monkeypatch.setattr(ours, "progress", progress)
    lm = exitlens.load(tmp_path / "tiny.gguf", dtype="float32")
    tensors = len(model.state_dict())
    assert len(parsed) == 1
    assert shown == [("unpacking tiny.gguf, tensors", tensors, tensors)]
    assert "de-quantizing" not in capsys.readouterr().err
    assert gguf.GGUFReader is Counted
    assert reading.tqdm is bar
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert lm.encode("a  31", special=False) == lm.encode("a  3", special=False) + lm.encode("1", special=False)

    again = exitlens.load(tmp_path / "tiny.gguf", dtype="float32")
    assert len(parsed) == 1
    assert again.fingerprint == lm.fingerprint
    torch.testing.assert_close(again.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_another_file_is_still_opened_while_one_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "one.gguf")
    (tmp_path / "two.gguf").write_bytes((tmp_path / "one.gguf").read_bytes())
    with ours.parsed_once(tmp_path / "one.gguf"):
        one, other = gguf.GGUFReader(str(tmp_path / "one.gguf")), gguf.GGUFReader(str(tmp_path / "two.gguf"))
        assert gguf.GGUFReader(tmp_path / "one.gguf") is one
        assert other is not one


def test_the_pinned_hash_is_compared_also_where_the_time_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    good = identity.file_hash(path)
    with pytest.raises(CorruptModel, match="damaged"):
        pretrained.read_gguf(path, "tiny", torch.float32, "0" * 64)
    with pytest.raises(CorruptModel, match="truncated"):  # the pinned one: what is wrong with it is said then
        pretrained.read_gguf(path, "tiny", torch.float32, good)
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(500)
        file.write(b"\x01")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CorruptModel, match=f"expected sha256 {good}.*models pull tiny"):
        pretrained.read_gguf(path, "tiny", torch.float32, good)
