"""Photos that nothing is trained on, and how they are blurred to measure what a model makes of them.

The kernels are of families that training never shows. ``uid.bench.quality.wide`` has more cases.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from uid.errors import InputError
from uid.install import install_command
from uid.train.blur import UNKNOWN_KERNELS, Kernel, RgbImage, degrade

CASE_SEED = 2024  # of kernels and noise: the same cases in every run, whatever the seed of what is measured
KERNELS_A_PHOTO = 2
CAMERA_NOISE = 0.003  # of the cases; standard deviation at white, in linear light
SIDES = (384, 256)  # of a held-out photo, multiples of 64
REDUCTION = 1.15  # at least: pixels as a camera interpolates them are not sharp
NO_KERNEL = "none"  # where the image is sharp


@dataclass(frozen=True)
class BlurCase:
    """A photo and what blur made of it; both (H, W, 3) float32 sRGB in [0, 1]."""

    photo: str
    kernel: str  # family
    sharp: RgbImage
    psf: Kernel  # the kernel itself
    blurred: RgbImage
    length: float | None = None  # of the blur, pixels; None where its family draws it
    noise: float | None = None  # standard deviation, levels of 8 bits; None where it is not white


def _sample(name: str) -> NDArray[Any]:
    """One of scikit-learn's photos; found by name, since scikit-learn need not be there."""
    photo: NDArray[Any] = importlib.import_module("sklearn.datasets").load_sample_image(f"{name}.jpg")
    return photo


SCIKIT_LEARN = ("china", "flower")
# Natural photos that packages carry, so that nothing is downloaded. New ones go last: a case is seeded by its position.
PHOTOS: Mapping[str, Callable[[], NDArray[Any]]] = {
    "astronaut": data.astronaut,
    "coffee": data.coffee,
    "chelsea": data.chelsea,
    "rocket": data.rocket,
    "motorcycle_left": lambda: data.stereo_motorcycle()[0],
    "motorcycle_right": lambda: data.stereo_motorcycle()[1],
    "china": lambda: _sample("china"),
    "flower": lambda: _sample("flower"),
}


def held_out(names: Sequence[str] = ()) -> dict[str, RgbImage]:
    """The held-out photos by name, (S, S, 3) float32 sRGB in [0, 1], S in ``SIDES``; no names: all that are installed.

    Raises ``InputError`` for a name that is unknown, or whose photo scikit-learn would bring.
    """
    missing = () if importlib.util.find_spec("sklearn") else SCIKIT_LEARN
    for name in names:
        if name not in PHOTOS:
            raise InputError(f"no photo {name!r}; expected one of {', '.join(PHOTOS)}")
        if name in missing:
            raise InputError(
                f"photo {name!r} comes with scikit-learn, which is missing: {install_command(['scikit-learn'])}"
            )
    return {name: reduced(PHOTOS[name]()) for name in names or [name for name in PHOTOS if name not in missing]}


def following(photo: str) -> RgbImage:
    """The held-out photo after this one, of those that are installed."""
    names = list(held_out())
    return held_out([names[(names.index(photo) + 1) % len(names)]]).popitem()[1]


def reduced(photo: NDArray[Any]) -> RgbImage:
    """The middle square of (H, W, 3) uint8, made smaller by area averaging; float32 in [0, 1]."""
    short = min(photo.shape[:2])
    side = next(side for side in SIDES if side * REDUCTION <= short)
    top, left = ((size - short) // 2 for size in photo.shape[:2])
    square = photo[top : top + short, left : left + short].astype(np.float32) / np.float32(255.0)
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)).clip(0.0, 1.0)


def cases(photo: str, sharp: RgbImage, *, noise: float, jpeg: int | None) -> Iterator[BlurCase]:
    """A photo under ``KERNELS_A_PHOTO`` kernels of unknown families; ``noise`` and ``jpeg`` as in ``degrade``."""
    families = list(UNKNOWN_KERNELS)
    first = KERNELS_A_PHOTO * list(PHOTOS).index(photo)
    for number in range(first, first + KERNELS_A_PHOTO):
        family = families[number % len(families)]
        rng = np.random.default_rng([CASE_SEED, number])
        psf = UNKNOWN_KERNELS[family](rng)
        yield BlurCase(photo, family, sharp, psf, degrade(rng, sharp, psf, noise=noise, jpeg=jpeg))


def every_case() -> Iterator[BlurCase]:
    """The cases of all photos with a little noise, and each photo as it is (``NO_KERNEL``)."""
    for photo, sharp in held_out().items():
        yield from cases(photo, sharp, noise=CAMERA_NOISE, jpeg=None)
        yield BlurCase(photo, NO_KERNEL, sharp, np.ones((1, 1), np.float32), sharp)
