"""Synthetic blur, as light makes it: kernels, convolution in linear light, then what a camera does to the signal.

Two disjoint sets of kernel families: ``KERNELS`` to train with, ``UNKNOWN_KERNELS`` to stand for a domain that was
never seen, for evaluation only.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[Any]  # (H, W, 3) float32
Kernel = NDArray[Any]  # (k, k) float32, k odd, sum 1
Random = np.random.Generator

LARGEST = 31  # side of the largest kernel, in pixels
NOISES = (0.006, 0.012)  # largest deviation at white in linear light: 1.5 and 3 levels of 8 bits
UNBLURRED = 1 / 12  # of the training images: what is sharp must come back as it is


# -- kernels ----------------------------------------------------------------------------------------------------------


def camera_shake(rng: Random) -> Kernel:
    """A hand-held exposure: the path of a damped random walk with inertia, seldom still, seldom straight."""
    velocity = np.cumsum(rng.normal(size=(256, 2)), axis=0) + 8.0 * rng.normal(size=2)
    return trace(np.cumsum(velocity, axis=0), extent=rng.uniform(2.0, 22.0))


def motion(rng: Random) -> Kernel:
    """An object in even motion: a straight line of any direction, slightly bent."""
    t = np.linspace(-1.0, 1.0, 256)
    angle, bend = rng.uniform(0.0, np.pi), rng.normal(scale=0.15)
    along = np.stack([t, bend * t**2], axis=1)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return trace(along @ rotation.T, extent=rng.uniform(2.0, 22.0))


def defocus(rng: Random) -> Kernel:
    """A lens out of focus: a disc of even light, its edge softened by diffraction."""
    radius = rng.uniform(0.8, 5.5)
    return softened(distance() <= radius, sigma=rng.uniform(0.3, 0.8))


def gaussian(rng: Random) -> Kernel:
    """A soft lens or a resampled image: an isotropic Gaussian."""
    return normalised(np.exp(-((distance() / rng.uniform(0.5, 3.0)) ** 2) / 2.0))


def zigzag(rng: Random) -> Kernel:
    """Unknown domain: a shutter that opens several times along a broken line, its stretches of unequal light."""
    corners = np.cumsum(rng.normal(size=(int(rng.integers(3, 6)), 2)), axis=0)
    stretches = [np.linspace(a, b, int(rng.integers(20, 200))) for a, b in itertools.pairwise(corners)]
    return trace(np.concatenate(stretches), extent=rng.uniform(5.0, 15.0))


def aperture(rng: Random) -> Kernel:
    """Unknown domain: defocus through five to eight blades, with the dark centre that some lenses have."""
    blades, radius, turn = int(rng.integers(5, 9)), rng.uniform(1.8, 5.0), rng.uniform(0.0, np.pi)
    angles = turn + 2.0 * np.pi * np.arange(blades) / blades
    corners = LARGEST // 2 + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = np.zeros((LARGEST, LARGEST), np.float32)
    cv2.fillPoly(mask, [np.rint(corners * 16).astype(np.int32)], 1.0, cv2.LINE_AA, shift=4)
    ring = 1.0 - 0.5 * np.exp(-((distance() / (0.5 * radius)) ** 2))
    return softened(mask * ring, sigma=0.4)


def astigmatism(rng: Random) -> Kernel:
    """Unknown domain: a Gaussian longer one way than the other, at any angle."""
    angle, long, short = rng.uniform(0.0, np.pi), rng.uniform(1.8, 3.5), rng.uniform(0.5, 1.2)
    y, x = offsets()
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return normalised(np.exp(-((along / long) ** 2 + (across / short) ** 2) / 2.0))


KERNELS: Mapping[str, Callable[[Random], Kernel]] = {
    "camera shake": camera_shake,
    "motion": motion,
    "defocus": defocus,
    "gaussian": gaussian,
}
UNKNOWN_KERNELS: Mapping[str, Callable[[Random], Kernel]] = {
    "zigzag": zigzag,
    "aperture": aperture,
    "astigmatism": astigmatism,
}


def trace(path: NDArray[np.float64], extent: float) -> Kernel:
    """The light that a point leaves along ``path`` (n, 2), even in time, scaled so that its longer side is ``extent``.

    Centred by its mean, so that the blurred image does not move.
    """
    path = path - path.mean(axis=0)
    path = path / max(np.ptp(path, axis=0).max(), 1e-9) * min(extent, LARGEST - 4)
    centred = np.clip(path + LARGEST // 2, 0.0, LARGEST - 1.0)
    kernel = np.zeros((LARGEST, LARGEST), np.float64)
    whole = np.minimum(centred.astype(int), LARGEST - 2)
    part = centred - whole
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
            np.add.at(kernel, (whole[:, 0] + dy, whole[:, 1] + dx), weight)
    return softened(kernel, sigma=0.4)


def offsets() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns from the kernel's centre."""
    y, x = np.mgrid[:LARGEST, :LARGEST] - float(LARGEST // 2)
    return y, x


def distance() -> NDArray[np.float64]:
    """Pixels from the kernel's centre."""
    return np.hypot(*offsets())


def softened(kernel: NDArray[Any], sigma: float) -> Kernel:
    """Slightly blurred, as every lens and sensor does, and normalised."""
    return normalised(cv2.GaussianBlur(np.asarray(kernel, np.float64), (0, 0), sigma))


def normalised(kernel: NDArray[Any]) -> Kernel:
    """Sum 1, float32."""
    scaled: Kernel = (kernel / kernel.sum()).astype(np.float32)
    return scaled


# -- a camera ---------------------------------------------------------------------------------------------------------


def to_linear(srgb: RgbImage) -> RgbImage:
    """SRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    linear: RgbImage = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return linear


def to_srgb(linear: RgbImage) -> RgbImage:
    """Linear light in [0, 1] to sRGB values (IEC 61966-2-1)."""
    clipped = np.clip(linear, 0.0, 1.0)
    srgb: RgbImage = np.where(clipped <= 0.0031308, clipped * 12.92, 1.055 * clipped ** (1 / 2.4) - 0.055)
    return srgb.astype(np.float32)


def blur(linear: RgbImage, kernel: Kernel) -> RgbImage:
    """Convolve linear light with a kernel, reflecting at the border. (H, W, 3) -> (H, W, 3) float32."""
    flipped = np.ascontiguousarray(kernel[::-1, ::-1])  # filter2D correlates
    blurred: RgbImage = cv2.filter2D(linear, cv2.CV_32F, flipped, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def degrade(
    rng: Random,
    sharp: RgbImage,
    kernel: Kernel,
    *,
    highlights: float = 1.0,
    noise: float = 0.0,
    tone: float = 1.0,
    jpeg: int | None = None,
) -> RgbImage:
    """What a camera makes of a sharp image (H, W, 3) sRGB in [0, 1] while its light is spread by ``kernel``.

    In this order: highlights brighter than white (a factor at white, so that lights draw streaks when the sensor clips
    after the blur), blur, shot and read noise (``noise``: standard deviation at white, in linear light), clipping, the
    camera's curve (sRGB's, then the exponent ``tone``), JPEG (quality, 4:4:4; None for none). float32 in [0, 1]. The
    sharp image is taken to have come through the same curve: without blur it comes back as it is.
    """
    linear = to_linear(sharp ** np.float32(1.0 / tone))
    if highlights > 1.0:
        linear = linear * (1.0 + (highlights - 1.0) * linear.min(axis=2, keepdims=True) ** 8)
    light = np.clip(blur(linear, kernel), 0.0, None)
    if noise > 0.0:
        deviation = noise * np.sqrt(0.9 * np.minimum(light, 1.0) + 0.1)
        light = light + deviation * rng.standard_normal(light.shape, dtype=np.float32)
    image = to_srgb(light.astype(np.float32)) ** np.float32(tone)
    return image if jpeg is None else through_jpeg(image, jpeg)


def through_jpeg(image: RgbImage, quality: int) -> RgbImage:
    """An image in [0, 1] after 8-bit JPEG at a quality from 1 to 100."""
    pixels = np.rint(255.0 * image[:, :, ::-1]).astype(np.uint8)
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    _, data = cv2.imencode(".jpg", pixels, options)
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.float32)
    result: RgbImage = decoded[:, :, ::-1] / np.float32(255.0)
    return result


@dataclass(frozen=True)
class Exposure:
    """What makes blurred images of sharp ones. Those that it makes share a blur pattern; only the noise differs.

    The fields are the arguments of ``degrade``.
    """

    kernel: Kernel
    highlights: float
    noise: float
    tone: float
    jpeg: int | None

    def __call__(self, rng: Random, sharp: RgbImage) -> RgbImage:
        """A sharp image (H, W, 3) under this exposure."""
        return degrade(
            rng, sharp, self.kernel, highlights=self.highlights, noise=self.noise, tone=self.tone, jpeg=self.jpeg
        )


def random_exposure(rng: Random) -> Exposure:
    """What blurs the training images: any training kernel, and any mix of what follows the blur.

    A few are not blurred.
    """
    names = list(KERNELS)
    kernel = KERNELS[names[rng.integers(len(names))]](rng)
    if rng.random() < UNBLURRED:
        kernel = normalised(distance() == 0.0)
    return Exposure(
        kernel,
        highlights=float(rng.choice([1.0, rng.uniform(1.0, 6.0)])),
        noise=float(rng.choice([0.0, *(rng.uniform(0.0, most) for most in NOISES)])),
        tone=float(rng.choice([1.0, rng.uniform(0.9, 1.1)])),
        jpeg=int(rng.integers(80, 100)) if rng.random() < 0.5 else None,
    )
