"""Arrays to image files: lossless but for JPEG and AVIF, with all that the input had beside its pixels."""

import dataclasses
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uid.bundles.files import written_whole
from uid.errors import InputError, OutputError
from uid.runtime.media import boxed, icc, ifd, jpeg, png, tiff_writer
from uid.runtime.media.exif import EXIF_PREFIX, sized_exif, sized_xmp
from uid.runtime.media.formats import FORMATS, SUBSAMPLINGS, WRITTEN, DecodedImage, Samples, format_of
from uid.runtime.media.reading import opaque

CALLED = {"exif": "EXIF", "icc": "the colour profile", "xmp": "XMP", "iptc": "IPTC", "comment": "the comment"}
CALLED |= {"dpi": "the resolution", "extra": "further channels"}
DESCRIPTION = 270  # a TIFF's tag, which a comment goes to


@dataclass(frozen=True)
class Encoding:
    """How a lossy format is compressed. Raises ``InputError`` for values that none accepts."""

    jpeg_quality: int | None = None  # 1 to 100; None: the input's own quantisation tables, else 95
    jpeg_subsampling: str | None = None  # "4:4:4", "4:2:2" or "4:2:0"; None: the input's own, else 4:4:4

    def __post_init__(self) -> None:
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"jpeg quality is {self.jpeg_quality}; expected 1 to 100", option="jpeg_quality")
        if self.jpeg_subsampling not in (None, *SUBSAMPLINGS):
            expected = ", ".join(SUBSAMPLINGS)
            raise InputError(
                f"subsampling is {self.jpeg_subsampling!r}; expected {expected}", option="jpeg_subsampling"
            )


def check_writable(image: DecodedImage, format: str, *, columns: int = 1, scale: int = 1) -> None:
    """Raise ``OutputError`` where a file of ``format`` cannot hold the image: before the time to compute it is spent.

    The output is ``columns`` and ``scale`` times as wide and ``scale`` times as high as the image.
    """
    if format not in WRITTEN:
        raise OutputError(f"{format} is not an image format that can be written; expected one of {', '.join(WRITTEN)}")
    kind = FORMATS[format]
    if image.alpha is not None and not kind.alpha and not opaque(image.alpha):
        raise OutputError(f"{format} has no transparency, which the image has; write it as png, webp or tiff")
    height, width = (scale * side for side in image.pixels.shape[:2])
    if kind.longest and max(height, width * columns) > kind.longest:
        limit = f"at most {kind.longest} pixels a side, got {width * columns} x {height}"
        raise OutputError(f"{format} holds {limit}; write it as png or tiff")


def not_carried(image: DecodedImage, format: str) -> list[str]:
    """What the image has and a file of ``format`` has no place for, in words."""
    kind = FORMATS[format]
    lost = [CALLED[name] for name in _lost_fields(image, format)]
    if image.icc and "icc" in kind.metadata and _profile(image, format) is None:
        lost.append("the colour profile, which is for grey")
    if image.pixels.dtype == np.uint16 and not kind.sixteen_bit:
        lost.append("16 bits a channel, rounded to 8")
    if format != image.format:
        lost += sorted({_native_name(image.format, *one) for one in image.native if not _is_comment(image, *one)})
    return lost


def _lost_fields(image: DecodedImage, format: str) -> list[str]:
    """The fields of ``CALLED`` that the image has and a file of ``format`` has no place for, or too small a one."""
    places = FORMATS[format].metadata
    lost = [name for name in CALLED if getattr(image, name) is not None and name not in places]
    if format == "jpeg":
        too_long = jpeg.too_long(image)
        lost += [name for name in CALLED if name in too_long]
    if format == "tiff" and image.comment and image.exif and DESCRIPTION in _tags(image.exif):
        lost.append("comment")
    return lost


def _tags(exif: bytes) -> ifd.Directory:
    try:
        return ifd.read(exif.removeprefix(EXIF_PREFIX))
    except (ValueError, struct.error):
        return {}


def _is_comment(image: DecodedImage, name: bytes, body: bytes) -> bool:
    """Whether a PNG chunk is the comment, which is carried as such."""
    return image.comment is not None and name == b"tEXt" and body.startswith(b"Comment\0")


def _native_name(format: str, name: bytes, body: bytes) -> str:
    if format == "jpeg":
        return "IPTC's neighbours (Photoshop)" if name[0] == jpeg.APP13 else f"the segment APP{name[0] & 15}"
    if format == "tiff":
        return "Photoshop's resources"
    keyword = body.split(b"\0")[0].decode("latin-1")
    return f"the text {keyword!r}" if name in (b"tEXt", b"zTXt", b"iTXt") else f"the chunk {name.decode('latin-1')}"


def encode_image(image: DecodedImage, format: str, encoding: Encoding | None = None) -> bytes:
    """The bytes of a file: lossless except JPEG and AVIF.

    16 bit is rounded to 8 where the format has no more; an alpha that is wholly opaque is left out where the format has
    none. ``not_carried`` says what else is left out. Raises ``OutputError`` as ``check_writable``.
    """
    return b"".join(_encoded(image, format, encoding or Encoding()))


def write_image(
    image: DecodedImage, path: Path, format: str | None = None, encoding: Encoding | None = None, **how: Any
) -> None:
    """Write the file whole, in the suffix's format unless given; ``how`` is that of ``written_whole``.

    Raises as ``encode_image``, and on disk errors.
    """
    pieces = _encoded(image, format or format_of(path), encoding or Encoding())
    with written_whole(path, **how) as temporary, temporary.open("wb") as file:
        file.writelines(pieces)


def _encoded(image: DecodedImage, format: str, encoding: Encoding) -> Iterator[bytes]:
    check_writable(image, format)
    try:
        yield from _pieces(_suited(image, format), format, encoding)
    except (ValueError, struct.error, MemoryError) as error:
        raise OutputError(f"the image cannot be encoded as {format} ({error}); write it as png") from error


def _suited(image: DecodedImage, format: str) -> DecodedImage:
    """The image with what the format holds, and metadata that states its size."""
    kind = FORMATS[format]
    height, width = image.pixels.shape[:2]
    unknown: dict[str, Any] = dict.fromkeys(name for name in CALLED if name not in kind.metadata)
    sized: dict[str, Any] = {
        "icc": _profile(image, format),
        "exif": sized_exif(image.exif, width, height) if image.exif else None,
        "xmp": sized_xmp(image.xmp, width, height) if image.xmp else None,
        "alpha": image.alpha if kind.alpha else None,
    }
    return dataclasses.replace(image, **{**sized, **unknown})


def _profile(image: DecodedImage, format: str) -> bytes | None:
    """The profile for the channels that are written."""
    wanted = icc.GREY if _writes_grey(image, format) else icc.RGB
    return icc.fitted(image.icc, wanted) if image.icc else None


def _writes_grey(image: DecodedImage, format: str) -> bool:
    """Whether the colours become one channel.

    16-bit grey with alpha and a profile does not, in PNG: Pillow and OpenCV read that as RGBA and leave it the grey
    profile, with which no colour can be computed.
    """
    misread = format == "png" and image.pixels.dtype == np.uint16 and image.alpha is not None and image.icc is not None
    return image.grey and FORMATS[format].grey and not misread


def _pieces(image: DecodedImage, format: str, encoding: Encoding) -> Iterator[bytes]:
    samples = _samples(image, format)
    if format == "tiff":
        return tiff_writer.encode(samples, image)
    if format == "png":
        return png.encode(samples, image)
    if format == "jpeg":
        return jpeg.encode(samples, image, encoding.jpeg_quality, encoding.jpeg_subsampling)
    return boxed.encode(samples, image, format)


def _samples(image: DecodedImage, format: str) -> Samples:
    """(H, W, channels), as the file holds them; an image that was grey is weighed to grey as Pillow does (BT.601)."""
    colour = image.pixels
    if image.grey:
        red, green, blue = np.moveaxis(colour.astype(np.uint32), -1, 0)
        colour = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(colour.dtype)[..., None]
        colour = colour if _writes_grey(image, format) else np.repeat(colour, 3, axis=2)
    samples = colour
    if image.alpha is not None or image.extra is not None:
        samples = np.dstack([one for one in (colour, image.alpha, image.extra) if one is not None])
    if samples.dtype == np.uint16 and not FORMATS[format].sixteen_bit:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return samples
