"""Every causal LM that transformers knows is read rightly or refused, and docs/families.md says which."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from . import census, table, zoo

PAGE = Path(__file__).parents[2] / table.DOCUMENT
# Several seconds each: large vocabularies or picture encoders that do not shrink, slow first imports.
SLOW = {"blt", "dots3_note", "dots3_note_text", "gemma4_unified", "roc_bert", "phi4_multimodal"}

pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith("5.23."), reason="the page was written with transformers 5.23"
)


def _rows() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ") and " class " not in line}


# What decoding does is measured for all of them by scripts/families_table.py, and here for one of each kind.
DECODED = ("llama", "qwen2", "gemma2", "llama4_text", "ministral3", "phi3", "deepseek_v32", "xlnet", "falcon_mamba")


@pytest.mark.parametrize("entry", [pytest.param(e, marks=pytest.mark.slow) if e in SLOW else e for e in zoo.entries()])
def test_read_rightly_or_refused(entry: str) -> None:
    outcome = census.survey(entry, decode=entry in DECODED)
    assert outcome.status != "wrong", outcome.reason
    line = _rows()[entry]
    if outcome.status == "unbuilt" or "| – |" in line:
        return  # depends on optional libraries
    if outcome.status == "right" and entry not in DECODED:
        outcome.late, outcome.ragged = (part.strip() for part in line.split("|")[8:10])
        assert outcome.late, "measure it: python scripts/families_table.py"
        assert outcome.ragged == "equal", "measure it: python scripts/families_table.py"
    assert table.row(outcome) == line


def test_page_lists_every_entry_and_its_counts_are_right() -> None:
    text, rows = PAGE.read_text(encoding="utf-8"), _rows()
    assert sorted(rows) == zoo.entries()
    right = sum("| right |" in line for line in rows.values())
    refused = [line for line in rows.values() if "| **refused** |" in line]
    assert f"**{right} are read rightly, {len(refused)} are refused" in text
    assert right >= 170
    assert not any("**wrong**" in line for line in rows.values())
    assert all(len(line.split("|")[-2].strip()) > 20 for line in refused), "a refusal gives its reason"
