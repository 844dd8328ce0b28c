"""Arrays to image files: lossless but for JPEG, with the alpha, EXIF and ICC that the input had."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ICCPROFILE, ImageFileDirectory_v2

from uid.bundles.files import written_whole
from uid.errors import OutputError
from uid.runtime.media.decode import quiet_warnings
from uid.runtime.media.exif import EXIF_PREFIX, descriptive_tags
from uid.runtime.media.formats import FORMATS, DecodedImage, Samples, format_of


def encode_image(image: DecodedImage, format: str) -> bytes:
    """The bytes of a file: lossless except JPEG (quality 95, 4:4:4).

    16 bit is rounded to 8 where the format has no more. BMP carries neither EXIF nor ICC. Raises ``OutputError`` for
    alpha in JPEG or BMP, and for sizes and metadata beyond the format's limits.
    """
    if format not in FORMATS:
        raise OutputError(f"{format} is not an image format that can be written; expected one of {', '.join(FORMATS)}")
    kind = FORMATS[format]
    if image.alpha is not None and not kind.alpha:
        raise OutputError(f"{format} has no transparency, which the image has; write it as png, webp or tiff")
    height, width = image.pixels.shape[:2]
    if kind.longest and max(height, width) > kind.longest:
        limit = f"at most {kind.longest} pixels a side, got {width} x {height}"
        raise OutputError(f"{format} holds {limit}; write it as png or tiff")
    try:
        with quiet_warnings():
            return _encoded(image, format)
    except (OSError, ValueError) as error:  # such as EXIF beyond JPEG's 64 KB
        raise OutputError(f"the image cannot be encoded as {format} ({error}); write it as png") from error


def write_image(image: DecodedImage, path: Path, format: str | None = None, **how: Any) -> None:
    """Write the file whole, in the suffix's format unless given; ``how`` is that of ``written_whole``.

    Raises as ``encode_image``, and on disk errors.
    """
    data = encode_image(image, format or format_of(path))
    with written_whole(path, **how) as temporary:
        temporary.write_bytes(data)


def _samples(image: DecodedImage) -> Samples:
    """(H, W, 1 to 4), as the file holds them; an image that was grey is weighed to grey as Pillow does (BT.601).

    16-bit grey with alpha is written as colour, since OpenCV would not read it back.
    """
    colour = image.pixels
    if image.grey and (image.alpha is None or colour.dtype == np.uint8):
        red, green, blue = np.moveaxis(colour.astype(np.uint32), -1, 0)
        colour = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(colour.dtype)[..., None]
    return colour if image.alpha is None else np.dstack([colour, image.alpha])


def _encoded(image: DecodedImage, format: str) -> bytes:
    samples, kind = _samples(image), FORMATS[format]
    if samples.dtype == np.uint16 and not kind.sixteen_bit:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if format == "tiff":
        return _tiff(samples, image.exif, image.icc)
    if samples.dtype == np.uint16:
        return _sixteen_bit_png(samples, image.exif, image.icc)
    return _saved(samples, image, format)


def _saved(samples: Samples, image: DecodedImage, format: str) -> bytes:
    options = dict(FORMATS[format].options)
    if image.exif:
        options["exif"] = image.exif
    if image.icc and not (format == "webp" and image.icc[16:20] == b"GRAY"):  # WebP has colour only
        options["icc_profile"] = image.icc
    buffer = io.BytesIO()
    shown = samples[..., 0] if samples.shape[-1] == 1 else samples
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, FORMATS[format].opener.format, **options)
    return buffer.getvalue()


def _sixteen_bit_png(samples: Samples, exif: bytes | None, icc: bytes | None) -> bytes:
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


def _tiff(samples: Samples, exif: bytes | None, icc: bytes | None) -> bytes:
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
