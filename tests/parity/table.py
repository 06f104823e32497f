"""The page docs/families.md, made of the census's outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import transformers

from . import zoo
from .census import Outcome

DOCUMENT = "docs/families.md"

_UNBUILT = {
    "gemma3n": "not built here: its picture encoder needs the library timm (its text part is `gemma3n_text`)",
    "gemma4_assistant": "not built here: a draft model that reads the keys and values of another model",
    "gemma4_unified_assistant": "not built here: a draft model that reads the keys and values of another model",
}

_PAGE = """\
# Models that can be read, layer by layer

Written by `python scripts/families_table.py`; do not edit. `tests/parity/test_census.py` fails when the code and this
page disagree.

Every entry of the causal-LM mapping of transformers {version} ({entries} entries) was built as a tiny random model
(3 layers, random norms and biases, scales and soft caps that are 1 or off by default set to visible values) and
checked in float32 on tokens that the check at load had not seen:
**{right} are read rightly, {refused} are refused with the reason, {unbuilt} cannot be built here, {wrong} are wrong.**

*Right* means: the readout at layer N equals the model's logits; layer 0 equals what enters block 1; layer j equals what
a hook on block j sees, and the model's own `output_hidden_states` where it gives one a layer; a row's numbers do not
depend on its batch, nor on padding left or right where `pads` says yes; text in pieces through the cache equals one
pass; decoding past thresholds and at ragged batches gives the model's own tokens; and the model is left as it was.

- **pads**: padding, left or right, changes nothing. Where it says no, rows run together only when equally long.
- **gap**: masked positions between a shared, cached prefix and the rest change nothing. "no" for sliding windows, which
  count positions, and for recurrences.
- **cache**: `own`: the model's key-value or state cache, checked when the model is taken in: a prefix repeated over
  rows, rows dropped, several tokens at once and one by one. `steps`: the same, its tokens fed one by one. `runs again`:
  it has no cache that stood this check; decoding runs the text again, slower and exact.
- **attribution** (`lm.attribute`, `exitlens look --by component`): `heads`: a logit splits into what embeddings, every
  attention, its heads and every MLP add, and the sum was compared with the model's own logit. `some heads`: not every
  attention is a product of concatenated heads. `blocks`: none is. `refused`: the logit is no such sum; the remark says
  why.
- **late**: thresholds that this configuration, or a variant of it, names (windows and chunks of 6 tokens, indexers
  that keep 6 or 8, rotations that change at 12 or 16: YaRN, dynamic, longrope where the family takes them): from a
  prompt of 5 tokens 20 are decoded past each, and every one is the top token of the model's own whole pass without a
  cache. "own blocks": exitlens ran the blocks itself. "none": no threshold.
- **ragged**: `equal`: four prompts of different lengths answered side by side, with and without a shared beginning,
  give the tokens that each gives alone, and those of the model's own whole passes.
- **width** is given where the stream is not as wide as the model: several streams, kept side by side.

Quantised models: 8-bit and 4-bit weights go through `exitlens.wrap` like any other model, and parity is checked against
the quantised model's own logits. Run on a CPU, on a tiny Llama (`pytest tests/parity/test_quantised.py`, where the
library is installed): bitsandbytes 0.50 in 8 bits and in 4 (NF4), torchao 0.18 with int8 and with 4-bit integer
weights, optimum-quanto 0.2.7 in 8 bits, all equal to the model's own logits and left as they were. Not run: GPTQ and
AWQ (no kernels for a CPU), HQQ (transformers 5.23 does not load it yet), torchao's packed int4 and quanto's 4 bits
(each asks for a compiled extension). An unembedding that is more than its
matrix (quantised, adapted by LoRA, with hooks or parametrisations) is measured: its output for the unit vectors is the
matrix that readouts multiply by, and a module that is no matrix product is refused. Weights that are offloaded to disk
or to another device's memory are refused:
their matrix is not there to be read.

| model type | class | result | pads | gap | cache | attribution | late | ragged | remarks |
|---|---|---|---|---|---|---|---|---|---|
"""


# Why those that are refused have no layers to be read, found in their code; the refusal itself follows in the table.
REFUSED = {
    "cpmant": "its mask lets every token of a text see the later ones, and no setting changes that, so what a position "
    "shows is not what it would show while the text is written",
    "hrm_text": "two stacks of blocks take turns, each block several times a pass, so no one state is after block j",
    "inkling2_text": "what enters a block, and the final norm, is a mixture of the states after all earlier groups of "
    "blocks, so no layer's state alone leads to logits",
    "musicgen": "its tokens are codes of sound, several a position, each with its own embedding and unembedding",
    "musicgen_melody": "as musicgen",
    "prophetnet": "logits come from streams that run beside the tokens' own, one for each token to come, and begin at "
    "a learned vector: a token's own stream leads to no logits",
    "reformer": "its blocks give two streams as two outputs, of which each adds to the other, and the final norm reads "
    "both: one state after block j is not looked for",
}


def row(outcome: Outcome) -> str:
    """One line of the table."""
    name = zoo.class_name(outcome.entry)
    if outcome.status != "right":
        reason = _UNBUILT.get(outcome.entry, outcome.reason) if outcome.status == "unbuilt" else outcome.reason
        reason = f"{REFUSED[outcome.entry]} ({reason})" if outcome.entry in REFUSED else reason
        result = "–" if outcome.status == "unbuilt" else f"**{outcome.status}**"
        return f"| {outcome.entry} | {name} | {result} | | | | | | | {reason.replace('|', '/')} |"
    remarks = list(outcome.notes)
    if outcome.width > outcome.d_head:
        remarks.insert(0, f"width {outcome.width // outcome.d_head} × d")
    yes = ("no", "yes")
    flags = (
        f"{yes[outcome.pads]} | {yes[outcome.gap]} | {outcome.cache} | {outcome.attribution} | {outcome.late} | "
        f"{outcome.ragged}"
    )
    return f"| {outcome.entry} | {name} | right | {flags} | {'; '.join(remarks)} |"


def document(outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    counts = Counter(outcome.status for outcome in outcomes)
    head = _PAGE.format(
        version=transformers.__version__,
        entries=len(outcomes),
        right=counts["right"],
        refused=counts["refused"],
        unbuilt=counts["unbuilt"],
        wrong=counts["wrong"],
    )
    return head + "\n".join(row(outcome) for outcome in outcomes) + "\n"
