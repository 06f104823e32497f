"""Short names of judges, for figures and headings, and the legend that says what they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from exitlens.report.text import shorten, visible

__all__ = ["judge_legend", "short_judges"]

_SHORT = 28  # characters of a name that no rule shortens


def short_judges(names: Iterable[object]) -> dict[object, str]:
    """A short name for each judge, different for different judges: ``ROUGE-L margin``, ``BERTScore F1 ≥ 0.85``.

    Tables hold the whole rule; figures and headings the short name, and :func:`judge_legend` joins them.
    """
    out: dict[object, str] = {}
    for name in dict.fromkeys(names):
        short = wanted = _short(visible(name))
        for number in count(2):
            if short not in out.values():
                break
            short = f"{wanted} ({number})"
        out[name] = short
    return out


def judge_legend(names: Iterable[object]) -> str:
    """What each short name stands for; empty where none was shortened."""
    told = [f"{short}: {visible(name)}" for name, short in short_judges(names).items() if short != visible(name)]
    return "; ".join(told)


def _short(name: str) -> str:
    metric = name.split(" (", maxsplit=1)[0].split(":", maxsplit=1)[0].split(" with ", maxsplit=1)[0].strip()
    if "minus nearest incorrect" in name:
        return f"{metric} margin"
    if "≥" in name:
        return f"{metric} ≥ {name.rpartition('≥')[2].strip()}"
    return metric if name.startswith("exact choice") else shorten(name, _SHORT)
