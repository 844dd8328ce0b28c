"""A surface without detail comes back as it went in, whatever colour it has and whatever stands beside it."""

import cv2
import numpy as np
import pytest

from uid.errors import InputError
from uid.runtime.colour import colour_fixed, detail
from uid.runtime.options import Options
from uid.runtime.pipeline import load

RNG = np.random.default_rng(2)


@pytest.fixture(scope="module")
def pipeline():
    return load(backend="onnxruntime", threads=2)


@pytest.mark.parametrize("colour", [(128, 128, 128), (126, 129, 127), (0, 0, 0), (255, 255, 255), (200, 128, 60)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_flat_colour_stays(pipeline, colour, dtype):
    image = np.full((96, 128, 3), colour, dtype) * (257 if dtype == np.uint16 else 1)
    result = pipeline(image.astype(dtype), Options(transforms=1)).image
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("tile", [None, 128])
def test_flat_part_beside_detail_keeps_its_colour_and_detail_is_sharpened(pipeline, tile):
    image = np.clip(RNG.normal(130, 1.2, (128, 384, 1)).repeat(3, 2), 0, 255).astype(np.uint8)
    detailed = cv2.GaussianBlur(RNG.integers(0, 256, (128, 128, 3), dtype=np.uint8), (0, 0), 2)
    image[:, 256:] = detailed
    result = pipeline(image, Options(transforms=1, tile=tile)).image
    change = result.astype(int) - image
    assert np.abs(change[:, :208].mean((0, 1))).max() < 1
    assert np.abs(change[:, :208]).max() < 10
    assert np.abs(change[:, 272:]).mean() > 0.5


def test_detail_is_found_in_any_channel():
    image = np.full((3, 64, 64), 0.5, np.float32)
    assert detail(image).max() == 0
    image[1, :, ::2] += 0.1
    assert detail(image) is None
    other = RNG.random((3, 64, 64), dtype=np.float32)
    np.testing.assert_array_equal(colour_fixed(other, image, "flat"), other)
    np.testing.assert_array_equal(colour_fixed(other, image * 0 + np.float32(0.3), "flat"), image * 0 + np.float32(0.3))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_strength_blends_in_linear_light(pipeline, dtype):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    detailed = cv2.GaussianBlur(RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8), (0, 0), 1)
    image = (detailed / 255 * top).astype(dtype)
    whole, half, none = (pipeline(image, Options(transforms=1, strength=s)).image / top for s in (1.0, 0.5, 0.0))

    def light(value):
        return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)

    step = 1.01 / min(top, 65_535) if top > 1 else 1e-4
    np.testing.assert_allclose(none, image / top, atol=step / 2)
    mean = (light(whole) + light(image / top)) / 2
    expected = np.where(mean <= 0.0031308, mean * 12.92, 1.055 * mean ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(half, expected, atol=step)
    with pytest.raises(InputError, match="strength is 2; expected a number from 0 to 1"):
        Options(strength=2)
