"""Images as callers have them: arrays, names of files, Pillow's images; and results back to files."""

import dataclasses
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from uid.bundles.tensors import Array
from uid.errors import InputError, OutputError
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import write_image
from uid.runtime.media.formats import DecodedImage
from uid.runtime.pixels import check_image, enlarged

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike: TypeAlias = Union[Array, Path, str, "Image"]
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of Pillow, which PNG holds as they are


def opened(value: Any, name: str) -> tuple[Array, DecodedImage | None]:
    """Pixels for the pipeline, and the image that they are of, where it is one with more than pixels.

    ``value`` is an array (H, W, 3) or (H, W), the name of an image file, or an image of Pillow's, which is taken as it
    is meant to be seen: palettes are expanded, EXIF's orientation is applied. ``name`` is what to call it in errors.
    Raises ``InputError``.
    """
    if isinstance(value, str | os.PathLike):
        decoded = read_image(Path(value))
    elif hasattr(value, "getexif") and hasattr(value, "mode"):
        decoded = _from_pillow(value, name)
    else:
        check_image(value, name)
        return value, None
    return decoded.pixels, decoded


def _from_pillow(image: "Image", name: str) -> DecodedImage:
    """An image of Pillow's, read as if it came from a PNG file: one way for palettes, 16 bit, EXIF and profiles."""
    if image.mode not in _PNG_MODES:
        raise InputError(f"{name} is a Pillow image of mode {image.mode}; convert it first: image.convert('RGB')")
    kept = {key: image.info[key] for key in ("icc_profile", "transparency", "dpi") if image.info.get(key) is not None}
    exif = image.getexif()
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=0, exif=exif.tobytes() if len(exif) else b"", **kept)
    return read_image(buffer.getvalue(), name=name)


def save(pixels: Array, source: DecodedImage | None, path: Path, format: str | None, overwrite: bool) -> None:
    """Write pixels (H, W, 3) or (H, W) as a file, with what ``source`` has beside its own; see ``Result.save``."""
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists; choose another name, or give overwrite=True")
    if pixels.dtype.kind == "f":
        pixels = np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8)
    grey = pixels.ndim == 2
    colours = np.ascontiguousarray(np.broadcast_to(pixels[..., None], (*pixels.shape, 3))) if grey else pixels
    if source is None:
        source = DecodedImage(pixels=colours, alpha=None, grey=grey, exif=None, icc=None, format="png")
    scale = colours.shape[0] // source.pixels.shape[0]
    alpha = None if source.alpha is None else enlarged(source.alpha, scale)
    write_image(dataclasses.replace(source, pixels=colours, alpha=alpha), path, format, replace=overwrite)
