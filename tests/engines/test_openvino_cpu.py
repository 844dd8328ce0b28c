"""OpenVINO as a backend, compared with ONNX Runtime."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

ov = pytest.importorskip("openvino", reason="needs openvino: pip install 'uid-runtime[openvino]'")

from uid import engines  # noqa: E402, after the skip
from uid.bundles.cache import default_folder  # noqa: E402
from uid.bundles.declarations import Bundle, Component  # noqa: E402
from uid.bundles.manifest import read_bundle  # noqa: E402
from uid.bundles.tensors import (  # noqa: E402
    Array,
    TensorSpec,
    resolve,
)
from uid.engines import Backend, Engine  # noqa: E402
from uid.engines.openvino_cpu import OpenvinoBackend, create_bf16  # noqa: E402
from uid.engines.registry import PROBE  # noqa: E402
from uid.errors import BackendError, BundleError, OutOfMemoryError  # noqa: E402
from uid.runtime.pipeline import Options, Pipeline, load  # noqa: E402

FLOAT32 = np.dtype(np.float32)
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
BF16 = pytest.param("openvino-bf16", marks=pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16"))
SIZES = {"height": 32, "width": 24, "blur_height": 20, "blur_width": 28}


@pytest.fixture(params=["openvino", BF16])
def backend(request: pytest.FixtureRequest) -> Backend:
    """OpenVINO in each precision."""
    return engines.create(request.param, threads=1)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The tiny bundle with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read_bundle(tiny_bundle)


def noise(height: int, width: int, seed: int = 0) -> Array:
    """A float32 image of noise in [0, 1)."""
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


def random_inputs(part: Component, seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {spec.name: generator.random(resolve(spec.shape, SIZES)).astype(spec.dtype) for spec in part.inputs}


def run_twice(backend: Backend, engine: Engine, part: Component, inputs: dict[str, Array]) -> list[dict[str, Array]]:
    """Outputs of two runs of one launch."""
    specs = (*part.inputs, *part.outputs)
    buffers = {spec.name: backend.allocate(resolve(spec.shape, SIZES), spec.dtype) for spec in specs}
    for name, array in inputs.items():
        buffers[name].write(array)
    launch, runs = engine.bind(buffers), []
    for _ in range(2):
        launch()
        runs.append({spec.name: buffers[spec.name].read() for spec in part.outputs})
    return runs


def psnr(image: Array, expected: Array) -> float:
    return float(-10 * np.log10(np.square(image.astype(np.float64) - expected).mean()))


def outer(folder: Path) -> Path:
    """``y`` = the largest value of x times its transpose, for x of shape (n, 1)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    nodes = [
        helper.make_node("Transpose", ["x"], ["row"]),
        helper.make_node("MatMul", ["x", "row"], ["square"]),
        helper.make_node("ReduceMax", ["square"], ["y"]),
    ]
    proto = helper.make_graph(nodes, "outer", [x], [y])
    onnx.save(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "outer.onnx"
    )
    return folder / "outer.onnx"


def test_every_component_agrees_with_onnxruntime_in_every_run(backend: Backend, bundle: Bundle) -> None:
    reference = engines.create("onnxruntime", threads=1)
    for part in bundle.components.values():
        oracle = reference.load(bundle.folder / part.file)
        engine = backend.load_component(bundle, part, SIZES)
        for seed in range(2):
            inputs = random_inputs(part, seed)
            expected, _ = run_twice(reference, oracle, part, inputs)
            first, second = run_twice(backend, engine, part, inputs)
            for name, value in expected.items():
                error = np.linalg.norm(first[name] - value) / np.linalg.norm(value)
                assert error <= (1e-5 if backend.name == "openvino" else 1e-1), (part.name, name, seed)
                np.testing.assert_array_equal(first[name], second[name], f"{part.name} {name}")


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16")
def test_bfloat16_is_as_accurate_at_timesteps_that_it_cannot_represent(bundle: Bundle) -> None:
    part, tested = bundle.components["step"], engines.create("openvino-bf16", threads=1)
    reference = engines.create("onnxruntime", threads=1)
    both = (tested, tested.load_component(bundle, part, SIZES)), (reference, reference.load(bundle.folder / part.file))
    errors = {}
    for timestep in (512, 967, 999):  # bfloat16 has 512, 968 and 1000
        inputs = random_inputs(part, 0) | {"timestep": np.float32([timestep])}
        got, expected = (run_twice(backend, engine, part, inputs)[0] for backend, engine in both)
        errors[timestep] = max(np.linalg.norm(got[name] - expected[name]) for name in got)
    assert max(errors.values()) < 1.2 * errors[512], errors


@pytest.mark.long
def test_images_agree_with_onnxruntime(bundle: Bundle) -> None:
    tested, reference = (Pipeline(bundle, engines.create(name, threads=1)) for name in ("openvino", "onnxruntime"))
    blur, options = noise(20, 28, 1), Options(mode="blur-transfer", steps=2, seed=3)
    for size in ((24, 32), (bundle.tile, bundle.tile), (24, 32), (bundle.tile + 8, bundle.tile)):
        image = noise(*size)
        done = tested(image, Options(steps=2, seed=3))
        assert done.backend == "openvino"
        assert psnr(done.image, reference(image, Options(steps=2, seed=3)).image) > 80.0
        transferred, expected = (pipeline(image, options, blur_image=blur).image for pipeline in (tested, reference))
        assert psnr(transferred, expected) > 80.0


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16")
def test_bfloat16_images_of_the_built_in_bundle_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = cv2.resize(noise(8, 12), (192, 128), interpolation=cv2.INTER_CUBIC).clip(0.0, 1.0)
    done, expected = (
        load(backend=name, threads=1)(image, Options(steps=4)) for name in ("openvino-bf16", "onnxruntime")
    )
    assert done.backend == "openvino-bf16"
    assert psnr(done.image, expected.image) > 50.0


def test_the_same_seed_gives_the_same_bytes_whatever_ran_before(backend: Backend, bundle: Bundle) -> None:
    image, options = noise(bundle.tile, bundle.tile), Options(steps=2)
    compiled = Pipeline(bundle, backend)(image, options).image
    pipeline = Pipeline(bundle, engines.create(backend.name, threads=1))
    pipeline(noise(16, 20), options)
    np.testing.assert_array_equal(pipeline(image, options).image, compiled)  # from the cache, and after another size


def test_launches_read_and_write_their_own_buffers(backend: Backend, tmp_path: Path) -> None:
    engine = backend.load(outer(tmp_path))
    assert engine.inputs["x"] == TensorSpec("x", FLOAT32, ("?", 1))
    bound = []
    for rows in (3, 5):
        x, y = backend.allocate((rows, 1), FLOAT32), backend.allocate((1, 1), FLOAT32)
        bound.append((x, y, engine.bind({"x": x, "y": y})))
    for value in (2.0, 3.0):
        for i, (x, _, _) in enumerate(bound):
            x.write(np.full(x.shape, value + i, np.float32))
        for _, _, launch in bound:
            launch()
        assert [y.read().item() for _, y, _ in bound] == [value**2, (value + 1) ** 2]


def test_buffers_that_do_not_fit_are_refused(backend: Backend, tmp_path: Path) -> None:
    engine = backend.load(outer(tmp_path))
    good, flat, half = (
        backend.allocate(shape, np.dtype(t)) for shape, t in (((5, 1), "f4"), ((5,), "f4"), ((1, 1), "f2"))
    )
    with pytest.raises(ValueError, match="no buffer for 'y'"):
        engine.bind({"x": good})
    with pytest.raises(ValueError, match=r"'x' is float32\[5\]; the engine expects float32\['\?', 1\]"):
        engine.bind({"x": flat, "y": good})
    with pytest.raises(ValueError, match="'y' is float16"):
        engine.bind({"x": good, "y": half})
    with pytest.raises(ValueError, match=r"got float64\[5, 1\] for a buffer of float32"):
        good.write(np.zeros((5, 1)))
    alien = engines.create("onnxruntime").allocate((1, 1), FLOAT32)
    with pytest.raises(TypeError, match="must come from this backend"):
        engine.bind({"x": good, "y": alien})


def test_running_out_of_memory_is_an_error_of_its_own(backend: Backend) -> None:
    with pytest.raises(OutOfMemoryError, match=r"no memory for a buffer of float32\[562949953421312\]"):
        backend.allocate((1 << 49,), FLOAT32)  # more than a process can address


def test_an_invalid_graph_is_refused(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match=r"cannot load .*broken\.onnx"):
        backend.load(tmp_path / "broken.onnx")


@pytest.mark.parametrize("damage", ["a flipped bit", "a lost end", "another build's", "an empty file"])
def test_a_damaged_cached_file_is_compiled_again(bundle: Bundle, damage: str) -> None:
    part, lines = bundle.components["decoder"], list[str]()
    backend = engines.create("openvino", threads=1, report=lines.append)
    inputs = random_inputs(part, 0)
    expected, _ = run_twice(backend, backend.load_component(bundle, part, SIZES), part, inputs)
    (path,) = default_folder(bundle, "openvino").glob("*.blob")
    good = path.read_bytes()
    assert lines == []
    match damage:
        case "a flipped bit":
            middle = len(good) // 2
            path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
        case "a lost end":
            path.write_bytes(good[:-1])
        case "an empty file":
            path.write_bytes(b"")
        case _:
            other = good[32:].replace(b"ov=20", b"ov=19")
            assert other != good[32:]
            path.write_bytes(hashlib.sha256(other).digest() + other)
    again, _ = run_twice(backend, backend.load_component(bundle, part, SIZES), part, inputs)
    np.testing.assert_array_equal(again["output"], expected["output"])
    backend.load_component(bundle, part, SIZES)  # finds the new one
    assert len(lines) == 1
    assert "is not used, and compiled again" in lines[0]


def test_bfloat16_is_refused_where_the_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(BackendError, match="has no bfloat16 instructions; use backend openvino"):
        create_bf16(1)


@pytest.mark.parametrize("name", ["openvino", "openvino-bf16"])
def test_an_older_openvino_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov, "get_version", lambda: "2026.3.1-22959-abc")
    with pytest.raises(BackendError, match=r"openvino is 2026\.3\.1-22959-abc; expected 2026\.4 .*-m pip install"):
        engines.create(name)


def test_the_thread_count_is_passed_on() -> None:
    compiled = OpenvinoBackend("openvino", "f32", 1).load(PROBE).compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert not compiled.get_property("ENABLE_CPU_PINNING")


def test_auto_takes_bfloat16_where_the_cpu_has_it() -> None:
    names = list(engines.BACKENDS)
    assert names.index("openvino-bf16") < names.index("onnxruntime") < names.index("openvino")
    assert {status.name: status.available for status in engines.report()}["openvino-bf16"] == HAS_BF16
