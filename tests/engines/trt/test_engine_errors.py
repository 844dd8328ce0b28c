"""What the library refuses, or gives nothing for, is reported as an error in the library's words."""

from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import FakeBuffer, Rig, pair, trt

from uid.engines import Work
from uid.engines.registry import PROBE
from uid.engines.trt.backend import make_runtime
from uid.engines.trt.build import BuildOptions, build, make_builder, parse
from uid.engines.trt.library import Library
from uid.engines.trt.profiles import Target
from uid.errors import BackendError, OutOfMemoryError
from uid.runtime.pixels import GRAPHS, PIXELS_IN

TARGET = Target.ahead(["8.9"])


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("set_input_shape", lambda *_: False, r"refuses the shape of 'x' of component 'step' at x \[1, 8\]: busy"),
        ("infer_shapes", lambda: ["x"], r"cannot infer the shapes of component 'step' at x \[1, 8\]: busy"),
        ("set_tensor_address", lambda *_: False, r"refuses the buffer of 'x' of component 'step' at x \[1, 8\]: busy"),
        ("update_device_memory_size_for_shapes", lambda: 0, r"cannot tell the scratch memory of component 'step' at"),
        ("update_device_memory_size_for_shapes", lambda: 800, r"cannot tell the scratch .*x \[1, 8\]: busy"),
        ("execute_async_v3", lambda *_: False, r"cannot run component 'step' at x \[1, 8\]: busy"),
    ],
)
def test_a_refusal_of_the_library_is_reported_in_its_words(rig: Rig, method: str, result: Any, message: str) -> None:
    def refuse(*arguments: Any) -> Any:
        rig.library.logger.errors.append("busy")
        return result(*arguments)

    rig.results[method] = refuse
    with pytest.raises(BackendError, match=message):
        rig.engine().bind(pair(8))()


def test_running_out_of_memory_is_an_error_of_its_own(rig: Rig) -> None:
    def refuse(*arguments: Any) -> None:
        rig.library.logger.errors.append("Error Code 2: OutOfMemory (Requested size was 69 bytes.)")

    rig.results["execute_async_v3"] = refuse
    with pytest.raises(OutOfMemoryError, match="Requested size was 69"):
        rig.engine().bind(pair(8))()


def test_an_output_of_another_size_is_refused(rig: Rig) -> None:
    buffers = {"x": FakeBuffer((1, 8), 1), "y": FakeBuffer((1, 9), 2)}
    with pytest.raises(BackendError, match=r"writes 'y' as \[1, 8\]; its buffer is \[1, 9\]"):
        rig.engine().bind(buffers)


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
        library.logger.errors.append("busy")

    monkeypatch.setattr(trt.Builder, method, refuse)
    shapes = {"image_pixels": ((1, 3, 1, 1), (1, 3, 8, 8), (1, 3, 16, 16))}
    with pytest.raises(BackendError, match=r"cannot make (a network|settings for a build|an optimisation pro.*): busy"):
        build(library, GRAPHS / PIXELS_IN.file, [shapes], TARGET, BuildOptions())


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
