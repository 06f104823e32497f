"""Headlines in words: what the tables say, with intervals, and no more certainty than the intervals allow.

Every sentence reads numbers off the tables (the largest, the smallest, which intervals leave a value out); none is
computed here. Where the largest of many layers is named, the sentence says that it was chosen after looking.

Each finding is one text: the headline, then details after a line break (text from data never holds one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pandas import DataFrame

from exitlens.report.frames import Row, distinct, groups, layers_of, rows
from exitlens.report.text import interval_text, is_number, number_text, p_text, to_float, visible

__all__ = ["HEADLINES", "decoding", "entropy", "exits", "join", "layers", "probe_layers", "probes", "ranges"]

LEVEL = 0.05
AGREEMENTS = (0.98, 0.95, 0.90)
LEARNED = 0.55  # train accuracy below this is no better than guessing


def ranges(numbers: Iterable[int]) -> str:
    """``1–3, 7`` for 1, 2, 3, 7."""
    out: list[list[int]] = []
    for n in sorted(set(numbers)):
        if out and n == out[-1][-1] + 1:
            out[-1].append(n)
        else:
            out.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in out)


def join(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def outside(row: Row, name: str, value: float) -> bool:
    """True when the row has an interval of ``name`` and it leaves ``value`` out."""
    low, high = to_float(row.get(f"{name}_low")), to_float(row.get(f"{name}_high"))
    return low > value or high < value


def shown(row: Row, name: str, digits: int = 3) -> str:
    """The row's value of ``name`` with its interval."""
    return interval_text(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"), digits)


def layers(tables: Mapping[str, DataFrame]) -> list[str]:
    """One or two sentences for each question picked."""
    out: list[str] = []
    for pick in rows(tables.get("layers_picks")):
        items = [
            row
            for row in rows(tables.get("layers"), question_id=pick.get("question_id"))
            if pick.get("lens") in (None, row.get("lens"))
        ]
        answer, right = visible(pick.get("answer")), visible(pick.get("correct_choice"))
        quoted = f"“{visible(pick.get('question'))}”"
        verdict = "right" if pick.get("verdict") == "right" else f"wrong: the right choice is “{right}”"
        text = f"{quoted}: the model answers “{answer}” ({verdict})."
        leaders = {layer: _leader(items, layer) for layer in layers_of(items)}
        final = [layer for layer, (name, _) in leaders.items() if name == str(pick.get("answer"))]
        settled = _settled(sorted(leaders), set(final))
        if settled is not None:
            text += f"\nRead with the {pick.get('lens')} lens, this choice leads the others from layer {settled} on."
        led = [layer for layer, (_, correct) in leaders.items() if correct]
        if pick.get("verdict") != "right" and leaders:
            text += (
                f" The right choice leads at layers {ranges(led)}." if led else " The right choice leads at no layer."
            )
        out.append(text)
    return out


def _leader(items: Sequence[Row], layer: int) -> tuple[str, bool]:
    here = [row for row in items if int(row["layer"]) == layer and is_number(row.get("share"))]
    if not here:
        return "", False
    best = max(here, key=lambda row: to_float(row.get("share")))
    return str(best.get("choice")), bool(best.get("correct"))


def _settled(order: Sequence[int], agreeing: set[int]) -> int | None:
    settled = None
    for layer in reversed(order):
        if layer not in agreeing:
            break
        settled = layer
    return settled


def entropy(tables: Mapping[str, DataFrame]) -> list[str]:
    """For each judge: is there a certain difference after correction over the layers, where, and how well it ranks."""
    out: list[str] = []
    for judge, items in groups(rows(tables.get("entropy_layers"), estimator="per-group"), "judge").items():
        first = items[0]
        text = (
            f"Judge “{visible(judge)}” ({_count(first, 'n_right')} right, {_count(first, 'n_wrong')} wrong answers): "
        )
        measured = [row for row in items if is_number(row.get("difference"))]
        if not measured:
            out.append(text + "one of the two groups is empty, so nothing can be compared.")
            continue
        certain = [row for row in measured if to_float(row.get("p_holm")) < LEVEL]
        largest = max(certain or measured, key=lambda row: abs(to_float(row.get("difference"))))
        value = f"{shown(largest, 'difference', 2)} nats at layer {int(largest['layer'])}"
        if certain:
            higher = {to_float(row.get("difference")) > 0 for row in certain}
            direction = "higher" if higher == {True} else "lower" if higher == {False} else "different"
            text += (
                f"the entropy of wrong answers is {direction} at {_layers(layers_of(certain))} "
                f"(Holm-corrected over {len(items)} layers, p < {LEVEL:g}); the largest difference is {value}."
            )
            if is_number(largest.get("adjusted_p")):
                kept = to_float(largest.get("adjusted_p")) < LEVEL
                adjusted = number_text(largest.get("adjusted_difference"), 2)
                text += (
                    f"\nWith answer length as a covariate it is {adjusted} nats (p {_p(largest.get('adjusted_p'))})"
                    + ("." if kept else ": not certain once length is accounted for.")
                )
        else:
            alone = outside(largest, "difference", 0.0)
            text += (
                f"no certain difference at any of {len(items)} layers after Holm correction; the largest is {value}, "
                + (
                    "which leaves zero out alone but does not survive the correction."
                    if alone
                    else "which covers zero."
                )
            )
        ranked = [row for row in items if is_number(row.get("auroc"))]
        if ranked:
            best = max(ranked, key=lambda row: abs(to_float(row.get("auroc")) - 0.5))
            text += f"\nAUROC furthest from chance: {shown(best, 'auroc', 2)} at layer {int(best['layer'])}, " + (
                "the best of many layers and so optimistic."
                if outside(best, "auroc", 0.5)
                else "which covers 0.5: no certain ranking."
            )
        out.append(text)
    return out


def _layers(numbers: Sequence[int]) -> str:
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {ranges(numbers)}"


def _p(value: object) -> str:
    text = p_text(value)
    return text if text.startswith("<") else f"= {text}"


def _count(row: Row, name: str) -> str:
    return str(int(to_float(row.get(name)))) if is_number(row.get(name)) else "?"


def probes(tables: Mapping[str, DataFrame]) -> list[str]:
    """For each setting: the best probe beside chance and beside the language model's own answer."""
    from exitlens.studies.probes.figures import method_name

    out: list[str] = []
    for setting, items in groups(rows(tables.get("probes")), "setting").items():
        scored = [row for row in items if is_number(row.get("test_accuracy"))]
        own = [row for row in scored if str(row.get("method")).startswith("LM")]
        fitted = [row for row in scored if row not in own]
        if not fitted:
            continue
        best = max(fitted, key=lambda row: to_float(row.get("test_accuracy")))
        text = f"{visible(setting).capitalize()}: the highest test accuracy is {shown(best, 'test_accuracy')} "
        text += f"({method_name(best)}, n = {_count(best, 'n_test')})"
        text += (
            "."
            if outside(best, "test_accuracy", 0.5)
            else "; its interval covers 0.5: not certainly better than chance."
        )
        if own:
            rival = max(own, key=lambda row: to_float(row.get("test_accuracy")))
            text += f"\nThe language model itself reaches {shown(rival, 'test_accuracy')} ({method_name(rival)}): "
            text += _apart(best, rival, "test_accuracy", "the probe is better", "the probe is worse")
        trained = [to_float(row.get("train_accuracy")) for row in fitted if is_number(row.get("train_accuracy"))]
        if trained and max(trained) < LEARNED:
            text += (
                f"\nNo network learned even its training statements (train accuracy at most {max(trained):.3f}): "
                "raw states share a part far larger than their differences, and the original protocol does not take it "
                "away. --kinds logistic standardises them."
            )
        out.append(text)
    return out


def _apart(one: Row, other: Row, name: str, better: str, worse: str) -> str:
    if to_float(one.get(f"{name}_low")) > to_float(other.get(f"{name}_high")):
        return f"{better}, and the two intervals do not overlap."
    if to_float(one.get(f"{name}_high")) < to_float(other.get(f"{name}_low")):
        return f"{worse}, and the two intervals do not overlap."
    return "the intervals overlap, so this table shows no certain difference."


def probe_layers(tables: Mapping[str, DataFrame]) -> list[str]:
    """What the study itself concluded; without that, the best kind and layer beside the floor and the model."""
    said = [visible(row["sentence"]) for row in rows(tables.get("probe_verdict")) if row.get("sentence")]
    if said:
        return said
    items = [row for row in rows(tables.get("probe_layers")) if is_number(row.get("accuracy"))]
    fitted = [row for row in items if row.get("role") == "probe"]
    if not fitted:
        return []
    best = max(fitted, key=lambda row: to_float(row.get("accuracy")))
    where = f", layer {int(to_float(best['layer']))}" if is_number(best.get("layer")) else ""
    text = f"The most accurate probe by layer is {visible(best.get('kind'))}{where}: {shown(best, 'accuracy')}; "
    out = [text + f"as the best of {len(fitted)} points it is chosen after looking, and so optimistic."]
    for role, name in (("floor", "the text-only floor"), ("lm", "the language model itself")):
        rivals = [row for row in items if row.get("role") == role]
        if rivals:
            rival = max(rivals, key=lambda row: to_float(row.get("accuracy")))
            verdict = _apart(best, rival, "accuracy", "the probe beats it", "the probe falls short of it")
            out.append(f"Against {name} ({visible(rival.get('kind'))}, {shown(rival, 'accuracy')}): {verdict}")
    return out


def decoding(tables: Mapping[str, DataFrame]) -> list[str]:
    """For each decoder: which paired differences to the first leave zero out, and whether the penalties were equal."""
    from exitlens.studies.decoding.figures import metric_name

    items = rows(tables.get("decoding"))
    systems = groups(items, "decoder")
    names = list(systems)
    out: list[str] = []
    alike: dict[tuple[int, str], list[str]] = {}  # decoders without a certain difference, told together
    for name in names[1:]:
        compared = [row for row in systems[name] if is_number(row.get("difference"))]
        certain = [row for row in compared if outside(row, "difference", 0.0)]
        if not compared:
            continue
        told = [f"{metric_name(str(row['metric']))} {_signed(row)}" for row in certain]
        n = _count(compared[0], "n")
        text = f"{visible(name)} beside {visible(names[0])}, paired by question (n = {n}): "
        if certain:
            text += f"differences whose interval leaves zero out: {join(told)}"
            rest = len(compared) - len(certain)
            text += f"; no certain difference on the other {rest}." if rest else "."
            if len(compared) > 1:
                text += f"\nThe intervals are not corrected for looking at {len(compared)} metrics."
            out.append(text)
        else:
            alike.setdefault((len(compared), n), []).append(visible(name))
    for (metrics, n), same in alike.items():
        out.append(
            f"{join(same)} beside {visible(names[0])}, paired by question (n = {n}): no certain difference on any of "
            f"{metrics} metrics: every interval covers zero."
        )
    penalties = {
        number_text(row.get("repetition_penalty"), 2) for row in items if is_number(row.get("repetition_penalty"))
    }
    if len(penalties) > 1:
        out.append(
            f"The decoders ran with different repetition penalties ({join(sorted(penalties))}): "
            "differences may come from the penalty rather than from the layers."
        )
    return out


def _signed(row: Row) -> str:
    return ("+" if to_float(row.get("difference")) > 0 else "") + shown(row, "difference")


def exits(tables: Mapping[str, DataFrame]) -> list[str]:
    """What no policy can pass; then, for three levels of agreement, the policy that saves most, or that none does."""
    items = [row for row in rows(tables.get("exits")) if is_number(row.get("agreement"))]
    items = [row for row in items if is_number(row.get("flops_saved"))]
    oracle = [row for row in items if str(row.get("policy")).lower().startswith("oracle")]
    out: list[str] = []
    whole = [row for row in oracle if to_float(row.get("agreement")) == 1.0]
    if whole:
        most = max(to_float(row.get("flops_saved")) for row in whole)
        out.append(
            f"The bound: leaving each token at its settling depth, asking for nothing, saves {most:.1%} of the FLOPs."
        )
    found: list[tuple[Row | None, list[float]]] = []  # the same policy is often the best at several levels
    for level in AGREEMENTS if items else ():
        able = [row for row in items if row not in oracle and to_float(row.get("agreement")) >= level]
        able = [row for row in able if to_float(row.get("flops_saved")) > 0]
        best = max(able, key=lambda row: to_float(row.get("flops_saved"))) if able else None
        if found and found[-1][0] is best:
            found[-1][1].append(level)
        else:
            found.append((best, [level]))
    for row, levels in found:
        asked = f"At {join([f'{level:.0%}' for level in levels])} agreement"
        if row is None:
            out.append(f"{asked} with the full model or more, no policy measured saves compute.")
            continue
        strictest = max(levels)
        bound = "" if outside(row, "agreement", strictest) else f" (its interval reaches below {strictest:.0%})"
        policy = f"{visible(row.get('policy'))} at {number_text(row.get('threshold'), 2)}"
        saved = f"{to_float(row['flops_saved']):.1%} of the FLOPs"
        out.append(f"{asked} or more, {policy} saves most: {saved}, agreement {shown(row, 'agreement')}{bound}.")
    return out


HEADLINES: Mapping[str, tuple[Callable[[Mapping[str, DataFrame]], list[str]], ...]] = {
    "layers": (layers,),
    "entropy": (entropy,),
    "probes": (probes, probe_layers),
    "decoding": (decoding,),
    "exits": (exits,),
}


def judges(tables: Mapping[str, DataFrame]) -> list[str]:
    """The judges named in the tables, quoted."""
    named = distinct(rows(tables.get("entropy_layers")), "judge") or distinct(rows(tables.get("judgements")), "judge")
    return [f"“{visible(name)}”" for name in named]
