"""Pictures as arrays, and as what components read and write: (1, 3, H, W) float32 in [0, 1].

A device backend may take uint8 pixels and give uint8 pixels, a quarter of the bytes: then ``PIXELS_IN`` stands before a
mode's components and ``PIXELS_OUT`` after them, and do what ``to_float`` and ``like`` do here, to the bit.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from uid import engines
from uid.engines import Array, TensorSpec
from uid.errors import InputError
from uid.runtime.bundle import Component

Pixels = npt.NDArray[np.float32]

IMAGE_PIXELS, OUTPUT_PIXELS, OUTPUT_MEAN = "image_pixels", "output_pixels", "output_mean"
GRAPHS = Path(engines.__file__).parent
UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
PIXELS_IN = Component(
    "pixels_in",
    "pixels_in.onnx",
    "prepare",
    inputs=(TensorSpec(IMAGE_PIXELS, UINT8, (1, "height", "width", 3)),),
    outputs=(TensorSpec("image", FLOAT32, (1, 3, "height", "width")),),
)
PIXELS_OUT = Component(
    "pixels_out",
    "pixels_out.onnx",
    "finish",
    inputs=(TensorSpec("output", FLOAT32, (1, 3, "height", "width")),),
    outputs=(
        TensorSpec(OUTPUT_PIXELS, UINT8, (1, "height", "width", 3)),
        TensorSpec(OUTPUT_MEAN, FLOAT32, (1, 1, 1, 1)),  # NaN and infinity show in it, and are lost in uint8
    ),
)


def check_image(image: Array, name: str) -> None:
    """Refuse, by ``InputError``, what is no picture: other shapes, dtypes or ranges."""
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


def to_float(image: Array) -> Pixels:
    """A checked image array as (H, W, 3) float32 in [0, 1]."""
    pixels = image.astype(np.float32)
    if np.issubdtype(image.dtype, np.integer):
        pixels /= np.float32(np.iinfo(image.dtype).max)
    return np.repeat(pixels[:, :, None], 3, axis=2) if image.ndim == 2 else pixels


def like(pixels: Pixels, image: Array) -> Array:
    """(H, W, 3) float32 in [0, 1] in the shape and dtype of ``image``; integers are rounded, grey is the mean."""
    if image.ndim == 2:
        pixels = pixels.mean(axis=2)
    if np.issubdtype(image.dtype, np.floating):
        return pixels.astype(image.dtype)
    return np.rint(pixels * np.iinfo(image.dtype).max).astype(image.dtype)


def planar(pixels: Pixels) -> Pixels:
    """(H, W, 3) -> (1, 3, H, W), contiguous."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def pad(pixels: Array, multiple: int) -> Array:
    """Extend the lower and right edges of (H, W, 3) or (H, W) by reflection to multiples of ``multiple``."""
    height, width = padded(pixels.shape[:2], multiple)
    edges = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))[: pixels.ndim]
    return np.pad(pixels, edges, mode="reflect") if (height, width) != pixels.shape[:2] else pixels


def padded(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Height and width rounded up to multiples of ``multiple``."""
    height, width = (side + -side % multiple for side in size)
    return height, width
