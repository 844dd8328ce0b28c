"""TIFF files of every depth and number of channels, in strips, with the input's tags and compression."""

import io
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from uid.runtime.media import ifd
from uid.runtime.media.exif import EXIF_PREFIX, LAYOUT, RESOLUTION, RESOLUTION_UNIT, RESOLUTION_Y, resolution
from uid.runtime.media.formats import DecodedImage, Samples
from uid.runtime.media.tiff import (
    DEFLATE,
    GREY,
    IPTC,
    LZW,
    NONE,
    PACKBITS,
    PADDING,
    PROFILE,
    RGB,
    SEPARATE,
    UNSPECIFIED,
    WRITTEN,
    XMP,
    Tags,
)

NAMES = {LZW: "tiff_lzw", PACKBITS: "packbits"}  # Pillow's
INCH = 2  # the unit of a resolution
STRIP = 1 << 18  # bytes of a strip, about


def encode(samples: Samples, image: DecodedImage) -> Iterator[bytes]:
    """A file of ``samples`` (H, W, channels), uint8 or uint16, with the compression of ``image``, in pieces.

    The channels are one or three colours, then alpha where ``image`` has it, then further ones.
    """
    order: ifd.Order = "<"
    found: dict[int, ifd.Entry | ifd.Directory] = {}
    if image.exif:
        exif = image.exif.removeprefix(EXIF_PREFIX)
        order, found = ifd.header(exif)[0], dict(ifd.read(exif, LAYOUT))
    height, width, channels = samples.shape
    rows = max(1, STRIP // (width * channels * samples.itemsize))
    strips = (samples[top : top + rows] for top in range(0, height, rows))
    packed = [_strip_of(one, order, image.compression) for one in strips]
    found = _descriptions(image, order) | found | _layout_tags(samples, image, order, rows)
    if image.dpi and image.dpi != (image.exif and resolution(image.exif)):
        found |= _resolution_tags(image.dpi, order)
    lengths = [len(one) for one in packed]
    found[279] = ifd.longs(order, *lengths)
    found[273] = ifd.longs(order, *lengths)  # of the same size as the places, which follow
    start = 8 + len(ifd.packed(found, order, 8))
    if start + sum(lengths) >= 1 << 32:
        raise ValueError("a TIFF holds 4 GiB at most")
    found[273] = ifd.longs(order, *(start + np.cumsum([0, *lengths[:-1]])).tolist())
    yield ifd.file_header(order) + ifd.packed(found, order, 8)
    yield from packed


def _strip_of(rows: Samples, order: ifd.Order, compression: int) -> bytes:
    """Rows as a packed strip; with a predictor where that makes it smaller."""
    compression = WRITTEN.get(compression, DEFLATE)
    if _predicts(compression):
        rows = np.diff(rows, axis=1, prepend=rows.dtype.type(0))
    plain = np.ascontiguousarray(rows, rows.dtype.newbyteorder(order)).tobytes()
    if compression == NONE:
        return plain
    if compression == DEFLATE:
        return zlib.compress(plain)
    buffer = io.BytesIO()
    bytes_ = np.frombuffer(plain, np.uint8).reshape(len(rows), -1)
    Image.fromarray(bytes_).save(buffer, "TIFF", compression=NAMES[compression], strip_size=PADDING)
    tags = Tags(buffer.getvalue())
    return buffer.getvalue()[tags.one(273, 0) :][: tags.one(279, 0)]


def _predicts(compression: int) -> bool:
    return compression in (LZW, DEFLATE)


def _layout_tags(samples: Samples, image: DecodedImage, order: ifd.Order, rows: int) -> dict[int, ifd.Entry]:
    height, width, channels = samples.shape
    further = [SEPARATE] * (image.alpha is not None)
    further += [UNSPECIFIED] * (0 if image.extra is None else image.extra.shape[2])
    colours, compression = channels - len(further), WRITTEN.get(image.compression, DEFLATE)
    tags = {256: ifd.longs(order, width), 257: ifd.longs(order, height), 278: ifd.longs(order, rows)}
    tags |= {258: ifd.shorts(order, *[8 * samples.itemsize] * channels), 277: ifd.shorts(order, channels)}
    single = {259: compression, 262: GREY if colours == 1 else RGB, 284: 1, 274: 1}
    tags |= {tag: ifd.shorts(order, value) for tag, value in single.items()}
    if further:
        tags[338] = ifd.shorts(order, *further)
    if _predicts(compression):
        tags[317] = ifd.shorts(order, 2)
    return tags


def _descriptions(image: DecodedImage, order: ifd.Order) -> dict[int, ifd.Entry]:
    values: dict[int, bytes | None] = {PROFILE: image.icc, XMP: image.xmp, IPTC: image.iptc}
    if image.format == "tiff":
        values |= {int(tag): value for tag, value in image.native}
    tags = {tag: ifd.Entry(7, len(value), value) for tag, value in values.items() if value}
    if image.comment and image.format != "tiff":
        tags.setdefault(270, ifd.Entry(2, len(image.comment) + 1, image.comment + b"\0"))
    return tags


def _resolution_tags(dpi: tuple[float, float], order: ifd.Order) -> dict[int, ifd.Entry]:
    across, down = (ifd.rational(order, one) for one in dpi)
    return {RESOLUTION: across, RESOLUTION_Y: down, RESOLUTION_UNIT: ifd.shorts(order, INCH)}
