"""Jobs over several processes: each has a pipeline of its own, on its share of the cores or on a device of its own.

The parent decides, keeps the record and tells; a worker reads, computes and writes one job at a time. A worker that
dies is replaced, and its job is begun anew once. Workers end when the parent does, however that is: each waits for the
end of a pipe that only the parent holds.
"""

import dataclasses
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing.connection import Connection
from typing import Any, cast

from uid import stop
from uid.bundles.files import remove_dead
from uid.engines.threads import allowed_cpus
from uid.errors import BackendError, UIDError
from uid.runtime.app.border import Record, explained
from uid.runtime.app.decision import Decision
from uid.runtime.app.devices import spread
from uid.runtime.app.jobs import Job
from uid.runtime.app.progress import Piped
from uid.runtime.app.record import OutputRecord
from uid.runtime.app.runner import JobRunner
from uid.runtime.app.settings import RunSettings
from uid.runtime.media.prefetch import Threads

LINE, NOTE, FATAL, DONE = "line", "note", "fatal", "done"  # what a worker says; NOTE waits for an answer
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
ATTEMPTS = 2  # at a job whose worker dies
Notes = Callable[[str, tuple[Any, ...]], None]


class WorkerEndedError(Exception):
    """A worker's process has ended before its job."""


class Workers:
    """Does jobs with ``settings.workers`` processes, or one for each device that is named."""

    def __init__(
        self,
        settings: RunSettings,
        decide: Callable[[Job], Decision | Record],
        note: Notes,
        tell: Callable[[str], None],
    ) -> None:
        """``note`` calls a method of the record by its name; ``tell`` shows a line of a worker."""
        self._settings, self._decide = settings, decide
        self._note, self._tell = note, tell
        self._told: set[str] = set()
        self.stopping = False  # set to begin no more jobs
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._numbers = iter(range(1, 1 << 62))

    def outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Record]]:
        """Each job with its record, as they end. Raises ``UIDError`` for what stops every job."""
        workers = [_Worker(one, self._note, self._tell_once) for one in shares(self._settings)][: len(jobs)]
        for worker in workers:
            self._idle.put(worker)
        with Threads(len(workers)) as threads:
            try:
                of = {threads.submit(self._done, job, len(jobs)): job for job in jobs}
                left: set[Future[Record | None]] = set(of)
                while left:
                    ended, left = wait(left, return_when=FIRST_COMPLETED)
                    for future in ended:
                        if (record := future.result()) is not None:
                            yield of[future], record
                    if self.stopping:
                        left = {future for future in left if not future.cancel()}
            finally:
                for worker in workers:
                    worker.end()

    def _tell_once(self, line: str) -> None:
        """Show a line; a warning once, as one process tells what holds for the whole run."""
        if not line.startswith("warning: ") or line not in self._told:
            self._told.add(line)
            self._tell(line)

    def _done(self, job: Job, files: int) -> Record | None:
        """The record of a job; None where it is not begun, since another one has failed."""
        if self.stopping:
            return None
        record = self._record(job, files)
        if not (record["ok"] or self._settings.keep_going):
            self.stopping = True  # at once: this thread takes the next job before anyone looks at the record
        return record

    def _record(self, job: Job, files: int) -> Record:
        """The record of a job, which is decided about again after its worker has died."""
        worker, number = self._idle.get(), next(self._numbers)
        how = ""
        try:
            for _ in range(ATTEMPTS):
                decision = self._decide(job)
                if isinstance(decision, dict):
                    return decision
                try:
                    return worker.done(job, decision, (number, files))
                except WorkerEndedError as death:
                    how = str(death)
                    if job.destination is not None:
                        remove_dead(job.destination.parent)
            remedy = "where memory is short, give fewer --workers"
            return {"ok": False, "error": f"its worker {how}, and the next one too; {remedy}"}
        finally:
            self._idle.put(worker)


def shares(settings: RunSettings) -> list[RunSettings]:
    """The settings of each worker: its device, and its share of the CPU's threads."""
    devices = spread(settings.device, settings.workers)
    threads = max(1, (settings.threads or allowed_cpus()) // len(devices))
    own = {"threads": threads, "workers": 1, "watch": False, "report": None}
    return [dataclasses.replace(settings, device=device, **own) for device in devices]  # type: ignore[arg-type]


class _Worker:
    """The parent's side of one worker, whose process starts with its first job."""

    def __init__(self, settings: RunSettings, note: Notes, tell: Callable[[str], None]) -> None:
        self._settings, self._note, self._tell = settings, note, tell
        self._process: Any = None
        self._talk: Connection | None = None
        self._life: Connection | None = None  # the worker ends when this is closed
        self._ended = False
        self._changing = threading.Lock()

    def done(self, job: Job, decision: Decision, number: tuple[int, int]) -> Record:
        """The record of a job. Raises ``WorkerEndedError``, and ``UIDError`` for what stops every job."""
        try:
            talk = self._started()
            talk.send((job, decision, number))
            while True:
                kind, value = talk.recv()
                if kind == NOTE:
                    talk.send(self._noted(*value))
                elif kind == LINE:
                    self._tell(value)
                elif kind == FATAL:
                    raise value
                else:
                    record: Record = value
                    return record
        except (EOFError, OSError) as error:
            raise WorkerEndedError(self._buried()) from error

    def end(self) -> None:
        """End the process at once, and start no other."""
        with self._changing:
            self._ended = True
            if self._life is not None:
                self._life.close()
            if self._process is not None:
                self._process.join()

    def _noted(self, name: str, values: tuple[Any, ...]) -> Exception | None:
        """The error of the record, such as a full disk, which is the job's."""
        try:
            self._note(name, values)
        except (UIDError, OSError) as error:
            return error
        return None

    def _started(self) -> Connection:
        with self._changing:
            if self._ended:
                raise EOFError
            if self._talk is None:
                if hasattr(signal, "pthread_sigmask"):  # of this thread, and so of the process that it starts
                    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
                context = multiprocessing.get_context("spawn")
                talk, theirs = context.Pipe()
                end, self._life = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(self._settings, theirs, end))
                process.start()
                theirs.close()
                end.close()
                self._process, self._talk = process, talk
            return self._talk

    def _buried(self) -> str:
        """How the process ended."""
        with self._changing:
            if self._process is None:
                return "did not start"
            if self._life is not None:
                self._life.close()
            self._process.join()
            code = self._process.exitcode or 0
            if self._talk is not None:
                self._talk.close()
            self._process = self._talk = self._life = None
            return f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"


class _Notes:
    """The record as a worker has it: the parent writes it, before the worker goes on."""

    def __init__(self, send: Callable[[Any], None], answer: Callable[[], Any]) -> None:
        self._send, self._answer = send, answer

    def done(self, *values: Any) -> None:
        self._asked("done", values)

    def sharp(self, *values: Any) -> None:
        self._asked("sharp", values)

    def _asked(self, name: str, values: tuple[Any, ...]) -> None:
        self._send((NOTE, (name, values)))
        if (error := self._answer()) is not None:
            raise error


def _work(settings: RunSettings, talk: Connection, life: Connection) -> None:
    """A worker's whole life: jobs as they come, until the parent ends it or is no more."""
    for number in SIGNALS:  # which are the parent's to answer
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    one = threading.Lock()  # lines may come from any thread

    def send(said: Any) -> None:
        with one:
            talk.send(said)

    reporter = Piped(lambda line: send((LINE, line)), settings.quiet)
    record = cast("OutputRecord", _Notes(send, talk.recv))  # nothing else of it is used where a job is decided about
    runner = JobRunner(settings, reporter, record)
    try:
        while True:
            job, decision, number = talk.recv()
            reporter.counted(*number)
            send(_ended(runner, job, decision))
    except (EOFError, OSError):  # the parent is no more
        stop.end_now(0)


def _ended(runner: JobRunner, job: Job, decision: Decision) -> tuple[str, Any]:
    """What to say of a job in the end."""
    try:
        return DONE, runner.done_as_decided(job, decision)
    except UIDError as error:
        return FATAL, error
    except Exception as error:
        return FATAL, BackendError(explained(error))


def _end_with(life: Connection) -> None:
    try:
        life.recv()
    except (EOFError, OSError):
        stop.end_now(0)
