"""What the lens study offers to be compared with other runs."""

from __future__ import annotations

from exitlens.report.comparable import Number, Unit, interval, whole
from exitlens.report.frames import Results, groups, rows
from exitlens.report.text import to_float

__all__ = ["lens_numbers"]


def lens_numbers(results: Results, k: int) -> list[Number]:
    """Pass@k of each lens over all prompts, paired by prompt; its KL and saturation layer over the inner layers."""
    passed = [row for row in results.rows("lenses", k=k) if not row["control"]]
    controls = {row["lens"] for row in results.rows("lenses") if row["control"]}
    units = _units(results, k)
    first = passed[0]["set"] if passed else None
    out = [
        Number(
            f"pass@{k}, all prompts" if row["set"] == "all" else f"pass@{k}, {row['set']}",
            *interval(row, "passed"),
            n=whole(row, "n"),
            counted="prompts",
            of={"lens": str(row["lens"])},
            units=[unit for name, unit in units.get(row["lens"], ()) if row["set"] in ("all", name)],
            main=row["set"] == first and row["lens"] == passed[0]["lens"],
        )
        for row in passed
    ]
    for row in results.rows("lenses_summary"):
        if row["lens"] not in controls:
            of, n = {"lens": str(row["lens"])}, whole(row, "n")
            out.append(Number("KL to layer N", *interval(row, "kl"), n=n, counted="prompts", of=of, unit="nats"))
            out.append(
                Number("saturation layer", *interval(row, "saturation"), n=n, counted="prompts", of=of, unit="layer")
            )
    return out


def _units(results: Results, k: int) -> dict[str, list[tuple[str, Unit]]]:
    """Each lens's prompts with their set: the share of own concepts with rank ≤ k."""
    frame = results.frame("lenses_ranks")
    if frame is None:
        return {}
    own = frame[frame["of"] == frame["prompt_id"]]
    share = own.assign(share=(own["rank"] <= k).astype(float))
    mean = share.groupby(["lens", "set", "prompt_id"], sort=False)["share"].mean().reset_index()
    found = groups(rows(mean), "lens")
    return {
        lens: [
            (str(row["set"]), Unit(str(row["prompt_id"]), str(row["prompt_id"]), to_float(row["share"])))
            for row in items
        ]
        for lens, items in found.items()
    }
