"""`exitlens lm-eval run --model exitlens ...`: lm-evaluation-harness with the model `exitlens` added."""

from __future__ import annotations

import inspect

import typer

from exitlens.cli.console import echo
from exitlens.cli.help import add_command
from exitlens.parsing import cut

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    brief = "lm-evaluation-harness with these models and decoders"
    add_command(app, "lm-eval", lm_eval_command, brief, context_settings=settings, add_help_option=False)


def lm_eval_command(context: typer.Context) -> None:
    """Run lm-evaluation-harness with the model `exitlens` (any decoder) and our offline tasks.

    Everything after lm-eval goes to the harness itself: exitlens lm-eval run --model exitlens
    --model_args pretrained=smollm2-135m,decoder=sled --tasks exitlens_truthfulqa_mc1 --metadata csv=TruthfulQA.csv
    """
    from importlib.util import find_spec

    if find_spec("lm_eval") is None and {"--help", "-h"} & set(context.args):  # of the harness's own help there is none
        for line in (
            "Usage: exitlens lm-eval [ARGS]...",
            "",
            *inspect.cleandoc(str(lm_eval_command.__doc__)).split("\n"),
            "",
        ):
            echo(line)
        echo("Needs the harness: pip install 'exitlens[lm-eval]'. With it, --help is the harness's own.")
        return
    from exitlens.errors import InputError
    from exitlens.integrations.lm_eval import main

    try:
        main(context.args)
    except ValueError as error:  # how the harness refuses tasks and arguments
        raise InputError(f"lm-evaluation-harness: {cut(error, 300)}; exitlens lm-eval --help") from error
