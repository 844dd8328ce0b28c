"""ONNX Runtime on CUDA. Without a GPU, real sessions on the CPU stand for those on it, and the host's memory for the
GPU's; the log has what the sessions and the stream are given.
"""

import ctypes
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from uid.bundles.declarations import Bundle  # noqa: E402
from uid.bundles.manifest import read_bundle  # noqa: E402
from uid.bundles.tensors import (  # noqa: E402
    Array,
    resolve,
)
from uid.engines import Launch  # noqa: E402
from uid.engines.ort import cuda as onnxruntime_cuda  # noqa: E402
from uid.engines.ort.cpu import Opened, OrtBackend, open_session  # noqa: E402
from uid.engines.ort.cuda import STALE_GRAPHS, OrtCudaBackend  # noqa: E402
from uid.engines.registry import PROBE  # noqa: E402
from uid.errors import BackendError, BundleError, OutOfMemoryError  # noqa: E402
from uid.runtime.pipeline import Options, Pipeline  # noqa: E402

REFUSAL = "FAIL : This session cannot use the graph capture feature as requested by the user as all compute graph nodes"


class HostCuda:
    """Stands for the CUDA runtime. Its memory is the host's; a copy is made at once, where a stream makes it later."""

    def __init__(self, log: list[Any]) -> None:
        self.log, self.handles, self.memory = log, itertools.count(1), {}  # type: ignore[var-annotated]

    def call(self, function: Any, *arguments: Any) -> Any:
        return getattr(self, function.__name__)(*arguments)

    def cudaMalloc(self, nbytes: int) -> int:  # noqa: N802, as CUDA has it, and below
        array = np.zeros(nbytes, np.uint8)
        self.memory[array.ctypes.data] = array
        return int(array.ctypes.data)

    def cudaFree(self, address: int) -> None:  # noqa: N802
        del self.memory[address]

    cudaMallocHost, cudaFreeHost = cudaMalloc, cudaFree  # noqa: N815

    def cudaMemsetAsync(self, address: int, value: int, nbytes: int, stream: int) -> None:  # noqa: N802
        ctypes.memset(address, value, nbytes)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: Any, stream: int) -> None:  # noqa: N802
        self.log.append(kind.name.removeprefix("cudaMemcpy"))
        ctypes.memmove(target, source, nbytes)

    def cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        self.log.append("wait")

    def cudaEventRecord(self, event: int, stream: int) -> None:  # noqa: N802
        self.log.append("mark")

    def cudaEventElapsedTime(self, start: int, end: int) -> float:  # noqa: N802
        return 1000.0 * (end - start)

    def cudaStreamEndCapture(self, stream: int) -> int:  # noqa: N802
        self.log.append("end of capture")
        return 0

    def cudaStreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        return next(self.handles)

    def cudaEventCreate(self) -> int:  # noqa: N802
        return next(self.handles)

    def cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return 1 << 40, 1 << 40

    def cudaGraphDestroy(self, graph: int) -> None: ...  # noqa: N802
    def cudaSetDevice(self, index: int) -> None: ...  # noqa: N802
    def cudaStreamDestroy(self, stream: int) -> None: ...  # noqa: N802
    def cudaEventDestroy(self, event: int) -> None: ...  # noqa: N802


@dataclass(frozen=True)
class Ran:
    """One run of a session: its graph's file, the options it was given, and the thread."""

    file: str
    options: Mapping[str, str]
    thread: int


class HostSession:
    """A real session on the CPU, bound as if it were on the GPU."""

    def __init__(self, rig: "Rig", path: Path, captures: bool, real: ort.InferenceSession) -> None:
        self.rig, self.path, self.captures, self.real = rig, path, captures, real

    def io_binding(self) -> "HostBinding":
        return HostBinding(self.real.io_binding())

    def run_with_iobinding(self, binding: "HostBinding", options: ort.RunOptions) -> None:
        names = ("gpu_graph_id", "disable_synchronize_execution_providers")
        given = {name: options.get_run_config_entry(name) for name in names}
        self.rig.log.append(Ran(self.path.name, given, threading.get_ident()))
        error = self.rig.failing.get(self.path.name, "")
        if error and (self.captures or "capture" not in error):
            raise RuntimeError(error)
        self.real.run_with_iobinding(binding.real, options)


@dataclass(frozen=True)
class HostBinding:
    real: ort.IOBinding

    def bind_input(self, name: str, device: str, *rest: Any) -> None:
        assert device == "cuda"
        self.real.bind_input(name, "cpu", *rest)

    def bind_output(self, name: str, device: str, *rest: Any) -> None:
        assert device == "cuda"
        self.real.bind_output(name, "cpu", *rest)


@dataclass
class Rig:
    """The backend without a GPU."""

    log: list[Any] = field(default_factory=list)
    opened: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)  # files and provider options
    said: list[str] = field(default_factory=list)
    refusing: set[str] = field(default_factory=set)  # files whose sessions cannot capture
    failing: dict[str, str] = field(default_factory=dict)  # files whose runs fail, and how

    def open(
        self, path: Path, options: ort.SessionOptions, provider: str, settings: Mapping[str, str], named: Path
    ) -> Opened:
        self.opened.append((path.name, settings))
        captures = settings["enable_cuda_graph"] == "1"
        if captures and path.name in self.refusing:
            raise BundleError(REFUSAL)
        assert provider == "CUDAExecutionProvider"
        real = open_session(path, options, "CPUExecutionProvider", {})
        return Opened(HostSession(self, path, captures, real.session), real.inputs, real.outputs)

    def backend(self) -> OrtCudaBackend:
        backend = OrtCudaBackend(cuda.Device(0, "none", "9.0", (13, 0)), 1)
        backend.report = self.said.append
        return backend

    def ran(self) -> list[Ran]:
        """The runs so far, which are then forgotten."""
        runs = [entry for entry in self.log if isinstance(entry, Ran)]
        self.log.clear()
        return runs


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig()
    host = HostCuda(rig.log)
    for module in (cuda, onnxruntime_cuda):
        monkeypatch.setattr(module, "call", host.call)
    monkeypatch.setattr(onnxruntime_cuda, "open_session", rig.open)
    return rig


@pytest.fixture
def tiny(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


def photo(height: int, width: int, seed: int = 0) -> Array:
    """A uint8 image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def on_the_cpu(bundle: Bundle, image: Array, options: Options) -> Array:
    """The output of ONNX Runtime's CPU backend for an image."""
    backend = OrtBackend(1)
    backend.caches = False
    return Pipeline(bundle, backend)(image, options).image


# Everywhere


def test_an_image_is_queued_in_one_piece_and_waited_for_once(rig: Rig, tiny: Bundle) -> None:
    pipeline, image, options = Pipeline(tiny, rig.backend()), photo(33, 21), Options(steps=5)
    pipeline(image, options)
    first = rig.ran()
    result = pipeline(image, options)
    whole = [entry.file if isinstance(entry, Ran) else entry for entry in rig.log]
    begin, end = whole.index("mark"), len(whole) - whole[::-1].index("mark")
    copies = ["DeviceToDevice"] * 4  # timestep, both alpha_bar, guidance
    step = [*copies, "step.onnxruntime.onnx"]
    prepare = ["mark", "pixels_in.onnx", "structure.onnx", "encoder.onnx", "mark"]
    assert whole[begin:end] == [*prepare, *(5 * step), "mark", "decoder.onnx", "pixels_out.onnx", "mark"]
    assert whole[end] == "wait"
    assert (result.captured, result.seconds) == (True, {"prepare": 1.0, "step": 1.0, "finish": 1.0})
    assert np.abs(result.image.astype(int) - on_the_cpu(tiny, image, options)).max() == 0
    again = rig.ran()
    assert first == 2 * again  # once to capture
    assert threading.get_ident() not in {run.thread for run in again}


def test_every_second_step_runs_the_same_graph_and_other_images_run_others(rig: Rig, tiny: Bundle) -> None:
    pipeline = Pipeline(tiny, rig.backend())
    seen: dict[str, set[str]] = {}
    for size in ((32, 32), (32, 48), (48, 32), (32, 32)):  # the plan of the last was dropped for that of the third size
        pipeline(photo(*size), Options(steps=6))
        by_file: dict[str, list[str]] = {}
        for run in rig.ran():
            assert run.options["disable_synchronize_execution_providers"] == "1"
            by_file.setdefault(run.file, []).append(run.options["gpu_graph_id"])
        steps = by_file["step.onnxruntime.onnx"]
        assert steps == 6 * steps[:2]  # six to make the plan, six for the image
        for file, numbers in by_file.items():
            assert len(set(numbers)) == (2 if file.startswith("step") else 1)
            assert seen.setdefault(file, set()).isdisjoint(numbers)
            seen[file] |= set(numbers)
    assert "-1" not in set().union(*seen.values())  # with which ONNX Runtime captures nothing


def test_sessions_are_opened_to_capture_on_the_backends_stream(rig: Rig, tiny: Bundle) -> None:
    backend = rig.backend()
    backend.load_component(tiny, tiny.components["decoder"], {})
    stream = str(backend.stream.handle)
    assert rig.opened == [("decoder.onnx", {"user_compute_stream": stream, "enable_cuda_graph": "1", "use_tf32": "0"})]


def test_the_graph_for_this_backend_is_preferred_to_the_librarys(rig: Rig, tiny: Bundle, tmp_path: Path) -> None:
    part = tiny.components["step"]
    for variants in ({**part.variants, "onnxruntime-cuda": part.file}, part.variants, {}):
        rig.backend().load_component(tiny, replace(part, variants=variants), {})
    assert [file for file, _ in rig.opened] == ["step.onnx", "step.onnxruntime.onnx", "step.onnx"]


@pytest.mark.parametrize("when", ["at once", "in the first run"])
def test_a_session_that_cannot_be_captured_runs_without_a_graph(rig: Rig, tiny: Bundle, when: str) -> None:
    if when == "at once":
        rig.refusing.add("structure.onnx")
    else:
        rig.failing["structure.onnx"] = "CUDA failure 901: operation failed due to a previous error during capture"
    pipeline, image, options = Pipeline(tiny, rig.backend()), photo(32, 32), Options(steps=3)
    result = pipeline(image, options)
    (line,) = rig.said
    assert line.startswith("structure.onnx runs without a CUDA graph, since capturing it failed: ")
    assert not result.captured
    assert rig.log.count("end of capture") == (when != "at once")
    tried = [settings["enable_cuda_graph"] for file, settings in rig.opened if file == "structure.onnx"]
    assert tried == ["1", "0"]
    np.testing.assert_array_equal(result.image, on_the_cpu(tiny, image, options))
    assert pipeline(image, options).captured is False


def test_a_failed_run_names_the_graph_and_memory_has_an_error_of_its_own(rig: Rig, tiny: Bundle) -> None:
    rig.failing["decoder.onnx"] = "cuDNN failure 9"
    pipeline, image, options = Pipeline(tiny, rig.backend()), photo(32, 32), Options(steps=2)
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot run decoder\.onnx: cuDNN failure 9"):
        pipeline(image, options)
    rig.failing["decoder.onnx"] = "Failed to allocate memory for requested buffer of size 7"
    with pytest.raises(OutOfMemoryError, match=r"no memory for decoder\.onnx at this size"):
        Pipeline(tiny, rig.backend())(image, options)


def test_a_session_with_many_graphs_of_dropped_plans_is_replaced(rig: Rig, tiny: Bundle) -> None:
    backend, part = rig.backend(), tiny.components["decoder"]
    engine, sizes = backend.load_component(tiny, part, {}), {"height": 16, "width": 16}

    def launch() -> Launch:
        specs = (*part.inputs, *part.outputs)
        return engine.bind({spec.name: backend.allocate(resolve(spec.shape, sizes), spec.dtype) for spec in specs})

    first = launch()
    for _ in range(STALE_GRAPHS):
        launch()
    assert len(rig.opened) == 1
    launch()
    assert len(rig.opened) == 2
    first()
    assert [run.options["gpu_graph_id"] for run in rig.ran()] == ["1"]


def test_buffers_of_other_backends_are_refused(rig: Rig) -> None:
    engine = rig.backend().load(PROBE)
    x = OrtBackend(1).allocate((1,), np.dtype(np.float32))
    with pytest.raises(TypeError, match="got a OrtBuffer"):
        engine.bind({"x": x, "y": x})


# On a GPU
