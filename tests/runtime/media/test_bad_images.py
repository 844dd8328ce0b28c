"""Files that cannot be read or written as images are refused by name, without a word from the libraries."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import HEIGHT, WIDTH, picture, png, saved, tiff
from PIL import Image

from uid.errors import InputError, OutputError
from uid.runtime.media.decode import read_image, read_stream
from uid.runtime.media.encode import check_writable, encode_image, write_image
from uid.runtime.media.formats import WRITTEN, DecodedImage, format_of, is_image_path


def animation(format: str) -> bytes:
    frames = [Image.fromarray(picture().pixels) for _ in range(2)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:])


def jpeg_of(mode: str) -> bytes:
    return saved(Image.new(mode, (8, 8)), "JPEG")


WHOLE = {name: encode_image(picture(size=(64, 64)), name) for name in WRITTEN}
DEFLATED = saved(Image.fromarray(picture(size=(64, 64)).pixels), "TIFF", compression="tiff_adobe_deflate")
DEEP = {name: encode_image(picture(np.uint16, size=(64, 64)), name) for name in ("png", "tiff")}
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, world", r"is of no format that is known here; convert it to PNG first \(expected a PNG, JPEG"),
    "gif": (animation("GIF"), "GIF; convert"),
    "raw": (b"FUJIFILMCCD-RAW 0201", "is a camera's RAW file; develop it"),
    "dng": (tiff(np.zeros((2, 2, 1), np.uint16), t262=32803, t50706=(1, 4, 0, 0)), "a camera's RAW file.; develop it"),
    "video": (b"\0\0\0\x18ftypisom\0\0\0\0", "is a video; convert"),
    **{f"truncated {name}": (data[: len(data) // 2], "cut short") for name, data in WHOLE.items()},
    **{f"truncated deep {name}": (data[: len(data) // 2], "cut short") for name, data in DEEP.items()},
    **{f"only a signature {name}": (data[:16], "cut short|unusual kind") for name, data in WHOLE.items()},
    "damaged deflated tiff": (DEFLATED[:1000] + bytes(500) + DEFLATED[1500:], "damaged"),
    **{f"animated {name}": (animation(name), "several frames or pages") for name in ("PNG", "WEBP", "TIFF")},
    "cmyk jpeg": (jpeg_of("CMYK"), "CMYK, not RGB, and no profile to convert it with"),
    "cmyk tiff": (saved(Image.new("CMYK", (8, 8)), "TIFF"), "CMYK, not RGB, and no profile to convert it with"),
    "lab": (saved(Image.new("LAB", (8, 8)), "TIFF"), "LAB, not RGB.*; convert"),
    "float": (saved(Image.new("F", (8, 8)), "TIFF"), "floating point.*; convert"),
    "int32": (saved(Image.new("I", (8, 8)), "TIFF"), "signed integers.*; convert"),
    "12 bit": (tiff(np.zeros((2, 2, 1), np.uint16), t258=12), "12 bit a channel, expected 8 or 16"),
    "nine channels": (tiff(np.zeros((2, 2, 9), np.uint8), t338=(0,) * 6), "9 channels, expected at most 8"),
    "huge png": (png(20_000, 20_000, b""), "20000 x 20000, more than 200000000 pixels.*raise the limit"),
    "huge bmp": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "20000 x 20000, more than",
    ),
    "huge tiff": (tiff(np.zeros((1, 1, 3), np.uint8), t256=20_000, t257=20_000), "20000 x 20000, more than"),
    "webp without an image": (
        b"RIFF\x1a\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0" + (11_999).to_bytes(3, "little") * 2 + b"\0\0\0\0",
        "it holds no image",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_refused_by_name_without_a_word_on_stderr(kind, tmp_path, capfd, recwarn):
    data, message = BAD[kind]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"bad.png .*{message}"):
        read_image(path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.png does not exist"):
        read_image(tmp_path / "absent.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder\.png is a folder"):
        read_image(tmp_path / "folder.png")
    with pytest.raises(InputError, match=r"^standard input is empty"):
        read_image(b"", name="standard input")


@pytest.mark.parametrize("format", WRITTEN)
def test_our_limit_on_pixels_counts_and_not_that_of_pillow(format, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encode_image(picture(np.uint16), format)
    assert read_image(data, max_pixels=HEIGHT * WIDTH).pixels.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match=f"more than {HEIGHT * WIDTH - 1} pixels; shrink it or raise the limit"):
        read_image(data, max_pixels=HEIGHT * WIDTH - 1)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert not recwarn.list


@pytest.mark.parametrize("format", ["jpeg", "bmp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_dropped_only_where_all_is_opaque(format, dtype):
    image = picture(dtype, alpha=True)
    with pytest.raises(OutputError, match="write it as png, webp or tiff"):
        check_writable(image, format)
    image.alpha[:] = np.iinfo(dtype).max
    assert read_image(encode_image(image, format)).alpha is None
    np.testing.assert_array_equal(read_image(encode_image(image, "png")).alpha, image.alpha)
    image.alpha[0, 0] -= 1
    with pytest.raises(OutputError, match="write it as png, webp or tiff"):
        encode_image(image, format)


def test_what_a_format_cannot_hold_is_refused(capfd):
    for format in ("webp", "jpeg", "avif"):
        long = DecodedImage(np.zeros((65_536, 1, 3), np.uint8), None, False, None, None, "png")
        with pytest.raises(OutputError, match=f"{format} holds at most .* got 1 x 65536"):
            check_writable(long, format)
    wide = picture(size=(10, 9_000))
    check_writable(wide, "webp")
    with pytest.raises(OutputError, match="got 18000 x 10"):
        check_writable(wide, "webp", columns=2)
    for format in ("gif", "heic"):
        with pytest.raises(OutputError, match=f"{format} is not an image format that can be written"):
            encode_image(picture(), format)
    assert capfd.readouterr() == ("", "")


def test_disk_that_refuses_leaves_nothing(tmp_path):
    (tmp_path / "out.png").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_image(picture(), tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_suffixes():
    assert [format_of(Path(name)) for name in ("a.JPG", "a.jpeg", "a.tif", "a.Webp")] == [
        "jpeg",
        "jpeg",
        "tiff",
        "webp",
    ]
    assert not is_image_path(Path("png"))
    with pytest.raises(InputError, match=r"a\.gif has no image suffix.*\.png"):
        format_of(Path("a.gif"))


def test_given_format_overrules_the_suffix(tmp_path):
    write_image(picture(), tmp_path / "out.png", "bmp")
    assert (tmp_path / "out.png").read_bytes().startswith(b"BM")


def test_reading_takes_no_memory_for_bytes_that_are_not_there() -> None:
    class Counting(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size, "a limit is asked for"
            self.most = max(self.most, size)
            return super().read(size)

    contents = bytes(range(256)) * 10_000
    stream = Counting(contents)
    assert read_stream(stream, "it") == contents
    assert stream.most <= 1 << 24
