"""What a terminal shows: lines that end in words, numbers with their intervals in one piece, labels whole."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.cells import cell_len

from exitlens import cli, progress
from exitlens.cli import console
from exitlens.cli._streams import NARROW
from exitlens.cli._wrap import cut, wrap
from exitlens.errors import InputError
from exitlens.report.token_map import token_map

SENTENCE = (
    "Layer 30 ranks it first in 35% [22, 50] of 40 questions, 0.52 [−0.12, 0.57]† nats: read answers from layer 30."
)
LABELS = ("answers judged correct (BERTScore F1 ≥ 0.85, vanilla)", "answers judged correct (BERTScore F1 ≥ 0.85, sled)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def lines_of(stream: Terminal) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("width", range(26, 100))
def test_a_line_breaks_between_words_and_never_within_an_interval(width: int) -> None:
    lines = wrap(SENTENCE, width, "• ", "  ")
    assert max(map(cell_len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == f"• {SENTENCE}"
    whole = "\n".join(lines)
    assert "35% [22, 50]" in whole
    assert "0.52 [−0.12, 0.57]†" in whole


def test_what_can_be_copied_stays_in_one_piece_and_a_cell_is_cut_to_its_width() -> None:
    path = "/a/" + "b" * 100
    assert wrap(f"report: {path}", 40) == ["report:", path]
    assert cut("日本語の方針", 5) == ["日本", "語の", "方針"]
    assert cut("n\xa0=\xa06 units", 6) == ["n\xa0=\xa06", "units"]
    assert wrap("one\ntwo", 80) == ["one", "two"]


def test_sentences_of_results_are_a_list_in_a_terminal_and_whole_lines_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = terminal(monkeypatch, 40)
    console.print_findings([f"{SENTENCE}\nA detail \x1b[2J."])
    lines = lines_of(out)
    assert max(map(cell_len, lines)) <= 40
    assert lines[0].startswith("• Layer 30")
    assert all(line.startswith("  ") for line in lines[1:])
    assert lines[-1] == "  A detail \\x1b[2J."
    monkeypatch.undo()
    console.print_findings([f"{SENTENCE}\nA detail."])
    assert capsys.readouterr().out == f"{SENTENCE}\nA detail.\n"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_numbers_given_as_text_are_never_cut_and_labels_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    out = terminal(monkeypatch, width)
    rows = [[label, "0.350 [0.217, 0.504]", "0.250 [0.056, 0.592]†", "−0.100 [−0.512, 0.312]†", "< 0.001", "–"]
            for label in LABELS]  # fmt: skip
    columns = ["number", "run", "other run", console.Column("difference", main=True), "p", "q"]
    console.print_table(columns, rows)
    lines = lines_of(out)
    text = " ".join(" ".join(lines).split())
    assert max(map(cell_len, lines)) <= width
    assert "vanilla)" in text
    assert "sled)" in text
    assert "…" not in text
    numbers = re.findall(r"[+−]?\d\.\d{3}(?: \[[^\]]*\])?†?", text)
    assert set(numbers) <= {"0.350 [0.217, 0.504]", "0.250 [0.056, 0.592]†", "−0.100 [−0.512, 0.312]†", "0.001",
                            "0.350", "0.250", "−0.100"}  # fmt: skip
    if width >= 60:  # what a comparison is made for stays, with its interval
        assert text.count("−0.100 [−0.512, 0.312]†") == 2
    if width == 80:  # numbers stand without their interval before they are left out
        assert "0.350" in numbers
        assert "0.250" in numbers
        assert "the interval of run" in text
    if width == 140:
        assert "no room" not in text


def test_a_number_that_no_row_has_an_interval_of_is_one_column_too(monkeypatch: pytest.MonkeyPatch) -> None:
    out = terminal(monkeypatch, 80)
    console.print_table(["name", "x", "x low", "x high"], [["a", 0.5, None, None], ["b", 0.25, None, None]])
    assert lines_of(out)[0].split() == ["name", "x", "[95%]"]
    assert [line.split() for line in lines_of(out)[2:]] == [["a", "0.5"], ["b", "0.25"]]


def test_where_a_label_goes_on_is_set_in(monkeypatch: pytest.MonkeyPatch) -> None:
    out = terminal(monkeypatch, 40)
    console.print_table(["number", "x"], [[label, 0.5] for label in LABELS])
    body = lines_of(out)[2:]
    assert [line for line in body if not line.startswith("  ")] == [line for line in body if line.endswith(" 0.5")]


def test_a_table_uses_the_terminals_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    out = terminal(monkeypatch, 80)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.print_table(["name", "x"], [["a", 1]], title="A title", note="a note")
    # Dim text has half the contrast that a theme was made for, and colours are not readable on every ground.
    assert set(re.findall(r"\x1b\[([0-9;]*)m", out.getvalue())) <= {"0", "1"}


def test_every_line_of_a_remark_ends_in_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    console.say(SENTENCE)
    assert max(map(len, lines_of(err))) <= 40
    assert " ".join(lines_of(err)) == SENTENCE


def encoded(monkeypatch: pytest.MonkeyPatch, encoding: str, name: str = "stdout") -> io.BytesIO:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors=NARROW, write_through=True)
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, name, stream)
    return raw


def test_a_terminal_without_our_signs_gets_others_and_columns_keep_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    raw = encoded(monkeypatch, "ascii")
    console.print_table(["name ≥", "x"], [["0.5 [−1.0, 2.0]† · 日本 ≤", "−0.5 [−1.0, 2.0]†"], ["…", "–"]], title="“a”")
    console.print_findings(["Layers 0–29 “no”…"])
    text = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue().decode("ascii"))
    assert '"a"' in text
    assert "-0.5 [-1.0, 2.0]+" in text
    assert "\\u65e5\\u672c <=" in text
    assert '* Layers 0-29 "no"~' in text
    table = [line for line in text.splitlines() if "|" in line]
    assert len({line.index("|") for line in table}) == 1
    assert max(map(len, table)) <= 60


def test_a_full_error_stream_ends_no_command() -> None:
    code = "import sys; from exitlens.cli import main; sys.exit(main())"
    for words, expected in ((["models", "list"], 0), (["models", "pull", "none"], 2)):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=full, timeout=60)  # noqa: PLW1510
        assert done.returncode == expected


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (["run"], True),
        (["layers", "--out", "x"], True),
        (["read", "--text", "t", "--out=x"], True),
        (["lens", "train"], True),
        (["layers"], False),
        (["look", "a text", "--out", "x"], False),
        (["generate", "a text"], False),
        ([], False),
    ],
)
def test_what_an_interrupted_command_says_is_true(words: list[str], goes_on: bool) -> None:
    assert ("continues from there" in cli._interrupted(words)) == goes_on


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_progress_keeps_its_numbers_at_every_width(width: int) -> None:
    what = "generate-dola-high (node-one.cluster 12.3/s, node-two 11.9/s)"
    for heavy in (True, False):
        line = progress._bar_line(what, 230, 817, 195.2, 3661.0, "")(width - 1, heavy)
        assert cell_len(line) < width
        assert line.endswith("230/817  195/s  1:01:01 left")
        assert heavy or line.isascii()
    assert progress._bar_line("a", 1e6, 98.4e6, None, None, "bytes")(79, True).endswith("─ 1.0/98.4 MB")
    done, left = (progress._bar_line("a", done, 4, 1.0, 2.0, "")(79, True).count("━") for done in (4, 1))
    assert (done, left) == (24, 6)
    assert progress._bar_line("a", 7, None, 2.0, None, "")(79, True) == "a 7  2/s"


@pytest.mark.parametrize("sent", [b"two words\r\n", b"\xef\xbb\xbftwo words", b"two words"])
def test_a_hyphen_is_what_standard_input_holds(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent)))
    assert console.given_text("-") == "two words"
    assert console.given_text("- a list") == "- a list"


def test_a_standard_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    with pytest.raises(InputError, match="not UTF-8 \\(byte 0xff\\)"):
        console.given_text("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input cannot be read"):
        console.given_text("-")


def test_what_rounds_to_zero_has_no_minus(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [console.Column("a", ".3f"), console.Column("b", "+.3f"), console.Column("c", ".3g")]
    console.print_table(columns, [[-0.0004, -0.0004, -0.0004], [-0.0, -0.0006, -1e-30]])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["0.000", "+0.000", "-0.0004"], ["0.000", "-0.001", "-1e-30"]]


def luminance(color: str) -> float:
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def xterm(number: int) -> str:
    """The colour of an index of the 6 x 6 x 6 cube, which themes leave as it is."""
    steps = (0, 95, 135, 175, 215, 255)
    assert 16 <= number < 232
    cube = number - 16
    return "#" + "".join(f"{steps[place]:02x}" for place in (cube // 36, cube // 6 % 6, cube % 6))


def test_the_map_reads_on_dark_and_light_terminals() -> None:
    frame = pd.DataFrame(
        [{"position": p, "layer": layer, "token": "abcd", "context": "read", "probability": share}
         for p, share in enumerate((1.0, 0.5, 0.1)) for layer in (0, 1)]
    )  # fmt: skip
    lines = token_map(frame, width=60).splitlines()
    text, ground = map(int, re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m", lines[1])[0])
    assert contrast(xterm(text), xterm(ground)) >= 4.5
    for theme in (
        "#000000",
        "#ffffff",
        "#002b36",
        "#fdf6e3",
        "#1e1e1e",
    ):  # two of them Solarized
        assert contrast(xterm(ground), theme) >= 3, theme
    bars = [len(bar) for bar in re.findall(r"48;5;\d+m([^\x1b]*)", lines[1])]
    assert bars == [9, 4, 1], "as long as the token is probable"
    assert lines[0].startswith("\x1b[1mlayer "), "what was read stands out from what the layers say"
    assert "\x1b" not in token_map(frame, width=60, colour=False)
