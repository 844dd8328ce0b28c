"""Image files to arrays: PNG, JPEG, WebP, TIFF and BMP, 8 and 16 bit, with alpha, EXIF and ICC.

Pillow reads 8 bits and all metadata; OpenCV, the only one of the two that holds 16-bit colour, reads 16-bit pixels. A
16-bit file goes through both: Pillow checks it and reads its metadata, OpenCV decodes its samples.
"""

import contextlib
import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from uid.errors import InputError
from uid.runtime.media.exif import upright_exif
from uid.runtime.media.formats import FORMATS, MAX_PIXELS, NAMES, DecodedImage, Samples


def read_image(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a file, or its bytes, by content whatever the suffix; ``name`` stands for it in errors.

    Palette and 1-bit images are expanded. Raises ``InputError`` for what is missing, damaged, not an image, larger
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
    return DecodedImage(
        pixels=_upright(np.broadcast_to(colour, (*colour.shape[:2], 3)), orientation),
        alpha=None if alpha is None else _upright(alpha, orientation),
        grey=colour.shape[2] == 1,
        exif=exif,
        icc=icc if icc and isinstance(icc, bytes) else None,  # a garbled TIFF tag may be a number
        format=format,
    )


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
def quiet_warnings() -> Iterator[None]:
    """No warnings. What this and those inside it change is process-wide, and so under a lock."""
    with _PROCESS_WIDE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _stderr_muted() -> Iterator[None]:
    """Hide what libtiff prints on the terminal beside the error that Pillow raises."""
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
    with quiet_warnings():
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2  # Pillow refuses twice of it
        try:
            yield
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{label} has more than {max_pixels} pixels; shrink it or raise the limit", option="max_pixels"
            ) from error
        except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:
            raise InputError(f"{label} is damaged, cut short or of an unusual kind ({error}); save it anew") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse(image: ImageFile.ImageFile, label: str, max_pixels: int) -> None:
    """Refuse by the header, before any pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        limit = f"more than {max_pixels} pixels; shrink it or raise the limit"
        raise InputError(f"{label} is {width} x {height}, {limit}", option="max_pixels")
    if getattr(image, "is_animated", False):
        raise InputError(f"{label} holds several frames or pages; extract the one you want as an image of its own")
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


def _eight_bit(image: Image.Image) -> Samples:
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    samples = np.asarray(image.convert(mode))
    return samples[..., None] if samples.ndim == 2 else samples


def _split(samples: Samples) -> tuple[Samples, Samples | None]:
    """(H, W, 1 to 4) as colour and alpha."""
    return (samples, None) if samples.shape[-1] % 2 else (samples[..., :-1], samples[..., -1])


def _sixteen_bit(image: ImageFile.ImageFile, data: bytes, label: str) -> Samples:
    """16-bit samples (H, W, 1 to 4), upright where Pillow has made ``image`` so (TIFF)."""
    import cv2  # takes 0.3 s, and only 16-bit images need it

    with _stderr_muted():
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise InputError(f"{label} holds 16-bit samples of an unusual kind; save it anew")
    samples = samples[..., None] if samples.ndim == 2 else samples[..., [2, 1, 0, 3][: samples.shape[2]]]
    if isinstance(image, PngImageFile) and data[25] in (0, 4):  # grey, which OpenCV expands when there is alpha
        samples = samples[..., [0, -1]] if samples.shape[2] == 4 else samples[..., :1]
    return samples


def _upright(array: Samples, orientation: int) -> Samples:
    """The array as the EXIF orientation (1 to 8) says it is meant to be seen."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.array(array[rows, columns], order="C")
