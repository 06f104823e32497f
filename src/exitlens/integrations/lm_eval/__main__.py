"""``python -m exitlens.integrations.lm_eval``."""

from __future__ import annotations

from exitlens.integrations.lm_eval import main

main()
