"""The eight flips and transpositions of an image's planes, (..., H, W), by number, for test-time augmentation.

Number 0 changes nothing; from 4 on height and width are exchanged. Nothing is copied, so values that are added to a
transformed view are added to the image itself.
"""

from uid.bundles.declarations import TRANSFORMS
from uid.bundles.tensors import Array

__all__ = ["TRANSFORMS", "TRANSPOSED", "add", "transformed", "transformed_back"]

TRANSPOSED = 4  # from this number on, height and width are exchanged


def transformed(planes: Array, number: int) -> Array:
    """Transform ``number`` of the planes, as a view of the same memory."""
    return flipped(planes.swapaxes(-2, -1) if number >= TRANSPOSED else planes, number)


def transformed_back(planes: Array, number: int) -> Array:
    """The planes of which ``planes`` are transform ``number``."""
    back = flipped(planes, number)
    return back.swapaxes(-2, -1) if number >= TRANSPOSED else back


def flipped(planes: Array, number: int) -> Array:
    """The planes as they are, rotated by 180 degrees, flipped vertically or horizontally, for ``number`` modulo 4."""
    down, right = ((1, 1), (-1, -1), (-1, 1), (1, -1))[number % 4]
    return planes[..., ::down, ::right]


def add(total: Array, values: Array) -> None:
    """Add planes (C, H, W) to others in place; values are transposed first if ``total`` is a transposed view.

    Numpy alone would read one of the two across its rows, which takes ten times as long.
    """
    if abs(total.strides[-1]) <= abs(total.strides[-2]):
        total += values
        return
    import cv2

    for target, plane in zip(total.swapaxes(-2, -1), values, strict=True):
        target += cv2.transpose(plane)
