"""Work beside other work, in order: what is read ahead, and what is written behind, in a thread each.

A ``Lane`` is one thread, so that what goes through it keeps its order. Both functions hold ``HELD`` items at most, and
an error comes out where its item would have.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

HELD = 2  # items between two threads

Item = TypeVar("Item")
Made = TypeVar("Made")


class Lane(ThreadPoolExecutor):
    """One thread. At the end of its ``with`` block what was begun is done, and what was not is dropped."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def ahead(items: Iterable[Item], lane: Lane) -> Iterator[Item]:
    """The items, each made in the lane before it is asked for."""
    end = object()
    iterator = iter(items)
    coming: deque[Future[Item | object]] = deque(lane.submit(next, iterator, end) for _ in range(HELD))
    while (item := coming.popleft().result()) is not end:
        coming.append(lane.submit(next, iterator, end))
        yield item  # type: ignore[misc]  # it is no longer the end


def behind(function: Callable[[Item], Made], items: Iterable[Item], lane: Lane) -> Iterator[Made]:
    """What the function makes of each item, in the lane, while the next ones are asked for."""
    going: deque[Future[Made]] = deque()
    for item in items:
        going.append(lane.submit(function, item))
        if len(going) > HELD:
            yield going.popleft().result()
    while going:
        yield going.popleft().result()
