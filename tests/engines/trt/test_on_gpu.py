"""TensorRT and TensorRT-RTX on a GPU, against ONNX Runtime on the CPU. Not yet run on hardware."""

import gc
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds engines without a GPU")
cuda = pytest.importorskip("uid.engines.cuda_device", reason="needs cuda-bindings", exc_type=ImportError)

from cuda.bindings import runtime as cudart  # noqa: E402, after the skips

from uid import engines  # noqa: E402
from uid.bundles.declarations import Bundle, Component  # noqa: E402
from uid.bundles.manifest import read_bundle  # noqa: E402
from uid.bundles.tensors import (  # noqa: E402
    Array,
    resolve,
)
from uid.engines import Backend, OneByOne  # noqa: E402
from uid.engines.trt.backend import TensorrtBackend, profile_for  # noqa: E402
from uid.engines.trt.build import BuildOptions  # noqa: E402
from uid.engines.trt.cache import engine_for  # noqa: E402
from uid.engines.trt.profiles import Target  # noqa: E402
from uid.errors import OutOfMemoryError  # noqa: E402
from uid.runtime.pipeline import Options, Pipeline  # noqa: E402

AHEAD = Target.ahead(["8.9"])
HAS_DRIVER = cuda.call(cudart.cudaDriverGetVersion) != 0
no_driver = pytest.mark.skipif(HAS_DRIVER, reason="there is an NVIDIA driver")
Log = list[tuple[Any, ...]]


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
