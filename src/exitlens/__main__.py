"""``python -m exitlens``: the command line, where the script ``exitlens`` is not on the path."""

from __future__ import annotations

import sys

from exitlens.cli import main

if __name__ == "__main__":
    sys.exit(main())
