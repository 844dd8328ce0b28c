"""ONNX Runtime on a GPU, against the CPU. Not yet run on hardware."""

from collections.abc import Mapping

import numpy as np
import pytest

cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from uid import engines  # noqa: E402, after the skip
from uid.bundles.declarations import Bundle  # noqa: E402
from uid.bundles.manifest import read_bundle  # noqa: E402
from uid.bundles.tensors import (  # noqa: E402
    Array,
    resolve,
)
from uid.engines import Backend  # noqa: E402
from uid.engines.ort.cpu import OrtBackend  # noqa: E402
from uid.engines.ort.cuda import STALE_GRAPHS, OrtCudaEngine  # noqa: E402
from uid.errors import BackendError  # noqa: E402
from uid.runtime.pipeline import Options, Pipeline  # noqa: E402


@pytest.fixture
def photo(height: int, width: int, seed: int = 0) -> Array:
    """A uint8 image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def on_the_cpu(bundle: Bundle, image: Array, options: Options) -> Array:
    """The output of ONNX Runtime's CPU backend for an image."""
    backend = OrtBackend(1)
    backend.caches = False
    return Pipeline(bundle, backend)(image, options).image


@pytest.fixture(scope="module")
def gpu() -> Backend:
    try:
        return engines.create("onnxruntime-cuda")
    except BackendError as error:
        pytest.skip(str(error))


def sizes_of(bundle: Bundle) -> dict[str, int]:
    side = 4 * bundle.size_multiple
    return {"height": side, "width": 2 * side, "blur_height": 40, "blur_width": 56}


def outputs(backend: Backend, bundle: Bundle, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a component writes for these inputs."""
    part, sizes = bundle.components[name], sizes_of(bundle)
    engine = backend.load_component(bundle, part, sizes)
    specs = (*part.inputs, *part.outputs)
    buffers = {spec.name: backend.allocate(resolve(spec.shape, sizes), spec.dtype) for spec in specs}
    for spec in part.inputs:
        buffers[spec.name].write(inputs[spec.name])
    launch = engine.bind(buffers)
    for _ in range(3):  # captured, then replayed
        launch()
    return {spec.name: buffers[spec.name].read() for spec in part.outputs}


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("tiny_bundle", 1e-4), ("half_bundle", 2e-2)])
def test_every_component_agrees_with_the_cpu(
    gpu: Backend, request: pytest.FixtureRequest, precision: str, tolerance: float
) -> None:
    """In float16 with the graphs that are for CUDA alone, against the portable ones."""
    bundle, cpu, generator = read_bundle(request.getfixturevalue(precision)), OrtBackend(1), np.random.default_rng(0)
    cpu.caches = False
    for name, part in bundle.components.items():
        inputs = {
            spec.name: generator.random(resolve(spec.shape, sizes_of(bundle)), np.float32).astype(spec.dtype)
            for spec in part.inputs
        }
        expected = outputs(cpu, bundle, name, inputs)
        for tensor, value in outputs(gpu, bundle, name, inputs).items():
            wanted = expected[tensor].astype(np.float32)
            error = np.abs(value.astype(np.float32) - wanted).max() / np.abs(wanted).max()
            assert error < tolerance, (name, tensor, error)


@pytest.mark.gpu
def test_the_image_agrees_with_the_cpu(gpu: Backend, tiny: Bundle) -> None:
    image, options = photo(45, 61), Options(steps=30)
    result = Pipeline(tiny, gpu)(image, options)
    assert (result.backend, result.captured) == ("onnxruntime-cuda", True)
    assert np.abs(result.image.astype(int) - on_the_cpu(tiny, image, options)).max() <= 1


@pytest.mark.gpu
def test_every_replay_agrees_with_uncaptured_runs(gpu: Backend, tiny: Bundle) -> None:
    image, options = photo(64, 48), Options(steps=6)
    pipeline = Pipeline(tiny, gpu)
    replayed = [pipeline(image, options).image for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrtCudaEngine, "captures", property(lambda engine: False, lambda engine, value: None), False)
        plain = Pipeline(tiny, gpu)(image, options)
    assert not plain.captured
    for output in replayed:
        np.testing.assert_array_equal(output, plain.image)


@pytest.mark.gpu
def test_two_alternating_sizes_do_not_disturb_each_other(gpu: Backend, tiny: Bundle) -> None:
    images, options = [photo(64, 48), photo(48, 80)], Options(steps=3)
    alone = [Pipeline(tiny, gpu)(image, options).image for image in images]
    pipeline = Pipeline(tiny, gpu)
    for _ in range(3):
        for image, expected in zip(images, alone, strict=True):
            np.testing.assert_array_equal(pipeline(image, options).image, expected)


@pytest.mark.gpu
def test_memory_does_not_grow_over_images_or_plans(gpu: Backend, tiny: Bundle) -> None:
    device, pipeline = cuda.Device.find(), Pipeline(tiny, gpu)
    sides = (32, 48, 64)  # one more than plans are cached, so that every image makes one
    for _ in range(STALE_GRAPHS):
        for side in sides:
            pipeline(photo(side, side), Options(steps=2))
    before = device.memory()[0]
    for _ in range(STALE_GRAPHS):
        for side in sides:
            pipeline(photo(side, side), Options(steps=2))
    assert device.memory()[0] >= before - (64 << 20)
