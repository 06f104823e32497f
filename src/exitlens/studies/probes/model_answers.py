"""What the model itself says of a statement, and which of its layers the original study probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exitlens.layer_range import Layers
from exitlens.models.protocol import LayeredModel
from exitlens.runs.hidden_states import StateStore
from exitlens.studies.layers.stage import check_layers
from exitlens.studies.probes.extraction import label_tokens

__all__ = ["PROBED_LAYERS", "model_answers", "pick_probed_layers"]

PROBED_LAYERS = "1/2,5/8,3/4"  # of the depth: layers 16, 20 and 24 of the original study's 32


def pick_probed_layers(lm: LayeredModel, layers: Layers = PROBED_LAYERS) -> list[int]:
    """The layers that the original study probes in this model, ascending. Raises LayerError, InputError."""
    return check_layers(lm, layers)


def model_answers(
    lm: LayeredModel, store: StateStore, ids: Sequence[str], labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether the top-1 next token is the correct label word ``[n]``, and P(true) over P(true) + P(false) ``[n]``."""
    rows = store.index().drop_duplicates("id", keep="last").set_index("id").loc[list(ids)]
    words = {label: np.array(tokens) for label, tokens in label_tokens(lm).items()}
    top = rows["top_id"].to_numpy()
    correct = np.where(labels == 1, np.isin(top, words[1]), np.isin(top, words[0]))
    true, false = rows["p_true"].to_numpy(dtype=np.float64), rows["p_false"].to_numpy(dtype=np.float64)
    total = true + false
    # Both words may have no probability in float32: then it says nothing.
    return correct, np.divide(true, total, out=np.full_like(true, 0.5), where=total > 0)
