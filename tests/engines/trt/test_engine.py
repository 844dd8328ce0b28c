"""Contexts, scratch memory, launches and captures; the library keeps to TensorRT's rules and computes nothing."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")
cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from cuda.bindings import runtime as cudart  # noqa: E402, after the skips

from uid.engines import OneByOne, Work  # noqa: E402
from uid.engines.registry import PROBE  # noqa: E402
from uid.engines.trt import engine as tensorrt_engine  # noqa: E402
from uid.engines.trt.backend import TensorrtBackend, make_runtime  # noqa: E402
from uid.engines.trt.build import BuildOptions, build, make_builder, parse  # noqa: E402
from uid.engines.trt.engine import Scratch, Shared, TensorrtEngine  # noqa: E402
from uid.engines.trt.library import Library, open_library  # noqa: E402
from uid.engines.trt.profiles import Target  # noqa: E402
from uid.errors import BackendError, OutOfMemoryError  # noqa: E402
from uid.runtime.pixels import GRAPHS, PIXELS_IN  # noqa: E402

AHEAD = Target.ahead(["8.9"])
HAS_DRIVER = cuda.call(cudart.cudaDriverGetVersion) != 0
no_driver = pytest.mark.skipif(HAS_DRIVER, reason="there is an NVIDIA driver")
Log = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library("tensorrt-rtx")


# Which engine is used


class Pretended:
    """Stands for an object of the library's: logs the calls, and has no name that the real class lacks."""

    def __init__(self, real: type, log: Log, **results: Any) -> None:
        self.__dict__.update(_real=real, _log=log, _results=results)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._real, name):
            raise AttributeError(f"{self._real.__name__} has no {name!r}")
        result = self._results.get(name, lambda *arguments: True)
        if not callable(result):
            return result

        def call(*arguments: Any) -> Any:
            self._log.append((name, *arguments))
            return result(*arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        assert hasattr(self._real, name), f"{self._real.__name__} has no {name!r}"
        self._log.append((name, value))


class PretendedStream:
    handle = 7

    def __init__(self) -> None:
        self.capturing = False

    def synchronize(self) -> None:
        assert not self.capturing

    @contextmanager
    def capture(self) -> Iterator["PretendedStream"]:
        self.capturing = True
        try:
            yield self
        finally:
            self.capturing = False

    def launch(self, stream: object) -> None:
        """As a graph that was captured."""

    def event(self) -> "PretendedStream":
        return self

    def record_in_graph(self, stream: object) -> None:
        assert self.capturing


class PretendedMemory:
    handle = 4096

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


class PretendedShared(Shared):
    def captures(self) -> bool:
        return bool(self.stream.capturing)  # type: ignore[attr-defined]


class PretendedBuffer(cuda.CudaBuffer):  # type: ignore[misc,name-defined]
    address = 0

    def __init__(self, shape: tuple[int, ...], address: int) -> None:
        self.shape, self.dtype, self.address = shape, np.dtype(np.float32), address


@dataclass
class Rig:
    """A backend and engines y(1, h) of x(1, h) on a pretended GPU; h is 4 to 16, best at 8, or 12 to 32, best at 16."""

    library: Library
    log: Log = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)  # of the pretended objects' methods
    scratch: Scratch = field(default_factory=Scratch)

    def __post_init__(self) -> None:
        self.stream = PretendedStream()
        self.shared = PretendedShared(self.library, self.stream, self.scratch)  # type: ignore[arg-type]
        self.backend = TensorrtBackend.__new__(TensorrtBackend)
        self.backend.__dict__.update(stream=self.stream, shared=self.shared, engines=weakref.WeakSet())

    def context(self, *arguments: Any) -> Pretended:
        shape: list[Any] = []
        results = {
            "set_input_shape": lambda name, wanted: shape.append(wanted) is None,  # type: ignore[func-returns-value]
            "get_tensor_shape": lambda name: shape[-1],
            "infer_shapes": list,
            "update_device_memory_size_for_shapes": lambda: 100 * shape[-1][1],
        }
        return Pretended(trt.IExecutionContext, self.log, **{**results, **self.results})

    def engine(self, kernels: Path | None = None) -> TensorrtEngine:
        limits = [[(1, 4), (1, 8), (1, 16)], [(1, 12), (1, 16), (1, 32)]]
        compiled = Pretended(trt.IRuntimeCache, self.log, **{"serialize": lambda: b"kernels", **self.results})
        results = {"create_runtime_cache": lambda: compiled, **self.results}
        config = Pretended(trt.IRuntimeConfig, self.log, **results)
        results = {"create_runtime_config": lambda: config, **self.results}
        handle = Pretended(
            trt.ICudaEngine,
            self.log,
            **results,
            num_io_tensors=2,
            num_optimization_profiles=2,
            get_tensor_name=lambda index: "xy"[index],
            get_tensor_dtype=lambda name: trt.float32,
            get_tensor_mode=lambda name: {"x": trt.TensorIOMode.INPUT, "y": trt.TensorIOMode.OUTPUT}[name],
            get_tensor_shape=lambda name: (1, -1),
            get_tensor_profile_shape=lambda name, index: limits[index],
            create_execution_context=self.context,
        )
        engine = TensorrtEngine("component 'step'", handle, self.shared, kernels=kernels)
        self.backend.engines.add(engine)
        return engine

    def taken(self) -> list[str]:
        """Names of the calls since the last time, without repetitions, leaving out questions about the engine."""
        names = [name for name, *_ in self.log if not name.startswith("get_")]
        self.log.clear()
        return [name for name, _ in groupby(names)]


@pytest.fixture
def rig(library: Library, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(tensorrt_engine, "DeviceMemory", PretendedMemory)
    return Rig(library)


def pair(size: int, first: int = 1) -> dict[str, Any]:
    """Buffers for x and y."""
    return {"x": PretendedBuffer((1, size), first), "y": PretendedBuffer((1, size), first + 1)}


def test_a_context_is_set_up_once_and_given_addresses_at_each_launch(rig: Rig) -> None:
    engine = rig.engine()
    rig.log.clear()
    even, odd = engine.bind(pair(8, 10)), engine.bind(pair(8, 20))
    assert ("set_optimization_profile_async", 0, 7) in rig.log
    assert rig.taken() == [
        "create_execution_context",
        "set_optimization_profile_async",
        "set_input_shape",
        "infer_shapes",
        "update_device_memory_size_for_shapes",
    ]
    even()
    assert [entry for entry in rig.log if entry[0] == "set_device_memory"] == [("set_device_memory", 4096, 800)]
    assert rig.taken() == ["set_tensor_address", "set_device_memory", "is_stream_capturable", "execute_async_v3"]
    odd()
    addresses = [("set_tensor_address", "x", 20), ("set_tensor_address", "y", 21)]
    assert rig.log == [*addresses, ("execute_async_v3", 7)]


def test_the_profile_of_the_nearest_optimum_is_selected(rig: Rig) -> None:
    engine = rig.engine()
    for size, profile in [(4, 0), (8, 0), (12, 1), (16, 1), (32, 1)]:
        engine.bind(pair(size))
        assert ("set_optimization_profile_async", profile, 7) in rig.log, size
        rig.log.clear()
    with pytest.raises(BackendError, match=r"engine of component 'step' does not cover x \[1, 33\]; use smaller tiles"):
        engine.bind(pair(33))


def test_contexts_share_the_largest_scratch_memory_and_free_it_together(rig: Rig) -> None:
    small, large = rig.engine().bind(pair(8)), rig.engine().bind(pair(32))
    small(), large()
    given = [entry[1:] for entry in rig.log if entry[0] == "set_device_memory"]
    assert given == [(4096, 3200), (4096, 3200)]
    assert small.context.memory is large.context.memory  # type: ignore[attr-defined]
    del large
    gc.collect()
    assert rig.scratch.newest() is small.context.memory  # type: ignore[attr-defined]
    del small
    gc.collect()
    assert rig.scratch.newest() is None
    third = rig.engine().bind(pair(4))
    third()
    assert ("set_device_memory", 4096, 400) in rig.log


def test_a_bound_context_never_loses_its_memory(rig: Rig) -> None:
    """A captured graph has its address."""
    first = rig.engine().bind(pair(8))
    first()
    before = first.context.memory  # type: ignore[attr-defined]
    larger = rig.engine().bind(pair(32))
    larger(), first()
    assert first.context.memory is before  # type: ignore[attr-defined]
    assert larger.context.memory.nbytes == 3200  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("set_input_shape", lambda *_: False, r"refuses the shape of 'x' of component 'step' at x \[1, 8\]: told"),
        ("infer_shapes", lambda: ["x"], r"cannot infer the shapes of component 'step' at x \[1, 8\]: told"),
        ("set_tensor_address", lambda *_: False, r"refuses the buffer of 'x' of component 'step' at x \[1, 8\]: told"),
        ("update_device_memory_size_for_shapes", lambda: 0, r"cannot tell the scratch memory of component 'step' at"),
        ("update_device_memory_size_for_shapes", lambda: 800, r"cannot tell the scratch .*x \[1, 8\]: told"),
        ("execute_async_v3", lambda *_: False, r"cannot run component 'step' at x \[1, 8\]: told"),
    ],
)
def test_a_refusal_of_the_library_is_reported_in_its_words(rig: Rig, method: str, result: Any, message: str) -> None:
    def refuse(*arguments: Any) -> Any:
        rig.library.logger.errors.append("told")
        return result(*arguments)

    rig.results[method] = refuse
    with pytest.raises(BackendError, match=message):
        rig.engine().bind(pair(8))()


def test_an_engine_that_needs_no_scratch_memory_runs(rig: Rig) -> None:
    rig.results["update_device_memory_size_for_shapes"] = lambda: 0
    rig.engine().bind(pair(8))()
    assert ("set_device_memory", 4096, 1) in rig.log


def test_running_out_of_memory_is_an_error_of_its_own(rig: Rig) -> None:
    def refuse(*arguments: Any) -> None:
        rig.library.logger.errors.append("Error Code 2: OutOfMemory (Requested size was 69 bytes.)")

    rig.results["execute_async_v3"] = refuse
    with pytest.raises(OutOfMemoryError, match="Requested size was 69"):
        rig.engine().bind(pair(8))()


def test_an_output_of_another_size_is_refused(rig: Rig) -> None:
    buffers = {"x": PretendedBuffer((1, 8), 1), "y": PretendedBuffer((1, 9), 2)}
    with pytest.raises(BackendError, match=r"writes 'y' as \[1, 8\]; its buffer is \[1, 9\]"):
        rig.engine().bind(buffers)


def test_work_that_cannot_be_captured_runs_one_by_one_and_is_reported(rig: Rig) -> None:
    lines: list[str] = []
    rig.backend.report = lines.append
    rig.results["is_stream_capturable"] = lambda stream: False
    replay = rig.backend.capture(Work([], [rig.engine().bind(pair(8))] * 3, []))
    assert isinstance(replay, OneByOne)
    assert "cannot capture component 'step' at x [1, 8] in a CUDA graph: it runs launch by launch" in lines[0]
    assert not rig.stream.capturing
    rig.log.clear()
    replay(lambda done: rig.log.append((f"progress {done}",)))
    ran = [name for name, *_ in rig.log if name != "set_tensor_address"]
    assert ran == [name for done in (1, 2, 3) for name in ("execute_async_v3", f"progress {done}")]


def test_work_is_captured_and_its_kernels_are_stored(rig: Rig, tmp_path: Path) -> None:
    kernels = tmp_path / "step.kernels"
    launch = rig.engine(kernels).bind(pair(8))
    assert not isinstance(rig.backend.capture(Work([], [launch], [])), OneByOne)
    assert kernels.read_bytes() == b"kernels"
    kernels.unlink()
    rig.backend.capture(Work([], [launch], []))
    assert not kernels.exists()  # there are no new ones
    lines: list[str] = []
    rig.backend.report = lines.append
    (tmp_path / "file").touch()
    rig.backend.capture(Work([], [rig.engine(tmp_path / "file" / "step.kernels").bind(pair(8))], []))
    assert lines[0].startswith("kernels will be compiled again in the next process: cannot write")


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_in_a_capture(rig: Rig, enabled: bool) -> None:
    collections: list[bool] = []  # whether the stream was capturing

    def note(phase: str, info: object) -> None:
        collections.append(rig.stream.capturing)

    def launch() -> None:
        for _ in range(100_000):  # many times what starts a collection
            cycle: list[Any] = []
            cycle.append(cycle)

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    gc.callbacks.append(note)
    try:
        cuda.GraphReplay(Work([], [launch], []), rig.stream)
        assert collections
        assert not any(collections)
        assert gc.isenabled() == enabled
        collections.clear()
        with pytest.raises(ZeroDivisionError):
            cuda.GraphReplay(Work([], [lambda: 1 / int(not rig.stream.capturing)], []), rig.stream)  # type: ignore[list-item,func-returns-value]
        assert gc.isenabled() == enabled
    finally:
        gc.callbacks.remove(note)
        (gc.enable if before else gc.disable)()


def test_rtx_compiles_at_once_and_leaves_memory_and_graphs_to_the_caller(rig: Rig, tmp_path: Path) -> None:
    kernels = tmp_path / "step.kernels"
    kernels.write_bytes(b"old")
    engine = rig.engine(kernels)
    assert [entry for entry in rig.log if not entry[0].startswith("get_")] == [
        ("create_runtime_config",),
        ("set_execution_context_allocation_strategy", trt.ExecutionContextAllocationStrategy.USER_MANAGED),
        ("dynamic_shapes_kernel_specialization_strategy", trt.DynamicShapesKernelSpecializationStrategy.EAGER),
        ("cuda_graph_strategy", trt.CudaGraphStrategy.DISABLED),
        ("create_runtime_cache",),
        ("deserialize", b"old"),
        ("set_runtime_cache", engine.compiled),
    ]
    engine.bind(pair(8))
    assert ("create_execution_context", engine.config) in rig.log


def nothing(*arguments: Any) -> None:
    """A call whose object the library could not make."""


def no_constructor(*arguments: Any) -> None:
    raise TypeError("pybind11::init(): factory function returned nullptr")


@pytest.mark.parametrize("name", ["Runtime", "OnnxParser"])
def test_a_constructor_that_gives_nothing_raises_a_backend_error(
    library: Library, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trt, name, no_constructor)
    library.logger.errors.append("an earlier one")
    with pytest.raises(BackendError, match=r"^tensorrt-rtx [\d.]+ cannot make a (runtime|parser): it gave no reason$"):
        make_runtime(library) if name == "Runtime" else parse(library, make_builder(library), PROBE)


@pytest.mark.parametrize("method", ["create_network", "create_builder_config", "create_optimization_profile"])
def test_a_builder_method_that_gives_nothing_raises_a_backend_error(
    library: Library, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def refuse(*arguments: Any) -> None:
        library.logger.errors.append("told")

    monkeypatch.setattr(trt.Builder, method, refuse)
    shapes = {"image_pixels": ((1, 3, 1, 1), (1, 3, 8, 8), (1, 3, 16, 16))}
    with pytest.raises(BackendError, match=r"cannot make (a network|settings for a build|an optimisation pro.*): told"):
        build(library, GRAPHS / PIXELS_IN.file, [shapes], AHEAD, BuildOptions())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("create_runtime_config", "cannot make settings to run component 'step': it gave no reason"),
        ("create_runtime_cache", "cannot make a cache for the kernels of component 'step'"),
        ("set_runtime_cache", "refuses its own cache for the kernels of component 'step'"),
    ],
)
def test_an_engine_method_that_gives_nothing_raises_a_backend_error(rig: Rig, method: str, message: str) -> None:
    rig.results[method] = nothing
    with pytest.raises(BackendError, match=message):
        rig.engine()


def test_an_image_runs_where_the_library_does_not_give_its_kernels(rig: Rig, tmp_path: Path) -> None:
    lines: list[str] = []
    rig.backend.report, rig.results["serialize"] = lines.append, nothing
    rig.backend.capture(Work([], [rig.engine(tmp_path / "step.kernels").bind(pair(8))], []))
    assert "cannot make a file of the kernels of component 'step': it gave no reason" in lines[0]
    assert lines[0].startswith("kernels will be compiled again in the next process: ")


def test_tensorrt_has_no_runtime_config(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(replace(library, name="tensorrt"))
    rig.engine().bind(pair(8))
    names = [entry for entry in rig.log if entry[0].startswith("create_")]
    assert names == [("create_execution_context", trt.ExecutionContextAllocationStrategy.USER_MANAGED)]


# On a GPU
