"""The platform's folder for what can be fetched or made again: models, lenses, unpacked weights."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """``$EXITLENS_CACHE``, else the platform's cache folder for exitlens. Not created here."""
    chosen = os.environ.get("EXITLENS_CACHE", "")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("exitlens", appauthor=False))
