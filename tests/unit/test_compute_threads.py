"""Threads that jobs divide, and PyTorch's own while small operations stand between such jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from exitlens.compute.threads import alone, side_by_side, threads_here


@pytest.fixture(autouse=True)
def _three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def _who() -> int:
    met.wait(timeout=30)  # no thread does two of the jobs
    return threading.get_ident()


met = threading.Barrier(3)


def test_jobs_have_all_threads_while_pytorch_has_one() -> None:
    with alone():
        assert torch.get_num_threads() == 1
        assert threads_here() == 3
        assert len(set(side_by_side([_who] * 3))) == 3
        assert torch.get_num_threads() == 1
        with alone():
            assert threads_here() == 3
        assert (torch.get_num_threads(), threads_here()) == (1, 3)
    assert (torch.get_num_threads(), threads_here()) == (3, 3)


def test_an_error_inside_leaves_the_number_of_threads_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError), alone():
        list(side_by_side([lambda: 1, lambda: 1 // 0, lambda: 3]))
    assert (torch.get_num_threads(), threads_here()) == (3, 3)


def test_another_thread_is_not_told() -> None:
    seen: list[int] = []
    with alone():
        other = threading.Thread(target=lambda: (torch.set_num_threads(2), seen.append(threads_here())))
        other.start()
        other.join()
    assert seen == [2]


def test_a_thread_that_begins_while_another_works_alone_does_not_make_one_the_usual_number() -> None:
    began, over, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with alone():
            seen.append(threads_here())
            began.set()
            over.wait(timeout=30)
        seen.append(torch.get_num_threads())

    with alone():
        thread = threading.Thread(target=other)
        thread.start()
        began.wait(timeout=30)
    assert torch.get_num_threads() == 3
    over.set()
    thread.join()
    assert seen == [3, 3]
    new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert seen[-1] == 3
