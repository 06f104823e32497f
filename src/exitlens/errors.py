"""The exception tree.

Every error a user can cause is an :class:`ExitlensError`; its message is one line that quotes the offending value
and names the remedy. The command line prints that line and exits with code 2, without a traceback::

    ExitlensError
      InputError          an argument, option or file the user gave cannot be used
        LayerError        a layer index out of range
        DataError         a data file is missing, empty, malformed or has no usable rows
        ConfigError       a configuration file or option is unknown or contradictory
        ContextError      a text is longer than the model's context
        ProbeError        probe data or a probe artefact cannot be used
      ModelError          a model cannot be found, read or viewed layer by layer
        ModelNotFound     no such model, or it could not be fetched
        CorruptModel      the file is damaged, truncated or does not match its hash
        UnsupportedModel  its layers could not be identified; says what was looked for
        ParityError       the readout at the last layer does not reproduce the model's logits
      RunError            a run directory cannot be written, or belongs to another run
        UnitsFailed       some units of work failed wherever they were tried, the others are finished: exit code 3
      MissingExtra        an optional dependency is needed; names the pip command
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ContextError",
    "CorruptModel",
    "DataError",
    "ExitlensError",
    "InputError",
    "LayerError",
    "MissingExtra",
    "ModelError",
    "ModelNotFound",
    "ParityError",
    "ProbeError",
    "RunError",
    "UnitsFailed",
    "UnsupportedModel",
    "layer_range_error",
]


class ExitlensError(Exception):
    """Base of every error that exitlens raises on purpose."""


class InputError(ExitlensError, ValueError):
    """An argument, option or file given by the user cannot be used."""


class LayerError(InputError):
    """A layer index out of range."""


class DataError(InputError):
    """A data file is missing, empty, malformed or has no usable rows."""


class ConfigError(InputError):
    """A configuration file or option is unknown or contradictory."""


class ModelError(ExitlensError):
    """A model cannot be found, read or viewed layer by layer."""


class ModelNotFound(ModelError):
    """No such model, or it could not be fetched."""


class CorruptModel(ModelError):
    """The file is damaged, truncated or does not match its hash."""


class UnsupportedModel(ModelError):
    """The model's layers could not be identified."""


class ParityError(ModelError):
    """The readout at the last layer does not reproduce the model's own logits."""


class ContextError(InputError):
    """A text is longer than the model's context."""


class ProbeError(InputError):
    """Probe data or a probe artefact cannot be used."""


class RunError(ExitlensError):
    """A run directory cannot be written, or belongs to another run."""


class UnitsFailed(RunError):
    """Some units of work failed wherever they were tried; the others are finished."""


class MissingExtra(ExitlensError, ImportError):
    """An optional dependency is needed."""


def layer_range_error(
    layer: int, first: int, last: int, *, what: str = "layer", owner: str = "the model", more: str = ""
) -> LayerError:
    """The error for a layer out of range, so that every room reports it in the same words.

    Args:
        layer: what was asked for.
        first: the lowest layer there is; layer 0 is named as the embeddings.
        last: the highest layer there is.
        what: what a layer is here: layer, exit layer, candidate layer, block.
        owner: whose layers these are: a model's or a lens's name.
        more: what else would do, put at the end.
    """
    start = "0 (embeddings)" if first == 0 else str(first)
    return LayerError(f"{what} {layer} is out of range: {owner} has {what}s {start} to {last}{more}")
