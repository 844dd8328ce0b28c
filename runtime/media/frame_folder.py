"""Folders of numbered images in the place of a video."""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError, OutputError
from uid.runtime.media.decode import quiet_warnings, read_image
from uid.runtime.media.encode import encode_image
from uid.runtime.media.formats import MAX_PIXELS, DecodedImage, is_image_path
from uid.runtime.media.frames import HDR_TRANSFERS, Clip, Frame, Load, Stamp
from uid.runtime.media.selection import Part
from uid.runtime.media.work import Work, store


class FolderReader:
    """Numbered images as frames, one tick each. All are checked before the first is given."""

    warnings: tuple[str, ...] = ()

    def __init__(self, folder: Path, rate: Fraction, max_pixels: int = MAX_PIXELS) -> None:
        self._paths = _numbered(folder)
        self._max_pixels = max_pixels
        first = self._image(self._paths[0])
        height, width, _ = first.pixels.shape
        self._dtype = first.pixels.dtype
        self.clip = Clip((width, height), 1 / rate, rate, len(self._paths), depth=8 * self._dtype.itemsize)
        for path in self._paths:
            if _may_be_unfit(path, (width, height)):
                self._read(path)

    def __iter__(self) -> Iterator[tuple[Stamp, Load]]:
        for index, path in enumerate(self._paths):
            yield Stamp(index, 1), partial(self._read, path)

    def _image(self, path: Path) -> DecodedImage:
        return read_image(path, max_pixels=self._max_pixels)

    def _read(self, path: Path) -> NDArray[Any]:
        image = self._image(path)
        height, width, _ = image.pixels.shape
        if (width, height) != self.clip.size:
            expected = "x".join(map(str, self.clip.size))
            raise InputError(f"{path} is {width}x{height}, but the first frame is {expected}; make all one size")
        if image.alpha is not None and (image.alpha < np.iinfo(image.alpha.dtype).max).any():
            raise InputError(f"{path} is transparent in places, which a video cannot carry; flatten the frames first")
        pixels: NDArray[Any] = image.pixels
        if pixels.dtype != self._dtype:
            depths = f"{8 * pixels.itemsize} bits a channel, but the first frame {8 * self._dtype.itemsize}"
            raise InputError(f"{path} has {depths}; make all one depth")
        return pixels


def _may_be_unfit(path: Path, size: tuple[int, int]) -> bool:
    """By the header alone: whether a frame must be decoded to tell that it fits."""
    from PIL import Image

    try:
        with quiet_warnings(), Image.open(path) as image:
            return image.size != size or image.mode not in ("RGB", "L") or "transparency" in image.info
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True


def _numbered(folder: Path) -> list[Path]:
    """The images of a folder by the numbers in their names: 2.png before 10.png."""
    paths = [path for path in folder.iterdir() if is_image_path(path) and not path.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder} holds no images; expected numbered frames such as 000001.png")
    for path in paths:
        if not re.search(r"\d", path.stem):
            raise InputError(f"{path} has no number in its name, so its place among the frames is unknown; number it")
    return sorted(paths, key=lambda path: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", path.stem)])


class FolderWriter:
    """Frames as 000001.png and so on, each safe once it is written; the folder gets its name when all are there."""

    audio_streams = 0

    def __init__(self, folder: Path, work: Work, clip: Clip, mode: int = 0o666) -> None:
        """``mode`` is that of the files, before the umask."""
        transfer = HDR_TRANSFERS.get(clip.color.transfer)
        line = f"warning: the images in {folder} do not say that they are HDR ({transfer})"
        self.warnings: tuple[str, ...] = (line,) if transfer else ()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} is in use; choose an empty or a new folder")
        self._folder = folder
        self._work = work
        self._frames = work.folder / "frames"
        self._mode = mode
        self._frames.mkdir(mode | (mode & 0o444) >> 2, exist_ok=True)
        self.done = 0
        while self._path(self.done).exists():
            self.done += 1
        self._next = 0

    def put(self, item: Frame | Stamp) -> bool:
        """Write a frame; whether it was not there yet."""
        path = self._path(self._next)
        self._next += 1
        if isinstance(item, Stamp):
            return False
        image = DecodedImage(pixels=item.pixels, alpha=None, grey=False, exif=None, icc=None, format="png")
        store(path, encode_image(image, "png"), self._mode)
        self.done = self._next
        return True

    def finish(self, part: Part) -> None:
        """Give the folder its name; images carry nothing else of the ``part``."""
        for unwanted in self._frames.glob("*.tmp"):
            unwanted.unlink()
        self._work.joined()
        if self._folder.exists():
            self._folder.rmdir()
        self._frames.replace(self._folder)

    def close(self) -> None:
        """No file is open."""

    def _path(self, index: int) -> Path:
        return self._frames / f"{index + 1:06d}.png"
