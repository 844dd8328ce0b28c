"""What stands beside the pixels survives wherever a format has a place for it, and is named where it has none."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from image_files import (
    HEIGHT,
    ICC,
    NESTED,
    RNG,
    UPRIGHT,
    WIDTH,
    camera_exif,
    chunk,
    grey_profile,
    parsed,
    picture,
    saved,
    tiff,
)
from PIL import Image, ImageCms

from uid.runtime.media import icc, iptc
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import encode_image, not_carried
from uid.runtime.media.formats import FORMATS, WRITTEN
from uid.runtime.media.tiff import Tags

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" exif:PixelXDimension="9"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x50\0\x02me\x1c\x02\x78\0\x05title"
FULL = {"exif": camera_exif(1), "icc": ICC, "xmp": XMP, "iptc": IPTC, "comment": b"a word", "dpi": (300.0, 240.0)}
WITH_EXIF = [name for name in WRITTEN if "exif" in FORMATS[name].metadata]


@pytest.mark.parametrize("target", WRITTEN)
@pytest.mark.parametrize("source", WRITTEN)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_of_it_survives_from_any_format_to_any_that_has_a_place(source, target, dtype):
    original = dataclasses.replace(picture(dtype, exif=FULL["exif"], icc=ICC), **FULL)
    first = read_image(encode_image(original, source))
    result = read_image(encode_image(first, target))
    lost = {*not_carried(original, source), *not_carried(first, target)}
    for name, word in (("xmp", "XMP"), ("iptc", "IPTC"), ("icc", "the colour profile"), ("exif", "EXIF")):
        kept = all(name in FORMATS[one].metadata for one in (source, target))
        if (name, source, target) != ("exif", "bmp", "tiff"):  # whose tags have the resolution
            assert (getattr(result, name) is not None) == kept
        assert (word in lost) != kept
    if result.xmp:
        assert result.xmp == XMP.replace(b'"6"', b'"1"')  # and PixelXDimension is its width
    assert result.iptc in (IPTC, None)
    assert result.icc in (ICC, None)
    if all("dpi" in FORMATS[one].metadata for one in (source, target)):
        np.testing.assert_allclose(result.dpi, (300, 240), atol=0.02)
    if {source, target} <= {"png", "jpeg", "tiff"} and "tiff" not in (source, target):
        assert result.comment == b"a word"
    if result.exif and source != "bmp":
        exif = parsed(result.exif)
        assert exif[271] == "camera"
        assert exif.get_ifd(34665) == NESTED
        assert exif.get_ifd(34853)[2] == (1, 2.5, 3)
        assert 273 not in exif, "the file's layout is no metadata"


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
        turned = read_image(encode_image(dataclasses.replace(original, exif=None), format))
        stored, alpha = turned.pixels, turned.alpha
    result = read_image(data)
    np.testing.assert_array_equal(result.pixels, UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(result.alpha, UPRIGHT[orientation](alpha))
    assert parsed(result.exif)[274] == 1
    assert parsed(result.exif)[271] == "camera"
    again = read_image(encode_image(result, format))
    np.testing.assert_array_equal(again.pixels, result.pixels)


def exif_of(*entries: tuple[int, int, int, bytes], order: str = "<", nested: tuple[int, int, int, bytes] | None = None):
    """EXIF tag by tag: (tag, type, count, four bytes), and one entry within EXIF's own directory."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    end = 8 + 2 + 12 * (len(entries) + (nested is not None)) + 4
    rows = [struct.pack(order + "HHI", *one[:3]) + one[3] for one in entries]
    inner = b""
    if nested:
        rows.append(struct.pack(order + "HHII", 34665, 4, 1, end))
        inner = struct.pack(order + "HHHI", 1, *nested[:3]) + nested[3] + bytes(4)
    return mark + struct.pack(order + "IH", 8, len(rows)) + b"".join(rows) + bytes(4) + inner


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "form"), [(1, "B3x"), (3, "H2x"), (4, "I"), (6, "b3x"), (8, "h2x"), (9, "i")])
def test_orientation_of_any_whole_number_type(order, kind, form):
    image = picture()
    raw = exif_of((274, kind, 1, struct.pack(order + form, 6)), order=order)
    result = read_image(encode_image(dataclasses.replace(image, exif=b"Exif\0\0" + raw), "png"))
    np.testing.assert_array_equal(result.pixels, np.rot90(image.pixels, -1))
    assert parsed(result.exif)[274] == 1
    assert read_image(encode_image(result, "jpeg")).pixels.shape == result.pixels.shape


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "form"), [(3, "H2x"), (4, "I"), (9, "i")])
@pytest.mark.parametrize("format", ["png", "jpeg", "tiff", "webp", "avif"])
def test_size_in_exif_is_that_of_the_image(order, kind, form, format):
    width = struct.pack(order + form, WIDTH)
    raw = exif_of(
        (256, kind, 1, width), (274, 3, 1, struct.pack(order + "H2x", 6)), order=order, nested=(40962, kind, 1, width)
    )
    turned = read_image(saved(Image.fromarray(picture().pixels), "PNG", exif=b"Exif\0\0" + raw))
    result = parsed(read_image(encode_image(turned, format)).exif)
    assert result.get_ifd(34665)[40962] == HEIGHT
    if format != "tiff":  # whose own tag it is
        assert result[256] == HEIGHT
    larger = turned.with_pixels(np.zeros((70_000, 4, 3), np.uint8))
    if kind != 3:
        assert parsed(read_image(encode_image(larger, "png")).exif).get_ifd(34665)[40962] == 4


@pytest.mark.parametrize("target", ["tiff", "png", "jpeg"])
def test_values_of_unusual_types_stay_as_they_are(target):
    odd = [
        (271, 1, 4, b"cam\0"),
        (305, 7, 3, b"a\xffb\0"),
        (282, 2, 4, b"abc\0"),
        (50000, 13, 1, b"\1\2\3\4"),
        (59999, 99, 1, b"abcd"),
    ]
    source = read_image(encode_image(picture(exif=b"Exif\0\0" + exif_of(*odd)), "png"))
    exif = read_image(encode_image(source, target)).exif.removeprefix(b"Exif\0\0")
    tags = Tags(exif)
    assert [tags.raw(one[0]) for one in odd[:4]] == [one[3][: one[2] if one[1] != 13 else 4] for one in odd[:4]]
    with_dpi = tiff(np.zeros((1, 1, 3), np.uint8), t271="cam", t282=1.5, t33550=(1.0, 2.0, 0.0))
    again = read_image(encode_image(read_image(with_dpi), "tiff")).exif
    assert parsed(again)[33550] == (1.0, 2.0, 0.0), "where a map's pixels are"


def test_thumbnail_of_the_old_image_is_unlinked_and_garbled_exif_dropped_with_a_word():
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 274, 3, 1, 3) + struct.pack("<I", 26) + b"\0\0\0\0\0\0"
    result = read_image(saved(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0" + exif))
    assert result.exif == b"Exif\0\0" + exif[:18] + b"\x01" + exif[19:22] + b"\0\0\0\0" + exif[26:]
    for garbled in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        result = read_image(saved(Image.new("RGB", (4, 4)), "JPEG", exif=garbled))
        assert result.exif is None
        assert "EXIF is garbled" in result.warnings[0]
    profile = tiff(np.zeros((1, 1, 3), np.uint8), t34675=7)
    as_number = profile.replace(struct.pack("<HHI", 34675, 7, 1), struct.pack("<HHI", 34675, 4, 1))
    assert read_image(as_number).icc is None


# What only one format has


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    data = encode_image(picture(), "png")
    return data[:33] + b"".join(chunk(*one) for one in chunks) + data[33:]


def test_chunks_of_a_png_stay_and_are_named_where_they_cannot():
    chunks = [
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        (b"sRGB", b"\0"),
        (b"cICP", bytes([9, 16, 0, 1])),
        (b"tIME", bytes([7, 228, 1, 2, 3, 4, 5])),
        (b"tEXt", b"Author\0me"),
        (b"tEXt", b"Comment\0a word"),
        (b"zTXt", b"Software\0\0" + zlib.compress(b"mine")),
        (b"iTXt", b"Title\0\0\0de\0Titel\0Bild"),
        (b"prVt", b"private"),
    ]
    image = read_image(png_with(*chunks, (b"sBIT", b"\5\6\5"), (b"bKGD", bytes(6))))
    again = encode_image(image, "png")
    for one in chunks:
        assert again.count(chunk(*one)) == 1
    assert b"sBIT" not in again
    assert again.rindex(b"prVt") < again.index(b"IDAT")
    lost = not_carried(image, "jpeg")
    assert {"the chunk gAMA", "the chunk cICP", "the text 'Author'", "the text 'Title'"} <= set(lost)
    assert "the text 'Comment'" not in lost
    assert Image.open(io.BytesIO(encode_image(image, "jpeg"))).info["comment"] == b"a word"
    assert read_image(encode_image(image, "tiff")).exif is not None
    assert not_carried(image, "png") == []


def test_segments_of_a_jpeg_stay():
    ducky = b"\xff\xec\0\x0dDucky\0\1\0\4\0\0"
    thumbnail = b"8BIM\x04\x0c\0\0\0\0\0\4\1\2\3\4"
    photoshop = b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\2\1\2" + thumbnail + iptc.resource(IPTC)
    data = saved(Image.fromarray(picture().pixels), "JPEG", comment=b"first", dpi=(72, 72))
    segment = b"\xff\xed" + struct.pack(">H", len(photoshop) + 2) + photoshop
    image = read_image(data[:2] + ducky + segment + b"\xff\xfe\0\6more" + data[2:])
    assert image.iptc == IPTC
    again = encode_image(image, "jpeg")
    assert again.count(ducky) == 1
    assert again.count(iptc.resource(IPTC)) == 1
    assert b"\x03\xed" in again
    assert thumbnail not in again
    assert again.count(b"first") == again.count(b"more") == 1
    assert {"the segment APP12", "IPTC's neighbours (Photoshop)"} <= set(not_carried(image, "png"))
    assert read_image(encode_image(image, "png")).iptc == IPTC


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_compression_of_a_tiff_stays(compression, mode):
    if (compression, mode) == ("jpeg", "RGBA"):
        pytest.skip("JPEG has no alpha")
    image = Image.fromarray(picture(alpha=True, size=(64, 64)).pixels).convert(mode)
    result = encode_image(read_image(saved(image, "TIFF", compression=compression)), "tiff")
    lossless = "tiff_adobe_deflate" if compression == "jpeg" else compression
    assert Image.open(io.BytesIO(result)).info["compression"] == lossless


def test_long_metadata():
    """Several segments of a profile; EXIF and XMP that a JPEG has no room for are named."""
    profile = icc.fitted(ICC, icc.RGB) + bytes(200_000)
    image = dataclasses.replace(
        picture(icc=profile), exif=b"Exif\0\0" + exif_of((271, 2, 4, b"cam\0")) + bytes(70_000), xmp=XMP * 900
    )
    assert set(not_carried(image, "jpeg")) == {"EXIF", "XMP"}
    assert read_image(encode_image(image, "jpeg")).icc == profile
    for format in ("png", "tiff", "webp"):
        assert not_carried(image, format) == []
        result = read_image(encode_image(image, format))
        assert len(result.xmp) == len(XMP * 900)
        assert result.icc == profile


# Profiles of another colour space than the pixels


def light(profile: bytes, image: Image.Image) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    shown = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return np.asarray(shown).astype(int)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("format", ["png", "tiff", "jpeg", "webp"])
def test_grey_keeps_its_look_under_its_profile(format, alpha, dtype):
    if alpha and format == "jpeg":
        pytest.skip("JPEG has no alpha")
    image = picture(dtype, grey=True, alpha=alpha, icc=grey_profile(1.8))
    result = read_image(encode_image(image, format))
    assert result.icc[16:20] == (b"GRAY" if result.grey else b"RGB ")
    # What Pillow takes 16-bit grey with alpha for.
    assert result.grey == (format != "webp" and (format, dtype, alpha) != ("png", np.uint16, True))
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    ramp_as_file = ramp if result.icc[16:20] == b"GRAY" else ramp.convert("RGB")
    assert np.abs(light(result.icc, ramp_as_file) - light(image.icc, ramp)).max() <= 1
    assert "the colour profile" not in " ".join(not_carried(image, format))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("format", ["png", "tiff"])
def test_profile_that_does_not_fit_the_pixels_gives_way(format, dtype):
    mixed = dataclasses.replace(picture(dtype), icc=None)
    data = encode_image(mixed, format)
    if format == "png":
        wrong = data[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(grey_profile(2.2))) + data[33:]
        grey = encode_image(picture(dtype, grey=True), "png")
        grey = grey[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(ICC)) + grey[33:]
    else:
        wrong = tiff(mixed.pixels, t34675=grey_profile(2.2))
        grey = tiff(picture(dtype, grey=True).pixels[..., :1], t34675=ICC)
    result = read_image(wrong)
    assert result.icc is None
    assert "is for GRAY, its pixels are RGB" in result.warnings[0]
    result = read_image(grey)
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert np.abs(light(result.icc, ramp) - light(ICC, ramp.convert("RGB"))).max() <= 1
    assert "gave way to a grey one" in result.warnings[0]
