"""The lens study in sentences: read off its tables, nulls included."""

from __future__ import annotations

from collections.abc import Sequence

from exitlens.report.frames import Results, Row, distinct, groups
from exitlens.report.text import is_number, number_text, to_float, visible
from exitlens.report.words import LEVEL, counted, excludes, join, p_equals, shown

__all__ = [
    "control_sentences",
    "cost_rows",
    "cost_sentence",
    "gain_sentences",
    "headline_of",
    "kl_sentence",
    "left_out_sentence",
    "pair_sentences",
    "percent_text",
    "verdict",
]

_BASE = "logit"  # the lens that others must beat: it needs no training


def headline_of(results: Results) -> int:
    """The k of which findings speak: that of the shares by layer."""
    rows = results.rows("lenses_layers")
    return int(to_float(rows[0]["k"])) if rows else 0


def verdict(results: Results) -> str:
    """Which lens to read with, by pass@k over all prompts and by the sets on which it differs from the logit lens."""
    k = headline_of(results)
    items = [row for row in results.rows("lenses", k=k) if not row["control"]]
    if not items:
        return ""
    whole = [row for row in items if row["set"] == items[0]["set"]]
    sets = [name for name in distinct(items, "set") if name != "all"]
    best = max(whole, key=lambda row: to_float(row["passed"]))
    if not any(_reads(row) for row in items):
        return (
            "No lens is shown to read concepts here: none ranks a prompt's own concepts higher than those of other "
            f"prompts beyond chance on any of {counted(len(sets), 'set')} (best: {_passed(best, k)}): trust none on "
            "this evidence."
        )
    pairs = _against_base(results, k)
    better = {lens: _sets_where(pairs, lens, 1) for lens in distinct(pairs, "lens")}
    winners = [lens for lens, found in better.items() if found]
    if not pairs:
        return f"Only one lens was read, so none is preferred: {_passed(best, k)}."
    differ = {row["set"] for row in pairs if _significant(row) and row["set"] != "all"}
    null = f"no lens differs from {_BASE} beyond chance on {len(sets) - len(differ)} of {counted(len(sets), 'set')}"
    if not winners:
        base = next(row for row in whole if row["lens"] == _base(results))
        return f"Read with the {visible(base['lens'])} lens: no other is better ({_passed(base, k)}); {null}."
    first = max(winners, key=lambda lens: (len(better[lens]), _value(whole, lens)))
    row = next(row for row in whole if row["lens"] == first)
    base = next(row for row in whole if row["lens"] == _base(results))
    losses = _sets_where(pairs, first, -1)
    lost = f", and worse on {join(losses)}" if losses else ""
    return (
        f"Read with the {visible(first)} lens on {join(better[first])}: {_passed(row, k)} over all, "
        f"{_passed(base, k)}{lost}; {null}."
    )


def pair_sentences(results: Results) -> list[str]:
    """For each pair of lenses, on which sets they differ beyond chance, and how much over all prompts."""
    k = headline_of(results)
    out = []
    pairs = groups(
        ({**row, "_pair": (row["lens"], row["other"])} for row in results.rows("lenses_pairs", k=k)), "_pair"
    )
    for (lens, other), items in pairs.items():
        sets = [row for row in items if row["set"] != "all"]
        up = [visible(row["set"]) for row in sets if _significant(row) and to_float(row["difference"]) > 0]
        down = [visible(row["set"]) for row in sets if _significant(row) and to_float(row["difference"]) < 0]
        parts = [f"{word} on {join(names)}" for word, names in (("better", up), ("worse", down)) if names]
        told = join(parts) if parts else f"no difference beyond chance on any of {counted(len(sets), 'set')}"
        first = items[0]
        over = "over all prompts" if first["set"] == "all" else f"on {visible(first['set'])}"
        out.append(
            f"{visible(lens)} against {visible(other)}: {told}; {over} pass@{k} differs by "
            f"{shown(first, 'difference')} (p {p_equals(first['p_holm'])}, n = {int(first['n'])})."
        )
    return out


def gain_sentences(results: Results) -> list[str]:
    """On which sets each lens ranks a prompt's own concepts higher than those of other prompts."""
    k = headline_of(results)
    out = []
    for lens, items in groups([row for row in results.rows("lenses", k=k) if not row["control"]], "lens").items():
        sets = [row for row in items if row["set"] != "all"]
        read = [visible(row["set"]) for row in sets if _reads(row)]
        told = f"reads concepts on {join(read)}" if read else "reads no concepts beyond chance on any set"
        first = items[0]
        where = "over all prompts" if first["set"] == "all" else "there"
        out.append(
            f"{visible(lens)} {told}; {where} own concepts against those of other prompts: {shown(first, 'gain')} in "
            f"pass@{k} (n = {int(to_float(first['n_shuffled']))})."
        )
    return out


def control_sentences(results: Results) -> list[str]:
    """Whether the two controls score at chance, and where they do not."""
    k = headline_of(results)
    rows = results.rows("lenses", k=k)
    out = [
        f"Control, {visible(row['lens'])}: pass@{k} {percent_text(row, 'passed')}, chance "
        f"{percent_text(row, 'chance')}: {_at_chance(row, 'passed')}."
        for row in rows
        if row["control"] and row["set"] == rows[0]["set"]
    ]
    shuffled = [row for row in rows if not row["control"] and row["set"] != "all" and is_number(row["shuffled"])]
    off = [row for row in shuffled if excludes(row, "shuffled", to_float(row["chance"]))]
    above = [row for row in off if to_float(row["shuffled"]) > to_float(row["chance"])]
    below = [row for row in off if to_float(row["shuffled"]) < to_float(row["chance"])]
    if shuffled:
        text = f"Control, concepts of other prompts: at chance in {len(shuffled) - len(off)} of {len(shuffled)} cases"
        for word, found in (("above", above), ("below", below)):
            if found:
                text += f"; {word} it for {join([_case(row) for row in found])}"
        if above:
            text += ". Above: the lens favours the words of that set whatever the prompt, so only the gain counts there"
        out.append(text + ".")
    return out


def kl_sentence(results: Results) -> str:
    """Which lens is nearest to the output over the inner layers."""
    rows = [row for row in results.rows("lenses_summary") if row["lens"] not in _controls(results)]
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda row: to_float(row["kl"]))
    told = [f"{visible(row['lens'])} {shown(row, 'kl', 2)}" for row in ordered]
    return f"KL to the output, mean over the inner layers: {join(told)} nats (n = {int(rows[0]['n'])} prompts)."


def cost_rows(results: Results) -> Sequence[Row]:
    """The measured times of the manifest."""
    found = results.manifest.get("lens_costs")
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def cost_sentence(results: Results) -> str:
    """What reading costs, on the machine of the run."""
    rows = cost_rows(results)
    if not rows:
        return ""
    told = [f"{visible(row.get('lens'))} {number_text(row.get('cost'), 2)}" for row in rows]
    return (
        f"Reading every inner layer at every token takes, in passes that read nothing: {join(told)} (median of "
        f"{rows[0].get('rounds')} rounds on {counted(int(to_float(rows[0].get('tokens'))), 'token')}, this machine)."
    )


def left_out_sentence(results: Results) -> str:
    """How many concepts are no single token."""
    rows = results.rows("lenses_sets")
    out, kept = (sum(int(row[name]) for row in rows) for name in ("left_out", "concepts"))
    lost = sum(int(row["prompts"]) - int(row["n"]) for row in rows)
    if not out:
        return ""
    return (
        f"Left out: {out} of {out + kept} concepts that are no single token, and with them {counted(lost, 'prompt')}."
    )


def _controls(results: Results) -> set[str]:
    return {row["lens"] for row in results.rows("lenses") if row["control"]}


def _base(results: Results) -> str:
    """The lens that the others are compared with: logit, or the first where it was not read."""
    names = [row["lens"] for row in results.rows("lenses") if not row["control"]]
    return _BASE if _BASE in names else str(names[0])


def _against_base(results: Results, k: int) -> list[Row]:
    """Pairs with the base, turned so that it is the ``other``."""
    base = _base(results)
    out: list[Row] = []
    for row in results.rows("lenses_pairs", k=k):
        if row["other"] == base:
            out.append(row)
        elif row["lens"] == base:
            turned = {"lens": row["other"], "other": base, "difference": -to_float(row["difference"])}
            out.append({**row, **turned})
    return out


def _sets_where(pairs: Sequence[Row], lens: str, sign: int) -> list[str]:
    return [
        visible(row["set"])
        for row in pairs
        if row["lens"] == lens and row["set"] != "all" and _significant(row) and sign * to_float(row["difference"]) > 0
    ]


def _significant(row: Row) -> bool:
    return to_float(row["p_holm"]) < LEVEL


def _reads(row: Row) -> bool:
    return row["set"] != "all" and _significant(row) and to_float(row["gain"]) > 0


def _value(rows: Sequence[Row], lens: str) -> float:
    return max(to_float(row["passed"]) for row in rows if row["lens"] == lens)


def percent_text(row: Row, name: str) -> str:
    """A share in per cent with one digit, and its interval where there is one: ``1.0% [0.1, 4.7]``."""
    value, low, high = (100 * to_float(row.get(part)) for part in (name, f"{name}_low", f"{name}_high"))
    if not is_number(value):
        return "–"
    return f"{value:.1f}%" + (f" [{low:.1f}, {high:.1f}]" if is_number(low) and is_number(high) else "")


def _passed(row: Row, k: int) -> str:
    return f"{visible(row['lens'])} pass@{k} {percent_text(row, 'passed')}, n = {int(row['n'])}"


def _at_chance(row: Row, name: str) -> str:
    return "its interval excludes chance" if excludes(row, name, to_float(row["chance"])) else "at chance"


def _case(row: Row) -> str:
    return f"{visible(row['lens'])} on {visible(row['set'])} ({to_float(row['shuffled']):.1%})"
