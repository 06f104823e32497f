"""What a notebook shows: short texts, a frame that needs nothing, a table where no script runs."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import model, tokenizer

import exitlens
from exitlens.data.records import Dataset, Question
from exitlens.errors import InputError
from exitlens.lenses.trace import Trace
from exitlens.report.notebook import side_by_side
from exitlens.report.view_data import parse_view, unpack
from exitlens.report.view_trace import MAP_STATS, trace_view

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u202e \x00 javascript:alert(3)"


@pytest.fixture(scope="module")
def lm() -> Any:
    return exitlens.wrap(model("llama"), tokenizer(), name=HOSTILE)


def views_in(text: str) -> list[Any]:
    """The views of a page, read as a browser would read them."""
    found = re.findall(r'<script type="application/json" id="[^"]+">(.*?)</script>', text, re.DOTALL)
    return [parse_view(each) for each in found]


def framed(text: str) -> str:
    found = re.search(r'srcdoc="([^"]*)"', text)
    assert found is not None
    return html.unescape(found.group(1))


def test_results_introduce_themselves_in_six_lines_at_most(lm: Any) -> None:
    data = Dataset("d", "s" * 500, "0", "questions", (Question("1", HOSTILE * 20, "b", (), ()),), notes=("n" * 900,))
    answer = lm.generate("What is true?", max_new_tokens=4, read=("entropy",))[0]
    shown = [lm.read("True."), lm, data, answer, lm.look("What is true?"), lm.look("What?", top_k=2)]
    for each in shown:
        text = repr(each)
        assert len(text.splitlines()) <= 6, text
        assert all(len(line) <= 330 for line in text.splitlines()), text
        bundle = each._repr_mimebundle_()
        assert bundle["text/plain"] == text
        assert "<table" in bundle["text/html"]


def test_the_result_of_a_study_shows_its_views(lm: Any) -> None:
    questions = [Question(str(i), HOSTILE, "yes", ("yes",), ("no",), choices=("yes", "no")) for i in range(2)]
    tiny = exitlens.wrap(model("gpt-neox"), tokenizer(), name="m")
    tiny.context = 4096
    result = exitlens.layers_study(tiny, questions, layers="last")
    assert len(repr(result).splitlines()) <= 6
    assert "layers_top (" in repr(result)
    assert [each.kind for each in views_in(framed(result._repr_html_()))] == ["choices"]


def test_a_map_has_the_numbers_of_its_trace(lm: Any) -> None:
    trace = lm.read("What is true?", stats=MAP_STATS)
    arrays = unpack(trace_view(trace).block)
    assert arrays["layers"].tolist() == list(trace.layers)
    np.testing.assert_allclose(arrays["entropy"][0], trace["entropy"][0], atol=1e-4)
    np.testing.assert_allclose(arrays["top_p"][0], np.exp(trace["top_logprobs"][0]), atol=1e-5)
    names = [[[lm.token(int(i)) for i in ids] for ids in row] for row in trace["top_ids"][0]]
    assert arrays["top"][0].tolist() == names
    assert arrays["next"].tolist() == [*trace.tokens[0][1:], None]
    assert np.isnan(arrays["next_rank"][0, :, -1]).all()
    np.testing.assert_array_equal(arrays["next_rank"][0, :, :-1], trace["rank"][0, :, :-1])


def test_pinned_tokens_have_their_rank_everywhere(lm: Any) -> None:
    found = lm.look("What is true?", pins=["the"])
    arrays = unpack(trace_view(found.trace).block)
    assert arrays["pins"].tolist() == [lm.token(lm.encode("the")[0])]
    # The rank by counting: how many tokens of the whole vocabulary are more probable.
    whole = lm.read(found.record.prompt, stats=("top_k",), top_k=lm.vocab_size)
    first = int(found.trace.extra["first"])
    place = np.argmax(whole["top_ids"][0] == lm.encode("the")[0], axis=-1)[:, first:]
    np.testing.assert_array_equal(arrays["pin_rank"][0, :, :, 0], place)


def test_a_frame_needs_nothing_and_hides_the_table_where_frames_are_shown(lm: Any) -> None:
    text = lm.look("What is true?")._repr_html_()
    inside = framed(text)
    assert 'sandbox="allow-scripts allow-downloads"' in text
    assert not re.search(r'(src|href)="?https?:', inside)
    tag = re.search(r"<style>\.(exitlens-\w+)\{display:none\}(.*?)</style>", text)
    assert tag is not None
    # What tells the frame of its page's theme: four pixels more than a multiple of twelve for a dark one, eight for a
    # light one.
    heights = re.findall(r"height:calc\(var\(--exitlens,(\d+)px\) \+ (\d)px\)", tag.group(2))
    assert [more for _, more in heights] == ["4", "8"]
    assert len({tall for tall, _ in heights}) == 1
    assert int(heights[0][0]) % 12 == 0
    assert f'style="width:100%;height:var(--exitlens,{heights[0][0]}px)' in text
    assert "onload" not in lm.look("What is true?").show(height=301)._repr_html_()
    assert f'<div class="{tag.group(1)}"><table>' in text
    assert [each.kind for each in views_in(inside)] == ["map"]


def test_only_our_own_scripts_run(lm: Any, tmp_path: Path) -> None:
    import base64
    import hashlib

    path = lm.look(HOSTILE).show().save(tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    allowed = set(re.findall(r"sha256-([^']+)", html.unescape(policy.group(1))))
    run = re.findall(r"<script(?: nomodule| type=\"module\")>(.*?)</script>", page, re.DOTALL)
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run} == allowed
    assert len(re.findall(r"<script", page)) == 4  # the three, and the data
    assert "<img" not in page
    assert "unsafe-inline" not in html.unescape(policy.group(1)).split("style-src")[0]


def test_a_generation_that_was_read_is_a_map(lm: Any) -> None:
    answer = lm.generate("What is true?", max_new_tokens=4, read=("entropy", "top_k"))[0]
    (made,) = views_in(framed(answer._repr_html_()))
    arrays = unpack(made.block)
    # A column for each token that was chosen, under the token before it: none is empty.
    assert arrays["tokens"].tolist()[1:] == list(answer.tokens[:-1])
    np.testing.assert_allclose(arrays["entropy"][0], answer.reads["entropy"], atol=1e-3)
    assert made.caption == f"{answer.read_lens} lens · {len(answer.tokens) + 1} tokens"
    assert lm.generate("What is true?", max_new_tokens=2)[0].show().shape.views == []


def test_traces_keep_their_words_in_files(lm: Any, tmp_path: Path) -> None:
    trace = lm.read("What is true?", stats=("top_k",))
    again = Trace.load(trace.save(tmp_path / "t.safetensors"))
    assert dict(again.vocabulary) == dict(trace.vocabulary)
    assert unpack(trace_view(again).block)["top"].tolist() == unpack(trace_view(trace).block)["top"].tolist()


def test_a_text_of_200_tokens_and_40_layers_is_at_most_300_kb() -> None:
    """Of a real size: half of the probability on the top token, tokens that repeat as those of texts do."""
    from exitlens.report.view_page import page

    rng = np.random.default_rng(0)
    layers, positions, vocabulary = 41, 200, 20_000
    ids = np.minimum(rng.zipf(1.35, size=(1, layers, positions, 5)), vocabulary - 1)
    logits = np.sort(rng.gumbel(size=(1, layers, positions, 5)) * 2)[..., ::-1]
    top = logits - np.log(np.exp(logits).sum(-1, keepdims=True)) - 0.1
    values = {
        "top_ids": ids.astype(np.int64),
        "top_logprobs": top.astype(np.float32),
        "entropy": rng.gamma(2, 1.5, size=(1, layers, positions)).astype(np.float32),
        "kl": rng.gamma(1, 2, size=(1, layers, positions)).astype(np.float32),
        "rank": np.minimum(rng.zipf(1.3, size=(1, layers, positions)), 50_000).astype(np.int64),
    }
    words = {int(i): f" w{int(i):x}" for i in np.unique(ids)}
    text = tuple(int(i) for i in ids[0, 0, :, 0])
    trace = Trace(
        values, tuple(range(layers)), "logit", "m", (text,), (tuple(words[i] for i in text),), vocabulary=words
    )
    size = len(page([trace_view(trace)]).encode())
    assert size <= 300_000, f"{size} bytes"


def test_any_text_of_a_trace_can_be_shown(lm: Any) -> None:
    texts = ["What is true?", "Another text."]
    both = lm.read(texts, stats=("entropy", "saturation"))
    assert "first of 2 texts; trace.text(1).show()" in framed(both._repr_html_())
    second, alone = both.text(1), lm.read(texts[1:], stats=("entropy", "saturation"))
    assert (second.tokens, second.lengths, len(second)) == (alone.tokens, alone.lengths, 1)
    for name in both.values:
        np.testing.assert_allclose(second[name], alone[name], atol=1e-4)
    (made,) = views_in(framed(second._repr_html_()))
    assert unpack(made.block)["tokens"].tolist() == list(alone.tokens[0])
    with pytest.raises(InputError, match="text 2 is not in this trace"):
        both.text(2)


def test_a_look_at_a_question_keeps_the_shares_for_viewers_without_frames() -> None:
    roomy = model("llama")
    roomy.config.max_position_embeddings = 1024  # for the few-shot prompt in letters
    lm = exitlens.wrap(roomy, tokenizer(), name="m")
    found = lm.look("What is true?", ["yes", "no"])
    static = found._repr_html_().partition("<iframe")[0]
    assert "share of each choice" in static
    last = found.layers[(found.layers["layer"] == lm.n_layers) & (found.layers["choice"] == "yes")]
    assert f"{float(last['share'].iloc[0]):.3f}" in static
    (made,) = views_in(framed(found._repr_html_()))
    assert made.title == "Choices by layer"


def test_what_cannot_be_shown_says_so(lm: Any) -> None:
    trace = lm.read("What is true?", stats=("saturation",))
    with pytest.raises(InputError, match="nothing that a map shows"):
        trace.show()
    assert "nothing that a map shows" in trace._repr_html_()
    with pytest.raises(InputError, match="text 1 is not in this trace"):
        trace_view(lm.read("What is true?"), 1)


def test_the_widget_carries_the_view_and_a_frame_beside_it(lm: Any) -> None:
    pytest.importorskip("anywidget", reason="pip install anywidget")
    widget = lm.look("What is true?").show(widget=True)
    assert parse_view(json.dumps(widget.view)).kind == "map"
    widget.state = {"metric": "entropy"}
    bundle = widget._repr_mimebundle_()
    found = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in found
    assert [each.kind for each in views_in(framed(found["text/html"]))] == ["map"]


def test_lenses_stand_side_by_side_in_one_map(lm: Any) -> None:
    traces = [lm.read("What is true?", lens=lens, stats=MAP_STATS) for lens in ("raw", "logit")]
    shown = side_by_side(traces)
    [view] = views_in(framed(shown._repr_html_()))
    assert list(unpack(view.block)["lenses"]) == ["raw", "logit"]
    assert shown._repr_html_().partition("<iframe")[0].count("<table") == 2
    with pytest.raises(InputError, match="different texts or layers"):
        side_by_side([traces[0], lm.read("Another text.", lens="logit", stats=MAP_STATS)])
    with pytest.raises(InputError, match="no trace"):
        side_by_side([])


def test_a_run_shows_its_views_and_its_findings(tmp_path: Path) -> None:
    roomy = model("llama")
    roomy.config.max_position_embeddings = 1024  # for the few-shot prompt in letters
    lm = exitlens.wrap(roomy, tokenizer(), name=HOSTILE)
    rows = [
        {
            "question": f"Is {name} true?",
            "best": "yes",
            "correct": ["yes"],
            "incorrect": ["no"],
            "choices": ["yes", "no"],
        }
        for name in ("this", "<b>that</b>", "nothing")
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = exitlens.RunConfig(
        only=("layers",), data=(str(tmp_path / "own.jsonl"),), figures=False, out=str(tmp_path / "run")
    )
    run = exitlens.run(config, lm=lm)
    assert len(repr(run).splitlines()) <= 6
    assert str(tmp_path) not in repr(run) + run._repr_html_()
    made = run._repr_html_()
    static = made.partition("<iframe")[0]
    told = run.findings()["layers"][0].splitlines()[0]
    assert html.escape(told)[:60] in static
    assert [view.kind for view in views_in(framed(made))][:1] == ["choices"]
    assert "<b>" not in static
    assert run.show().save(tmp_path / "run.html").stat().st_size > 1000
