"""Colour fixes: give an output the colours of its input. They run on whole images, so that tiles do not differ."""

import numpy as np

from uid.bundles.declarations import ADAIN, FLAT, WAVELET
from uid.bundles.tensors import Array
from uid.runtime.pixels import Planes, to_float

EPSILON = 1e-5  # added to variances
WAVELET_LEVELS = 5
# Standard deviations around a pixel, of 1, up to which there is no detail, and from which there is.
FLAT_UP_TO, DETAILED_FROM = 1.5 / 255, 4 / 255
BAND = 128  # rows that are looked at together, a multiple of BLOCK
BLOCK, BLOCKS = 8, 5  # pixels of a block's side, and blocks of the square around a pixel that is looked at


def colour_fixed(output: Planes, image: Planes, kind: str) -> Planes:
    """``output`` with the colours of ``image``, both (3, H, W) float32 of one size, clipped to [0, 1].

    ``kind`` is one of ``bundles.declarations.COLOUR_FIXES``.
    """
    if kind == ADAIN:
        output = adain(output, image)
    elif kind == WAVELET:
        output = output - low_frequencies(output) + low_frequencies(image)
    elif kind == FLAT:
        part = detail(image)
        return output if part is None else flat_kept(output, image, part, slice(0, image.shape[1]))
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


def detail(image: Array) -> Planes | None:
    """How much detail there is around each block of (3, H, W), of any dtype: 0 for none, 1 where it is plain.

    (ceil(H / BLOCK), ceil(W / BLOCK)) float32; None where it is plain everywhere. A blur leaves a flat surface as it
    is, so there is nothing to sharpen; but a model may paint patterns and another colour on it, since normalisation
    makes the little that it sees there as large as anything.
    """
    import cv2

    bands = [variances(image[:, top : top + BAND]) for top in range(0, image.shape[1], BAND)]
    means, squares = (np.concatenate(one, axis=1) for one in zip(*bands, strict=True))
    edge = cv2.BORDER_REPLICATE
    mean, square = ([cv2.blur(plane, (BLOCKS, BLOCKS), borderType=edge) for plane in one] for one in (means, squares))
    variance = np.max([two - one * one for one, two in zip(mean, square, strict=True)], axis=0)
    part = (np.sqrt(np.maximum(variance, 0)) - FLAT_UP_TO) / (DETAILED_FROM - FLAT_UP_TO)
    return None if part.min() >= 1 else np.clip(part, 0, 1)


def variances(band: Array) -> tuple[Planes, Planes]:
    """Means of the values and of their squares in each block of (3, H, W)."""
    edges = [(0, -side % BLOCK) for side in band.shape[1:]]
    whole = np.pad(to_float(band), [(0, 0), *edges], mode="edge")
    blocks = whole.reshape(3, whole.shape[1] // BLOCK, BLOCK, whole.shape[2] // BLOCK, BLOCK)
    return blocks.mean(axis=(2, 4)), np.square(blocks).mean(axis=(2, 4))


def flat_kept(output: Planes, image: Planes, part: Planes, rows: slice) -> Planes:
    """Rows of an output, (3, rows, W), with those of the image where ``part``, its ``detail``, has none."""
    return image + weights(part, rows, image.shape[2]) * (output - image)


def weights(part: Planes, rows: slice, width: int) -> Planes:
    """``detail`` between the centres of blocks, for these rows of pixels: (rows, width)."""
    import cv2

    at = np.clip((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / BLOCK - 0.5, 0, len(part) - 1)
    above = at.astype(np.intp)
    below, share = np.minimum(above + 1, len(part) - 1), (at - above)[:, None]
    mixed = part[above] * (1 - share) + part[below] * share
    wide: Array = cv2.resize(mixed, (part.shape[1] * BLOCK, len(at)), interpolation=cv2.INTER_LINEAR)
    return np.asarray(wide[:, :width], np.float32)
