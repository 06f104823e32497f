"""A tiny random model of every entry of transformers' causal-LM mapping. Nothing is fetched."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 199
LAYERS = 3

# Field name → tiny value, tried on every configuration; the numbers fit one another (heads * head width = width).
SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "embedding_size"], 32),
    **dict.fromkeys(["input_embedding_size", "output_embedding_size", "attention_hidden_size", "lru_width"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "n_inner"], 48),
    **dict.fromkeys(["dff", "dim_ff", "ffn_hidden_size", "feed_forward_size", "expert_ffn_hidden_size"], 48),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"], 24),
    **dict.fromkeys(["shared_intermediate_size", "moe_shared_expert_intermediate_size", "dense_intermediate_size"], 24),
    **dict.fromkeys(["shared_experts_intermediate_size", "router_hidden_size", "laurel_rank", "gated_norm_rank"], 16),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks"], LAYERS),
    **dict.fromkeys(["encoder_layers", "num_decoder_layers", "num_encoder_layers", "num_layers_per_stack"], LAYERS),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "num_kv_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"], 4),
    **dict.fromkeys(["num_decoder_attention_heads", "num_encoder_attention_heads"], 4),
    **dict.fromkeys(["linear_num_heads", "mamba_num_heads", "linear_num_key_heads", "linear_num_value_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads", "num_global_key_value_heads"], 2),
    **dict.fromkeys(["head_dim", "d_head", "attention_head_size", "dim_head", "swa_head_dim", "kv_channels"], 8),
    **dict.fromkeys(["linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "global_head_dim"], 8),
    **dict.fromkeys(["qk_nope_head_dim", "v_head_dim", "index_head_dim", "qk_rope_head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "o_lora_rank", "hc_lowrank", "d_rel"], 16),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"], 2),
    **dict.fromkeys(["n_group", "topk_group", "num_expert_group", "n_groups", "mamba_n_groups", "mamba_ngroups"], 1),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"], 1),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "unpadded_vocab_size"], VOCAB),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"], 128),
    **dict.fromkeys(["max_target_positions", "max_source_positions", "seq_length", "model_max_length"], 128),
    **dict.fromkeys(["sliding_window", "sliding_window_size", "attention_window_size", "local_attention"], 6),
    **dict.fromkeys(["window_size", "attention_chunk_size", "index_topk"], 6),
    **dict.fromkeys(["chunk_size", "mamba_chunk_size"], 8),
    **dict.fromkeys(["state_size", "mamba_d_state", "ssm_state_size", "time_step_rank", "mamba_dt_rank"], 8),
    "hidden_size_per_layer_input": 8,
    "hidden_size_global": 32,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "index_n_heads": 32,  # each score is a sum over heads of what is above 0: with few, exact ties at 0 are common
    "encoder_hash_byte_group_vocab": 500,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "zero_expert_num": 2,
    "word_embed_proj_dim": 16,
}

# Scales that are 1 (or otherwise invisible) by default and would hide a mistake.
VISIBLE: dict[str, float] = {
    **dict.fromkeys(["logit_scale"], 0.25),
    **dict.fromkeys(["logits_scaling", "logits_mup_width_multiplier"], 4.0),
    **dict.fromkeys(["embedding_multiplier"], 3.0),
    **dict.fromkeys(["residual_multiplier", "lm_head_multiplier"], 0.375),
    **dict.fromkeys(["final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"], 3.0),
    **dict.fromkeys(["attn_logit_softcapping"], 5.0),
}

# What the two tables above get wrong, by model type.
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_DRAFT = {
    "model_type": "gemma4_text",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "num_kv_shared_layers": LAYERS,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "global_head_dim": 8,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense", "dense", "sparse"],
        "adapter_in_dim": 32,
        "adapter_out_dim": 32,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.5, 0.0, 0.0], "laurel_rank": 8},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention", "mamba"]},
    "hrm_text": {"num_layers_per_stack": ...},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "index_n_heads": 2,
    },
    "ministral": {"head_dim": 8},
    "nemotron": {
        "head_dim": 8,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 32,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "gemma4_assistant": {"text_config": _DRAFT, "backbone_hidden_size": 32},
    "gemma4_unified_assistant": {"text_config": _DRAFT, "backbone_hidden_size": 32},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 16],
        "attn_layers": ["local", "lsh", "local"],
        "num_buckets": 4,
        "num_hidden_layers": ...,
    },
    "xlnet": {"attn_type": "uni"},
    "zaya": {"num_experts_per_tok": 1},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 16},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba"], "num_mem_blocks": 1},
}


def entries() -> list[str]:
    """Every model type of the mapping."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def class_name(entry: str) -> str:
    """The class that transformers builds for ``entry``."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[entry]
    return name if isinstance(name, str) else name[0]


def _fields(config_class: Any, default: Any) -> dict[str, Any]:
    known = set(getattr(config_class, "__dataclass_fields__", {})) | set(getattr(config_class, "attribute_map", {}))
    return {k: v for k, v in default.to_dict().items() if not known or k in known}


def thresholds_of(entry: str) -> list[dict[str, Any]]:
    """Changes that give ``entry`` thresholds that its defaults lack: windows in use, tables that change with length."""
    given = tiny_config(entry).to_dict()
    found: list[dict[str, Any]] = []
    if given.get("use_sliding_window") is False:
        found.append({"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "layer_types": ...})
    rope = given.get("rope_parameters")
    if not isinstance(rope, dict):
        return found
    short = {"original_max_position_embeddings": 12}
    late = {"rope_type": "yarn", "factor": 4.0, **short}
    if all(isinstance(part, dict) for part in rope.values()):  # a table a kind of layer
        found.append({"rope_parameters": {kind: {**part, **late} for kind, part in rope.items()}})
    elif rope.get("rope_type") in ("yarn", "llama3"):
        more = {"llama_4_scaling_beta": 0.5} if "llama_4_scaling_beta" in rope else {}
        found.append({"rope_parameters": {**rope, **more, **short}})
    elif rope.get("rope_type") == "default":
        found += [
            {"rope_parameters": {**rope, **late}},
            {"rope_parameters": {**rope, "rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
        ]
        if isinstance(given.get("hidden_size"), int) and isinstance(given.get("num_attention_heads"), int):
            head = given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"]
            width = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
            factors = {"short_factor": [1.0] * width, "long_factor": [4.0 + i for i in range(width)], "factor": 4.0}
            found.append({"rope_parameters": {**rope, "rope_type": "longrope", **factors, **short}, **short})
    return found


def tiny_config(
    entry: str, config_class: Any | None = None, depth: int = 0, changes: Mapping[str, Any] | None = None
) -> Any:
    """The configuration of ``entry``, every size made small and every scale visible; ``changes`` go on top."""
    config_class = config_class or CONFIG_MAPPING[entry]
    extra = OVERRIDES.get(getattr(config_class, "model_type", entry) if depth else entry, {})
    try:
        default = config_class()
        values = _fields(config_class, default)
    except (ValueError, TypeError, StrictDataclassError):  # no defaults of its own
        default, values = None, dict.fromkeys(config_class.__dataclass_fields__)
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, bool):
            continue
        if name in VISIBLE and value is not None:
            chosen[name] = VISIBLE[name]
        elif name in SIZES and (value is not None or default is None):
            chosen[name] = min(SIZES[name], value) if isinstance(value, int) and value > 2 else SIZES[name]
        elif name.endswith("_token_id") and isinstance(value, int) and value >= VOCAB:
            # Special ids must lie in the vocabulary; those of pictures must not be met by random ids.
            chosen[name] = 0 if name.split("_")[0] in ("bos", "eos", "pad", "sep") else VOCAB - 1
        elif name == "layer_types" and isinstance(value, list | tuple):
            kinds = list(dict.fromkeys(value))
            chosen[name] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    if "kv_lora_rank" in values and "num_key_value_heads" in chosen:
        chosen["num_key_value_heads"] = 4  # multi-head latent attention has no groups
    for name, part in (getattr(config_class, "sub_configs", None) or {}).items():
        inner = part if hasattr(part, "model_type") and part.__name__ != "AutoConfig" else None
        if inner is None and default is not None and getattr(default, name, None) is not None:
            inner = type(getattr(default, name))
        if inner is not None:
            chosen[name] = tiny_config(str(inner.model_type), inner, depth + 1).to_dict()
            chosen[name].pop("per_layer_config", None)  # made anew from the sizes
    # What BERT-like models, XLM and BigBird need to be causal LMs.
    chosen.update({name: True for name in ("is_decoder", "causal") if values.get(name) is False})
    if "attention_type" in values:
        chosen["attention_type"] = "original_full"
    chosen.update(extra)
    chosen.update(changes or {})
    return config_class(**{k: v for k, v in chosen.items() if v is not ...})


def build(entry: str, seed: int = 0, changes: Mapping[str, Any] | None = None) -> Any:
    """The tiny random model of ``entry``, float32, weights wide enough that layers and tokens really differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny_config(entry, changes=changes)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if hasattr(config, "decoder"):  # a speech model; its language model is a part
                model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config.decoder, dtype=torch.float32)
            else:
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            randomise(model)
    if hasattr(model, "set_default_language"):
        model.set_default_language(next(iter(model.config.languages)))
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Random weights with visible norms and biases; the special parameters of recurrences are only jittered."""
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        with torch.no_grad():
            if (parameter.dim() == 1 and "norm" in name.lower()) or ".ln_" in name or "layer_norm" in name.lower():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif kind == "bias":
                parameter.normal_(0.0, 0.1)
            elif kind in ("weight", "gate_up_proj", "down_proj", "experts") and parameter.dim() > 1:
                fan = min(parameter.shape[-1], 64)
                parameter.normal_(0.0, 1.2 / math.sqrt(fan) if parameter.dim() < 4 else 0.1)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
