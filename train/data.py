"""Training examples: sharp pictures, procedural or a user's own, and their synthetic blur."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from uid.errors import InputError
from uid.runtime.images import is_image_path, read_image
from uid.train.blur import Pixels, Random, random_pair

Source = Callable[[Random, int, int], Pixels]  # (generator, height, width) -> (H, W, 3) sRGB float32 in [0, 1]


class PictureFolder:
    """Random crops of the pictures in a folder and its subfolders, mirrored half of the time."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.is_file() and is_image_path(path))
        if not self.paths:
            raise InputError(f"{folder} holds no pictures; expected PNG, JPEG, WebP, TIFF or BMP files")

    def __call__(self, rng: Random, height: int, width: int) -> Pixels:
        """A crop of (height, width); raises ``InputError`` for a picture smaller than that."""
        path = self.paths[rng.integers(len(self.paths))]
        pixels = read_image(path).pixels
        if pixels.shape[0] < height or pixels.shape[1] < width:
            raise InputError(f"{path} is {pixels.shape[1]} x {pixels.shape[0]}; expected at least {width} x {height}")
        top, left = (int(rng.integers(pixels.shape[i] - size + 1)) for i, size in enumerate((height, width)))
        crop = pixels[top : top + height, left : left + width][:, :: rng.choice([1, -1])]
        return crop.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


class Pairs(Dataset[dict[str, Tensor]]):
    """Example ``i`` follows from the seed and ``i`` alone, so a run that is resumed sees what it would have seen."""

    def __init__(self, source: Source, size: int, seed: int) -> None:
        self.source, self.size, self.seed = source, size, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``sharp`` and ``blurred``, (3, size, size) float32 in [0, 1]."""
        rng = np.random.default_rng([self.seed, index])
        sharp = self.source(rng, self.size, self.size)
        return {"sharp": planar(sharp), "blurred": planar(random_pair(rng, sharp))}


def planar(pixels: Pixels) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
