"""What attribution tells in the layers chapter: which blocks favour the correct choice, on the mean and question by
question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from exitlens.report.chapter import Part, Plate, Sheet
from exitlens.report.frames import Results, Row, rows
from exitlens.report.text import Column, interval_text, is_number, number_text, p_text, shorten, slug, to_float, visible
from exitlens.report.words import counted, interval_reservation, mark, units
from exitlens.studies.layers.attribution_figures import component_bars

__all__ = ["attribution_findings", "attribution_part", "attribution_plates", "attribution_sheets"]

HOW = (
    "The logit of the correct choice's first token minus that of the best incorrect choice's is split into what the "
    "embeddings, each attention and each MLP add to the residual stream, with the final norm held at its own scale; "
    "the parts sum to the model's own difference. Means are over all questions whose choices one token tells apart, "
    "with 95% intervals by question; p-values are those of sign-flip tests, corrected over components (Holm)."
)
QUOTED = 160  # characters of a question or choice in a sentence or caption
_SHOWN = 12  # components in a table of the report


def attribution_findings(results: Results) -> list[str]:
    """Which components favour the correct choice, over all questions; nothing without attribution."""
    items = _means(results)
    if not items:
        return []
    n = int(to_float(items[0].get("n")))
    clear = [row for row in items if to_float(row.get("p_holm")) < 0.05]
    most = _largest(clear or items)
    told = f"{len(clear)} of {counted(len(items), 'component')} differ from 0 (Holm)"
    if not clear:
        text = (
            f"Over {counted(n, 'question')}, no component reliably separates the correct choice from the best "
            f"incorrect one: {told}.\nThe largest mean is that of {visible(most['component'])}, "
            f"{_value(most)} logits{interval_reservation(n)}."
        )
        return [text]
    towards = [row for row in clear if to_float(row.get("contribution")) > 0]
    sides = f"{len(towards)} of them add to the correct choice, {len(clear) - len(towards)} to the incorrect one"
    favours = "correct" if to_float(most.get("contribution")) > 0 else "best incorrect"
    text = (
        f"Over {counted(n, 'question')}, {visible(most['component'])} separates the choices most: it adds "
        f"{_value(most)} logits to the correct choice over the best incorrect one{interval_reservation(n)}; it favours "
        f"the {favours} one.\n{told}; {sides}."
    )
    return [text]


def attribution_part(results: Results, whole: bool) -> list[Part]:
    """The components with the largest means, for the terminal."""
    items = _means(results)
    if not items:
        return []
    items = sorted(items, key=lambda row: -abs(to_float(row.get("contribution"))))
    columns: list[Column | str] = ["component", Column("logits added", "+.3f"), Column("low", "+.3f")]
    columns += [Column("high", "+.3f"), Column("p (Holm)", ".3f")]
    names = ("component", "contribution", "low", "high", "p_holm")
    n = counted(int(to_float(items[0].get("n"))), "question")
    items = items if whole else items[:7]
    body = [[row[name] for name in names] for row in items]
    title = f"correct minus best incorrect choice, mean over {n}"
    return [Part(title, columns, body, n=[units(row) for row in items])]


def attribution_sheets(results: Results) -> list[Sheet]:
    """The components with the largest means; for each question picked those that moved its choice most."""
    out: list[Sheet] = []
    means = sorted(_means(results), key=lambda row: -abs(to_float(row.get("contribution"))))
    if means:
        n = counted(int(to_float(means[0].get("n"))), "question")
        body: list[list[object]] = [
            [visible(row["component"]), _value(row) + _mark(row), p_text(row.get("p_holm")), p_text(row.get("p_bh"))]
            for row in means[:_SHOWN]
        ]
        out.append(
            Sheet(
                f"What separates the correct choice from the best incorrect one: the largest mean contributions "
                f"[logits], {n}, 95% intervals",
                ["component", "logits added", "p (Holm)", "p (BH)"],
                body,
                "attribution_means",
            )
        )
    for pick, mine in _picked(results):
        ranked = sorted(mine, key=lambda row: -abs(to_float(row.get("contribution"))))
        cells: list[list[object]] = [
            [visible(row["component"]), number_text(row["contribution"])] for row in ranked[:_SHOWN]
        ]
        rest = sum(to_float(row["contribution"]) for row in ranked[_SHOWN:])
        cells.append([f"{max(len(ranked) - _SHOWN, 0)} more", number_text(rest)])
        question = shorten(visible(pick.get("question")), QUOTED)
        cells.append(["sum: the model's own difference", number_text(mine[0]["logit_difference"])])
        out.append(
            Sheet(
                f"“{question}” ({visible(pick.get('verdict'))}): what moved the choice, "
                f"{_difference(mine[0])} [logits]",
                ["component", "logits added"],
                cells,
                "attribution",
                collapsed=True,
            )
        )
    return out


def attribution_plates(results: Results) -> Iterator[Plate]:
    """Mean contributions by block, then each picked question's."""
    means = results.frame("attribution_means")
    if means is not None:
        n = counted(int(means["n"].iloc[0]), "question")
        yield Plate(
            "attribution-means",
            "What each block adds to the correct choice's logit over the best incorrect one's: means with 95% CI; "
            f"above 0: it favours the correct choice. Model {results.model}, n = {n}.",
            "Bars of the mean contribution of attention and MLP of each block",
            partial(
                component_bars,
                means,
                heading="Correct minus best incorrect choice, by block",
                note=f"{results.model} · mean of {n}, 95% CI",
            ),
        )
    frame = results.frame("attribution")
    if frame is None:
        return
    seen: dict[str, int] = {}
    for pick, mine in _picked(results):
        verdict = visible(pick.get("verdict"))
        seen[verdict] = seen.get(verdict, 0) + 1
        tag = slug(verdict) + (f"-{seen[verdict]}" if seen[verdict] > 1 else "")
        question = shorten(visible(pick.get("question")), QUOTED)
        yield Plate(
            f"attribution-{tag}",
            f"What each block adds to “{_difference(mine[0])}”; above 0: it favours the correct choice. Model "
            f"{results.model}, n = 1 question: “{question}”.",
            f"Bars of the contribution of attention and MLP of each block for the question {question}",
            partial(
                component_bars,
                frame[frame["question_id"] == pick["question_id"]],
                heading=question,
                note=f"{verdict} choice first · {results.model} · {_difference(mine[0])}",
            ),
        )


def _means(results: Results) -> list[Row]:
    return results.rows("attribution_means")


def _largest(items: Sequence[Row]) -> Row:
    return max(items, key=lambda row: abs(to_float(row.get("contribution"))))


def _picked(results: Results) -> Iterator[tuple[Row, list[Row]]]:
    for pick in results.rows("layers_picks"):
        mine = rows(results.frame("attribution"), question_id=pick["question_id"])
        if mine:
            yield pick, mine


def _difference(row: Row) -> str:
    right, wrong = (shorten(visible(row[name]), QUOTED) for name in ("correct_choice", "incorrect_choice"))
    return f"{right} − {wrong}"  # a minus


def _mark(row: Row) -> str:
    return mark(units(row)) if is_number(row.get("low")) else ""


def _value(row: Row) -> str:
    return interval_text(row.get("contribution"), row.get("low"), row.get("high"), 2)
