"""ONNX Runtime on the CPU.

A component's graph is kept in the bundle's engine folder as ONNX Runtime optimised it for the processor here, its
weights in float32 and in the order that convolutions read them in. Loading it maps a file: weights are neither cast nor
copied, and stay in the page cache, which all processes share.
"""

import ctypes
import functools
import json
import mmap
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from uid import __version__
from uid.engines.contract import Array, Backend, Buffer, Engine, Launch, check_bindings
from uid.engines.onnxruntime_session import inputs_of, memory_errors, open_session, outputs_of, session_options
from uid.engines.storage import default_folder, remove, remove_earlier, short_hash, writing
from uid.errors import BundleError, OutputError
from uid.runtime.bundle import MANIFEST, Bundle, Component, sha256, verify_files
from uid.runtime.files import folder_written_whole

PROVIDER = "CPUExecutionProvider"
ONNXRUNTIME = "onnxruntime"  # the backend's name, and the library that a component's variant may be for
LARGE = 1 << 28  # bytes of weights from which on filling them in again is little beside computing with them
GRAPH, WEIGHTS, SUMS = "graph.onnx", "weights.bin", "sha256.json"  # of a kept component


class OrtBuffer(Buffer):
    """An ``OrtValue``."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        with memory_errors(f"a buffer of {dtype}{list(shape)}"):
            self.value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type)

    def write(self, array: Array) -> None:
        """Copy a host array of this shape and dtype in."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"got {array.dtype}{list(array.shape)} for a buffer of {self.dtype}{list(self.shape)}")
        self.value.update_inplace(np.ascontiguousarray(array))

    def read(self) -> Array:
        """Copy the contents to a host array of its own."""
        return np.array(self.value.numpy())


class OrtEngine(Engine):
    """One ``InferenceSession``, and the file that its weights are mapped from, if they are."""

    def __init__(self, session: ort.InferenceSession, weights: Path | None = None) -> None:
        self.session, self.weights = session, weights
        self.inputs, self.outputs = inputs_of(session), outputs_of(session)

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch."""
        check_bindings(self, buffers)
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, value_of(buffers[name]))
        for name in self.outputs:
            binding.bind_ortvalue_output(name, value_of(buffers[name]))

        def launch() -> None:
            with memory_errors("the model at this size"):
                self.session.run_with_iobinding(binding)

        return launch

    def rest(self) -> None:
        """Let go of the weights, if there are many: they stay in the page cache while there is room."""
        if self.weights is not None and self.weights.stat().st_size >= LARGE:
            release(self.weights)


class OrtBackend(Backend):
    """ONNX Runtime on the CPU, with this many threads (None: one per core)."""

    name = ONNXRUNTIME

    def __init__(self, threads: int | None) -> None:
        super().__init__()
        self.threads = threads
        self.keeps = True  # whether what is optimised is kept for the next process

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> OrtBuffer:
        """A new buffer in the host's memory."""
        return OrtBuffer(shape, dtype)

    def options(self) -> ort.SessionOptions:
        """How sessions are made and run: their scratch memory is one, since they run one after another."""
        share_scratch_memory()
        options = session_options(self.threads)
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        return options

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> OrtEngine:
        """Load a component as it is kept, which is made when first needed."""
        source = bundle.folder / component.variants.get(ONNXRUNTIME, component.file)
        if not self.keeps:
            return self.load(source)
        depends = (sha256(bundle.folder / MANIFEST), __version__, ort.__version__, cpu())
        path = default_folder(bundle, self.name) / f"{component.name}-{short_hash(repr(depends))}"
        engine = self.kept(path)
        if engine is None:
            try:
                with writing(path.parent, self.report):
                    engine = self.kept(path)  # the one that held the folder may have made it
                    if engine is None:
                        self.keep(source, path)
                        engine = self.kept(path)
            except OutputError as error:
                self.report(f"the next process will optimise again: {error}")
        return engine or self.load(source)

    def kept(self, path: Path) -> OrtEngine | None:
        """What ``keep`` wrote; None where there is none, or it is not sound.

        ONNX Runtime itself computes with altered weights without a word.
        """
        if not path.exists():
            return None
        try:
            sums: dict[str, str] = json.loads((path / SUMS).read_bytes())
            verify_files(path, {name: sums[name] for name in (GRAPH, WEIGHTS)})
            options = self.options()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            # Matrices are then read from the file, not from packed copies, at the same speed.
            options.add_session_config_entry("session.disable_prepacking", "1")
            return OrtEngine(self.load(path / GRAPH, options).session, path / WEIGHTS)
        except (OSError, ValueError, TypeError, KeyError, BundleError) as error:
            self.report(f"{path} is not used and made again: {error}")
            remove(path)
            return None

    def keep(self, source: Path, path: Path) -> None:
        """Optimise a graph for this processor and write it to the folder ``path``, in place of its earlier states.

        Raises ``OutputError`` where it cannot be written.
        """
        options = self.options()
        for key, value in {
            "session.optimized_model_external_initializers_file_name": WEIGHTS,
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }.items():
            options.add_session_config_entry(key, value)
        with folder_written_whole(path) as folder:
            options.optimized_model_filepath = str(folder / GRAPH)
            try:
                self.load(source, options)
            except BundleError as error:  # of a full disk too: ONNX Runtime writes the files
                raise OutputError(f"cannot write {path}: {error}") from error
            (folder / WEIGHTS).touch()  # a graph without large weights leaves none
            sums = {name: sha256(folder / name) for name in (GRAPH, WEIGHTS)}
            (folder / SUMS).write_text(json.dumps(sums), encoding="utf-8")
        remove_earlier(path)

    def load(self, path: Path, options: ort.SessionOptions | None = None) -> OrtEngine:
        """Create a session of the graph at ``path``."""
        return OrtEngine(open_session(path, options or self.options(), PROVIDER, {}))


def release(path: Path) -> None:
    """Take the pages of a file that is mapped, and was not written to, out of this process's memory; on Linux alone.

    ONNX Runtime maps weights privately and writably, so a page that was written to would be lost: those stay.
    """
    regions = Path("/proc/self/smaps")
    if not regions.exists():
        return
    advise = ctypes.CDLL(None).madvise
    start, end, ours = 0, 0, False
    for line in regions.read_text(encoding="utf-8").splitlines():
        if address := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(digits, 16) for digits in address.groups())
            ours = line.split(maxsplit=5)[-1] == str(path.resolve())
        elif ours and re.match(r"Anonymous: +0 kB", line):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def cpu() -> str:
    """The processor's name and instruction sets, as far as the system tells."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        return " ".join(sorted(set(told)))
    return f"{platform.machine()} {platform.processor()}"


@functools.cache
def share_scratch_memory() -> None:
    """Make the arena that sessions with ``session.use_env_allocators`` share, once in a process."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, -1, -1, -1))


def create_cpu(threads: int | None) -> OrtBackend:
    """ONNX Runtime on the CPU."""
    return OrtBackend(threads)


def value_of(buffer: Buffer) -> ort.OrtValue:
    """The ``OrtValue`` of one of this backend's own buffers."""
    if not isinstance(buffer, OrtBuffer):
        raise TypeError(f"got a {type(buffer).__name__}; buffers must come from this backend's allocate()")
    return buffer.value
