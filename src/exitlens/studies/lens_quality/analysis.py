"""Pass@k with controls, pairwise differences, and curves by layer, from the ranks of every prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exitlens.data.records import ConceptPrompt
from exitlens.lenses.concepts import ConceptRead
from exitlens.stats import Intervals, holm, mean_intervals, paired_differences

__all__ = ["EVERY", "layers_table", "pairs_table", "pass_table", "sets_table", "shares", "summary_table"]

EVERY = "all"  # the row over all sets


def shares(ranks: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Share of concepts with rank ≤ k, a row a prompt and lens: columns ``own k`` and ``shuffled k`` for each k.

    A prompt's shuffled share is the mean over the other prompts whose concepts were ranked there; NaN without any.
    """
    keys = ["set", "prompt_id", "lens"]
    wide = ranks[[*keys, "of"]].assign(**{str(k): (ranks["rank"] <= k).astype(float) for k in ks})
    of = wide.groupby([*keys, "of"], sort=False)[[str(k) for k in ks]].mean().reset_index()
    mine = of["of"] == of["prompt_id"]
    own = of[mine].set_index(keys)[[str(k) for k in ks]].add_prefix("own ")
    other = of[~mine].groupby(keys, sort=False)[[str(k) for k in ks]].mean().add_prefix("shuffled ")
    return own.join(other).reset_index()


def pass_table(
    share: pd.DataFrame, chance: pd.DataFrame, ks: Sequence[int], *, controls: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Table ``lenses``: pass@k, chance, the shuffled control and the gain over it, by set and lens.

    Args:
        share: Rows of :func:`shares`.
        chance: What guessing reaches, by ``prompt_id``, a column for each k.
        ks: Numbers of ranks within which a concept counts as read.
        controls: Names of lenses that must not read anything.
        seed: Of the bootstrap.

    Returns:
        A row for each set, lens and k, with 95% intervals over prompts.
    """
    rows: list[dict[str, Any]] = []
    for name, here in _sets(share):
        expected = chance.loc[here["prompt_id"].unique(), list(ks)].mean()
        for lens, mine in here.groupby("lens", sort=False):
            own, other = (mine[[f"{part} {k}" for k in ks]].to_numpy(np.float64) for part in ("own", "shuffled"))
            both = ~np.isnan(other).any(axis=1)
            passed = mean_intervals(own, seed=seed).within(0, 1)
            control = mean_intervals(other[both], seed=seed).within(0, 1) if both.any() else None
            gain = paired_differences(own[both], other[both], seed=seed) if both.any() else None
            for i, k in enumerate(ks):
                rows.append(
                    {
                        "set": name,
                        "lens": lens,
                        "control": lens in controls,
                        "k": k,
                        "n": len(mine),
                        **_named("passed", passed, i),
                        "chance": float(expected[k]),
                        "n_shuffled": int(both.sum()),
                        **_named("shuffled", control, i),
                        **_named("gain", gain, i),
                        "p": float(gain.p[i]) if gain is not None else np.nan,
                    }
                )
    return _corrected(pd.DataFrame(rows))


def pairs_table(share: pd.DataFrame, lenses: Sequence[str], ks: Sequence[int], *, seed: int = 0) -> pd.DataFrame:
    """Table ``lenses_pairs``: pass@k of each lens against each one before it, paired by prompt.

    Args:
        share: Rows of :func:`shares`.
        lenses: Names, in the order in which they are compared.
        ks: Numbers of ranks within which a concept counts as read.
        seed: Of the bootstrap.

    Returns:
        A row for each set, k and pair of lenses: the difference with its 95% interval and p.
    """
    rows: list[dict[str, Any]] = []
    columns = [f"own {k}" for k in ks]
    for name, here in _sets(share):
        by_lens = {lens: mine.set_index("prompt_id")[columns] for lens, mine in here.groupby("lens", sort=False)}
        for other, lens in combinations(lenses, 2):
            first, second = by_lens[lens], by_lens[other].loc[by_lens[lens].index]
            found = paired_differences(first.to_numpy(np.float64), second.to_numpy(np.float64), seed=seed)
            for i, k in enumerate(ks):
                rows.append(
                    {
                        "set": name,
                        "k": k,
                        "lens": lens,
                        "other": other,
                        "n": len(first),
                        **_named("difference", found, i),
                        "p": float(found.p[i]),
                    }
                )
    return _corrected(pd.DataFrame(rows))


def layers_table(reads: pd.DataFrame, k: int, *, seed: int = 0) -> pd.DataFrame:
    """Table ``lenses_layers``: share of concepts, KL, agreement and rank of the model's own answer, by layer.

    Args:
        reads: A row a prompt, lens and layer: ``share``, ``kl`` [nats], ``agreement`` [0 or 1], ``answer_rank``.
        k: Number of ranks within which a concept counts as read.
        seed: Of the bootstrap.

    Returns:
        A row for each lens and layer, with 95% intervals over prompts; ranks as geometric means.
    """
    frames = []
    for lens, mine in reads.groupby("lens", sort=False):
        columns: dict[str, Any] = {}
        for name in ("share", "kl", "agreement", "answer_rank"):
            wide = mine.pivot(index="prompt_id", columns="layer", values=name).astype(float)
            values = wide.to_numpy(np.float64)
            found = mean_intervals(np.log(values) if name == "answer_rank" else values, seed=seed)
            ends = [found.value, found.low, found.high]
            if name == "answer_rank":  # the mean of logarithms, back as a rank; no rank is below 1
                ends = [np.maximum(np.exp(end), 1.0) for end in ends]
            elif name != "kl":
                ends = [np.clip(end, 0.0, 1.0) for end in ends]
            columns |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
            layers, n = [int(layer) for layer in wide.columns], len(wide)
        frames.append(pd.DataFrame({"lens": lens, "layer": layers, "n": n, "k": k, **columns}))
    return pd.concat(frames, ignore_index=True)


def summary_table(reads: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Table ``lenses_summary``: KL over the inner layers, and the saturation layer, by lens."""
    rows = []
    last = int(reads["layer"].max())
    for lens, mine in reads.groupby("lens", sort=False):
        kl = mine[mine["layer"] < last].groupby("prompt_id", sort=False)["kl"].mean().to_numpy(np.float64)
        agreed = mine.pivot(index="prompt_id", columns="layer", values="agreement")
        values = np.stack([kl, _saturation(agreed.to_numpy(bool), [int(layer) for layer in agreed.columns])], axis=1)
        found = mean_intervals(values, seed=seed)
        rows.append({"lens": lens, "n": len(kl), **_named("kl", found, 0), **_named("saturation", found, 1)})
    return pd.DataFrame(rows)


def sets_table(prompts: Sequence[ConceptPrompt], reads: Sequence[ConceptRead]) -> pd.DataFrame:
    """Table ``lenses_sets``: what each set holds, and what of it is a single token of this model."""
    rows = []
    for name in dict.fromkeys(read.set_name for read in reads):
        mine = [read for read in reads if read.set_name == name]
        rows.append(
            {
                "set": name,
                "read_at": ", ".join(dict.fromkeys(str(p.read_at) for p in prompts if p.set_name == name)),
                "prompts": len(mine),
                "n": sum(bool(read.concepts) for read in mine),
                "concepts": sum(len(read.concepts) for read in mine),
                "left_out": sum(len(read.left_out) for read in mine),
            }
        )
    return pd.DataFrame(rows)


def _sets(share: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All prompts, where there is more than one set, then each set."""
    if share["set"].nunique() > 1:
        yield EVERY, share
    for name, here in share.groupby("set", sort=False):
        yield str(name), here


def _named(name: str, found: Intervals | Any, column: int) -> dict[str, float]:
    parts = (np.nan,) * 3 if found is None else (found.value[column], found.low[column], found.high[column])
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, parts), strict=True))


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With ``p_holm``: over all tests of one k on single sets; those over all prompts are a family of their own.

    Controls are not tested for what they find: they take no part.
    """
    if not len(table):
        return table.assign(p_holm=pd.Series(dtype=float))
    tested = ~table["control"] if "control" in table else pd.Series(data=True, index=table.index)
    table["p_holm"] = np.nan
    family = tested & (table["set"] != EVERY)
    for chosen in (family, tested & ~family):
        for _, rows in table[chosen].groupby("k"):
            table.loc[rows.index, "p_holm"] = holm(rows["p"].to_numpy())
    return table


def _saturation(agreed: NDArray[np.bool_], layers: Sequence[int]) -> NDArray[np.float64]:
    """First layer from which the top-1 token is the last one's up to the end, for each row ``[prompts, layers]``."""
    held = np.flip(np.logical_and.accumulate(np.flip(agreed, axis=1), axis=1), axis=1)
    first: NDArray[np.float64] = np.array(layers, dtype=np.float64)[held.argmax(axis=1)]
    return first
