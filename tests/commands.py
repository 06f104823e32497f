"""A command as a user types it, run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exitlens.cli import main

__all__ = ["call", "done"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def done(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """What a command that must succeed prints with ``--json``."""
    code, out, err = call(capsys, *arguments, "--json", "-q")
    assert code == 0, err
    return json.loads(out)
