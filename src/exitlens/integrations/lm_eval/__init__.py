"""exitlens as a model of lm-evaluation-harness.

The harness has no plug-in entry points, so something must import this package before it looks a model up:

    exitlens lm-eval run --model exitlens --model_args pretrained=smollm2-135m,decoder=sled --tasks ...
    python -m exitlens.integrations.lm_eval run --model exitlens ...

Both are the harness's own command line with the model ``exitlens`` added, and the folder of offline tasks
(:data:`TASKS`) on its include path. In Python, ``import exitlens.integrations.lm_eval`` is enough.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from exitlens.integrations.lm_eval.model import ExitlensLM

__all__ = ["TASKS", "ExitlensLM", "main"]

TASKS = Path(__file__).parent / "tasks"
"""Task files that need no network: TruthfulQA mc1, mc2 and gen over a local CSV."""


def main(argv: Sequence[str] | None = None) -> None:
    """The harness's command line with ``exitlens`` among its models and the offline tasks on its include path."""
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        arguments.insert(0, "run")  # as the harness does
    if arguments[:1] in (["run"], ["ls"], ["validate"]) and len(arguments) > 1 and "--include_path" not in arguments:
        arguments += ["--include_path", str(TASKS)]
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
