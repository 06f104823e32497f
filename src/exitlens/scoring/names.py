"""How judges, metrics and protocols are written in settings: read and checked without loading what they name."""

from __future__ import annotations

import math
from typing import Literal

from exitlens.errors import ConfigError
from exitlens.parsing import cut

__all__ = ["JUDGES", "ScoringProtocol", "metric_name", "parse_judge"]

JUDGES = ("similarity[:threshold]", "margin:bleu", "margin:rouge", "margin:bertscore", "choice", "labels:FILE")
ScoringProtocol = Literal["truthfulqa", "plain"]
"""How answers meet references, see :mod:`exitlens.scoring.truthfulqa`."""


def parse_judge(text: str) -> tuple[str, str]:
    """A judge's kind and its argument, checked as far as the text alone tells. Raises ConfigError."""
    head, _, rest = text.partition(":")
    if head == "similarity":
        try:
            threshold = float(rest or "0.85")
        except ValueError:
            threshold = math.nan
        if not -1 <= threshold <= 1:  # a similarity is an F1 of cosines
            raise ConfigError(
                f"threshold {cut(repr(rest))} of judge {cut(repr(text))} is no number from -1 to 1: write "
                "similarity:0.85"
            )
        return head, rest or "0.85"
    if head == "margin":
        return head, metric_name(rest or "rouge")
    if (head == "choice" and not rest) or (head == "labels" and rest):
        return head, rest
    raise ConfigError(f"no judge {cut(repr(text))}: use {', '.join(JUDGES)}")


def metric_name(name: str) -> str:
    """``bleu``, ``rouge`` (also written rougeL) or ``bertscore``. Raises ConfigError for any other."""
    known = "rouge" if name.lower() in ("rougel", "rouge-l") else name.lower()
    if known not in ("bleu", "rouge", "bertscore"):
        raise ConfigError(f"no metric {cut(repr(name))}: use bleu, rouge or bertscore")
    return known
