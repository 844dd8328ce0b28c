"""The graphs that convert pixels beside a device's engines, against the host's conversion in numpy.

They are made here: ``python tests/engines/test_pixels.py`` writes them anew.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from uid import engines
from uid.bundles.tensors import Array
from uid.runtime.pixels import GRAPHS, PIXELS_IN, PIXELS_OUT, in_dtype, like, planes, to_float

IMAGE = ("float", ["batch", 3, "height", "width"])
PIXELS = ("uint8", ["batch", 3, "height", "width"])
TYPES = {"float": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
SIZE = (16, 24)
HALVES = np.float32(np.arange(0, 255) + 0.5) / np.float32(255)  # values that tell one way of rounding from another

Tensor = tuple[str, list[int | str]]


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Tensor], outputs: dict[str, Tensor], constants: dict[str, float]
) -> bytes:
    """An ONNX model, as bytes."""
    infos = [
        [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    scalars = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()]
    proto = helper.make_graph(nodes, "pixels", *infos, scalars)
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(proto, opset_imports=[opset], ir_version=8).SerializeToString(deterministic=True))


def graphs() -> dict[str, bytes]:
    """File names and contents. TensorRT knows uint8 only where it is cast first or last."""
    node = helper.make_node
    pixels_in = [
        node("Cast", ["image_pixels"], ["floats"], to=TensorProto.FLOAT),
        node("Div", ["floats", "top"], ["image"]),
    ]
    pixels_out = [
        node("Mul", ["output", "top"], ["scaled"]),
        node("Round", ["scaled"], ["rounded"]),  # halves to even, as numpy does
        node("Clip", ["rounded", "zero", "top"], ["clamped"]),
        node("Cast", ["clamped"], ["output_pixels"], to=TensorProto.UINT8),
        node("ReduceMean", ["output"], ["output_mean"], keepdims=1),
    ]
    mean: Tensor = ("float", [1, 1, 1, 1])
    return {
        "pixels_in.onnx": model(pixels_in, {"image_pixels": PIXELS}, {"image": IMAGE}, {"top": 255.0}),
        "pixels_out.onnx": model(
            pixels_out,
            {"output": IMAGE},
            {"output_pixels": PIXELS, "output_mean": mean},
            {"top": 255.0, "zero": 0.0},
        ),
    }


def run(name: str, tensors: dict[str, Array], outputs: dict[str, tuple[tuple[int, ...], type]]) -> dict[str, Array]:
    """One of the graphs on ONNX Runtime."""
    backend = engines.create("onnxruntime", threads=1)
    buffers = {key: backend.allocate(array.shape, array.dtype) for key, array in tensors.items()}
    for key, array in tensors.items():
        buffers[key].write(array)
    buffers |= {key: backend.allocate(shape, np.dtype(dtype)) for key, (shape, dtype) in outputs.items()}
    backend.load(GRAPHS / name).bind(buffers)()
    return {key: buffers[key].read() for key in outputs}


def run_out(output: Array) -> dict[str, Array]:
    return run(
        PIXELS_OUT.file,
        {"output": output},
        {"output_pixels": ((1, 3, *SIZE), np.uint8), "output_mean": ((1, 1, 1, 1), np.float32)},
    )


@pytest.mark.parametrize("name", ["pixels_in.onnx", "pixels_out.onnx"])
def test_the_packaged_graphs_are_the_ones_made_here(name: str) -> None:
    assert (GRAPHS / name).read_bytes() == graphs()[name]


def test_pixels_in_is_the_hosts_conversion() -> None:
    pixels = np.arange(np.prod((3, *SIZE)), dtype=np.uint8).reshape(3, *SIZE)  # every value
    made = run(PIXELS_IN.file, {"image_pixels": pixels[None]}, {"image": ((1, 3, *SIZE), np.float32)})
    np.testing.assert_array_equal(made["image"][0], to_float(pixels), strict=True)


def test_pixels_out_is_the_hosts_conversion() -> None:
    generator = np.random.default_rng(0)
    image = generator.random((3, *SIZE), dtype=np.float32)
    image.ravel()[: HALVES.size] = HALVES
    image.ravel()[-2:] = 0.0, 1.0
    made = run_out(image[None])["output_pixels"][0]
    expected = like(image, np.zeros((1, 1, 3), np.uint8))
    np.testing.assert_array_equal(made, planes(expected), strict=True)
    np.testing.assert_array_equal(expected, np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0), strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_of_an_integer_comes_back(dtype: type[np.integer]) -> None:
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(16, -1)
    np.testing.assert_array_equal(in_dtype(to_float(levels), np.dtype(dtype)), levels, strict=True)
    near = (HALVES * 255 / np.iinfo(dtype).max)[None]
    np.testing.assert_array_equal(in_dtype(near, np.dtype(dtype)), np.rint(near * np.float32(np.iinfo(dtype).max)))


def test_pixels_out_clamps_and_its_mean_shows_nan_and_infinity() -> None:
    output = np.zeros((1, 3, *SIZE), np.float32)
    output[0, :, 0, :2] = [-0.1, 1.1]
    made = run_out(output)
    assert made["output_pixels"][0, :, 0, :2].tolist() == [[0, 255]] * 3
    assert np.isfinite(made["output_mean"]).all()
    for bad in (np.nan, np.inf, -np.inf):
        output[0, 1, 2, 3] = bad
        assert not np.isfinite(run_out(output)["output_mean"]).any()


if __name__ == "__main__":
    for name, data in graphs().items():
        (GRAPHS / name).write_bytes(data)
