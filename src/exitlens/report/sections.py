"""The tables of each study as the report shows them, and in words how they were computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from pandas import DataFrame

from exitlens.report.frames import Row, distinct, evenly, groups, layers_of, rows
from exitlens.report.html import table
from exitlens.report.text import interval_text, is_number, number_text, p_text, to_float, token_text
from exitlens.studies.decoding.figures import metric_name
from exitlens.studies.probes.figures import method_name

__all__ = ["ASKED", "HOW", "OWN_TABLES", "TABLES", "TITLES"]

TITLES: Final[Mapping[str, str]] = {
    "layers": "What each layer would have answered",
    "entropy": "Entropy of right and wrong answers",
    "probes": "Truth in the hidden states",
    "decoding": "Contrasting layers while generating",
    "exits": "Leaving early",
}
ASKED: Final[Mapping[str, str]] = {
    "layers": "If the model had to answer at an inner layer, which of the choices would it give, from which layer on?",
    "entropy": "Are the inner layers less sure when the answer turns out to be wrong?",
    "probes": "Can true statements be told from false ones by the hidden states, on unseen topics?",
    "decoding": "Do answers get better when early layers are contrasted with the last one?",
    "exits": "How much compute would be saved by stopping at an inner layer, and how often would the token differ?",
}
# The tables that make a study present, the first one first.
OWN_TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("layers", "layers_picks", "layers_top"),
    "entropy": ("entropy_layers", "entropy_tokens"),
    "probes": ("probes", "probe_curves", "probe_layers", "probe_calibration", "probe_risk", "probe_transfer"),
    "decoding": ("decoding", "scores", "decoding_layers", "decoding_cost"),
    "exits": ("exits", "exits_layers", "exits_kinds", "exits_calibration"),
}
HOW: Final[Mapping[str, str]] = {
    "layers": (
        "At every layer j the residual stream is read out to a distribution over the vocabulary: lens raw is W·h, "
        "lens logit is W·norm(h); at the last layer both are the model itself. Rule first-token compares choices "
        "by their first distinguishing token, rule sequence by the probability of the whole choice. Share is the "
        "probability divided by the sum over the choices. The questions were picked by the program as the most "
        "interesting right and wrong answers, so they illustrate and prove nothing."
    ),
    "entropy": (
        "Entropy in nats of each layer's distribution at every token of the generated answer, stop string "
        "excluded. Estimator per-group: the sum over a group's tokens divided by the tokens of that group. "
        "Intervals: bootstrap by question, 95 %. Tests: corrected over layers by Holm (p Holm) and "
        "Benjamini–Hochberg (p BH). Length-adjusted: the same difference with the answer's length as a covariate. "
        "AUROC: the probability that a wrong answer has the higher entropy. Which answers are right is decided by "
        "the judge named with each number."
    ),
    "probes": (
        "Probes are trained on the hidden state of the last token at a layer and tested on statements of other "
        "topics. LM next token: the model's most probable next word is the right one. LM token probability: the "
        "more probable of the two label words. Majority: the vote of the layers probed. Train accuracy is "
        "measured after training, test loss over the whole test set; intervals: bootstrap, 95 %."
    ),
    "decoding": (
        "Every decoder answered the same questions. Each score is a mean over questions with a bootstrap interval "
        "(95 %); differences to the first decoder are paired by question, with a paired test. max: similarity to "
        "the best matching correct answer; diff: best correct minus best incorrect; acc: share of questions where "
        "diff is above zero. MC1: the best answer is more probable than every incorrect one; MC2: share of probability "
        "on correct answers; MC3: share of correct answers above every incorrect one."
    ),
    "exits": (
        "From one full pass: for each policy and threshold the layer at which a token would leave, and whether "
        "its token is the full model's. FLOPs saved count what asking costs (an unembedding at every layer "
        "asked) and the blocks that later tokens run for the ones that had left (cache: defer). The first token of "
        "an answer comes from the prompt's own pass and is not counted. The oracle leaves at the settling depth, from "
        "which the top token no longer changes; asking and catching up cost it nothing. Guarantee (Learn then Test): "
        "with probability 1 - epsilon over calibration answers, the share of tokens that differ is at most the asked "
        "risk."
    ),
}


def _where(name: str) -> str:
    return f"tables/{name}.parquet"


def _text(row: Row, name: str) -> str:
    return str(row.get(name, ""))


def _span(row: Row, name: str, digits: int = 3) -> str:
    return interval_text(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"), digits)


def layers(tables: Mapping[str, DataFrame]) -> list[str]:
    """For each question picked: choice × layer, and the most probable token by layer."""
    out: list[str] = []
    every = rows(tables.get("layers"))
    picks = rows(tables.get("layers_picks")) or [{"question_id": key} for key in distinct(every, "question_id")[:2]]
    for pick in picks:
        mine = [row for row in every if row.get("question_id") == pick["question_id"]]
        lens = pick.get("lens") or (mine[0].get("lens") if mine else None)
        mine = [row for row in mine if row.get("lens") == lens]
        shown = evenly(layers_of(mine), 6)
        body = []
        for choice, items in groups(mine, "choice").items():
            at = {int(row["layer"]): row for row in items}
            mark = "✓ " if items[0].get("correct") else ""
            shares = [number_text(at[layer].get("share"), 3) if layer in at else "–" for layer in shown]
            probability = number_text(at[shown[-1]].get("probability"), 3) if shown and shown[-1] in at else "–"
            body.append([f"{mark}{choice}", *shares, probability])
        question = _text(mine[0], "question") if mine else ""
        headers = ["choice", *(f"layer {layer}" for layer in shown), "probability, last"]
        caption = f"“{question}”: share of each choice among the choices, {lens} lens"
        out.append(table(headers, body, caption=caption, where=_where("layers"), collapsed=len(body) > 12))
        top = rows(tables.get("layers_top"), question_id=pick["question_id"], lens=lens)
        best = [
            [int(row["layer"]), token_text(row.get("token")), number_text(row.get("probability"))]
            for row in sorted(top, key=lambda row: -int(row["layer"]))
            if int(row["rank"]) == 0
        ]
        caption = f"“{question}”: most probable next token by layer"
        headers = ["layer", "token", "probability"]
        out.append(table(headers, best, caption=caption, where=_where("layers_top"), collapsed=True))
    return out


def entropy(tables: Mapping[str, DataFrame]) -> list[str]:
    """One table a judge and estimator, and answers with their verdicts."""
    out: list[str] = []
    headers = ["layer", "right (nats)", "wrong (nats)", "difference", "AUROC", "Cohen's d", "p", "p Holm", "p BH"]
    headers += ["length-adjusted", "its p"]
    for estimator, items in groups(rows(tables.get("entropy_layers")), "estimator").items():
        for judge, lines in groups(items, "judge").items():
            body: list[list[object]] = [
                [
                    int(row["layer"]),
                    *(_span(row, name, 2) for name in ("right", "wrong", "difference", "auroc")),
                    number_text(row.get("cohens_d"), 2),
                    *(p_text(row.get(name)) for name in ("p", "p_holm", "p_bh")),
                    number_text(row.get("adjusted_difference"), 2),
                    p_text(row.get("adjusted_p")),
                ]
                for row in sorted(lines, key=lambda row: int(row["layer"]))
            ]
            caption = f"By layer, judge {judge}, estimator {estimator}"
            out.append(table(headers, body, caption=caption, where=_where("entropy_layers"), collapsed=True))
    return [*out, _answers_judged(tables)]


def _answers_judged(tables: Mapping[str, DataFrame]) -> str:
    answers = rows(tables.get("answers"))
    if not answers:
        return ""
    first = answers[0].get("decoder")
    verdicts: dict[object, dict[str, str]] = {}
    for row in rows(tables.get("judgements"), decoder=first):
        known = row.get("right")
        word = "–" if known is None or to_float(known) != to_float(known) else "right" if bool(known) else "wrong"
        verdicts.setdefault(row.get("question_id"), {})[_text(row, "judge")] = word
    names = list(dict.fromkeys(name for one in verdicts.values() for name in one))
    body = [
        [
            _text(row, "question"),
            _text(row, "answer").strip(" "),
            *(verdicts.get(row.get("question_id"), {}).get(name, "–") for name in names),
        ]
        for row in answers
        if row.get("decoder") == first
    ]
    headers = ["question", "answer", *names]
    return table(headers, body, caption=f"Answers ({first}) and verdicts", where=_where("answers"), collapsed=True)


def probes(tables: Mapping[str, DataFrame]) -> list[str]:
    """The original's table, one a setting; then accuracy by layer."""
    out: list[str] = []
    headers = ["method", "train loss", "train accuracy", "test loss", "test accuracy", "AUROC", "n train", "n test"]
    for setting, items in groups(rows(tables.get("probes")), "setting").items():
        body: list[list[object]] = [
            [
                method_name(row),
                *(number_text(row.get(name)) for name in ("train_loss", "train_accuracy", "test_loss")),
                _span(row, "test_accuracy"),
                number_text(row.get("auroc")),
                *(
                    number_text(int(to_float(row[n])), 0) if is_number(row.get(n)) else "–"
                    for n in ("n_train", "n_test")
                ),
            ]
            for row in items
        ]
        out.append(table(headers, body, caption=f"Setting: {setting}", where=_where("probes")))
    names = ["accuracy", "auroc", "brier", "ece", "aurc"]
    lines = rows(tables.get("probe_layers"))
    have = [name for name in names if any(is_number(row.get(name)) for row in lines)]
    by_layer: list[list[object]] = [
        [row.get("kind"), number_text(row.get("layer"), 0), *(_span(row, name) for name in have)] for row in lines
    ]
    headers = ["kind", "layer", *have]
    out.append(table(headers, by_layer, caption="By kind and layer", where=_where("probe_layers"), collapsed=True))
    transfer: list[list[object]] = [
        [row.get("train_topic"), row.get("test_topic"), _span(row, "accuracy")]
        for row in rows(tables.get("probe_transfer"))
    ]
    headers = ["trained on", "tested on", "accuracy"]
    out.append(table(headers, transfer, caption="Topic to topic", where=_where("probe_transfer"), collapsed=True))
    return out


def decoding(tables: Mapping[str, DataFrame]) -> list[str]:
    """Scores with differences, what each decoder costs, and the answers side by side."""
    items = rows(tables.get("decoding"))
    body: list[list[object]] = [
        [
            row.get("decoder"),
            metric_name(_text(row, "metric")),
            _span({**row, "mean_low": row.get("low"), "mean_high": row.get("high")}, "mean"),
            _span(row, "difference"),
            p_text(row.get("p")),
            number_text(int(to_float(row["n"])), 0) if is_number(row.get("n")) else "–",
        ]
        for row in items
    ]
    headers = ["decoder", "metric", "mean", "difference to the first", "p", "n"]
    out = [
        _quality_and_cost(items, rows(tables.get("decoding_cost"))),
        table(headers, body, caption="Scores", where=_where("decoding"), collapsed=len(body) > 12),
    ]
    cost: list[list[object]] = [
        [
            row.get("decoder"),
            number_text(row.get("repetition_penalty"), 2),
            number_text(row.get("extra_unembeddings"), 0),
            number_text(row.get("tokens"), 0),
            number_text(row.get("tokens_per_second"), 1),
        ]
        for row in rows(tables.get("decoding_cost"))
    ]
    headers = ["decoder", "repetition penalty", "extra unembeddings a token", "tokens written", "tokens per second"]
    caption = "What each decoder costs (speed as measured in this run)"
    out.append(table(headers, cost, caption=caption, where=_where("decoding_cost")))
    answers = groups(rows(tables.get("answers")), "question_id")
    names = distinct((row for group in answers.values() for row in group), "decoder")
    if len(names) > 1:
        side: list[list[object]] = []
        for group in answers.values():
            said = {row.get("decoder"): _text(row, "answer").strip(" ") for row in group}
            if len(set(said.values())) > 1:
                side.append([_text(group[0], "question"), *(said.get(name, "–") for name in names)])
        headers = ["question", *(str(name) for name in names)]
        caption = f"Answers that differ between decoders, of {len(answers)} questions"
        out.append(table(headers, side, caption=caption, where=_where("answers"), collapsed=True))
    if not any(rows(tables.get(name)) for name in OWN_TABLES["entropy"]):  # else they stand in that section
        out.append(_answers_judged(tables))
    return out


def _quality_and_cost(items: list[Row], costs: list[Row]) -> str:
    """A row a decoder: its scores, those that certainly differ from the first decoder's marked, and what it costs."""
    metrics = [name for name in distinct(items, "metric") if not str(name).endswith("_diff")]
    body: list[list[object]] = []
    for name, group in groups(items, "decoder").items():
        mine = {row.get("metric"): row for row in group}
        cost = next((row for row in costs if row.get("decoder") == name), {})
        rate = to_float(cost.get("tokens_per_second"))
        scores = [_marked(mine[metric]) if metric in mine else "–" for metric in metrics]
        time = number_text(1000 / rate, 1) if rate > 0 else "–"
        body.append([name, time, number_text(cost.get("extra_unembeddings"), 0), *scores])
    headers = ["decoder", "ms a token", "extra rows", *(metric_name(str(metric)) for metric in metrics)]
    caption = "Cost and quality; ▲ ▼: certainly above or below the first decoder"
    return table(headers, body, caption=caption, where=_where("decoding"))


def _marked(row: Row) -> str:
    told = number_text(row.get("mean"))
    if not is_number(row.get("difference")):
        return told
    low, high = to_float(row.get("difference_low")), to_float(row.get("difference_high"))
    return told + (" ▲" if low > 0 else " ▼" if high < 0 else "")


def exits(tables: Mapping[str, DataFrame]) -> list[str]:
    """Every policy and threshold."""
    body: list[list[object]] = [
        [
            row.get("policy"),
            number_text(row.get("threshold"), 2),
            _span(row, "agreement"),
            *(number_text(row.get(name)) for name in ("flops_saved", "layers_saved", "predicted_time")),
        ]
        for row in rows(tables.get("exits"))
    ]
    headers = ["policy", "threshold", "agreement", "FLOPs saved", "layers saved", "predicted time"]
    out = [table(headers, body, caption="Policies and thresholds", where=_where("exits"), collapsed=len(body) > 12)]
    chosen: list[list[object]] = [
        [
            row.get("policy"),
            number_text(row.get("delta"), 2),
            row.get("outcome") if not is_number(row.get("threshold")) else number_text(row.get("threshold"), 4),
            number_text(row.get("calibration_risk")),
            _span(row, "test_risk"),
            number_text(row.get("flops_saved")),
        ]
        for row in rows(tables.get("exits_calibration"))
    ]
    headers = ["policy", "asked risk", "threshold", "risk, calibration half", "risk, other half", "FLOPs saved"]
    caption = "Thresholds with a guarantee"
    out.append(table(headers, chosen, caption=caption, where=_where("exits_calibration"), collapsed=len(chosen) > 12))
    kinds: list[list[object]] = [
        [
            row.get("kind"),
            row.get("group"),
            row.get("policy"),
            number_text(row.get("threshold"), 2),
            _span(row, "agreement"),
            number_text(row.get("mean_exit"), 1),
            number_text(row.get("n"), 0),
        ]
        for row in rows(tables.get("exits_kinds"))
    ]
    headers = ["kind", "tokens", "policy", "threshold", "agreement", "mean exit", "n"]
    out.append(table(headers, kinds, caption="By kind of token", where=_where("exits_kinds"), collapsed=True))
    return out


TABLES: Final[Mapping[str, Callable[[Mapping[str, DataFrame]], list[str]]]] = {
    "layers": layers,
    "entropy": entropy,
    "probes": probes,
    "decoding": decoding,
    "exits": exits,
}
