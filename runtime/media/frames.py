"""Frames and metadata of a clip."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from numpy.typing import NDArray

DEFAULT_FRAME_RATE = Fraction(25)  # of frame folders, frames per second
BT709 = 1  # AVColorSpace
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # AVColorTransferCharacteristic


Load = Callable[[], NDArray[Any]]  # a frame's pixels


@dataclass(frozen=True)
class Stamp:
    """When a frame is shown."""

    pts: int  # ticks of the clip's time base
    duration: int  # ticks; 0 when unknown


@dataclass(frozen=True)
class Frame:
    pixels: NDArray[Any]  # (H, W, 3) RGB uint8 or uint16, upright
    stamp: Stamp
    made: Any = None  # of the pixels, by what is done first


@dataclass(frozen=True)
class Color:
    matrix: int = BT709  # AVColorSpace
    primaries: int = 1  # AVColorPrimaries
    transfer: int = 1  # AVColorTransferCharacteristic


@dataclass(frozen=True)
class Mastering:
    """The display that HDR was mastered on (SMPTE ST 2086), and its content's light (CTA-861.3)."""

    primaries: tuple[Fraction, ...] = ()  # x and y of red, green, blue and white
    luminance: tuple[Fraction, ...] = ()  # least and most, candela per square metre
    light: tuple[int, ...] = ()  # most of a pixel, and of a frame's average, candela per square metre


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
    end: int | None = None  # ticks at which the last frame is no longer shown, where that is declared
    depth: int = 8  # bits of a sample; frames of more than 8 are uint16, scaled to its whole range
    chroma: str = "420"  # J:a:b of the samples as stored
    mastering: Mastering = Mastering()
    dropped: tuple[str, ...] = ()  # what is in the coded frames and cannot be written again
