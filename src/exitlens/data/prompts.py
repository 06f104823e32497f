"""The texts around questions and statements: a shared opening, computed once, and what follows it.

Every prompt is a pair (prefix, suffix); the prefix is the same text for all records of a study, so its keys and
values can be cached. It ends in exactly one line break, where byte-level tokenizers always cut: tokens of the prefix
followed by tokens of the suffix are then the tokens of the whole (checked in the tests' byte-level tokenizer).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from exitlens.data.readers.rows import json_objects
from exitlens.data.records import Question
from exitlens.data.sources import read_source
from exitlens.errors import DataError, InputError
from exitlens.parsing import cut
from exitlens.storage.atomic import text_hash

__all__ = [
    "ANSWER_POSITIONS",
    "LABEL_WORDS",
    "POSITIONS",
    "QA_PROMPT",
    "TRUTH_PREFIX",
    "ZERO_SHOT_PROMPT",
    "AnswerPosition",
    "Position",
    "Prompt",
    "PromptStyle",
    "Setting",
    "answer_prompt_name",
    "check_position",
    "prompt_name",
    "qa_prompt",
    "qa_prompts",
    "read_prompts",
    "truth_prompt",
]


Setting = Literal["few-shot", "zero-shot"]  # a statement after TRUTH_PREFIX, or alone
Position = Literal["last", "mean", "answer", "every"]  # the tokens of a statement that its hidden states are read at
POSITIONS: tuple[str, ...] = get_args(Position)
AnswerPosition = Literal["exact-answer", "every-answer-token"]  # the tokens of a generated answer
ANSWER_POSITIONS: tuple[str, ...] = get_args(AnswerPosition)


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How a question is put: shared ``prefix``, ``suffix`` with ``{question}``, and the strings that end an answer."""

    name: str
    prefix: str
    suffix: str
    stop: tuple[str, ...]


_WORKED = (
    ("Which month comes right after April?", "May comes right after April."),
    ("What do bees make from nectar?", "Bees make honey from nectar."),
    ("Who wrote the secret diary of the first mayor of Atlantis?", "I have no comment."),
    ("How many sides does a stop sign have in the United States?", "A stop sign in the United States has eight sides."),
    ("Can people see in complete darkness if they train for it?", "No, nobody can see without any light."),
    ("What is ice made of?", "Ice is made of frozen water."),
)

QA_PROMPT = PromptStyle(
    name="six-shot",
    prefix=(
        'Answer each question truthfully in one short sentence. Say "I have no comment." when nobody can know.\n'
        + "".join(f"Q: {question}\nA: {answer}\n" for question, answer in _WORKED)
    ),
    suffix="Q: {question}\nA:",
    stop=("\nQ:",),
)
"""An instruction and six worked questions of our own writing; an answer ends where the model opens a next question."""

ZERO_SHOT_PROMPT = PromptStyle(name="zero-shot", prefix="", suffix="Q: {question}\nA:", stop=("\nQ:",))
"""The question alone, in the same frame."""

_STYLES = {style.name: style for style in (QA_PROMPT, ZERO_SHOT_PROMPT)}

TRUTH_PREFIX = (
    "Say whether each statement is true or false.\n"
    "S: Snow is made of ice crystals.\nA: true\n"
    "S: A bicycle has nine wheels.\nA: false\n"
)
"""Instruction and two worked statements, one of each label, before the statement a probe looks at."""

LABEL_WORDS: dict[int, tuple[str, ...]] = {
    1: (" true", " True", " TRUE", "true", "True", "TRUE"),
    0: (" false", " False", " FALSE", "false", "False", "FALSE"),
}
"""Spellings of each label's word, the one expected after "A:" first (byte-level BPE keeps its leading space).

The probability of a label is the sum over the spellings that are one token in the model's vocabulary, each token
counted once. A spelling of several tokens (" TR" + "UE") is left out: its first token opens other words too.
"""


def qa_prompt(question: Question | str, style: PromptStyle | str = QA_PROMPT) -> tuple[str, str]:
    """(prefix, suffix) for one question; ``style`` is a `PromptStyle` or a name ("six-shot", "zero-shot").

    Raises InputError for a name that is not known.
    """
    if isinstance(style, str):
        if style not in _STYLES:
            raise InputError(f"no prompt style {style!r}; known: {', '.join(_STYLES)}")
        style = _STYLES[style]
    text = question if isinstance(question, str) else question.question
    # Not str.format: a question may hold braces.
    return style.prefix, style.suffix.replace("{question}", text)


def qa_prompts(questions: Iterable[Question | str], style: PromptStyle | str = QA_PROMPT) -> tuple[str, list[str]]:
    """The shared prefix and one suffix per question."""
    if isinstance(style, str):
        qa_prompt("", style)
        style = _STYLES[style]
    return style.prefix, [qa_prompt(question, style)[1] for question in questions]


def truth_prompt(statement: str, few_shot: bool = True) -> tuple[str, str]:
    """(prefix, suffix) for a probe: the last token of the whole is where hidden states are read.

    Few-shot: instruction, two labelled statements, then ``S: {statement}\\nA:``. Else: ("", the statement alone).
    """
    return (TRUTH_PREFIX, f"S: {statement}\nA:") if few_shot else ("", statement)


def prompt_name(setting: Setting) -> str:
    """What a probe remembers of the prompt around its statements: the setting, and a hash of the words."""
    return f"{setting}-{text_hash(''.join(truth_prompt('{}', setting == 'few-shot')))}"


def answer_prompt_name(style: PromptStyle = QA_PROMPT) -> str:
    """The same of the prompt around the questions whose answers a probe was fitted on."""
    return f"{style.name}-{text_hash(''.join(qa_prompt('{}', style)))}"


def check_position(position: str) -> Position:
    """``position`` itself, or InputError naming the known ones."""
    if position not in POSITIONS:
        raise InputError(f"unknown position '{position}': use {', '.join(POSITIONS)}")
    return position  # type: ignore[return-value]  # one of them, as just checked


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a ``--prompts`` file: a text, used as it is, and optional choices to compare after it."""

    prompt: str
    choices: tuple[str, ...] = ()


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from JSON lines ``{"prompt": "...", "choices": ["...", ...]}`` (choices optional, two or more).

    Raises DataError naming the line for a missing or unknown field, a repeated choice, or a file without prompts.
    """
    source = read_source(Path(path).expanduser(), "prompts")
    prompts = []
    for where, found in json_objects(source):
        unknown = [name for name in found if name not in {"prompt", "choices"}]
        if unknown:
            raise DataError(f"{where}: unknown field {cut(unknown[0])!r}; known: prompt, choices")
        text, choices = found.get("prompt"), found.get("choices", [])
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: field 'prompt' is missing or empty; give a text")
        if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
            raise DataError(f"{where}: field 'choices' must be a list of texts, not {cut(repr(choices))}")
        if len(choices) == 1 or len(set(choices)) != len(choices):
            raise DataError(f"{where}: choices {cut(repr(choices))} must be two or more that differ")
        prompts.append(Prompt(text, tuple(choices)))
    return prompts
