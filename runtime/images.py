"""Image files to arrays and back: PNG, JPEG, WebP, TIFF and BMP, 8 and 16 bit, with alpha, EXIF and ICC kept.

Pillow reads and writes 8 bits and all metadata; OpenCV, the only one of the two that holds 16-bit colour, reads and
writes 16-bit pixels. A 16-bit file goes through both: Pillow checks it and tells what it is, OpenCV has its samples.
"""

import contextlib
import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ICCPROFILE, ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from uid.errors import InputError, OutputError
from uid.runtime.exif import EXIF_PREFIX, descriptive_tags, upright_exif
from uid.runtime.files import written_whole

MAX_PIXELS = 200_000_000
Pixels = NDArray[Any]  # uint8 or uint16


@dataclass(frozen=True)
class Picture:
    """An image as decoded: upright RGB plus what must survive the round trip."""

    pixels: Pixels  # (H, W, 3) RGB, uint8 or uint16, EXIF orientation already applied
    alpha: Pixels | None  # (H, W), same dtype
    grey: bool  # the file held one colour channel; written back as one
    exif: bytes | None  # raw EXIF, orientation reset to 1, without its thumbnail
    icc: bytes | None  # ICC profile
    format: str  # a key of FORMATS


@dataclass(frozen=True)
class ImageFormat:
    """What one file format holds, and how it is recognised, read and written."""

    suffixes: tuple[str, ...]  # the first is the usual one
    signature: bytes  # pattern of a file's first bytes
    opener: type[ImageFile.ImageFile]  # parses the header; used directly since Image.open makes an MPO of phone JPEGs
    sixteen_bit: bool
    alpha: bool
    longest: int | None = None  # width or height in pixels
    options: Mapping[str, Any] = field(default_factory=dict)  # of Pillow's save


FORMATS = {
    "png": ImageFormat((".png",), rb"\x89PNG\r\n\x1a\n", PngImageFile, sixteen_bit=True, alpha=True),
    "jpeg": ImageFormat(
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        rb"\xff\xd8\xff",
        JpegImageFile,
        sixteen_bit=False,
        alpha=False,
        longest=65_500,
        options={"quality": 95, "subsampling": "4:4:4"},
    ),
    "webp": ImageFormat(
        (".webp",),
        rb"RIFF....WEBP",
        WebPImageFile,
        sixteen_bit=False,
        alpha=True,
        longest=16_383,
        options={"lossless": True, "exact": True},  # exact: colours under full transparency are kept too
    ),
    "tiff": ImageFormat((".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", TiffImageFile, sixteen_bit=True, alpha=True),
    "bmp": ImageFormat((".bmp", ".dib"), rb"BM", BmpImageFile, sixteen_bit=False, alpha=False),
}
SUFFIXES = {suffix: name for name, kind in FORMATS.items() for suffix in kind.suffixes}
NAMES = "PNG, JPEG, WebP, TIFF or BMP"


def is_image_path(path: Path) -> bool:
    """Whether the suffix is that of a format in ``FORMATS``."""
    return path.suffix.lower() in SUFFIXES


def format_of(path: Path) -> str:
    """The format that the suffix names. Raises ``InputError`` for an unknown suffix."""
    if not is_image_path(path):
        raise InputError(f"{path} has no image suffix; expected one of {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]


def read_image(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a file, or its bytes, by content whatever the suffix; ``name`` stands for it in errors.

    Palette and 1-bit pictures are expanded. Raises ``InputError`` for what is missing, damaged, not an image, larger
    than ``max_pixels``, of several frames, or neither grey nor RGB of up to 16 bit unsigned.
    """
    label = name or (str(source) if isinstance(source, Path) else "the image")
    data = source if isinstance(source, bytes) else _read_bytes(source, label)
    format = _recognised(data, label)
    with _pillow(label, max_pixels):
        image = FORMATS[format].opener(io.BytesIO(data))
        _refuse(image, label, max_pixels)
        deep = _bits(image, data) == 16
        with _stderr_muted():
            image.load()  # damage shows here
        colour, alpha = _split(_sixteen_bit(image, data, label) if deep else _eight_bit(image))
        exif, orientation = upright_exif(image)
        icc = image.info.get("icc_profile")
    return Picture(
        pixels=_upright(np.broadcast_to(colour, (*colour.shape[:2], 3)), orientation),
        alpha=None if alpha is None else _upright(alpha, orientation),
        grey=colour.shape[2] == 1,
        exif=exif,
        icc=icc if icc and isinstance(icc, bytes) else None,  # a garbled TIFF tag may be a number
        format=format,
    )


def encode_image(picture: Picture, format: str) -> bytes:
    """The bytes of a file: lossless except JPEG (quality 95, 4:4:4).

    16 bit is rounded to 8 where the format has no more. BMP carries neither EXIF nor ICC. Raises ``OutputError`` for
    alpha in JPEG or BMP, and for sizes and metadata beyond the format's limits.
    """
    if format not in FORMATS:
        raise OutputError(f"{format} is not an image format that can be written; expected one of {', '.join(FORMATS)}")
    kind = FORMATS[format]
    if picture.alpha is not None and not kind.alpha:
        raise OutputError(f"{format} cannot hold the picture's transparency; choose --format png, webp or tiff")
    height, width = picture.pixels.shape[:2]
    if kind.longest and max(height, width) > kind.longest:
        limit = f"at most {kind.longest} pixels a side, got {width} x {height}"
        raise OutputError(f"{format} holds {limit}; choose --format png or tiff")
    try:
        with _quiet():
            return _encoded(picture, format)
    except (OSError, ValueError) as error:  # such as EXIF beyond JPEG's 64 KB
        raise OutputError(f"the picture cannot be encoded as {format} ({error}); choose --format png") from error


def write_image(picture: Picture, path: Path, format: str | None = None) -> None:
    """Write the file whole, in the suffix's format unless given. Raises as ``encode_image``, and on disk errors."""
    data = encode_image(picture, format or format_of(path))
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


# Reading


def _read_bytes(path: Path, label: str) -> bytes:
    if path.is_dir():
        raise InputError(f"{label} is a folder; expected an image file")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{label} does not exist; check its name") from error
    except OSError as error:
        raise InputError(f"cannot read {label}: {error.strerror or error}") from error


def _recognised(data: bytes, label: str) -> str:
    """The format by content."""
    if not data:
        raise InputError(f"{label} is empty; expected a {NAMES} image")
    for format, kind in FORMATS.items():
        if re.match(kind.signature, data, re.DOTALL):
            return format
    hint = "a GIF" if data.startswith(b"GIF8") else "HEIC or AVIF" if data[4:8] == b"ftyp" else "none of them"
    raise InputError(f"{label} is not a {NAMES} image but {hint}; convert it to PNG first")


_PROCESS_WIDE = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings. What this and those inside it change is process-wide, and so under a lock."""
    with _PROCESS_WIDE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _stderr_muted() -> Iterator[None]:
    """Keep from the terminal what libtiff prints beside the error that Pillow raises."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _pillow(label: str, max_pixels: int) -> Iterator[None]:
    """Pillow without its warnings, with our size limit, and its errors translated."""
    with _quiet():
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2  # Pillow refuses twice of it
        try:
            yield
        except Image.DecompressionBombError as error:
            raise InputError(f"{label} has more than {max_pixels} pixels; shrink it or raise --max-pixels") from error
        except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:
            raise InputError(f"{label} is damaged, cut short or of an unusual kind ({error}); save it anew") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse(image: ImageFile.ImageFile, label: str, max_pixels: int) -> None:
    """Refuse by the header, before any pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        limit = f"more than {max_pixels} pixels; shrink it or raise --max-pixels"
        raise InputError(f"{label} is {width} x {height}, {limit}")
    if getattr(image, "is_animated", False):
        raise InputError(f"{label} holds several frames or pages; extract the one you want as a picture of its own")
    if image.mode in ("CMYK", "LAB", "I", "F"):
        kind = {"I": "32-bit or signed integers", "F": "floating point"}.get(image.mode, image.mode)
        raise InputError(
            f"{label} holds {kind}, not RGB; convert it first, e.g. magick IN -colorspace sRGB -depth 16 OUT"
        )
    if isinstance(image, TiffImageFile):
        _refuse_tiff(image.tag_v2, label)


def _refuse_tiff(tags: ImageFileDirectory_v2, label: str) -> None:
    """Refuse 16-bit layouts that OpenCV would decode to something else than what is meant."""
    bits, samples = tags.get(258, (1,))[0], tags.get(277, 1)
    if 8 < bits < 16:
        raise InputError(f"{label} has {bits} bit a channel, expected 8 or 16; convert it: magick IN -depth 16 OUT")
    if samples > 4:
        raise InputError(f"{label} has {samples} channels, expected 1 to 4; convert it first")
    unusual = {
        "channels in separate planes": tags.get(284) == 2 and samples > 1,
        "white as zero": tags.get(262) == 0,
        "colours multiplied by alpha": 1 in tags.get(338, ()),
    }
    for what in (name for name, found in unusual.items() if bits == 16 and found):
        raise InputError(f"{label} stores 16 bit with {what}; convert it: magick IN -depth 16 OUT.png")


def _bits(image: ImageFile.ImageFile, data: bytes) -> int:
    """Bits a sample, as the file stores them."""
    if isinstance(image, PngImageFile):
        return data[24]
    return int(image.tag_v2.get(258, (1,))[0]) if isinstance(image, TiffImageFile) else 8


def _eight_bit(image: Image.Image) -> Pixels:
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    samples = np.asarray(image.convert(mode))
    return samples[..., None] if samples.ndim == 2 else samples


def _split(samples: Pixels) -> tuple[Pixels, Pixels | None]:
    """(H, W, 1 to 4) as colour and alpha."""
    return (samples, None) if samples.shape[-1] % 2 else (samples[..., :-1], samples[..., -1])


def _sixteen_bit(image: ImageFile.ImageFile, data: bytes, label: str) -> Pixels:
    """16-bit samples (H, W, 1 to 4), upright where Pillow has made ``image`` so (TIFF)."""
    import cv2  # takes 0.3 s, and only 16-bit pictures need it

    with _stderr_muted():
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise InputError(f"{label} holds 16-bit samples of an unusual kind; save it anew")
    samples = samples[..., None] if samples.ndim == 2 else samples[..., [2, 1, 0, 3][: samples.shape[2]]]
    if isinstance(image, PngImageFile) and data[25] in (0, 4):  # grey, which OpenCV expands when there is alpha
        samples = samples[..., [0, -1]] if samples.shape[2] == 4 else samples[..., :1]
    return samples


def _upright(array: Pixels, orientation: int) -> Pixels:
    """The array as the EXIF orientation (1 to 8) says it is meant to be seen."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.array(array[rows, columns], order="C")


# Writing


def _samples(picture: Picture) -> Pixels:
    """(H, W, 1 to 4), as the file holds them; a picture that was grey is weighed to grey as Pillow does (BT.601).

    16-bit grey with alpha is written as colour, since OpenCV would not read it back.
    """
    colour = picture.pixels
    if picture.grey and (picture.alpha is None or colour.dtype == np.uint8):
        red, green, blue = np.moveaxis(colour.astype(np.uint32), -1, 0)
        colour = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(colour.dtype)[..., None]
    return colour if picture.alpha is None else np.dstack([colour, picture.alpha])


def _encoded(picture: Picture, format: str) -> bytes:
    samples, kind = _samples(picture), FORMATS[format]
    if samples.dtype == np.uint16 and not kind.sixteen_bit:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if format == "tiff":
        return _tiff(samples, picture.exif, picture.icc)
    if samples.dtype == np.uint16:
        return _sixteen_bit_png(samples, picture.exif, picture.icc)
    return _saved(samples, picture, format)


def _saved(samples: Pixels, picture: Picture, format: str) -> bytes:
    options = dict(FORMATS[format].options)
    if picture.exif:
        options["exif"] = picture.exif
    if picture.icc and not (format == "webp" and picture.icc[16:20] == b"GRAY"):  # WebP has colour only
        options["icc_profile"] = picture.icc
    buffer = io.BytesIO()
    shown = samples[..., 0] if samples.shape[-1] == 1 else samples
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, FORMATS[format].opener.format, **options)
    return buffer.getvalue()


def _sixteen_bit_png(samples: Pixels, exif: bytes | None, icc: bytes | None) -> bytes:
    """OpenCV's PNG, with the metadata that it does not write put in before the pixels."""
    import cv2  # as above

    bgr = samples[..., [0] if samples.shape[2] == 1 else [2, 1, 0, 3][: samples.shape[2]]]
    written, png = cv2.imencode(".png", bgr)
    if not written:
        raise ValueError("OpenCV cannot write it")
    data = png.tobytes()
    first = data.index(b"IDAT") - 4
    profile = _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)) if icc else b""
    tags = _chunk(b"eXIf", exif.removeprefix(EXIF_PREFIX)) if exif else b""
    return data[:first] + profile + tags + data[first:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk: length, type, data, checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _tiff(samples: Pixels, exif: bytes | None, icc: bytes | None) -> bytes:
    """Little-endian TIFF 6.0, uncompressed in one strip."""
    height, width, channels = samples.shape
    pixels = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("<")).tobytes()
    tags, parsed = ImageFileDirectory_v2(), Image.Exif()
    parsed.load(exif or b"")
    tags.update(descriptive_tags(parsed))
    tags[256], tags[257], tags[277], tags[278] = width, height, channels, height
    tags[258] = (samples.itemsize * 8,) * channels
    tags[259], tags[262], tags[284] = 1, 1 if channels < 3 else 2, 1
    if channels % 2 == 0:
        tags[338] = 2  # the extra sample is alpha, not multiplied into the colours
    if icc:
        tags[ICCPROFILE] = icc
    tags[273], tags[279] = 0, len(pixels)  # Pillow adds the directory's end to the strip's offset
    buffer = io.BytesIO()
    tags.save(buffer)
    return buffer.getvalue() + pixels
