"""``python -m exitlens.integrations.lm_eval``."""

from __future__ import annotations

from . import main

main()
