"""The engine contract: read the tensor specs, bind buffers by name, run.

A backend owns the memory it computes in: it allocates buffers, loads components as engines, and binds the one to the
other. What is bound stays bound, so that a loop of many steps neither allocates nor copies, and a backend may capture
a list of launches once and replay it.
"""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from uid.runtime.bundle import Bundle, Component

Array = npt.NDArray[Any]
Launch = Callable[[], None]
Progress = Callable[[int], None]
"""Told how many denoising steps are done."""
Seconds = dict[str, float]
"""By stage: prepare, step (all of the steps), finish."""
Replay = Callable[[Progress], Seconds]
"""Runs a picture's work, and returns when it is done with what each stage took.

It is captured in CUDA graphs, unless the object has an attribute ``captured`` that is false.
"""
Report = Callable[[str], None]
"""Told, line by line, what takes long and why."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an engine's input or output; a dimension is a size or a symbol such as "height/8"."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


class Buffer(ABC):
    """Memory of fixed shape and dtype where a backend computes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def write(self, array: Array) -> None:
        """Copy a host array of this shape and dtype in."""

    @abstractmethod
    def read(self) -> Array:
        """Copy the contents to a host array of its own."""


class Engine(ABC):
    """One loaded component."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @abstractmethod
    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch, to be called any number of times.

        The launch may return before the work is done: a buffer's ``read`` waits for it.
        """

    def rest(self) -> None:  # noqa: B027  (most have nothing to let go of)
        """Told that it will not run for a while: memory that fills again by itself may go."""

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether it runs where the manifest's symbols ("height", "width", ...) have these values."""
        return True


@dataclass(frozen=True)
class Work:
    """What is launched for a picture: three stages, in this order."""

    prepare: Sequence[Launch]
    step: Sequence[Launch]  # one for each denoising step
    finish: Sequence[Launch]
    rest: Callable[[str], None] = lambda stage: None  # told of a stage that is done until the next picture

    def stages(self) -> tuple[tuple[str, Sequence[Launch]], ...]:
        """Name and launches of each."""
        return ("prepare", self.prepare), ("step", self.step), ("finish", self.finish)

    def launches(self) -> list[Launch]:
        """All of them, in order."""
        return [launch for _, launches in self.stages() for launch in launches]


class OneByOne:
    """A ``Replay`` that runs launches one by one, and reports each step."""

    captured = False

    def __init__(self, work: Work, wait: Callable[[], None] = lambda: None) -> None:
        """``wait``: what returns when a launch is done, where launches themselves return before."""
        self.work, self.wait = work, wait

    def __call__(self, progress: Progress) -> Seconds:
        seconds = {}
        for stage, launches in self.work.stages():
            started = time.perf_counter()
            for done, launch in enumerate(launches, 1):
                launch()
                self.wait()
                if stage == "step":
                    progress(done)
            seconds[stage] = time.perf_counter() - started
            self.work.rest(stage)
        return seconds


GPU_BATCH = 8  # as many as there are views of a picture


def silent(line: str) -> None:
    """A ``Report`` to nobody."""


class Backend(ABC):
    """One way to compute: allocates its buffers and loads its engines. Made by ``uid.engines.create``."""

    name: str
    uint8_pixels: bool = False  # whether uint8 pictures go in and out as they are, to be converted beside the engines
    new_sizes_cost: bool = False  # whether to run at a new size takes long, as to build or capture: tiles have one then
    largest_batch: int = (
        1  # of pictures of one size that run together: more than 1 where launches cost more than memory
    )
    memory_limit: int | None = None  # bytes that the buffers of all plans kept may take together; None: no limit
    doubt: str = ""  # why it is tried before it is used, and said so; or "" where it can be trusted
    report: Report = staticmethod(silent)  # told of what takes long, such as an engine that is built

    def __init__(self) -> None:
        self._lock = threading.RLock()  # not a Lock, in which a thread would wait for itself for ever
        self._busy = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the backend for one picture: its buffers, engines and stream serve one at a time. Other threads wait.

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

    def load_component(self, bundle: "Bundle", component: "Component", sizes: Mapping[str, int]) -> Engine:
        """Load a bundle's component as an engine that covers ``sizes``, the values of the manifest's symbols.

        A backend whose engines are built for sizes takes one that was built before, or builds it now.
        """
        return self.load(bundle.folder / component.file)

    def batch(self, bundle: "Bundle", components: "Sequence[Component]", sizes: Mapping[str, int], most: int) -> int:
        """How many pictures of these sizes to run together, from 1 to ``most``, which is at most ``largest_batch``."""
        return most

    def capture(self, work: Work) -> Replay:
        """Make one call of a picture's work, to be run for many.

        Here launches run one by one and each step is reported. A backend that records them into a graph may run them
        once when it is asked to, whatever their buffers hold, reports once, at the end, and has no use for ``rest``;
        where it cannot record these, it returns ``OneByOne`` too.
        """
        return OneByOne(work)


def check_bindings(engine: Engine, buffers: Mapping[str, Buffer]) -> None:
    """Refuse buffers that do not fit the engine: a name too few, another dtype, another rank or size."""
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
