"""Missing pixels are an error or, if asked for, a warning; what is wrong beside the pixels costs none."""

import io
import itertools
import os
import re
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_files import chunk, picture, png, saved, tiff
from PIL import Image

from uid.errors import InputError
from uid.runtime.media import decode, ifd
from uid.runtime.media.decode import read_image, read_stream
from uid.runtime.media.encode import encode_image
from uid.runtime.media.formats import MAX_SCANS

SIZE = (96, 80)
SMOOTH = np.add.outer(np.arange(96), np.arange(80))[..., None].repeat(3, axis=2).astype(np.uint8)
SMOOTH += np.random.default_rng(5).integers(0, 40, SMOOTH.shape, dtype=np.uint8)
PHOTO = Image.fromarray(SMOOTH)
DEEP = SMOOTH.astype(np.uint16) * 257
END = b"\xff\xd9"


def rows_missing(bits: int) -> bytes:
    """A PNG whose zlib stream is whole and has the upper half of the rows."""
    samples = SMOOTH if bits == 8 else DEEP
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in samples[:48])
    header = struct.pack(">IIBBBBB", 80, 96, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one) for one in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def altered(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at + len(what) :]


def in_strips(compression: str) -> bytes:
    """A TIFF in strips of 16 rows."""
    if compression != "raw":
        return saved(PHOTO, "TIFF", compression=compression, strip_size=80 * 3 * 16)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, SMOOTH, photometric="rgb", rowsperstrip=16)
    return buffer.getvalue()


def strip(data: bytes, number: int) -> tuple[int, int]:
    """Where a strip is, and its length."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return file.pages[0].dataoffsets[number], file.pages[0].databytecounts[number]


def shortened(data: bytes, number: int) -> bytes:
    """A TIFF that states half the length of a strip."""
    order, big, start = ifd.header(data)
    at, kind = next((at, kind) for _, tag, kind, _, at in ifd.places(data, order, big, start) if tag == 279)
    size, form = (2, "H") if kind == ifd.SHORT else (4, "I")
    return altered(data, at + size * number, struct.pack(order + form, strip(data, number)[1] // 2))


def baseline(**options: object) -> bytes:
    return saved(PHOTO, "JPEG", quality=92, **options)


def separate_scans() -> bytes:
    """A sequential JPEG with a scan for each channel, put together from three grey ones of the same tables."""
    grey = [saved(channel, "JPEG", quality=92) for channel in PHOTO.split()]
    frame, tables, scan = (grey[0].index(mark) for mark in (b"\xff\xc0", b"\xff\xc4", b"\xff\xda"))
    header = grey[0][frame : frame + 9] + b"\3" + b"".join(bytes([channel, 0x11, 0]) for channel in (1, 2, 3))
    header = header[:2] + struct.pack(">H", len(header) - 2) + header[4:]
    made = grey[0][:frame] + header + grey[0][tables:scan]
    for channel, one in enumerate(grey, 1):
        made += altered(one[one.index(b"\xff\xda") : -2], 5, bytes([channel]))
    return made + END


def scans(data: bytes) -> list[int]:
    """Where the scans of a JPEG begin, with their tables before them, and where the last one ends."""
    starts = [match.start() for match in re.finditer(b"(?:\xff\xc4..[^\xff]*)*\xff\xda", data, re.DOTALL)]
    return [*starts, len(data) - 2]


def without_scans(data: bytes, first: int, last: int) -> bytes:
    at = scans(data)
    return data[: at[first]] + data[at[last] :]


def damaged() -> dict[str, bytes]:
    jpeg, progressive = baseline(), baseline(progressive=True)
    grey = saved(PHOTO.convert("L"), "JPEG", progressive=True)
    made = {
        "progressive jpeg without its last scan": without_scans(progressive, -2, -1),
        "progressive jpeg without its last scan and end mark": without_scans(progressive, -2, -1)[:-2],
        "progressive jpeg without a scan in the middle": without_scans(progressive, 2, 3),
        "progressive jpeg of its first scan": without_scans(progressive, 1, -1),
        "grey progressive jpeg without its last scan": without_scans(grey, -2, -1),
        "jpeg of separate scans, one of them missing": without_scans(separate_scans(), 1, 2),
    }
    made |= {f"png of {bits} bit with half its rows": rows_missing(bits) for bits in (8, 16)}
    for bits, samples in ((8, SMOOTH), (16, DEEP)):
        data = encode_image(picture().with_pixels(samples), "png")
        at = data.index(b"IDAT") + 4
        made[f"png of {bits} bit with a wrong checksum"] = altered(data, data.index(b"IEND") - 6, b"\1\2")
        made[f"png of {bits} bit with other pixels"] = altered(data, at + 900, b"\x55\xaa\x55")
    for name, data in (("jpeg", jpeg), ("progressive jpeg", progressive)):
        # Of a progressive one where a scan begins: within a scan libjpeg falls into step again, mostly without a word.
        middle = data.index(b"\xff\xda", len(data) // 2) - 100 if name != "jpeg" else len(data) * 2 // 3
        made[f"{name} with a hole"] = altered(data, middle, bytes(200))
        made[f"{name} with a part cut out"] = data[:middle] + data[middle + 200 :]
        made[f"{name} cut short, with an end mark"] = data[:middle] + END
        made[f"{name} cut short"] = data[:middle]
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        data = in_strips(compression)
        start, length = strip(data, 2)
        made[f"tiff {compression} whose third strip is short"] = shortened(data, 2)
        if compression not in ("raw", "packbits"):  # which hold any bytes
            made[f"tiff {compression} with a hole"] = altered(data, start + length // 2, bytes(length // 3))
        if compression == "raw":  # else the directory is at the end, and cut off
            made[f"tiff {compression} cut short"] = data[: start + length // 2]
    return made


DAMAGED = damaged()


@pytest.mark.parametrize("kind", DAMAGED)
def test_missing_pixels_are_an_error_or_salvaged_with_a_word(kind, capfd):
    with pytest.raises(InputError, match="damaged or cut short") as raised:
        read_image(DAMAGED[kind])
    assert raised.value.option == "salvage"
    result = read_image(DAMAGED[kind], salvage=True)
    assert result.pixels.shape == (*SIZE, 3)
    assert any("damaged, taken as far as it goes" in warning for warning in result.warnings)
    assert capfd.readouterr() == ("", "")


def test_holes_in_a_jpeg_are_found_wherever_they_are():
    data = baseline()
    start = data.index(b"\xff\xda") + 40
    for at in range(start, len(data) - 150, 97):
        with pytest.raises(InputError, match="damaged or cut short"):
            read_image(altered(data, at, bytes(140)))
    for value in ((255, 255, 255), (0, 0, 0), (200, 10, 90)):  # whose pixels are mostly zeros
        flat = Image.new("RGB", (512, 512), value)
        for optimised in (False, True):
            assert read_image(saved(flat, "JPEG", optimize=optimised)).warnings == ()


def test_holes_in_a_progressive_jpeg_are_found_or_cost_little():
    photo = Image.fromarray(np.random.default_rng(2).normal(128, 40, (40, 40, 3)).clip(0, 255).astype(np.uint8))
    data = saved(photo.resize((400, 400), Image.Resampling.BICUBIC), "JPEG", quality=95, progressive=True)
    whole, unnoticed = read_image(data), 0
    for start, end in itertools.pairwise(scans(data)):
        for at in range(data.index(b"\xff\xda", start) + 40, end - 200, 211):
            try:
                result = read_image(altered(data, at, bytes(180)))
            except InputError:
                continue
            unnoticed += 1
            error = np.square(result.pixels.astype(float) - whole.pixels).mean()
            assert error < 2.0  # 45 dB: of the averages' last bits
    assert unnoticed < 10


def sound_jpegs() -> Iterator[bytes]:
    """Drawn images, whose scans are mostly zeros, and unusual ways to send a photo."""
    down, across = np.mgrid[:512, :768]
    wave = 128 - 40 * np.cos(np.outer(np.ones(64), (2 * (np.arange(64) % 8) + 1) * 2 * np.pi / 16))
    for samples in (
        down * 255 // 512,
        down % 256,
        (down + across) % 256,
        across // 8 * 8,
        np.full((64, 64), 90, np.uint8),
        wave,
    ):
        for quality in (50, 75, 90):
            yield saved(
                Image.fromarray(samples.astype(np.uint8)).convert("RGB"), "JPEG", quality=quality, progressive=True
            )
    photo = Image.open(io.BytesIO(saved(PHOTO, "JPEG", quality=75)))
    finer = {key: [max(1, value // 2) for value in table] for key, table in photo.quantization.items()}
    yield saved(photo, "JPEG", qtables=finer, progressive=True)  # all coefficients are even
    yield saved(PHOTO.convert("L"), "JPEG", progressive=True)
    yield saved(PHOTO, "JPEG", progressive=True, restart_marker_blocks=3)
    yield separate_scans()


def test_sound_jpegs_are_read_without_a_word():
    for data in sound_jpegs():
        assert read_image(data).warnings == ()


def test_salvaged_rows_are_those_of_the_image():
    for bits in (8, 16):
        result = read_image(rows_missing(bits), salvage=True)
        np.testing.assert_array_equal(result.pixels[:48], (SMOOTH if bits == 8 else DEEP)[:48])
        assert not result.pixels[48:].any()
    whole, jpeg = read_image(baseline()), baseline()
    result = read_image(jpeg[: len(jpeg) // 2], salvage=True)
    np.testing.assert_array_equal(result.pixels[:24], whole.pixels[:24])
    data = in_strips("tiff_adobe_deflate")
    start, length = strip(data, 2)
    result = read_image(altered(data, start + length // 2, bytes(60)), salvage=True)
    np.testing.assert_array_equal(np.delete(result.pixels, range(32, 48), 0), np.delete(SMOOTH, range(32, 48), 0))


def test_where_libjpeg_gives_up_no_memory_is_shown():
    data = saved(PHOTO, "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    doubtful = altered(data, scan + 20, b"\xff\x00\x13\x77")  # libjpeg warns, and then calls the error a warning too
    broken = altered(doubtful, data.rindex(b"\xff\xc4") + 4, b"\x2f")
    with pytest.raises(InputError, match="damaged or cut short"):
        read_image(broken)
    with pytest.raises(InputError, match="nothing is left to salvage"):
        read_image(broken, salvage=True)


# What stands beside the pixels


def with_chunk(kind: bytes, body: bytes, checksum: bytes | None = None, deep: bool = False) -> bytes:
    data = encode_image(picture().with_pixels(DEEP if deep else SMOOTH), "png")
    made = chunk(kind, body)
    return data[:33] + (made if checksum is None else made[:-4] + checksum) + data[33:]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("kind", "body", "checksum"),
    [
        (b"tEXt", b"Author\0me", b"abcd"),
        (b"eXIf", b"II*\0", b"abcd"),
        (b"pHYs", bytes(9), b"abcd"),
        (b"tEXt", b"Author\0" + b"x" * 5_000_000, None),
        (b"zTXt", b"Author\0\0" + zlib.compress(bytes(9_000_000)), None),
        (b"iTXt", b"Author\0\1\0\0\0" + zlib.compress(bytes(9_000_000)), None),
        (b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000)), None),
        (b"iCCP", b"name\0\0rubbish", None),
        (b"eXIf", b"rubbish", None),
        (b"gAMA", b"", None),
    ],
)
def test_png_is_read_whatever_stands_beside_its_pixels(kind, body, checksum, deep):
    result = read_image(with_chunk(kind, body, checksum, deep))
    np.testing.assert_array_equal(result.pixels, DEEP if deep else SMOOTH)
    assert bool(result.warnings) == (checksum is not None or kind in (b"iCCP", b"eXIf"))


@pytest.mark.parametrize("format", ["png", "png of 16 bit", "jpeg", "progressive jpeg"])
def test_missing_end_mark_is_a_warning(format):
    data = {
        "png": encode_image(picture().with_pixels(SMOOTH), "png")[:-12],
        "png of 16 bit": encode_image(picture().with_pixels(DEEP), "png")[:-12],
        "jpeg": baseline()[:-2],
        "progressive jpeg": baseline(progressive=True)[:-2],
    }[format]
    whole = {"jpeg": baseline(), "progressive jpeg": baseline(progressive=True)}.get(format, data)
    result = read_image(data)
    assert result.warnings == ("its end mark is missing",)
    np.testing.assert_array_equal(result.pixels, read_image(whole).pixels)


def test_zeros_before_the_end_mark_of_a_jpeg_are_no_damage():
    result = read_image(baseline()[:-2] + bytes(100) + END)
    np.testing.assert_array_equal(result.pixels, read_image(baseline()).pixels)
    assert "zeros" in result.warnings[0]


# Limits


def test_jpeg_of_many_segments_is_read():
    """It took the square of their number, which is minutes."""
    data = baseline()
    segment = b"\xff\xe1" + struct.pack(">H", 8) + b"Exif\0\0"
    result = read_image(data[:2] + segment * 200_000 + data[2:])
    np.testing.assert_array_equal(result.pixels, read_image(data).pixels)


def test_jpeg_of_many_scans_is_refused():
    data = baseline(progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    read_image(data[:-2] + scan * 3 + END, salvage=True)
    with pytest.raises(InputError, match=f"more than {MAX_SCANS} scans"):
        read_image(data[:-2] + scan * 1000 + END)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes and devices as files")
def test_what_has_no_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_BYTES", 1 << 22)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.png", tmp_path / "link.png", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe or device"):
            read_image(path)
    with pytest.raises(InputError, match="standard input has more than"):
        read_stream(Endless(), "standard input")


class Endless(io.RawIOBase):
    """More bytes than any limit."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def test_header_that_promises_more_than_its_bytes_hold_takes_no_memory():
    tracemalloc.start()
    for data in (
        png(13_000, 13_000, zlib.compress(bytes(1000))),
        tiff(np.zeros((1, 1, 1), np.uint8), t256=9_000, t257=9_000),
    ):
        with pytest.raises(InputError, match="cut short"):
            read_image(data)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
