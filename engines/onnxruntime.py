"""ONNX Runtime, on the CPU or on CUDA through onnxruntime-gpu.

On the CPU a component's graph is kept in the bundle's engine folder as ONNX Runtime optimised it for the processor
here, its weights in float32 and in the order that convolutions read them in. Loading it maps a file: weights are
neither cast nor copied, and stay in the page cache, which all processes share.
"""

import ctypes
import functools
import json
import mmap
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from uid import __version__
from uid.engines.contract import Array, Backend, Buffer, Engine, Launch, TensorSpec, check_bindings
from uid.engines.nvidia_libraries import preload
from uid.engines.storage import default_folder, remove, remove_earlier, short_hash, writing
from uid.errors import BackendError, BundleError, OutOfMemoryError, OutputError
from uid.runtime.bundle import MANIFEST, Bundle, Component, sha256, verify_files
from uid.runtime.files import folder_written_whole

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# CUDA: each run goes on the session's own stream and ends by waiting for it, as each copy does, so nothing is captured.
# TF32 is on by default; without it, float32 is float32.
OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}
# ONNX Runtime's errors have no class for it: its own, the C++ library's and CUDA's words tell.
ONNXRUNTIME = "onnxruntime"  # the library that a component's variant may be for
LARGE = 1 << 28  # bytes of weights from which on filling them in again is little beside computing with them
GRAPH, WEIGHTS, SUMS = "graph.onnx", "weights.bin", "sha256.json"  # of a kept component
NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "out of memory")


class OrtBuffer(Buffer):
    """An ``OrtValue`` on the CPU or on the GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> None:
        self.shape, self.dtype = shape, dtype
        with memory_errors(f"a buffer of {dtype}{list(shape)}"):
            self.value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, device, 0)

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
        self.inputs = {node.name: spec_of(node) for node in session.get_inputs()}
        self.outputs = {node.name: spec_of(node) for node in session.get_outputs()}

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
    """ONNX Runtime on ``device`` ("cpu" or "cuda")."""

    def __init__(self, name: str, device: str, threads: int | None) -> None:
        super().__init__()
        self.name, self.device = name, device
        self.uint8_pixels = device != "cpu"  # a quarter of the bytes over the bus
        self.new_sizes_cost = device != "cpu"  # cuDNN looks for the fastest convolutions at each
        self.threads = threads
        self.keeps = device == "cpu"  # whether what is optimised is kept for the next process

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> OrtBuffer:
        """A new buffer on the backend's device."""
        return OrtBuffer(shape, dtype, self.device)

    def options(self) -> ort.SessionOptions:
        """How sessions are made and run."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Denormals cost hundreds of cycles each and carry nothing at float32.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if self.device == "cpu":
            # Weights stored in 8 bits are made floats once, at loading, and not in every run.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            # Scratch memory is one for all sessions, which run one after another, and is not planned ahead: the plan
            # comes after the first run and doubles what that one took.
            share_scratch_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
            options.enable_mem_pattern = False
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        return options

    def load_component(self, bundle: Bundle, component: Component, sizes: Mapping[str, int]) -> OrtEngine:
        """Load a component; on the CPU as it is kept, which is made when first needed."""
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
        """Create a session; raises ``BackendError`` if the asked-for provider is not the one that loaded."""
        provider = PROVIDERS[self.device]
        try:
            session = ort.InferenceSession(
                str(path), options or self.options(), providers=[provider], provider_options=[OPTIONS[self.device]]
            )
        except Exception as error:  # its exceptions share no base class
            raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error
        if provider not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime loaded {session.get_providers()} where {provider} was asked for: CUDA or cuDNN could "
                "not be loaded. Install them with pip install 'onnxruntime-gpu[cuda,cudnn]', or use another --backend"
            )
        return OrtEngine(session)


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
    return OrtBackend("onnxruntime", "cpu", threads)


def create_cuda(threads: int | None) -> OrtBackend:
    """ONNX Runtime on CUDA; raises ``BackendError`` where this build of onnxruntime has no CUDA provider."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise BackendError(
            "this onnxruntime has no CUDA provider: pip uninstall onnxruntime, then pip install 'uid-runtime[cuda]'"
        )
    preload(ort.cuda_version)
    ort.preload_dlls()
    return OrtBackend("onnxruntime-cuda", "cuda", threads)


@contextmanager
def memory_errors(wanted: str) -> Iterator[None]:
    """Raise ``OutOfMemoryError`` where ONNX Runtime says, in its own ways, that memory ran out."""
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        raise OutOfMemoryError(f"ONNX Runtime has no memory for {wanted}") from error


def value_of(buffer: Buffer) -> ort.OrtValue:
    """The ``OrtValue`` of one of this backend's own buffers."""
    if not isinstance(buffer, OrtBuffer):
        raise TypeError(f"got a {type(buffer).__name__}; buffers must come from this backend's allocate()")
    return buffer.value


def spec_of(node: ort.NodeArg) -> TensorSpec:
    """ONNX Runtime's description of an input or output as a ``TensorSpec``."""
    if node.type not in DTYPES:
        raise BundleError(f"tensor {node.name!r} is {node.type}; expected one of {sorted(DTYPES)}")
    return TensorSpec(node.name, np.dtype(DTYPES[node.type]), tuple(node.shape))
