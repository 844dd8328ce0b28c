"""Training examples: sharp images, procedural or a user's own, and their synthetic blur."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from uid.bundles.files import written_whole
from uid.errors import InputError
from uid.runtime.media.decode import read_image
from uid.runtime.media.formats import is_image_path
from uid.train.blur import Random, RgbImage, random_exposure
from uid.train.procedural import procedural_image

MADE_SIDE = 256  # of a procedural image, in pixels

Source = Callable[[Random, int, int], RgbImage]  # (generator, height, width) -> (H, W, 3) sRGB float32 in [0, 1]


class ImageFolder:
    """Random crops of the images in a folder and its subfolders, mirrored half of the time."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.is_file() and is_image_path(path))
        if not self.paths:
            raise InputError(f"{folder} holds no images; expected PNG, JPEG, WebP, TIFF or BMP files")

    def __call__(self, rng: Random, height: int, width: int) -> RgbImage:
        """A crop of (height, width); raises ``InputError`` for an image smaller than that."""
        return self.crops(rng, height, width, 1)[0]

    def crops(self, rng: Random, height: int, width: int, count: int) -> list[RgbImage]:
        """Crops of one image, which share its blur."""
        path = self.paths[rng.integers(len(self.paths))]
        pixels = read_image(path).pixels
        if pixels.shape[0] < height or pixels.shape[1] < width:
            raise InputError(f"{path} is {pixels.shape[1]} x {pixels.shape[0]}; expected at least {width} x {height}")
        pixels = pixels[:, :: rng.choice([1, -1])]

        def crop() -> RgbImage:
            top, left = (int(rng.integers(pixels.shape[i] - size + 1)) for i, size in enumerate((height, width)))
            part = pixels[top : top + height, left : left + width]
            return part.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)

        return [crop() for _ in range(count)]


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


class Pairs(Dataset[dict[str, Tensor]]):
    """Example ``i`` follows from the seed and ``i`` alone, so a run that is resumed sees what it would have seen."""

    def __init__(self, source: Source, size: int, seed: int) -> None:
        self.source, self.size, self.seed = source, size, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``sharp`` and ``blurred``, (3, size, size) float32 in [0, 1]."""
        return tensors(self.images(np.random.default_rng([self.seed, index])))

    def images(self, rng: Random) -> dict[str, RgbImage]:
        """The example as (size, size, 3)."""
        sharp = self.source(rng, self.size, self.size)
        return {"sharp": sharp, "blurred": random_exposure(rng)(sharp)}


class Domains(Pairs):
    """Pairs, and beside them ``y_2`` and ``y_3``: two blurred images of one domain, which no sharp ones go with.

    Of a user's ``blurry`` folder they are two crops of one image, since a domain may hold many blurs; otherwise two
    sharp images blurred by one synthetic exposure, and then ``x_3`` is the second one before that.
    """

    def __init__(self, source: Source, size: int, seed: int, blurry: ImageFolder | None = None) -> None:
        super().__init__(source, size, seed)
        self.blurry = blurry

    def images(self, rng: Random) -> dict[str, RgbImage]:
        """The example as (size, size, 3)."""
        pair = super().images(rng)
        if self.blurry:
            y_2, y_3 = self.blurry.crops(rng, self.size, self.size, 2)
            return {**pair, "y_2": y_2, "y_3": y_3}
        exposure = random_exposure(rng)
        x_2, x_3 = (self.source(rng, self.size, self.size) for _ in range(2))
        return {**pair, "y_2": exposure(x_2), "y_3": exposure(x_3), "x_3": x_3}


def tensors(example: dict[str, RgbImage]) -> dict[str, Tensor]:
    """(H, W, 3) -> (3, H, W), of every image."""
    return {name: torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for name, p in example.items()}
