"""Sets of concept prompts in the layout of lens-eval: ``{"items": [{"prompt", "intermediates", "target", "name"}]}``.

A set has a name (the field ``set``, else the file's name without ``lens-eval-``) and a rule for the token at which its
prompts are read: the field ``position``, else the rule of the published set of that name. ``synonyms`` may list further
texts that stand for an intermediate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exitlens.data.readers.rows import json_whole
from exitlens.data.records import ConceptPrompt, Dataset, ReadAt, check_read_at
from exitlens.data.sources import Source, folder_sha256, quote_columns
from exitlens.errors import DataError
from exitlens.parsing import cut

__all__ = ["RULES", "is_set", "read_sets"]

RULES: Mapping[str, ReadAt] = MappingProxyType(
    {
        "multihop": "before-target",
        "multilingual": "before-target",
        "order-ops": "before-target",
        "poetry": "last-newline",
        "association": "last",
        "typo": "last",
    }
)
"""Where the published sets are read, by name."""

_ARITHMETIC = "order-ops"
_PREFIX = "lens-eval-"
_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_OPERATORS = (
    ("addition", "plus", "+"),
    ("subtraction", "minus", "-", "−"),
    ("multiplication", "times", "*", "×"),
    ("division", "divided", "/", "÷"),
    ("squared", "square", "^", "²"),
    ("mod", "modulo", "%"),
)

Text = Annotated[str, Field(min_length=1)]
Kind = TypeVar("Kind", bound=BaseModel)


class _Item(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    prompt: Text
    intermediates: Annotated[list[Text], Field(min_length=1)]
    name: str | None = None
    target: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    items: Annotated[list[Any], Field(min_length=1)]
    set: str | None = None
    position: ReadAt | None = None
    synonyms: dict[str, list[Text]] = {}


def is_set(whole: object) -> bool:
    """Whether a file that holds this one JSON value is meant to be a set of concept prompts."""
    return isinstance(whole, dict) and "items" in whole


def read_sets(sources: Sequence[Source], where: str, name: str) -> Dataset:
    """The prompts of all files, one set a file, in the order of the files.

    Args:
        sources: The files.
        where: What the data set names as its source.
        name: The data set's name.

    Raises:
        DataError: A file that is no set, an item without prompt or intermediates, a set whose rule its prompts do not
            meet, names that stand twice.
    """
    prompts: list[ConceptPrompt] = []
    notes: list[str] = []
    seen: dict[str, Source] = {}
    for source in sources:
        found, more = _one(source)
        if found[0].set_name in seen:
            raise DataError(
                f"{str(source.path)!r} and {str(seen[found[0].set_name].path)!r} are both the set "
                f"{cut(repr(found[0].set_name))}: name one otherwise with its field 'set'"
            )
        seen[found[0].set_name] = source
        prompts += found
        notes += more
    sha256 = sources[0].sha256 if len(sources) == 1 else folder_sha256([source.path for source in sources])
    return Dataset(name, where, sha256, "concepts", concepts=tuple(prompts), notes=tuple(notes))


def _one(source: Source) -> tuple[list[ConceptPrompt], list[str]]:
    path = repr(str(source.path))
    whole = json_whole(source)
    if not is_set(whole):
        kind = f"fields {quote_columns(list(whole))}" if isinstance(whole, dict) else "no object"
        raise DataError(f"{path} is no set of concept prompts (it has {kind}): give an object with 'items'")
    file = _checked(_File, whole, path)
    set_name = (file.set or source.name.removeprefix(_PREFIX)).strip() or "set"
    read_at = file.position or RULES.get(set_name)
    synonyms = file.synonyms
    prompts: list[ConceptPrompt] = []
    places: dict[str, str] = {}
    unread: dict[str, None] = dict.fromkeys(file.model_extra or {})
    for number, value in enumerate(file.items, start=1):
        item = _checked(_Item, value, f"{path} item {number}")
        label = (item.name or "").strip() or f"{number:04d}"
        where = f"{path} item {number} ({cut(repr(label))})"
        if label in places:
            raise DataError(f"{where} has the name of {places[label]}: names must differ")
        places[label] = f"item {number}"
        intermediates = tuple(dict.fromkeys(text.strip() for text in item.intermediates))
        if "" in intermediates or not item.prompt.strip():
            raise DataError(f"{where}: {'an intermediate' if '' in intermediates else 'the prompt'} is white space")
        forms = tuple(_forms(text, synonyms, arithmetic=set_name == _ARITHMETIC) for text in intermediates)
        prompt = ConceptPrompt(
            f"{set_name}/{label}", set_name, item.prompt, intermediates, forms, item.target or None, read_at
        )
        check_read_at(prompt, where)
        prompts.append(prompt)
        unread |= dict.fromkeys(item.model_extra or {})
    return prompts, [f"{set_name}: fields that are not read: {quote_columns(list(unread))}"] if unread else []


def _checked(kind: type[Kind], value: object, where: str) -> Kind:
    """``value`` as a record of this kind. Raises DataError in one line."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {cut(repr(value))}, not an object with prompt and intermediates")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = cut(".".join(str(part) for part in first["loc"]))
        if first["type"] == "missing":
            raise DataError(f"{where}: field {place!r} is missing (it has {quote_columns(list(value))})") from None
        if place == "position":
            message = f"use {', '.join(get_args(ReadAt))}"
        elif first["type"] in ("too_short", "string_too_short"):
            message = "it must not be empty"
        else:
            message = str(first["msg"]).lower().replace("input should be", "it should be")
        raise DataError(f"{where}: field {place!r} is {cut(repr(first['input']))}: {message}") from None


def _forms(text: str, synonyms: Mapping[str, Sequence[str]], *, arithmetic: bool) -> tuple[str, ...]:
    own = [form.strip() for form in synonyms.get(text, ()) if form.strip()]
    if arithmetic:
        own += _number_forms(text)
        own += next((group for group in _OPERATORS if text in group), ())
    return tuple(dict.fromkeys([text, *own]))


def _number_forms(text: str) -> list[str]:
    """The digits and the word of a whole number below 100."""
    words = {word: number for number, word in enumerate(_words())}
    if text in words:
        return [str(words[text])]
    return [_words()[int(text)]] if text.isascii() and text.isdigit() and len(text) < 3 else []


def _words() -> list[str]:
    tens = [ten if unit == 0 else f"{ten}-{_UNITS[unit]}" for ten in _TENS for unit in range(10)]
    return [*_UNITS, *tens]
