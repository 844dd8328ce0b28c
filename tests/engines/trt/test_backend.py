"""TensorRT-RTX as a backend. Choosing and building engines is real everywhere; without a GPU, a pretended engine logs
the calls that it gets, and refuses those that the real one has no name for.
"""

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")
cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from cuda.bindings import runtime as cudart  # noqa: E402, after the skips

from uid import engines  # noqa: E402
from uid.bundles.cache import default_folder  # noqa: E402
from uid.bundles.manifest import Bundle, Component, built_in, read_bundle  # noqa: E402
from uid.bundles.tensors import (  # noqa: E402
    Array,
    resolve,
)
from uid.engines import Backend, OneByOne, Work  # noqa: E402
from uid.engines.registry import PROBE  # noqa: E402
from uid.engines.trt import backend as tensorrt_backend  # noqa: E402
from uid.engines.trt import engine as tensorrt_engine  # noqa: E402
from uid.engines.trt.backend import TensorrtBackend, engine_path, make_runtime, profile_for  # noqa: E402
from uid.engines.trt.build import BuildOptions, build, make_builder, parse  # noqa: E402
from uid.engines.trt.cache import engine_for  # noqa: E402
from uid.engines.trt.engine import Scratch, Shared, TensorrtEngine  # noqa: E402
from uid.engines.trt.library import Library, open_library  # noqa: E402
from uid.engines.trt.profiles import Profile, Range, Target, square  # noqa: E402
from uid.errors import BackendError, OutOfMemoryError  # noqa: E402
from uid.runtime.app.cli import doctor, run  # noqa: E402
from uid.runtime.pipeline import Options, Pipeline  # noqa: E402
from uid.runtime.pixels import GRAPHS, PIXELS_IN, PIXELS_OUT  # noqa: E402

AHEAD = Target.ahead(["8.9"])
HAS_DRIVER = cuda.call(cudart.cudaDriverGetVersion) != 0
no_driver = pytest.mark.skipif(HAS_DRIVER, reason="there is an NVIDIA driver")
Log = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library("tensorrt-rtx")


# Which engine is used


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The built-in bundle, with an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return read_bundle(built_in())


@pytest.fixture
def pick(bundle: Bundle, library: Library) -> Callable[..., tuple[Path, list[str]]]:
    """The engine for a component at a size, and what was reported meanwhile."""

    def pick(component: str, height: int, width: int, **blur: int) -> tuple[Path, list[str]]:
        lines: list[str] = []
        sizes = {"height": height, "width": width, **blur}
        path, _, _ = engine_path(bundle, bundle.components[component], library, AHEAD, sizes, lines.append)
        return path, lines

    return pick


def test_a_size_is_built_once_and_then_reused(pick: Any, bundle: Bundle) -> None:
    path, lines = pick("decoder", 64, 128)
    assert path.parent == default_folder(bundle, "tensorrt-rtx")
    assert lines[0].startswith("decoder: building with tensorrt-rtx")
    assert pick("decoder", 64, 128) == (path, [])
    other, lines = pick("decoder", 128, 64)
    assert other != path
    assert "building" in lines[0]
    assert pick("decoder", 64, 128) == (path, [])


def test_the_engine_with_the_nearest_optimum_is_used(pick: Any, bundle: Bundle, library: Library) -> None:
    def prebuilt(*profiles: Profile) -> Path:
        part = bundle.components["decoder"]
        return engine_for(bundle, part, library, AHEAD, profiles, report=lambda line: None)

    wide = prebuilt(square(256))
    assert pick("decoder", 128, 192) == (wide, [])
    near = prebuilt(Profile("near", Range(64, 128, 256), Range(64, 192, 256)))
    assert pick("decoder", 128, 192) == (near, [])
    assert pick("decoder", 256, 256) == (wide, [])


def test_only_the_sizes_that_a_component_reads_matter(pick: Any) -> None:
    blur = {"blur_height": 40, "blur_width": 50}
    path, _ = pick("blur", 64, 64, **blur)
    assert pick("blur", 192, 64, **blur) == (path, [])
    long, lines = pick("blur", 64, 64, blur_height=40, blur_width=5000)
    assert long != path
    assert "building" in lines[0]
    assert pick("blur", 64, 128, blur_height=40, blur_width=4999) == (long, [])


def test_no_engine_is_built_for_a_batch_alone(tiny_bundle: Path, library: Library, tmp_path: Path) -> None:
    """The batch is the largest that the cached engines cover; where none covers the size, one is built anyway."""
    bundle = read_bundle(Path(shutil.copytree(tiny_bundle, tmp_path / "tiny")))
    backend = TensorrtBackend.__new__(TensorrtBackend)
    backend.library = library
    parts = [bundle.components[name] for name in ("encoder", "decoder")]

    def batch(side: int) -> int:
        return backend.batch(bundle, parts, {"height": side, "width": side}, 4)

    assert batch(16) == 4
    for part, most in zip(parts, (3, 2), strict=True):
        profile = replace(square(16).rounded(bundle.size_multiple), batch=Range(1, 1, most))
        engine_for(bundle, part, library, AHEAD, [profile], report=lambda line: None)
    assert (batch(16), batch(32)) == (2, 4)


def test_a_damaged_engine_is_built_again_and_reported(pick: Any) -> None:
    path, _ = pick("blur", 64, 64, blur_height=16, blur_width=16)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again, lines = pick("blur", 64, 64, blur_height=16, blur_width=16)
    assert again == path
    assert lines[0] == f"blur: {path.name} is not used, since it has {len(whole) - 1} bytes, expected {len(whole)}"
    path.with_suffix(".json").write_text("{}")
    assert "building" in pick("blur", 64, 64, blur_height=16, blur_width=16)[1][0]


def test_a_build_that_runs_out_of_memory_has_an_error_of_its_own(pick: Any) -> None:
    """So tile="auto" can halve its tiles."""
    with pytest.raises(OutOfMemoryError, match=r"cannot build step\.onnx .*OutOfMemory \(Requested size was"):
        pick("step", 8192, 8192)
    assert pick("decoder", 64, 64)[0].is_file()


# Errors where nothing can run


@no_driver
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_driver_a_backend_says_so(name: str) -> None:
    with pytest.raises(BackendError, match="no NVIDIA driver here; CUDA needs an NVIDIA GPU and its driver"):
        tensorrt_backend.create(name)


def test_without_a_gpu_a_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ok, version = cudart.cudaError_t.cudaSuccess, cuda.call(cudart.cudaRuntimeGetVersion)
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (ok, version))

    def cudaGetDeviceCount() -> tuple[object, int]:  # noqa: N802, as CUDA has it
        return cudart.cudaError_t.cudaErrorNoDevice, 0

    monkeypatch.setattr(cudart, "cudaGetDeviceCount", cudaGetDeviceCount)
    with pytest.raises(BackendError, match=r"cudaErrorNoDevice: no CUDA-capable device is detected"):
        tensorrt_backend.create("tensorrt-rtx")


@no_driver
def test_the_command_lines_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"")
    words = [str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--backend"]
    result = CliRunner().invoke(run, [*words, "tensorrt-rtx"])
    assert (result.exit_code, "no NVIDIA driver here" in result.output) == (2, True), result.output
    told = CliRunner().invoke(doctor).output
    assert "missing  backend tensorrt-rtx: no NVIDIA driver here" in told
    if not engines.installed(engines.BACKENDS["tensorrt"]):
        assert "missing  backend tensorrt: backend tensorrt is not installed: pip install 'uid-runtime[tens" in told
        result = CliRunner().invoke(run, [*words, "tensorrt"])
        assert "pip install 'uid-runtime[tensorrt]'; needs an NVIDIA GPU" in result.output


@no_driver
def test_an_engine_that_does_not_load_is_reported_in_the_librarys_words(library: Library, bundle: Bundle) -> None:
    backend = TensorrtBackend.__new__(TensorrtBackend)
    here = Target("NVIDIA L4", "8.9", "13.0")
    backend.library, backend.target, backend.runtime = library, here, trt.Runtime(library.logger)
    message = r"cannot load the engine of %s on NVIDIA L4 .*8\.9.*: .*CUDA driver version is insufficient"
    with pytest.raises(BackendError, match=message % "component 'decoder'"):
        backend.load_component(bundle, bundle.components["decoder"], {"height": 64, "width": 64})
    for path in (GRAPHS / PIXELS_IN.file, GRAPHS / PIXELS_OUT.file, PROBE):
        with pytest.raises(BackendError, match=message % path.name):
            backend.load(path)


# The calls that an engine gets


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

GPU_BACKENDS = ["tensorrt", "tensorrt-rtx"]


@pytest.fixture(params=GPU_BACKENDS, scope="module")
def gpu(request: pytest.FixtureRequest) -> Backend:
    """A backend that works on the GPU here."""
    status = engines.probe(request.param)
    if not status.available:
        pytest.skip(status.detail)
    return engines.create(request.param)


@pytest.fixture(scope="module")
def tiny(gpu: Backend, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle, in a folder that takes its engines; exported only where there is a backend to run it."""
    source = request.getfixturevalue("tiny_bundle")
    return read_bundle(Path(shutil.copytree(source, tmp_path_factory.mktemp("gpu") / "tiny")))


def photo(height: int, width: int, seed: int = 0) -> Array:
    """A uint8 image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sizes_of(bundle: Bundle) -> dict[str, int]:
    side = 4 * bundle.size_multiple
    return {"height": side, "width": 2 * side, "blur_height": 40, "blur_width": 56}


def outputs(backend: Backend, bundle: Bundle, component: Component, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a component writes for these inputs."""
    sizes = sizes_of(bundle)
    engine = backend.load_component(bundle, component, sizes)
    specs = (*component.inputs, *component.outputs)
    buffers = {spec.name: backend.allocate(resolve(spec.shape, sizes), spec.dtype) for spec in specs}
    for name, value in inputs.items():
        buffers[name].write(value)
    engine.bind(buffers)()
    return {spec.name: buffers[spec.name].read() for spec in component.outputs}


@pytest.mark.gpu
def test_every_component_agrees_with_onnxruntime(gpu: Backend, tiny: Bundle) -> None:
    generator, cpu = np.random.default_rng(0), engines.create("onnxruntime", threads=1)
    for component in tiny.components.values():
        inputs = {
            spec.name: generator.random(resolve(spec.shape, sizes_of(tiny)), np.float32).astype(spec.dtype)
            for spec in component.inputs
        }
        expected = outputs(cpu, tiny, component, inputs)
        for name, value in outputs(gpu, tiny, component, inputs).items():
            error = np.abs(value - expected[name]).max() / np.abs(expected[name]).max()
            assert error < 1e-4, (component.name, name, error)


@pytest.mark.gpu
def test_a_stripped_engine_is_smaller_and_gets_its_weights_from_the_bundle(gpu: Backend, tiny: Bundle) -> None:
    if gpu.name != "tensorrt":
        pytest.skip("only tensorrt strips engines")
    assert isinstance(gpu, TensorrtBackend)
    component, sizes = tiny.components["encoder"], sizes_of(tiny)
    inputs = {spec.name: np.full(resolve(spec.shape, sizes), 0.5, spec.dtype) for spec in component.inputs}
    whole, (folder,) = outputs(gpu, tiny, component, inputs), tiny.folder.glob("engines/tensorrt")
    (engine,) = folder.glob("encoder-*.engine")
    size = engine.stat().st_size
    engine.unlink()
    profiles = (profile_for(sizes),)
    stripped = engine_for(tiny, component, gpu.library, gpu.target, profiles, BuildOptions(stripped=True))
    assert stripped.stat().st_size < size
    for name, value in outputs(gpu, tiny, component, inputs).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["deblur", "blur-transfer"])
def test_the_image_agrees_with_onnxruntime(gpu: Backend, tiny: Bundle, mode: str) -> None:
    image, blur = photo(45, 61), photo(40, 56, seed=1) if mode == "blur-transfer" else None
    options = Options(mode=mode, steps=30)
    expected = Pipeline(tiny, engines.create("onnxruntime", threads=1))(image, options, blur_image=blur).image
    result = Pipeline(tiny, gpu)(image, options, blur_image=blur)
    assert (result.backend, result.captured) == (gpu.name, True)
    assert np.abs(result.image.astype(int) - expected).max() <= 1


@pytest.mark.gpu
def test_every_replay_agrees_with_the_launches(gpu: Backend, tiny: Bundle) -> None:
    image, options = photo(64, 48), Options(steps=6)
    pipeline = Pipeline(tiny, gpu)
    replayed = [pipeline(image, options).image for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "capture", OneByOne)
        eager = Pipeline(tiny, gpu)(image, options)
    assert not eager.captured
    for output in replayed:
        np.testing.assert_array_equal(output, eager.image)


@pytest.mark.gpu
def test_two_alternating_sizes_do_not_disturb_each_other(gpu: Backend, tiny: Bundle) -> None:
    images, options = [photo(64, 48), photo(48, 80)], Options(steps=3)
    alone = [Pipeline(tiny, gpu)(image, options).image for image in images]
    pipeline = Pipeline(tiny, gpu)
    for _ in range(3):
        for image, expected in zip(images, alone, strict=True):
            np.testing.assert_array_equal(pipeline(image, options).image, expected)


@pytest.mark.gpu
def test_memory_does_not_grow_over_200_images(gpu: Backend, tiny: Bundle) -> None:
    device, pipeline = cuda.Device.find(), Pipeline(tiny, gpu)
    sizes = [(64, 48), (48, 80)]  # which two cached plans serve
    for height, width in sizes:
        pipeline(photo(height, width), Options(steps=2))
    before = device.memory()[0]
    for i in range(200):
        pipeline(photo(*sizes[i % 2], seed=i), Options(steps=2))
    assert device.memory()[0] >= before - (1 << 20)


@pytest.mark.gpu
def test_running_out_of_memory_is_reported_and_leaves_the_backend_usable(gpu: Backend, tiny: Bundle) -> None:
    image, options = photo(128, 128), Options(steps=2)
    expected = Pipeline(tiny, gpu)(image, options).image  # and its engines are built
    gc.collect()
    with ExitStack() as taken:
        for chunk in (1 << 30, 1 << 24, 1 << 20):
            with suppress(OutOfMemoryError):
                while True:
                    taken.enter_context(cuda.DeviceMemory(chunk))
        with pytest.raises(OutOfMemoryError, match="use tiles of fewer pixels, or 'auto'"):
            Pipeline(tiny, gpu)(image, options)
    np.testing.assert_array_equal(Pipeline(tiny, gpu)(image, options).image, expected)


@pytest.mark.gpu
def test_auto_tiles_fit_into_the_memory_that_is_left(gpu: Backend, tiny: Bundle) -> None:
    bundle, image, device = replace(tiny, tile=256), photo(256, 256), cuda.Device.find()

    def needed(tile: int) -> int:
        """Bytes that a pipeline holds after an image in tiles of this side; its engines are built then."""
        gc.collect()
        before, pipeline = device.memory()[0], Pipeline(bundle, gpu)
        assert (pipeline(image, Options(steps=2, tile=tile)).tile is None) == (tile == 256)
        return int(before - device.memory()[0])

    for tile in (256, 128):
        needed(tile)
    whole, tiles = needed(256), needed(128)
    if whole - tiles < 64 << 20:
        pytest.skip(f"whole it takes {whole} bytes, in tiles {tiles}: too near to tell apart")
    gc.collect()
    with cuda.DeviceMemory(device.memory()[0] - (whole + tiles) // 2):
        result = Pipeline(bundle, gpu)(image, Options(steps=2, tile="auto"))
    assert result.tile is not None
    assert result.tile < 256
