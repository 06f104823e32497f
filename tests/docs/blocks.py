"""The code blocks of README and docs, and the folder that their commands run in."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import transformers as tf

from tests.tiny import tokenizer

__all__ = ["PAGES", "ROOT", "Block", "blocks", "commands", "fill", "tiny_builtin"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Also indented, as in a list, and with anything after the language.
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w{}:-]*)[^\n`]*\n(.*?)^[ \t]*\1", re.S | re.M)
_OURS = re.compile(r"(exitlens|python|pip|make|lm_eval)\b(?![:/=])")


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, line, language and text."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of one page, in order."""
    whole = page.read_text(encoding="utf-8")
    return [
        Block(page, whole.count("\n", 0, match.start()) + 1, match[2], match[3]) for match in _FENCE.finditer(whole)
    ]


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """Line and words of each shell command of a page; lines that go on with a backslash are one.

    In blocks of a shell every line is a command, in a ``console`` every line after a prompt. Blocks of no language hold
    outputs and scripts of other programs: there, the lines that begin with a program of ours.
    """
    found = []
    for block in blocks(page):
        if block.language not in ("", "bash", "sh", "console", "text"):
            continue
        line = block.line
        for text in block.text.replace("\\\n", "\0").splitlines():
            line += 1
            words = text.replace("\0", " ").strip()
            shell = block.language in ("bash", "sh")
            if block.language == "console":
                words = words.removeprefix("$ ") if words.startswith("$ ") else ""
            if words and not words.startswith("#") and (shell or _OURS.match(words)):
                found.append((line, shlex.split(words, comments=True)))
            line += text.count("\0")
    return found


def tiny_builtin(folder: Path) -> Path:
    """A random model as deep as the built-in one: commands are tried here, not results."""
    words = tokenizer()
    config = tf.LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=30, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    tf.set_seed(0)
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


_QUESTIONS = [
    ("How many legs does a spider have?", "eight", "eight; 8", "six; four", "Animals"),
    ("What is the capital of France?", "Paris", "Paris", "London; Rome", "Places"),
    ("Is the Moon made of cheese?", "no", "no; It is rock", "yes", "Myths"),
    ("What do bees make?", "honey", "honey", "milk; silk", "Animals"),
    ("Which planet is the largest?", "Jupiter", "Jupiter", "Saturn; Mars", "Places"),
    ("Can pigs fly?", "no", "no; Pigs cannot fly", "yes; Pigs fly", "Myths"),
]
_TOPICS = ("animals", "cities", "elements", "companies", "facts", "inventions")
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def _statements(topic: str) -> list[tuple[str, int]]:
    """24 statements of one topic about made-up things, half of them true; no thing is in two topics."""
    at = 24 * _TOPICS.index(topic)
    things = [_SYLLABLES[i % 70].capitalize() + _SYLLABLES[(i * 11 + 3) % 70] for i in range(at, at + 24)]
    return [(f"{thing} is one of the {topic}.", i % 2) for i, thing in enumerate(things)]


def fill(folder: Path) -> None:
    """The files that pages name: questions, statements, corpora, answers, predictions, a settings file."""
    with (folder / "TruthfulQA.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for question, best, right, wrong, category in _QUESTIONS:
            writer.writerow(["Adversarial", category, question, best, right, wrong, "made for this test"])
    (folder / "true-false").mkdir()
    for topic in _TOPICS:
        with (folder / "true-false" / f"{topic}_true_false.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("statement", "label"), *_statements(topic)])
    (folder / "lens-eval").mkdir()
    for name in ("typo", "association"):
        items = [{"prompt": f"{row[0]} It is", "intermediates": ["true", "a"]} for row in _QUESTIONS]
        (folder / "lens-eval" / f"lens-eval-{name}.json").write_text(json.dumps({"items": items}))
    texts = [
        f"{text} {row[0]} {row[1]}." for topic in _TOPICS for text, _ in _statements(topic)[:6] for row in _QUESTIONS
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "FILE").write_text("\n".join(texts[:60]) + "\n")
    (folder / "answers.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": best}) + "\n" for q, best, *_ in _QUESTIONS)
    )
    for name, at in (("predictions.json", 1), ("other.jsonl", 3), ("answers.json", 1)):
        rows = [{"question": row[0], "model_completion": row[at].split(";")[0]} for row in _QUESTIONS]
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text)
    examples = [{"input": row[0], "target_scores": {row[1]: 1, row[3].split(";")[0]: 0}} for row in _QUESTIONS]
    task = {"name": "general_knowledge", "preferred_score": "multiple_choice_grade", "examples": examples}
    (folder / "general_knowledge.json").write_text(json.dumps(task))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row[0]}) + "\n" for row in _QUESTIONS))
    own = [f"{i};{q};{best};{best}|{wrong.split(';')[0]}" for i, (q, best, _, wrong, _) in enumerate(_QUESTIONS, 1)]
    (folder / "own.csv").write_text("\n".join(["Nr;Prompt;Expected;Options", *own]) + "\n")
    (folder / "study.toml").write_text('only = ["layers"]\nlimit = 2\n')
