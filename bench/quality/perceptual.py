"""Perceptual measures without weights: GMSD, HaarPSI and VIF, of (H, W, 3) float sRGB in [0, 1].

Written from the papers in numpy, since the libraries that have them need torch and torchvision. They agree with piq's.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[Any]  # (H, W) float64, from 0 to 255
# Rows: Y, I and Q of the NTSC colour space.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
SMALLEST = 48  # pixels of a side: a smaller image has no fourth scale of VIF


def gmsd(image: NDArray[Any], sharp: NDArray[Any]) -> float:
    """Gradient magnitude similarity deviation (Xue et al., 2014): 0 for equal images, larger where they differ."""
    both = [gradient(halved(planes(each)[0])) for each in (image, sharp)]
    return float(similarity(both, 170.0).std())


def haarpsi(image: NDArray[Any], sharp: NDArray[Any]) -> float:
    """Haar wavelet-based perceptual similarity index (Reisenhofer et al., 2018): 1 for equal images, down to 0."""
    both = [[halved(plane) for plane in planes(each)] for each in (image, sharp)]
    local, weights = [], []
    for axis in (0, 1):
        fine, middle, coarse = ([np.abs(haar(one[0], scale, axis)) for one in both] for scale in (1, 2, 3))
        local.append((similarity(fine, 30.0) + similarity(middle, 30.0)) / 2.0)
        weights.append(np.maximum(*coarse))
    i, q = ([np.abs(filtered(one[number], np.full((2, 2), 0.25))) for one in both] for number in (1, 2))
    local.append((similarity(i, 30.0) + similarity(q, 30.0)) / 2.0)
    weights.append((weights[0] + weights[1]) / 2.0)
    total = np.sum(weights)
    if total == 0.0:  # both are flat
        return 1.0
    mean = float((np.stack(weights) / (1.0 + np.exp(-4.2 * np.stack(local)))).sum() / total)
    return float((np.log(mean / (1.0 - mean)) / 4.2) ** 2)


def vif(image: NDArray[Any], sharp: NDArray[Any]) -> float:
    """Visual information fidelity in the pixel domain (Sheikh and Bovik, 2006): 1 for equal images, down to 0.

    Of the luma, at four scales, with a visual noise of variance 2. A side has at least ``SMALLEST`` pixels.
    """
    noise, tiny = 2.0, 1e-10
    x, y = planes(sharp)[0], planes(image)[0]
    kept = total = 0.0
    for size in (17, 9, 5, 3):
        if size < 17:
            x, y = (smoothed(plane, size)[::2, ::2] for plane in (x, y))
        mean_x, mean_y = smoothed(x, size), smoothed(y, size)
        var_x = np.maximum(smoothed(x * x, size) - mean_x**2, 0.0)
        var_y = np.maximum(smoothed(y * y, size) - mean_y**2, 0.0)
        covariance = smoothed(x * y, size) - mean_x * mean_y
        gain = np.where(var_x < tiny, 0.0, covariance / (var_x + tiny))
        rest = np.where(gain < 0.0, var_y, np.maximum(var_y - gain * covariance, tiny))
        gain = np.maximum(gain, 0.0)
        kept += float(np.log2(1.0 + gain**2 * var_x / (rest + noise)).sum())
        total += float(np.log2(1.0 + var_x / noise).sum())
    return kept / total if total > 1e-6 else 1.0  # a flat image holds nothing to lose


def planes(image: NDArray[Any]) -> list[Plane]:
    """Y, I and Q of an image, from 0 to 255."""
    return list(np.moveaxis(255.0 * image.astype(np.float64) @ YIQ.T, 2, 0))


def halved(plane: Plane) -> Plane:
    """Half as high and wide, each pixel the mean of four."""
    return filtered(plane, np.full((2, 2), 0.25))[::2, ::2]


def gradient(plane: Plane) -> Plane:
    """Magnitude of the gradient by Prewitt's filter."""
    kernel = np.repeat([[1.0, 0.0, -1.0]], 3, axis=0) / 3.0
    magnitude: Plane = np.hypot(filtered(plane, kernel), filtered(plane, kernel.T))
    return magnitude


def haar(plane: Plane, scale: int, axis: int) -> Plane:
    """Coefficients of the Haar filter of 2**scale pixels along an axis."""
    half = np.full((2**scale, 2 ** (scale - 1)), 2.0**-scale)
    kernel = np.concatenate([-half, half], axis=1)
    return filtered(plane, kernel.T if axis == 0 else kernel)


def similarity(both: Sequence[Plane], constant: float) -> Plane:
    """From 0 to 1, pixel by pixel; 1 where the two are equal."""
    one, other = both
    alike: Plane = (2.0 * one * other + constant) / (one**2 + other**2 + constant)
    return alike


def filtered(plane: Plane, kernel: NDArray[np.float64]) -> Plane:
    """Convolution of the same size, 0 beyond the border, centred as in the authors' MATLAB."""
    flipped = np.ascontiguousarray(kernel[::-1, ::-1])  # filter2D correlates
    centre = ((kernel.shape[1] - 1) // 2, (kernel.shape[0] - 1) // 2)
    return np.asarray(cv2.filter2D(plane, cv2.CV_64F, flipped, anchor=centre, borderType=cv2.BORDER_CONSTANT))


def smoothed(plane: Plane, size: int) -> Plane:
    """Under a Gaussian window of ``size`` x ``size`` pixels with a deviation of a fifth of it, where it fits inside."""
    half = size // 2
    return cv2.GaussianBlur(plane, (size, size), size / 5.0)[half : plane.shape[0] - half, half : plane.shape[1] - half]
