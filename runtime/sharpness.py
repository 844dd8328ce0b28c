"""Whether an image is sharp already, by its own pixels."""

import cv2
import numpy as np

from uid.bundles.tensors import Array
from uid.runtime.pixels import to_float

BOX = 11  # pixels, of the blur that an image is compared with
BAND = 512  # rows that are looked at together
MARGIN = BOX // 2 + 1  # rows beside a band that its values follow from
SHARP = 0.42  # blur effect below which sharpening costs more than it gains: see docs/quality.md


def blur_effect(pixels: Array) -> float | None:
    """How blurred (H, W, 3) RGB pixels are, from 0 to 1; None for an image without gradients.

    The measure of Crete et al., "The blur effect" (2007): a strong blur takes most of a sharp image's gradients, and
    little of a blurred one's. It is taken along rows and along columns, and the larger counts: shake blurs one way.
    uint8, uint16, or float in [0, 1]. Whatever the size, memory is that of ``BAND`` rows.
    """
    height, sums = len(pixels), np.zeros((2, 2))  # axis; gradients, and what the blur takes of them
    for top in range(0, height, BAND):
        first, last = max(top - MARGIN, 0), min(top + BAND + MARGIN, height)
        luma = cv2.cvtColor(to_float(pixels[first:last]), cv2.COLOR_RGB2GRAY)
        inner = slice(max(top, 2) - first, min(top + BAND, height - 1) - first)
        for axis, order in enumerate(((0, 1), (1, 0))):
            blurred = cv2.blur(luma, (1, BOX) if axis == 0 else (BOX, 1), borderType=cv2.BORDER_REFLECT)
            before, after = (np.abs(_gradient(one, order))[inner, 2:-1] for one in (luma, blurred))
            sums[axis] += before.sum(dtype=np.float64), np.maximum(before - after, 0.0).sum(dtype=np.float64)
    if not sums[:, 0].all():
        return None
    return float((1.0 - sums[:, 1] / sums[:, 0]).max())


def _gradient(luma: Array, order: tuple[int, int]) -> Array:
    return np.asarray(cv2.Sobel(luma, cv2.CV_32F, *order, ksize=3, borderType=cv2.BORDER_REFLECT))
