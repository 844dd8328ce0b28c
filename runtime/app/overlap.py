"""Reading, computing and writing at the same time: the next files are read and the last ones written meanwhile."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, Generic, TypeVar

from uid.runtime.app.border import SHORT_OF_MEMORY, Record
from uid.runtime.app.jobs import Job
from uid.runtime.media.prefetch import Threads

Read = TypeVar("Read")
Made = TypeVar("Made")


class Overlap(Generic[Read, Made]):
    """Does jobs in order with ``workers`` threads to read and as many to write; the caller's thread computes.

    Each of the three functions returns what the next one is given, or a record, with which the job has ended.
    """

    def __init__(
        self,
        read: "Callable[[Job], Read | Record]",
        compute: "Callable[[Job, Read], Made | Record]",
        write: "Callable[[Job, Made], Record]",
        *,
        whole: Callable[[Job], Record],
        is_alone: Callable[[Job], bool],
        is_large: "Callable[[Read], bool]",
        workers: int,
    ) -> None:
        """``whole`` does a single job, and one that ``is_alone``; nothing is read or written beside a large image."""
        self._read, self._compute, self._write, self._whole = read, compute, write, whole
        self._is_alone, self._is_large, self._workers = is_alone, is_large, workers
        self.stopping = False  # set to do no more jobs than those that are computed already
        self._ahead: deque[tuple[Job, Future[Read | Record] | None]] = deque()
        self._behind: deque[tuple[Job, Future[Record]]] = deque()

    def outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Record]]:
        """Each job with its record, in order."""
        left, first = deque(jobs), True
        single = len(jobs) == 1
        with Threads(self._workers) as reading, Threads(self._workers) as writing:
            while (left or self._ahead) and not self.stopping:
                self._fill(left, reading, single)
                job, future = self._ahead.popleft()
                given = None if future is None else self._unless_short(job, future.result, self._read)
                if given is None or isinstance(given, dict):
                    yield from self._written(0)
                    if not self.stopping:
                        yield job, self._whole(job) if given is None else given
                    continue
                if first or self._is_large(given):  # the first one loads the model, which wants memory too
                    yield from self._written(0)
                else:
                    self._fill(left, reading, single)
                first = False
                made = self._unless_short(job, partial(self._compute, job, given), self._compute, given)
                del given
                if isinstance(made, dict):
                    yield from self._written(0)
                    yield job, made
                else:
                    self._behind.append((job, writing.submit(self._write, job, made)))
                    yield from self._written(self._workers)
            yield from self._written(0)

    def _unless_short(self, job: Job, attempt: Callable[[], Any], again: Callable[..., Any], *given: Any) -> Any:
        """What ``attempt`` gives; where memory was short, what it gives once nothing else is in hand."""
        made = attempt()
        others: list[Future[Any]] = [future for _, future in (*self._ahead, *self._behind) if future is not None]
        if not (isinstance(made, dict) and made.get(SHORT_OF_MEMORY) and others):
            return made
        wait(others)
        return again(job, *given)

    def _fill(self, left: deque[Job], reading: Threads, single: bool) -> None:
        """Begin to read, up to the number of threads."""
        while left and len(self._ahead) < self._workers:
            job = left.popleft()
            self._ahead.append((job, None if single or self._is_alone(job) else reading.submit(self._read, job)))

    def _written(self, most: int) -> Iterator[tuple[Job, Record]]:
        """Wait until no more than ``most`` are being written; those that are written, in order."""
        while self._behind and (len(self._behind) > most or self._behind[0][1].done()):
            job, future = self._behind.popleft()
            yield job, future.result()
