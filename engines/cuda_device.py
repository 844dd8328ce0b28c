"""CUDA without torch: device, stream, event, memory and graph over the runtime in NVIDIA's ``cuda.bindings``, and the
part of a backend that all backends on an NVIDIA GPU share.

Importing this needs neither a GPU nor a driver. What is made here is released by ``close``, at the end of a ``with``
block, or with its last reference. Not yet run on hardware.
"""

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from cuda.bindings import runtime as cudart

from uid.bundles.tensors import Array
from uid.engines.contract import GPU_BATCH, Backend, Buffer, Progress, Replay, Seconds, Work
from uid.engines.garbage import no_collection
from uid.errors import BackendError, OutOfMemoryError

HOST_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
DEVICE_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
PINNED_FROM = 64 * 1024  # bytes; CUDA itself passes smaller copies through pinned memory of its own

AnyResource = TypeVar("AnyResource", bound="Resource")


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; returns what it gives beside its error code, one value or a tuple.

    Raises ``OutOfMemoryError`` for ``cudaErrorMemoryAllocation``, and ``BackendError`` for every other error.
    """
    code, *results = function(*arguments)
    if code == cudart.cudaError_t.cudaSuccess:
        return results[0] if len(results) == 1 else tuple(results)
    name, reason = (describe(code)[1].decode() for describe in (cudart.cudaGetErrorName, cudart.cudaGetErrorString))
    kind = OutOfMemoryError if code == cudart.cudaError_t.cudaErrorMemoryAllocation else BackendError
    raise kind(f"{function.__name__}({', '.join(map(shown, arguments))}): {name}: {reason}")


def shown(argument: Any) -> str:
    """An argument of a failed call, for its message: a choice by its name, a number, or what kind of handle it is."""
    if hasattr(argument, "name"):
        return str(argument.name)
    return str(argument) if isinstance(argument, int) else type(argument).__name__


@dataclass(frozen=True)
class Device:
    """An NVIDIA GPU."""

    index: int
    name: str
    compute_capability: str  # such as "8.9"
    driver: tuple[int, int]  # the newest CUDA version that the driver supports

    @classmethod
    def find(cls, index: int = 0) -> "Device":
        """The GPU of this number; raises ``BackendError`` where there is none, or no driver that fits."""
        driver, runtime = call(cudart.cudaDriverGetVersion), call(cudart.cudaRuntimeGetVersion)
        if driver == 0:
            raise BackendError("no NVIDIA driver here; CUDA needs an NVIDIA GPU and its driver (nvidia-smi shows both)")
        if driver // 1000 < runtime // 1000:
            raise BackendError(
                f"the NVIDIA driver supports CUDA up to {'.'.join(map(str, version(driver)))}, cuda-bindings is for "
                f"{runtime // 1000}: update the driver, or pip install 'cuda-bindings=={driver // 1000}.*'"
            )
        count = call(cudart.cudaGetDeviceCount)
        if not 0 <= index < count:
            raise BackendError(f"GPU {index} was asked for; there are {count} here, counted from 0")
        found = call(cudart.cudaGetDeviceProperties, index)
        return cls(index, found.name.decode(), f"{found.major}.{found.minor}", version(driver))

    def select(self) -> None:
        """Make it the one that this thread's calls are for."""
        call(cudart.cudaSetDevice, self.index)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes; selects the device."""
        self.select()
        free, total = call(cudart.cudaMemGetInfo)
        return int(free), int(total)


def version(number: int) -> tuple[int, int]:
    """CUDA's 13020 as (13, 2)."""
    return number // 1000, number % 1000 // 10


class Resource:
    """A handle of CUDA's, to be released once."""

    def __init__(self, handle: Any, release: Callable[..., Any], owner: object = None) -> None:
        """``owner``: what the handle lives as long as; None for this object."""
        self.handle = handle
        self.close = weakref.finalize(self if owner is None else owner, call, release, handle)

    def __enter__(self: AnyResource) -> AnyResource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(Resource):
    """Work that runs in order, and beside the work of other streams."""

    def __init__(self) -> None:
        handle = call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        super().__init__(handle, cudart.cudaStreamDestroy)

    def event(self) -> "Event":
        """A mark for its work."""
        return Event()

    def synchronize(self) -> None:
        """Wait until all of its work is done; an error of that work is raised here."""
        call(cudart.cudaStreamSynchronize, self.handle)

    @contextmanager
    def capture(self) -> Iterator["Graph"]:
        """Record what is put on the stream in the block, in place of running it; the graph is ready after the block."""
        graph = Graph()
        # In this mode an allocation by this thread, which no loop should make, is an error.
        call(cudart.cudaStreamBeginCapture, self.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            yield graph
        except BaseException:
            with suppress(BackendError):  # the first error is the one to tell
                call(cudart.cudaGraphDestroy, call(cudart.cudaStreamEndCapture, self.handle))
            raise
        graph.instantiate(call(cudart.cudaStreamEndCapture, self.handle))


class Graph:
    """Work captured from a stream, launched again by one call."""

    def __init__(self) -> None:
        self.executable: Resource | None = None

    def instantiate(self, captured: Any) -> None:
        """Make it ready to launch, from a captured graph, which is used up."""
        try:
            self.executable = Resource(call(cudart.cudaGraphInstantiate, captured, 0), cudart.cudaGraphExecDestroy)
        finally:
            call(cudart.cudaGraphDestroy, captured)

    def launch(self, stream: Stream) -> None:
        """Put the whole of it on a stream."""
        if self.executable is None:
            raise BackendError("the CUDA graph is launched inside its own capture; launch it after the block")
        call(cudart.cudaGraphLaunch, self.executable.handle, stream.handle)


class Event(Resource):
    """A mark in a stream's work."""

    def __init__(self) -> None:
        super().__init__(call(cudart.cudaEventCreate), cudart.cudaEventDestroy)

    def record(self, stream: Stream) -> None:
        """Set it behind the work that is on the stream now."""
        call(cudart.cudaEventRecord, self.handle, stream.handle)

    def record_in_graph(self, stream: Stream) -> None:
        """While the stream captures: let the graph set it, each time that it is launched, behind what it holds now."""
        call(cudart.cudaEventRecordWithFlags, self.handle, stream.handle, cudart.cudaEventRecordExternal)

    def synchronize(self) -> None:
        """Wait until the work before it is done."""
        call(cudart.cudaEventSynchronize, self.handle)

    def seconds_since(self, start: "Event") -> float:
        """Time between two recorded marks that have been reached."""
        return float(call(cudart.cudaEventElapsedTime, start.handle, self.handle)) / 1000


class DeviceMemory(Resource):
    """Bytes on the selected GPU."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        super().__init__(call(cudart.cudaMalloc, nbytes), cudart.cudaFree)

    def clear(self, stream: Stream) -> None:
        """Set it to zero, in the stream's order."""
        call(cudart.cudaMemsetAsync, self.handle, 0, self.nbytes, stream.handle)

    def copy_from(self, array: Array, stream: Stream) -> None:
        """Copy a host array in, in the stream's order; the array must stay as it is until that is done."""
        self.check(array)
        call(cudart.cudaMemcpyAsync, self.handle, array.ctypes.data, self.nbytes, HOST_TO_DEVICE, stream.handle)

    def copy_to(self, array: Array, stream: Stream) -> None:
        """Copy into a host array, in the stream's order; it holds the contents once that is done."""
        self.check(array)
        call(cudart.cudaMemcpyAsync, array.ctypes.data, self.handle, self.nbytes, DEVICE_TO_HOST, stream.handle)

    def check(self, array: Array) -> None:
        """Refuse an array that is not this many bytes in one piece."""
        if array.nbytes != self.nbytes or not array.flags.c_contiguous:
            piece = "contiguous" if array.flags.c_contiguous else "scattered"
            raise ValueError(f"got {array.nbytes} {piece} bytes for {self.nbytes} contiguous bytes on the GPU")


class PinnedMemory(Resource):
    """Host memory that the GPU reads and writes at the bus's speed, as a numpy array."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        nbytes = math.prod(shape) * dtype.itemsize
        handle = call(cudart.cudaMallocHost, nbytes)
        memory = (ctypes.c_uint8 * nbytes).from_address(handle)
        super().__init__(handle, cudart.cudaFreeHost, owner=memory)  # which every view of the array keeps alive
        self.array: Array = np.frombuffer(memoryview(memory), dtype).reshape(shape)


class CudaBuffer(Buffer):
    """Memory of fixed shape and dtype on the GPU; zero at first, so that what warms up on it reads no garbage."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> None:
        self.shape, self.dtype, self.stream = shape, dtype, stream
        self.memory = DeviceMemory(self.nbytes)
        self.memory.clear(stream)
        self.staging: PinnedMemory | None = None

    @property
    def address(self) -> int:
        """Where it is on the GPU."""
        return int(self.memory.handle)

    def host_array(self) -> Array:
        """Where the host's side of a copy lies; pinned memory, made when first needed, unless it is small."""
        if self.nbytes < PINNED_FROM:
            return np.empty(self.shape, self.dtype)
        self.staging = self.staging or PinnedMemory(self.shape, self.dtype)
        return self.staging.array

    def write(self, array: Array) -> None:
        """Copy a host array of this shape and dtype in; returns when that is done."""
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise self.mismatch(array)
        host = self.host_array()
        host[...] = array
        self.memory.copy_from(host, self.stream)
        self.stream.synchronize()

    def read(self) -> Array:
        """Wait for the stream, and copy the contents to a host array of its own."""
        host = self.host_array()
        self.memory.copy_to(host, self.stream)
        self.stream.synchronize()
        return np.array(host)


class CudaBackend(Backend):
    """What backends on an NVIDIA GPU share: buffers and graphs on one stream. How engines load is each one's own."""

    uint8_pixels = True
    new_sizes_cost = True
    largest_batch = GPU_BATCH

    def __init__(self, name: str, device: Device) -> None:
        super().__init__()
        self.name, self.device = name, device
        # The other half is for the engines' weights and workspace.
        self.memory_limit = device.memory()[0] // 2
        self.stream = Stream()

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> CudaBuffer:
        """A new buffer on the GPU."""
        return CudaBuffer(shape, dtype, self.stream)

    def capture(self, work: Work) -> Replay:
        """Capture an image's work into one CUDA graph."""
        return GraphReplay(work, self.stream)


class GraphReplay(Replay):
    """One CUDA graph of all launches of an image."""

    def __init__(self, work: Work, stream: Stream) -> None:
        """Run all launches once, since an engine sets itself up in its first run; then capture them."""
        self.work, self.stream = work, stream  # the work keeps the buffers alive whose addresses the graph has
        for launch in work.launches():
            launch()
        stream.synchronize()
        self.marks = [stream.event() for _ in range(1 + len(work.stages()))]
        with no_collection(), stream.capture() as self.graph:
            self.marks[0].record_in_graph(stream)
            for mark, (_, launches) in zip(self.marks[1:], work.stages(), strict=True):
                for launch in launches:
                    launch()
                mark.record_in_graph(stream)

    def __call__(self, progress: Progress) -> Seconds:
        """Launch the graph and wait for it; ``progress`` is told once, at the end."""
        self.graph.launch(self.stream)
        self.stream.synchronize()
        progress(len(self.work.step))
        spans = zip(self.work.stages(), pairwise(self.marks), strict=True)
        return {stage: end.seconds_since(start) for (stage, _), (start, end) in spans}
