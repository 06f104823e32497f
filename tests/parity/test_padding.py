"""Which models pad exactly: measured past the borders of their chunks and the budgets of their indexers."""

from __future__ import annotations

import pytest
import torch
import transformers

from exitlens.models import Layered, wrap

from . import zoo
from .census import close

LENGTHS = (40, 37, 31, 24, 13, 5)  # chunks and budgets are 6 to 8 tokens here
EXACT = ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4", "llama4_text", "qwen4_exp_text")
NOT = ("deepseek_v4", "minimax_m3_vl_text", "xlnet", "roformer")

pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith("5.23."), reason="measured with transformers 5.23"
)


def _padded(lm: Layered, side: str, seed: int) -> None:
    """Six lengths side by side, every layer compared with each row alone."""
    longest = max(LENGTHS)
    rows = torch.randint(3, 180, (len(LENGTHS), longest), generator=torch.Generator().manual_seed(seed))
    ids, mask = torch.full_like(rows, 7), torch.zeros_like(rows)
    for r, n in enumerate(LENGTHS):
        spot = slice(longest - n, longest) if side == "left" else slice(0, n)
        ids[r, spot], mask[r, spot] = rows[r, :n], 1
    states = lm.forward(ids, mask, layers="all").hidden
    for r, n in enumerate(LENGTHS):
        bare = lm.forward(rows[r : r + 1, :n], layers="all").hidden
        for j, h in states.items():
            close(h[r][mask[r].bool()], bare[j][0], f"{side} padding, {n} tokens, layer {j}")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("entry", EXACT)
def test_chunks_and_budgets_that_count_a_rows_own_tokens(entry: str, seed: int) -> None:
    lm = wrap(zoo.build(entry, seed), None, name=entry)
    for side in ("left", "right"):
        _padded(lm, side, seed)
    assert lm.pads_exactly


@pytest.mark.parametrize("entry", NOT)
def test_borders_that_padding_moves_are_not_padded(entry: str) -> None:
    lm = wrap(zoo.build(entry), None, name=entry)
    assert not lm.pads_exactly
    with pytest.raises(Exception, match=r"left padding|cannot run with padding"):
        _padded(lm, "left", 0)


def test_a_family_that_was_not_measured_is_not_trusted() -> None:
    model = zoo.build("llama4_text")
    model.config.model_type = "llama_of_tomorrow"
    assert not wrap(model, None, name="tomorrow").pads_exactly
