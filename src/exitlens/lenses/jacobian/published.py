"""Jacobian lenses as others publish them: ``{"J": {block: [d, d] float16}, n_prompts, source_layers, d_model}``.

Block ``l`` there is counted from 0 and means that block's *output*, which is layer l + 1 here. The files are pickles in
a zip; torch's ``weights_only`` unpickler reads them, which knows tensors and plain values, calls nothing else, and
refuses a file that asks for more. As safetensors the same fields are tensors ``J.<block>`` and texts in the header.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError, UnsupportedModel
from exitlens.lenses.jacobian.lens import JacobianLens
from exitlens.lenses.jacobian.text import FitSettings, rows_jacobian
from exitlens.models.protocol import LayeredModel
from exitlens.models.pullback import Gradient
from exitlens.parsing import check_plain, cut
from exitlens.storage.atomic import write_file, write_tensors

__all__ = ["PICKLES", "PUBLISHED", "for_model", "from_published_tensors", "read_published", "write_published"]

PICKLES = (".pt", ".pth", ".bin")
PUBLISHED = "jlens"
_LOG = logging.getLogger("exitlens")
_ALIKE = 0.2  # the cosine that tells a model's own lens from another's
_SKIP = 8  # of a text shorter than those that lenses are fitted on
_TEXT = (
    "The giant anteater walks on its knuckles to keep its long claws sharp, and eats ants and termites, which it finds "
    "by smell. It lives in the grasslands of South America and sleeps on open ground under its own tail."
)
_FIELDS = ("J", "n_prompts", "source_layers", "d_model")


def read_published(path: Path) -> JacobianLens:
    """The lens in a published pickle, none of whose code is run. Raises :class:`InputError`."""
    check_plain(path, error=InputError, holds="a lens")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are read as safely
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a forged zip or pickle makes of torch
        why = " ".join(str(error).split())
        # The message begins with advice on how to run the code after all, which is not wanted here.
        asks = why.find("Unsupported ")
        raise InputError(
            f"'{path}' is not read: it is damaged, or asks for more than tensors and numbers "
            f"({cut(why[asks:] if asks >= 0 else why)}); get a file that holds tensors alone"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("J"), dict):
        raise InputError(f"'{path}' is no Jacobian lens: it holds {_held(found)}, expected {', '.join(_FIELDS)}")
    return _lens(found["J"], found, path)


def from_published_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> JacobianLens:
    """The lens in the same fields as safetensors. Raises :class:`InputError`."""
    matrices: dict[Any, Tensor] = {}
    for key, tensor in tensors.items():
        head, _, block = key.partition(".")
        if head != "J" or not block.isdecimal():
            raise InputError(f"'{path}' holds a tensor {cut(repr(key))}: in a published lens they are J.0, J.1, …")
        matrices[int(block)] = tensor
    fields: dict[str, Any] = {}
    for key in _FIELDS[1:]:
        try:
            fields[key] = json.loads(metadata.get(key, "null"))
        except ValueError:
            fields[key] = metadata[key]
    return _lens(matrices, fields, path)


def write_published(lens: JacobianLens, path: Path, *, pickled: bool) -> str:
    """Write the published fields, as safetensors or as the pickle that others read; returns a line on what is left out.

    Raises:
        InputError: The lens has layer 0 alone, which the layout cannot hold.
    """
    kept = {layer - 1: matrix.half() for layer, matrix in zip(lens.layers, lens.matrices, strict=True) if layer > 0}
    if not kept:
        raise InputError(
            f"lens {lens.name!r} has layer 0 alone, and published files begin at layer 1: nothing to write"
        )
    large = [block for block, matrix in kept.items() if not bool(torch.isfinite(matrix).all())]
    if large:
        raise InputError(
            f"lens {lens.name!r}: the matrix of layer {large[0] + 1} is too large for float16, which is published"
        )
    fields = {"n_prompts": lens.texts, "source_layers": list(kept), "d_model": lens.d_model}
    if pickled:
        value = {"J": {block: matrix.clone() for block, matrix in kept.items()}, **fields}
        write_file(path, lambda part: torch.save(value, part))
    else:
        head = {"format": PUBLISHED, **{key: json.dumps(value) for key, value in fields.items()}}
        write_tensors(path, {f"J.{block}": matrix for block, matrix in kept.items()}, head)
    return (
        "layer 0 (the embeddings) is left out: published files begin at block 0's output" if lens.layers[0] == 0 else ""
    )


def for_model(lens: JacobianLens, lm: LayeredModel) -> JacobianLens:
    """A published lens as one of this model: the file names no model, so its highest matrix is compared.

    Some rows of the model's own matrix at that layer are computed on one short text. What the blocks above add to the
    identity points the same way on any text of one model (cosines of 0.56 to 0.78 at the last four layers of the
    built-in model, between prose and code), and elsewhere in another's (0.03 at most).

    Raises:
        InputError: Width or layers do not fit, or the matrix is another model's.
    """
    last = lm.n_layers
    if last in lens.layers and len(lens.layers) > 1:
        _LOG.warning("lens '%s' has a matrix of layer %d, the model itself, which is left out", lens.name, last)
        place = lens.layers.index(last)
        lens = dataclasses.replace(lens, matrices=lens.matrices[:place], layers=lens.layers[:place])
    lens.check(lm)
    if "ignored" in lens.provenance:
        _LOG.warning("lens '%s' also holds %s, which is ignored", lens.name, lens.provenance["ignored"])
    try:
        alike = _likeness(lens, lm)
    except UnsupportedModel as error:
        _LOG.warning("lens '%s' names no model, and whether it is %s cannot be told: %s", lens.name, lm.name, error)
        alike = 1.0
    if not alike >= _ALIKE:
        raise InputError(
            f"lens {lens.name!r} is another model's: at layer {lens.layers[-1]} it points elsewhere than {lm.name} "
            f"(cosine {alike:.2f}, {_ALIKE} at least): use the lens of this model"
        )
    return dataclasses.replace(lens, depth=last)


def _likeness(lens: JacobianLens, lm: LayeredModel) -> float:
    """Cosine of the lens's and the model's own matrix at the lens's highest layer, over a few rows.

    Without the diagonal: of what stands beside the 1 there, float16 keeps three digits.
    """
    ids = lm.encode(_TEXT)[: min(48, lm.context or 48)]
    layer, d = lens.layers[-1], lm.d_model
    own = torch.zeros(1, d, d, device=lm.device)
    text = Gradient(lm).text(ids, first=_SKIP, lowest=layer)
    rows = range(0, d, max(1, d // 8))
    for row in rows:
        rows_jacobian(text, range(row, row + 1), [layer], len(ids) - 1 - _SKIP, FitSettings(rows=1), own)
    picked = torch.tensor(list(rows))
    beside = 1.0 - torch.eye(d)[picked]
    a, b = lens.matrices[-1].float().cpu()[picked] * beside, own[0].cpu()[picked] * beside
    size = float(a.norm() * b.norm())
    if size == 0:
        raise UnsupportedModel(f"its matrix of layer {layer} is diagonal")
    return float((a * b).sum()) / size


def _lens(matrices: Mapping[Any, Any], fields: Mapping[str, Any], path: Path) -> JacobianLens:
    """Checked parts, none of which is copied before its size is known. Raises :class:`InputError`."""
    where, d, texts = f"'{path}'", fields.get("d_model"), fields.get("n_prompts")
    if type(d) is not int or d < 1:
        raise InputError(f"{where}: d_model is {cut(repr(d))}, expected the width of the model")
    if type(texts) is not int or texts < 1:
        raise InputError(f"{where}: n_prompts is {cut(repr(texts))}, expected how many texts the means are over")
    blocks, said = list(matrices), fields.get("source_layers")
    if not blocks or not all(type(block) is int and block >= 0 for block in blocks):
        raise InputError(f"{where}: J is keyed by {cut(blocks)}, expected the numbers of blocks, from 0")
    if said is not None and (not isinstance(said, list | tuple) or sorted(map(str, said)) != sorted(map(str, blocks))):
        raise InputError(f"{where}: source_layers is {cut(said)}, but J has blocks {cut(sorted(blocks))}")
    for block in blocks:
        matrix = matrices[block]
        if not isinstance(matrix, Tensor) or matrix.layout != torch.strided or not matrix.is_floating_point():
            raise InputError(f"{where}: J of block {block} is {_held(matrix)}, expected a matrix of floats")
        if tuple(matrix.shape) != (d, d) or not matrix.is_contiguous():
            raise InputError(f"{where}: J of block {block} has shape {tuple(matrix.shape)}, expected ({d}, {d})")
    order = sorted(blocks)
    notes = {"source": f"published file {path.name}"}
    extra = sorted(str(key) for key in fields if key not in _FIELDS)
    if extra:
        notes["ignored"] = cut(", ".join(extra))
    stacked = torch.stack([matrices[block].detach() for block in order])
    layers = tuple(block + 1 for block in order)
    return JacobianLens(path.stem, "", stacked, layers, None, texts, provenance=notes)


def _held(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return cut(f"a {type(value).__name__}" + (f" of {', '.join(map(str, value))}" if isinstance(value, dict) else ""))
