"""How near an image is to the sharp one, and how sharp it is."""

import cv2
import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from uid.train.blur import RgbImage

BORDER = 16  # pixels that no metric looks at: what lies beyond the frame is a guess for every method
PSNR_CAP = 100.0  # dB, for equal images: JSON has no infinity


def psnr(image: RgbImage, sharp: RgbImage, border: int = BORDER) -> float:
    """Peak signal-to-noise ratio inside the border, in dB, at most ``PSNR_CAP``."""
    x, y = inside(sharp, border), inside(image, border)
    with np.errstate(divide="ignore"):  # equal images
        return min(float(peak_signal_noise_ratio(x, y, data_range=1.0)), PSNR_CAP)


def ssim(image: RgbImage, sharp: RgbImage, border: int = BORDER) -> float:
    """Structural similarity inside the border with the Gaussian window of Wang et al. (2004), mean over RGB."""
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    x, y = inside(sharp, border), inside(image, border)
    return float(structural_similarity(x, y, data_range=1.0, channel_axis=2, **window))


def largest(image: RgbImage, sharp: RgbImage) -> float:
    """The largest deviation of any value, border included, in levels of 8 bits."""
    return 255.0 * float(np.abs(image - sharp).max())


def tenengrad(image: RgbImage) -> float:
    """Mean squared Sobel gradient of the luma (BT.601) inside the border."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    squares = [cv2.Sobel(luma, cv2.CV_32F, *order, ksize=3) ** 2 for order in ((1, 0), (0, 1))]
    return float(inside(np.add(*squares)).mean(dtype=np.float64))


def inside(image: RgbImage, border: int = BORDER) -> RgbImage:
    """The image without its border of so many pixels."""
    return image[border : image.shape[0] - border, border : image.shape[1] - border]
