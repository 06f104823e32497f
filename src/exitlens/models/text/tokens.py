"""What a tokenizer does around a text, and tokens that its model does not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from exitlens.errors import InputError
from exitlens.models.checkpoint.reasons import one_line
from exitlens.models.text.patterns import in_time, panicked
from exitlens.parsing import cut

__all__ = ["appended", "check_ids", "check_text", "encoded", "reached", "tokenizer_notes"]


def check_text(text: str) -> None:
    """Raise :class:`InputError` where ``text`` holds half a character (a lone surrogate), as tokenizers would not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start : error.start + 1]
        raise InputError(f"a text holds {half!r}, which is no character: write it as UTF-8") from None


def encoded(tokenizer: Any, text: str, special: bool, model: str, **options: Any) -> list[int]:
    """Token ids of ``text``. Raises :class:`InputError` where the tokenizer gives up on it, or takes too long."""
    try:
        found = in_time(lambda: tokenizer(text, add_special_tokens=special, **options), len(text))
        return list(found["input_ids"])
    except BaseException as error:
        if not isinstance(error, Exception) and not panicked(error):
            raise
        raise InputError(
            f"the tokenizer of {model} gives up on a text of {len(text)} characters ({cut(text, 40)!r}): "
            f"{one_line(error, 100)}; mend its tokenizer.json, or leave the text out"
        ) from None


def appended(tokenizer: Any) -> tuple[int, ...]:
    """The ids that ``tokenizer`` puts behind every text (``</s>`` where ``add_eos_token`` is set, ``[SEP]``).

    A text that goes on must not end in them: an answer would be scored after the end of a text.
    """
    if tokenizer is None:
        return ()
    text = "a b"
    whole = [int(i) for i in tokenizer(text)["input_ids"]]
    plain = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return tuple(whole[start + len(plain) :])
    return ()


def reached(decode: Callable[[Sequence[int]], str], ids: Sequence[int], text: str) -> list[int]:
    """How many characters of ``text`` its tokens cover, up to and including each token; part of one counts as one.

    By decoding alone, so that it holds for every tokenizer; special tokens cover nothing.

    Args:
        decode: Token ids to text, special tokens left out.
        ids: The tokens of ``text``.
        text: What they spell; the tokenizer may have dropped white space at its beginning.

    Raises:
        InputError: The tokens spell another text: the tokenizer changes characters, or has no token for one.
    """
    whole = decode(ids)
    dropped = len(text) - len(text.lstrip())
    start = next((at for at in (0, dropped) if whole.strip() and text[at:].startswith(whole)), None)
    if start is None or text[start + len(whole) :].strip():
        raise InputError(
            f"the tokens of {text[:80]!r} spell {whole[:80]!r}: this tokenizer changes the text, so that no place in "
            "it can be found"
        )
    ends: list[int] = []
    for count in range(1, len(ids) + 1):
        seen = decode(ids[:count])
        if not seen.strip():  # white space at the beginning may be dropped from a text that it is all of
            ends.append(start + len(seen) if whole.startswith(seen) else start)
            continue
        # The bytes of a character that is not whole yet decode to one or more replacement characters.
        known = seen if whole.startswith(seen) else seen.rstrip("\ufffd")
        ends.append(start + len(known) + (known != seen))
    return ends


def anchor(tokenizer: Any) -> tuple[list[int], str]:
    """A token to stand before another one (:func:`token_text`), and its text; none where there is no plain one."""
    ids = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""
    return (ids, text) if text.strip() else ([], "")


def token_text(tokenizer: Any, token: int, before: tuple[list[int], str]) -> str:
    """One token as text, its leading space kept, special tokens by their name.

    SentencePiece drops the space of whatever stands first, so that ``▁true`` and ``true`` would look alike: the token
    is decoded behind another one.
    """
    ids, text = before
    whole = str(tokenizer.decode([*ids, token], clean_up_tokenization_spaces=False))
    if ids and whole.startswith(text):
        return whole[len(text) :]
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def check_ids(ids: Sequence[int] | Tensor, rows: int, tokenizer: Any, model: str) -> None:
    """Raise :class:`InputError`, naming the token and both sizes, for an id beyond the ``rows`` of the embedding."""
    if isinstance(ids, Tensor):
        most, least = (int(ids.max()), int(ids.min())) if ids.numel() else (0, 0)
    else:
        most, least = max(ids, default=0), min(ids, default=0)
    if most < rows and least >= 0:
        return
    odd = most if most >= rows else least
    try:
        named = repr(str(tokenizer.decode([odd])))[:80]
    except (AttributeError, OverflowError, TypeError, ValueError, IndexError):
        named = "no token"
    size = f", its tokenizer {len(tokenizer)}" if hasattr(tokenizer, "__len__") else ""
    raise InputError(
        f"token {odd} ({named}) is not one of {model}'s: its embedding has {rows} tokens{size}; leave it out"
    )


def tokenizer_notes(tokenizer: Any, rows: int, label: str) -> list[str]:
    """What a user should hear about a tokenizer once: end tokens that are left out, tokens that the model lacks."""
    notes: list[str] = []
    ends = appended(tokenizer)
    if ends:
        names = " ".join(tokenizer.convert_ids_to_tokens(list(ends)))
        notes.append(f"{label}: its tokenizer ends every text with {names}, which is left out: texts go on here")
    if tokenizer is not None and hasattr(tokenizer, "__len__") and len(tokenizer) > rows:
        notes.append(
            f"{label}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows}: a text that needs one of the "
            "others is refused"
        )
    return notes
