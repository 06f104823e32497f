"""Read a model and its tokenizer from files through transformers.

Only safetensors and GGUF weights are read, and remote code stays off unless it is asked for. Whatever a library raises
becomes one line that names the file or the field.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.errors import CorruptModel, ModelNotFound, UnsupportedModel
from exitlens.models.checkpoint import unpacked, weights
from exitlens.models.checkpoint.faults import Trial
from exitlens.models.checkpoint.gguf import fix_pre_tokenizer, parsed_once
from exitlens.models.checkpoint.identity import file_hash, folder_hash, is_plain
from exitlens.models.checkpoint.reasons import one_line
from exitlens.models.checkpoint.refusals import TOKENIZER_FILES, reading
from exitlens.models.hub.online import hub_answers
from exitlens.models.text.patterns import silent

__all__ = [
    "Raw",
    "empty_model",
    "generate_output",
    "has_weights",
    "kv_cache",
    "pretrained_encoder",
    "random_llama",
    "read_folder",
    "read_gguf",
    "read_tokenizer",
    "snapshot",
]

_LOG = logging.getLogger("exitlens")
_CONVERTED_LIMIT = 4 << 30  # larger GGUF conversions are not kept on disk
# What is fetched of a Hub repository: no pickled weights, no other formats, no weights in a second form.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*.safetensors", "*.fp16.safetensors", "*.bf16.safetensors"]


@dataclass(slots=True)
class Raw:
    """A model as it was read: not yet seen layer by layer. ``notes``: what a user should hear about it."""

    model: Any
    tokenizer: Any
    fingerprint: str
    notes: list[str] = field(default_factory=list)


def kv_cache(model: nn.Module) -> Any:
    """An empty key-value cache for ``model``."""
    from transformers import DynamicCache

    config: Any = model.config
    return DynamicCache(config=config)


def generate_output(*, cache: Any, **fields: Any) -> Any:
    """What ``model.generate`` returns for a decoder-only model when asked for a dictionary."""
    from dataclasses import fields as fields_of

    from transformers.generation.utils import GenerateDecoderOnlyOutput

    # transformers 5.24 renamed `past_key_values`.
    name = "cache" if "cache" in {field.name for field in fields_of(GenerateDecoderOnlyOutput)} else "past_key_values"
    return GenerateDecoderOnlyOutput(**{name: cache}, **fields)


def read_folder(
    folder: Path, label: str, dtype: torch.dtype, *, remote: bool = False, source: Path | None = None
) -> Raw:
    """A causal LM in a folder of safetensors.

    Args:
        folder: Its files.
        label: Its name, for messages.
        dtype: Of the weights in memory.
        remote: Whether code in the folder may run.
        source: The folder whose bytes are its identity, where ``folder`` is a view of it.

    Raises:
        ModelNotFound: There is no model in it.
        CorruptModel: Files are damaged, or weights do not fit the configuration.
        UnsupportedModel: transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    config = _config(folder, label)
    files = weights.weight_files(folder, label)
    if not files:
        raise ModelNotFound(f"{label!r} has no .safetensors weights (pickled weights are never read): convert it first")
    checkpoint = weights.headers(files, label)
    weights.check_sizes(config, checkpoint, label)
    _check_config(folder, config, checkpoint, label, remote)
    tokenizer = read_tokenizer(folder, label, remote=remote)
    notes: list[str] = []
    builder: Any = AutoModelForCausalLM
    with _quiet(), reading(label, "model", folder, _model_trials(remote)):
        model, info = builder.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=remote, output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
        )  # fmt: skip
        model = weights.fitted(model, info, label, files=files, options={"dtype": dtype}, notes=notes)
    if dtype == torch.float16:
        _check_half(model, label)
    home = source or folder
    return Raw(model, tokenizer, folder_hash(home, [home / path.name for path in files]), notes)


def empty_model(folder: Path, label: str, *, remote: bool = False) -> Any:
    """The model of a folder's ``config.json``, its tensors without values and without memory for them.

    Raises as :func:`read_folder` does.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _config(folder, label)
    builder: Any = AutoModelForCausalLM
    with _quiet(), reading(label, "config.json", folder, _model_trials(remote)):
        read = AutoConfig.from_pretrained(str(folder), trust_remote_code=remote)
        with torch.device("meta"):
            return builder.from_config(read, trust_remote_code=remote)


def random_llama(*, width: int, blocks: int, vocab: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """A Llama with random weights and a tokenizer of one word: something of a known shape, to be timed."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048,
    )  # fmt: skip
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    with _quiet():
        model = LlamaForCausalLM(config)
    timed: Any = model
    tokenizer: Any = PreTrainedTokenizerFast
    return timed.to(dtype).eval(), tokenizer(tokenizer_object=words, eos_token="a")


def has_weights(folder: Path, label: str) -> bool:
    """Whether a folder holds the safetensors of a model (an adapter's are none)."""
    return bool(weights.weight_files(folder, label))


def read_tokenizer(folder: Path, label: str, *, remote: bool = False) -> Any:
    """The tokenizer of a model folder. Raises as :func:`read_folder` does."""
    with _quiet(), reading(label, "tokenizer", folder, _tokenizer_trials(remote)):
        return _tokenizer_of(folder, remote)


def snapshot(repo: str, label: str, revision: str | None, *, remote: bool = False, config_only: bool = False) -> Path:
    """The folder of a Hub repository in the Hub's own cache, fetched where the Hub answers.

    With ``config_only`` nothing but its configuration (and its code, where that may run).

    Raises:
        ModelNotFound: No such repository or revision, or it is not here and the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    online = hub_answers()
    wanted = ["config.json"] if config_only else _WANTED
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                local_files_only=not online,
                allow_patterns=[*wanted, "*.py"] if remote else wanted,
                ignore_patterns=_UNWANTED,
            )
        )
    except Exception as error:  # its errors are OSError, ValueError and httpx's own
        why = one_line(error) if online else "it is not in the Hub's cache here, and the Hub cannot be reached"
        raise ModelNotFound(
            f"could not get {label!r} from the Hub ({why}): check the name and the network, or give a local folder or "
            ".gguf file"
        ) from error


def read_gguf(path: Path, label: str, dtype: torch.dtype, pinned: str | None = None) -> Raw:
    """A causal LM in a GGUF file, unpacked once and kept beside the cache.

    Args:
        path: The file.
        label: Its name, for messages.
        dtype: Of the weights in memory.
        pinned: The hash that it must have, where one is known.

    Raises:
        ModelNotFound: The file is none.
        CorruptModel: It is damaged, or not the pinned one.
        UnsupportedModel: transformers cannot read its architecture.
    """
    if path.suffix != ".gguf":
        raise ModelNotFound(
            f"{label!r} is a file but not .gguf: give a .gguf file or a folder with safetensors weights"
        )
    try:
        digest = file_hash(path)
    except OSError as error:
        raise CorruptModel(f"{label}: it cannot be read ({error.strerror or error})") from error
    if pinned is not None and is_plain(path) and digest != pinned:
        raise CorruptModel(
            f"'{path}' is damaged: expected sha256 {pinned}, got {digest}; `exitlens models pull {label}` replaces it"
        )
    kept = unpacked.copy_folder(digest, _major())
    notes: list[str] = []
    if unpacked.what_is_wrong(kept) is not None:
        with unpacked.alone(kept):
            wrong = unpacked.what_is_wrong(kept)  # another process may have made it meanwhile
            if wrong is not None:
                if kept.exists():
                    notes.append(f"{label}: its unpacked copy was not trusted ({wrong}) and is made again")
                model, tokenizer = _unpack(path, label)
                if not _keep(model, tokenizer, kept):
                    return Raw(model.to(dtype), tokenizer, digest, notes)
    raw = _read_copy(kept, label, dtype)
    return Raw(raw[0], raw[1], digest, notes)


def _read_copy(kept: Path, label: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    with _quiet(), reading(label, "unpacked copy", kept, (*_tokenizer_trials(False), *_model_trials(False))):
        model = AutoModelForCausalLM.from_pretrained(str(kept), dtype=dtype, use_safetensors=True)
        return model, _tokenizer_of(kept)


def _unpack(path: Path, label: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    builder: Any = AutoModelForCausalLM
    with _quiet(), parsed_once(path):
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            model, info = builder.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # its parser raises whatever its tables lack
            raise UnsupportedModel(f"{label}: transformers cannot read this GGUF: {one_line(error)}") from error
        fix_pre_tokenizer(tokenizer, path)
    weights.fitted(model, info, label)
    # The weights are plain float32 now; the note that they came from GGUF would forbid saving them.
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer


def _keep(model: Any, tokenizer: Any, folder: Path) -> bool:
    """Write the unpacked GGUF beside the cache, whole or not at all."""
    size = sum(p.numel() for p in model.parameters()) * 4
    try:
        room = shutil.disk_usage(next(p for p in folder.parents if p.exists())).free
    except (OSError, StopIteration):
        return False
    if size > _CONVERTED_LIMIT or size * 1.2 > room:
        return False

    def write(place: Path) -> None:
        with _quiet():
            model.save_pretrained(str(place))
            tokenizer.save_pretrained(str(place))

    return unpacked.keep(folder, write)


def pretrained_encoder(source: str, revision: str | None, label: str) -> tuple[Any, Any]:
    """A text encoder in float32 and its tokenizer, from a folder or the Hub. Raises as :func:`read_folder` does."""
    from transformers import AutoModel

    folder = Path(source) if Path(source).is_dir() else snapshot(source, label, revision)
    config = _config(folder, label)
    files = weights.weight_files(folder, label)
    if not files:
        raise ModelNotFound(f"{label!r} has no .safetensors weights (pickled weights are never read): convert it first")
    weights.check_sizes(config, weights.headers(files, label), label)
    tokenizer = read_tokenizer(folder, label)
    with _quiet(), reading(label, "encoder", folder):
        model, info = AutoModel.from_pretrained(
            str(folder), trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
        notes: list[str] = []
        model = weights.fitted(model, info, label, files=files, encoder=True, notes=notes)
    for note in notes:
        _LOG.warning("%s", note)
    return model, tokenizer


def _config(folder: Path, label: str) -> Mapping[str, Any]:
    """``config.json`` as it is written, before transformers makes anything of it."""
    path = folder / "config.json"
    if not path.is_file():
        ggufs = sorted(p.name for p in folder.glob("*.gguf"))
        hint = f"it holds {', '.join(ggufs)}: name the file" if ggufs else "it has no config.json"
        raise ModelNotFound(f"no model in folder {label!r}: {hint}")
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModel(f"{label}: config.json is not valid JSON ({one_line(error)}): fetch it again") from error
    if not isinstance(config, dict):
        raise CorruptModel(f"{label}: config.json holds {type(config).__name__}, not an object: fetch it again")
    return config


def _check_config(
    folder: Path, config: Mapping[str, Any], checkpoint: weights.Checkpoint, label: str, remote: bool
) -> None:
    """Whether transformers can build a model of this size from ``config.json``, tried without memory for weights."""
    from transformers import AutoConfig

    with _quiet(), reading(label, "config.json", folder, _model_trials(remote)):
        AutoConfig.from_pretrained(str(folder), trust_remote_code=remote)
    if "auto_map" in config:
        return  # code of its own need not stand the meta device
    empty = empty_model(folder, label, remote=remote)
    weights.check_total(empty, config, checkpoint, label)
    weights.check_kinds(empty, config, checkpoint, label)


def _check_half(model: nn.Module, label: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float16 and not bool(torch.isfinite(parameter).all()):
            raise UnsupportedModel(
                f"{label}: {name} holds values beyond 65504, the largest of float16: use --dtype bfloat16 or float32"
            )


def _model_trials(remote: bool) -> Sequence[Trial]:
    """What is made of ``config.json`` and ``generation_config.json``."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    def build(folder: Path) -> object:
        builder: Any = AutoModelForCausalLM
        with torch.device("meta"):
            return builder.from_config(AutoConfig.from_pretrained(str(folder)))

    if remote:
        return ()
    return Trial(build, ("config.json",)), Trial(GenerationConfig.from_pretrained, ("generation_config.json",))


def _tokenizer_trials(remote: bool) -> Sequence[Trial]:
    """What is made of the files of a tokenizer."""
    return () if remote else (Trial(_tokenizer_of, TOKENIZER_FILES),)


def _tokenizer_of(folder: Path, remote: bool = False) -> Any:
    """The tokenizer of a folder, tried on a short text: some faults show only then."""
    from transformers import AutoTokenizer

    with silent():  # a library written in Rust writes where it gave up, over many lines
        made = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=remote)
        made.decode(made("a b")["input_ids"])
    return made


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


def _major() -> str:
    import transformers

    return transformers.__version__.split(".")[0]
