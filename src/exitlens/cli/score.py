"""`exitlens score predictions.json --data TruthfulQA.csv`: score the stored answers of any system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exitlens.cli.console import Column, echo, print_json, print_table, say
from exitlens.cli.help import add_command
from exitlens.cli.options import (
    BertscoreLayerOption,
    BertscoreModelOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    SeedOption,
    option,
)
from exitlens.scoring.names import ScoringProtocol

if TYPE_CHECKING:
    from pandas import DataFrame

    from exitlens.data import Dataset
    from exitlens.scoring import Judge

__all__ = ["register"]


PredictionsArgument = Annotated[
    list[Path],
    typer.Argument(
        help='{"question": [...], "model_completion": [...]} or JSON lines; more are compared with the first.'
    ),
]
FirstQuestionsOption = Annotated[
    int | None, option("limit", min=1, help="At most this many questions, the first ones.")
]
AlsoJudgesOption = Annotated[
    str, option("judges", help="Also how many answers these judges find correct, comma-separated.")
]
ProtocolOption = Annotated[
    ScoringProtocol, option("scoring", "--protocol", help="How answers meet references: published, or plain.")
]
ScoresOption = Annotated[
    Path | None, option("out", metavar="FILE", help="Write the scores of every question to a Parquet file.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(
        app, "score", score_command, "BLEU, ROUGE-L and BERTScore of stored answers",
        "exitlens score greedy.json dola.json --data TruthfulQA.csv",
    )  # fmt: skip


def score_command(
    predictions: PredictionsArgument,
    data: DataOption = "facts-qa",
    column: ColumnOption = None,
    limit: FirstQuestionsOption = None,
    judges: AlsoJudgesOption = "",
    protocol: ProtocolOption = "truthfulqa",
    bertscore_model: BertscoreModelOption = "all-minilm-l6-v2",
    bertscore_layer: BertscoreLayerOption = None,
    out: ScoresOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """BLEU, ROUGE-L and BERTScore of stored answers, with intervals; several files are compared question by question.

    Answers are matched to questions by their text; what does not align is refused. --json prints data, metrics
    (each with every choice that changes it), protocol, scores (decoder = file, metric, n, mean, low, high, difference
    to the first file with its interval and p, too_narrow: intervals over fewer than 15 questions), best_answer
    (decoder, corpus_bleu, rouge, bertscore: against the best answer alone, as in the original study) and judgements
    (judge, decoder, correct, decided).
    """
    if out is not None:
        from exitlens.storage.atomic import check_writable

        check_writable(out)
    from exitlens.data import read_data
    from exitlens.scoring.names import parse_judge

    named = [name for name in judges.split(",") if name.strip()]
    for name in named:
        parse_judge(name)
    dataset = read_data(data, limit=limit, columns=column)
    for note in dataset.notes:
        say(f"{dataset.name}: {note}", quiet)
    answers = _answers(predictions, dataset)

    import pandas as pd

    from exitlens.scoring import best_answer_scores, protocol_named
    from exitlens.studies.answers.judging import Scorers
    from exitlens.studies.decoding.analysis import compare, score

    scorers = Scorers(None if bertscore_model.lower() == "none" else bertscore_model, bertscore_layer, device, protocol)
    chosen = [scorers.judge(name) for name in named]
    metrics = scorers.metrics()
    scores = pd.concat(
        [score(n, texts, dataset.questions, metrics, protocol) for n, texts in answers.items()], ignore_index=True
    )
    table = compare(scores, {}, protocol=protocol, seed=seed).drop(columns="repetition_penalty")
    best = [{"decoder": n, **best_answer_scores(texts, dataset.questions, metrics)} for n, texts in answers.items()]
    judged = _judged(chosen, answers, dataset)
    if out is not None:
        from exitlens.storage.atomic import write_parquet

        write_parquet(out, scores)
        say(f"wrote {out}", quiet)
    if as_json:
        from exitlens.stats import too_narrow

        table = table.assign(too_narrow=[too_narrow(int(n)) for n in table["n"]])
        listed = table.astype(object).where(table.notna(), None).to_dict("records")
        facts = {"data": dataset.name, "metrics": [m.label for m in metrics], "protocol": protocol, "scores": listed}
        print_json(facts | {"best_answer": best, "judgements": judged})
        return
    _print(table, judged, len(answers) > 1, [protocol_named(protocol).label, *(m.label for m in metrics)])
    names = {"decoder": "file", "corpus_bleu": "corpus BLEU", "rouge": "ROUGE-L", "bertscore": "BERTScore F1"}
    print_table(
        [names["decoder"], *(Column(names[name], ".4f") for name in best[0] if name != "decoder")],
        [list(row.values()) for row in best],
        title="Against the best answer alone, as in the original study (corpus BLEU: 13a tokens, no smoothing; 0..1)",
    )


def _answers(predictions: list[Path], dataset: Dataset) -> dict[str, Sequence[str]]:
    """The answers of every file in the order of the questions, by the file's name (its path where two share it)."""
    from exitlens.data.sources import read_source
    from exitlens.errors import DataError
    from exitlens.scoring import align, parse_predictions

    twice = next((path for i, path in enumerate(predictions) if path in predictions[:i]), None)
    if twice is not None:
        raise DataError(f"'{twice}' is given twice: leave one out")
    answers: dict[str, Sequence[str]] = {}
    for path in predictions:
        predicted = parse_predictions(read_source(path, "stored answers"))
        try:
            aligned = align(predicted, dataset)
        except DataError as error:
            raise DataError(f"'{path}': {error}") from None
        answers[path.name if path.name not in answers else str(path)] = aligned
    return answers


def _judged(chosen: list[Judge], answers: dict[str, Sequence[str]], dataset: Dataset) -> list[dict[str, Any]]:
    """How many answers of each file each judge decided, and found correct."""
    from exitlens.studies.answers.judging import judge_answers

    judged: list[dict[str, Any]] = []
    for name, texts in answers.items() if chosen else ():
        for judge, rows in judge_answers(chosen, name, dataset.questions, texts).groupby("judge", sort=False):
            decided = rows["correct"].dropna()
            judged.append({"judge": judge, "decoder": name, "correct": int(decided.sum()), "decided": len(decided)})
    return judged


def _print(table: DataFrame, judged: list[dict[str, Any]], many: bool, labels: list[str]) -> None:
    names = ["metric", "decoder", "n", "mean", "low", "high"]
    names += ["difference", "difference_low", "difference_high", "p"] if many else []
    rows = table[names].astype(object).where(table[names].notna(), None).to_numpy().tolist()
    heads = [Column({"decoder": "file"}.get(n, n.replace("_", " ")), ".3g" if n == "p" else ".4f") for n in names]
    print_table(heads, rows, n=[int(n) for n in table["n"]])
    for label in labels:
        echo(label)
    if judged:
        body = [[j["judge"], j["decoder"], j["correct"], j["decided"]] for j in judged]
        print_table(["judge", "file", "correct", "decided"], body)
