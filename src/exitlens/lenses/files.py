"""Lenses and traces on disk: safetensors, never pickle. The one place of this room that touches files."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from exitlens.errors import InputError
from exitlens.lenses.trace import Trace
from exitlens.lenses.tuned import TunedLens, from_published
from exitlens.models.protocol import LayeredModel

__all__ = ["load_lens", "load_trace", "read_tensors", "save_lens", "save_trace", "write_tensors"]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata)
    part.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises :class:`InputError`."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"no such file: '{path}'") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is not a readable safetensors file: {str(error).splitlines()[0]}") from error


def save_lens(lens: TunedLens, path: str | Path) -> Path:
    """Save as one safetensors file; returns its path."""
    path = Path(path)
    write_tensors(path, *lens.to_tensors())
    return path


def load_lens(path: str | Path, lm: LayeredModel | None = None) -> TunedLens:
    """A lens of ours (a safetensors file), or a published folder: ``config.json`` and ``params.safetensors``.

    With ``lm`` it is checked to fit that model. Raises :class:`InputError`: not a lens, another model's lens, or a
    pickled ``params.pt``, which is never opened because unpickling runs code.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        raise _pickled(path)
    if path.is_dir():
        params = path / "params.safetensors"
        if not params.exists():
            if (path / "params.pt").exists():
                raise _pickled(path / "params.pt")
            raise InputError(f"'{path}' holds no params.safetensors: give a lens file or a tuned-lens folder")
        try:
            config = json.loads((path / "config.json").read_text("utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"'{path / 'config.json'}' cannot be read as JSON: {error}") from error
        lens = from_published(config, read_tensors(params)[0], path.name)
    else:
        lens = TunedLens.from_tensors(*read_tensors(path))
    if lm is not None:
        lens.check(lm.fingerprint, lm.n_layers, lm.d_model, lm.name)
    return lens


def save_trace(trace: Trace, path: str | Path) -> Path:
    """Save as one safetensors file; returns its path."""
    path = Path(path)
    write_tensors(path, *trace.to_tensors())
    return path


def load_trace(path: str | Path) -> Trace:
    """A trace that :func:`save_trace` wrote. Raises :class:`InputError` for any other file."""
    return Trace.from_tensors(*read_tensors(Path(path)))


def _pickled(path: Path) -> InputError:
    return InputError(
        f"'{path}' is a pickle, which exitlens never opens: where you trust it, convert it once with "
        f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), 'params.safetensors')"
    )
