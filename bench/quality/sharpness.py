"""Which images are sharp enough to be left alone: their blur effect, and what the built-in model gains on them.

``python -m uid.bench.quality.sharpness`` prints the table of docs/quality.md.
"""

from collections.abc import Iterator
from statistics import fmean

import cv2
import numpy as np

from uid.bench.quality.fidelity import psnr
from uid.runtime import load
from uid.runtime.sharpness import SHARP, blur_effect
from uid.train.blur import RgbImage
from uid.train.held_out import cases, held_out

NOISE = 2 / 255  # standard deviation
SIGMAS = (0.5, 0.7, 1.0, 1.5, 2.5)  # pixels, of a Gaussian blur
LENGTHS = (3, 5, 9)  # pixels, of a shake along the rows


def versions(name: str, sharp: RgbImage) -> Iterator[tuple[str, RgbImage]]:
    """A held-out photo blurred in different ways, in words; each (S, S, 3) float32 sRGB in [0, 1]."""
    noise = np.random.default_rng(0).normal(0, NOISE, sharp.shape).astype(np.float32)
    yield "sharp", sharp
    yield "sharp, noise of 2 levels", sharp + noise
    for sigma in SIGMAS:
        yield f"Gaussian, sigma {sigma}", cv2.GaussianBlur(sharp, (0, 0), sigma)
    for length in LENGTHS:
        yield f"shake of {length} pixels", cv2.blur(sharp, (length, 1))
    half = cv2.resize(sharp, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    yield "enlarged 2 times", cv2.resize(half, sharp.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    for case in cases(name, sharp, noise=1 / 255, jpeg=None):
        yield "kernels of the quality table", case.blurred


def main() -> None:
    """Print a row for each way of blurring."""
    pipeline = load()
    found: dict[str, list[tuple[float, float]]] = {}
    for name, sharp in held_out().items():
        for how, image in versions(name, sharp):
            seen = np.round(image.clip(0.0, 1.0) * 255).astype(np.uint8)
            given, made = (one.astype(np.float32) / 255 for one in (seen, pipeline(seen).image))
            effect = blur_effect(seen)
            assert effect is not None  # photos have gradients
            found.setdefault(how, []).append((effect, psnr(made, sharp) - psnr(given, sharp)))
    print(f"| image | blur effect | left alone, below {SHARP} | gain of the model, dB |\n|---|---|---|---|")
    for how, pairs in found.items():
        effects, gains = zip(*pairs, strict=True)
        left = sum(effect < SHARP for effect in effects)
        print(f"| {how} | {min(effects):.2f} to {max(effects):.2f} | {left} of {len(pairs)} | {fmean(gains):+.2f} |")


if __name__ == "__main__":
    main()
