"""Which blocks wrote an answer: attribution of choices given as texts, of one prompt or of the questions of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from exitlens import stats
from exitlens.arguments import as_texts, wrong_kind
from exitlens.errors import InputError
from exitlens.lenses.attribution import HEAD_KINDS, Attribution, Target, attribute_ids
from exitlens.models.protocol import LayeredModel
from exitlens.report.notebook import register_drawing
from exitlens.studies.layers.attribution_views import drawn
from exitlens.studies.layers.choices import check_choices, plan_choices
from exitlens.studies.layers.records import LookRecord

__all__ = ["AttributionStage", "attribute", "attribute_record", "attribution_means", "one_token_records"]

Token = str | int
Wanted = Token | tuple[Token, Token]

MEANS = ("component", "kind", "block", "n", "contribution", "low", "high", "p", "p_holm", "p_bh")


def attribute(
    lm: LayeredModel,
    prompt: str | Sequence[str],
    tokens: Wanted | Sequence[Wanted],
    *,
    heads: bool = True,
) -> Attribution:
    """What embeddings, each attention, each MLP and each head add to the logit of tokens, or to a difference of two.

    Args:
        lm: The model.
        prompt: A text, or several.
        tokens: What is split: a text or a token id, a pair of them for the difference of their logits (first minus
            second), or a list of such. A text stands for the first of its tokens after the prompt; where several
            texts begin alike, for the first token that tells them apart, after what they share.
        heads: Whether attention is also split into heads, where it is a product of concatenated heads.

    Returns:
        The contributions of every component [logits before the model's soft-cap], for every prompt and target. Their
        sum was compared with the model's own logit.

    Raises:
        InputError: An empty prompt or text, a token outside the vocabulary, texts that no first token tells apart.
        ContextError: A prompt that does not fit the model's context.
        UnsupportedModel: The model's logits are no sum of what its blocks add.
    """
    prompts = as_texts(prompt, "prompt")
    if not isinstance(tokens, Iterable | int):
        raise wrong_kind("what is split", tokens, "give a text, a token id, a pair of them, or a list of such")
    wanted: list[Wanted] = [tokens] if isinstance(tokens, str | int | tuple) else list(tokens)
    for pair in wanted:
        if isinstance(pair, tuple) and len(pair) != 2:
            raise InputError(f"{len(pair)} tokens in {str(pair)[:80]}: a difference takes a pair")
    repeated = next((each for i, each in enumerate(wanted) if each in wanted[:i]), None)
    if repeated is not None:
        raise InputError(f"{str(repeated)[:80]!r} is given twice: leave one out")
    ids, targets = [], []
    for text in prompts:
        context, known = _tokens(lm, text, wanted)
        ids.append(context)
        targets.append([_target(lm, each, known) for each in wanted])
    return attribute_ids(lm, ids, targets, heads=heads, texts=prompts)


def attribute_record(lm: LayeredModel, record: LookRecord, *, heads: bool = True) -> Attribution:
    """The split of each choice of a record, and as last target the difference that the answer hangs on.

    The difference is the correct choice with the largest logit minus the incorrect one with the largest; where it is
    not known which are correct, the two choices with the largest logits.

    Raises:
        InputError: Choices that no first token tells apart.
    """
    choices = check_choices(record.choices)
    context, known = _tokens(lm, record.prompt, choices)
    alone = [Target(choice, known[choice]) for choice in choices]
    own = attribute_ids(lm, [context], [alone], heads=False).logits
    first, second = opponents(choices, record.correct, list(own["logit"]))
    gap = Target(difference_label(first, second), known[first], known[second])
    return attribute_ids(lm, [context], [[*alone, gap]], heads=heads, texts=[record.prompt])


def difference_label(first: str, second: str) -> str:
    """What a difference of two logits is called."""
    return f"{first} − {second}"  # a minus sign, so that a hyphen in a choice is none


def one_token_records(lm: LayeredModel, records: Sequence[LookRecord]) -> list[LookRecord]:
    """The records with known correct and incorrect choices that one token tells apart."""
    return [
        record
        for record in records
        if any(record.correct)
        and not all(record.correct)
        and plan_choices(lm, record.prompt, record.choices).rule == "first-token"
    ]


@dataclass(frozen=True)
class AttributionStage:
    """Tables ``attribution`` and ``attribution_heads``: what each component, and each attention head, adds to the
    correct choice's logit over the best incorrect one's.
    """

    name: ClassVar[str] = "attribution"
    version: ClassVar[int] = 2

    def settings(self) -> dict[str, Any]:
        """See :class:`exitlens.runs.engine.Stage`."""
        return {}

    def identify(self, record: LookRecord) -> Any:
        """See :class:`exitlens.runs.engine.Stage`."""
        return [record.id, record.prompt, record.choices, record.correct]

    def run(self, lm: LayeredModel, batch: Sequence[LookRecord]) -> dict[str, pd.DataFrame]:
        """See :class:`exitlens.runs.engine.Stage`. Raises UnsupportedModel where logits are no sum."""
        plans = [plan_choices(lm, record.prompt, record.choices, "first-token") for record in batch]
        found = attribute_ids(
            lm,
            [plan.context for plan in plans],
            [[Target(str(i), tokens[0]) for i, tokens in enumerate(plan.targets)] for plan in plans],
            heads=True,
        )
        frames, by_head = [], []
        for place, record in enumerate(batch):
            logits = found.logits[found.logits["prompt"] == place]
            first, second = opponents(record.choices, record.correct, list(logits["logit"]))
            by_choice = dict(zip(record.choices, logits["logit"], strict=True))
            every = found.table(place)
            pair = [str(record.choices.index(choice)) for choice in (first, second)]
            heads = every[every["kind"] == "head"]
            by_head.append(
                pd.DataFrame(
                    {
                        "question_id": record.id,
                        "question": record.question,
                        "block": heads["block"],
                        "head": heads["head"],
                        "contribution": heads[pair[0]] - heads[pair[1]],
                    }
                )
            )
            wide = every[~every["kind"].isin(HEAD_KINDS)]
            plus, minus = (wide[name] for name in pair)
            frames.append(
                pd.DataFrame(
                    {
                        "question_id": record.id,
                        "question": record.question,
                        "correct_choice": first,
                        "incorrect_choice": second,
                        "component": wide["component"],
                        "kind": wide["kind"],
                        "block": wide["block"],
                        "contribution": plus - minus,
                        "logit_difference": by_choice[first] - by_choice[second],
                    }
                )
            )
        return {
            "attribution": pd.concat(frames, ignore_index=True),
            "attribution_heads": pd.concat(by_head, ignore_index=True),
        }


def attribution_means(attribution: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Table ``attribution_means``: the mean contribution of each component over questions.

    Intervals by question; p is that of a sign-flip test of "the mean is 0", corrected over the components.
    """
    wide = attribution.pivot_table(
        index="question_id", columns="component", values="contribution", sort=False, fill_value=0.0
    )
    first = attribution.drop_duplicates("component").set_index("component").loc[list(wide.columns)]
    values = wide.to_numpy(dtype=np.float64)
    found = stats.mean_intervals(values, seed=seed)
    p = stats.sign_flip_p(values, seed=seed)
    table = {
        "component": list(wide.columns),
        "kind": first["kind"].to_numpy(),
        "block": first["block"].to_numpy(),
        "n": len(values),
        "contribution": found.value,
        "low": found.low,
        "high": found.high,
        "p": p,
        "p_holm": stats.holm(p),
        "p_bh": stats.benjamini_hochberg(p),
    }
    return pd.DataFrame(table)[list(MEANS)]


def opponents(choices: Sequence[str], correct: Sequence[bool], logits: Sequence[float]) -> tuple[str, str]:
    """The correct and the incorrect choice with the largest logits; not known which are correct: the largest two."""
    ranked = sorted(range(len(choices)), key=lambda i: -logits[i])
    if any(correct) and not all(correct):
        first = next(i for i in ranked if correct[i])
        second = next(i for i in ranked if not correct[i])
    else:
        first, second = ranked[:2]
    return choices[first], choices[second]


def _tokens(lm: LayeredModel, prompt: str, wanted: Sequence[Wanted]) -> tuple[list[int], dict[Token, int]]:
    """The context that is run, and the token that stands for each text and id."""
    flat = [token for each in wanted for token in (each if isinstance(each, tuple) else (each,))]
    texts = list(dict.fromkeys(token for token in flat if isinstance(token, str)))
    known: dict[Token, int] = {token: token for token in flat if not isinstance(token, str)}
    context = list(lm.encode(prompt))
    if not context:
        raise InputError("the prompt is empty: give a text")
    if len(texts) == 1:
        gap = "" if prompt[-1:].isspace() else " "
        text = texts[0].strip()
        ids = lm.encode(prompt + gap + text)
        if not text or ids[: len(context)] != context or len(ids) == len(context):
            raise InputError(
                f"{texts[0][:80]!r} is no text that can follow the prompt as tokens: give another, or an id"
            )
        known[texts[0]] = ids[len(context)]
    elif texts:
        plan = plan_choices(lm, prompt, texts)
        if plan.rule == "sequence":
            raise InputError(
                f"no first token tells {', '.join(repr(text[:30]) for text in texts[:4])} apart, and a logit is that "
                "of one token: give choices none of which begins another"
            )
        context = list(plan.context)
        known |= {text: tokens[0] for text, tokens in zip(texts, plan.targets, strict=True)}
    return context, known


def _target(lm: LayeredModel, wanted: Wanted, known: dict[Token, int]) -> Target:
    def name(token: Token) -> str:
        if isinstance(token, str):
            return token
        return lm.token(token) or f"<{token}>" if 0 <= token < lm.vocab_size else f"<{token}>"

    if isinstance(wanted, tuple):
        plus, minus = wanted
        return Target(difference_label(name(plus), name(minus)), known[plus], known[minus])
    return Target(name(wanted), known[wanted])


register_drawing(Attribution, drawn)
