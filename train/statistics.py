"""How far the made images are from photos: the same few statistics over both, side by side.

`python -m uid.train.statistics` prints the table. The photos are those inside scikit-image's wheel; they serve only
for this comparison and are never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uid.train.blur import RgbImage, blur, to_linear, to_srgb
from uid.train.procedural import procedural_image

CROP = 256
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709
GRADIENT_FLOOR = 0.5 / 255  # differences below half a grey level are rounding


class Spread(NamedTuple):
    """Mean and standard deviation of one statistic over a set of images."""

    mean: float
    deviation: float


class StatisticsRow(NamedTuple):
    """One statistic over the photos and over the made images."""

    real: Spread
    made: Spread


def luminance(image: RgbImage) -> NDArray[np.float32]:
    """(H, W) luma of an sRGB image, in [0, 1]."""
    return image @ LUMA


def spectrum_slope(image: RgbImage, low: float = 1 / 32, high: float = 1 / 4) -> float:
    """Slope of log power against log frequency, radially averaged, between `low` and `high` cycles per pixel."""
    grey = luminance(image)
    window = np.hanning(grey.shape[0])[:, None] * np.hanning(grey.shape[1])
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1]))
    edges = np.geomspace(low, high, 11)  # equal steps in log frequency, so that the finest do not outvote the rest
    band = np.digitize(frequency, edges)
    means = [power[band == i].mean() for i in range(1, len(edges))]
    centres = np.sqrt(edges[1:] * edges[:-1])
    return float(np.polyfit(np.log(centres), np.log(np.maximum(means, 1e-12)), 1)[0])


def fine_slope(image: RgbImage) -> float:
    """`spectrum_slope` in the octave below the Nyquist frequency: how sharp the sharpest edges are."""
    return spectrum_slope(image, 1 / 4, 1 / 2)


def gradients(image: RgbImage) -> NDArray[np.float32]:
    """Horizontal and vertical luma differences of neighbours, one flat array."""
    grey = luminance(image)
    return np.concatenate([np.diff(grey, axis=0).ravel(), np.diff(grey, axis=1).ravel()])


def gradient_quantile(quantile: float) -> Callable[[RgbImage], float]:
    """The statistic log10 of that quantile of absolute luma differences."""
    return lambda image: float(np.log10(max(float(np.quantile(np.abs(gradients(image)), quantile)), GRADIENT_FLOOR)))


def gradient_kurtosis(image: RgbImage) -> float:
    """Log10 of the kurtosis of luma differences; 0.48 for a Gaussian, above 1 where flat areas meet few edges."""
    difference = gradients(image)
    return float(np.log10(np.mean(difference**4) / max(float(np.mean(difference**2)) ** 2, 1e-12)))


def fixed_kernels() -> list[NDArray[np.float32]]:
    """A horizontal line of 9 px, a disc of radius 3 px, and a Gaussian of sigma 2 px."""
    y, x = np.mgrid[-7:8, -7:8]
    line = (y == 0) & (np.abs(x) <= 4)
    disc = x**2 + y**2 <= 9
    gaussian = np.exp(-(x**2 + y**2) / 8)
    return [(kernel / kernel.sum()).astype(np.float32) for kernel in (line, disc, gaussian)]


def blur_psnr(image: RgbImage) -> float:
    """PSNR in dB that the fixed kernels leave, averaged: blurred in linear light, compared in sRGB."""
    linear = to_linear(image)
    errors = [float(np.mean((to_srgb(blur(linear, kernel)) - image) ** 2)) for kernel in fixed_kernels()]
    return float(np.mean([-10 * np.log10(max(error, 1e-10)) for error in errors]))


def saturation(image: RgbImage) -> float:
    """Mean saturation as in HSV, in [0, 1]."""
    peak = image.max(axis=2)
    return float(np.mean((peak - image.min(axis=2)) / np.maximum(peak, 1 / 255)))


def contrast(image: RgbImage) -> float:
    """Standard deviation of luma."""
    return float(luminance(image).std())


STATISTICS: Mapping[str, Callable[[RgbImage], float]] = {
    "power slope, 1/32 to 1/4": spectrum_slope,
    "power slope, 1/4 to 1/2": fine_slope,
    "PSNR after blur, dB": blur_psnr,
    "log10 gradient, 50 %": gradient_quantile(0.5),
    "log10 gradient, 75 %": gradient_quantile(0.75),
    "log10 gradient, 90 %": gradient_quantile(0.9),
    "log10 gradient, 99 %": gradient_quantile(0.99),
    "log10 gradient kurtosis": gradient_kurtosis,
    "saturation": saturation,
    "luminance deviation": contrast,
    "luminance mean": lambda image: float(luminance(image).mean()),
}


def compare(real: list[RgbImage], made: list[RgbImage]) -> dict[str, StatisticsRow]:
    """Mean and spread of each statistic over both sets, by the statistic's name."""
    return {name: StatisticsRow(_spread(map(f, real)), _spread(map(f, made))) for name, f in STATISTICS.items()}


def _spread(values: Iterable[float]) -> Spread:
    sample = np.fromiter(values, np.float64)
    return Spread(float(sample.mean()), float(sample.std()))


def photo_crops() -> list[RgbImage]:
    """Crops of 256 x 256, at native size, spread evenly over the five colour photos of scikit-image's wheel.

    Of the stereo pair only the left half is taken: the right is the same scene again.
    """
    # Imported here and not at the top: a development dependency, which training itself does not need.
    from skimage.data import data_dir

    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    return [crop for name in names for crop in _crops(_load(Path(data_dir) / name))]


def _load(path: Path) -> RgbImage:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / np.float32(255)


def _crops(image: RgbImage) -> list[RgbImage]:
    rows, columns = (
        np.linspace(0, length - CROP, max(1, round(length / CROP))).astype(int) for length in image.shape[:2]
    )
    return [image[y : y + CROP, x : x + CROP] for y in rows for x in columns]


def made_pictures(count: int, seed: int = 0) -> list[RgbImage]:
    """`count` made images of the crops' size, rounded to 8 bits as the photos are."""
    rng = np.random.default_rng(seed)
    return [np.rint(procedural_image(rng, CROP, CROP) * np.float32(255)) / np.float32(255) for _ in range(count)]


def main() -> None:
    """Print the table for the photos and 400 made images."""
    cv2.setNumThreads(1)
    print(f"{'mean (spread)':28}{'photos':>18}{'made':>18}")
    for name, (real, made) in compare(photo_crops(), made_pictures(400)).items():
        print(f"{name:28}{real.mean:9.2f} ({real.deviation:5.2f}) {made.mean:9.2f} ({made.deviation:5.2f})")


if __name__ == "__main__":
    main()
