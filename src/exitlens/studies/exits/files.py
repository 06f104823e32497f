"""Texts to fit exits on, and what was fitted as files: heads, checkpoints, and adapters as peft writes them."""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exitlens.decoding import Sampling, generate
from exitlens.errors import DataError, InputError, MissingExtra, ProbeError
from exitlens.exits.adapter import State
from exitlens.exits.heads import ExitHeads
from exitlens.models import wrap
from exitlens.models.forward import cut_tokens
from exitlens.models.protocol import LayeredModel
from exitlens.parsing import cut
from exitlens.storage.atomic import read_json, write_folder, write_json, write_tensors
from exitlens.storage.tensors import read_tensors

__all__ = [
    "load_adapted", "load_heads", "own_texts", "own_windows", "read_state", "read_windows", "record_states",
    "save_adapter", "save_heads", "windows_of", "write_state",
]  # fmt: skip

_LEAST = 4  # windows to fit on and to keep apart
_BEGINNINGS = (
    "The", "In", "A", "It", "Q: What", "There are", "When", "She", "How to", "One of the", "According to", "I",
    "Today", "The first", "Many people", "In the year",
)  # fmt: skip


def read_windows(path: str | Path, lm: LayeredModel, *, length: int = 128, most: int = 400) -> list[list[int]]:
    """A text file as windows of ``length`` tokens. Raises DataError for a file that cannot be read or is too short."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the text '{file}': {error.strerror or error}; check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"the text '{file}' is not UTF-8: save it as UTF-8") from None
    found = windows_of([part for part in text.split("\n\n") if part.strip()], lm, length=length, most=most)
    if len(found) < _LEAST:
        raise DataError(
            f"'{file}' gives {len(found)} windows of {length} tokens, at least {_LEAST} are needed: give more text"
        )
    return found


def windows_of(texts: Sequence[str], lm: LayeredModel, *, length: int = 128, most: int = 400) -> list[list[int]]:
    """Texts one after the other, cut into windows of ``length`` tokens; the rest is left out."""
    return _windows((lm.encode(text + "\n\n", special=False) for text in texts), length, most)


def own_windows(
    lm: LayeredModel,
    count: int,
    *,
    length: int = 128,
    most: int = 400,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """``count`` texts by the model itself (:func:`own_texts`), one after the other, cut into windows as a file's are.

    Raises InputError where they are too few.
    """
    written = own_texts(lm, count, tokens=length, seed=seed, progress=progress)
    # What the tokenizer puts before a text stands before none of a file's texts either. The blank line between two
    # texts is that of a text that goes on: SentencePiece writes a space before one that stands alone.
    lead = len(lm.encode("A")) - len(lm.encode("A", special=False))
    before, whole = lm.encode("A", special=False), lm.encode("A\n\n", special=False)
    between = whole[len(before) :] if whole[: len(before)] == before else lm.encode("\n\n", special=False)
    found = _windows(([*ids[lead:], *between] for ids in written), length, most)
    if len(found) < _LEAST:
        raise InputError(
            f"{count} texts of the model's own give {len(found)} windows, at least {_LEAST} are needed: ask for more"
        )
    return found


def _windows(texts: Iterable[Sequence[int]], length: int, most: int) -> list[list[int]]:
    """Token ids one after the other, cut into at most ``most`` windows of ``length``; the rest is left out."""
    ids: list[int] = []
    for text in texts:
        ids += text
        if len(ids) >= length * most:
            break
    return list(cut_tokens(ids[: length * most], length, least=length))


def own_texts(
    lm: LayeredModel,
    count: int,
    *,
    tokens: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """``count`` texts that the model writes itself (temperature 1), from a few everyday beginnings, as token ids.

    The ids are those of the prompt and those that were chosen: their text, tokenised again, is often other ids.
    """
    prompts = [_BEGINNINGS[i % len(_BEGINNINGS)] for i in range(count)]
    if lm.context is not None:
        tokens = max(1, min(tokens, lm.context - max(len(lm.encode(text)) for text in _BEGINNINGS)))
    found = generate(
        lm, prompts, max_new_tokens=tokens, batch_size=16, sampling=Sampling(temperature=1.0), seed=seed,
        progress=progress,
    )  # fmt: skip
    return [[*g.prompt_ids, *g.token_ids] for g in found]


@torch.no_grad()
def record_states(
    lm: LayeredModel,
    windows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    tick: Callable[[int], None] | None = None,
) -> tuple[dict[int, Tensor], NDArray[Any], NDArray[Any]]:
    """States ``{layer: [T, d_model]}`` of all windows, at ``layers`` and N; the window and place of each position."""
    parts: dict[int, list[Tensor]] = {j: [] for j in dict.fromkeys((*layers, lm.n_layers))}
    for at in range(0, len(windows), 4):
        hidden = lm.forward(torch.tensor(windows[at : at + 4], device=lm.device), layers=list(parts)).hidden
        for j, states in parts.items():
            states.append(hidden[j].flatten(0, 1).float().cpu())
        if tick is not None:
            tick(len(windows[at : at + 4]))
    length = len(windows[0])
    question, step = np.divmod(np.arange(len(windows) * length), length)
    return {j: torch.cat(states).to(lm.device) for j, states in parts.items()}, question, step


def save_heads(heads: ExitHeads, path: str | Path, provenance: Mapping[str, str]) -> Path:
    """Write heads as one safetensors file with where they come from."""
    tensors, text = heads.to_tensors()
    write_tensors(Path(path), tensors, text | _stamped(provenance))
    return Path(path)


def load_heads(path: str | Path, lm: LayeredModel | None = None) -> ExitHeads:
    """Heads of a file. Raises InputError, and ProbeError for another kind of file or another model's heads."""
    tensors, text = read_tensors(Path(path))
    try:
        heads = ExitHeads.from_tensors(tensors, text)
        wrong = _misfit(tensors)
    except (KeyError, TypeError) as error:
        wrong = cut(error)
    if wrong is not None:
        raise ProbeError(f"'{path}' is not a whole file of exit heads ({wrong}): train them again")
    if lm is not None:
        heads.check(lm)
        size, deepest, last = heads.shift.shape[1], max(heads.layers), int(heads.shortlist.max())
        if size != lm.d_model or deepest > lm.n_layers or last >= lm.vocab_size:
            raise ProbeError(f"'{path}' holds exit heads of another width, depth or vocabulary than {lm.name}'s")
    return heads


def _misfit(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor of exit heads that has not the shape and type that the others ask for: a file may be forged."""
    e, d = len(tensors["layers"].flatten()), tensors["shift"].shape[-1]
    r = tensors["down"].shape[1] if tensors["down"].ndim == 3 else 0
    for name, shape in {
        "down": (e, r, d),
        "up": (e, d, r),
        "shift": (e, d),
        "direction": (e, d),
        "offset": (e,),
    }.items():
        tensor = tensors[name]
        if tensor.shape != shape or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            return name
    for name in ("layers", "shortlist"):
        ids = tensors[name]
        if ids.ndim != 1 or ids.dtype != torch.long or not len(ids) or bool((ids < 0).any()):
            return name
    return None if len(set(tensors["layers"].tolist())) == e else "layers"


def write_state(path: Path, state: State) -> None:
    """A checkpoint, whole or not at all."""
    write_tensors(path, *state)


def read_state(path: Path) -> State | None:
    """A checkpoint, or None where there is none. Raises InputError for a file of another kind."""
    if not path.exists():
        return None
    tensors, text = read_tensors(path)
    if text.get("kind") != "exitlens-adapt-checkpoint":
        raise InputError(f"'{path}' is not a checkpoint of `exitlens exits adapt`: remove it")
    return tensors, text


def save_adapter(model: Any, folder: str | Path, lm: LayeredModel, provenance: Mapping[str, Any]) -> Path:
    """Write an adapter as peft does (safetensors), and ``exitlens.json`` with the model it belongs to."""
    place = Path(folder)

    def make(part: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(str(part), safe_serialization=True)
        write_json(part / "exitlens.json", {"model": lm.name, "fingerprint": lm.fingerprint, **_stamped(provenance)})

    write_folder(place, make)
    return place


def load_adapted(lm: LayeredModel, folder: str | Path) -> Any:
    """The model with a LoRA adapter of ours or of peft put into its weights.

    Raises InputError for a folder without one, ProbeError for an adapter of another model, MissingExtra. The
    model's own object is changed: use what is returned.
    """
    place = Path(folder)
    if not (place / "adapter_config.json").is_file() or not (place / "adapter_model.safetensors").is_file():
        raise InputError(
            f"no adapter in '{place}': it needs adapter_config.json and adapter_model.safetensors, as "
            "`exits adapt` and peft write them"
        )
    try:
        import peft
    except ImportError:
        raise MissingExtra("adapters need peft: pip install 'exitlens[peft]'") from None
    known = read_json(place / "exitlens.json")
    if isinstance(known, dict) and known.get("fingerprint") not in (None, lm.fingerprint):
        raise ProbeError(
            f"the adapter '{place}' was trained on another model ({known.get('model')}), not on {lm.name}: "
            "train one with `exitlens exits adapt`"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft asks transformers for names that are about to change
            model = peft.PeftModel.from_pretrained(lm.model, str(place)).merge_and_unload()
    except (ValueError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise ProbeError(f"the adapter '{place}' does not fit {lm.name}: {str(error).splitlines()[0]}") from None
    return wrap(model.eval(), lm.tokenizer, name=f"{lm.name}+{place.name}")


def _stamped(provenance: Mapping[str, Any]) -> dict[str, Any]:
    from exitlens.version import __version__

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"exitlens": __version__, "made": now, **provenance}
