"""Colour fixes: give an output the colours of its input. They run on whole images, so that tiles do not differ."""

import numpy as np

from uid.bundles.declarations import ADAIN, WAVELET
from uid.runtime.pixels import Planes

EPSILON = 1e-5  # added to variances
WAVELET_LEVELS = 5


def colour_fixed(output: Planes, image: Planes, kind: str) -> Planes:
    """``output`` with the colours of ``image``, both (3, H, W) float32 of one size, clipped to [0, 1].

    ``kind`` is one of ``bundles.declarations.COLOUR_FIXES``.
    """
    if kind == ADAIN:
        output = adain(output, image)
    elif kind == WAVELET:
        output = output - low_frequencies(output) + low_frequencies(image)
    else:
        return output
    return np.clip(output, 0.0, 1.0)


def adain(output: Planes, image: Planes) -> Planes:
    """Mean and standard deviation of each channel become the image's (Huang and Belongie, 2017, equation 8)."""
    (mean, deviation), (wanted_mean, wanted_deviation) = statistics(output), statistics(image)
    fixed: Planes = (output - mean) * (wanted_deviation / deviation) + wanted_mean
    return fixed


def statistics(planes: Planes) -> tuple[Planes, Planes]:
    """Mean and standard deviation of each channel, (3, 1, 1) float32."""
    mean = planes.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    count = planes.shape[1] * planes.shape[2]
    squares = np.square(planes - mean.astype(np.float32)).sum(axis=(1, 2), keepdims=True, dtype=np.float64)
    variance = squares / max(1, count - 1)
    return mean.astype(np.float32), np.sqrt(variance + EPSILON).astype(np.float32)


def low_frequencies(planes: Planes) -> Planes:
    """What an "a trous" wavelet transform of ``WAVELET_LEVELS`` levels leaves: smoothed at radius 1, 2, 4, 8 and 16."""
    import cv2

    smoothed = []
    for plane in planes:
        for level in range(WAVELET_LEVELS):
            kernel = np.zeros(2 ** (level + 1) + 1, np.float32)
            kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
            plane = cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        smoothed.append(plane)
    return np.stack(smoothed)
