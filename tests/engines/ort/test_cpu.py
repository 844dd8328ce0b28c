"""The engine contract on ONNX Runtime, with graphs whose results are known."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from uid import engines
from uid.bundles.cache import default_folder
from uid.bundles.declarations import Bundle, Component
from uid.bundles.manifest import read_bundle
from uid.bundles.tensors import Array, TensorSpec, resolve
from uid.engines import Backend, Engine, Work
from uid.engines.ort.cpu import OrtBackend, open_session, session_options
from uid.errors import BackendError, BundleError, OutOfMemoryError

SIZES = {"height": 32, "width": 24, "blur_height": 20, "blur_width": 28}

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    """Y = 2 x for x of shape (1, n)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n"])
    proto = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubler", [x], [y])
    path = tmp_path / "doubler.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_binding_runs_any_number_of_times(doubler: Path) -> None:
    backend = engines.create("onnxruntime", threads=1)
    engine = backend.load(doubler)
    assert engine.inputs["x"] == TensorSpec("x", np.dtype(np.float32), (1, "n"))
    x, y = (backend.allocate((1, 5), np.dtype(np.float32)) for _ in range(2))
    launch, back = engine.bind({"x": x, "y": y}), engine.bind({"x": y, "y": x})
    x.write(np.arange(5, dtype=np.float32)[None])
    for _ in range(3):
        launch()
        back()
    np.testing.assert_array_equal(x.read(), 64 * np.arange(5, dtype=np.float32)[None])


def test_buffers_that_do_not_fit_are_refused(doubler: Path) -> None:
    backend = engines.create("onnxruntime")
    engine, float32 = backend.load(doubler), np.dtype(np.float32)
    good, flat = backend.allocate((1, 5), float32), backend.allocate((5,), float32)
    half = backend.allocate((1, 5), np.dtype(np.float16))
    with pytest.raises(ValueError, match="no buffer for 'y'"):
        engine.bind({"x": good})
    with pytest.raises(ValueError, match=r"'y' is float32\[5\]; the engine expects float32\[1, 'n'\]"):
        engine.bind({"x": good, "y": flat})
    with pytest.raises(ValueError, match="'y' is float16"):
        engine.bind({"x": good, "y": half})
    with pytest.raises(ValueError, match=r"got float64\[1, 5\] for a buffer of float32"):
        good.write(np.zeros((1, 5)))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of the tiny bundle with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read_bundle(Path(shutil.copytree(tiny_bundle, tmp_path / "tiny", ignore=shutil.ignore_patterns("engines"))))


def outputs(engine: Engine, backend: Backend, part: Component) -> list[Array]:
    """Outputs of a component for the same random inputs."""
    generator = np.random.default_rng(0)
    specs = (*part.inputs, *part.outputs)
    buffers = {spec.name: backend.allocate(resolve(spec.shape, SIZES), spec.dtype) for spec in specs}
    for spec in part.inputs:
        buffers[spec.name].write(generator.random(buffers[spec.name].shape).astype(spec.dtype))
    engine.bind(buffers)()
    return [buffers[spec.name].read() for spec in part.outputs]


@pytest.mark.parametrize("name", ["structure", "encoder", "step_blur", "decoder"])
def test_a_cached_graph_computes_what_the_bundles_graph_does(bundle: Bundle, name: str) -> None:
    backend, part = OrtBackend(1), bundle.components[name]
    expected = outputs(backend.load(bundle.folder / part.file), backend, part)
    for _ in range(2):  # made, then found
        for got, value in zip(
            outputs(backend.load_component(bundle, part, SIZES), backend, part), expected, strict=True
        ):
            np.testing.assert_allclose(got, value, rtol=0, atol=2e-6 * np.abs(value).max())
    (folder,) = default_folder(bundle, "onnxruntime").glob("[!.]*")
    assert sorted(path.name for path in folder.iterdir()) == ["graph.onnx", "sha256.json", "weights.bin"]


@pytest.mark.parametrize("damage", ["a flipped bit", "a lost end", "no sums", "sums of other files", "no graph"])
def test_a_damaged_cached_graph_is_optimised_again(bundle: Bundle, damage: str) -> None:
    lines: list[str] = []
    backend, part = OrtBackend(1), bundle.components["decoder"]
    backend.report = lines.append
    expected = outputs(backend.load_component(bundle, part, SIZES), backend, part)
    (folder,) = default_folder(bundle, "onnxruntime").glob("[!.]*")
    weights = (folder / "weights.bin").read_bytes()
    assert lines == []
    match damage:
        case "a flipped bit":
            (folder / "weights.bin").write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
        case "a lost end":
            (folder / "weights.bin").write_bytes(weights[:-1])
        case "no sums":
            (folder / "sha256.json").unlink()
        case "sums of other files":
            (folder / "sha256.json").write_text("[]")
        case _:
            (folder / "graph.onnx").unlink()
    again = outputs(backend.load_component(bundle, part, SIZES), backend, part)
    np.testing.assert_array_equal(again[0], expected[0])
    assert (folder / "weights.bin").read_bytes() == weights
    backend.load_component(bundle, part, SIZES)  # finds the new one
    assert len(lines) == 1
    assert "is not used, and optimised again" in lines[0]


def test_read_returns_a_copy() -> None:
    buffer = engines.create("onnxruntime").allocate((2,), np.dtype(np.float32))
    buffer.write(np.ones(2, np.float32))
    before = buffer.read()
    buffer.write(np.zeros(2, np.float32))
    np.testing.assert_array_equal(before, np.ones(2))


def test_running_out_of_memory_is_an_error_of_its_own(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    nodes = [
        helper.make_node("Transpose", ["x"], ["row"]),
        helper.make_node("MatMul", ["x", "row"], ["square"]),
        helper.make_node("ReduceMax", ["square"], ["y"]),
    ]
    proto = helper.make_graph(nodes, "outer", [x], [y])
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "o.onnx")
    backend, float32 = engines.create("onnxruntime", threads=1), np.dtype(np.float32)
    with pytest.raises(OutOfMemoryError, match=r"no memory for a buffer of float32\[562949953421312\]"):
        backend.allocate((1 << 49,), float32)  # more than a process can address
    buffers = {"x": backend.allocate((1 << 24, 1), float32), "y": backend.allocate((1, 1), float32)}
    launch = backend.load(tmp_path / "o.onnx").bind(buffers)
    with pytest.raises(OutOfMemoryError, match="no memory for the model at this size"):
        launch()


def test_work_runs_in_order_and_each_step_is_reported(doubler: Path) -> None:
    backend = engines.create("onnxruntime", threads=1)
    engine = backend.load(doubler)
    x, y = (backend.allocate((1, 5), np.dtype(np.float32)) for _ in range(2))
    there, back = engine.bind({"x": x, "y": y}), engine.bind({"x": y, "y": x})
    seen: list[tuple[int | str, float]] = []

    def see(what: int | str) -> None:
        seen.append((what, float(max(x.read().max(), y.read().max()))))

    def releases(stage: str) -> Any:
        return SimpleNamespace(release=lambda: see(stage))

    engines_of = {stage: [releases(stage)] for stage in ("prepare", "step", "finish")}
    replay = backend.capture(Work([there], [back, there, back], [there], engines_of))
    x.write(np.ones((1, 5), np.float32))
    seconds = replay(see)
    assert seen == [("prepare", 2.0), (1, 4.0), (2, 8.0), (3, 16.0), ("step", 16.0), ("finish", 32.0)]
    assert list(seconds) == ["prepare", "step", "finish"]
    assert all(value > 0.0 for value in seconds.values())


def test_the_error_of_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(
        BackendError,
        match="unknown backend 'tpu'; expected auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, openvino-bf16, onnx",
    ):
        engines.create("tpu")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has a CUDA provider")
def test_cuda_without_cuda_says_what_to_install(doubler: Path) -> None:
    with pytest.raises(BackendError, match=r"pip install 'onnxruntime-gpu\[cuda,cudnn\]>="):
        engines.create("onnxruntime-cuda")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has a CUDA provider")
def test_a_provider_that_did_not_load_is_an_error(doubler: Path) -> None:
    with pytest.raises(BackendError, match=r"loaded \['CPUExecutionProvider'\] where CUDAExecutionProvider"):
        open_session(doubler, session_options(None), "CUDAExecutionProvider", {})


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match=r"cannot load .*broken\.onnx"):
        engines.create("onnxruntime").load(tmp_path / "broken.onnx")


def test_report_and_auto_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {status.name: status for status in engines.report()}
    assert list(report) == list(engines.BACKENDS)
    assert report["onnxruntime"].available
    assert report["onnxruntime"].detail.startswith("onnxruntime")
    monkeypatch.setenv("UID_BACKEND", "tpu")
    with pytest.raises(BackendError, match="unknown backend 'tpu'"):
        engines.create("auto")
    monkeypatch.delenv("UID_BACKEND")
    assert engines.create("auto").name == next(name for name, status in report.items() if status.available)
