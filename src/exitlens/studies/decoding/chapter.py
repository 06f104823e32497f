"""What the decoding study tells: scores of every decoder, paired differences to the first, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from exitlens.report.chapter import Chapter, Part, Plate, Sheet, plain_rows
from exitlens.report.comparable import Curve, Number
from exitlens.report.frames import Results, Row, distinct, groups, layers_of, rows
from exitlens.report.text import Column, is_number, number_text, p_text, to_float, visible
from exitlens.report.view_data import View
from exitlens.report.words import cell, count, counted, excludes, join, ranges, reservation, shown, sizes, units
from exitlens.scoring import PROTOCOLS
from exitlens.studies.answers.chapter import answers_judged
from exitlens.studies.decoding import figures as draw
from exitlens.studies.decoding.compared import decoding_numbers
from exitlens.studies.decoding.figures import metric_name
from exitlens.studies.decoding.views import run_views

__all__ = ["DecodingChapter"]

_SCORES = "Mean score of each decoder by metric, with 95% CI."
_DIFFERENCES = "Difference of each decoder to the first, paired by question; filled dots: the 95% CI excludes 0."


class DecodingChapter(Chapter):
    """Tables, sentences and figures of the decoding study."""

    title = "Contrasting layers while generating"
    question = "Do answers get better when early layers are contrasted with the last one?"
    how = (
        "Every decoder answered the same questions. Each score is a mean over questions with a 95% CI; "
        "differences to the first decoder are paired by question, with a paired test. max: similarity to "
        "the best matching correct answer; diff: best correct minus best incorrect; acc: share of questions where "
        "diff is above zero. MC1: the best answer is more probable than every incorrect one; MC2: share of probability "
        "on correct answers; MC3: share of correct answers above every incorrect one."
    )
    own = ("decoding", "scores", "decoding_layers", "decoding_cost")

    def answer(self, results: Results) -> str:
        """Whether any decoder is significantly better than the first, and which to use."""
        return _answer(results.rows("decoding"))

    def headline(self, results: Results) -> list[str]:
        """For each decoder its significant differences to the first, and whether the penalties were equal."""
        items = results.rows("decoding")
        first, *others = groups(items, "decoder").items() or [(None, [])]
        out: list[str] = []
        alike: dict[tuple[int, str], list[str]] = {}  # decoders without a significant difference, told together
        for name, group in others:
            compared = [row for row in group if is_number(row.get("difference"))]
            if not compared:
                continue
            n = count(compared[0], "n")
            head = f"{visible(name)} relative to {visible(first[0])}, paired by question (n = {n}): "
            told = _significant(compared)
            if told:
                out.append(head + told)
            else:
                alike.setdefault((len(compared), n), []).append(visible(name))
        for (metrics, n), same in alike.items():
            several = f"any of {metrics} metrics: every 95% CI covers 0"
            where = "the one metric: its 95% CI covers 0" if metrics == 1 else several
            out.append(
                f"{join(same)} relative to {visible(first[0])}, paired by question (n = {n}): no significant "
                f"difference on {where}."
            )
        used = [row.get("repetition_penalty") for row in items if is_number(row.get("repetition_penalty"))]
        penalties = sorted({number_text(value, 2) for value in used})
        if len(penalties) > 1:
            out.append(
                f"The decoders ran with different repetition penalties ({join(penalties)}): "
                "differences may come from the penalty rather than from the layers."
            )
        return out

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """Each metric's mean and difference, a row a decoder."""
        frame = results.frame("decoding")
        if frame is None:
            return []
        frame = frame[frame["metric"].str.endswith(("_max", "_acc"))]
        names = ["metric", "decoder", "mean", "low", "high", "difference", "difference_low", "difference_high", "p"]
        heads = [*names[:6], "d. low", "d. high", "p"]
        body = [[metric_name(str(row[0])), *row[1:]] for row in plain_rows(frame[names])]
        return [
            Part(
                _protocol(results.rows("decoding")).strip(" ()"),
                [Column(head, ".3f") for head in heads],
                body,
                n=[units(row) for row in rows(frame)],
            )
        ]

    def tables(self, results: Results) -> list[Sheet]:
        """Quality beside cost, scores with differences, what each decoder costs, and the answers side by side."""
        items = results.rows("decoding")
        costs = _costs(results)
        body = [
            [
                row.get("decoder"),
                metric_name(str(row.get("metric", ""))),
                cell({**row, "mean_low": row.get("low"), "mean_high": row.get("high")}, "mean"),
                cell(row, "difference"),
                p_text(row.get("p")),
                count(row, "n"),
            ]
            for row in items
        ]
        headers = ["decoder", "metric", "mean", "difference to the first", "p", "n"]
        out = [
            _quality_and_cost(items, costs),
            Sheet(f"Scores{_protocol(items)}", headers, body, "decoding", len(body) > 12),
            _cost_sheet(costs),
        ]
        return [*out, *_differing(results), *([] if "entropy_layers" in results else [answers_judged(results)])]

    def figures(self, results: Results) -> list[Plate]:
        """Scores, paired differences, and the layers that were chosen."""
        out: list[Plate] = []
        model = results.model
        frame = results.frame("decoding")
        if frame is not None:
            items = results.rows("decoding")
            note = f"{model} · n = {counted(sizes(items, 'n'), 'question')}{_protocol(items)}"
            where = f"Model {model}, n = {counted(sizes(items, 'n'), 'question')}{_protocol(items)}."
            out.append(Plate("decoding-scores", f"{_SCORES} {where}", _SCORES, partial(draw.scores, frame, note=note)))
            if any(is_number(row.get("difference")) for row in items):
                drawn = partial(draw.differences, frame, note=note)
                out.append(Plate("decoding-differences", f"{_DIFFERENCES} {where}", _DIFFERENCES, drawn))
        frame = results.frame("decoding_layers")
        if frame is not None:
            candidates = ranges(layers_of(results.rows("decoding_layers")))
            caption = f"How often each early layer was chosen (candidates {candidates})."
            tokens = sum(int(to_float(row.get("count"))) for row in results.rows("decoding_layers"))
            size = f"n = {counted(f'{tokens:,}', 'token')}"
            drawn = partial(draw.layer_choices, frame, note=f"{model} · {size}")
            where = (
                f"Model {model}, {size} of all decoders; early layers are read as each decoder reads them; no judge."
            )
            out.append(Plate("decoding-layers", f"{caption} {where}", caption, drawn))
        return out

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.decoding.views`."""
        return run_views(results)

    def numbers(self, results: Results) -> list[Number]:
        """Scores and verdicts of every decoder."""
        return decoding_numbers(results)

    def curves(self, results: Results) -> list[Curve]:
        """None: nothing here goes along the layers."""
        return []


def _answer(items: list[Row]) -> str:
    """One sentence on all decoders; empty where no decoder was compared with another."""
    first, *others = groups(items, "decoder") or [None]
    compared = [row for row in items if row.get("decoder") in others and is_number(row.get("difference"))]
    if not compared:
        return ""
    base = visible(first)
    names = distinct(compared, "decoder")
    n = counted(sizes(compared, "n"), "question")
    better = [row for row in compared if to_float(row.get("difference_low")) > 0]
    worse = [row for row in compared if to_float(row.get("difference_high")) < 0]
    largest = max(better or worse or compared, key=lambda row: abs(to_float(row.get("difference"))))
    told = f"{metric_name(str(largest['metric']))} {_signed(largest)}"
    value = f"{told} of {visible(largest.get('decoder'))} relative to {base}, {n}{reservation(largest, ('n',))}"
    if not is_number(largest.get("difference_low")):
        return f"Too few questions to compare the decoders: the largest difference is {value}: ask more questions."
    metrics = len(distinct(compared, "metric"))
    measured = "the one metric" if metrics == 1 else f"any of {metrics} metrics"
    if not better and not worse:
        who = f"{visible(names[0])} is not" if len(names) == 1 else f"none of {len(names)} contrasting decoders is"
        return (
            f"No: {who} significantly better than {base} on {measured}; the largest difference is {value}: keep {base}."
        )
    if not better:
        told = join([visible(name) for name in distinct(worse, "decoder")])
        verb = "is" if len(distinct(worse, "decoder")) == 1 else "are"
        return f"No: {told} {verb} significantly worse than {base}, most in {value}, and none is better: keep {base}."
    gain = f"the largest gain is {value}" if len(names) > 1 else f"its largest gain is {told} ({n}"
    gain += "" if len(names) > 1 else f"{reservation(largest, ('n',)).replace(' (', '; ').rstrip(')')})"
    return (
        f"Perhaps: {_gains(better, worse, base, metrics)}; {gain}; the intervals are not corrected for the "
        f"{counted(len(compared), 'comparison')}: confirm it on other questions before leaving {base}."
    )


def _gains(better: list[Row], worse: list[Row], base: str, metrics: int) -> str:
    """Which decoders are significantly better than the first on how many metrics, and which of them worse on others."""
    told = []
    for name in distinct(better, "decoder"):
        wins, losses = (sum(row.get("decoder") == name for row in rows) for rows in (better, worse))
        text = f"{visible(name)} is significantly better than {base} on {wins} of {counted(metrics, 'metric')}"
        told.append(text + (f" and worse on {losses}" if losses else ""))
    return "; ".join(told)


def _signed(row: Row) -> str:
    """A difference with its sign and interval."""
    return ("+" if to_float(row.get("difference")) > 0 else "") + shown(row, "difference")


def _protocol(items: list[Row]) -> str:
    """The protocol of the text metrics, in brackets."""
    named = [str(row["protocol"]) for row in items if row.get("protocol") in PROTOCOLS]
    return f" ({PROTOCOLS[named[0]].label})" if named else ""


def _significant(compared: list[Row]) -> str:
    """The differences whose interval excludes 0, in words; empty where there are none."""
    found = [row for row in compared if excludes(row, "difference", 0.0)]
    if not found:
        return ""
    told = [f"{metric_name(str(row['metric']))} {_signed(row)}" for row in found]
    rest = len(compared) - len(found)
    text = f"significant differences (95% CI excludes 0): {join(told)}"
    text += f"; no significant difference on the other {rest}." if rest else "."
    if len(compared) > 1:
        text += f"\nThe intervals are not corrected for looking at {len(compared)} metrics."
    return text


def _costs(results: Results) -> list[Row]:
    """Rows of ``decoding_cost``, with the tokens per second that the manifest holds."""
    speed = results.manifest.get("tokens_per_second")
    rates = speed if isinstance(speed, Mapping) else {}
    return [{**row, "tokens_per_second": rates.get(row.get("decoder"))} for row in results.rows("decoding_cost")]


def _cost_sheet(costs: list[Row]) -> Sheet:
    columns = {
        "repetition penalty": ("repetition_penalty", 2),
        "extra unembeddings a token": ("extra_unembeddings", 0),
        "tokens written": ("tokens", 0),
        "tokens per second": ("tokens_per_second", 1),
    }
    body = [[row.get("decoder"), *(number_text(row.get(name), n) for name, n in columns.values())] for row in costs]
    caption = "What each decoder costs (speed on a few questions, decoders in turn, without the prompt's pass)"
    return Sheet(caption, ["decoder", *columns], body, "decoding_cost")


def _quality_and_cost(items: list[Row], costs: list[Row]) -> Sheet:
    """A row a decoder: its scores, those significantly different from the first decoder's marked, and its cost."""
    metrics = [name for name in distinct(items, "metric") if not str(name).endswith("_diff")]
    body: list[list[object]] = []
    for name, group in groups(items, "decoder").items():
        mine = {row.get("metric"): row for row in group}
        cost = next((row for row in costs if row.get("decoder") == name), {})
        rate = to_float(cost.get("tokens_per_second"))
        scores = [_marked(mine[metric]) if metric in mine else "–" for metric in metrics]
        time = number_text(1000 / rate, 1) if rate > 0 else "–"
        body.append([name, time, number_text(cost.get("extra_unembeddings"), 0), *scores])
    headers = ["decoder", "ms a token", "extra unembeddings", *(metric_name(str(metric)) for metric in metrics)]
    return Sheet("Cost and quality; ▲ ▼: significantly above or below the first decoder", headers, body, "decoding")


def _marked(row: Row) -> str:
    mean = number_text(row.get("mean"))
    if not is_number(row.get("difference")) or not excludes(row, "difference", 0.0):
        return mean
    return f"{mean} {'▲' if to_float(row.get('difference_low')) > 0 else '▼'}"


def _differing(results: Results) -> list[Sheet]:
    """The answers that differ between decoders, side by side."""
    answers = groups(results.rows("answers"), "question_id")
    names = distinct(results.rows("answers"), "decoder")
    if len(names) < 2:
        return []
    side: list[list[object]] = []
    for group in answers.values():
        given = {row.get("decoder"): str(row.get("answer", "")).strip(" ") for row in group}
        if len(set(given.values())) > 1:
            side.append([str(group[0].get("question", "")), *(given.get(name, "–") for name in names)])
    caption = f"Answers that differ between decoders, of {counted(len(answers), 'question')}"
    return [Sheet(caption, ["question", *(str(name) for name in names)], side, "answers", True)]
