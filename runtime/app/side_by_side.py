"""Many jobs in hand at once, where the images are computed by other processes: each job has a thread of its own."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from uid.runtime.app.border import SHORT_OF_MEMORY, Record
from uid.runtime.app.jobs import Job
from uid.runtime.media.prefetch import Threads

MOST = 256  # threads
POLL = 0.2  # seconds after which to see whether more jobs may be in hand


class SideBySide:
    """Does jobs like ``Overlap``, several at a time."""

    def __init__(
        self,
        each: Callable[[Job], Record],
        *,
        whole: Callable[[Job], Record],
        is_alone: Callable[[Job], bool],
        at_once: Callable[[], int],
    ) -> None:
        """``each`` does a job on a thread; ``whole`` a single one, and one that ``is_alone``, in the caller's."""
        self._each, self._whole, self._is_alone, self._at_once = each, whole, is_alone, at_once
        self.stopping = False  # set to begin no more jobs

    def outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Record]]:
        """Each job with its record, in order."""
        single = len(jobs) == 1
        left, begun = deque(jobs), deque[tuple[Job, Future[Record] | None]]()
        with Threads(MOST) as threads:
            while begun or (left and not self.stopping):
                running = [future for _, future in begun if future is not None and not future.done()]
                if left and not self.stopping and len(running) < min(self._at_once(), MOST):
                    job = left.popleft()
                    begun.append((job, None if single or self._is_alone(job) else threads.submit(self._each, job)))
                    continue
                job, first = begun[0]
                if first is not None and not first.done():
                    wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                    continue
                begun.popleft()
                if first is not None:
                    yield job, self._unless_short(job, first.result(), running)
                elif not self.stopping:
                    yield job, self._whole(job)

    def _unless_short(self, job: Job, record: Record, others: Sequence["Future[Record]"]) -> Record:
        """The record; where memory was short, what it is once nothing else is in hand."""
        if not (record.get(SHORT_OF_MEMORY) and others):
            return record
        wait(others)
        return self._each(job)
