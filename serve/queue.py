"""A bounded queue, and the threads that compute. What is full is refused at once, so memory stays bounded."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from uid.runtime.pipeline import Pipeline
from uid.serve.work import Answer, Job, sharpened


class NoPlaceError(Exception):
    """No more work is taken now. ``draining``: nor will it be here; else ask again after ``seconds``."""

    def __init__(self, draining: bool, seconds: int) -> None:
        super().__init__("this server is stopping" if draining else "the queue is full")
        self.draining, self.seconds = draining, seconds


class Queue:
    """Jobs in the order of their arrival, and one loaded pipeline that ``workers`` threads share.

    All but the work itself is called from one event loop. With several workers, images are decoded and encoded beside
    the one that is computed.
    """

    def __init__(self, load: Callable[[], Pipeline], *, places: int, workers: int) -> None:
        self.places = places  # most requests at once, in whatever state
        self.taken = 0
        self.draining = False  # set to take no more
        self._waiting: dict[int, Job] = {}  # not begun, in order
        self._seconds = 1.0  # that an image takes, on average
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="uid-serve")
        self._loaded: Future[Pipeline] = self._threads.submit(load)

    @property
    def ready(self) -> bool:
        """Whether the pipeline is loaded, and new work is taken."""
        return self._loaded.done() and self.failure is None and not self.draining

    @property
    def failure(self) -> BaseException | None:
        """Why the pipeline did not load; None: it did, or it is not known yet."""
        return self._loaded.exception() if self._loaded.done() else None

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline, once it is loaded."""
        return self._loaded.result() if self._loaded.done() and self.failure is None else None

    def wait(self) -> None:
        """Wait until the pipeline is loaded. Raises what kept it from that."""
        self._loaded.result()

    @property
    def waiting(self) -> int:
        """How many jobs have not begun."""
        return len(self._waiting)

    def ahead_of(self, job: Job) -> int | None:
        """How many jobs begin before this one; None: it has begun."""
        order = list(self._waiting)
        return order.index(id(job)) if id(job) in order else None

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places, from before an upload is read until its answer is sent. Raises ``NoPlaceError``."""
        if self.draining or self.taken >= self.places:
            raise NoPlaceError(self.draining, self.retry_after())
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def retry_after(self) -> int:
        """Seconds after which a place is likely to be free."""
        return min(60, max(1, math.ceil(self._seconds * (1 + self.waiting) / 2)))

    @contextlib.contextmanager
    def running(self, job: Job) -> Iterator["asyncio.Future[Answer]"]:
        """The answer to come. Work that is not done at the end of the block is left, or ended at its next step."""
        job.submitted = time.monotonic()
        self._waiting[id(job)] = job
        work = self._threads.submit(self._work, job)
        work.add_done_callback(lambda _: self._waiting.pop(id(job), None))
        future = asyncio.wrap_future(work)
        try:
            yield future
        finally:
            job.abandoned = True
            future.cancel()

    def close(self) -> None:
        """Wait for the threads; work that has not begun is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _work(self, job: Job) -> Answer:
        pipeline = self._loaded.result()
        self._waiting.pop(id(job), None)
        answer = sharpened(job, pipeline)
        self._seconds += 0.2 * (answer.computed - self._seconds)
        return answer
