"""The tables of the lens study, column by column."""

from __future__ import annotations

from exitlens.studies.tables import NARROW, Field, TableSpec, with_interval

__all__ = ["LENSES_TABLES"]

_PROMPT = Field("prompt_id", "SET/NAME of the prompt")
_SET = Field("set", "set of prompts; all: every prompt of every set")
_LENS = Field("lens", "through which the layers are read; random-rotation: a control that must not read anything")
_K = Field("k", "how far down a concept may rank")
_N = Field("n", "prompts with at least one single-token concept", "prompts")
_SHARE = "mean over prompts of the share of concepts"

LENSES_TABLES = (
    TableSpec(
        "lenses",
        "a set, lens and k",
        (
            _SET,
            _LENS,
            Field("control", "whether the lens is the random-rotation control"),
            _K,
            _N,
            *with_interval("passed", f"pass@k: {_SHARE} with rank ≤ k at some inner layer", "0–1"),
            Field(
                "chance", "pass@k of random directions, one a layer, through the model's norm and unembedding", "0–1"
            ),
            Field("n_shuffled", "prompts with another prompt's concepts to rank", "prompts"),
            *with_interval("shuffled", "pass@k of the concepts of other prompts of the set (control)", "0–1"),
            *with_interval("gain", "`passed` − `shuffled`, paired by prompt", "−1–1"),
            Field("p", "two-sided sign-flip p of `gain` = 0", "0–1"),
            Field("p_holm", "the same, corrected (Holm) over lenses and sets of this k; all: over lenses", "0–1"),
            NARROW,
        ),
        printed=True,
        rests_on=("n", "n_shuffled"),
    ),
    TableSpec(
        "lenses_pairs",
        "a set, k and pair of lenses",
        (
            _SET,
            _K,
            _LENS,
            Field("other", "the lens that it is compared with"),
            _N,
            *with_interval("difference", "pass@k of `lens` − pass@k of `other`, paired by prompt", "−1–1"),
            Field("p", "two-sided sign-flip p of `difference` = 0", "0–1"),
            Field("p_holm", "the same, corrected (Holm) over pairs and sets of this k; all: over pairs", "0–1"),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "lenses_layers",
        "a lens and layer",
        (
            _LENS,
            Field("layer", "1 to N − 1; N: the model's own output, the same through every lens"),
            _N,
            Field("k", "of `share`"),
            *with_interval("share", f"{_SHARE} with rank ≤ k at this layer", "0–1"),
            *with_interval("kl", "KL(p_N‖p_j) at the token that is read", "nats"),
            *with_interval("agreement", "share of prompts whose top-1 token is layer N's", "0–1"),
            *with_interval("answer_rank", "rank of the model's own top-1 token, geometric mean (1: the best)"),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "lenses_summary",
        "a lens",
        (
            _LENS,
            _N,
            *with_interval("kl", "KL(p_N‖p_j), mean over the inner layers read", "nats"),
            *with_interval(
                "saturation", "saturation layer: the first one read from which the top-1 token no longer changes"
            ),
            NARROW,
        ),
        printed=True,
    ),
    TableSpec(
        "lenses_sets",
        "a set",
        (
            _SET,
            Field("read_at", "the token that is read: before-target, last-newline or last"),
            Field("prompts", "prompts of the set", "prompts"),
            Field("n", "those with at least one single-token concept", "prompts"),
            Field("concepts", "concepts that are ranked", "concepts"),
            Field("left_out", "concepts that are no single token, with or without a leading space", "concepts"),
        ),
        printed=True,
    ),
    TableSpec(
        "lenses_ranks",
        "a prompt, lens and concept",
        (
            _PROMPT,
            _SET,
            _LENS,
            Field("concept", "the concept that is ranked"),
            Field("of", "whose concept it is: the prompt's own, or another prompt's (shuffled control)"),
            Field("rank", "best rank over inner layers and the concept's tokens (1: the best)"),
            Field("layer", "where it has that rank; the first of several"),
        ),
    ),
    TableSpec(
        "lenses_reads",
        "a prompt, lens and layer",
        (
            _PROMPT,
            _SET,
            _LENS,
            Field("layer", "inner layers, then N"),
            Field(
                "share", "share of the prompt's concepts with rank ≤ k at this layer (k as in `lenses_layers`)", "0–1"
            ),
            Field("kl", "KL(p_N‖p_j) at the token that is read", "nats"),
            Field("agreement", "whether the top-1 token is layer N's"),
            Field("answer_rank", "rank of the model's own top-1 token (1: the best)"),
        ),
    ),
)
