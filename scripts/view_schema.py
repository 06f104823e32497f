"""Writes web/src/schema.json from what exitlens.report.view_kinds declares: `python scripts/view_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path

from exitlens.report.view_kinds import schema

PLACE = Path(__file__).parents[1] / "web" / "src" / "schema.json"


def text() -> str:
    """The file's contents."""
    return json.dumps(schema(), indent=None, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
