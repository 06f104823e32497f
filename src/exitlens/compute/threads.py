"""Many small jobs side by side: each thread does its own products alone, instead of all threads sharing each product.

A network's products of 16 rows take some tens of microseconds; handing every one of them to several threads and
waiting for the last costs as much again. Jobs share nothing, so results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, local
from typing import TypeVar

import torch

__all__ = ["alone", "side_by_side", "threads_here"]

T = TypeVar("T")
_here = local()
_counted = Lock()
_within: list[int] = []  # the threads torch had, of each thread that works alone now
MOST = 8  # threads: beyond that Python itself, which one thread at a time runs, is what they wait for


def threads_here() -> int:
    """How many threads :func:`side_by_side` divides: torch's, or what they were before :func:`alone`."""
    kept: int | None = getattr(_here, "threads", None)
    return torch.get_num_threads() if kept is None else kept


@contextmanager
def alone() -> Iterator[None]:
    """PyTorch's own operations by this thread alone, :func:`side_by_side` by as many threads as before.

    For small operations between kernels: the threads that shared an operation look out for the next one for three
    milliseconds (libgomp), and whatever runs side by side meanwhile has half of the processors.
    """
    if getattr(_here, "threads", None) is not None:
        yield
        return
    with _counted:
        own = torch.get_num_threads()
        # A thread that begins while another works alone takes its 1 for the usual number, and would put that back.
        _here.threads = _within[-1] if own == 1 and _within else own
        _within.append(_here.threads)
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(_here.threads)
        with _counted:
            _within.remove(_here.threads)
        _here.threads = None


def side_by_side(jobs: Sequence[Callable[[], T]], *, most: int = MOST) -> Iterator[T]:
    """Results of ``jobs`` in their order, worked on by several threads that divide torch's threads between them.

    ``most`` threads at a time: more than the usual only where jobs hardly need Python. Gradients are off in the jobs.
    The caller's number of threads is the same afterwards, whatever happened.
    """
    threads, before = threads_here(), torch.get_num_threads()
    workers = min(threads, most, len(jobs))

    def run(job: Callable[[], T]) -> T:
        with torch.no_grad():  # a setting of each thread
            return job()

    if workers < 2:
        yield from map(run, jobs)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield from pool.map(run, jobs)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
