"""What is found while a file is read: warnings, damage, and limits."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from uid.errors import InputError
from uid.runtime.media.formats import MAX_PIXELS, JpegCoding, Samples


@dataclass
class Reading:
    """One file that is read, and what was found wrong with it."""

    label: str  # what errors call it
    max_pixels: int = MAX_PIXELS
    salvage: bool = False  # read what is left of a damaged file
    warnings: list[str] = field(default_factory=list)

    def warn(self, what: str) -> None:
        """Note what is wrong and costs no pixel."""
        if what not in self.warnings:
            self.warnings.append(what)

    def damage(self, what: str) -> None:
        """Pixels are missing. Raises ``InputError`` unless what is left is wanted."""
        if not self.salvage:
            raise InputError(
                f"{self.label} is damaged or cut short ({what}); get it anew, or take what is left of it",
                option="salvage",
            )
        self.warn(f"damaged, taken as far as it goes: {what}")

    def check_size(self, width: int, height: int) -> None:
        """Raise ``InputError`` for a size by the header, before any memory is taken for it."""
        if width < 1 or height < 1:
            raise InputError(f"{self.label} is {width} x {height} pixels; expected at least 1 x 1")
        if width * height > self.max_pixels:
            limit = f"more than {self.max_pixels} pixels; shrink it or raise the limit"
            raise InputError(f"{self.label} is {width} x {height}, {limit}", option="max_pixels")

    def unusual(self, what: str, remedy: str = "save it anew") -> InputError:
        """The error for a file that is not damaged, and that is not read here."""
        return InputError(f"{self.label} is of an unusual kind ({what}); {remedy}")


@dataclass
class Content:
    """What a file holds, as it is stored: ``decode`` makes a ``DecodedImage`` of it."""

    colour: Samples  # (H, W, 1 or 3), uint8 or uint16
    alpha: Samples | None = None  # (H, W), not multiplied into the colours
    extra: Samples | None = None  # (H, W, n)
    orientation: int = 1  # that the samples still have, as EXIF counts
    exif: bytes | None = None  # as the file has it
    icc: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    comment: bytes | None = None
    dpi: tuple[float, float] | None = None
    native: tuple[tuple[bytes, bytes], ...] = ()
    jpeg: JpegCoding | None = None
    compression: int = 1


def with_channels(samples: Samples) -> Samples:
    """(H, W) as (H, W, 1)."""
    return samples[..., None] if samples.ndim == 2 else samples


def opaque(alpha: Samples) -> bool:
    """Whether nothing is transparent."""
    return bool(alpha.min() == np.iinfo(alpha.dtype).max)


@contextlib.contextmanager
def stderr_muted() -> Iterator[None]:
    """Hide what libtiff and libpng print on the terminal beside the error that is raised: all that the process prints
    meanwhile, so it is for their calls alone.
    """
    try:
        kept = os.dup(2)
    except OSError:  # closed: there is nobody to hide it from
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
