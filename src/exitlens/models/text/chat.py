"""Conversations as a tokenizer's chat template writes them: on a stated day, within bounds, refused in one line."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from exitlens.errors import InputError
from exitlens.models.checkpoint.reasons import one_line
from exitlens.models.text.chat_bounds import TooMuch, bounded_size
from exitlens.models.text.patterns import panicked
from exitlens.models.text.tokens import encoded

__all__ = ["rendered"]

_LOG = logging.getLogger("exitlens")
_CLOCK = "strftime_now"  # what a template calls for today
SECONDS = 10.0  # that a template may take: real ones take milliseconds


class Templated(Protocol):
    """What is used of a model."""

    name: str
    tokenizer: Any
    chat_date: str | None
    notes: tuple[str, ...]


def rendered(lm: Templated, turns: Sequence[Mapping[str, Any]], *, tokenize: bool = True, **options: Any) -> Any:
    """``turns`` in the form of the chat template, as token ids (a list) or as text.

    Templates see the day of ``lm.chat_date``: by ``strftime_now``, and as ``date_string`` in the form that Llama's
    templates write it. Without one they see today, which is said once, since tomorrow's prompts are then others.

    Raises:
        InputError: There is no template, it refuses these turns, has a mistake, does not end, or makes too much.
    """
    named = f"the chat template of {lm.name} (chat_template in tokenizer_config.json, or chat_template.jinja)"
    if not getattr(lm.tokenizer, "chat_template", None):
        raise InputError(f"{lm.name}'s tokenizer has no chat template: leave --chat out")
    today = datetime.datetime.now()  # noqa: DTZ005 - a day of the user's own calendar
    day = today if lm.chat_date is None else datetime.datetime.fromisoformat(lm.chat_date)
    given = {} if lm.chat_date is None else {"date_string": day.strftime("%d %b %Y")}
    apply = lm.tokenizer.apply_chat_template
    try:
        with _bounded(SECONDS), bounded_size(turns) as most:
            template = str(lm.tokenizer.get_chat_template())
            dated = _CLOCK in template
            if dated:
                given["chat_template"] = _on(day) + template
            made = str(apply(list(turns), tokenize=False, **{**given, **options}))
            if dated and lm.chat_date is None and not any(note.startswith(_note(lm)) for note in lm.notes):
                # Only what is written on another day tells whether the day is.
                texts = [apply(list(turns), tokenize=False, **{**options, "chat_template": _on(d) + template})
                         for d in (day, day - datetime.timedelta(days=400))]  # fmt: skip
                if texts[0] != texts[1]:
                    _say(lm, today)
    except _TooLong:
        raise InputError(f"{named} did not end within {SECONDS:g} s: it loops; mend it, or leave --chat out") from None
    except TooMuch:
        raise InputError(
            f"{named} makes more than {most:,} characters of these messages: it grows without bound; mend it, or leave "
            "--chat out"
        ) from None
    except BaseException as error:  # a template is a program, and may fail in any way
        if not isinstance(error, Exception) and not panicked(error):
            raise
        raise InputError(f"{named} refuses these messages: {one_line(error, 160)}") from None
    # As transformers does it: the template has written what a text begins with.
    return encoded(lm.tokenizer, made, False, lm.name) if tokenize else made


def _on(day: datetime.datetime) -> str:
    """What is put before a template so that its ``strftime_now`` tells ``day``: a macro of the same name.

    transformers gives templates nothing but plain values, and a clock of its own. The line break belongs to the last
    tag, so that the template itself begins as it did, at the start of a line.
    """
    codes = "".join(f"|replace('%{code}', {day.strftime(f'%{code}')!r})" for code in "aAbBcdHIjmMpSuUVwWxXyYZ")
    return f"{{% macro {_CLOCK}(form) %}}{{{{ form{codes}|replace('%%', '%') }}}}{{% endmacro %}}\n"


def _note(lm: Templated) -> str:
    return f"{lm.name}: its chat template writes the day"


def _say(lm: Templated, today: datetime.datetime) -> None:
    note = f"{_note(lm)} ({today.date().isoformat()}): on another day prompts differ; give a fixed one with --chat-date"
    lm.notes = (*lm.notes, note)
    _LOG.warning("%s", note)


class _TooLong(BaseException):
    """Not an Exception, so that no template's own handling of errors takes it for one."""


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """While open, Python code of this thread that runs longer than ``seconds`` ends in :class:`_TooLong`.

    A template is compiled to Python code, so that each of its steps passes here; a signal would reach the main thread
    only, and a server renders in another one.
    """
    end = time.monotonic() + seconds
    before = sys.gettrace()

    def step(frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.monotonic() > end:
            raise _TooLong
        if frame.f_globals.get("__name__") == TooMuch.__module__:
            return None  # looks at sizes, which are bounded: ten times slower if it were traced
        return step

    sys.settrace(step)
    try:
        yield
    finally:
        sys.settrace(before)
