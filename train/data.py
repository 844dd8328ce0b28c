"""Training examples: pairs of a sharp image and its blurred one, and images of one blurred domain."""

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from uid.bundles.files import written_whole
from uid.errors import InputError
from uid.runtime.media.decode import read_image
from uid.train.blur import Random, RgbImage, random_exposure
from uid.train.procedural import procedural_image

MADE_SIDE = 256  # of a procedural image, in pixels

# (generator, height, width) -> images (H, W, 3) sRGB float32 in [0, 1]
Source = Callable[[Random, int, int], RgbImage]
PairSource = Callable[[Random, int, int], tuple[RgbImage, ...]]


class Images:
    """Random crops of images in files, mirrored half of the time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __call__(self, rng: Random, height: int, width: int) -> RgbImage:
        """A crop of one of them; raises ``InputError`` for an image smaller than that."""
        return crops(rng, [self.paths[rng.integers(len(self.paths))]], height, width)[0]


class TwoOf(Images):
    """Crops of two different images of one domain, which may hold many blurs: y_2 and y_3 of the paper."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        if len(self.paths) < 2:
            raise InputError(f"{self.paths[0]} is the only blurred image of its domain; expected two or more")

    def __call__(self, rng: Random, height: int, width: int) -> tuple[RgbImage, RgbImage]:  # type: ignore[override]
        """The two crops."""
        first, second = (self.paths[i] for i in rng.choice(len(self.paths), 2, replace=False))
        return crops(rng, [first], height, width)[0], crops(rng, [second], height, width)[0]


class FilePairs:
    """Random crops of sharp images and their blurred ones, at the same place in both."""

    def __init__(self, paths: Sequence[tuple[Path, Path]]) -> None:
        self.paths = list(paths)

    def __call__(self, rng: Random, height: int, width: int) -> tuple[RgbImage, RgbImage]:
        """Sharp and blurred; raises ``InputError`` where the two differ in size."""
        sharp, blurred = crops(rng, self.paths[rng.integers(len(self.paths))], height, width)
        return sharp, blurred


def crops(rng: Random, paths: Sequence[Path], height: int, width: int) -> list[RgbImage]:
    """The same crop of images of one size, all mirrored or none."""
    read = [read_image(path).pixels for path in paths]
    shape = read[0].shape
    for path, pixels in zip(paths, read, strict=True):
        if pixels.shape[:2] != shape[:2]:
            raise InputError(f"{path} is {size_of(pixels)}; expected {size_of(read[0])}, as {paths[0]} has")
    if shape[0] < height or shape[1] < width:
        raise InputError(f"{paths[0]} is {size_of(read[0])}; expected at least {width} x {height}")
    turn = rng.choice([1, -1])
    top, left = (int(rng.integers(shape[i] - size + 1)) for i, size in enumerate((height, width)))
    parts = [pixels[:, ::turn][top : top + height, left : left + width] for pixels in read]
    return [part.astype(np.float32) / np.float32(np.iinfo(part.dtype).max) for part in parts]


def size_of(pixels: NDArray[Any]) -> str:
    """Width x height, as in messages."""
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


class ProceduralImages:
    """Random crops of procedural images, made once and kept in a file: half of their making is a crop's whole time.

    Crops are turned and mirrored, eight ways.
    """

    def __init__(self, path: Path, count: int, seed: int, report: Callable[[str], None]) -> None:
        if not path.is_file():
            report(f"making {count} images: {path}")
            make_images(path, count, seed)
        self.images = np.load(path, mmap_mode="r")

    def __call__(self, rng: Random, height: int, width: int) -> RgbImage:
        """A crop of (height, width), each at most ``MADE_SIDE``."""
        made = self.images[rng.integers(len(self.images))]
        made = np.rot90(made[:, :: rng.choice([1, -1])], int(rng.integers(4)))
        top, left = (int(rng.integers(MADE_SIDE - size + 1)) for size in (height, width))
        crop = made[top : top + height, left : left + width]
        return crop.astype(np.float32) / np.float32(255.0)


def make_images(path: Path, count: int, seed: int) -> None:
    """Write ``count`` procedural images as one array, (count, S, S, 3) uint8, on every core."""
    # spawned, not forked: the threads of torch and ONNX Runtime do not survive a fork
    pools = get_context("spawn")
    with written_whole(path) as temporary, pools.Pool(initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, MADE_SIDE, MADE_SIDE, 3))
        for i, made in enumerate(pool.imap(made_image, [(seed, i) for i in range(count)], chunksize=16)):
            images[i] = made
        images.flush()


def made_image(key: tuple[int, int]) -> NDArray[np.uint8]:
    """The image of a seed and a number, (S, S, 3) uint8."""
    made = procedural_image(np.random.default_rng(key), MADE_SIDE, MADE_SIDE)
    return np.rint(255.0 * made).astype(np.uint8)


class Blurred:
    """Pairs of sharp images and a synthetic blur of each."""

    def __init__(self, sharp: Source) -> None:
        self.sharp = sharp

    def __call__(self, rng: Random, height: int, width: int) -> tuple[RgbImage, RgbImage]:
        """Sharp and blurred."""
        sharp = self.sharp(rng, height, width)
        return sharp, random_exposure(rng)(rng, sharp)


class BlurredAlike:
    """Two sharp images under one synthetic exposure, a domain of its own: y_2 and y_3; and x_3, y_3 before that."""

    def __init__(self, sharp: Source) -> None:
        self.sharp = sharp

    def __call__(self, rng: Random, height: int, width: int) -> tuple[RgbImage, RgbImage, RgbImage]:
        """The two blurred images, and the second one while it was sharp."""
        exposure = random_exposure(rng)
        first, second = (self.sharp(rng, height, width) for _ in range(2))
        return exposure(rng, first), exposure(rng, second), second


class Examples(Dataset[dict[str, Any]]):
    """Example ``i`` follows from the seed and ``i`` alone, so a run that is resumed sees what it would have seen."""

    def __init__(self, pairs: PairSource, size: int, seed: int, domain: PairSource | None = None) -> None:
        self.pairs, self.size, self.seed, self.domain = pairs, size, seed, domain

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``sharp`` and ``blurred``; with a domain ``y_2``, ``y_3`` and, where it has one, ``x_3``.

        (3, size, size) float32 in [0, 1]. ``key``, a whole number, is what the example's random numbers follow from.
        """
        rng = np.random.default_rng([self.seed, index])
        example = tensors(rng, self.pairs, self.size, ("sharp", "blurred"))
        if self.domain:
            example |= tensors(rng, self.domain, self.size, ("y_2", "y_3", "x_3"))
        return {**example, "key": int(np.random.default_rng([self.seed, index, 1]).integers(1 << 62))}


def tensors(rng: Random, source: PairSource, size: int, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What a source gives, as (3, size, size)."""
    made = zip(names, source(rng, size, size), strict=False)
    return {name: torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for name, image in made}
