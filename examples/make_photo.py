"""Make the example photo: scikit-image's astronaut (NASA, public domain), blurred by camera shake in linear light."""

from pathlib import Path

import cv2
import numpy as np
from skimage import data


def shake(size: int, seed: int) -> np.ndarray:
    """A camera-shake kernel, (size, size): a smooth random walk of the camera during the exposure."""
    generator = np.random.default_rng(seed)
    velocity = np.cumsum(generator.normal(size=(400, 2)), axis=0)
    path = np.cumsum(velocity - velocity.mean(axis=0), axis=0)
    path = (path - path.min(axis=0)) / np.ptp(path, axis=0).max() * (size - 3) + 1
    kernel, _, _ = np.histogram2d(*path.T, bins=size, range=[[0, size], [0, size]])
    return cv2.GaussianBlur(kernel / kernel.sum(), (0, 0), 0.6)


def main() -> None:
    """Write ``astronaut_blurred.jpg`` beside this file."""
    sharp = (data.astronaut() / 255.0) ** 2.2
    blurred = cv2.filter2D(sharp, -1, shake(15, seed=3), borderType=cv2.BORDER_REFLECT)
    noisy = blurred + np.random.default_rng(0).normal(scale=0.002, size=blurred.shape)
    pixels = np.rint(255.0 * noisy.clip(0, 1) ** (1 / 2.2)).astype(np.uint8)
    path = Path(__file__).with_name("astronaut_blurred.jpg")
    cv2.imwrite(str(path), pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


if __name__ == "__main__":
    main()
