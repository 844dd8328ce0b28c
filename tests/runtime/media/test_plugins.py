"""HEIC and JPEG XL through Pillow's plug-ins."""

import io

import numpy as np
import pytest
from image_files import ICC, RNG, camera_exif, parsed, picture, saved
from PIL import Image

from uid.errors import InputError
from uid.runtime.media import boxed
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import encode_image

SIZE = (48, 64)


def heic(samples: np.ndarray, **options) -> bytes:
    """Without loss but for the change to luma and chroma, and for 6 of 16 bits."""
    pillow_heif = pytest.importorskip("pillow_heif")
    height, width, channels = samples.shape
    mode = {3: "RGB", 4: "RGBA"}[channels] + (";16" if samples.dtype == np.uint16 else "")
    image = pillow_heif.from_bytes(mode=mode, size=(width, height), data=samples.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [3, 4])
def test_heic(dtype, channels):
    samples = RNG.integers(0, np.iinfo(dtype).max, (*SIZE, channels), dtype=dtype, endpoint=True)
    result = read_image(heic(samples, exif=camera_exif(1), icc_profile=ICC, xmp=b"<x/>"))
    colour = samples[..., :3].astype(float) / np.iinfo(dtype).max
    assert result.pixels.dtype == dtype
    np.testing.assert_allclose(
        result.pixels / np.iinfo(dtype).max, colour, atol=2 / 255 if dtype == np.uint8 else 2 / 1023
    )
    assert (result.alpha is not None) == (channels == 4)
    assert parsed(result.exif)[271] == "camera"
    assert (result.xmp, result.format) == (b"<x/>", "heic")
    again = read_image(encode_image(result, "png"))
    np.testing.assert_array_equal(again.pixels, result.pixels)
    with pytest.raises(InputError, match="more than 100 pixels"):
        read_image(heic(samples), max_pixels=100)


def test_heic_that_is_turned_is_turned_once():
    samples = RNG.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    result = read_image(heic(samples, exif=camera_exif(6)))
    assert parsed(result.exif)[274] == 1
    assert result.pixels.shape[:2] in (SIZE, SIZE[::-1])
    whole = read_image(heic(samples)).pixels
    expected = whole if result.pixels.shape[:2] == SIZE else np.rot90(whole, -1)
    np.testing.assert_array_equal(result.pixels, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_jpeg_xl(mode):
    pytest.importorskip("pillow_jxl")
    image = Image.fromarray(np.dstack([picture(size=SIZE).pixels, picture(size=SIZE).pixels[..., 0]])).convert(mode)
    result = read_image(saved(image, "JXL", lossless=True, exif=camera_exif(1)[6:]))
    np.testing.assert_array_equal(result.pixels, np.asarray(image.convert("RGB")))
    assert (result.grey, result.alpha is not None) == (mode == "L", mode == "RGBA")
    assert parsed(result.exif)[271] == "camera"


@pytest.mark.parametrize(("data", "format"), [(b"\0\0\0\x18ftypheic\0\0\0\0", "heic"), (b"\xff\x0a\0\0", "jxl")])
def test_missing_plug_in_is_named(monkeypatch, data, format):
    monkeypatch.setitem(boxed.PLUGINS, format, ("no_such_module", "it"))
    with pytest.raises(InputError, match=r"pip install 'uid-runtime\[heif\]'"):
        read_image(data)
