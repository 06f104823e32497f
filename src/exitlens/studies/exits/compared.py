"""What the exit study offers to be compared with other runs."""

from __future__ import annotations

from exitlens.report.comparable import Curve, Number, curve, interval, labels, whole
from exitlens.report.frames import Results, Row, groups
from exitlens.report.text import is_number, to_float
from exitlens.report.words import set_text

__all__ = ["among", "best_saving", "exit_curves", "exit_numbers", "is_oracle"]

_RISK = ("policy", "risk asked for")


def best_saving(items: list[Row], level: float) -> Row | None:
    """The policy and threshold that save most FLOPs at an agreement of ``level`` or more, without the oracle."""
    able = [row for row in items if not is_oracle(row) and to_float(row.get("agreement")) >= level]
    able = [row for row in able if to_float(row.get("flops_saved")) > 0]
    return max(able, key=lambda row: to_float(row.get("flops_saved"))) if able else None


def among(row: Row) -> str:
    """The kind of policy, and of how many kinds it was the best."""
    kind, kinds = str(row.get("policy")), row.get("chosen_among")
    return f"{kind} (best of {kinds})" if is_number(kinds) and to_float(kinds) > 1 and "best" not in kind else kind


def is_oracle(row: Row) -> bool:
    """Whether a row is the bound and no policy."""
    return str(row.get("policy")).lower().startswith("oracle")


def exit_numbers(results: Results, levels: tuple[float, ...]) -> list[Number]:
    """The bound, the most that a policy saves at each agreement, and the risk at each threshold with a guarantee."""
    items = [row for row in results.rows("exits") if is_number(row.get("flops_saved"))]
    n = max((whole(row, "n") for row in items), default=0)
    out: list[Number] = []
    bound = [row for row in items if is_oracle(row) and to_float(row.get("agreement")) == 1.0]
    if bound:
        most = max(to_float(row["flops_saved"]) for row in bound)
        out.append(Number("FLOPs saved by the oracle", most, n=n, counted="tokens"))
    for level in levels if items else ():
        best = best_saving(items, level)
        told = f"FLOPs saved at {level:.0%} agreement or more"
        remark = "no policy saves" if best is None else f"{best.get('policy')} at {set_text(best.get('threshold'))}"
        saved = 0.0 if best is None else to_float(best["flops_saved"])
        out.append(Number(told, saved, n=n, counted="tokens", remark=remark))
    for row in results.rows("exits_calibration"):
        if is_number(row.get("test_risk")):
            several = to_float(row.get("chosen_among")) > 1
            policy = f"best of {whole(row, 'chosen_among')}" if several else row.get("policy")
            of = labels({"policy": policy, "risk asked for": set_text(row.get("delta"))}, _RISK)
            found, tested = interval(row, "test_risk"), whole(row, "n_test")
            named, remark = "risk at the threshold with a guarantee", among(row) if several else ""
            out.append(Number(named, *found, n=tested, counted="answers", of=of, remark=remark))
    return out


def exit_curves(results: Results) -> list[Curve]:
    """Agreement against the FLOPs saved, a curve a policy."""
    policies = groups(results.rows("exits"), "policy")
    return [
        curve(
            "agreement with the full model",
            items,
            "flops_saved",
            "agreement",
            of={"policy": str(policy)},
            axis="FLOPs saved, exit checks included",
            unit="agreement",
        )
        for policy, items in policies.items()
        if len(items) > 1
    ]
