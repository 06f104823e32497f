"""Which configurations our own blocks may run: those whose every field they know.

A short comparison does not see what acts only at long positions or on large values (a query scale after the first
16,384 tokens, clipped projections, attention sinks). So a field that is not on these lists and is not off means
that the model's own blocks run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["thresholds", "unknown_field"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Read by the blocks, or by the modules of the model that the blocks call (norms, activations, rotary embedding).
_READ = _words("""
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    hidden_act max_position_embeddings rms_norm_eps layer_norm_eps tie_word_embeddings attention_bias mlp_bias
    use_qkv_bias sliding_window use_sliding_window max_window_layers layer_types rope_theta partial_rotary_factor
    rotary_pct n_positions n_ctx n_embd n_layer n_head n_inner activation_function layer_norm_epsilon
    scale_attn_weights scale_attn_by_inverse_layer_idx use_parallel_residual
""")
# Of no consequence for hidden states in evaluation: training, special tokens, bookkeeping.
_NEUTRAL = _words("""
    transformers_version architectures output_hidden_states output_attentions return_dict dtype torch_dtype
    model_type chunk_size_feed_forward is_encoder_decoder is_decoder problem_type initializer_range use_cache
    id2label label2id num_labels attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop
    attn_pdrop residual_dropout pretraining_tp reorder_and_upcast_attn summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout bos_token_id eos_token_id pad_token_id
    sep_token_id decoder_start_token_id task_specific_params auto_map quantization_config is_llama_config
    unsloth_version unsloth_fixed transformers.js_config custom_pipelines torchscript use_bfloat16 name_or_path
    finetuning_task prefix model_max_length tokenizer_class
""")
# Read by the model's rotary embedding itself, whose table the blocks use.
_ROPE = _words("""
    rope_type type rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings
    attention_factor beta_fast beta_slow mscale mscale_all_dim truncate partial_rotary_factor
    max_position_embeddings
""")
# Factors that are off at 1: anything else is not read here.
_OFF_AT_ONE = frozenset(
    {"embedding_multiplier", "logits_scaling", "residual_multiplier", "logit_scale", "final_logit_scale"}
)


def unknown_field(config: Any) -> str | None:
    """The first field of ``config`` that is on, and that nobody here reads; None where all are known."""
    for name, value in config.to_dict().items():
        if name.startswith("_") or name in _READ or name in _NEUTRAL:
            continue
        if name in ("rope_parameters", "rope_scaling"):
            for part, setting in (value or {}).items():
                if part not in _ROPE and not _off(setting):
                    return f"{name}.{part}"
        elif not _off(value) and not (name in _OFF_AT_ONE and value == 1):
            return str(name)
    return None


def _off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, int | float) and value == 0) or value in ("", [], {})


def thresholds(config: Any) -> list[int]:
    """Positions from which on a configuration says that something changes, in order."""
    return sorted({value for value in _positions(config.to_dict()) if value > 0})


def _positions(values: Mapping[Any, Any]) -> Iterator[int]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _positions(value)
        elif name == "original_max_position_embeddings" and isinstance(value, int) and not isinstance(value, bool):
            yield value
