"""Do a checkpoint's weights fill the model that its configuration describes, all of them, under the right names?

transformers fills what is missing with random numbers and leaves out what it does not know, and says so only in a log.
Here both end in a refusal that names the tensors; prefixes that training tools leave behind are stripped where then
everything fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.errors import CorruptModel
from exitlens.models.checkpoint.reasons import one_line

__all__ = ["Checkpoint", "check_kinds", "check_sizes", "check_total", "fitted", "headers", "weight_files"]

# What training tools leave in front of names: torch.compile, FSDP, checkpointing, DataParallel, PEFT (twice).
_PREFIXES = {
    "_orig_mod.": r"(?:^|(?<=\.))_orig_mod\.",
    "_fsdp_wrapped_module.": r"(?:^|(?<=\.))_fsdp_wrapped_module\.",
    "_checkpoint_wrapped_module.": r"(?:^|(?<=\.))_checkpoint_wrapped_module\.",
    "module.": r"^module\.",
    "base_model.model.": r"^base_model\.model\.",
    ".base_layer.": r"(?<=\.)base_layer\.",
}
# Of no consequence for a causal LM: buffers of old versions, heads of other tasks, other senses, extra predictors that
# transformers itself leaves out for most families (multi-token prediction).
_HARMLESS = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.(masked_bias|position_ids|num_batches_tracked)$|\.attn\.bias$|"
    r"^(\w+\.)?(pooler|v_head|value_head|score|classifier|cls\.seq_relationship|qa_outputs|mtp)\b|"
    r"^(model\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision|embed_audio)\."
)
# An encoder has no use for the heads of its pre-training either.
_HEADS = re.compile(r"^(lm_head|cls|generator_\w+|discriminator_\w+|vocab_\w+|predictions|mlm|qa_outputs|classifier)\b")
_SHOWN = 4  # names of a kind in a message
_COUNTS = re.compile(r"layer|block|expert|stack")
_SIZES = re.compile(r"size|dim|width|inner|embd|d_model|d_ff|heads?$|head_|vocab|layer|block|expert|stack|rank")
_PACKED = 16  # values that a stored element can hold at most (2 bits in an int32)
_FEW = 1024  # blocks or experts that are built without a second thought


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Names and shapes of the tensors in a folder's safetensors files."""

    shapes: Mapping[str, tuple[int, ...]]
    whole: frozenset[str] = frozenset()  # names of tensors of whole numbers

    @property
    def elements(self) -> int:
        """Stored elements in all."""
        return sum(_product(shape) for shape in self.shapes.values())


def weight_files(folder: Path, label: str) -> list[Path]:
    """The safetensors files that make up a model, as transformers picks them.

    Raises:
        CorruptModel: The index is damaged, or names a file that is not there.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return sorted(p for p in folder.glob("*.safetensors") if p.is_file() and not p.name.startswith("adapter_"))
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        missing = [name for name in names if not (folder / Path(name).name).is_file()]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CorruptModel(
            f"{label}: {index.name} cannot be read ({one_line(error)}): fetch the model again"
        ) from error
    if missing:
        raise CorruptModel(f"{label}: '{missing[0][:80]}' is not there, though {index.name} names it: fetch it again")
    return [folder / Path(name).name for name in names]


def headers(files: Iterable[Path], label: str) -> Checkpoint:
    """Read the headers of weight files. Raises :class:`CorruptModel` naming the file that is damaged."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    whole: set[str] = set()
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    part = file.get_slice(name)
                    shapes[name] = tuple(part.get_shape())
                    if part.get_dtype().startswith(("I", "U", "BOOL")):
                        whole.add(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise CorruptModel(
                f"{label}: damaged weights in '{path.name}' ({one_line(error, 120)}): fetch the model again"
            ) from error
    return Checkpoint(shapes, frozenset(whole))


def check_sizes(config: Mapping[str, Any], checkpoint: Checkpoint, label: str) -> None:
    """Raise :class:`CorruptModel` where a size in ``config.json`` is beyond anything that the weights could hold.

    Nothing is built for this: a configuration of 10^8 blocks would keep a machine busy for hours before its weights
    were looked at.
    """
    if not checkpoint.shapes:
        return
    elements = checkpoint.elements * _PACKED
    largest = max((max(shape, default=1) for shape in checkpoint.shapes.values()), default=1)
    for where, value in _integers(config):
        name = where.rpartition(".")[2]
        if not _SIZES.search(name) or name.endswith(("_id", "_ids", "_token")):
            continue
        most = elements
        if _COUNTS.search(name) and not name.endswith(("size", "dim")):
            most = max(_FEW, len(checkpoint.shapes), largest if "expert" in name else 0)
        if value > most or value < -1:
            raise CorruptModel(
                f"{label}: {where} in config.json is {value}, but its weights are {len(checkpoint.shapes)} tensors of "
                f"{checkpoint.elements:,} values: the configuration is not theirs"
            )


def check_kinds(model: nn.Module, config: Mapping[str, Any], checkpoint: Checkpoint, label: str) -> None:
    """Raise :class:`CorruptModel` where whole numbers fill a parameter of real ones.

    They are quantised, and without the scales that belong to them they are other weights.
    """
    if not checkpoint.whole or "quantization_config" in config:
        return
    real = {name for name, p in model.named_parameters() if p.is_floating_point()}
    odd = sorted(checkpoint.whole & real)
    if odd:
        raise CorruptModel(
            f"{label}: {_named(odd)}: whole numbers where config.json has real ones and no quantization_config: the "
            "weights were quantised, and what they stand for is not known; fetch the model again"
        )


def check_total(model: nn.Module, config: Mapping[str, Any], checkpoint: Checkpoint, label: str) -> None:
    """The same for the whole: ``model`` on the meta device must not hold many times what the weights do."""
    wanted = sum(p.numel() for p in model.parameters())
    packed = _PACKED if "quantization_config" in config else 2  # 2: nothing that is random instead is that large
    if checkpoint.shapes and wanted > packed * checkpoint.elements + 1_000_000:
        raise CorruptModel(
            f"{label}: config.json describes a model of {wanted:,} parameters, but its weights are "
            f"{checkpoint.elements:,} values: the configuration is not theirs"
        )


def fitted(
    model: Any,
    info: Mapping[str, Any],
    label: str,
    *,
    files: Iterable[Path] = (),
    options: Mapping[str, Any] | None = None,
    encoder: bool = False,
    notes: list[str] | None = None,
) -> Any:
    """``model`` where its weights filled it, or the same model filled again with a training tool's prefix left out.

    Args:
        model: As ``from_pretrained`` gave it.
        info: Its ``output_loading_info``.
        label: The model's name, for messages.
        files: Its safetensors files; none: no second try.
        options: Keyword arguments of the second ``from_pretrained``.
        encoder: Whether it is a text encoder: the heads of its pre-training may be left over, its pooler missing.
        notes: Gets a line where a prefix was left out.

    Raises:
        CorruptModel: Tensors are missing, left over or of another shape; the message names them.
    """
    trouble = _trouble(info, encoder)
    if not trouble:
        return model
    prefixes = _prefixes_of(trouble.extra)
    files = list(files)
    if prefixes and files:
        tensors = _renamed(files, prefixes)
        if tensors is not None:
            again, info = type(model).from_pretrained(
                None, config=model.config, state_dict=tensors, output_loading_info=True,
                ignore_mismatched_sizes=True, **(options or {}),
            )  # fmt: skip
            if not _trouble(info, encoder):
                if getattr(model, "generation_config", None) is not None:
                    again.generation_config = model.generation_config
                if notes is not None:
                    said = ", ".join(repr(prefix) for prefix in prefixes)
                    notes.append(f"{label}: {said} was left out of its weights' names (a training tool left it there)")
                return again
    raise CorruptModel(f"{label}: its weights do not fit its config.json: {trouble.sentence()}")


@dataclass(frozen=True, slots=True)
class _Trouble:
    missing: list[str]
    extra: list[str]
    other: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.other)

    def sentence(self) -> str:
        parts = [
            f"{word} {_named(names)}"
            for word, names in (("missing", self.missing), ("unexpected", self.extra), ("of another shape", self.other))
            if names
        ]
        if self.missing and all("head" in name for name in self.missing) and not self.extra:
            remedy = "where its unembedding is its embedding, config.json says tie_word_embeddings: true"
        elif any("lora_" in name for name in self.extra):
            remedy = "merge the adapter into the weights (merge_and_unload), or give it as an adapter folder"
        else:
            remedy = "fetch the model again, or save it again with the configuration it has"
        return f"{'; '.join(parts)}: {remedy}"


def _trouble(info: Mapping[str, Any], encoder: bool) -> _Trouble:
    missing = [name for name in info.get("missing_keys", ()) if not (encoder and "pooler" in name)]
    extra = [name for name in info.get("unexpected_keys", ()) if not _HARMLESS.search(name)]
    if encoder:
        extra = [name for name in extra if not _HEADS.search(name)]
    other = [
        f"{name} ({list(was)}, not {list(now)})"
        for name, was, now in (tuple(k) for k in info.get("mismatched_keys", ()))
    ]
    broken = [f"{name} (cannot be converted)" for name in info.get("conversion_errors", None) or ()]
    return _Trouble(sorted(missing), sorted(extra), sorted(other) + sorted(broken))


def _prefixes_of(names: Iterable[str]) -> list[str]:
    """The known prefixes of ``names``, those too that stand behind another one (``_orig_mod.module.``)."""
    found: list[str] = []
    names = list(names)
    while new := [
        p for p, pattern in _PREFIXES.items() if p not in found and any(re.search(pattern, n) for n in names)
    ]:
        found += new
        names = [_bare(name, found) for name in names]
    return found


def _bare(name: str, prefixes: Iterable[str]) -> str:
    before = ""
    while name != before:
        before = name
        for prefix in prefixes:
            name = re.sub(_PREFIXES[prefix], "", name)
    return name


def _renamed(files: Iterable[Path], prefixes: Iterable[str]) -> dict[str, torch.Tensor] | None:
    """All tensors under their names without the prefixes; None where two would bear one name."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                bare = _bare(name, prefixes)
                if bare in tensors:
                    return None
                tensors[bare] = file.get_tensor(name)
    return tensors


def _named(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _integers(value: Mapping[str, Any], above: str = "", depth: int = 4) -> Iterable[tuple[str, int]]:
    for name, part in value.items():
        where = f"{above}{name}"
        if isinstance(part, int) and not isinstance(part, bool):
            yield where, part
        elif isinstance(part, dict) and depth:
            yield from _integers(part, f"{where}.", depth - 1)


def _product(shape: Iterable[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
