import io
import struct
import zlib

import numpy as np
import pytest
from image_files import HEIGHT, ICC, NESTED, RNG, UPRIGHT, WIDTH, camera_exif, chunk, parsed, picture, saved, tiff
from PIL import Image

from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import encode_image, write_image
from uid.runtime.media.formats import FORMATS, DecodedImage

# Round trips


@pytest.mark.parametrize(
    ("format", "alpha"),
    [(format, alpha) for format in FORMATS for alpha in {False, FORMATS[format].alpha} if format != "jpeg"],
)
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 1)])
def test_lossless_formats_return_every_sample(tmp_path, format, size, dtype, grey, alpha):
    original = picture(dtype, grey, alpha, size=size)
    path = tmp_path / f"image.{format}"
    write_image(original, path)
    result = read_image(path)

    def kept(samples):
        return samples if FORMATS[format].sixteen_bit or dtype == np.uint8 else np.round(samples / 257).astype(np.uint8)

    np.testing.assert_array_equal(result.pixels, kept(original.pixels), strict=True)
    if alpha:
        np.testing.assert_array_equal(result.alpha, kept(original.alpha), strict=True)
    else:
        assert result.alpha is None
    expanded = format == "webp" or (alpha and result.pixels.dtype == np.uint16)  # OpenCV has no 16-bit grey with alpha
    assert result.grey == (grey and not expanded)
    assert result.format == format


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_is_near_and_keeps_full_colour_resolution(grey):
    original = picture(np.uint16, grey, size=(32, 32))
    data = encode_image(original, "jpeg")
    result = read_image(data)
    error = result.pixels.astype(float) - original.pixels / 257
    assert np.sqrt(np.mean(error**2)) < 5  # noise of every pixel; 4:2:0 would miss by 50
    assert (result.grey, result.format) == (grey, "jpeg")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_sixteen_bit_tiff_of_either_byte_order_raw_or_deflated(order, channels, packed):
    samples = RNG.integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    tags = {"t338": (2,)} if channels % 2 == 0 else {}
    pixels = None
    if packed:
        pixels, tags["t259"] = zlib.compress(samples.astype(f"{order}u2").tobytes()), 8
    result = read_image(tiff(samples, order, pixels, **tags))
    colour = samples if channels % 2 else samples[..., :-1]
    np.testing.assert_array_equal(result.pixels, np.broadcast_to(colour, (HEIGHT, WIDTH, 3)))
    assert result.grey == (channels < 3)
    if channels % 2 == 0:
        np.testing.assert_array_equal(result.alpha, samples[..., -1])


def test_sixteen_bit_png_with_one_transparent_colour():
    samples = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint16)
    data = encode_image(DecodedImage(samples, None, False, None, None, "png"), "png")
    head, rest = data[:33], data[33:]
    result = read_image(head + chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)) + rest)
    np.testing.assert_array_equal(result.alpha, [[0, 65535]])
    np.testing.assert_array_equal(result.pixels, samples)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_palette_and_one_bit_images_are_expanded(format):
    indexed = Image.fromarray(picture().pixels).quantize(8)
    result = read_image(saved(indexed, format))
    np.testing.assert_array_equal(result.pixels, np.asarray(indexed.convert("RGB")))
    assert not result.grey
    bits = RNG.integers(0, 2, (HEIGHT, WIDTH)).astype(bool)
    result = read_image(saved(Image.fromarray(bits), format))
    np.testing.assert_array_equal(result.pixels[..., 0], bits * np.uint8(255))
    assert result.grey


def test_transparent_palette_entry_becomes_alpha():
    indexed = Image.fromarray(picture().pixels).quantize(8)
    result = read_image(saved(indexed, "PNG", transparency=3))
    np.testing.assert_array_equal(result.alpha, np.where(np.asarray(indexed) == 3, 0, 255))


def test_grey_image_whose_channels_were_changed_is_written_grey():
    colour = Image.fromarray(picture().pixels)
    data = encode_image(DecodedImage(np.asarray(colour), None, True, None, None, "png"), "png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(colour.convert("L")))


def test_content_decides_whatever_the_suffix(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode_image(picture(), "jpeg"))
    assert read_image(path).format == "jpeg"


def test_phone_jpeg_with_a_second_image_is_read_as_its_first():
    first, second = (Image.fromarray(picture().pixels) for _ in range(2))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert read_image(data).format == "jpeg"


# Metadata


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("format", ["png", "tiff", "webp"])
def test_orientation_is_applied_and_reset(format, dtype, orientation):
    if format == "tiff":
        samples = RNG.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, 4), dtype=dtype)
        stored, alpha = samples[..., :3], samples[..., 3]
        data = tiff(samples, t338=2, t274=orientation, t271="camera")
    else:
        original = picture(dtype, alpha=True, exif=camera_exif(orientation))
        data = encode_image(original, format)
        turned = read_image(
            encode_image(DecodedImage(original.pixels, original.alpha, False, None, None, "png"), format)
        )
        stored, alpha = turned.pixels, turned.alpha
    result = read_image(data)
    np.testing.assert_array_equal(result.pixels, UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(result.alpha, UPRIGHT[orientation](alpha))
    assert parsed(result.exif)[274] == 1
    assert parsed(result.exif)[271] == "camera"
    again = read_image(encode_image(result, format))
    np.testing.assert_array_equal(again.pixels, result.pixels)


@pytest.mark.parametrize("target", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("source", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_and_icc_survive_from_any_format_to_any(source, target, dtype):
    original = picture(dtype, exif=camera_exif(1), icc=ICC)
    result = read_image(encode_image(read_image(encode_image(original, source)), target))
    assert result.icc == ICC
    exif = parsed(result.exif)
    assert (exif[271], exif[282]) == ("camera", 72)
    assert exif.get_ifd(34665) == NESTED
    assert exif.get_ifd(34853)[2] == (1, 2.5, 3)
    assert 273 not in exif, "the file's layout is no metadata"


def test_thumbnail_of_the_old_image_is_unlinked_and_garbled_exif_dropped():
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 274, 3, 1, 3) + struct.pack("<I", 26) + b"\0\0\0\0\0\0"
    result = read_image(saved(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0" + exif))
    assert result.exif == b"Exif\0\0" + exif[:18] + b"\x01" + exif[19:22] + b"\0\0\0\0" + exif[26:]
    for garbled in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        assert read_image(saved(Image.new("RGB", (4, 4)), "JPEG", exif=garbled)).exif is None


def test_exif_value_of_the_wrong_type_does_not_cost_the_tiff():
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    exif += struct.pack("<HHII", 271, 2, 4, int.from_bytes(b"cam\0", "little"))
    exif += struct.pack("<HHII", 282, 2, 4, int.from_bytes(b"abc\0", "little")) + bytes(4)  # text for a resolution
    result = read_image(encode_image(picture(exif=exif), "tiff"))
    assert parsed(result.exif)[271] == "cam"
    resolution = tiff(np.zeros((1, 1, 3), np.uint8), t271="cam", t282=1.5)
    at = resolution.index(struct.pack("<HH", 282, 5))
    as_bytes = resolution[:at] + struct.pack("<HHI", 282, 7, 4) + resolution[at + 8 :]
    assert set(parsed(read_image(as_bytes).exif)) == {271, 274}
    profile = tiff(np.zeros((1, 1, 3), np.uint8), t34675=7)
    as_number = profile.replace(struct.pack("<HHI", 34675, 7, 1), struct.pack("<HHI", 34675, 4, 1))
    assert read_image(as_number).icc is None
