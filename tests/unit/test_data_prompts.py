"""Prompts: one shared opening, cut where tokenizers cut, and the --prompts file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from exitlens import data
from exitlens.data import prompts
from exitlens.errors import DataError, InputError


def test_prefix_is_shared_and_holds_six_worked_questions() -> None:
    questions = data.read_data("facts-qa").questions
    prefix, suffixes = prompts.qa_prompts(questions)
    assert {prompts.qa_prompt(q)[0] for q in questions} == {prefix}
    assert prefix.count("\nQ: ") == prefix.count("\nA: ") == 6
    assert prefix.endswith("\n")
    assert not prefix.endswith("\n\n")
    assert suffixes[0] == f"Q: {questions[0].question}\nA:"
    assert prompts.QA_PROMPT.stop == ("\nQ:",)
    assert prompts.qa_prompt("{question} {0}?", "zero-shot") == ("", "Q: {question} {0}?\nA:")
    worked = {line[3:] for line in prefix.splitlines() if line.startswith("Q: ")}
    assert not worked & {q.question for q in questions}, "a worked question must not be one that is asked"


def test_truth_prompt() -> None:
    prefix, suffix = prompts.truth_prompt("Ice is cold.", few_shot=True)
    assert prefix.count("\nS: ") == 2
    assert "A: true\n" in prefix
    assert "A: false\n" in prefix
    assert suffix == "S: Ice is cold.\nA:"
    assert prompts.truth_prompt("Ice is cold.", few_shot=False) == ("", "Ice is cold.")
    assert [w.strip().casefold() for w in prompts.LABEL_WORDS[1]] == ["true"] * 6
    assert [w.strip().casefold() for w in prompts.LABEL_WORDS[0]] == ["false"] * 6
    assert prompts.LABEL_WORDS[1][0] == " true"


@pytest.mark.parametrize(
    "rule",
    [
        # GPT-2's rule, and the one of Llama 3 and Qwen, which lets punctuation take the line breaks after it.
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    ids=["gpt2", "llama3"],
)
@pytest.mark.parametrize(
    "pair",
    [prompts.qa_prompt("Why?"), prompts.qa_prompt(" 🙂 leading space"), prompts.truth_prompt("Ice is cold.")],
    ids=["question", "emoji", "statement"],
)
def test_tokens_never_cross_the_end_of_the_prefix(rule: str, pair: tuple[str, str]) -> None:
    from tokenizers import Regex

    split = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(rule), "isolated")
    split.pre_tokenizer = cut

    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in cut.pre_tokenize_str(text)]

    prefix, suffix = pair
    assert pieces(prefix + suffix) == pieces(prefix) + pieces(suffix)


def test_unknown_style_is_named() -> None:
    with pytest.raises(InputError, match="'seven-shot'"):
        prompts.qa_prompt("a", "seven-shot")


def test_read_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "2+2=", "choices": ["4", "5"]}\n\n{"prompt": "שלום 🙂"}\n', encoding="utf-8")
    first, second = prompts.read_prompts(path)
    assert (first.prompt, first.choices) == ("2+2=", ("4", "5"))
    assert (second.prompt, second.choices) == ("שלום 🙂", ())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"}', "unknown field 'text'"),
        ('{"choices": ["a", "b"]}', "'prompt' is missing"),
        ('{"prompt": "a", "choices": ["b"]}', "two or more"),
        ('{"prompt": "a", "choices": ["b", "b"]}', "two or more"),
        ('{"prompt": "a", "choices": "bc"}', "list of texts"),
        ("[1]", "not an object"),
        ("", "empty"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=r"p\.jsonl") as caught:
        prompts.read_prompts(path)
    assert reason in str(caught.value)
