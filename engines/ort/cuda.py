"""ONNX Runtime on CUDA, through onnxruntime-gpu. Not yet run on hardware.

Every run is put on the backend's one stream, and nothing waits for it before an image's end. A session captures what
it runs on a set of buffers in a CUDA graph, which later runs on them replay: one launch each. All steps that read and
write the same two latents share one, since their few numbers are copied to where it reads them; so a plan has a graph
for even steps and one for odd ones.

A session keeps each graph until it goes itself, for the thread that captured it. So one thread runs all sessions, and
a session that holds many graphs of plans that are gone is replaced.
"""

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import onnxruntime as ort
from cuda.bindings import runtime as cudart

from uid.bundles.declarations import Bundle, Component
from uid.bundles.sources import check_graph, private_copy
from uid.engines.contract import Buffer, Engine, Launch, Progress, Replay, Seconds, Work, check_bindings
from uid.engines.cuda_device import CudaBackend, CudaBuffer, Device, Stream, call
from uid.engines.garbage import no_collection
from uid.engines.ort.cpu import ONNXRUNTIME, check_memory, open_session, session_options
from uid.engines.ort.nvidia_libraries import preload
from uid.errors import BackendError, BundleError
from uid.install import replace_onnxruntime

NAME = "onnxruntime-cuda"  # the backend's, and what a component's variant for it is called
PROVIDER = "CUDAExecutionProvider"
REFUSED = "cannot use the graph capture feature"  # in the error of a session whose nodes are not all on the GPU
NUMBER_BYTES = 64  # inputs of at most this many bytes are copied for each run, so that runs with others share a graph
STALE_GRAPHS = 64  # of plans that are gone: from so many on, a session is replaced
DEVICE_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice

Result = TypeVar("Result")
Source = AbstractContextManager[Path]  # of a graph, there for the time of the block


class SessionThread:
    """One thread that does what others ask of it, while they wait."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=NAME)
        self.thread = self.pool.submit(threading.get_ident).result()

    def do(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns, or raises, in that thread."""
        return work() if threading.get_ident() == self.thread else self.pool.submit(work).result()


class Recording:
    """A session's runs on one set of buffers, which it keeps alive: one CUDA graph, if the session captures."""

    def __init__(self, engine: "OrtCudaEngine", buffers: Mapping[str, CudaBuffer], number: int) -> None:
        """``number``: no other recording of the session has it, nor ever had."""
        self.engine, self.buffers = engine, buffers
        self.options = ort.RunOptions()
        self.options.add_run_config_entry("gpu_graph_id", str(number))
        self.options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.bind()

    def bind(self) -> None:
        """Bind the buffers to the session that the engine has now."""
        engine, self.binding = self.engine, self.engine.session.io_binding()
        for specs, bind in ((engine.inputs, self.binding.bind_input), (engine.outputs, self.binding.bind_output)):
            for name in specs:
                buffer = self.buffers[name]
                bind(name, "cuda", 0, buffer.dtype.type, list(buffer.shape), buffer.address)

    def run(self) -> None:
        """Put one run on the stream; the first time, the session runs twice more before it, and captures."""
        try:
            self.engine.session.run_with_iobinding(self.binding, self.options)
        except Exception as error:
            check_memory(error, f"{self.engine.path.name} at this size")
            raise


class OrtCudaEngine(Engine):
    """One ``InferenceSession`` on the GPU, and another in its place when it holds too much."""

    session: ort.InferenceSession

    def __init__(self, backend: "OrtCudaBackend", path: Path, source: Callable[[], Source]) -> None:
        """``path`` is what errors call the graph; ``source`` gives it for as long as a session is opened."""
        self.backend, self.path, self.source, self.captures = backend, path, source, True
        self.numbers = itertools.count(1)  # of recordings
        self.recordings: weakref.WeakValueDictionary[object, Recording] = weakref.WeakValueDictionary()
        self.graphs = 0  # that the session holds, or will
        try:
            self.open()
        except BundleError as error:
            if REFUSED not in str(error):
                raise
            self.do_without_capture(error)

    def open(self) -> None:
        """Open a new session, and let the one before go, with all of its graphs."""
        recordings = list(self.recordings.values())
        for recording in recordings:
            recording.binding = None  # which holds the session
        self.session = None
        options = {
            "user_compute_stream": str(int(self.backend.stream.handle)),
            "enable_cuda_graph": str(int(self.captures)),
            "use_tf32": "0",  # on by default; without it, float32 is float32
        }
        with self.source() as graph:
            opened = open_session(graph, session_options(self.backend.threads), PROVIDER, options, self.path)
        self.session, self.inputs, self.outputs = opened
        for recording in recordings:
            recording.bind()
        self.graphs = len(recordings)

    def do_without_capture(self, error: Exception) -> None:
        """Go on with a session that captures nothing, and say so."""
        self.backend.report(f"{self.path.name} runs without a CUDA graph, since capturing it failed: {error}")
        self.captures = False
        self.open()

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch, which does not wait for its work."""
        check_bindings(self, buffers)
        given = {name: cuda_buffer(buffers[name]) for name in (*self.inputs, *self.outputs)}
        numbers = {name: given[name] for name in self.inputs if given[name].nbytes <= NUMBER_BYTES}
        key = tuple((buffer.shape, None if name in numbers else buffer.address) for name, buffer in given.items())
        recording = self.recordings.get(key) or self.recording(key, given, numbers)
        copies = [(recording.buffers[name], buffer) for name, buffer in numbers.items()]
        return partial(self.backend.worker.do, partial(self.launch, recording, copies))

    def recording(self, key: object, given: Mapping[str, CudaBuffer], numbers: Mapping[str, CudaBuffer]) -> Recording:
        """A new recording, with buffers of its own for numbers."""
        if self.graphs - len(self.recordings) >= STALE_GRAPHS:
            self.backend.worker.do(self.open)
        self.graphs += 1
        own = {name: self.backend.allocate(buffer.shape, buffer.dtype) for name, buffer in numbers.items()}
        recording = self.recordings[key] = Recording(self, {**given, **own}, next(self.numbers))
        return recording

    def launch(self, recording: Recording, copies: list[tuple[CudaBuffer, CudaBuffer]]) -> None:
        """Put the copies and a run on the stream; if capturing fails, without it from then on."""
        stream = self.backend.stream
        self.backend.ran.add(self)
        for target, source in copies:
            call(cudart.cudaMemcpyAsync, target.address, source.address, source.nbytes, DEVICE_TO_DEVICE, stream.handle)
        try:
            recording.run()
        except Exception as error:  # ONNX Runtime's have no class of their own
            if self.captures:
                end_capture(stream)
            if isinstance(error, BackendError):
                raise
            if not self.captures:
                raise BackendError(f"ONNX Runtime cannot run {self.path.name}: {error}") from error
            self.do_without_capture(error)
            self.launch(recording, copies)


class Queue(Replay):
    """Puts all launches on the stream, with events between the stages, and waits once, at the end."""

    def __init__(self, work: Work, worker: SessionThread, stream: Stream, captured: bool) -> None:
        """``captured``: whether every launch is a CUDA graph."""
        self.work, self.worker, self.stream, self.captured = work, worker, stream, captured
        self.marks = [stream.event() for _ in range(1 + len(work.stages()))]

    def __call__(self, progress: Progress) -> Seconds:
        self.worker.do(self.put)
        self.stream.synchronize()
        progress(len(self.work.step))
        spans = zip(self.work.stages(), pairwise(self.marks), strict=True)
        return {stage: end.seconds_since(start) for (stage, _), (start, end) in spans}

    def put(self) -> None:
        """Put an image's work on the stream."""
        self.marks[0].record(self.stream)
        for mark, (_, launches) in zip(self.marks[1:], self.work.stages(), strict=True):
            for launch in launches:
                launch()
            mark.record(self.stream)


class OrtCudaBackend(CudaBackend):
    """ONNX Runtime on one GPU."""

    def __init__(self, device: Device, threads: int | None) -> None:
        """``threads`` are for what little runs on the CPU."""
        super().__init__(NAME, device)
        self.threads, self.worker = threads, SessionThread()
        self.ran: weakref.WeakSet[OrtCudaEngine] = weakref.WeakSet()  # since that was last asked

    def load(self, path: Path) -> OrtCudaEngine:
        """Create a session of the graph at ``path``, which may refer to files beside it alone."""
        check_graph(path)
        return self.worker.do(partial(OrtCudaEngine, self, path, lambda: nullcontext(path)))

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> OrtCudaEngine:
        """Load the graph that is for this backend, or for ONNX Runtime, or the portable one."""
        files = component.variants.get(NAME), component.variants.get(ONNXRUNTIME), component.file
        file = next(file for file in files if file)
        source = partial(private_copy, bundle, file)
        return self.worker.do(partial(OrtCudaEngine, self, bundle.folder / file, source))

    def capture(self, work: Work) -> Replay:
        """Run all launches once, which captures them; returns what puts all of them on the stream again."""
        self.ran.clear()
        with no_collection():
            for launch in work.launches():
                launch()
            self.stream.synchronize()
        return Queue(work, self.worker, self.stream, all(engine.captures for engine in self.ran))


def create_cuda(threads: int | None) -> OrtCudaBackend:
    """ONNX Runtime on the first GPU; raises ``BackendError`` where this onnxruntime has no CUDA, or there is no GPU."""
    if PROVIDER not in ort.get_available_providers():
        raise BackendError(
            "this onnxruntime has no CUDA provider, since it took the place of onnxruntime-gpu: "
            f"{replace_onnxruntime()}"
        )
    preload(ort.cuda_version)
    ort.preload_dlls()
    return OrtCudaBackend(Device.find(), threads)


def end_capture(stream: Stream) -> None:
    """Leave a stream usable after a capture that failed."""
    with suppress(BackendError):  # that it does not capture
        call(cudart.cudaGraphDestroy, call(cudart.cudaStreamEndCapture, stream.handle))


def cuda_buffer(buffer: Buffer) -> CudaBuffer:
    """One of this backend's own buffers."""
    if not isinstance(buffer, CudaBuffer):
        raise TypeError(f"got a {type(buffer).__name__}; buffers must come from this backend's allocate()")
    return buffer
