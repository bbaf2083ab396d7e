"""Threads beside torch's own: batches run in one each, so that sums don't depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")


@contextmanager
def single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch has one."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        try:
            yield workers
        finally:
            torch.set_num_threads(before)


def one_thread_each(run: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Work on parts in as many threads as torch has, with torch itself in one thread in each of them."""
    with single_threads(torch.get_num_threads()) as workers:
        for _ in workers.map(run, parts):
            pass
