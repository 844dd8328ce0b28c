"""Wide cases: the held-out photos under blur of each family, length and level of noise, and images that are sharp.

They say where a model gains and where it does not, which one mean over a few cases hides. The kernels are not drawn by
what blurs the training images: a shake is a hand's tremor, a motion is a straight line, and a disc has a crisp edge.
"""

from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uid.train.blur import Kernel, Random, RgbImage, blur, distance, normalised, to_linear, to_srgb, trace
from uid.train.held_out import CASE_SEED, NO_KERNEL, PHOTOS, BlurCase, held_out

LENGTHS = (5, 9, 16)  # pixels
NOISES = (0.0, 1.5, 3.0)  # standard deviation in levels of 8 bits
SIDE = 256  # of an image that is drawn, pixels
GREYS = (24, 64, 128, 192, 235)  # levels of the flat images


def shake(rng: Random, length: float) -> Kernel:
    """A hand's tremor: on each axis a sum of three harmonics, the slow ones wide; its longer side is ``length``."""
    t = np.linspace(0.0, np.pi, 512)
    harmonics = np.arange(1, 4)
    waves = np.sin(harmonics * t[:, None] + rng.uniform(0.0, 2.0 * np.pi, size=(2, 1, 3)))
    return trace((waves * rng.normal(size=(2, 1, 3)) / harmonics).sum(axis=2).T, extent=length)


def motion(rng: Random, length: float) -> Kernel:
    """A straight line of any direction, its longer side is ``length`` pixels."""
    angle = rng.uniform(0.0, np.pi)
    return trace(np.linspace(-1.0, 1.0, 512)[:, None] * [[np.cos(angle), np.sin(angle)]], extent=length)


def defocus(rng: Random, length: float) -> Kernel:
    """A disc of even light, ``length`` pixels across."""
    return normalised(np.clip(length / 2.0 + 0.5 - distance(), 0.0, 1.0))


def gaussian(rng: Random, length: float) -> Kernel:
    """A Gaussian as wide as the disc of that diameter: its deviation is ``length / 4`` pixels, as the disc's is."""
    return normalised(np.exp(-((distance() / (length / 4.0)) ** 2) / 2.0))


FAMILIES: Mapping[str, Callable[[Random, float], Kernel]] = {
    "shake": shake,
    "motion": motion,
    "defocus": defocus,
    "gaussian": gaussian,
}


def wide_cases(photos: Mapping[str, RgbImage] | None = None) -> Iterator[BlurCase]:
    """Each photo under each of ``FAMILIES``, ``LENGTHS`` and ``NOISES``, the same in every run.

    ``photos`` as ``held_out`` gives them, and by default all of those. A photo has one kernel for each family and
    length, whatever the noise. The blur is convolution in linear light; the noise is Gaussian, white, of sRGB values;
    the blurred image is rounded to 8 bits, as a file holds it.
    """
    for photo, sharp in (held_out() if photos is None else photos).items():
        for number, (family, make) in enumerate(FAMILIES.items()):
            for length in LENGTHS:
                seed = [CASE_SEED, list(PHOTOS).index(photo), number, length]
                psf = make(np.random.default_rng(seed), length)
                clean = to_srgb(blur(to_linear(sharp), psf))
                grain = np.random.default_rng([*seed, 1]).standard_normal(sharp.shape, dtype=np.float32)
                for noise in NOISES:
                    blurred = rounded(clean + np.float32(noise / 255.0) * grain)
                    yield BlurCase(photo, family, sharp, psf, blurred, length, noise)


def sharp_cases(photos: Mapping[str, RgbImage] | None = None) -> Iterator[BlurCase]:
    """What is sharp and should come back as it is: the photos, and the flat images, gradients and text of ``drawn``."""
    for name, sharp in {**(held_out() if photos is None else photos), **drawn()}.items():
        yield BlurCase(name, NO_KERNEL, sharp, np.ones((1, 1), np.float32), sharp)


def drawn() -> dict[str, RgbImage]:
    """Flat images ("flat 128"), gradients and text by name, each (``SIDE``, ``SIDE``, 3) float32 sRGB in [0, 1]."""
    ramp = np.linspace(0.0, 1.0, SIDE, dtype=np.float32)
    across, down = np.meshgrid(ramp, ramp)
    whole = np.ones((SIDE, SIDE), np.float32)
    made = {f"flat {grey}": np.stack([grey / 255.0 * whole] * 3, axis=2) for grey in GREYS}
    made["flat, blue"] = np.stack([0.2 * whole, 0.4 * whole, 0.8 * whole], axis=2)
    made["gradient"] = np.stack([across] * 3, axis=2)
    made["gradient of colours"] = np.stack([across, down, 1.0 - across], axis=2)
    made["text"] = page(ink=20, paper=240)
    made["text, light on dark"] = page(ink=230, paper=40)
    return {name: rounded(image) for name, image in made.items()}


def page(ink: int, paper: int) -> RgbImage:
    """Lines of text, from 10 to 34 pixels high, in grey levels of 8 bits."""
    image = Image.new("L", (SIDE, SIDE), paper)
    draw, top = ImageDraw.Draw(image), 6
    for size in (10, 12, 14, 16, 20, 26, 34):
        line = "Blurred 0123456789, sharp again? The quick brown fox jumps over the lazy dog."
        draw.text((6, top), line, fill=ink, font=ImageFont.load_default(size))
        top += round(1.5 * size)
    pixels: RgbImage = cv2.cvtColor(np.asarray(image), cv2.COLOR_GRAY2RGB).astype(np.float32) / np.float32(255.0)
    return pixels


def rounded(image: RgbImage) -> RgbImage:
    """The image as a file of 8 bits holds it: clipped, in steps of 1/255; float32."""
    levels: RgbImage = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.float32) / np.float32(255.0)
    return levels
