"""Fitted probes as files: safetensors with where they came from in the header, so that nothing in them is ever run.

The header's one entry "exitlens" is JSON: what the probe says of itself (kind, provenance) and, under "about", what the
study adds (name of the model, setting, position, how well it did). A probe is handed out for the model, position and
prompt that it was fitted on, and for no other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exitlens.errors import ProbeError
from exitlens.models.protocol import LayeredModel
from exitlens.probes import Probe, from_tensors
from exitlens.runs.hidden_states import Origin, text_hash
from exitlens.storage.atomic import canonical, write_tensors
from exitlens.studies.probes.extraction import Position, Setting, check_position, origin_of

__all__ = ["SavedProbe", "load_probe", "prompt_name", "save_probe"]


@dataclass(frozen=True, slots=True)
class SavedProbe:
    """A probe from a file, and what the study wrote about it."""

    probe: Probe
    about: dict[str, Any]
    path: Path

    @property
    def model(self) -> str:
        """Name under which its model was loaded (a model is known by its fingerprint, not by this)."""
        return str(self.about.get("model", ""))

    @property
    def setting(self) -> Setting:
        """Whether its statements stood in the instruction's prompt or alone."""
        return "bare" if self.about.get("setting") == "bare" else "prompted"

    @property
    def position(self) -> Position:
        """Where in a statement its states were read."""
        return check_position(self.probe.provenance.position or "last")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it reads."""
        where = self.probe.provenance
        return where.layers or (() if where.layer is None else (where.layer,))

    def check(self, lm: LayeredModel, position: str | None = None, setting: Setting | None = None) -> None:
        """Raise ProbeError unless model, position and prompt are those that the probe was fitted on."""
        where = self.probe.provenance
        if where.model and where.model != lm.fingerprint:
            raise ProbeError(
                f"'{self.path}' was fitted on '{self.model}' ({where.model[:12]}), not on '{lm.name}' "
                f"({lm.fingerprint[:12]}): use that model, or fit the probe again"
            )
        self.probe.check(position=position)
        known = prompt_name(origin_of(lm, self.setting))
        if where.prompt and where.prompt != known:
            raise ProbeError(
                f"'{self.path}' was fitted under another prompt ({where.prompt}, now {known}): fit it again"
            )
        if setting is not None and setting != self.setting:
            raise ProbeError(
                f"'{self.path}' was fitted on {self.setting} statements, not on {setting} ones: fit one with "
                f"exitlens probe --kinds ... --{setting} --save FILE"
            )

    def p_true(self, states: Tensor) -> Tensor:
        """P(true) ``[n]`` of states ``[its layers, n, d_model]``."""
        with torch.no_grad():
            return self.probe.predict_proba(states if self.probe.provenance.layers else states[0])


def prompt_name(origin: Origin) -> str:
    """What a probe's provenance calls the prompt of these states."""
    return f"{origin.setting}-{text_hash(origin.prompt)}"


def save_probe(path: str | Path, probe: Probe, about: dict[str, Any]) -> Path:
    """Write ``probe`` as safetensors, whole or not at all; returns the path. Raises RunError when it cannot."""
    file = Path(path).expanduser()
    tensors, metadata = probe.to_tensors()
    write_tensors(
        file, {k: v.detach().cpu() for k, v in tensors.items()}, {"exitlens": canonical({**metadata, "about": about})}
    )
    return file


def load_probe(path: str | Path) -> SavedProbe:
    """Read a probe. Raises ProbeError for a file that is missing, damaged or no probe."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ProbeError(f"no probe file '{file}': fit one with exitlens probe --kinds logistic --save '{file}'")
    try:
        with safe_open(file, framework="pt") as handle:
            text = (handle.metadata() or {}).get("exitlens")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ProbeError(f"'{file}' is not a whole safetensors file ({error}): fit the probe again") from None
    try:
        metadata = json.loads(text) if text is not None else None
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise ProbeError(
            f"'{file}' holds tensors but no probe: save one with exitlens probe --kinds logistic --save FILE"
        )
    about = metadata.pop("about", {})
    return SavedProbe(from_tensors(tensors, metadata), dict(about) if isinstance(about, dict) else {}, file)
