"""Words of a text for ROUGE-L, in any script."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

__all__ = ["words"]

_ASCII_WORD = re.compile(r"[a-z0-9]+")

# Scripts written without spaces between words: each character, with its marks, is a token.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),  # 々 and its like
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0x9FFF),  # CJK
    (0xF900, 0xFAFF),  # CJK compatibility
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x1B000, 0x1B16F),  # Kana supplements
    (0x20000, 0x3FFFF),  # CJK extensions B and later
)


@lru_cache(maxsize=1 << 15)
def words(text: str) -> tuple[str, ...]:
    """Lower-cased words of ``text``, without punctuation and without stemming.

    ASCII text gives exactly the tokens of rouge-score's default tokenizer (runs of a–z and 0–9). That tokenizer drops
    every other letter, so that an Arabic or Japanese answer scores 0 against itself; here runs of letters, digits and
    their marks are words in any script, and scripts written without spaces give one token a character. Text is
    composed first (NFC), so that an accent typed as its own character changes nothing.
    """
    lowered = text.lower()
    if lowered.isascii():
        return tuple(_ASCII_WORD.findall(lowered))
    found: list[str] = []
    run: list[str] = []
    for character in unicodedata.normalize("NFC", lowered):
        kind = _kind(character)
        # A mark belongs to what stands before it: to the run, or to the single character just found.
        if kind == "mark" and not run and found and found[-1]:
            found[-1] += character
        elif kind in ("word", "mark"):
            run.append(character)
        else:
            if run:
                found.append("".join(run))
                run = []
            found.append(character if kind == "single" else "")
    if run:
        found.append("".join(run))
    return tuple(token for token in found if token)


@cache
def _kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    if category == "M":
        return "mark"
    if category not in "LN":
        return "gap"
    code = ord(character)
    return "single" if any(low <= code <= high for low, high in _UNSPACED) else "word"
