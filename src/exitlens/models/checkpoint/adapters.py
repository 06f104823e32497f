"""Adapter folders (PEFT): what they adapt, and the base model with the adapter on it.

An adapter is read as a part of the model or refused, never left out in silence.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from exitlens.errors import CorruptModel, InputError, MissingExtra, ModelNotFound, UnsupportedModel
from exitlens.models.checkpoint.reasons import one_line

__all__ = ["Adapter", "adapter_in", "attach", "without_adapter"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Tuning that puts vectors before the text, outside the model's own blocks: positions would no longer be tokens.
_VIRTUAL = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CARTRIDGE")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, its kind (LORA, IA3, ...) and the base that it names."""

    folder: Path
    kind: str
    base: str | None
    revision: str | None

    def base_for(self, given: str | None, label: str) -> str:
        """The base model: ``given``, else the one named in the adapter. Raises :class:`InputError`."""
        base = given or self.base
        if not base:
            raise InputError(
                f"{label!r} is an adapter ({self.kind}) and names no base model: give it with --base (base= in Python)"
            )
        # A relative path is meant from the adapter's own folder, or from where it was saved.
        beside = self.folder / base
        near = base.startswith(".") or not Path(base).exists()
        return str(beside) if not given and near and beside.is_dir() else base


def adapter_in(folder: Path, label: str) -> Adapter | None:
    """The adapter that lies in ``folder``, or None.

    Raises:
        CorruptModel: Its configuration cannot be read.
        UnsupportedModel: It is prompt or prefix tuning.
        ModelNotFound: It has no safetensors weights.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        said: Any = json.loads(path.read_bytes())
        kind, base, revision = said["peft_type"], said.get("base_model_name_or_path"), said.get("revision")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CorruptModel(
            f"{label}: its {CONFIG} cannot be read ({one_line(error)}): fetch the adapter again"
        ) from error
    if not isinstance(kind, str) or not isinstance(base, str | None) or not isinstance(revision, str | None):
        raise CorruptModel(f"{label}: peft_type, base_model_name_or_path and revision in {CONFIG} must be texts")
    kind = kind.upper()
    if kind in _VIRTUAL:
        raise UnsupportedModel(
            f"{label} is an adapter of the kind {kind} (prompt or prefix tuning): it puts vectors before the text, "
            "outside the model's layers, so it is not read; give the base model, or a LoRA adapter"
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelNotFound(
            f"{label!r} is an adapter ({kind}) without {WEIGHTS} (pickled weights are never read): save it so"
        )
    return Adapter(folder, kind, base, revision)


def attach(model: nn.Module, adapter: Adapter, label: str) -> nn.Module:
    """The base ``model`` with the adapter on it, all of its tensors used.

    Raises:
        MissingExtra: peft is not installed.
        CorruptModel: Tensors of the adapter are missing, left over or of another shape.
    """
    try:
        import peft
        from safetensors import safe_open
    except ImportError as error:
        raise MissingExtra(
            f"{label!r} holds an adapter ({adapter.kind}), which needs peft: pip install 'exitlens[peft]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is compared below
            adapted: Any = peft.PeftModel.from_pretrained(model, str(adapter.folder), is_trainable=False)
            wanted = set(peft.get_peft_model_state_dict(adapted))
        with safe_open(str(adapter.folder / WEIGHTS), framework="pt") as file:
            held = set(file.keys())
    except Exception as error:  # whatever peft and safetensors raise: the adapter cannot be put on
        raise CorruptModel(f"{label}: its adapter ({adapter.kind}) does not fit the base: {one_line(error)}") from error
    differ = sorted(wanted ^ held)
    # Embeddings that were saved with the adapter because tokens were added are loaded, though not its own.
    differ = [name for name in differ if ("embed" not in name and "lm_head" not in name) or name in wanted]
    if differ:
        raise CorruptModel(
            f"{label}: its adapter's tensors are not those of its {CONFIG}: {', '.join(n[:80] for n in differ[:3])}"
            f"{f' and {len(differ) - 3} more' if len(differ) > 3 else ''}: save the adapter again"
        )
    return adapted.eval()  # type: ignore[no-any-return]


@contextlib.contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """A view of ``folder`` that lacks the adapter: transformers would put it on by itself where peft is installed."""
    with tempfile.TemporaryDirectory(prefix="exitlens-base-") as place:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(place) / path.name).symlink_to(path.resolve())
        yield Path(place)
