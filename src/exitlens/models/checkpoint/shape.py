"""How large is a model, told without its weights: from a name, a ``config.json``, a GGUF file's header, a stated size.

A shape is what the cost of a pass and of a readout depends on. Sizes that are stated only (``70B``) mean the published
shape of the Llama 3 model of that size; other sizes are refused, since a width cannot be guessed from a count.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exitlens.errors import CorruptModel, InputError, ModelNotFound, UnsupportedModel
from exitlens.layer_range import LayerRange, parse_layers
from exitlens.models.hub.catalog import CATALOG
from exitlens.parsing import cut

__all__ = ["SHAPES", "ModelShape", "check_depth", "known_depth", "shape_of", "stated_shape"]


# What a configuration calls the number of blocks, in the families that do not use the first name.
_DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A causal language model as numbers.

    Attributes:
        name: What the user called it.
        blocks: Number of blocks N; layers run 0..N.
        width: Channels of the residual stream.
        vocab: Rows of the unembedding [tokens].
        head: Channels that enter the unembedding.
        parameters: Of the whole model, a tied matrix counted once.
        block_weights: Entries of the matrices of all blocks that one token passes (of experts: the active ones).
        mixing: Channels of all attention heads of a block: what a token compares and mixes with another one.
        cached: Channels of keys and values that a block keeps of a token.
        widest: Channels of the widest activation inside a block.
        context: Most positions of a text, where the model states it [tokens].
    """

    name: str
    blocks: int
    width: int
    vocab: int
    head: int
    parameters: int
    block_weights: int
    mixing: int
    cached: int
    widest: int
    context: int | None = None


def _llama(
    name: str, blocks: int, width: int, inner: int, heads: int, kv_heads: int, vocab: int, context: int, *, tied: bool
) -> ModelShape:
    """The shape of a Llama: attention with grouped keys, a gated MLP of three matrices, two norms a block."""
    size = width // heads
    weights = 2 * width * heads * size + 2 * width * kv_heads * size + 3 * width * inner
    rest = (1 if tied else 2) * vocab * width + (2 * blocks + 1) * width
    return ModelShape(
        name, blocks, width, vocab, width, blocks * weights + rest, blocks * weights, heads * size,
        2 * kv_heads * size, inner, context,
    )  # fmt: skip


# As the models' published config.json files have them.
_ALL = (
    _llama("smollm2-135m", 30, 576, 1536, 9, 3, 49152, 8192, tied=True),
    _llama("1B", 16, 2048, 8192, 32, 8, 128256, 131072, tied=True),
    _llama("3B", 28, 3072, 8192, 24, 8, 128256, 131072, tied=True),
    _llama("7B", 32, 4096, 11008, 32, 32, 32000, 4096, tied=False),
    _llama("8B", 32, 4096, 14336, 32, 8, 128256, 131072, tied=False),
    _llama("13B", 40, 5120, 13824, 40, 40, 32000, 4096, tied=False),
    _llama("70B", 80, 8192, 28672, 64, 8, 128256, 131072, tied=False),
    _llama("405B", 126, 16384, 53248, 128, 8, 128256, 131072, tied=False),
)

SHAPES: Mapping[str, ModelShape] = MappingProxyType({shape.name: shape for shape in _ALL})
"""Shapes that a name alone means: the built-in model, Llama 3's sizes, and Llama 2's 7B and 13B."""


def stated_shape(size: str) -> ModelShape:
    """The published shape of a stated size (``70B``). Raises InputError for a size that no shape is published of."""
    sizes = {name.lower(): shape for name, shape in SHAPES.items() if name[0].isdigit()}
    found = sizes.get(size.strip().lower())
    if found is None:
        raise InputError(
            f"no shape of {cut(size)!r} parameters: use {', '.join(shape.name for shape in sizes.values())}, or "
            "--model with a folder that holds the model's config.json"
        )
    return found


def shape_of(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a model, its weights left where they are.

    Args:
        name: A name of :data:`SHAPES`, a folder with a ``config.json``, a ``.gguf`` file, or a Hub id, of which the
            configuration alone is fetched.
        revision: Of a Hub id.
        trust_remote_code: Whether code in the folder or repository may run.

    Raises:
        ModelNotFound: There is no such model.
        CorruptModel: Its configuration is damaged.
        UnsupportedModel: transformers cannot build it, or it is no language model with blocks.
    """
    known = {known.lower(): shape for known, shape in SHAPES.items()}
    if name.lower() in known:
        return known[name.lower()]
    from exitlens.models.hub.online import hub_name, local

    path = local(name, "model")
    if path.is_dir():
        return _of_folder(path, name, trust_remote_code)
    if path.is_file():
        return _of_gguf(path, name)
    if "/" not in name:
        near = difflib.get_close_matches(name, SHAPES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known by name: {', '.join(SHAPES)}"
        raise ModelNotFound(f"no model named {cut(name)!r}: {hint}; else give a folder, a .gguf file or a Hub id")
    from exitlens.models.checkpoint.pretrained import snapshot

    repo, tag = hub_name(name, revision, "model")
    return _of_folder(snapshot(repo, name, tag, remote=trust_remote_code, config_only=True), name, trust_remote_code)


def check_depth(model: str, layers: str, *, first: int = 0, what: str = "layer") -> LayerRange:
    """Layers as text, refused before anything is loaded where the model's depth is known and they are out of it.

    Args:
        model: A built-in model's name, a folder, a file or a Hub id.
        layers: In the grammar of :mod:`exitlens.layer_range`.
        first: The lowest layer that may be meant.
        what: What a layer is here, for the message.

    Raises:
        InputError: Text that is not in that grammar.
        LayerError: A layer that the model does not have.
    """
    wanted = parse_layers(layers)
    depth = known_depth(model)
    if depth is not None:
        wanted.resolve(depth, first=first, what=what, owner=model)
    return wanted


def known_depth(model: str) -> int | None:
    """The number of blocks of a built-in model, or that a folder's ``config.json`` states; None where neither tells."""
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return SHAPES[model].blocks if model in CATALOG and model in SHAPES else None
    if not isinstance(config, dict):
        return None
    found = next((config[key] for key in _DEPTH if isinstance(config.get(key), int)), None)
    return found if found is not None and found > 0 else None


def _of_folder(folder: Path, label: str, remote: bool) -> ModelShape:
    """Counted on a model of the configuration whose tensors have shapes and no values."""
    from exitlens.models.checkpoint.pretrained import empty_model

    model = empty_model(folder, label, remote=remote)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    blocks = max(
        (part for part in model.modules() if type(part).__name__ == "ModuleList" and len(part) == _depth(config)),
        key=_count, default=None,
    )  # fmt: skip
    if head is None or embed is None or blocks is None:
        raise UnsupportedModel(
            f"{cut(label)}: {type(model).__name__} has no blocks or no unembedding: give a causal LM"
        )
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = int(embed.weight.shape[1] if not hasattr(config, "hidden_size") else config.hidden_size)
    size = int(getattr(config, "head_dim", None) or (width // heads if heads else 0))
    grouped = int(getattr(config, "num_key_value_heads", None) or heads)
    matrices = [(name, p) for name, p in blocks.named_parameters() if p.dim() > 1]
    shown = next((n for key in _EXPERTS if (n := getattr(config, key, None))), None)
    active = getattr(config, "num_experts_per_tok", None)
    share = active / shown if shown and active else 1.0
    weights = sum(p.numel() * (share if _is_expert(name, p) else 1.0) for name, p in matrices)
    vocab, channels = (int(n) for n in head.weight.shape)
    widest = max((max(p.shape[-2:]) for _, p in matrices), default=width)
    return ModelShape(
        label, len(blocks), width, vocab, channels, _count(model), round(weights), heads * size, 2 * grouped * size,
        int(widest), _context(config),
    )  # fmt: skip


def _is_expert(name: str, parameter: Any) -> bool:
    # Experts are a list of modules or one tensor [experts, in, out]; the shared ones are passed by every token.
    return "experts" in name and "shared" not in name and (parameter.dim() == 3 or ".experts." in name)


def _depth(config: Any) -> int:
    return int(getattr(config, "num_hidden_layers", 0) or getattr(config, "n_layer", 0) or 0)


def _context(config: Any) -> int | None:
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(found) if isinstance(found, int) and found > 0 else None


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _of_gguf(path: Path, label: str) -> ModelShape:
    """From the header alone: names and shapes of the tensors, and the architecture's numbers."""
    from exitlens.models.checkpoint.gguf import check_gguf

    if path.suffix != ".gguf":
        raise ModelNotFound(f"{cut(label)!r} is a file but not .gguf: give a .gguf file or a folder with a config.json")
    reader = check_gguf(path)

    def number(key: str, default: int | None = None) -> int:
        field = reader.fields.get(f"{family}.{key}")
        value = default if field is None else field.contents()
        if not isinstance(value, int):
            raise CorruptModel(f"{cut(label)}: its header has no {family}.{key}: fetch the file again")
        return value

    named = reader.fields.get("general.architecture")
    family = str(named.contents()) if named is not None else "general"
    sizes = {tensor.name: [int(n) for n in tensor.shape] for tensor in reader.tensors}
    if "token_embd.weight" not in sizes:
        raise UnsupportedModel(f"{cut(label)}: it has no tensor token_embd.weight: give a causal LM")
    width, vocab = sizes["token_embd.weight"][:2]
    heads = number("attention.head_count", 0)
    size = number("attention.key_length", width // heads if heads else 0)
    grouped = number("attention.head_count_kv", heads)
    experts, active = number("expert_count", 0), number("expert_used_count", 0)
    share = active / experts if experts and active else 1.0
    matrices = {name: shape for name, shape in sizes.items() if name.startswith("blk.") and len(shape) > 1}
    weights = sum(_product(shape) * (share if "_exps" in name else 1.0) for name, shape in matrices.items())
    widest = max((max(shape[:2]) for shape in matrices.values()), default=width)
    return ModelShape(
        label, number("block_count"), width, vocab, width, sum(map(_product, sizes.values())), round(weights),
        heads * size, 2 * grouped * size, widest, number("context_length", 0) or None,
    )  # fmt: skip


def _product(shape: list[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
