"""Frames and clip metadata of a video, and folders of numbered images in its place."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uid.errors import InputError
from uid.runtime.media.decode import read_image
from uid.runtime.media.encode import write_image
from uid.runtime.media.formats import DecodedImage, is_image_path

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.stream import Stream

DEFAULT_FRAME_RATE = Fraction(25)  # of frame folders, frames per second
BT709 = 1  # AVColorSpace


@dataclass(frozen=True)
class Frame:
    pixels: NDArray[Any]  # (H, W, 3) RGB uint8, upright
    pts: int  # ticks of the clip's time base
    duration: int  # ticks; 0 when unknown


@dataclass(frozen=True)
class Color:
    matrix: int = BT709  # AVColorSpace
    primaries: int = 1  # AVColorPrimaries
    transfer: int = 1  # AVColorTransferCharacteristic


@dataclass(frozen=True)
class Turn:
    """From stored to upright pixels: first transposed, then mirrored."""

    transposed: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


@dataclass(frozen=True)
class Clip:
    """Metadata of a source, known before its frames are read."""

    size: tuple[int, int]  # (width, height) in pixels, upright
    time_base: Fraction  # seconds per tick
    rate: Fraction  # average frames per second
    total: int | None  # frames, estimated where the container does not count them
    color: Color = Color()
    turn: Turn = Turn()
    sample_aspect: Fraction = Fraction(1)  # width of a pixel over its height, upright
    duration: Fraction = Fraction(0)  # seconds declared; 0 when unknown


class FolderReader:
    """Numbered images as frames, one tick each."""

    def __init__(self, folder: Path, rate: Fraction) -> None:
        self.audio: list[AudioStream] = []
        self._paths = _numbered(folder)
        height, width, _ = read_image(self._paths[0]).pixels.shape
        self.clip = Clip((width, height), 1 / rate, rate, len(self._paths))

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            yield Frame(self._read(path), index, 1)

    def _read(self, path: Path) -> NDArray[Any]:
        image = read_image(path)
        height, width, _ = image.pixels.shape
        if (width, height) != self.clip.size:
            expected = "x".join(map(str, self.clip.size))
            raise InputError(f"{path} is {width}x{height}, but the first frame is {expected}; make all one size")
        if image.alpha is not None or image.pixels.dtype != np.uint8:
            raise InputError(f"{path} is not an opaque image of 8 bits a channel; convert the frames first")
        pixels: NDArray[Any] = image.pixels
        return pixels


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
    """Frames as 000001.png and so on."""

    audio_streams = 0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done = 0

    def write(self, frame: Frame) -> None:
        self._done += 1
        image = DecodedImage(pixels=frame.pixels, alpha=None, grey=False, exif=None, icc=None, format="png")
        write_image(image, self._folder / f"{self._done:06d}.png")

    def copy(self, packet: "Packet[Stream]") -> None:
        """Images carry no sound."""
