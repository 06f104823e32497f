"""Load a causal LM by name, folder or GGUF file. The only file that imports transformers.

Only safetensors and GGUF weights are read, and remote code stays off unless it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from exitlens.compute import hardware
from exitlens.errors import CorruptModel, ExitlensError, InputError, ModelError, ModelNotFound, UnsupportedModel
from exitlens.models.gguf import check_gguf, fix_pre_tokenizer
from exitlens.models.hub import catalog
from exitlens.models.layered import Layered
from exitlens.storage.atomic import aside
from exitlens.storage.cache_folder import cache_dir

__all__ = ["generate_output", "load", "pretrained_encoder", "wrap"]

_CONVERTED_LIMIT = 4 << 30  # larger GGUF conversions are not kept on disk


def load(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Layered:
    """A causal LM, layer by layer.

    ``name``: a catalogue name (``smollm2-135m``), a Hub id (``org/name`` or ``org/name@revision``), a local folder, or
    a ``.gguf`` file. ``dtype="auto"``: bf16 where the hardware multiplies it faster than float32, else float32.
    Raises :class:`ModelNotFound`, :class:`CorruptModel`, :class:`UnsupportedModel`, :class:`ParityError`,
    :class:`InputError`.
    """
    where = hardware.pick_device(device)
    kind = hardware.pick_dtype(dtype, where)
    text = os.fspath(name)
    if not text.strip():
        raise InputError("the model's name is empty: give a catalogue name, a Hub id, a folder or a .gguf file")
    path = Path(text).expanduser()
    if text in catalog.CATALOG:
        if catalog.CATALOG[text].kind != "causal-lm":
            raise ModelError(f"{text} is a sentence encoder, not a causal LM: see `exitlens models list`")
        path = catalog.resolve(text)
    if path.is_file():
        return _load_gguf(path, text, where, kind)
    if path.is_dir():
        return _load_folder(path, text, where, kind, trust_remote_code)
    if path.suffix == ".gguf" or path.is_absolute() or text.startswith((".", "~")):
        raise ModelNotFound(f"no model at {text!r}: no such file or folder")
    if "/" not in text:
        near = catalog.nearest(text)
        raise ModelNotFound(
            f"no model named {text!r}: not in the catalogue ({near}), not a folder, not a Hub id org/name"
        )
    repo, _, tag = text.partition("@")
    return _load_from(repo, text, where, kind, trust_remote_code, revision or tag or None)


def wrap(model: nn.Module, tokenizer: Any, *, name: str | None = None) -> Layered:
    """A model already in memory (quantised, compiled, spread over devices, LoRA), layer by layer, left as it is.

    Raises :class:`UnsupportedModel` and :class:`ParityError` as :func:`load` does.
    """
    inner = getattr(model, "_orig_mod", model)
    if not hasattr(inner, "get_input_embeddings"):
        raise UnsupportedModel(f"{type(inner).__name__} is not a transformers causal LM: no get_input_embeddings()")
    label = name or str(getattr(getattr(inner, "config", None), "name_or_path", "") or type(inner).__name__)
    return Layered(model, tokenizer, name=label, fingerprint=fingerprint(inner), cache_factory=lambda: _cache(inner))


def fingerprint(model: nn.Module) -> str:
    """A hash of the weights by a fixed sample of each tensor, the same in float32 and in bf16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_stored(model), key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        for part in _plain_parts(tensor):
            quantised = part.dtype in (torch.int8, torch.uint8)
            if (part.is_floating_point() or quantised) and part.numel() and part.device.type != "meta":
                step = max(1, part.numel() // 64)
                sample = part.detach().flatten()[::step][:64]
                sample = sample if quantised else sample.to(torch.bfloat16).view(torch.int16)
                digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()


def _stored(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries of ``state_dict()``, without asking for it: asked, bitsandbytes lays 4-bit weights out anew."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), tensor


def _plain_parts(tensor: Any) -> list[torch.Tensor]:
    """The plain tensors that a quantised one of torchao's or quanto's kind is made of; itself where it is plain."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor] if isinstance(tensor, torch.Tensor) else []
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain_parts(getattr(tensor, name))]


def _cache(model: nn.Module) -> Any:
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config)


def pretrained_encoder(source: str, revision: str | None) -> tuple[Any, Any]:
    """A text encoder in float32 and its tokenizer; damaged files raise what transformers raises."""
    from transformers import AutoModel, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            source, revision=revision, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    return model, tokenizer


def generate_output(*, cache: Any, **fields: Any) -> Any:
    """What ``model.generate`` returns for a decoder-only model when asked for a dictionary."""
    from dataclasses import fields as fields_of

    from transformers.generation.utils import GenerateDecoderOnlyOutput

    # transformers 5.24 renamed `past_key_values`.
    name = "cache" if "cache" in {field.name for field in fields_of(GenerateDecoderOnlyOutput)} else "past_key_values"
    return GenerateDecoderOnlyOutput(**{name: cache}, **fields)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its own bars and notices; its settings are put back afterwards."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load_gguf(path: Path, label: str, device: torch.device, dtype: torch.dtype) -> Layered:
    if path.suffix != ".gguf":
        raise ModelNotFound(
            f"{label!r} is a file but not .gguf: give a .gguf file or a folder with safetensors weights"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any
    digest = _file_hash(path)
    kept = cache_dir() / "converted" / f"{digest[:24]}-t{_major()}"
    if not (kept / "whole").exists():
        check_gguf(path)  # seconds; a file that was unpacked before is whole, byte for byte
        with _quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
                model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
            except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError) as error:
                raise UnsupportedModel(f"{label}: transformers cannot read this GGUF: {_line(error)}") from error
        fix_pre_tokenizer(tokenizer, path)
        # The weights are plain float32 now; the note that they came from GGUF would forbid saving them.
        model.hf_quantizer = None
        model.is_quantized = False
        model.config.__dict__.pop("quantization_config", None)
        if sum(p.numel() for p in model.parameters()) * 4 > _CONVERTED_LIMIT or not _keep(model, tokenizer, kept):
            return _finish(model.to(device=device, dtype=dtype), tokenizer, label, digest)
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(str(kept), dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(str(kept))
    return _finish(model.to(device), tokenizer, label, digest)


def _keep(model: nn.Module, tokenizer: Any, folder: Path) -> bool:
    """Write the unpacked GGUF beside the cache, whole or not at all; reading it again is ten times as fast."""
    try:
        with aside(folder) as part, _quiet():
            model.save_pretrained(str(part))  # type: ignore[operator]
            tokenizer.save_pretrained(str(part))
            (part / "whole").write_text("unpacked from GGUF by exitlens\n")
    except OSError:
        return (folder / "whole").exists()  # another process may have been first; else a full or read-only disk
    return True


def _load_folder(path: Path, label: str, device: torch.device, dtype: torch.dtype, remote: bool) -> Layered:
    if not (path / "config.json").is_file():
        ggufs = sorted(p.name for p in path.glob("*.gguf"))
        hint = f"it holds {', '.join(ggufs)}: name the file" if ggufs else "it has no config.json"
        raise ModelNotFound(f"no model in folder {label!r}: {hint}")
    if not any(path.glob("*.safetensors")):
        raise ModelNotFound(f"{label!r} has no .safetensors weights (pickled weights are never read): convert it first")
    return _load_from(str(path), label, device, dtype, remote, None)


def _load_from(
    source: str, label: str, device: torch.device, dtype: torch.dtype, remote: bool, revision: str | None
) -> Layered:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any
    options: dict[str, Any] = {"trust_remote_code": remote}
    if revision is not None:
        options["revision"] = revision
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
        except SafetensorError as error:
            raise CorruptModel(f"{label}: damaged weights ({_line(error)}): fetch the model again") from error
        except OSError as error:
            if not Path(source).exists():
                raise ModelNotFound(
                    f"could not get {label!r} from the Hub ({_line(error)}): check the name and the network, "
                    "or give a local folder or .gguf file"
                ) from error
            raise CorruptModel(f"{label}: {_line(error)}") from error
        except json.JSONDecodeError as error:
            raise CorruptModel(f"{label}: config or tokenizer file is not valid JSON ({_line(error)})") from error
        except (ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
            raise UnsupportedModel(f"{label} is not a causal LM that transformers can build: {_line(error)}") from error
    return _finish(model.to(device), tokenizer, label, None)


def _finish(model: nn.Module, tokenizer: Any, label: str, digest: str | None) -> Layered:
    model.eval()
    return Layered(
        model, tokenizer, name=label, fingerprint=digest or fingerprint(model), cache_factory=lambda: _cache(model)
    )


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _major() -> str:
    import transformers

    return transformers.__version__.split(".")[0]


def _line(error: BaseException) -> str:
    if isinstance(error, ExitlensError):
        return str(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first if len(first) <= 200 else first[:197] + "..."
