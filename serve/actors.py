"""``uid-run --cluster``: a pipeline whose images are computed by actors, processes of a Ray cluster.

The run itself reads, writes and keeps the record as always. Only pixels go to the actors and come back, so that an
actor that dies takes nothing with it: its image is given to another one.
"""

import contextlib
import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from uid import __version__, stop
from uid.bundles.declarations import Bundle, built_in
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array
from uid.engines import BACKENDS
from uid.errors import BackendError
from uid.runtime import pipeline
from uid.runtime.app.devices import backend_on
from uid.runtime.app.settings import RunSettings
from uid.runtime.options import Options, Result
from uid.serve import ray_session

Report = Callable[[str], None]
TRIES = 3  # actors that an image is given to, one after the other died with it
STARTS = 3  # actors that may die before they are ready, for each that is wanted
POLL = 0.2  # seconds between looks at whether a signal has come
PATIENCE = 10.0  # seconds without a ready actor, after which that is told


@dataclass(frozen=True)
class Share:
    """What each actor takes of the cluster, and how many there are."""

    actors: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Answer:
    """What an actor made: something, or an error with its traceback."""

    made: Any = None
    error: Exception | None = None
    trace: str = ""
    notes: tuple[str, ...] = ()  # for the user

    def got(self) -> Any:
        """What was made. Raises the error."""
        if self.error is not None:
            raise self.error from ActorError(self.trace)
        return self.made


class ActorError(Exception):
    """Where in an actor an error comes from."""


@dataclass(frozen=True)
class Loading:
    """What an actor loads."""

    model: Path | None
    digest: str  # of the bundle's contents
    backend: str
    device: str | None
    threads: int


class Computer:
    """An actor: one loaded pipeline."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def load(self, wanted: Loading, version: str) -> Answer:
        """The backend's name and the node's, once the pipeline is loaded."""
        return self._answer(partial(self._load, wanted, version))

    def run(self, image: Array, options: Options, extra: Mapping[str, Any]) -> Answer:
        """The ``Result`` of an image."""
        return self._answer(lambda: self._pipeline(image, options, **extra))

    def _load(self, wanted: Loading, version: str) -> str:
        if version != __version__:
            raise BackendError(f"a node of the cluster has version {__version__}; expected {version}, as here")
        backend = backend_on(wanted.device, wanted.backend)
        self._pipeline = pipeline.load(wanted.model, backend=backend, threads=wanted.threads, report=self._notes.append)
        if self._pipeline.bundle.digest != wanted.digest:
            raise BackendError(
                f"a node of the cluster has another bundle at {self._pipeline.bundle.folder} than this one"
            )
        return self._pipeline.backend

    def _answer(self, work: Callable[[], Any]) -> Answer:
        try:
            made = work()
        except Exception as error:  # as a value: Ray would put a traceback in the place of the text
            return Answer(error=error, trace=traceback.format_exc(), notes=self._told())
        return Answer(made, notes=self._told())

    def _told(self) -> tuple[str, ...]:
        notes, self._notes[:] = tuple(self._notes), []
        return notes


class ActorPipeline:
    """A pipeline that threads share; each call waits for an actor that has nothing to do."""

    def __init__(self, ray: Any, bundle: Bundle, share: Share, loading: Loading, report: Report) -> None:
        self.bundle, self.at_once = bundle, share.actors
        self._ray, self._loading, self._report = ray, loading, report
        self._actor = ray.remote(Computer).options(num_cpus=share.cpus, num_gpus=share.gpus)
        self._idle: queue.Queue[Any] = queue.Queue()
        self._lock = threading.RLock()  # of what follows
        self._backend = ""  # of the first actor that was ready
        self._living = 0  # actors that are ready, or may become so
        self._failure: BaseException | None = None  # of the last one that did not
        self._starts: int | None = STARTS * share.actors  # that may fail; None: no more are wanted
        self._told: set[str] = set()
        self.leaving = contextlib.ExitStack()  # what ends the run's part in the cluster
        for _ in range(share.actors):
            self._start()

    @property
    def backend(self) -> str:
        """Name of the backend that runs, the same on all actors; waits for the first one."""
        self._idle.put(self._next())
        return self._backend

    def __call__(
        self,
        image: Array,
        options: Options,
        *,
        on_step: Callable[[int, int], None] | None = None,
        **extra: Any,
    ) -> Result:
        """As ``Pipeline``; steps are not told. Raises ``BackendError`` where actors die of the image."""
        given = self._ray.put(image)  # while others are computed
        for _ in range(TRIES):
            actor = self._next()
            try:
                answer = self._answer(actor.run.remote(given, options, extra))
            except self._ray.exceptions.RayTaskError:  # of the answer, which cannot be sent
                self._idle.put(actor)
                raise
            except self._ray.exceptions.RayError:
                self._replace(actor)
                continue
            self._idle.put(actor)
            self._tell(answer.notes)
            result: Result = answer.got()
            return result
        raise BackendError(
            f"{TRIES} actors died one after the other while they computed this image; it may need more memory than a "
            "node has"
        )

    def close(self) -> None:
        """Leave the cluster, whose actors end with that."""
        with self._lock:
            self._starts = None
        self.leaving.close()

    def _answer(self, reference: Any) -> Answer:
        while not self._ray.wait([reference], timeout=POLL)[0]:
            stop.check()
        answer: Answer = self._ray.get(reference)
        return answer

    def _next(self) -> Any:
        """An actor with nothing to do. Raises why there will be none."""
        since = time.monotonic()
        while True:
            try:
                return self._idle.get(timeout=POLL)
            except queue.Empty:
                stop.check()
            if self._failure is not None and not self._living:
                raise self._failure
            if not self._backend and time.monotonic() > since + PATIENCE:
                self._tell(["waiting for the cluster to start an actor"])

    def _start(self) -> None:
        """Begin to start an actor, which is taken into use once its pipeline is loaded."""
        with self._lock:
            if self._starts is None:  # actors end as we leave; a call of Ray would begin anew
                return
            self._living += 1
            actor = self._actor.remote()
            loading = actor.load.remote(self._loading, __version__)
        loading.future().add_done_callback(partial(self._loaded, actor))

    def _replace(self, actor: Any) -> None:
        self._ray.kill(actor)  # one that cannot be reached may live
        with self._lock:
            self._living -= 1
            self._start()

    def _loaded(self, actor: Any, loading: "Future[Answer]") -> None:
        """Take an actor into use, or tell why not; on a thread of Ray's."""
        try:
            answer = loading.result()
            self._tell(answer.notes)
            self._agree(answer.got())
        except self._ray.exceptions.RayActorError as error:
            with self._lock:
                self._starts = self._starts and self._starts - 1
                self._left_out(BackendError(f"it died before it was ready: {error}"))
                if self._starts:
                    self._start()
        except Exception as error:
            self._left_out(error)
        else:
            self._idle.put(actor)

    def _agree(self, backend: str) -> None:
        """Raise ``BackendError`` for an actor whose images would be others than those of the first."""
        with self._lock:
            self._backend = self._backend or backend
            if backend != self._backend:
                raise BackendError(
                    f"it would compute with {backend}, but others do with {self._backend}; name one of them",
                    option="backend",
                )

    def _left_out(self, error: Exception) -> None:
        with self._lock:
            self._living -= 1
            self._failure = error
            if self._living and self._starts is not None:
                self._tell([f"warning: an actor is not used: {error}"])

    def _tell(self, notes: Sequence[str]) -> None:
        """Tell each note once, however many actors have it."""
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                self._report(note)


def spread(settings: RunSettings, report: Report) -> ActorPipeline:
    """A pipeline on the cluster that the settings name. Raises ``UIDError`` where it cannot compute."""
    assert settings.cluster is not None
    if settings.device is not None and ":" in settings.device:
        raise BackendError(f"the cluster gives each actor its GPU; give --device cuda, not {settings.device}")
    bundle = read_bundle(settings.model or built_in())
    cpus = settings.workers * (settings.threads or 1) if settings.workers else None
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(ray_session.joined(settings.cluster, cpus))
        local = settings.cluster == ray_session.LOCAL  # which does not grow
        wanted = None if local else settings.workers
        share = shared(ray_session.nodes(ray), settings.backend, settings.device, settings.threads, wanted)
        if local and settings.workers:
            share = dataclasses.replace(share, actors=min(share.actors, settings.workers))
        model = None if settings.model is None else settings.model.absolute()
        device = "cuda" if share.gpus else settings.device
        made = ActorPipeline(
            ray, bundle, share, Loading(model, bundle.digest, settings.backend, device, share.cpus), report
        )
        _ = made.backend  # once the first actor is ready, since what keeps all from it is no image's fault
        made.leaving = stack.pop_all()
    each = "a GPU" if share.gpus else "a CPU" if share.cpus == 1 else f"{share.cpus} CPUs"
    report(f"cluster: {share.actors} actors, each with {each}")
    return made


def shared(
    nodes: Sequence[Mapping[str, float]], backend: str, device: str | None, threads: int | None, actors: int | None
) -> Share:
    """How a cluster's nodes, given by their resources, are shared among actors: a GPU each, or some CPUs.

    Where the backend is on no certain device and none is named, GPUs are taken if there are any. ``actors`` None: as
    many as have room. Raises ``BackendError`` where no node has room for an actor.
    """
    named = BACKENDS[backend].device if backend in BACKENDS else device
    gpus = int((named or ("cuda" if any(node.get("GPU", 0) >= 1 for node in nodes) else "cpu")) == "cuda")
    cpus = threads or 1
    room = sum(int(node.get("GPU", 0) if gpus else node.get("CPU", 0) // cpus) for node in nodes)
    if not (room or actors):
        raise BackendError(f"no node of the cluster has {'a GPU' if gpus else f'{cpus} CPUs'} for an actor")
    return Share(actors or room, cpus, gpus)
