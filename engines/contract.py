"""The engine contract: read the tensor specs, bind buffers by name, launch.

A backend owns the memory it computes in: it allocates buffers, loads components as engines, and binds buffers to
engines. A binding stays valid, so a loop of many steps neither allocates nor copies, and a backend can capture a list
of launches once and replay it for every image.
"""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uid.bundles.declarations import Bundle, Component
from uid.bundles.sources import private_copy
from uid.bundles.tensors import Array, TensorSpec
from uid.errors import OutOfMemoryError

Launch = Callable[[], None]
Progress = Callable[[int], None]
"""Receives the number of denoising steps done."""
Seconds = dict[str, float]
"""Seconds by stage: prepare, step (all steps), finish."""
Report = Callable[[str], None]
"""Receives lines about what takes long and why."""

GPU_BATCH = 8  # images that run together on a GPU, at most: as many as there are transforms of an image


class Buffer(ABC):
    """Memory of fixed shape and dtype where a backend computes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def mismatch(self, array: Array) -> ValueError:
        """The error for a host array of another shape or dtype."""
        return ValueError(f"got {array.dtype}{list(array.shape)} for a buffer of {self.dtype}{list(self.shape)}")

    @abstractmethod
    def write(self, array: Array) -> None:
        """Copy a host array of this shape and dtype in."""

    @abstractmethod
    def read(self) -> Array:
        """Copy the contents to a new host array."""


class Engine(ABC):
    """One loaded component."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @abstractmethod
    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch, which can be called any number of times.

        The launch may return before the work is done: a buffer's ``read`` waits for it.
        """

    def release(self) -> None:  # noqa: B027  (most engines have nothing to release)
        """The engine will not run for a while: it may free memory that it can fill again by itself."""

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether the engine runs where the manifest's symbols ("height", "width", ...) have these values."""
        return True


@dataclass(frozen=True)
class Work:
    """All launches of an image: three stages, in this order."""

    prepare: Sequence[Launch]
    step: Sequence[Launch]  # one per denoising step
    finish: Sequence[Launch]
    engines: Mapping[str, Sequence[Engine]] = field(default_factory=dict)  # those of each stage

    def stages(self) -> tuple[tuple[str, Sequence[Launch]], ...]:
        """Name and launches of each stage."""
        return ("prepare", self.prepare), ("step", self.step), ("finish", self.finish)

    def launches(self) -> list[Launch]:
        """All launches, in order."""
        return [launch for _, launches in self.stages() for launch in launches]


class Replay(ABC):
    """Runs the work of an image as often as it is called."""

    captured: bool = True  # whether every launch is part of a CUDA graph

    @abstractmethod
    def __call__(self, progress: Progress) -> Seconds:
        """Run the work and wait for it; returns the seconds of each stage."""


class OneByOne(Replay):
    """Runs launches one by one, and reports each step."""

    captured = False

    def __init__(self, work: Work, wait: Callable[[], None] | None = None) -> None:
        """``wait`` returns when a launch is done, for backends whose launches return earlier."""
        self.work, self.wait = work, wait

    def __call__(self, progress: Progress) -> Seconds:
        """Run the work; ``progress`` is told of every step. Engines are released after their stage."""
        seconds = {}
        for stage, launches in self.work.stages():
            started = time.perf_counter()
            for done, launch in enumerate(launches, 1):
                launch()
                if self.wait is not None:
                    self.wait()
                if stage == "step":
                    progress(done)
            seconds[stage] = time.perf_counter() - started
            for engine in self.work.engines.get(stage, ()):
                engine.release()
        return seconds


def no_report(line: str) -> None:
    """Drop the line."""


class Backend(ABC):
    """One way to compute: allocates buffers and loads engines. Made by ``uid.engines.create``."""

    name: str
    uint8_pixels: bool = False  # whether uint8 images are uploaded as they are and converted beside the engines
    new_sizes_cost: bool = (
        False  # whether a new image size takes long, as to build or capture: tiles then have few sizes
    )
    largest_batch: int = 1  # images of one size that run together; above 1 where launches cost more than memory
    precision: str | None = None  # what it computes in, such as "bf16"; None: what the bundle's graphs say
    memory_limit: int | None = None  # bytes that the buffers of all cached plans may take together; None: no limit
    doubt: str = ""  # why the backend is tried before it is used; "": it needs no trial
    report: Report = staticmethod(no_report)  # receives what takes long, such as the build of an engine

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant, so that a nested call can raise instead of waiting forever
        self._busy = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the backend for one image: its buffers, engines and stream serve one at a time. Other threads wait.

        Raises ``RuntimeError`` when this thread holds it already, as when a progress callback calls the pipeline.
        """
        with self._lock:
            if self._busy:
                raise RuntimeError("the pipeline was called from inside its own on_step; call it after it has returned")
            self._busy = True
            try:
                yield
            finally:
                self._busy = False

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        """A new buffer; raises ``OutOfMemoryError`` when there is no room for it."""

    @abstractmethod
    def load(self, path: Path) -> Engine:
        """Load the ONNX graph at ``path``; its external data lies beside it."""

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> Engine:
        """Load a bundle's component as an engine that covers ``sizes``, the values of the manifest's symbols.

        A backend that builds engines for sizes reuses one that was built before, or builds it now.
        """
        with private_copy(bundle, component.file) as path:
            return self.load(path)

    def batch(self, bundle: Bundle, components: Sequence[Component], sizes: Mapping[str, int], most: int) -> int:
        """How many images of these sizes to run together, from 1 to ``most``, which is at most ``largest_batch``."""
        return most

    def capture(self, work: Work) -> Replay:
        """Turn the work of an image into one call that many images use.

        By default launches run one by one, and each step is reported. A backend that records a graph may run the
        launches once now, whatever their buffers hold. Its replay reports once, at the end, and never releases engines.
        It returns ``OneByOne`` where it cannot record the work.
        """
        return OneByOne(work)


def check_bindings(engine: Engine, buffers: Mapping[str, Buffer]) -> None:
    """Raise ``ValueError`` for buffers that do not fit the engine: a missing name, another dtype, rank or size."""
    for spec in (*engine.inputs.values(), *engine.outputs.values()):
        if spec.name not in buffers:
            raise ValueError(f"no buffer for {spec.name!r}; got {sorted(buffers)}")
        buffer = buffers[spec.name]
        fits = len(buffer.shape) == len(spec.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, buffer.shape, strict=True)
        )
        if buffer.dtype != spec.dtype or not fits:
            raise ValueError(
                f"buffer for {spec.name!r} is {buffer.dtype}{list(buffer.shape)}; "
                f"the engine expects {spec.dtype}{list(spec.shape)}"
            )


def raise_if_out_of_memory(error: Exception, words: Sequence[str], message: str) -> None:
    """Raise ``OutOfMemoryError`` with ``message`` for an error whose text holds one of ``words``.

    Libraries have no error class for memory that ran out: only their own words tell.
    """
    if any(word in str(error) for word in words):
        raise OutOfMemoryError(message) from error
