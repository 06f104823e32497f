"""The option `exitlens generate --watch`: each token with the probability that the statement so far is true."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitlens.cli.console import echo, print_json

if TYPE_CHECKING:
    from exitlens.models.protocol import LayeredModel
    from exitlens.probes import SavedProbe

__all__ = ["open_watcher", "write_watched"]


def open_watcher(path: Path, skips: bool, qa: bool) -> SavedProbe:
    """The probe, refused before a model is loaded when it cannot watch a text being written.

    Raises ProbeError for a probe of few-shot statements or of another position than last or every, and for one of
    answers where the text is not put as a question (``qa``).
    """
    from exitlens.data.prompts import ANSWER_POSITIONS
    from exitlens.errors import InputError, ProbeError
    from exitlens.probes import load_probe

    if skips:
        raise InputError("--watch reads layers that --exit and --speculate may skip: leave one of them out")
    saved = load_probe(path)
    if saved.position in ANSWER_POSITIONS:
        if not qa:
            raise ProbeError(
                f"'{path}' was fitted on answers under the question prompt (position '{saved.position}'): add --qa"
            )
        return saved
    if saved.setting != "zero-shot":
        raise ProbeError(
            f"'{path}' was fitted on few-shot statements, and a text being written has no prompt around it: fit one "
            "with exitlens probe --kinds logistic --zero-shot --save FILE"
        )
    if saved.position not in ("last", "every"):
        raise ProbeError(
            f"'{path}' was fitted on position '{saved.position}', and a text being written is read at its last token: "
            "fit one with --position last or every"
        )
    return saved


def write_watched(
    lm: LayeredModel,
    saved: SavedProbe,
    texts: Sequence[str],
    asked: Sequence[str],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Answer each prompt and print every token with P(true) as it comes, or the whole as JSON. Raises ProbeError."""
    from exitlens.decoding import Generation
    from exitlens.decoding.stream_states import watch
    from exitlens.studies.probes.predict import check_probe

    check_probe(saved, lm)
    from exitlens.data.prompts import ANSWER_POSITIONS

    found = []
    told = "the answer so far correct" if saved.position in ANSWER_POSITIONS else "the text so far true"
    where = ", ".join(map(str, saved.layers))
    for text, prompt in zip(texts, asked, strict=True):
        if not as_json:
            if len(texts) > 1:
                echo(f"> {text}")
            echo(f"{saved.probe.kind} at layer {where}: is {told}?")
            echo("P(true)  token")
            sys.stdout.flush()
        p_true: list[float] = []
        for piece in watch(lm, prompt, saved.layers, **options):
            if isinstance(piece, Generation):
                found.append((text, piece, p_true))
                break
            p_true.append(float(saved.p_true(piece.states[:, None]).double()[0]))
            if not as_json:
                echo(f"{p_true[-1]:>7.3f}  {piece.token}")
                sys.stdout.flush()
    if not as_json:
        return
    print_json(
        [
            {
                "prompt": text, "text": answer.text, "tokens": answer.tokens, "token_ids": answer.token_ids,
                "finish": answer.finish, "decoder": options["decoder"],
                "repetition_penalty": options["repetition_penalty"],
                "generation_config": options.get("generation_config"), "chat_date": lm.chat_date, "p_true": p_true,
            }
            for text, answer, p_true in found
        ]
    )  # fmt: skip
