"""What the lens study tells: which lens reads known concepts, whether the controls hold, and what reading costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from exitlens.report.chapter import Chapter, Part, Plate, Sheet
from exitlens.report.comparable import Number
from exitlens.report.frames import Results, Row, column, distinct, groups
from exitlens.report.text import Column, number_text, p_text, to_float, visible
from exitlens.report.view_data import View
from exitlens.report.words import cell, counted, join, mark, units
from exitlens.studies.lens_quality import figures as draw
from exitlens.studies.lens_quality.compared import lens_numbers
from exitlens.studies.lens_quality.verdict import (
    control_sentences,
    cost_rows,
    cost_sentence,
    gain_sentences,
    headline_of,
    kl_sentence,
    left_out_sentence,
    pair_sentences,
    percent_text,
    verdict,
)
from exitlens.studies.lens_quality.views import run_views

__all__ = ["LensesChapter"]

_CONTROL = ("n_shuffled",)  # what the control, and the gain over it, rest on


class LensesChapter(Chapter):
    """Tables, sentences and figures of the lens study."""

    title = "Which lens to trust"
    question = "Which lens shows the concepts that the model passes through on its way to an answer?"
    how = (
        "Prompts whose intermediate concepts are known are read at one token: before the target, at the last newline "
        "or at the end, as the set says. A concept's rank is the best over the inner layers (1 to N - 1) and over the "
        "single tokens that spell it, with or without a leading space; pass@k is the mean over prompts of the share of "
        "concepts with rank at most k. Layer N is left out: it is the model's own output, the same through every lens. "
        "Controls: a random rotation of every state, drawn anew for each prompt and layer; and the concepts of up to "
        "four other prompts of the same set, ranked at this prompt (shuffled). Chance is pass@k of random directions "
        "through the model's own norm and unembedding. Differences are paired by prompt, with 95% intervals and "
        "sign-flip tests, corrected (Holm) over all lenses, or pairs of lenses, and sets of one k."
    )
    own = ("lenses", "lenses_pairs", "lenses_layers", "lenses_summary", "lenses_sets")

    def answer(self, results: Results) -> str:
        """Which lens to read with, and on how many sets that is more than chance."""
        return verdict(results)

    def headline(self, results: Results) -> list[str]:
        """Pairs that differ, gains over the shuffled control, controls against chance, KL, cost, what was left out."""
        found = [
            *pair_sentences(results),
            *gain_sentences(results),
            *control_sentences(results),
            kl_sentence(results),
            cost_sentence(results),
            left_out_sentence(results),
        ]
        return [text for text in found if text]

    def terminal(self, results: Results, whole: bool) -> list[Part]:
        """Pass@k of every lens over all prompts, and by set at the headline k; whole: differences too."""
        if "lenses" not in results:
            return []
        k = headline_of(results)
        sets = distinct(results.rows("lenses"), "set")
        parts = [self._over_k(results, sets[0])]
        if len(sets) > 1:
            parts.append(self._over_sets(results, k))
        if whole:
            parts += [self._pairs(results, k), self._reading(results)]
        return [part for part in parts if part.rows]

    def tables(self, results: Results) -> list[Sheet]:
        """Pass@k by set, pairs, layers, summary, sets."""
        return [_passes(results), _pairs(results), _summary(results), _layers(results), _set_sheet(results)]

    def figures(self, results: Results) -> list[Plate]:
        """Pass@k by set; concepts, agreement and KL by layer."""
        lenses, layers = results.frame("lenses"), results.frame("lenses_layers")
        plates: list[Plate] = []
        k = headline_of(results)
        names = join([visible(name) for name in distinct(results.rows("lenses"), "lens")])
        n = max([int(to_float(row["n"])) for row in results.rows("lenses")], default=0)
        note = f"{results.model}; lenses {names}; n = {counted(n, 'prompt')}; 95% intervals"
        if lenses is not None:
            caption = (
                f"Pass@{k} by set with 95% intervals. Filled: the prompt's own concepts; hollow: those of other "
                f"prompts of the set. The bar is chance. {note}."
            )
            alt = f"Pass at {k} of {names} on each set, with controls."
            plates.append(Plate("lenses_sets", caption, alt, partial(draw.by_set, lenses, k=k, note=note)))
        if layers is not None:
            caption = f"Concepts, agreement with the output, and KL to it, layer by layer, with 95% bands. {note}."
            alt = f"Curves by layer of {names}."
            plates.append(Plate("lenses_layers", caption, alt, partial(draw.by_layer, layers, note=note)))
        return plates

    def views(self, results: Results) -> list[View]:
        """See :mod:`exitlens.studies.lens_quality.views`."""
        return run_views(results)

    def numbers(self, results: Results) -> list[Number]:
        """Pass@k, KL and saturation layer of each lens."""
        return lens_numbers(results, headline_of(results))

    def _over_k(self, results: Results, name: str) -> Part:
        mine = groups(results.rows("lenses", set=name), "lens")
        ks = distinct(results.rows("lenses", set=name), "k")
        body: list[list[Any]] = [
            [visible(lens), *(_percent(row, "passed") for row in items), number_text(column(items, "n")[0], 0)]
            for lens, items in mine.items()
        ]
        some = next(iter(mine.values()))
        body.append(["chance", *(percent_text(row, "chance") for row in some), ""])
        which = "all prompts" if name == "all" else f"set {visible(name)}"
        note = "best rank over inner layers; random-rotation is a control that must score at chance"
        return Part(f"{which}, pass@k", ["lens", *(f"pass@{k}" for k in ks), Column("n")], body, note)

    def _over_sets(self, results: Results, k: int) -> Part:
        items = [row for row in results.rows("lenses", k=k) if row["set"] != "all"]
        lenses = distinct(items, "lens")
        body = []
        for name, mine in groups(items, "set").items():
            of = {row["lens"]: row for row in mine}
            body.append([visible(name), *(_percent(of[lens], "passed") for lens in lenses),
                         percent_text(mine[0], "chance")])  # fmt: skip
        return Part(f"pass@{k} by set", ["set", *map(visible, lenses), "chance"], body)

    def _pairs(self, results: Results, k: int) -> Part:
        body = [
            [visible(row["set"]), f"{visible(row['lens'])} − {visible(row['other'])}", cell(row, "difference"),
             p_text(row["p_holm"])]
            for row in results.rows("lenses_pairs", k=k)
        ]  # fmt: skip
        return Part(f"differences of pass@{k}", ["set", "lenses", "difference", "p (Holm)"], body)

    def _reading(self, results: Results) -> Part:
        costs = {str(row.get("lens")): row for row in cost_rows(results)}
        body = [
            [visible(row["lens"]), cell(row, "kl", 2), cell(row, "saturation", 1), _cost(costs.get(row["lens"]))]
            for row in results.rows("lenses_summary")
        ]
        note = "cost: reading every inner layer at every token, over a pass that reads nothing (median, least–most)"
        return Part("reading", ["lens", "KL to layer N", "saturation layer", "cost"], body, note)


def _percent(row: Row, name: str, n: Sequence[str] = ()) -> str:
    text = percent_text(row, name)
    return text + (mark(units(row, n)) if "[" in text else "")


def _cost(row: Row | None) -> str:
    if row is None:
        return "–"
    least, most = number_text(row.get("cost_low"), 2), number_text(row.get("cost_high"), 2)
    return f"{number_text(row.get('cost'), 2)} ({least}–{most})"


def _passes(results: Results) -> Sheet:
    body = [
        [row["set"], row["lens"], f"pass@{int(row['k'])}", _percent(row, "passed"),
         percent_text(row, "chance"), _percent(row, "shuffled", _CONTROL), cell(row, "gain", n=_CONTROL),
         p_text(row["p_holm"]), number_text(row["n"], 0)]
        for row in results.rows("lenses", k=headline_of(results))
    ]  # fmt: skip
    headers = ["set", "lens", "k", "own concepts", "chance", "shuffled", "gain", "p (Holm)", "n"]
    return Sheet("Pass@k and its controls", headers, body, "lenses")


def _pairs(results: Results) -> Sheet:
    body = [
        [row["set"], f"{visible(row['lens'])} − {visible(row['other'])}", f"pass@{int(row['k'])}",
         cell(row, "difference"), p_text(row["p_holm"]), number_text(row["n"], 0)]
        for row in results.rows("lenses_pairs", k=headline_of(results))
    ]  # fmt: skip
    headers = ["set", "lenses", "k", "difference", "p (Holm)", "n"]
    return Sheet("Differences of lenses, paired by prompt", headers, body, "lenses_pairs", len(body) > 12)


def _summary(results: Results) -> Sheet:
    costs = {str(row.get("lens")): row for row in cost_rows(results)}
    body = [
        [row["lens"], cell(row, "kl", 2), cell(row, "saturation", 1), _cost(costs.get(row["lens"])),
         number_text(row["n"], 0)]
        for row in results.rows("lenses_summary")
    ]  # fmt: skip
    headers = ["lens", "KL to layer N", "saturation layer", "cost of reading", "n"]
    return Sheet("KL, saturation and cost (times stand in manifest.json)", headers, body, "lenses_summary")


def _layers(results: Results) -> Sheet:
    body = [
        [row["lens"], row["layer"], _percent(row, "share"), cell(row, "kl", 2), _percent(row, "agreement"),
         cell(row, "answer_rank", 1)]
        for row in results.rows("lenses_layers")
    ]  # fmt: skip
    headers = ["lens", "layer", f"rank ≤ {headline_of(results)}", "KL to layer N", "top-1 agrees", "rank of the answer"]
    return Sheet("By layer", headers, body, "lenses_layers", True)


def _set_sheet(results: Results) -> Sheet:
    body = [
        [row["set"], row["read_at"], *(number_text(row[name], 0) for name in ("prompts", "n", "concepts", "left_out"))]
        for row in results.rows("lenses_sets")
    ]
    headers = ["set", "read at", "prompts", "prompts ranked", "concepts", "left out (no single token)"]
    return Sheet("The sets", headers, body, "lenses_sets")
