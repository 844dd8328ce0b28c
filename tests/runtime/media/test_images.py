"""One table of what each format holds, and a test for each of its cells."""

import io
import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from image_files import AVIF_OF_10_BITS, HEIGHT, RNG, WIDTH, chunk, picture, png, saved, tiff
from PIL import Image, ImageCms

from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import Encoding, encode_image, not_carried, write_image
from uid.runtime.media.formats import FORMATS, WRITTEN, DecodedImage

LOSSY = ("jpeg", "avif")
# What each format holds: its depths, whether grey stays one channel, whether it has alpha.
HOLDS = {
    "png": ((8, 16), True, True),
    "tiff": ((8, 16), True, True),
    "webp": ((8,), False, True),
    "bmp": ((8,), True, False),
    "jpeg": ((8,), True, False),
    "avif": ((8,), False, True),
}
CELLS = [
    (format, dtype, grey, alpha)
    for format, dtype, grey, alpha in itertools.product(HOLDS, (np.uint8, np.uint16), (False, True), (False, True))
    if HOLDS[format][2] or not alpha
]


def as_stored(samples, format):
    """The samples at the format's depth."""
    if samples is None or samples.dtype == np.uint8 or 16 in HOLDS[format][0]:
        return samples
    return np.round(samples / 257).astype(np.uint8)


def test_table_has_every_format_that_is_written():
    assert set(HOLDS) == set(WRITTEN)
    for format, (depths, grey, alpha) in HOLDS.items():
        kind = FORMATS[format]
        assert (kind.sixteen_bit, kind.grey, kind.alpha) == (16 in depths, grey, alpha)


@pytest.mark.parametrize(("format", "dtype", "grey", "alpha"), CELLS)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 1), (40, 33)])
def test_each_cell_returns_its_samples(tmp_path, size, format, dtype, grey, alpha):
    original = picture(dtype, grey, alpha, size=size)
    if format in LOSSY:  # smooth, since noise is what they leave out
        slope = np.linspace(0, np.iinfo(dtype).max, size[0] * size[1]).astype(dtype).reshape(size)
        original = original.with_pixels(np.dstack([slope] * 3), slope if alpha else None)
    write_image(original, tmp_path / f"image.{format}")
    result = read_image(tmp_path / f"image.{format}")
    wanted, tolerance = as_stored(original.pixels, format), 6 if format in LOSSY else 0
    assert (result.pixels.shape, result.pixels.dtype) == (wanted.shape, wanted.dtype)
    assert np.abs(result.pixels.astype(int) - wanted).max() <= tolerance
    if alpha:
        assert np.abs(result.alpha.astype(int) - as_stored(original.alpha, format)).max() <= tolerance
    else:
        assert result.alpha is None
    assert result.grey == (grey and HOLDS[format][1])
    if grey:
        assert np.ptp(result.pixels.astype(int), axis=2).max() == 0, "grey stays without a tint"
    assert (result.format, result.warnings) == (format, ())
    deep = "16 bits a channel, rounded to 8" in not_carried(original, format)
    assert deep == (dtype == np.uint16 and 16 not in HOLDS[format][0])


@pytest.mark.parametrize(
    ("dtype", "grey", "alpha"), list(itertools.product((np.uint8, np.uint16), *[(False, True)] * 2))
)
@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_other_readers_see_the_same_samples(tmp_path, dtype, grey, alpha, compression):
    original = picture(dtype, grey, alpha, size=(300, 257))
    original = DecodedImage(**{**vars(original), "compression": compression})
    colour = original.pixels[..., :1] if grey else original.pixels
    samples = np.dstack([colour, original.alpha]) if alpha else colour
    write_image(original, tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages[0]
        assert page.compression == compression
        assert tuple(page.extrasamples) == ((2,) if alpha else ())
        if compression in (1, 8):  # tifffile unpacks no others by itself
            np.testing.assert_array_equal(page.asarray().reshape(samples.shape), samples)
    if samples.shape[2] != 2:
        order = [0] if grey else [2, 1, 0, 3][: samples.shape[2]]
        # OpenCV multiplies the colours of an 8-bit TIFF by alpha.
        for name in ("a.png",) if alpha and dtype == np.uint8 else ("a.tif", "a.png"):
            write_image(original, tmp_path / name)
            read = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(read.reshape(samples.shape), samples[..., order])
    if dtype == np.uint8:
        write_image(original, tmp_path / "a.png")
        for name in ("a.tif", "a.png"):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)).reshape(samples.shape), samples)


# What Pillow and OpenCV do not write


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("packed", [1, 5, 8])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_of_either_byte_order_packed_or_in_planes(order, channels, dtype, packed, planar):
    samples = RNG.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), dtype=dtype)
    buffer = io.BytesIO()
    options = {"compression": {1: None, 5: None, 8: "zlib"}[packed], "predictor": packed == 8}
    options |= {"photometric": "rgb" if channels > 2 else "minisblack", "rowsperstrip": 4}
    options |= {"extrasamples": ["unassalpha"]} if channels % 2 == 0 else {}
    data = np.moveaxis(samples, 2, 0) if planar and channels > 1 else samples
    config = "separate" if planar and channels > 1 else "contig"
    if packed == 5:  # which tifffile does not write
        plain = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
        strip = saved(Image.frombytes("L", (len(plain), 1), plain), "TIFF", compression="tiff_lzw")
        with tifffile.TiffFile(io.BytesIO(strip)) as file:
            start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        extra = {"t338": (2,)} if channels % 2 == 0 else {}
        buffer.write(tiff(samples, order, strip[start : start + length], t259=5, **extra))
    else:
        tifffile.imwrite(buffer, data, byteorder=order, planarconfig=config if channels > 1 else None, **options)
    result = read_image(buffer.getvalue())
    colour = samples if channels % 2 else samples[..., :-1]
    np.testing.assert_array_equal(result.pixels, np.broadcast_to(colour, (HEIGHT, WIDTH, 3)))
    assert result.grey == (channels < 3)
    if channels % 2 == 0:
        np.testing.assert_array_equal(result.alpha, samples[..., -1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kinds", [(0,), (0, 0), (2, 0), (0, 2)])
@pytest.mark.parametrize("colours", [1, 3])
def test_further_channels_stay_what_they_are(dtype, kinds, colours):
    samples = RNG.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, colours + len(kinds)), dtype=dtype)
    result = read_image(tiff(samples, t338=kinds, t262=1 if colours == 1 else 2))
    alpha = kinds.index(2) if 2 in kinds else None
    others = [colours + at for at in range(len(kinds)) if at != alpha]
    np.testing.assert_array_equal(result.extra, samples[..., others])
    assert (result.alpha is None) == (alpha is None)
    with tifffile.TiffFile(io.BytesIO(encode_image(result, "tiff"))) as file:
        assert sorted(file.pages[0].extrasamples) == sorted(kinds)
        np.testing.assert_array_equal(file.pages[0].asarray()[..., -len(others) :], samples[..., others])
    assert not_carried(result, "png") == ["further channels"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_as_zero_and_multiplied_alpha(dtype):
    top = np.iinfo(dtype).max
    samples = np.array([[[0], [top // 5], [top]]], dtype)
    np.testing.assert_array_equal(read_image(tiff(samples, t262=0)).pixels[..., 0], top - samples[..., 0])
    half = top // 2 + 1
    stored = np.array([[[half, half // 2, 0, half], [0, 0, 0, 0], [7, 8, 9, top]]], dtype)
    result = read_image(tiff(stored, t338=1))
    np.testing.assert_array_equal(result.alpha[0], [half, 0, top])
    np.testing.assert_array_equal(result.pixels[0, [1, 2]], [[0, 0, 0], [7, 8, 9]])
    np.testing.assert_allclose(result.pixels[0, 0], [top, top / 2, 0], atol=1)


@pytest.mark.parametrize(("kind", "value"), [(2, (1, 2, 3)), (0, (7,))])
def test_sixteen_bit_png_with_one_transparent_colour(kind, value):
    samples = np.array([[value, [*value[:-1], 9]]], np.uint16)
    header = struct.pack(">IIBBBBB", 2, 1, 16, kind, 0, 0, 0)
    body = [chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(f">{len(value)}H", *value))]
    body += [chunk(b"IDAT", zlib.compress(b"\0" + samples.astype(">u2").tobytes())), chunk(b"IEND", b"")]
    result = read_image(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    np.testing.assert_array_equal(result.alpha, [[0, 65535]])
    np.testing.assert_array_equal(result.pixels, np.broadcast_to(samples, (1, 2, 3)))
    assert result.grey == (kind == 0)


@pytest.mark.parametrize(("kind", "compression"), [("PNG", None), ("BMP", None), ("TIFF", "raw"), ("TIFF", "tiff_lzw")])
def test_palette_and_one_bit_images_are_expanded(kind, compression):
    options = {"compression": compression} if compression else {}
    indexed = Image.fromarray(picture().pixels).quantize(8)
    result = read_image(saved(indexed, kind, **options))
    np.testing.assert_array_equal(result.pixels, np.asarray(indexed.convert("RGB")))
    assert not result.grey
    bits = RNG.integers(0, 2, (HEIGHT, WIDTH)).astype(bool)
    result = read_image(saved(Image.fromarray(bits), kind, **options))
    np.testing.assert_array_equal(result.pixels[..., 0], bits * np.uint8(255))
    assert result.grey


def test_transparent_palette_entry_becomes_alpha():
    indexed = Image.fromarray(picture().pixels).quantize(8)
    result = read_image(saved(indexed, "PNG", transparency=3))
    np.testing.assert_array_equal(result.alpha, np.where(np.asarray(indexed) == 3, 0, 255))


def test_interlaced_png():
    """Rows of Adam7 made by hand, without a filter."""
    samples = RNG.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [samples[y::down, x::across] for x, y, across, down in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part if part.size)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_image(data).pixels[..., 0], samples)


def test_grey_image_whose_channels_were_changed_is_written_grey():
    colour = Image.fromarray(picture().pixels)
    data = encode_image(DecodedImage(np.asarray(colour), None, True, None, None, "png"), "png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(colour.convert("L")))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_with_its_profile(format):
    """LittleCMS has no profile for CMYK to offer, so the test makes a small one: K alone, as lightness."""
    image = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 0, 0, 128)])
    data = saved(image, format, icc_profile=cmyk_profile(), **({"quality": 100} if format == "JPEG" else {}))
    result = read_image(data)
    wanted = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(cmyk_profile())), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert np.abs(result.pixels.astype(int) - np.asarray(wanted)).max() <= 2
    assert np.ptp(result.pixels[0, 0].astype(int)) <= 3
    assert 60 < result.pixels[0, 0, 0] < 190
    assert result.icc[16:20] == b"RGB "


def cmyk_profile() -> bytes:
    """A profile with one table of 2 x 2 x 2 x 2 places: L is 100 where no ink is, and 0 at full black."""
    grid = [(0 if k else 255 * (3 - c - m - y) // 3, 128, 128) for c, m, y, k in itertools.product((0, 1), repeat=4)]
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table += bytes(range(256)) * 4 + bytes(itertools.chain(*grid)) + bytes(range(256)) * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    head = (
        bytes(8) + b"\2\x40\0\0prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    )
    at = 128 + 4 + 24
    tags = struct.pack(">I4sII4sII", 2, b"A2B0", at, len(table), b"wtpt", at + len(table) + -len(table) % 4, 20)
    body = head.ljust(128, b"\0") + tags + table + bytes(-len(table) % 4) + white
    return struct.pack(">I", len(body)) + body[4:]


# JPEG


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 92])
def test_jpeg_is_compressed_as_the_input_was_unless_told(subsampling, quality):
    photo = Image.fromarray(cv2.resize(picture(size=(8, 8)).pixels, (64, 64)))
    image = read_image(saved(photo, "JPEG", quality=quality, subsampling=subsampling))
    own, told = (Image.open(io.BytesIO(encode_image(image, "jpeg", encoding))) for encoding in (None, Encoding(75)))
    reference = Image.open(io.BytesIO(saved(photo, "JPEG", quality=quality, subsampling=subsampling)))
    assert own.quantization == reference.quantization
    assert [layer[1:3] for layer in own.layer] == [layer[1:3] for layer in reference.layer]
    assert told.quantization == Image.open(io.BytesIO(saved(photo, "JPEG", quality=75))).quantization
    full = Image.open(io.BytesIO(encode_image(image, "jpeg", Encoding(None, "4:4:4"))))
    assert (full.quantization, full.layer[0][1:3]) == (reference.quantization, (1, 1))


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_of_what_was_none_is_near_and_keeps_full_colour_resolution(grey):
    original = picture(np.uint16, grey, size=(32, 32))
    result = read_image(encode_image(original, "jpeg"))
    error = result.pixels.astype(float) - original.pixels / 257
    assert np.sqrt(np.mean(error**2)) < 5  # noise of every pixel; 4:2:0 would miss by 50
    assert (result.grey, result.format) == (grey, "jpeg")


def test_phone_jpeg_with_a_second_image_is_read_as_its_first():
    first, second = (Image.fromarray(picture().pixels) for _ in range(2))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    result = read_image(data)
    np.testing.assert_array_equal(result.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert "a further image" in result.warnings[0]


def test_content_decides_whatever_the_suffix(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode_image(picture(), "jpeg"))
    assert read_image(path).format == "jpeg"
    assert read_image(png(1, 1, zlib.compress(bytes(4)))).format == "png"


def test_an_avif_of_more_bits_is_read_with_a_word():
    image = read_image(AVIF_OF_10_BITS)
    assert image.pixels.shape == (64, 64, 3)
    assert image.pixels.dtype == np.uint8
    assert image.warnings == ("its samples have 10 bits, and are read as 8",)
    assert read_image(saved(Image.new("RGB", (64, 64), "teal"), "AVIF")).warnings == ()
