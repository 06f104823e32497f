"""Which file and field of a model folder makes a library fail, where its own message does not say: found by trial."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from exitlens.parsing import cut

__all__ = ["Trial", "fault"]

SECONDS = 10.0  # that the trials of one failure may take; a configuration takes milliseconds, a vocabulary 0.5 s
_WIDE = 200  # entries of an object that are tried one by one: a vocabulary has more
_DEEP = 5
_LEFT_OUT = object()
# A field is at fault where what failed works without it, or with an empty value of the kind that it should have.
_INSTEAD: tuple[Any, ...] = (_LEFT_OUT, None, [], {})
# A tokenizer has to have a model, whose vocabulary and merges can only be replaced together.
_MODEL = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


@dataclass(frozen=True, slots=True)
class Trial:
    """What a library makes of a folder, and the JSON files of the folder that it is made from."""

    works: Callable[[Path], object]
    files: tuple[str, ...]


def fault(folder: Path, trials: Iterable[Trial], message: str = "", seconds: float = SECONDS) -> str:
    """The file and field at fault, as ``config.json (rope_parameters.rope_type: 'x')``.

    A field is found by leaving it out, one at a time, until what failed works. Where no single field does that, it is
    the one that ``message`` names; '' where nothing is known.

    Args:
        folder: The model's files; they are not changed.
        trials: What is made of them; one that works as it is says nothing and is passed over.
        message: What the library said.
        seconds: After which the search is given up.
    """
    end = time.monotonic() + seconds
    named = [(name, said) for trial in trials for name in trial.files if (said := _object(folder / name)) is not None]
    for trial in trials:
        if _works(trial, folder):
            continue
        for name, said in _order(trial, folder, [each for each in named if each[0] in trial.files]):
            with _view(folder, name) as view:
                found = _search(said, partial(_written, trial, view, name), end)
            if found:
                return f"{name} ({found[0]}: {cut(repr(found[1]))})"
    for name, said in named:
        if field := _quoted(said, message):
            return f"{name} ({field})"
    return ""


def _order(trial: Trial, folder: Path, files: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The files in which to search: one that may be empty is at fault where all works then, or not at all."""
    needed = []
    for name, said in files:
        with _view(folder, name) as view:
            if _written(trial, view, name, {}):
                return [(name, said)]
        needed.append((name, said))
    return needed


def _object(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


@contextlib.contextmanager
def _view(folder: Path, name: str) -> Iterator[Path]:
    """A folder of links to the files of ``folder``, without ``name``, which is written for each trial."""
    with tempfile.TemporaryDirectory(prefix="exitlens-fault-") as place:
        for path in folder.iterdir():
            if path.name != name:
                (Path(place) / path.name).symlink_to(path.resolve())
        yield Path(place)


def _works(trial: Trial, folder: Path) -> bool:
    try:
        trial.works(folder)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - whatever it is: it failed (a library written in Rust raises no Exception)
        return False
    return True


def _written(trial: Trial, view: Path, name: str, said: Any) -> bool:
    (view / name).write_text(json.dumps(said), encoding="utf-8")
    return _works(trial, view)


def _search(said: Any, mends: Callable[[Any], bool], end: float, depth: int = 0) -> tuple[str, Any] | None:
    """The deepest field of ``said`` without which ``mends`` holds, with its value."""
    keys = _keys(said)
    for instead in (*_INSTEAD, _MODEL):
        for key in keys:
            if time.monotonic() > end:
                return None
            if mends(_changed(said, key, instead)):
                inner = _inside(said, key, mends, end, depth)
                return inner or (str(key), said[key])
    for key in keys:
        if inner := _inside(said, key, mends, end, depth):
            return inner
    return None


def _inside(said: Any, key: Any, mends: Callable[[Any], bool], end: float, depth: int) -> tuple[str, Any] | None:
    if depth >= _DEEP or not isinstance(said[key], dict | list):
        return None
    found = _search(said[key], lambda part: mends(_changed(said, key, part)), end, depth + 1)
    return (f"{key}.{found[0]}", found[1]) if found else None


def _keys(said: Any) -> list[Any]:
    keys = list(said) if isinstance(said, dict) else list(range(len(said)))
    return keys if len(keys) <= _WIDE else []


def _changed(said: Any, key: Any, instead: Any) -> Any:
    new = said.copy()
    if instead is _LEFT_OUT:
        del new[key]
    else:
        new[key] = instead
    return new


def _quoted(said: Mapping[str, Any], message: str) -> str:
    """The longest field of ``said``, or of an object in it, that ``message`` names."""
    fields = {key: key for key in said} | {
        inner: f"{key}.{inner}" for key, value in said.items() if isinstance(value, dict) for inner in value
    }
    named = [key for key in fields if len(key) > 3 and re.search(rf"\b{re.escape(key)}\b", message)]
    named += [key for key in fields if "_" in key and key.replace("_", " ") in message]
    return fields[max(named, key=len)] if named else ""
