"""What all tests share: no network for the Hub, one thread, checks of types at run time, and the built-in models."""

from __future__ import annotations

import os

# Before any library reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["COLUMNS"] = "100"

if os.environ.get("EXITLENS_TYPECHECK") == "1":
    from tests import typecheck

    typecheck.install("exitlens")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Of more than half a minute each. They come first, so that at the end no worker is left alone with one.
LONG = (
    "docs/test_notebooks.py",
    "docs/test_pages.py",
    "end_to_end/test_run.py",
    "parity/test_census.py",
    "browser/test_report.py",
    "browser/test_live.py",
    "browser/test_map.py",
    "unit/test_models_identity.py",
    "unit/test_hostile_input.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, all others in their order."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The order of additions, and so the last bits of a sum, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _wrong_types(request: pytest.FixtureRequest) -> Iterator[None]:
    """``@pytest.mark.wrong_types``: wrong types are handed over on purpose, to see the error of the product itself."""
    if request.node.get_closest_marker("wrong_types") is None:
        yield
        return
    from tests import typecheck

    with typecheck.unchecked():
        yield


@pytest.fixture(scope="session")
def builtin_path() -> Path:
    """The built-in model's GGUF file, fetched once a machine."""
    from exitlens.models.hub import catalog

    return catalog.resolve("smollm2-135m", progress=False)


@pytest.fixture(scope="session")
def encoder_path() -> Path:
    """The built-in sentence encoder's folder, fetched once a machine."""
    from exitlens.models.hub import catalog

    return catalog.resolve("all-minilm-l6-v2", progress=False)
