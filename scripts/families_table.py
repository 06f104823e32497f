"""Write docs/families.md: what the census (tests/parity/census.py) finds on every causal LM that transformers knows.

python scripts/families_table.py            all of it, a few minutes on one core
python scripts/families_table.py llama gpt2 a look at some, nothing written
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.parity import census, zoo  # noqa: E402 - the repository's root must be on the path first
from tests.parity.table import DOCUMENT, document  # noqa: E402


def main(entries: list[str]) -> int:
    """Survey ``entries``, or everything and write the page; gives 1 when a model was read wrongly."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    found = []
    for entry in entries or zoo.entries():
        outcome = census.survey(entry)
        found.append(outcome)
        print(f"{outcome.status:8s} {entry:28s} {outcome.reason}", flush=True)
    if not entries:
        (ROOT / DOCUMENT).write_text(document(found), encoding="utf-8")
    return int(any(outcome.status == "wrong" for outcome in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
