"""Work on other threads, in order: items are read before they are needed, and written while the next ones are made.

Items keep their order. Each function holds ``QUEUED`` items at most unless it is told otherwise, and raises an error
where its item would have come.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

QUEUED = 2  # items between two threads

Item = TypeVar("Item")
Made = TypeVar("Made")


class Threads(ThreadPoolExecutor):
    """Threads that, at the end of their ``with`` block, finish what they have begun and drop the rest."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


class SingleThread(Threads):
    """One thread."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)


def prefetch(items: Iterable[Item], thread: SingleThread) -> Iterator[Item]:
    """The items, each made on the thread before it is asked for."""
    end = object()
    iterator = iter(items)
    queue: deque[Future[Item | object]] = deque(thread.submit(next, iterator, end) for _ in range(QUEUED))
    while (item := queue.popleft().result()) is not end:
        queue.append(thread.submit(next, iterator, end))
        yield item  # type: ignore[misc]  # it is no longer the end


def map_behind(
    function: Callable[[Item], Made], items: Iterable[Item], threads: ThreadPoolExecutor, queued: int = QUEUED
) -> Iterator[Made]:
    """The function of each item, run on the threads while the next items are asked for; in the order of the items."""
    queue: deque[Future[Made]] = deque()
    for item in items:
        queue.append(threads.submit(function, item))
        if len(queue) > queued:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()
