"""Image files to arrays, 8 and 16 bit, with alpha and all that stands beside the pixels.

Each format's module takes its file apart and sees that no pixel is missing. What it finds is made one kind of image
here: upright, RGB, with metadata that is true for it.
"""

import contextlib
import io
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms

from uid.errors import InputError, UIDError
from uid.runtime.media import boxed, icc, jpeg, png, tiff
from uid.runtime.media.exif import EXIF_PREFIX, resolution, upright_exif, upright_xmp
from uid.runtime.media.formats import MAX_BYTES, MAX_PIXELS, DecodedImage, Samples, recognised
from uid.runtime.media.reading import Content, Reading

DECODERS: dict[str, Callable[[bytes, Reading], Content]] = {
    "png": png.decode,
    "jpeg": jpeg.decode,
    "tiff": tiff.decode,
    **{name: partial(boxed.decode, format=name) for name in ("webp", "bmp", "avif", "heic", "jxl")},
}
_PROCESS_WIDE = threading.Lock()
BLOCK = 1 << 20  # bytes that are read at once


def read_image(
    source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS, salvage: bool = False
) -> DecodedImage:
    """Decode a file, or its bytes, by content whatever the suffix; ``name`` stands for it in errors.

    Palette and 1-bit images are expanded. CMYK is converted to sRGB with its profile. ``salvage`` reads what is left
    of a PNG, JPEG or TIFF with pixels missing, which are black or grey then. What was wrong and cost no pixel, and what
    was salvaged, is in ``warnings``.

    Raises ``InputError`` for what is missing, damaged, not an image, larger than ``max_pixels`` or the limits of
    ``formats``, of several frames, or neither grey, RGB nor CMYK of up to 16 bit unsigned.
    """
    label = name or (str(source) if isinstance(source, Path) else "the image")
    data = source if isinstance(source, bytes) else _read_bytes(source, label)
    reading = Reading(label, max_pixels, salvage)
    format = recognised(data, label)
    with _libraries(label):
        return _decoded(DECODERS[format](data, reading), format, reading)


def read_stream(stream: BinaryIO, label: str) -> bytes:
    """All bytes of a stream such as standard input. Raises ``InputError`` for more than ``MAX_BYTES``."""
    data = io.BytesIO()
    try:
        while block := stream.read(BLOCK):  # memory is taken for all that is asked for
            data.write(block)
            if data.tell() > MAX_BYTES:
                raise InputError(f"{label} has more than {MAX_BYTES} bytes; expected an image file")
    except OSError as error:
        raise InputError(f"cannot read {label}: {error.strerror or error}") from error
    return data.getvalue()


def _read_bytes(path: Path, label: str) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{label} is a folder; expected an image file")
        if not stat.S_ISREG(status.st_mode):  # which may have no end, or no beginning
            raise InputError(f"{label} is a pipe or device; expected a file, or - for standard input")
        if status.st_size > MAX_BYTES:
            raise InputError(f"{label} has more than {MAX_BYTES} bytes; expected an image file")
        with path.open("rb") as stream:
            return read_stream(stream, label)
    except FileNotFoundError as error:
        raise InputError(f"{label} does not exist; check its name") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"cannot read {label}: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """No warnings. What this and those inside it change is process-wide, and so under a lock."""
    with _PROCESS_WIDE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _libraries(label: str) -> Iterator[None]:
    """The libraries without their warnings, words and limits, and with their errors translated.

    Decoders that are given a damaged file raise whatever they
    happen to, such as OverflowError or struct.error: all of it means that the file cannot be read.
    """
    with quiet_warnings():
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is checked before
        try:
            yield
        except (UIDError, ImportError):  # a library that is missing says nothing about the file
            raise
        except MemoryError as error:
            raise InputError(f"{label} takes more memory than there is; shrink it, or close other programs") from error
        except Exception as error:
            why = str(error) or type(error).__name__
            raise InputError(f"{label} is damaged, cut short or of an unusual kind ({why}); save it anew") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decoded(content: Content, format: str, reading: Reading) -> DecodedImage:
    """What a file holds as an image that is upright and RGB."""
    exif, orientation = _upright_exif(content, reading)
    colour, profile = _in_rgb(content.colour, _profile(content, reading), reading)
    turned = orientation >= 5
    dpi = content.dpi or _resolution(exif)
    return DecodedImage(
        pixels=_upright(np.broadcast_to(colour, (*colour.shape[:2], 3)), orientation),
        alpha=None if content.alpha is None else _upright(content.alpha, orientation),
        extra=None if content.extra is None else _upright(content.extra, orientation),
        grey=colour.shape[2] == 1,
        exif=exif,
        icc=profile,
        format=format,
        xmp=upright_xmp(content.xmp) if content.xmp else None,
        iptc=content.iptc,
        comment=content.comment,
        dpi=(dpi[1], dpi[0]) if dpi and turned else dpi,
        native=content.native,
        jpeg=content.jpeg if colour is content.colour else None,
        compression=content.compression,
        warnings=tuple(reading.warnings),
    )


def _upright_exif(content: Content, reading: Reading) -> tuple[bytes | None, int]:
    """EXIF with orientation 1, and the orientation that the pixels still have. EXIF that is garbled is left out."""
    exif, orientation = None, 1
    if content.exif:
        try:
            exif, orientation = upright_exif(content.exif)
        except (ValueError, struct.error) as error:
            reading.warn(f"its EXIF is garbled ({error}), so it was left out")
    if content.orientation != 1:
        orientation = content.orientation
    return exif, orientation if orientation in range(1, 9) else 1


def _resolution(exif: bytes | None) -> tuple[float, float] | None:
    try:
        return resolution(exif.removeprefix(EXIF_PREFIX)) if exif else None
    except (ValueError, struct.error):
        return None


def _profile(content: Content, reading: Reading) -> bytes | None:
    """The colour profile, if it is one and fits the pixels."""
    if not content.icc:
        return None
    found, space = icc.space(content.icc), icc.SPACES[content.colour.shape[2]]
    if found is None:
        reading.warn("its colour profile is damaged, so it was left out")
        return None
    if found == space:
        return content.icc
    profile = icc.fitted(content.icc, icc.GREY) if space == icc.GREY else None
    done = "was left out" if profile is None else "gave way to a grey one of the same curve"
    names = (one.decode("latin-1").strip() for one in (found, space))
    reading.warn("its colour profile is for {}, its pixels are {}, so the profile {}".format(*names, done))
    return profile


def _in_rgb(colour: Samples, profile: bytes | None, reading: Reading) -> tuple[Samples, bytes | None]:
    """Grey and RGB as they are; CMYK as sRGB by its profile."""
    if colour.shape[2] < 4:
        return colour, profile
    if profile is None:
        raise InputError(
            f"{reading.label} holds CMYK, not RGB, and no profile to convert it with; convert it first, e.g. "
            "magick IN -colorspace sRGB OUT"
        )
    reading.warn("its CMYK was converted to sRGB with its profile")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    image = Image.fromarray(np.ascontiguousarray(colour), "CMYK")
    converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    if converted is None:
        raise ValueError("a profile that converts nothing")
    return np.asarray(converted), srgb.tobytes()


def _upright(array: Samples, orientation: int) -> Samples:
    """The array as the EXIF orientation (1 to 8) says it is meant to be seen."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.require(array[rows, columns], requirements=["C", "W"])
