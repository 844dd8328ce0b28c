"""Images as arrays, as planes, and as what components read and write: (B, 3, H, W) float32 in [0, 1].

Within the pipeline an image is three planes, (3, H, W), so that transforms, padding, tiles and sums work on contiguous
rows. A device backend may exchange uint8 planes with the host, a quarter of the bytes. Then ``PIXELS_IN`` runs before a
mode's components and ``PIXELS_OUT`` after them; they compute what ``to_float`` and ``like`` do here, to the bit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uid import engines
from uid.bundles.declarations import NEAREST, REFLECT, Component
from uid.bundles.tensors import Array, TensorSpec
from uid.errors import InputError

Planes = npt.NDArray[np.float32]  # (3, H, W) or (B, 3, H, W) in [0, 1]

IMAGE_PIXELS, OUTPUT_PIXELS, OUTPUT_MEAN = "image_pixels", "output_pixels", "output_mean"
GRAPHS = Path(engines.__file__).parent
BLENDED = 1 << 20  # samples that are blended at once
UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
PIXELS_IN = Component(
    "pixels_in",
    "pixels_in.onnx",
    "prepare",
    inputs=(TensorSpec(IMAGE_PIXELS, UINT8, ("batch", 3, "height", "width")),),
    outputs=(TensorSpec("image", FLOAT32, ("batch", 3, "height", "width")),),
)
PIXELS_OUT = Component(
    "pixels_out",
    "pixels_out.onnx",
    "finish",
    inputs=(TensorSpec("output", FLOAT32, ("batch", 3, "height", "width")),),
    outputs=(
        TensorSpec(OUTPUT_PIXELS, UINT8, ("batch", 3, "height", "width")),
        TensorSpec(OUTPUT_MEAN, FLOAT32, (1, 1, 1, 1)),  # NaN and infinity show in it, and are lost in uint8
    ),
)


def check_image(image: Array, name: str) -> None:
    """Raise ``InputError`` for other shapes, dtypes or ranges than an image has."""
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} is a {type(image).__name__}; expected a numpy array")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise InputError(f"{name} has shape {image.shape}; expected (H, W, 3) RGB or (H, W) grey")
    if image.dtype in (np.uint8, np.uint16):
        return
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"{name} has dtype {image.dtype}; expected uint8, uint16 or float in [0, 1]")
    low, high = np.float32(image.min()), np.float32(image.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(f"{name} has values from {low} to {high}; expected floats in [0, 1]")


def planes(image: Array) -> Array:
    """A checked image array as (3, H, W): integers as they are, floats as float32, grey three times and read-only."""
    if np.issubdtype(image.dtype, np.floating):
        image = image.astype(np.float32, copy=False)
    if image.ndim == 2:
        return np.broadcast_to(image, (3, *image.shape))
    import cv2  # here and below: what only names this module, such as --help, need not wait for it

    separate = np.empty((3, *image.shape[:2]), image.dtype)
    cv2.split(np.ascontiguousarray(image), list(separate))
    return separate


def to_float(values: Array) -> Planes:
    """Planes, or any array of their dtypes, as float32 in [0, 1]."""
    floats: Planes = values.astype(np.float32)
    if np.issubdtype(values.dtype, np.integer):
        floats /= np.float32(np.iinfo(values.dtype).max)
    return floats


def like(floats: Planes, image: Array, rounding: str = NEAREST) -> Array:
    """Planes, float32 in [0, 1], in the layout and dtype of ``image``; grey is the mean.

    Integers are rounded to the nearest, halves to even, or down (``ROUNDINGS``).
    """
    layers = [floats.mean(axis=0)] if image.ndim == 2 else list(floats)
    return interleaved([in_dtype(layer, image.dtype, rounding) for layer in layers])


def in_dtype(layer: Planes, dtype: np.dtype[Any], rounding: str = NEAREST) -> Array:
    """One plane, float32 in [0, 1], in another dtype."""
    if dtype == np.uint8 and rounding == NEAREST:
        import cv2

        rounded: Array = cv2.convertScaleAbs(layer, alpha=255.0)  # halves to even, as numpy, in a tenth of its time
        return rounded
    if np.issubdtype(dtype, np.integer):
        layer = np.clip(layer, 0.0, 1.0) * np.float32(np.iinfo(dtype).max)
        layer = np.rint(layer) if rounding == NEAREST else np.floor(layer)
    converted: Array = layer.astype(dtype)
    return converted


def interleaved(layers: Sequence[Array]) -> Array:
    """Three planes of (H, W) as (H, W, 3), one as it is."""
    if len(layers) == 1:
        return layers[0]
    if layers[0].dtype == np.float16:  # which OpenCV does not know
        return np.stack(layers, axis=2)
    import cv2

    merged: Array = cv2.merge(list(layers))
    return merged


def enlarged(image: Array, scale: int) -> Array:
    """An image array, (H, W) or (H, W, 3), at a whole number of times its size, bicubic; its dtype stays."""
    if scale == 1:
        return image
    import cv2

    size = (image.shape[1] * scale, image.shape[0] * scale)
    larger: Array = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return larger


def blend(sharp: Array, image: Array, strength: float) -> None:
    """Make ``sharp`` the mean of both, of one shape and dtype, weighed by ``strength`` (0 to 1), in linear light.

    Light is linear under sRGB's curve: so an edge is blended as half a blur would blend it.
    """
    top = np.iinfo(sharp.dtype).max if np.issubdtype(sharp.dtype, np.integer) else 1
    rows = max(1, BLENDED // max(1, sharp[0].size))
    for start in range(0, len(sharp), rows):
        part = np.s_[start : start + rows]
        new, old = (linear(one[part].astype(np.float32) / np.float32(top)) for one in (sharp, image))
        mixed = encoded(np.float32(strength) * new + np.float32(1.0 - strength) * old) * np.float32(top)
        sharp[part] = np.rint(mixed) if top > 1 else mixed


def linear(values: Planes) -> Planes:
    """Light, 0 to 1, of values as sRGB encodes them (IEC 61966-2-1)."""
    light: Planes = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light


def encoded(light: Planes) -> Planes:
    """The inverse of ``linear``."""
    values: Planes = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return values


def pad(values: Array, multiple: int, kind: str = REFLECT, least: int = 1) -> Array:
    """Extend the lower and right edges of planes to ``padded`` sizes, by reflection or with zeros (``PADDINGS``)."""
    return extend(values, *padded(values.shape[1:], multiple, least), kind)


def extend(values: Array, height: int, width: int, kind: str = REFLECT) -> Array:
    """Extend the lower and right edges of planes to this size; no copy where they have it."""
    if (height, width) == values.shape[1:]:
        return values
    edges = ((0, 0), (0, height - values.shape[1]), (0, width - values.shape[2]))
    return np.pad(values, edges, mode="reflect") if kind == REFLECT else np.pad(values, edges)


def padded(size: Sequence[int], multiple: int, least: int = 1) -> tuple[int, int]:
    """Height and width, ``least`` or more, rounded up to multiples of ``multiple``."""
    height, width = (max(side, least) + -max(side, least) % multiple for side in size)
    return height, width
