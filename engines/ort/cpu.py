"""ONNX Runtime on the CPU.

A component's graph is stored in the user's cache as ONNX Runtime optimised it for this processor, with
weights in float32 and in the order that convolutions read. Loading it maps a file: weights are neither cast nor copied,
and stay in the page cache, which all processes share.
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
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from uid.bundles.cache import path_for, remove, remove_earlier, reuse_or_make
from uid.bundles.declarations import Bundle, Component
from uid.bundles.files import folder_written_whole
from uid.bundles.hashes import sha256, verify_files
from uid.bundles.reading import LARGEST_JSON, parsed_json, read_limited
from uid.bundles.sources import check_graph, private_copy
from uid.bundles.tensors import Array, TensorSpec
from uid.engines.contract import Backend, Buffer, Engine, Launch, check_bindings, raise_if_out_of_memory
from uid.engines.threads import pool_size
from uid.errors import BackendError, BundleError, ModelError, OutputError
from uid.install import install_command

PROVIDER = "CPUExecutionProvider"
ONNXRUNTIME = "onnxruntime"  # the backend's name, and the library that a component's variant may be for
LARGE = 1 << 28  # bytes of weights from which on filling them in again is little beside computing with them
GRAPH, WEIGHTS, SUMS = "graph.onnx", "weights.bin", "sha256.json"  # of a stored component


DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}
# ONNX Runtime's errors have no class for it: its own, the C++ library's and CUDA's words tell.
NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "out of memory")


class OrtBuffer(Buffer):
    """An ``OrtValue``."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        try:
            self.value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type)
        except Exception as error:  # its exceptions share no base class
            check_memory(error, f"a buffer of {dtype}{list(shape)}")
            raise

    def write(self, array: Array) -> None:
        """Copy a host array of this shape and dtype in."""
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise self.mismatch(array)
        self.value.update_inplace(np.ascontiguousarray(array))

    def read(self) -> Array:
        """Copy the contents to a host array of its own."""
        return np.array(self.value.numpy())


class OrtEngine(Engine):
    """One ``InferenceSession``, and the file that its weights are mapped from, if they are."""

    def __init__(self, opened: "Opened", name: str, weights: Path | None = None) -> None:
        """``name`` is what errors call it."""
        self.session, self.inputs, self.outputs = opened
        self.name, self.weights = name, weights

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Bind a buffer to every input and output by name; returns the launch."""
        check_bindings(self, buffers)
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, value_of(buffers[name]))
        for name in self.outputs:
            binding.bind_ortvalue_output(name, value_of(buffers[name]))

        def launch() -> None:
            try:
                self.session.run_with_iobinding(binding)
            except Exception as error:
                check_memory(error, "the model at this size")
                raise ModelError(f"ONNX Runtime cannot run {self.name} at this size: {error}") from error

        return launch

    def release(self) -> None:
        """Unmap the pages of large weights: they stay in the page cache while there is room."""
        if self.weights is not None and self.weights.stat().st_size >= LARGE:
            release_pages(self.weights)


class OrtBackend(Backend):
    """ONNX Runtime on the CPU, with this many threads (None: one per core)."""

    name = ONNXRUNTIME

    def __init__(self, threads: int | None) -> None:
        super().__init__()
        self.threads = threads
        self.caches = True  # whether optimised graphs are stored for the next process

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> OrtBuffer:
        """A new buffer in the host's memory."""
        return OrtBuffer(shape, dtype)

    def options(self, **entries: str) -> ort.SessionOptions:
        """How sessions are made and run; ``entries`` are configuration entries of "session".

        They share their scratch memory, since they run one after another.
        """
        share_scratch_memory()
        shared = {"use_env_allocators": "1", "use_device_allocator_for_initializers": "1"}
        return session_options(self.threads, {f"session.{key}": value for key, value in {**shared, **entries}.items()})

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> OrtEngine:
        """Load a component from its stored, optimised graph, which is made when first needed."""
        file = component.variants.get(ONNXRUNTIME, component.file)

        def load_now(folder: Path | None = None) -> OrtEngine:
            with private_copy(bundle, file, folder) as source:
                return self.open(source, named=bundle.folder / file)

        if not self.caches:
            return load_now()

        def make() -> OrtEngine:
            with private_copy(bundle, file, path.parent) as source:
                self.store(source, path, bundle.folder / file)
            return self.cached(path) or load_now(path.parent)

        try:
            path = path_for(bundle, self.name, component.name, file, ort.__version__, cpu())
            return reuse_or_make(path.parent, lambda: self.cached(path), make, self.report)
        except OutputError as error:
            self.report(f"the next process will optimise again: {error}")
            return load_now()

    def cached(self, path: Path) -> OrtEngine | None:
        """What ``store`` wrote; None where there is none, or it is damaged.

        ONNX Runtime itself computes with altered weights, without an error.
        """
        if not path.exists():
            return None
        try:
            sums = parsed_json(read_limited(path / SUMS, LARGEST_JSON))
            verify_files(path, {name: sums[name] for name in (GRAPH, WEIGHTS)})
            # Matrices are then read from the file, not from packed copies, at the same speed.
            options = self.options(disable_prepacking="1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            return OrtEngine(open_session(path / GRAPH, options, PROVIDER, {}), path.name, path / WEIGHTS)
        except (OSError, ValueError, TypeError, KeyError, BundleError) as error:
            self.report(f"{path} is not used, and optimised again: {error}")
            remove(path)
            return None

    def store(self, source: Path, path: Path, named: Path) -> None:
        """Optimise a graph for this processor and write it to the folder ``path``; removes its earlier states.

        ``named`` is what errors call the graph. Raises ``OutputError`` where it cannot be written.
        """
        options = self.options(
            optimized_model_external_initializers_file_name=WEIGHTS,
            optimized_model_external_initializers_min_size_in_bytes="1024",
        )
        with folder_written_whole(path) as folder:
            options.optimized_model_filepath = str(folder / GRAPH)
            try:
                self.open(source, options, named)
            except BundleError as error:  # of a full disk too: ONNX Runtime writes the files
                raise OutputError(f"cannot write {path}: {error}") from error
            (folder / WEIGHTS).touch()  # a graph without large weights leaves none
            sums = {name: sha256(folder / name) for name in (GRAPH, WEIGHTS)}
            (folder / SUMS).write_text(json.dumps(sums), encoding="utf-8")
        remove_earlier(path)

    def load(self, path: Path) -> OrtEngine:
        """Create a session of the graph at ``path``, which may refer to files beside it alone."""
        check_graph(path)
        return self.open(path)

    def open(self, path: Path, options: ort.SessionOptions | None = None, named: Path | None = None) -> OrtEngine:
        """Create a session of a graph that was checked; ``named`` is what errors call it (None: by its path)."""
        return OrtEngine(open_session(path, options or self.options(), PROVIDER, {}, named), path.name)


# -- sessions, as the backend on CUDA opens them too -------------------------------------------------------------------


def session_options(threads: int | None, entries: Mapping[str, str] | None = None) -> ort.SessionOptions:
    """How any session is made and run; ``entries`` are further configuration entries."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Denormals cost hundreds of cycles each and carry nothing at float32.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Weights stored in 8 bits are made floats once, at loading, and not in every run.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Scratch memory is not planned ahead: the plan comes after the first run and doubles what that one took.
    options.enable_mem_pattern = False
    if (pool := pool_size(threads)) is not None:
        options.intra_op_num_threads = pool
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    return options


class Opened(NamedTuple):
    """A session, and its inputs and outputs by name."""

    session: ort.InferenceSession
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def open_session(
    path: Path,
    options: ort.SessionOptions,
    provider: str,
    provider_options: Mapping[str, str],
    named: Path | None = None,
) -> Opened:
    """Open a session on a provider; raises ``BackendError`` if another provider loaded in its place."""
    try:
        session = ort.InferenceSession(
            str(path), options, providers=[provider], provider_options=[dict(provider_options)]
        )
    except Exception as error:  # its exceptions share no base class
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {named or path}: {error}") from error
    if provider not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime loaded {session.get_providers()} where {provider} was asked for: CUDA or cuDNN could "
            f"not be loaded. Use another backend, or install them: {install_command(['onnxruntime-gpu[cuda,cudnn]'])}",
            option="backend",
        )
    inputs, outputs = (
        {node.name: spec_of(node) for node in side} for side in (session.get_inputs(), session.get_outputs())
    )
    return Opened(session, inputs, outputs)


def spec_of(node: ort.NodeArg) -> TensorSpec:
    """ONNX Runtime's description of an input or output as a ``TensorSpec``."""
    if node.type not in DTYPES:
        raise BundleError(f"tensor {node.name!r} is {node.type}; expected one of {sorted(DTYPES)}")
    return TensorSpec(node.name, np.dtype(DTYPES[node.type]), tuple(node.shape))


def check_memory(error: Exception, wanted: str) -> None:
    """Raise ``OutOfMemoryError`` where ONNX Runtime says, in its own words, that memory ran out."""
    raise_if_out_of_memory(error, NO_MEMORY, f"ONNX Runtime has no memory for {wanted}")


# -- this processor ----------------------------------------------------------------------------------------------------


def release_pages(path: Path) -> None:
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
